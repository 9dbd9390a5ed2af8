"""Stable Diffusion's autoencoder: encodes images as a Gaussian over latents, and decodes latents to images.

"High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al., 2112.10752), section 3.1 and appendix G,
with the KL term:

  (1) [mean; log variance] = encoder(x),  z = scale (mean + std eps - shift),  x' = decoder(z / scale + shift)

The scale gives latents about unit variance, as diffusion assumes.
"""

from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dreamjax.models.residual import Decoder, Encoder


class Gaussian(NamedTuple):
  """The distribution of an image's latents, before the scale and shift of eq. 1."""

  mean: Float[Array, "b h w c"]
  log_variance: Float[Array, "b h w c"]


class Autoencoder(nn.Module):
  """The autoencoder of eq. 1.

  Attributes:
    widths: channels of each level; each level has half the height and width of the previous one.
    blocks: residual blocks of each level of the encoder; the levels of the decoder have one more.
    latent: channels of z.
    scale: factor of the latents.
    shift: subtracted from the latents before they are scaled.
    groups: of the group norms.
    dtype: of matrix products and convolutions; everything else is computed in float32.
  """

  widths: tuple[int, ...]
  blocks: int
  latent: int
  scale: float = 1.0
  shift: float = 0.0
  groups: int = 32
  dtype: DTypeLike = jnp.float32

  @property
  def factor(self) -> int:
    """The factor by which height and width are downsampled."""
    return 2 ** (len(self.widths) - 1)

  def setup(self) -> None:
    """Builds the submodules; the attributes name their parameters."""
    shared = {"attention": True, "patch": 1, "groups": self.groups, "dtype": self.dtype}
    self.encoder = Encoder(self.widths, self.blocks, 2 * self.latent, **shared)
    self.decoder = Decoder(self.widths, self.blocks, **shared)
    self.before = nn.Conv(2 * self.latent, (1, 1), dtype=self.dtype)
    self.after = nn.Conv(self.latent, (1, 1), dtype=self.dtype)

  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Reconstructs images from the mean of their latents."""
    return self.decode(self.encode(images))

  def gaussian(self, images: Float[Array, "b h w 3"]) -> Gaussian:
    """Encodes images in [-1, 1] as a distribution over latents.

    Raises:
      ValueError: if the height or width is not divisible by `factor`.
    """
    _, height, width, _ = images.shape
    if height % self.factor or width % self.factor:
      raise ValueError(f"the height and width of {height}x{width} images are not divisible by {self.factor}")
    moments = self.before(self.encoder(images)).astype(jnp.float32)
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return Gaussian(mean, jnp.clip(log_variance, -30.0, 20.0))

  def encode(
    self, images: Float[Array, "b h w 3"], eps: Float[Array, "b h2 w2 c"] | None = None
  ) -> Float[Array, "b h2 w2 c"]:
    """Encodes images in [-1, 1] as latents z (eq. 1); without noise `eps`, as the mean of z."""
    mean, log_variance = self.gaussian(images)
    latents = mean if eps is None else mean + jnp.exp(0.5 * log_variance) * eps
    return self.scale * (latents - self.shift)

  def decode(self, z: Float[Array, "b h2 w2 c"]) -> Float[Array, "b h w 3"]:
    """Decodes latents z to images, approximately in [-1, 1]."""
    return self.decoder(self.after(z / self.scale + self.shift).astype(jnp.float32))


# The autoencoder of Stable Diffusion 1 and 2 and, with a `scale` of 0.13025, of SDXL.
SD = Autoencoder(widths=(128, 256, 512, 512), blocks=2, latent=4, scale=0.18215)
