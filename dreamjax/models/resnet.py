"""Residual networks that classify images with several heads, or embed them.

He et al., "Deep Residual Learning for Image Recognition" (2016), with group normalisation (Wu & He, 2018), so that the
output for an image does not depend on its batch. The output of the last block is pooled by its mean and its maximum.
"""

from collections.abc import Mapping

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.models.normalization import GroupNorm


class Block(nn.Module):
  """A pre-activation residual block of two 3x3 convolutions, of which the first may downsample.

  Attributes:
    width: channels of the output.
    stride: 1, or 2 to halve height and width.
  """

  width: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    """Applies the block to features."""
    y = nn.relu(GroupNorm(8, 1e-6, name="norm_1")(x))
    shortcut = x
    if self.stride > 1 or x.shape[-1] != self.width:
      shortcut = nn.Conv(self.width, (1, 1), self.stride, use_bias=False, name="around")(y)
    y = nn.Conv(self.width, (3, 3), self.stride, padding=1, use_bias=False, name="conv_1")(y)
    y = nn.relu(GroupNorm(8, 1e-6, name="norm_2")(y))
    return shortcut + nn.Conv(self.width, (3, 3), padding=1, use_bias=False, name="conv_2")(y)


def _pooled(
  images: Float[Array, "b h w 3"], side: int, widths: tuple[int, ...], blocks: int
) -> Float[Array, "b {2*widths[-1]}"]:
  """Applies the blocks and pools their output, as part of the module that calls it."""
  if images.shape[1:3] != (side, side):
    raise ValueError(f"this network takes images of {side}x{side} pixels, not {images.shape[1]}x{images.shape[2]}")
  x = nn.Conv(widths[0], (4, 4), 2, padding=1, name="stem")(images)
  for i, width in enumerate(widths):
    for j in range(blocks):
      x = Block(width, 2 if i and not j else 1, name=f"block_{i}_{j}")(x)
  x = nn.relu(GroupNorm(8, 1e-6, name="norm")(x))
  # Not x.max(): its gradient is divided among the positions that equal the maximum. Where XLA recomputes x in another
  # order, none may equal it, which divides by zero.
  return jnp.concatenate([x.mean((1, 2)), nn.max_pool(x, x.shape[1:3]).squeeze((1, 2))], axis=-1)


class Classifier(nn.Module):
  """Classifies images.

  Attributes:
    heads: the class names of each head, in the order of its logits.
    image: height and width of the images, in pixels.
    widths: channels of each level; every level but the first halves height and width.
    blocks: residual blocks per level.
  """

  heads: Mapping[str, tuple[str, ...]]
  image: int = 64
  widths: tuple[int, ...] = (24, 48, 96, 128)
  blocks: int = 1

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b classes"]]:
    """Returns the logits of each head for images in [-1, 1].

    Raises:
      ValueError: if the size of the images is not `image`.
    """
    x = _pooled(images, self.image, self.widths, self.blocks)
    return {
      name: nn.Dense(len(classes), name=f"head_{i}")(x) for i, (name, classes) in enumerate(sorted(self.heads.items()))
    }


class ResNet(nn.Module):
  """Embeds images.

  Attributes:
    embedding: width of the embedding.
    image: height and width of the images, in pixels.
    widths: channels of each level; every level but the first halves height and width.
    blocks: residual blocks per level.
  """

  embedding: int
  image: int = 64
  widths: tuple[int, ...] = (32, 64, 128, 256)
  blocks: int = 1

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b {self.embedding}"]:
    """Returns unnormalised embeddings of images in [-1, 1].

    Raises:
      ValueError: if the size of the images is not `image`.
    """
    return nn.Dense(self.embedding, name="embedding")(_pooled(images, self.image, self.widths, self.blocks))
