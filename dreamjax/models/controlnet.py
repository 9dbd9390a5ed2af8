"""ControlNet: a copy of the down path of Stable Diffusion's U-Net that conditions it on an image.

"Adding Conditional Control to Text-to-Image Diffusion Models" (Zhang et al., 2302.05543), section 3.1 and eq. 2 to 4:

  (1) x = conv(z) + embed(image),  control_i = zero_i(skip_i),  control_middle = zero(middle)

where skip_i are the skip connections of the down path, and each zero is a 1x1 convolution that is initialised to zero,
so that the U-Net's prediction is at first the same as without.
"""

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.models.latent_unet import Control, Trunk

zeros = nn.initializers.zeros


class ControlNet(Trunk):
  """Eq. 1; see `Trunk` for what it shares with the U-Net.

  Attributes:
    image_widths: channels of the embedding's convolutions; from each to the next height and width are halved, so that
      the image is 2^(their number - 1) times as high and wide as the latents.
  """

  image_widths: tuple[int, ...] = (16, 32, 96, 256)

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    t: Float[Array, "b"],
    text: Float[Array, "b n d"],
    image: Float[Array, "b _ _ 3"],
    pooled: Float[Array, "b p"] | None = None,
    sizes: Float[Array, "b 6"] | None = None,
    scale: float | Float[Array, ""] = 1.0,
  ) -> Control:
    """Computes what the U-Net adds to its skip connections and its middle.

    Args:
      x: noisy latents.
      t: the time of each, as the U-Net takes it.
      text: tokens of the text encoder.
      image: depth, edges, a pose or whatever the network was trained on, in [0, 1].
      pooled: as the U-Net takes it.
      sizes: as the U-Net takes them.
      scale: a factor of the result.

    Raises:
      ValueError: if an input is missing or superfluous or of a shape that does not fit.
    """
    self._check(x)
    factor = 2 ** (len(self.image_widths) - 1)
    if image.shape != (x.shape[0], x.shape[1] * factor, x.shape[2] * factor, 3):
      wanted = f"{x.shape[0]} images of {x.shape[1] * factor}x{x.shape[2] * factor} with 3 channels"
      raise ValueError(f"this model needs {wanted} for latents of {x.shape[1]}x{x.shape[2]}, not {image.shape}")
    condition = self._condition(t, text, pooled, sizes)
    x = nn.Conv(self.widths[0], (3, 3), dtype=self.dtype, name="conv_in")(x).astype(jnp.float32)
    middle, skips = self._descend(x + self._embed(image), condition)

    def zero(name: str, y: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
      conv = nn.Conv(y.shape[-1], (1, 1), kernel_init=zeros, dtype=self.dtype, name=name)
      return scale * conv(y).astype(jnp.float32)

    return Control(tuple(zero(f"zero_{i}", y) for i, y in enumerate(skips)), zero("zero_middle", middle))

  def _embed(self, image: Float[Array, "b _ _ 3"]) -> Float[Array, "b h w c"]:
    """Embeds the image, to as many positions as there are latents."""
    y = nn.silu(nn.Conv(self.image_widths[0], (3, 3), dtype=self.dtype, name="image_in")(image))
    for i, (here, there) in enumerate(zip(self.image_widths, self.image_widths[1:], strict=False)):
      y = nn.silu(nn.Conv(here, (3, 3), dtype=self.dtype, name=f"image_{2 * i}")(y))
      y = nn.Conv(there, (3, 3), (2, 2), padding=1, dtype=self.dtype, name=f"image_{2 * i + 1}")(y)
      y = nn.silu(y)
    out = nn.Conv(self.widths[0], (3, 3), kernel_init=zeros, dtype=self.dtype, name="image_out")
    return out(y).astype(jnp.float32)
