"""The denoising loss, with one weight per row.

    L = 1/b sum_i w_i mean (prediction_i - target_i)^2,  the inner mean over an image's pixels                    (1)

The loss is linear in the weights, and everything that tells rows apart goes into them: DreamBooth's with prior
preservation (Ruiz et al., 2208.12242, eq. 2), the mean over the subject's n rows + lambda times that of the prior's m,
is (1) with weights b / n and lambda b / m. The target is `process.target` of the kind that the network predicts, or
what another network predicts of that kind.

Min-SNR weights (Hang et al., 2303.09556) are in terms of x0 min(SNR, gamma), so for what is predicted

    x0: min(SNR, gamma)    eps: min(SNR, gamma) / SNR    v: min(SNR, gamma) / (SNR + 1)                            (2)
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.diffusion.process import check_prediction_type
from dreamjax.diffusion.schedules import Schedule


def squared_error(prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"]) -> Float[Array, " b"]:
  """The mean squared error of each image, in float32."""
  return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)), axis=(1, 2, 3))


def denoising_loss(
  prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"], weights: Float[Array, " b"]
) -> Float[Array, ""]:
  """Equation (1).

  Args:
    prediction: what the network says, without a learned variance.
    target: what it should say.
    weights: one per row; times `min_snr` if that is wanted.
  """
  return jnp.mean(weights.astype(jnp.float32) * squared_error(prediction, target))


def min_snr(t: Float[Array, " b"], schedule: Schedule, kind: str, gamma: float = 5.0) -> Float[Array, " b"]:
  """Equation (2): weights that keep low noise from dominating.

  Args:
    t: times of the rows.
    schedule: of the noise.
    kind: what the network predicts: "eps", "x0" or "v".
    gamma: the greatest weight in terms of x0; 5 is the paper's.

  Raises:
    ValueError: if there is no such kind, or gamma is not above 0.
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
