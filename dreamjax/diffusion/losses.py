"""The denoising loss, with one weight for each example of a batch of b.

    L = 1/b sum_i w_i mean (prediction_i - target_i)^2,  the inner mean over the pixels of image i                 (1)

The loss is linear in the weights, which express how examples differ: DreamBooth's loss with prior preservation (Ruiz et
al., 2208.12242, eq. 2), the mean over n subject examples plus lambda times the mean over m prior examples, is (1) with
weights b / n and lambda b / m. The target is `process.target` of the kind that the network predicts, or the prediction
of another network of that kind.

Min-SNR weights (Hang et al., 2303.09556) are min(SNR, gamma) for x0, and hence for each kind of prediction

    x0: min(SNR, gamma)    eps: min(SNR, gamma) / SNR    v: min(SNR, gamma) / (SNR + 1)                            (2)
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.diffusion.process import check_prediction_type
from dreamjax.diffusion.schedules import Schedule


def squared_error(prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"]) -> Float[Array, " b"]:
  """Returns the mean squared error of each image, in float32."""
  return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)), axis=(1, 2, 3))


def denoising_loss(
  prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"], weights: Float[Array, " b"]
) -> Float[Array, ""]:
  """Computes (1), in float32.

  Args:
    prediction: of the network, without a learned variance.
    target: of the same kind.
    weights: one for each example; multiplied by `min_snr` for Min-SNR weighting.
  """
  return jnp.mean(weights.astype(jnp.float32) * squared_error(prediction, target))


def min_snr(t: Float[Array, " b"], schedule: Schedule, kind: str, gamma: float = 5.0) -> Float[Array, " b"]:
  """Computes the Min-SNR weights (2), which keep low noise levels from dominating the loss.

  Args:
    t: times of the examples.
    schedule: the noise schedule.
    kind: of prediction: "eps", "x0" or "v".
    gamma: the maximum weight of the squared error in x0; 5 in the paper.

  Raises:
    ValueError: if the kind is unknown or gamma is not above 0.
  """
  if gamma <= 0:
    raise ValueError(f"gamma is above 0, not {gamma}")
  check_prediction_type(kind)
  log_snr = schedule.log_snr(t)
  log_weight = jnp.minimum(log_snr, math.log(gamma))
  match kind:
    case "eps":
      log_weight -= log_snr
    case "v":
      log_weight += jax.nn.log_sigmoid(-log_snr)
  return jnp.exp(log_weight)
