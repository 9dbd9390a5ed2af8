"""What a training from random parameters consists of, and helpers that all of them share."""

import abc
from collections.abc import Callable
import pathlib
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from dreamjax.errors import UserError
from dreamjax.parallel import processes
from dreamjax.parallel.sharding import param_shardings
from dreamjax.train.logs import Sheet


class Task(abc.ABC):
  """A training without its optimizer.

  Attributes:
    theta: the parameters at the start.
    frozen: the parameters that the loss reads but does not train; see `train.state`.
  """

  theta: Any
  frozen: Any = None

  @abc.abstractmethod
  def loss(self, theta: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Returns the loss of a batch and named scalars to log; see `train.step`."""

  @abc.abstractmethod
  def batch(self, i: int) -> Any:
    """Returns the batch of update i."""

  @abc.abstractmethod
  def measure(self, theta: Any) -> dict[str, float]:
    """Evaluates parameters on held-out examples, as named scalars."""

  @abc.abstractmethod
  def save(self, theta: Any, folder: pathlib.Path) -> None:
    """Writes the trained model into a folder."""

  def show(self, theta: Any) -> Sheet | None:
    """Returns images by which a person judges parameters, or None."""
    del theta
    return None


def init_params(
  module: nn.Module, key: jax.Array, *inputs: Any, mesh: jax.sharding.Mesh | None = None, **named: Any
) -> Any:
  """Initialises the parameters of a module, compiled without optimization, since the program runs only once.

  Args:
    module: the network.
    key: of the randomness.
    inputs: the module's inputs, of which only shapes and dtypes matter.
    mesh: devices over which the parameters are sharded from the start, as no device may be able to hold all of them;
      None for the first device alone.
    named: the module's inputs by keyword.
  """
  sharding = None if mesh is None else param_shardings(jax.eval_shape(module.init, key, *inputs, **named), mesh)
  options = {"xla_backend_optimization_level": 0}
  return jax.jit(module.init, out_shardings=sharding, compiler_options=options)(key, *inputs, **named)["params"]


def load_matching(params: Any, others: Any) -> Any:
  """Replaces parameters by those of another tree that have the same path and shape, and keeps their shardings.

  Raises:
    ValueError: if no parameter has the same path and shape.
  """
  own, found = flatten_dict(params), flatten_dict(others)
  same = {
    path: processes.put(x, own[path].sharding)
    for path, x in found.items()
    if path in own and own[path].shape == x.shape
  }
  if not same:
    raise UserError("the model to start from has no parameter in common with this one")
  return unflatten_dict(own | same)


def signed(images: UInt8[Array, "*b"]) -> Float[Array, "*b"]:
  """Converts images from bytes to float32 in [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def in_batches(function: Callable[[Any], Any], inputs: Any, size: int = 128) -> Any:
  """Applies a function of a batch to a larger one, in batches of one size; the results are fetched to the host."""
  n = jax.tree.leaves(inputs)[0].shape[0]
  outputs = []
  for start in range(0, n, size):
    batch = jax.tree.map(lambda x, start=start: x[start : start + size], inputs)
    padding = size - jax.tree.leaves(batch)[0].shape[0]
    padded = jax.tree.map(lambda x, n=padding: jnp.pad(x, [(0, n)] + [(0, 0)] * (x.ndim - 1)), batch)
    outputs.append(jax.tree.map(lambda y, n=padding: y[: size - n], processes.fetch(function(padded))))
  return jax.tree.map(lambda *y: jnp.concatenate(y), *outputs)
