"""Where a theta may add a layer to a transformer: at the residual stream between self- and cross-attention.

The layers that personalisations add there are attention to the features of a subject (DreamTuner, Hua et al.,
2312.13691, section 3.2) or to the tokens of an image (IP-Adapter, Ye et al., 2308.06721, section 3.2), which sees the
same queries as the cross-attention behind it.
"""

from flax import linen as nn
from jaxtyping import Array, Float


class Tap(nn.Module):
  """Returns the hidden states as they are; `nn.intercept_methods` finds this module by its class and path.

  It has no parameters, so that those of a network, and its checkpoints, are the same with and without taps.
  """

  def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """Returns the hidden states."""
    return x
