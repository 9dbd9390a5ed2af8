"""What a network is conditioned on besides its noisy or masked input and the time."""

from typing import Any, NamedTuple

from flax import struct
from jaxtyping import Array, Bool, Float, Int


class Text(NamedTuple):
  """Encoded prompts.

  Attributes:
    tokens: the outputs of the text encoder.
    mask: true where there is a token, false where there is padding.
    pooled: one vector for each prompt, from text encoders that make one.
  """

  tokens: Float[Array, "b n d"]
  mask: Bool[Array, "b n"]
  pooled: Float[Array, "b p"] | None = None


@struct.dataclass
class Conditioning:
  """The inputs of a stage's network besides x_t and t, or besides masked tokens.

  Attributes:
    text: the encoded prompts.
    low_res: for super-resolution stages, the images of the stage before: of diffusion, resized to the stage's size and
      noised; of masked tokens, their tokens.
    augmentation_level: how much noise `low_res` has, as a time (noise conditioning augmentation); None for masked
      tokens and base stages.
    control: for latent diffusion, an `ImageControl`: a ControlNet and the image that it sees.
  """

  text: Text
  low_res: Float[Array, "b h w 3"] | Int[Array, "b l"] | None = None
  augmentation_level: Float[Array, " b"] | None = None
  control: Any = None
