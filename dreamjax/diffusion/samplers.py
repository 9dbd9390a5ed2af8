"""Samplers: from noise at the first time of a grid to images at its last, each sampler one `lax.scan`.

With x0 what the network's prediction at x_t says of the clean image, thresholded, eps = (x_t - alpha_t x0) / sigma_t,
h = (lambda_s - lambda_t) / 2 the step in the log of alpha / sigma, and z ~ N(0, I), a step from t to s < t is

    ancestral:        x_s ~ p(x_s | x_t), equation (8) of `process`; without noise if s = 0                        (1)
    DDIM:             x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 small) eps + eta sqrt(small) z                     (2)
    DPM-Solver++(2M): x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) (x0 + h / (2 h') (x0 - x0'))                (3)

(1): Ho et al., "DDPM" (2006.11239, algorithm 2), with Imagen's gamma (2205.11487, appendix A) or Nichol and Dhariwal's
learned variance. (2): Song et al., "DDIM" (2010.02502, eqs. 12, 16), `small` being (6) of `process`. (3): Lu et al.
(2211.01095, algorithm 2), x0' and h' being those of the step before; there is none in the first step, and in a step to
t = 0 h has no bounds: both take the first order, without the difference, which is DDIM's step.

An image's key yields all of its noise: that of the start, `draw_noise(keys, shape)`, and each step's. The stages of a
cascade have keys of their own: `fold(keys, stage)`.
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

#: predict(x_t, t), t one per image, is what the network says: a prediction with the channels of x_t; or with twice as
#: many, the second half being the values of a learned variance. Prompts, guidance, low-resolution images are inside.
Predict = Callable[[Float[Array, "b h w c"], Float[Array, " b"]], Float[Array, "b h w k"]]
#: What is done to each prediction of x0, such as `guidance.static_threshold`.
Threshold = Callable[[Float[Array, "b h w c"]], Float[Array, "b h w c"]]

# What samplers fold into keys before the number of the step; see `process`.
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
  """Equation (1), step by step.

  Args:
    predict: the network.
    x: noise, `draw_noise(keys, shape)`, or what is there at the first of the times.
    times: falling, from 1 to 0 or part of the way, as `uniform_times` and `spaced_times` make them.
    schedule: that of the network.
    keys: one per image.
    kind: what the network predicts: "eps", "x0" or "v".
    gamma: 0 for diffusers' `fixed_small`, 1 for `fixed_large`, anything between them, or "learned" for `learned_range`.
      Unless it is "learned", a learned variance is left aside.
    threshold: what is done to predictions of x0.

  Returns:
    Images, in float32.

  Raises:
    ValueError: if the times do not fall from 1 towards 0, there is not one key per image, gamma or kind are not what
      they can be, or the network's channels do not fit.
  """
  learned = gamma == "learned"
  if not learned and not (isinstance(gamma, (int, float)) and 0 <= gamma <= 1):
    raise ValueError(f'gamma is from 0 to 1, or "learned": not {gamma!r}')
  _check_keys(keys, x)

  def step(x_t, now):
    n, t, s = now
    x0, values = _denoise(predict, x_t, t, schedule, kind, threshold)
    if learned and values is None:
      raise ValueError(f"the variance is to be learned, but the network has no channels for it beside {x.shape[-1]}")
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
  """One step of (1)."""
  mean, _ = posterior(x_t, x0, t, s, schedule)
  spread = jnp.sqrt(ancestral_variance(gamma, t, s, schedule))
  return mean + jnp.where(per_example(s) > 0, spread, 0) * noise


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
  """Equation (2), step by step.

  Args:
    predict: the network.
    x: noise, or what is there at the first of the times.
    times: falling, from 1 to 0 or part of the way.
    schedule: that of the network.
    keys: one per image; needed only if eta is above 0.
    kind: what the network predicts: "eps", "x0" or "v".
    eta: 0 draws no noise, 1 as much as the ancestral sampler with gamma 0.
    threshold: what is done to predictions of x0. As in Imagen, eps follows from what comes of it; diffusers has that
      as `use_clipped_model_output=True`.

  Returns:
    Images, in float32.

  Raises:
    ValueError: as `ancestral`; eta is from 0 to 1.
  """
  if not 0 <= eta <= 1:
    raise ValueError(f"eta is from 0 to 1: not {eta}")
  if eta > 0:
    _check_keys(keys, x)

  def step(x_t, now):
    n, t, s = now
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
  """One step of (2)."""
  eps = convert(x0, x_t, t, schedule, "x0", "eps")
  known = per_example(schedule.alpha(s)) * x0
  if noise is None:
    return known + per_example(schedule.sigma(s)) * eps
  # With small = (1 - rest) sigma_s^2, the difference in the root need not be taken.
  rest = jnp.exp(schedule.log_snr(t) - schedule.log_snr(s))
  kept = schedule.sigma(s) * jnp.sqrt(1 - eta**2 + eta**2 * rest)
  drawn = schedule.sigma(s) * jnp.sqrt(-jnp.expm1(schedule.log_snr(t) - schedule.log_snr(s))) * eta
  return known + per_example(kept) * eps + per_example(drawn) * noise


def dpm_solver(
  predict: Predict,
  x: Float[Array, "b h w c"],
  times: Float[np.ndarray, " n"],
  schedule: Schedule,
  *,
  kind: str,
  threshold: Threshold | None = None,
) -> Float[Array, "b h w c"]:
  """Equation (3), step by step: DPM-Solver++(2M).

  Args:
    predict: the network.
    x: noise, or what is there at the first of the times.
    times: falling, from 1 to 0 or part of the way.
    schedule: that of the network.
    kind: what the network predicts: "eps", "x0" or "v".
    threshold: what is done to predictions of x0.

  Returns:
    Images, in float32.

  Raises:
    ValueError: as `ancestral`.
  """

  def step(carry, now):
    x_t, x0_before, h_before = carry
    _, t, s = now
    x0, _ = _denoise(predict, x_t, t, schedule, kind, threshold)
    h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2
    # In the first step h' is infinite, so that the difference has no weight.
    weight = per_example(jnp.where(s > 0, h / (2 * h_before), 0))
    return (dpm_solver_step(x_t, x0 + weight * (x0 - x0_before), t, s, schedule), x0, h), None

  x = x.astype(jnp.float32)
  return _scan(step, (x, jnp.zeros_like(x), jnp.full(len(x), jnp.inf)), x, times)[0]


def dpm_solver_step(
  x_t: Float[Array, "b h w c"],
  x0: Float[Array, "b h w c"],
  t: Float[Array, " b"],
  s: Float[Array, " b"],
  schedule: Schedule,
) -> Float[Array, "b h w c"]:
  """One step of (3), x0 with the difference already added."""
  h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2
  return per_example(schedule.sigma(s) / schedule.sigma(t)) * x_t - per_example(schedule.alpha(s) * jnp.expm1(-h)) * x0


def _denoise(predict, x_t, t, schedule, kind, threshold):
  """What the network says of x0, thresholded, and its values for the variance if it has them."""
  channels = x_t.shape[-1]
  output = predict(x_t, t).astype(jnp.float32)
  if output.shape not in (x_t.shape, (*x_t.shape[:-1], 2 * channels)):
    raise ValueError(f"of {x_t.shape}, predict returns that shape, or twice the channels: not {output.shape}")
  x0 = convert(output[..., :channels], x_t, t, schedule, kind, "x0")
  x0 = x0 if threshold is None else threshold(x0)
  return x0, output[..., channels:] if output.shape[-1] > channels else None


def _noise_of_step(keys, n, shape):
  return draw_noise(fold_in(fold_in(keys, _STEPS), n), shape[1:])


def _scan(step, carry, x, times):
  """Runs step(carry, (n, t, s)) over the grid, t and s being one per image."""
  if len(times) < 2 or not 1 >= times[0] or not times[-1] >= 0 or not np.all(np.diff(times) < 0):
    raise ValueError(f"a grid has two times or more, falling from 1 towards 0: not {times}")
  count = len(times) - 1
  times = jnp.broadcast_to(jnp.asarray(times, jnp.float32)[:, None], (len(times), len(x)))
  return jax.lax.scan(step, carry, (jnp.arange(count), times[:-1], times[1:]))[0]


def _check_keys(keys, x):
  if keys is None or keys.shape != (len(x),):
    raise ValueError(f"{len(x)} images take {len(x)} keys, one each: not {None if keys is None else keys.shape}")
