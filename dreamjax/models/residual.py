"""The convolutional encoder and decoder of the VQGAN and of Stable Diffusion's autoencoder.

"Taming Transformers for High-Resolution Image Synthesis" (Esser et al., 2012.09841), table 7: levels of residual
blocks; from level to level the encoder halves height and width, and the decoder doubles them.

Matrix products and convolutions run in `dtype`; norms and the residual stream stay in float32.
"""

import functools

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dreamjax.models.attention import attend
from dreamjax.models.normalization import GroupNorm
from dreamjax.models.unet import depth_to_space, space_to_depth, upsample_nearest

EPS = 1e-6  # of the group norms


class Block(nn.Module):
  """A residual block of two 3x3 convolutions; an optional embedding is added between them."""

  width: int
  groups: int
  dtype: DTypeLike
  eps: float = EPS

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"] | None = None) -> Array:
    """Applies the block; returns float32."""
    conv = functools.partial(nn.Conv, self.width, dtype=self.dtype)
    y = conv((3, 3), name="conv_1")(nn.silu(GroupNorm(self.groups, self.eps, name="norm_1")(x)))
    if embedding is not None:
      embedding = nn.Dense(self.width, dtype=self.dtype, name="embedding")(embedding)
      y = y.astype(jnp.float32) + embedding.astype(jnp.float32)[:, None, None]
    y = conv((3, 3), name="conv_2")(nn.silu(GroupNorm(self.groups, self.eps, name="norm_2")(y)))
    shortcut = x if x.shape[-1] == self.width else conv((1, 1), name="around")(x)
    return shortcut.astype(jnp.float32) + y.astype(jnp.float32)


class Downsample(nn.Module):
  """Downsamples with a 3x3 convolution of stride 2, padded on the right and below."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Halves height and width; returns float32."""
    conv = nn.Conv(x.shape[-1], (3, 3), (2, 2), padding=((0, 1), (0, 1)), dtype=self.dtype, name="conv")
    return conv(x).astype(jnp.float32)


class Upsample(nn.Module):
  """Upsamples by repeating pixels, followed by a 3x3 convolution."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Doubles height and width; returns float32."""
    return nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype, name="conv")(upsample_nearest(x)).astype(jnp.float32)


class Attention(nn.Module):
  """Residual self-attention over all positions, with one head."""

  groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Applies the layer to the hidden states."""
    width = x.shape[-1]
    tokens = GroupNorm(self.groups, EPS, name="norm")(x).reshape(len(x), -1, 1, width)
    project = functools.partial(nn.Dense, width, dtype=self.dtype)
    attended = attend(*(project(name=name)(tokens) for name in ("query", "key", "value")))
    return x + project(name="out")(attended).astype(jnp.float32).reshape(x.shape)


class Level(nn.Module):
  """Residual blocks and, unless it is the last level, the `step` that resizes to the next level."""

  width: int
  blocks: int
  groups: int
  step: type[nn.Module] | None
  step_name: str
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    """Applies the level to the hidden states."""
    for i in range(self.blocks):
      x = Block(self.width, self.groups, self.dtype, name=f"block_{i}")(x)
    return x if self.step is None else self.step(self.dtype, name=self.step_name)(x)


class Encoder(nn.Module):
  """Encodes images as features of `latent` channels.

  Attributes:
    widths: channels of each level; each level has half the height and width of the previous one.
    blocks: residual blocks of each level.
    latent: channels of the output.
    attention: whether the middle block, after all levels, has attention.
    patch: side of the patches of pixels that are one position of the first level; more than 1 is cheaper.
    groups: of the group norms.
    dtype: of matrix products and convolutions; everything else is computed in float32.
  """

  widths: tuple[int, ...]
  blocks: int
  latent: int
  attention: bool
  patch: int
  groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 d"]:
    """Encodes images; returns float32."""
    x = nn.Conv(self.widths[0], (3, 3), dtype=self.dtype, name="conv_in")(space_to_depth(images, self.patch)).astype(
      jnp.float32
    )
    for i, width in enumerate(self.widths):
      step = Downsample if i + 1 < len(self.widths) else None
      x = Level(width, self.blocks, self.groups, step, "downsample", self.dtype, name=f"down_{i}")(x)
    x = _middle(x, self.attention, self.groups, self.dtype)
    x = nn.silu(GroupNorm(self.groups, EPS, name="norm")(x))
    return nn.Conv(self.latent, (3, 3), dtype=self.dtype, name="conv_out")(x).astype(jnp.float32)


class Decoder(nn.Module):
  """Decodes features to images; the fields are those of `Encoder`, each level has one block more."""

  widths: tuple[int, ...]
  blocks: int
  attention: bool
  patch: int
  groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, z: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 3"]:
    """Decodes features; returns float32."""
    x = nn.Conv(self.widths[-1], (3, 3), dtype=self.dtype, name="conv_in")(z).astype(jnp.float32)
    x = _middle(x, self.attention, self.groups, self.dtype)
    for i, width in enumerate(reversed(self.widths)):
      step = Upsample if i + 1 < len(self.widths) else None
      x = Level(width, self.blocks + 1, self.groups, step, "upsample", self.dtype, name=f"up_{i}")(x)
    x = nn.silu(GroupNorm(self.groups, EPS, name="norm")(x))
    x = nn.Conv(3 * self.patch**2, (3, 3), dtype=self.dtype, name="conv_out")(x)
    return depth_to_space(x.astype(jnp.float32), self.patch)


def _middle(x: Float[Array, "b h w c"], attention: bool, groups: int, dtype: DTypeLike) -> Float[Array, "b h w c"]:
  """Applies two blocks, with optional attention between them, as parts of the module that calls it."""
  x = Block(x.shape[-1], groups, dtype, name="middle_0")(x)
  if attention:
    x = Attention(groups, dtype, name="middle_attention")(x)
  return Block(x.shape[-1], groups, dtype, name="middle_1")(x)
