"""ControlNets beside a generator that draws latents: what it draws follows an image of edges, depths or a pose.

"Adding Conditional Control to Text-to-Image Diffusion Models" (Zhang et al., 2302.05543). In each step the ControlNet
sees what the U-Net sees, and the image; what it says is added inside the U-Net (`dreamjax.models.controlnet`). A
theta changes the U-Net and the text encoder beside it as without it: so a subject is drawn in a pose that is given.
"""

from typing import Any

from flax import struct
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from dreamjax.models.controlnet import ControlNet
from dreamjax.models.latent_unet import Control, LatentUNet
from dreamjax.theta import apply as apply_theta

_ALIKE = ("widths", "blocks", "channels", "text_width", "pooled_width")  # in a U-Net and its ControlNet


@struct.dataclass
class ImageControl:
  """A ControlNet, and the image that it sees.

  Attributes:
    network: the ControlNet.
    params: its parameters.
    image: what all that is drawn follows, in [0, 1].
    scale: of what the ControlNet says; at 0 nothing follows the image.
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
    """What the U-Net is to add, of the arguments that it is told; see `LatentUNet`."""
    image = jnp.broadcast_to(jnp.asarray(self.image), (len(x_t), *self.image.shape))
    return apply_theta(self.network, self.params, None, x_t, t, text, image, pooled, sizes, self.scale)


def check_fits(network: ControlNet, unet: LatentUNet, factor: int) -> None:
  """Raises ValueError for a ControlNet of another U-Net, or whose images are not `factor` times its latents' size."""
  if different := [field for field in _ALIKE if getattr(network, field) != getattr(unet, field)]:
    theirs, own = (", ".join(f"{field} {getattr(x, field)}" for field in different) for x in (network, unet))
    raise ValueError(f"the ControlNet has {theirs}, but the generator's U-Net has {own}")
  if (halved := 2 ** (len(network.image_widths) - 1)) != factor:
    raise ValueError(f"the ControlNet sees images of {halved} times the latents' size, the generator's have {factor}")
