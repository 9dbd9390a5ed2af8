"""What a pretraining is made of."""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from dreamjax.parallel import processes
from dreamjax.parallel.sharding import param_shardings
from dreamjax.train.logs import Sheet
from dreamjax.train.step import Loss


@dataclasses.dataclass(frozen=True)
class Task:
  """A training, but for its optimizer.

  Attributes:
    theta: the parameters at the start.
    loss: see `train.step`.
    batches: batch(i) is what update i sees.
    measure: how good parameters are on examples that are not trained on, as named scalars.
    save: writes the trained model into a folder.
    frozen: what the loss reads besides, see `train.state`.
    show: images by which a person sees how good parameters are.
  """

  theta: Any
  loss: Loss
  batches: Callable[[int], Any]
  measure: Callable[[Any], dict[str, float]]
  save: Callable[[Any, pathlib.Path], None]
  frozen: Any = None
  show: Callable[[Any], Sheet] | None = None


def initial(
  module: nn.Module, key: jax.Array, *inputs: Any, mesh: jax.sharding.Mesh | None = None, **named: Any
) -> Any:
  """The parameters with which a module starts, compiled quickly rather than well, for that runs once.

  Args:
    module: which.
    key: of the randomness.
    inputs: to the module.
    mesh: of devices, on which parameters are born where they belong, for no device might hold all of them; None for the
      first device alone.
    named: more inputs.
  """
  places = None if mesh is None else param_shardings(jax.eval_shape(module.init, key, *inputs, **named), mesh)
  options = {"xla_backend_optimization_level": 0}
  return jax.jit(module.init, out_shardings=places, compiler_options=options)(key, *inputs, **named)["params"]


def warm(params: Any, others: Any) -> Any:
  """The parameters, those that the others have at the same path and of the same shape taken from them.

  They lie where those lie of which they take the place.

  Raises:
    ValueError: if there are none.
  """
  own, found = flatten_dict(params), flatten_dict(others)
  same = {
    path: processes.put(x, own[path].sharding)
    for path, x in found.items()
    if path in own and own[path].shape == x.shape
  }
  if not same:
    raise ValueError("the model to start from has no parameter in common with this one")
  return unflatten_dict(own | same)


def signed(images: UInt8[Array, "*b"]) -> Float[Array, "*b"]:
  """Images in bytes as numbers in [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def in_pieces(function: Callable[[Any], Any], inputs: Any, size: int = 128) -> Any:
  """A function of a batch, applied to pieces of one size of a larger one; the results are on the host."""
  n = jax.tree.leaves(inputs)[0].shape[0]
  pieces = []
  for start in range(0, n, size):
    piece = jax.tree.map(lambda x, start=start: x[start : start + size], inputs)
    short = size - jax.tree.leaves(piece)[0].shape[0]
    padded = jax.tree.map(lambda x, short=short: jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1)), piece)
    pieces.append(jax.tree.map(lambda y, short=short: y[: size - short], processes.fetch(function(padded))))
  return jax.tree.map(lambda *y: jnp.concatenate(y), *pieces)
