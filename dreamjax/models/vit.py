"""DINO's vision transformer, with a class token.

"Emerging Properties in Self-Supervised Vision Transformers" (Caron et al., 2021), section 3.2 and table 1; the
blocks are those of `dreamjax.models.transformer`, followed by a layer norm.
"""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dreamjax.models.transformer import Block, PatchTokens, layer_norm


class ViT(nn.Module):
  """Encodes images as tokens.

  Attributes:
    image: height and width of the images; position embeddings are not interpolated.
    patch: height and width of a patch.
    width: channels of a token.
    depth: number of blocks.
    heads: attention heads per block.
    mlp: width of the mlp's hidden layer.
    eps: of the layer norms.
    dtype: of matrix products; everything else is computed in float32.
  """

  image: int
  patch: int
  width: int
  depth: int
  heads: int
  mlp: int
  eps: float = 1e-6
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b n d"], dict[str, Any]]:
    """Encodes images.

    Args:
      images: normalised as the weights expect.

    Returns:
      The tokens after the last layer norm, the class token first, and intermediates: "hidden", a tuple of the input of
      the first block and the output of each block.

    Raises:
      ValueError: if the size of the images is not `image`.
    """
    tokens = PatchTokens(self.image, self.patch, self.width, use_bias=True, std=0.02, dtype=self.dtype, name="embed")
    hidden = [tokens(images)]
    for i in range(self.depth):
      block = Block(self.heads, self.mlp, self.eps, dtype=self.dtype, name=f"block_{i}")
      hidden.append(block(hidden[-1]))
    return layer_norm(self.eps, "norm")(hidden[-1]), {"hidden": tuple(hidden)}


# Table 1, ViT-S/16. The epsilon of the norms is that of DINO's code.
DINO_S_16 = ViT(image=224, patch=16, width=384, depth=12, heads=6, mlp=1536)
