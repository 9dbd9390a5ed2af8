"""ControlNets for latent diffusion: the generated image follows a conditioning image of edges, depths or a pose.

"Adding Conditional Control to Text-to-Image Diffusion Models" (Zhang et al., 2302.05543). In each step the ControlNet
takes the inputs of the U-Net and the conditioning image; its outputs are added to the U-Net's skip connections and to
the output of its middle block (`dreamjax.models.controlnet`). A theta applies to the U-Net and the text encoder with a
ControlNet as without: so a subject can be generated in a given pose.
"""

from typing import Any

from flax import struct
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from dreamjax.errors import UserError
from dreamjax.models.controlnet import ControlNet
from dreamjax.models.latent_unet import Control, LatentUNet
from dreamjax.theta import apply as apply_theta

_SHARED = ("widths", "blocks", "channels", "text_width", "pooled_width")  # fields equal in a U-Net and its ControlNet


@struct.dataclass
class ImageControl:
  """A ControlNet and its conditioning image.

  Attributes:
    network: the ControlNet.
    params: its parameters.
    image: the conditioning image, the same for all images of a batch, in [0, 1].
    scale: the factor of the ControlNet's outputs; 0 turns it off.
  """

  network: ControlNet = struct.field(pytree_node=False)
  params: Any
  image: Float[Array | np.ndarray, "s s 3"]
  scale: float | Float[Array, ""] = 1.0

  def __call__(
    self,
    x_t: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    text: Float[Array, "b n d"],
    pooled: Float[Array, "b p"] | None,
    sizes: Float[Array, "b 6"] | None,
  ) -> Control:
    """Computes what the U-Net adds to its hidden states, from the U-Net's own inputs; see `LatentUNet`."""
    image = jnp.broadcast_to(jnp.asarray(self.image), (len(x_t), *self.image.shape))
    return apply_theta(self.network, self.params, None, x_t, t, text, image, pooled, sizes, self.scale)


def check_fits(network: ControlNet, unet: LatentUNet, factor: int) -> None:
  """Checks that a ControlNet fits a U-Net whose latents are `factor` times smaller than images.

  Raises:
    UserError: if they differ in a field that they must share, or the ControlNet takes images of another size.
  """
  if different := [field for field in _SHARED if getattr(network, field) != getattr(unet, field)]:
    theirs, own = (", ".join(f"{field} {getattr(x, field)}" for field in different) for x in (network, unet))
    raise UserError(f"the ControlNet has {theirs}, but the generator's U-Net has {own}")
  if (halved := 2 ** (len(network.image_widths) - 1)) != factor:
    raise UserError(f"the ControlNet takes images of {halved} times the latents' size, the generator's have {factor}")
