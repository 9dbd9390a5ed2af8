"""aMUSEd's transformer, which predicts the logits of an image's tokens from these, some of them masked, and a text.

"aMUSEd: An Open MUSE Reproduction" (Patil et al., 2401.01808), section 3: a U-ViT ("simple diffusion", Hoogeboom et
al., 2301.11093), that is, transformer layers between convolutional blocks. Only the convolutions depend on a token's
position. The network for 512 pixels halves height and width before the first blocks and doubles them after the last.

  (1) e = silu(mlp([pooled text; sinusoids of some numbers about the image])),  film(x) = (1 + scale) x + shift,
      [scale; shift] = e W
  (2) block(x): x' = film(x + response(gelu(norm(depthwise(x)) W)) W'),  x'' = x' + attention(norm(x'), silu(text) W''),
      y = x'' + attention(norm(x''), silu(text) W'')
  (3) layer(x): x' = x + attention(film(norm(x))),  x'' = x' + attention(film(norm(x')), text),
      y = x'' + (h * gelu(g)) W,  [h; g] = film(norm(x'')) W'
  (4) response(x) = x + bias + scale x |x| / mean(|x|), where |x| is the norm of a channel over all positions

Eq. 4 is that of ConvNeXt V2 (Woo et al., 2301.00808, section 3.2). Matrix products and convolutions run in `dtype`; the
residual stream, the norms and the softmax stay in float32, as do the parameters. Only eq. 4 has a bias.
"""

import functools
from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dreamjax.models.attention import attend
from dreamjax.models.layers import apply_layers, with_remat
from dreamjax.models.taps import Tap
from dreamjax.models.unet import depth_to_space, sinusoid

BLOCK_EPS = 1e-6  # of the norms before a block's attention
RESPONSE_EPS = 1e-6  # of eq. 4
STD = 0.02  # of the embeddings and kernels

dense = functools.partial(nn.Dense, use_bias=False, kernel_init=nn.initializers.normal(STD))


class Condition(NamedTuple):
  """What all blocks and layers are conditioned on: the embedding e of eq. 1, the text and its mask."""

  embedding: Float[Array, "b e"]
  text: Float[Array, "b m d"]
  mask: Bool[Array, "b m"] | None


def film(x: Float[Array, "b *positions c"], embedding: Float[Array, "b e"], dtype: DTypeLike) -> Array:
  """Applies the film of eq. 1, a layer of the calling module that is initialised to the identity."""
  both = dense(2 * x.shape[-1], kernel_init=nn.initializers.zeros, dtype=dtype, name="film")(embedding)
  both = both.astype(jnp.float32).reshape(len(x), *(1,) * (x.ndim - 2), -1)
  scale, shift = jnp.split(both, 2, axis=-1)
  return (1 + scale) * x + shift


class Response(nn.Module):
  """Eq. 4, in float32."""

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Normalises each channel by its share of all channels' norms."""
    scale, bias = (self.param(name, nn.initializers.zeros, x.shape[-1:]) for name in ("scale", "bias"))
    x = x.astype(jnp.float32)
    squares = jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True)
    norms = jnp.sqrt(jnp.maximum(squares, 1e-30))  # the root of 0 has no gradient
    share = norms / (norms.mean(axis=-1, keepdims=True) + RESPONSE_EPS)
    return x + bias[None, None, None] + scale[None, None, None] * x * share


class Attention(nn.Module):
  """Norm and attention of the tokens to each other or, if there is one, to a context."""

  heads: int
  eps: float
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    context: Float[Array, "b m _"] | None = None,
    mask: Bool[Array, "b m"] | None = None,
    embedding: Float[Array, "b e"] | None = None,
  ) -> Float[Array, "b n d"]:
    """Adds the attention's output to the residual stream, in float32; an embedding scales and shifts the norm."""
    own = nn.RMSNorm(self.eps, name="norm")(x)
    own = own if embedding is None else film(own, embedding, self.dtype)
    other = own if context is None else context
    query, key, value = (
      dense(x.shape[-1], dtype=self.dtype, name=name)(y).reshape(*y.shape[:2], self.heads, -1)
      for name, y in (("query", own), ("key", other), ("value", other))
    )
    mixed = attend(query, key, value, mask=None if mask is None else mask[:, None, None])
    return x + dense(x.shape[-1], dtype=self.dtype, name="out")(mixed.reshape(x.shape)).astype(jnp.float32)


class ConvNeXt(nn.Module):
  """The first half of eq. 2."""

  eps: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"]) -> Float[Array, "b h w c"]:
    """Returns x' of eq. 2, in float32."""
    c = x.shape[-1]
    depthwise = nn.Conv(c, (3, 3), feature_group_count=c, use_bias=False, dtype=self.dtype, name="depthwise")
    y = nn.RMSNorm(self.eps, name="norm")(depthwise(x).astype(jnp.float32))
    y = nn.gelu(dense(4 * c, dtype=self.dtype, name="hidden")(y), approximate=False)
    y = dense(c, dtype=self.dtype, name="out")(Response(name="response")(y))
    return film(x + y.astype(jnp.float32), embedding, self.dtype)


class Block(nn.Module):
  """Eq. 2."""

  heads: int
  eps: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], condition: Condition) -> Float[Array, "b h w c"]:
    """Applies the block to the hidden states."""
    b, h, w, c = x.shape
    x = ConvNeXt(self.eps, self.dtype, name="conv")(x, condition.embedding).reshape(b, h * w, c)
    text = condition.text
    if text.shape[-1] != c:
      text = dense(c, dtype=self.dtype, name="text")(nn.silu(text))
    for i in range(2):
      x = Attention(self.heads, BLOCK_EPS, self.dtype, name=f"attention_{i}")(x, text, condition.mask)
    return x.reshape(b, h, w, c)


class MLP(nn.Module):
  """The second line of eq. 3, applied to each token."""

  hidden: int
  eps: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"], embedding: Float[Array, "b e"]) -> Float[Array, "b n d"]:
    """Adds the mlp's output to the residual stream, in float32."""
    norm = nn.LayerNorm(self.eps, use_bias=False, use_fast_variance=False, name="norm")
    y = dense(2 * self.hidden, dtype=self.dtype, name="hidden")(film(norm(x), embedding, self.dtype))
    hidden, gate = jnp.split(y, 2, axis=-1)
    out = dense(x.shape[-1], dtype=self.dtype, name="out")
    return x + out(hidden * nn.gelu(gate, approximate=False)).astype(jnp.float32)


class Layer(nn.Module):
  """Eq. 3, with a `Tap` between self- and cross-attention."""

  heads: int
  mlp: int
  eps: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"], condition: Condition) -> Float[Array, "b n d"]:
    """Applies the layer to the residual stream."""
    embedding, text, mask = condition
    x = Attention(self.heads, self.eps, self.dtype, name="self_attention")(x, embedding=embedding)
    x = Tap(name="tap")(x)
    x = Attention(self.heads, self.eps, self.dtype, name="cross_attention")(x, text, mask, embedding)
    return MLP(self.mlp, self.eps, self.dtype, name="mlp")(x, embedding)


class UViT(nn.Module):
  """The transformer of aMUSEd.

  Attributes:
    side: tokens of an image's row, and of its column. Other squares are accepted too, if they can be halved as often.
    codebook: size of the codebook.
    vocab: rows of the table of embeddings, more than `codebook`. The last one is the mask's: `mask_id`.
    token_width: channels of that table, and of the last layer's input.
    block_width: channels of the blocks.
    block_heads: attention heads of the blocks.
    blocks: before the layers; as many follow them.
    width: channels of the layers, and of the embedding e.
    heads: attention heads of the layers.
    mlp: channels of the mlp's hidden layer.
    depth: layers.
    text_width: channels of the text's tokens.
    pooled_width: channels of the pooled text.
    numbers: how many numbers about each image the model is conditioned on.
    number_width: channels of the sinusoid of each.
    halved: whether blocks and layers run at half the height and width.
    eps: of the norms but those before the blocks' attention.
    remat: what the backward pass of a layer or block recomputes, one of `layers.REMATS`.
    scan: whether the layers are a loop, see `layers.apply_layers`.
    dtype: in which matrix products and convolutions are computed; the rest is float32.
  """

  side: int
  codebook: int
  vocab: int
  token_width: int
  block_width: int
  block_heads: int
  blocks: int
  width: int
  heads: int
  mlp: int
  depth: int
  text_width: int
  pooled_width: int
  numbers: int = 5
  number_width: int = 256
  halved: bool = False
  eps: float = 1e-6
  remat: str = "none"
  scan: bool = False
  dtype: DTypeLike = jnp.float32

  @property
  def mask_id(self) -> int:
    """The index of a masked token."""
    return self.vocab - 1

  @property
  def adapted(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths of the modules that StyleDrop's adapters follow: the last attention of each layer, and its mlp."""
    layers = [f"layer_{i}" for i in range(self.depth)]
    return tuple(f"{layer}/cross_attention" for layer in layers), tuple(f"{layer}/mlp" for layer in layers)

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "b n"],
    text: Float[Array, "b m d"],
    mask: Bool[Array, "b m"] | None,
    pooled: Float[Array, "b p"],
    numbers: Float[Array, "b k"],
  ) -> Float[Array, "b n {self.codebook}"]:
    """Predicts the logits of all tokens.

    Args:
      tokens: of square images, row by row; `mask_id` where they are masked.
      text: tokens of the text encoder; of CLIP's, the input of its last block.
      mask: true for tokens that are attended to; no text may be all false. None for all of them, the padding too, as
        aMUSEd was trained.
      pooled: the text's embedding.
      numbers: about each image; aMUSEd's are width and height in pixels, the two coordinates of the crop from a larger
        image, and an aesthetic score, of which 6 is high.

    Raises:
      ValueError: if an input is of a shape that does not fit.
    """
    side = self._check(tokens, text, pooled, numbers)
    condition = self._condition(text, mask, pooled, numbers)
    norm = functools.partial(nn.RMSNorm, self.eps)

    def project(x: Float[Array, "b *positions c"], width: int, name: str) -> Float[Array, "b *positions {width}"]:
      return dense(width, dtype=self.dtype, name=name)(x).astype(jnp.float32)

    block = functools.partial(with_remat(Block, self.remat), self.block_heads, self.eps, self.dtype)
    layer = functools.partial(with_remat(Layer, self.remat), self.heads, self.mlp, self.eps, self.dtype)
    table = nn.Embed(self.vocab, self.token_width, embedding_init=nn.initializers.normal(STD), name="tokens")
    x = project(norm(name="tokens_norm")(table(tokens)), self.block_width, "conv_in")
    x = x.reshape(len(x), side, side, -1)
    if self.halved:
      halve = functools.partial(nn.Conv, padding="VALID", use_bias=False, dtype=self.dtype, name="downsample")
      x = halve(self.block_width, (2, 2), 2)(norm(name="downsample_norm")(x)).astype(jnp.float32)
    for i in range(self.blocks):
      x = block(name=f"down_{i}")(x, condition)
    square = x.shape
    x = x.reshape(square[0], -1, self.block_width)
    x = project(norm(name="enter_norm")(x), self.width, "enter")
    x = apply_layers([layer(name=f"layer_{i}") for i in range(self.depth)], x, condition, scan=self.scan)
    x = project(norm(name="leave_norm")(x), self.block_width, "leave").reshape(square)
    for i in range(self.blocks):
      x = block(name=f"up_{i}")(x, condition)
    if self.halved:
      x = depth_to_space(project(norm(name="upsample_norm")(x), 4 * self.block_width, "upsample"), 2)
    x = project(x.reshape(*tokens.shape, -1), self.token_width, "conv_out")
    return project(norm(name="norm")(x), self.codebook, "logits")

  def _condition(
    self,
    text: Float[Array, "b m d"],
    mask: Bool[Array, "b m"] | None,
    pooled: Float[Array, "b p"],
    numbers: Float[Array, "b k"],
  ) -> Condition:
    """Computes eq. 1 and projects the text."""
    waves = sinusoid(numbers.reshape(-1), self.number_width).reshape(len(numbers), -1)
    embedding = jnp.concatenate([pooled, waves], axis=-1)
    for name in ("condition_hidden", "condition_out"):
      embedding = nn.silu(dense(self.width, dtype=self.dtype, name=name)(embedding))
    text = dense(self.width, dtype=self.dtype, name="text")(text).astype(jnp.float32)
    return Condition(embedding, nn.RMSNorm(self.eps, name="text_norm")(text), mask)

  def _check(self, tokens: Array, text: Array, pooled: Array, numbers: Array) -> int:
    """Returns the images' side in tokens; raises a ValueError for inputs that do not fit."""
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
      raise ValueError(f"{tokens.shape[1]} tokens do not form a square")
    if self.halved and side % 2:
      raise ValueError(f"{side}x{side} tokens cannot be halved, as this model does")
    if text.shape[-1] != self.text_width:
      raise ValueError(f"this model reads tokens of {self.text_width} channels, not {text.shape[-1]}")
    if pooled.shape[-1] != self.pooled_width:
      raise ValueError(f"this model reads a pooled text of {self.pooled_width} channels, not {pooled.shape[-1]}")
    if numbers.shape[-1] != self.numbers:
      raise ValueError(f"this model takes {self.numbers} numbers about an image, not {numbers.shape[-1]}")
    return side


# The two that were published, for images of 256 and of 512 pixels.
AMUSED_256 = UViT(
  side=16, codebook=8192, vocab=8256, token_width=768, block_width=768, block_heads=12, blocks=3, width=1024, heads=16,
  mlp=2816, depth=22, text_width=768, pooled_width=768,
)  # fmt: skip
AMUSED_512 = AMUSED_256.clone(side=32, halved=True)
