"""A residual network with several classifying heads: names what a picture shows.

He et al., "Deep Residual Learning for Image Recognition" (2016), with group normalisation (Wu & He, 2018), so that a
picture's answer does not depend on its batch.
"""

from collections.abc import Mapping

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class Block(nn.Module):
  """Two 3x3 convolutions around which the input goes; the first one may halve the picture.

  Attributes:
    width: channels of the output.
    stride: 1, or 2 to halve height and width.
  """

  width: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    """Returns the block's output."""
    y = nn.relu(nn.GroupNorm(8, name="norm_1")(x))
    around = x
    if self.stride > 1 or x.shape[-1] != self.width:
      around = nn.Conv(self.width, (1, 1), self.stride, use_bias=False, name="around")(y)
    y = nn.Conv(self.width, (3, 3), self.stride, padding=1, use_bias=False, name="conv_1")(y)
    y = nn.relu(nn.GroupNorm(8, name="norm_2")(y))
    return around + nn.Conv(self.width, (3, 3), padding=1, use_bias=False, name="conv_2")(y)


class Classifier(nn.Module):
  """The classifier.

  Attributes:
    heads: the names of the classes of each head, in the order of its logits.
    image: height and width of the pictures, in pixels.
    widths: channels of each level; every level but the first halves the picture.
    blocks: residual blocks per level.
  """

  heads: Mapping[str, tuple[str, ...]]
  image: int = 64
  widths: tuple[int, ...] = (24, 48, 96, 128)
  blocks: int = 1

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b classes"]]:
    """Returns the logits of each head for pictures in [-1, 1].

    Raises:
      ValueError: if the pictures have another size.
    """
    if images.shape[1:3] != (self.image, self.image):
      raise ValueError(f"the classifier sees pictures of {self.image} x {self.image} pixels, not {images.shape[1:3]}")
    x = nn.Conv(self.widths[0], (4, 4), 2, padding=1, name="stem")(images)
    for i, width in enumerate(self.widths):
      for j in range(self.blocks):
        x = Block(width, 2 if i and not j else 1, name=f"block_{i}_{j}")(x)
    x = nn.relu(nn.GroupNorm(8, name="norm")(x))
    x = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
    return {
      name: nn.Dense(len(words), name=f"head_{i}")(x) for i, (name, words) in enumerate(sorted(self.heads.items()))
    }
