"""Stable Diffusion's autoencoder: images to a Gaussian over small latents, and latents back to images.

"High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al., 2112.10752), section 3.1 and appendix G,
with the KL term:

  (1) [mean; log variance] = encoder(x),  z = scale (mean + std eps - shift),  x' = decoder(z / scale + shift)

The scale makes latents about as large as noise, which is where diffusion wants them.
"""

from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dreamjax.models.residual import Decoder, Encoder


class Gaussian(NamedTuple):
  """What an image's latents may be, before scale and shift of eq. 1."""

  mean: Float[Array, "b h w c"]
  log_variance: Float[Array, "b h w c"]


class Autoencoder(nn.Module):
  """Eq. 1.

  Attributes:
    widths: channels of each level, each half as high and wide as the one before.
    blocks: residual blocks of each level of the encoder; the decoder's have one more.
    latent: channels of z.
    scale: of latents.
    shift: of latents, before they are scaled.
    groups: of the norms.
    dtype: in which matrix products and convolutions are computed; the rest is float32.
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
    """Pixels of an image's row for one latent."""
    return 2 ** (len(self.widths) - 1)

  def setup(self) -> None:
    """The parts, by the names of their parameters."""
    shared = {"attention": True, "patch": 1, "groups": self.groups, "dtype": self.dtype}
    self.encoder = Encoder(self.widths, self.blocks, 2 * self.latent, **shared)
    self.decoder = Decoder(self.widths, self.blocks, **shared)
    self.before = nn.Conv(2 * self.latent, (1, 1), dtype=self.dtype)
    self.after = nn.Conv(self.latent, (1, 1), dtype=self.dtype)

  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Reconstructions, by way of the mean."""
    return self.decode(self.encode(images))

  def gaussian(self, images: Float[Array, "b h w 3"]) -> Gaussian:
    """What images in [-1, 1] become.

    Raises:
      ValueError: if their height or width cannot be divided by `factor`.
    """
    _, height, width, _ = images.shape
    if height % self.factor or width % self.factor:
      raise ValueError(f"images of {height}x{width} cannot be divided into squares of {self.factor}x{self.factor}")
    both = self.before(self.encoder(images)).astype(jnp.float32)
    mean, log_variance = jnp.split(both, 2, axis=-1)
    return Gaussian(mean, jnp.clip(log_variance, -30.0, 20.0))

  def encode(
    self, images: Float[Array, "b h w 3"], eps: Float[Array, "b h2 w2 c"] | None = None
  ) -> Float[Array, "b h2 w2 c"]:
    """Latents z of images; without noise `eps`, the mean's."""
    mean, log_variance = self.gaussian(images)
    drawn = mean if eps is None else mean + jnp.exp(0.5 * log_variance) * eps
    return self.scale * (drawn - self.shift)

  def decode(self, z: Float[Array, "b h2 w2 c"]) -> Float[Array, "b h w 3"]:
    """Images of latents z, in about [-1, 1]."""
    return self.decoder(self.after(z / self.scale + self.shift).astype(jnp.float32))


# Published with Stable Diffusion 1 and 2, and, with a `scale` of 0.13025, with SDXL.
SD = Autoencoder(widths=(128, 256, 512, 512), blocks=2, latent=4, scale=0.18215)
