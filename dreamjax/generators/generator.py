"""What all generators share: a text encoder, and stages that generate images, each a description apart from parameters.

The parameters are one tree: "text" for the text encoder, and one entry for each stage, by its name.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from dreamjax.data.tokenizer import Tokenizer
from dreamjax.errors import UserError
from dreamjax.generators.conditioning import Text
from dreamjax.models.clip import PromptEncoder
from dreamjax.models.layers import REMATS
from dreamjax.models.t5 import T5Encoder
from dreamjax.parallel import processes
from dreamjax.parallel.batches import batch_indices
from dreamjax.parallel.sharding import shard_batch, use_mesh
from dreamjax.theta import ALL_PARTS, Base, Full, Theta, content_hash
from dreamjax.theta import apply as apply_theta

TEXT = "text"  # the text encoder's name among the parts of a generator
_TEXTS = 16  # prompts that are encoded at once, at most


@runtime_checkable
class AnyStage(Protocol):
  """A stage of either family."""

  @property
  def name(self) -> str:
    """Of the stage, and of its part of the parameters."""

  @property
  def sampling(self) -> Any:
    """How it is sampled unless the caller says otherwise."""

  def network_params(self, params: Any) -> Any:
    """The parameters of the network that thetas are for, of the stage's."""

  def merge(self, params: Any, theta: Theta) -> Any:
    """The stage's parameters with full weights in their places."""


S = TypeVar("S", bound=AnyStage)


@dataclasses.dataclass(frozen=True)
class Generator(Generic[S]):
  """A text encoder and stages, each of which generates larger images than the one before.

  Attributes:
    name: for people.
    text_encoder: the network that encodes prompts.
    tokenizer: the one that it was trained with.
    stages: the base stage first.
  """

  name: str
  text_encoder: T5Encoder | PromptEncoder
  tokenizer: Tokenizer
  stages: tuple[S, ...]

  def stage(self, name: str) -> S:
    """The stage of this name; UserError if there is none."""
    for stage in self.stages:
      if stage.name == name:
        return stage
    known = ", ".join(stage.name for stage in self.stages)
    raise UserError(f"{self.name} has no stage {name!r}; there are: {known}")

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
    """Encodes prompts, at most 16 at once, in batches of powers of two, so that few programs are compiled.

    Args:
      params: the generator's.
      texts: the prompts, [V] already replaced.
      theta: the text encoder's, if it was tuned.
      mesh: of devices, over which the prompts are sharded; None for one device.
    """
    own, theta = merge_full_weights(params[TEXT], theta)
    ids, encoded = self.tokenizer(texts), []
    for count, indices in batch_indices(len(texts), min(_TEXTS, 1 << (len(texts) - 1).bit_length()), mesh):
      batch = shard_batch(tuple(x[indices] for x in ids), mesh)
      with use_mesh(mesh):
        found = _encode(self.text_encoder, own, theta, *batch)
      encoded.append(jax.tree.map(lambda x, count=count: x[:count], found))
    return encoded[0] if len(encoded) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *encoded)

  def check(self, samplings: Sequence[Any]) -> None:
    """Raises UserError for samplings, one for each stage, that the stages cannot be sampled with; here for none."""

  def generate(
    self,
    stages: tuple[S, ...],
    samplings: tuple[Any, ...],
    groups: tuple[Any, ...],
    weights: tuple[Float[np.ndarray, "2 _"], ...],
    params: Any,
    keys: Key[Array, " b"],
    control: Any = None,
  ) -> tuple[Float[Array, "b _ _ 3"], ...]:
    """Samples a batch of images, stage after stage, in one compiled program.

    Args:
      stages: the base stage first.
      samplings: of each stage.
      groups: of each stage, its branches with their texts.
      weights: of each stage, those of its branches.
      params: what the program reads besides the stages' networks, see `decoder_params`.
      keys: one an image, on which alone its noise depends.
      control: for latent diffusion, see `Conditioning`.

    Returns:
      The images of each stage, in [-1, 1].
    """
    raise NotImplementedError

  def decoder_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, of the generator's, of what makes images of latents or tokens."""
    raise NotImplementedError


@functools.partial(jax.jit, static_argnames="encoder")
def _encode(encoder: T5Encoder | PromptEncoder, params: Any, theta: Theta | None, ids: Array, mask: Array) -> Text:
  return encode_text(encoder, params, theta, ids, mask)


def encode_text(encoder: T5Encoder | PromptEncoder, params: Any, theta: Theta | None, ids: Array, mask: Array) -> Text:
  """Encodes token ids [b, n], or [b, k, n] for k towers, and their mask [b, n]. Differentiable."""
  tokens, more = apply_theta(encoder, params, theta, ids, mask)
  return Text(tokens, mask, more.get("pooled"))


def drop_texts(key: Key[Array, ""], texts: Any, null: Any, share: float) -> Any:
  """Replaces a random share of a batch of prompts, encoded or token ids with masks, by the one prompt of `null`."""
  dropped = jax.random.bernoulli(key, share, (len(jax.tree.leaves(texts)[0]),))
  pick = lambda x, other: jnp.where(dropped.reshape(-1, *[1] * (x.ndim - 1)), other, x)  # noqa: E731
  return jax.tree.map(pick, texts, null)


G = TypeVar("G", bound=Generator[Any])
DTYPES = ("float32", "bfloat16")


def with_compute(generator: G, dtype: str, remat: str, scan: bool = False) -> G:
  """The generator with networks that compute in another dtype, rematerialise activations, or compile as loops.

  Args:
    generator: any.
    dtype: of matrix products and convolutions, of `DTYPES`; parameters, norms and hidden states stay float32.
    remat: what the stages' networks recompute in the backward pass, of `models.layers.REMATS`: "none"; "cheap", all
      that is inside a block except matrix products, convolutions and chunked attention; or "all".
    scan: whether consecutive layers of one shape in the stages' networks are compiled as a loop, see `models.layers`.
      The pixel U-Nets have none.

  Raises:
    UserError: for another dtype or remat.
  """
  for name, value, known in (("dtype", dtype, DTYPES), ("remat", remat, REMATS)):
    if value not in known:
      raise UserError(f"{name} is one of {', '.join(known)}, not {value!r}")

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
  """The parameters and the theta of a part, with full weights in the places of the parameters.

  If the parameters are sharded over a mesh, the full weights are sharded alike, so that no device holds more of them
  than of the base model. Thetas of other kinds are returned as they are.
  """
  if not isinstance(theta, Full):
    return params, theta

  def put(x: Any, replaced: Any) -> Any:
    sharding = getattr(replaced, "sharding", None)  # arrays of numpy and, in plans of a run, tracers have none
    return processes.put(x, sharding) if isinstance(sharding, jax.NamedSharding) else x

  return jax.tree.map(put, theta.merge(params), params), None


def image_keys(seed: int, numbers: Sequence[int] | np.ndarray | Array) -> Key[Array, " b"]:
  """The random keys of the images with these numbers."""
  root = jax.random.key(seed)
  return jax.vmap(lambda number: jax.random.fold_in(root, number))(jnp.asarray(numbers, jnp.uint32))
