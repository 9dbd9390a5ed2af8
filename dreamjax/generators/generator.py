"""What all generators are: a text encoder that reads, and stages that draw, each a description beside parameters.

The parameters are one tree: "text" for the text encoder, and one entry for each stage, by its name.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
import functools
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from dreamjax.data.tokenizer import Tokenizer
from dreamjax.models.clip import PromptEncoder
from dreamjax.models.layers import REMATS
from dreamjax.models.t5 import T5Encoder
from dreamjax.parallel import processes
from dreamjax.parallel.sharding import batch_sharding, round_up_batch_size
from dreamjax.theta import ALL_PARTS, Base, Full, Theta, content_hash
from dreamjax.theta import apply as apply_theta

TEXT = "text"  # the text encoder's name among the parts of a generator


@runtime_checkable
class Named(Protocol):
  """A stage, whatever it draws with."""

  @property
  def name(self) -> str:
    """Of the stage, and of its part of the parameters."""


S = TypeVar("S", bound=Named)


class Text(NamedTuple):
  """Texts as the stages see them.

  Attributes:
    tokens: what the text encoder makes of them.
    mask: true where there is a token.
    pooled: one vector for each text, of text encoders that make one.
  """

  tokens: Float[Array, "b n d"]
  mask: Bool[Array, "b n"]
  pooled: Float[Array, "b p"] | None = None


@dataclasses.dataclass(frozen=True)
class Generator(Generic[S]):
  """A text encoder and stages, each of which makes larger images than the one before.

  Attributes:
    name: for people.
    text_encoder: the network that reads.
    tokenizer: the one that it was trained with.
    stages: the base stage first.
  """

  name: str
  text_encoder: T5Encoder | PromptEncoder
  tokenizer: Tokenizer
  stages: tuple[S, ...]

  def stage(self, name: str) -> S:
    """The stage of this name; ValueError if there is none."""
    for stage in self.stages:
      if stage.name == name:
        return stage
    raise ValueError(f"{self.name} has no stage {name!r}; there are: {', '.join(stage.name for stage in self.stages)}")

  def base(self, params: Any, parts: Iterable[str] | None = None) -> Base:
    """Hashes parameters: what a theta that is trained with them is bound to.

    Args:
      params: the generator's.
      parts: those to be hashed, by default all; `theta.ALL_PARTS` for all together. Missing ones are left out.
    """
    known = list(params) if parts is None else [part for part in parts if part in (*params, ALL_PARTS)]
    own = {part: params if part == ALL_PARTS else params[part] for part in known}
    return Base(self.name, {part: content_hash(tree, processes.fetch) for part, tree in own.items()})

  def encode(
    self, params: Any, texts: Sequence[str], theta: Theta | None = None, mesh: jax.sharding.Mesh | None = None
  ) -> Text:
    """Reads texts.

    Args:
      params: the generator's.
      texts: the prompts, [V] already replaced.
      theta: the text encoder's, if it was tuned.
      mesh: of devices, over which the texts are spread; None for one device.
    """
    own, theta = merge_full_weights(params[TEXT], theta)
    ((count, places),) = in_batches(len(texts), len(texts), mesh)
    rows = spread(tuple(x[places] for x in self.tokenizer(texts)), mesh)
    with over(mesh):
      encode_text = _encode(self.text_encoder, own, theta, *rows)
    return jax.tree.map(lambda x: x[:count], encode_text)


@functools.partial(jax.jit, static_argnums=0)
def _encode(encoder: T5Encoder | PromptEncoder, params: Any, theta: Theta | None, ids: Array, mask: Array) -> Text:
  return encode_text(encoder, params, theta, ids, mask)


def encode_text(encoder: T5Encoder | PromptEncoder, params: Any, theta: Theta | None, ids: Array, mask: Array) -> Text:
  """Token ids [b, n], or [b, k, n] for k towers, to what the stages see; differentiable."""
  tokens, more = apply_theta(encoder, params, theta, ids, mask)
  return Text(tokens, mask, more.get("pooled"))


def drop_texts(key: Key[Array, ""], texts: Any, null: Any, share: float) -> Any:
  """Rows of texts, or of token ids and masks, a share of which is replaced by the one row of `null`."""
  dropped = jax.random.bernoulli(key, share, (len(jax.tree.leaves(texts)[0]),))
  pick = lambda x, other: jnp.where(dropped.reshape(-1, *[1] * (x.ndim - 1)), other, x)  # noqa: E731
  return jax.tree.map(pick, texts, null)


G = TypeVar("G", bound=Generator[Any])
DTYPES = ("float32", "bfloat16")


def with_compute(generator: G, dtype: str, remat: str, scan: bool = False) -> G:
  """The generator, whose networks compute in another type, remember less for the way back, or are faster compiled.

  Args:
    generator: any.
    dtype: in which matrix products and convolutions are computed, of `DTYPES`; parameters, norms and what goes around
      the blocks stay float32.
    remat: what the stages' networks compute anew for the gradient, of `models.layers.REMATS`: "none"; "cheap", all
      that is inside a block but matrix products, convolutions and attention between many places; or "all".
    scan: whether rows of like layers in the stages' networks are loops, see `models.layers`. The cascade's networks
      have none.

  Raises:
    ValueError: for another type, or another remat.
  """
  for name, value, known in (("dtype", dtype, DTYPES), ("remat", remat, REMATS)):
    if value not in known:
      raise ValueError(f"{name} is one of {', '.join(known)}, not {value!r}")

  def change(network: Any) -> Any:
    if isinstance(network, PromptEncoder):
      return network.clone(towers=tuple(map(change, network.towers)))
    more = {name: value for name, value in (("remat", remat), ("scan", scan)) if hasattr(network, name)}
    return network.clone(dtype=getattr(jnp, dtype), **more)

  def change_all(part: Any) -> Any:
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return dataclasses.replace(part, **{name: change(x) for name, x in fields.items() if isinstance(x, nn.Module)})

  stages = tuple(change_all(stage) for stage in generator.stages)
  return dataclasses.replace(change_all(generator), stages=stages)


def merge_full_weights(params: Any, theta: Theta | None) -> tuple[Any, Theta | None]:
  """A part's parameters and theta, for the program of the base model.

  Full weights take the places of the parameters for which they stand, each on the same devices, if those lie on a mesh:
  so no device holds more of them than of the base model. Thetas of other kinds stay beside the parameters.
  """
  if not isinstance(theta, Full):
    return params, theta

  def put(x: Any, replaced: Any) -> Any:
    place = replaced.sharding if isinstance(replaced, jax.Array) else None
    return processes.put(x, place) if isinstance(place, jax.NamedSharding) else x

  return jax.tree.map(put, theta.merge(params), params), None


def image_keys(seed: int, numbers: Sequence[int] | np.ndarray | Array) -> Key[Array, " b"]:
  """The keys of the images with these numbers."""
  root = jax.random.key(seed)
  return jax.vmap(lambda number: jax.random.fold_in(root, number))(jnp.asarray(numbers, jnp.uint32))


def in_batches(
  total: int, size: int, mesh: jax.sharding.Mesh | None = None
) -> Iterator[tuple[int, Int[np.ndarray, " b"]]]:
  """Yields how many of `total` images are in a batch, and the places of all that are drawn with it.

  The last batch is filled up with its last image, so that one program does all.

  Args:
    total: how many images there are.
    size: of a batch; on a mesh, as many more as make it divide.
    mesh: of devices, over which batches are to be spread; None for one.
  """
  size = round_up_batch_size(size, mesh)
  for start in range(0, total, size):
    count = min(size, total - start)
    yield count, start + np.minimum(np.arange(size), count - 1)


def spread(rows: Any, mesh: jax.sharding.Mesh | None, axis: int = 0) -> Any:
  """Rows, spread over the devices of a mesh, if there is one.

  Args:
    rows: arrays, or trees of them.
    mesh: see `parallel.sharding`.
    axis: that of the rows, which are as many as `in_batches` makes them.
  """
  if mesh is None:
    return rows
  return jax.tree.map(lambda x: processes.put(x, batch_sharding(mesh, axis)), rows)


def over(mesh: jax.sharding.Mesh | None) -> contextlib.AbstractContextManager[Any]:
  """The context in which a program over a mesh is called: its networks see there how rows are spread."""
  return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
