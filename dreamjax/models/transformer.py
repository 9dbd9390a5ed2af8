"""The pre-norm transformer of ViT, which is that of CLIP's two towers and of DINO.

"An Image is Worth 16x16 Words" (Dosovitskiy et al., 2021), section 3.1:

  (1) z_0 = [class; patches E] + positions
  (2) z' = attention(norm(z)) + z
  (3) z = mlp(norm(z')) + z'

Matrix products run in `dtype`; the residual stream z, the norms and the softmax stay in float32, as do the parameters.
"""

from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dreamjax.models.attention import attend

normal = nn.initializers.normal

ACTIVATIONS = {
  "gelu": lambda x: nn.gelu(x, approximate=False),
  "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class Spread(NamedTuple):
  """Standard deviations of the normal distributions from which a block's kernels are initialised."""

  project: float = 0.02  # query, key and value
  expand: float = 0.02  # into the hidden layer of the mlp
  leave: float = 0.02  # out of attention and mlp, into the residual stream


class PatchTokens(nn.Module):
  """Eq. 1: the class token and one token per patch, each with its learned position."""

  image: int
  patch: int
  width: int
  use_bias: bool
  std: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"], kept: Int[Array, "b k"] | None = None) -> Float[Array, "b n d"]:
    """Embeds images.

    Args:
      images: square images.
      kept: the indices of the patches whose tokens are returned, counted row by row; None for all.

    Raises:
      ValueError: if the images are of another size than `image`.
    """
    if images.shape[1:3] != (self.image, self.image):
      size = f"{images.shape[1]}x{images.shape[2]}"
      raise ValueError(f"this model takes images of {self.image}x{self.image}, not {size}: resize them first")
    stride = (self.patch, self.patch)
    conv = nn.Conv(
      self.width, stride, stride, padding="VALID", use_bias=self.use_bias, dtype=self.dtype, name="patches"
    )
    patches = conv(images).astype(jnp.float32).reshape(images.shape[0], -1, self.width)
    first = self.param("class_token", normal(self.std), (self.width,))
    positions = self.param("positions", normal(self.std), (patches.shape[1] + 1, self.width))
    first = jnp.broadcast_to(first + positions[0], (images.shape[0], 1, self.width))
    patches = patches + positions[None, 1:]
    if kept is not None:
      patches = jnp.take_along_axis(patches, kept[..., None], axis=1)
    return jnp.concatenate([first, patches], axis=1)


class SelfAttention(nn.Module):
  """Attention of each token to all tokens or, if `causal`, to those up to itself."""

  heads: int
  causal: bool
  spread: Spread
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Returns what is added to the residual stream."""
    width = x.shape[-1]
    project, leave = normal(self.spread.project), normal(self.spread.leave)
    query, key, value = (
      nn.Dense(width, kernel_init=project, dtype=self.dtype, name=name)(x).reshape(*x.shape[:2], self.heads, -1)
      for name in ("query", "key", "value")
    )
    mask = jnp.tri(x.shape[1], dtype=bool)[None, None] if self.causal else None
    mixed = attend(query, key, value, mask=mask).reshape(x.shape)
    return nn.Dense(width, kernel_init=leave, dtype=self.dtype, name="out")(mixed)


class MLP(nn.Module):
  """A perceptron of two layers, applied to each token."""

  hidden: int
  activation: str
  spread: Spread
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Applies both layers."""
    expand, leave = normal(self.spread.expand), normal(self.spread.leave)
    hidden = nn.Dense(self.hidden, kernel_init=expand, dtype=self.dtype, name="hidden")(x)
    hidden = ACTIVATIONS[self.activation](hidden)
    return nn.Dense(x.shape[-1], kernel_init=leave, dtype=self.dtype, name="out")(hidden)


class Block(nn.Module):
  """A layer of eq. 2 and 3."""

  heads: int
  mlp: int
  eps: float
  activation: str = "gelu"
  causal: bool = False
  spread: Spread = Spread()
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Applies the layer to the residual stream, in float32."""
    attention = SelfAttention(self.heads, self.causal, self.spread, self.dtype, name="attention")
    mlp = MLP(self.mlp, self.activation, self.spread, self.dtype, name="mlp")
    x = x + attention(layer_norm(self.eps, "attention_norm")(x)).astype(jnp.float32)
    return x + mlp(layer_norm(self.eps, "mlp_norm")(x)).astype(jnp.float32)


def layer_norm(eps: float, name: str) -> nn.LayerNorm:
  """Returns a layer norm of the residual stream."""
  return nn.LayerNorm(epsilon=eps, use_fast_variance=False, name=name)
