"""Muse's transformers, which predict the logits of an image's tokens from these, some of them masked, and a text.

"Muse: Text-To-Image Generation via Masked Generative Transformers" (Chang et al., 2301.00704), sections 2.3 and 2.4.
The tokens form a square; each is embedded by its index in the codebook, its row and its column. A layer is

  (1) x' = x + attention(norm(x), norm(x)),  x'' = x' + attention(norm(x'), context),  y = x'' + mlp(norm(x''))

The context of the base transformer is the text, projected to the width of x. That of the super-resolution transformer
is the text followed by the tokens of the low-resolution image, as an encoder of layers without a context outputs them.
Where there are too many tokens for each to attend to all, attention is along two axes ("Improved Transformer for
High-Resolution GANs", Zhao et al., 2106.07631, section 3.2): in half of the heads a token attends to its own block of
neighbours, in the others to the tokens at its position in all blocks.

Matrix products run in `dtype`; the residual stream, the norms and the softmax stay in float32, as do the parameters.
"""

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dreamjax.models.attention import attend
from dreamjax.models.layers import apply_layers, with_remat
from dreamjax.models.taps import Tap
from dreamjax.models.transformer import layer_norm

normal = nn.initializers.normal
EPS = 1e-6  # of the norms
STD = 0.02  # of the embeddings and kernels


def blocks_of(x: Float[Array, "b n *d"], block: int) -> Float[Array, "b m p *d"]:
  """Groups the tokens of a square, given row by row, into m blocks of p = block^2 neighbours."""
  side = round(x.shape[1] ** 0.5)
  cut = x.reshape(x.shape[0], side // block, block, side // block, block, *x.shape[2:])
  return jnp.swapaxes(cut, 2, 3).reshape(x.shape[0], -1, block * block, *x.shape[2:])


def from_blocks(x: Float[Array, "b m p *d"], block: int) -> Float[Array, "b n *d"]:
  """Computes the inverse of `blocks_of`."""
  across = round(x.shape[1] ** 0.5)
  cut = x.reshape(x.shape[0], across, across, block, block, *x.shape[3:])
  return jnp.swapaxes(cut, 2, 3).reshape(x.shape[0], -1, *x.shape[3:])


def attend_along_axes(
  query: Float[Array, "b n k d"], key: Float[Array, "b n k d"], value: Float[Array, "b n k d"], block: int
) -> Float[Array, "b n k d"]:
  """Computes attention within blocks in the first half of the heads, across blocks in the second."""
  half = query.shape[2] // 2
  parts = [blocks_of(x, block) for x in (query, key, value)]
  within = [x[..., :half, :] for x in parts]
  across = [jnp.swapaxes(x[..., half:, :], 1, 2) for x in parts]

  def batched(parts: list[Array]) -> Array:
    flat = [x.reshape(-1, *x.shape[2:]) for x in parts]
    return attend(*flat).reshape(parts[0].shape)

  mixed = jnp.concatenate([batched(within), jnp.swapaxes(batched(across), 1, 2)], axis=-2)
  return from_blocks(mixed, block)


class Attention(nn.Module):
  """Norm and attention of the tokens to each other or, if there is one, to a context."""

  heads: int
  block: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    context: Float[Array, "b m d"] | None = None,
    mask: Bool[Array, "b m"] | None = None,
  ) -> Float[Array, "b n d"]:
    """Adds the attention's output to the residual stream, in float32."""
    width = x.shape[-1]
    own = layer_norm(EPS, "norm")(x)
    other = own if context is None else context
    query, key, value = (
      nn.Dense(width, use_bias=False, kernel_init=normal(STD), dtype=self.dtype, name=name)(y).reshape(
        *y.shape[:2], self.heads, -1
      )
      for name, y in (("query", own), ("key", other), ("value", other))
    )
    if context is None and self.block:
      mixed = attend_along_axes(query, key, value, self.block)
    else:
      mixed = attend(query, key, value, mask=None if mask is None else mask[:, None, None])
    out = nn.Dense(width, use_bias=False, kernel_init=normal(STD), dtype=self.dtype, name="out")
    return x + out(mixed.reshape(x.shape)).astype(jnp.float32)


class MLP(nn.Module):
  """Norm and a perceptron of two layers, applied to each token."""

  hidden: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Adds the mlp's output to the residual stream, in float32."""
    hidden = nn.Dense(self.hidden, kernel_init=normal(STD), dtype=self.dtype, name="hidden")
    out = nn.Dense(x.shape[-1], kernel_init=normal(STD), dtype=self.dtype, name="out")
    return x + out(nn.gelu(hidden(layer_norm(EPS, "norm")(x)))).astype(jnp.float32)


class Layer(nn.Module):
  """Eq. 1, with a `Tap` between self- and cross-attention; without a context there is neither."""

  heads: int
  mlp: int
  block: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    context: Float[Array, "b m d"] | None = None,
    mask: Bool[Array, "b m"] | None = None,
  ) -> Float[Array, "b n d"]:
    """Applies the layer to the residual stream."""
    x = Attention(self.heads, self.block, self.dtype, name="self_attention")(x)
    if context is not None:
      x = Tap(name="tap")(x)
      x = Attention(self.heads, 0, self.dtype, name="cross_attention")(x, context, mask)
    return MLP(self.mlp, self.dtype, name="mlp")(x)


class Muse(nn.Module):
  """A transformer of Muse: the base one, or with `low_side` the super-resolution one.

  Attributes:
    side: tokens of an image's row, and of its column.
    codebook: size of the codebook. The index after its last one is the mask's: `mask_id`.
    width: channels of a token.
    heads: attention heads.
    mlp: channels of the mlp's hidden layer.
    depth: layers.
    text_width: channels of the text's tokens.
    low_side: tokens of the low-resolution image's row; 0 for the base transformer.
    low_depth: layers of the encoder of the low-resolution image.
    low_codebook: size of the low-resolution image's codebook.
    block: side of the blocks of attention along two axes; with 0 each token attends to all.
    remat: what the backward pass of a layer or block recomputes, one of `layers.REMATS`.
    scan: whether the layers are a loop, see `layers.apply_layers`.
    dtype: in which matrix products are computed; the rest is float32.
  """

  side: int
  codebook: int
  width: int
  heads: int
  mlp: int
  depth: int
  text_width: int
  low_side: int = 0
  low_depth: int = 0
  low_codebook: int = 0
  block: int = 0
  remat: str = "none"
  scan: bool = False
  dtype: DTypeLike = jnp.float32

  @property
  def mask_id(self) -> int:
    """The index of a masked token."""
    return self.codebook

  @property
  def adapted(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths of the modules that StyleDrop's adapters follow: the last attention of each layer, and its mlp.

    The layers of the encoder of low-resolution images are among them, as the paper's number of parameters implies.
    """
    low = [f"low_layer_{i}" for i in range(self.low_depth)]
    layers = [f"layer_{i}" for i in range(self.depth)]
    attentions = [f"{layer}/self_attention" for layer in low] + [f"{layer}/cross_attention" for layer in layers]
    return tuple(attentions), tuple(f"{layer}/mlp" for layer in (*low, *layers))

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "b n"],
    text: Float[Array, "b m d"],
    mask: Bool[Array, "b m"],
    low: Int[Array, "b l"] | None = None,
  ) -> Float[Array, "b n {self.codebook}"]:
    """Predicts the logits of all tokens.

    Args:
      tokens: of square images, row by row; `mask_id` where they are masked.
      text: tokens of the text encoder.
      mask: true for tokens of the text, false for padding; no text may be all padding.
      low: for super-resolution, the tokens of the low-resolution images, none of them masked.

    Raises:
      ValueError: if an input is missing or superfluous, or there are more or fewer tokens than the model's positions.
    """
    self._check(tokens, text, low)
    layer = with_remat(Layer, self.remat)
    context = nn.Dense(self.width, use_bias=False, kernel_init=normal(STD), dtype=self.dtype, name="text")(text)
    context = layer_norm(EPS, "text_norm")(context.astype(jnp.float32))
    if low is not None:
      encoded = self._embed(low, self.low_side, self.low_codebook, "low_")
      low_layers = [layer(self.heads, self.mlp, 0, self.dtype, name=f"low_layer_{i}") for i in range(self.low_depth)]
      encoded = apply_layers(low_layers, encoded, scan=self.scan)
      context = jnp.concatenate([context, layer_norm(EPS, "low_norm")(encoded)], axis=1)
      mask = jnp.concatenate([mask, jnp.ones(low.shape, bool)], axis=1)
    x = self._embed(tokens, self.side, self.codebook + 1, "")
    layers = [layer(self.heads, self.mlp, self.block, self.dtype, name=f"layer_{i}") for i in range(self.depth)]
    x = apply_layers(layers, x, context, mask, scan=self.scan)
    x = layer_norm(EPS, "norm")(x)
    return nn.Dense(self.codebook, kernel_init=normal(STD), dtype=self.dtype, name="logits")(x).astype(jnp.float32)

  def _embed(self, tokens: Int[Array, "b n"], side: int, count: int, name: str) -> Float[Array, "b n d"]:
    """Returns the sum of the embeddings of each token's index, row and column."""
    rows, columns = (
      self.param(f"{name}{axis}", normal(STD), (side, self.width)) for axis in ("row_positions", "column_positions")
    )
    positions = (rows[:, None] + columns[None]).reshape(1, side * side, self.width)
    return nn.Embed(count, self.width, embedding_init=normal(STD), name=f"{name}tokens")(tokens) + positions

  def _check(self, tokens: Array, text: Array, low: Array | None) -> None:
    """Raises a ValueError for inputs that do not fit."""
    if self.block and (self.side % self.block or self.heads % 2):
      raise ValueError(
        f"attention along two axes takes an even number of heads, not {self.heads}, and blocks of a side that divides "
        f"{self.side}, not {self.block}"
      )
    if (low is None) != (self.low_side == 0):
      what = "the super-resolution transformer takes" if self.low_side else "a base transformer takes no"
      raise ValueError(f"{what} tokens of a low-resolution image")
    for name, found, side in (("n", tokens, self.side), (" low-resolution", low, self.low_side)):
      if found is not None and found.shape[1] != side * side:
        raise ValueError(f"this model takes {side}x{side} tokens of a{name} image, not {found.shape[1]}")
    if text.shape[-1] != self.text_width:
      raise ValueError(f"this model reads tokens of {self.text_width} channels, not {text.shape[-1]}")


# The largest base transformer of the paper and its super-resolution transformer; heads and blocks are not published.
MUSE_3B = Muse(side=16, codebook=8192, width=2048, heads=16, mlp=8192, depth=48, text_width=4096)
MUSE_SR = Muse(
  side=64, codebook=8192, width=1024, heads=16, mlp=4096, depth=32, text_width=4096, low_side=16, low_depth=16,
  low_codebook=8192, block=8,
)  # fmt: skip
