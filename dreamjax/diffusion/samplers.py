"""Samplers: each runs from noise at the first time of a grid to images at its last time, as one `lax.scan`.

With x0 the thresholded prediction of the clean image from x_t, eps = (x_t - alpha_t x0) / sigma_t,
h = (lambda_s - lambda_t) / 2 the step in the log of alpha / sigma, and z ~ N(0, I), a step from t to s < t is

    ancestral:        x_s ~ p(x_s | x_t), equation (8) of `process`; without noise if s = 0                        (1)
    DDIM:             x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 small) eps + eta sqrt(small) z                     (2)
    DPM-Solver++(2M): x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) (x0 + h / (2 h') (x0 - x0'))                (3)

(1): Ho et al., "DDPM" (2006.11239, algorithm 2), with Imagen's gamma (2205.11487, appendix A) or Nichol and Dhariwal's
learned variance. (2): Song et al., "DDIM" (2010.02502, eqs. 12, 16), `small` being (6) of `process`. (3): Lu et al.
(2211.01095, algorithm 2), x0' and h' being those of the previous step. The first step, which has no previous one, and a
step to t = 0, where h is unbounded, are of first order: they omit the difference, which is DDIM's step.

The key of an image yields all of its noise: the initial noise, `draw_noise(keys, shape)`, and that of each step. The
stages of a cascade have keys of their own: `fold(keys, stage)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from dreamjax.diffusion.process import (
  ancestral_variance,
  convert,
  draw_noise,
  fold_in,
  learned_gamma,
  per_example,
  posterior,
)
from dreamjax.diffusion.schedules import Schedule

#: predict(x_t, t), with one t per image, returns the prediction, of as many channels as x_t, or of twice as many, whose
#: second half is a learned variance. The function contains the conditioning and the guidance.
Predict = Callable[[Float[Array, "b h w c"], Float[Array, " b"]], Float[Array, "b h w k"]]
#: Maps each prediction of x0 to another, for instance `thresholding.static_threshold`.
Threshold = Callable[[Float[Array, "b h w c"]], Float[Array, "b h w c"]]

# Folded into keys before the number of the step; see `process`.
_STEPS = 2**31 + 1


def ancestral(
  predict: Predict,
  x: Float[Array, "b h w c"],
  times: Float[np.ndarray, " n"],
  schedule: Schedule,
  keys: Key[Array, " k"],
  *,
  kind: str,
  gamma: float | str = 0.0,
  threshold: Threshold | None = None,
) -> Float[Array, "b h w c"]:
  """Samples by (1), the ancestral sampler.

  Args:
    predict: the network.
    x: noise, `draw_noise(keys, shape)`, or noisy images at the first time.
    times: decreasing, within 1 and 0, as from `uniform_times` and `spaced_times`.
    schedule: the noise schedule of the network.
    keys: one per image.
    kind: of prediction: "eps", "x0" or "v".
    gamma: 0 for diffusers' `fixed_small`, 1 for `fixed_large`, a number between them, or "learned" for
      `learned_range`. A number ignores a learned variance.
    threshold: applied to predictions of x0.

  Returns:
    Images, in float32.

  Raises:
    ValueError: if the times do not decrease from 1 towards 0, there is not one key per image, gamma or kind is invalid,
      or the network returns a wrong number of channels.
  """
  learned = gamma == "learned"
  if not learned and not (isinstance(gamma, (int, float)) and 0 <= gamma <= 1):
    raise ValueError(f'gamma is from 0 to 1, or "learned", not {gamma!r}')
  _check_keys(keys, x)

  def step(x_t, inputs):
    n, t, s = inputs
    x0, values = _denoise(predict, x_t, t, schedule, kind, threshold)
    if learned and values is None:
      raise ValueError(f'gamma is "learned", but the network returns no variance, only {x.shape[-1]} channels')
    noise = _noise_of_step(keys, n, x.shape)
    return ancestral_step(x_t, x0, t, s, schedule, noise, learned_gamma(values) if learned else gamma), None

  return _scan(step, x.astype(jnp.float32), x, times)


def ancestral_step(
  x_t: Float[Array, "b h w c"],
  x0: Float[Array, "b h w c"],
  t: Float[Array, " b"],
  s: Float[Array, " b"],
  schedule: Schedule,
  noise: Float[Array, "b h w c"],
  gamma: float | Float[Array, "b h w c"] = 0.0,
) -> Float[Array, "b h w c"]:
  """Computes one step of (1)."""
  mean, _ = posterior(x_t, x0, t, s, schedule)
  std = jnp.sqrt(ancestral_variance(gamma, t, s, schedule))
  return mean + jnp.where(per_example(s) > 0, std, 0) * noise


def ddim(
  predict: Predict,
  x: Float[Array, "b h w c"],
  times: Float[np.ndarray, " n"],
  schedule: Schedule,
  keys: Key[Array, " k"] | None = None,
  *,
  kind: str,
  eta: float = 0.0,
  threshold: Threshold | None = None,
) -> Float[Array, "b h w c"]:
  """Samples by (2), DDIM.

  Args:
    predict: the network.
    x: noise, or noisy images at the first time.
    times: decreasing, within 1 and 0.
    schedule: the noise schedule of the network.
    keys: one per image; needed only if eta is above 0.
    kind: of prediction: "eps", "x0" or "v".
    eta: 0 adds no noise, 1 as much as the ancestral sampler with gamma 0.
    threshold: applied to predictions of x0. As in Imagen, eps is computed from the result, which diffusers calls
      `use_clipped_model_output=True`.

  Returns:
    Images, in float32.

  Raises:
    ValueError: as `ancestral`, or if eta is not from 0 to 1.
  """
  if not 0 <= eta <= 1:
    raise ValueError(f"eta is from 0 to 1, not {eta}")
  if eta > 0:
    _check_keys(keys, x)

  def step(x_t, inputs):
    n, t, s = inputs
    x0, _ = _denoise(predict, x_t, t, schedule, kind, threshold)
    noise = _noise_of_step(keys, n, x.shape) if eta > 0 else None
    return ddim_step(x_t, x0, t, s, schedule, noise, eta), None

  return _scan(step, x.astype(jnp.float32), x, times)


def ddim_step(
  x_t: Float[Array, "b h w c"],
  x0: Float[Array, "b h w c"],
  t: Float[Array, " b"],
  s: Float[Array, " b"],
  schedule: Schedule,
  noise: Float[Array, "b h w c"] | None = None,
  eta: float = 0.0,
) -> Float[Array, "b h w c"]:
  """Computes one step of (2)."""
  eps = convert(x0, x_t, t, schedule, "x0", "eps")
  signal = per_example(schedule.alpha(s)) * x0
  if noise is None:
    return signal + per_example(schedule.sigma(s)) * eps
  # small = (1 - ratio) sigma_s^2, so that the square root needs no difference of close numbers.
  log_ratio = schedule.log_snr(t) - schedule.log_snr(s)
  old_std = schedule.sigma(s) * jnp.sqrt(1 - eta**2 + eta**2 * jnp.exp(log_ratio))
  new_std = schedule.sigma(s) * jnp.sqrt(-jnp.expm1(log_ratio)) * eta
  return signal + per_example(old_std) * eps + per_example(new_std) * noise


def dpm_solver(
  predict: Predict,
  x: Float[Array, "b h w c"],
  times: Float[np.ndarray, " n"],
  schedule: Schedule,
  *,
  kind: str,
  threshold: Threshold | None = None,
) -> Float[Array, "b h w c"]:
  """Samples by (3), DPM-Solver++(2M).

  Args:
    predict: the network.
    x: noise, or noisy images at the first time.
    times: decreasing, within 1 and 0.
    schedule: the noise schedule of the network.
    kind: of prediction: "eps", "x0" or "v".
    threshold: applied to predictions of x0.

  Returns:
    Images, in float32.

  Raises:
    ValueError: as `ancestral`.
  """

  def step(carry, inputs):
    x_t, previous_x0, previous_h = carry
    _, t, s = inputs
    x0, _ = _denoise(predict, x_t, t, schedule, kind, threshold)
    h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2
    # h' is infinite in the first step, so that the weight of the difference is 0.
    weight = per_example(jnp.where(s > 0, h / (2 * previous_h), 0))
    return (dpm_solver_step(x_t, x0 + weight * (x0 - previous_x0), t, s, schedule), x0, h), None

  x = x.astype(jnp.float32)
  return _scan(step, (x, jnp.zeros_like(x), jnp.full(len(x), jnp.inf)), x, times)[0]


def dpm_solver_step(
  x_t: Float[Array, "b h w c"],
  x0: Float[Array, "b h w c"],
  t: Float[Array, " b"],
  s: Float[Array, " b"],
  schedule: Schedule,
) -> Float[Array, "b h w c"]:
  """Computes one step of (3) from an x0 that includes the difference."""
  h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2
  return per_example(schedule.sigma(s) / schedule.sigma(t)) * x_t - per_example(schedule.alpha(s) * jnp.expm1(-h)) * x0


def _denoise(predict, x_t, t, schedule, kind, threshold):
  """Returns the thresholded prediction of x0, and the learned variance or None."""
  channels = x_t.shape[-1]
  output = predict(x_t, t).astype(jnp.float32)
  if output.shape not in (x_t.shape, (*x_t.shape[:-1], 2 * channels)):
    raise ValueError(f"predict must return x_t's shape {x_t.shape}, or twice its channels, not {output.shape}")
  x0 = convert(output[..., :channels], x_t, t, schedule, kind, "x0")
  x0 = x0 if threshold is None else threshold(x0)
  return x0, output[..., channels:] if output.shape[-1] > channels else None


def _noise_of_step(keys, n, shape):
  return draw_noise(fold_in(fold_in(keys, _STEPS), n), shape[1:])


def _scan(step, carry, x, times):
  """Scans step(carry, (n, t, s)) over the grid: the number of the step and, for each image, its times t and s."""
  if len(times) < 2 or not 1 >= times[0] or not times[-1] >= 0 or not np.all(np.diff(times) < 0):
    raise ValueError(f"sampling needs two times or more that decrease from 1 towards 0, not {times}")
  count = len(times) - 1
  times = jnp.broadcast_to(jnp.asarray(times, jnp.float32)[:, None], (len(times), len(x)))
  return jax.lax.scan(step, carry, (jnp.arange(count), times[:-1], times[1:]))[0]


def _check_keys(keys, x):
  if keys is None or keys.shape != (len(x),):
    raise ValueError(f"{len(x)} images need {len(x)} keys, not {None if keys is None else keys.shape}")
