"""The forward process, what a network may predict of it, and how to go back exactly.

With alpha, sigma and lambda of a schedule, s < t, and eps, z ~ N(0, I):

    x_t = alpha_t x0 + sigma_t eps                                                                                 (1)
    v   = alpha_t eps - sigma_t x0                                                                                 (2)
    x0  = (x_t - sigma_t eps) / alpha_t = alpha_t x_t - sigma_t v                                                  (3)
    eps = (x_t - alpha_t x0) / sigma_t  = sigma_t x_t + alpha_t v                                                  (4)

    q(x_s | x_t, x0) = N(mu, small)
    mu    = e^(lambda_t - lambda_s) alpha_s / alpha_t x_t + (1 - e^(lambda_t - lambda_s)) alpha_s x0               (5)
    small = (1 - e^(lambda_t - lambda_s)) sigma_s^2                                                                (6)
    large = (1 - e^(lambda_t - lambda_s)) sigma_t^2                                                                (7)
    p(x_s | x_t) = N(mu, small^(1 - gamma) large^gamma)                                                            (8)

(1), (5), (6): Ho et al., "DDPM" (2006.11239, eqs. 4, 6, 7), for any s < t as in Imagen (Saharia et al., 2205.11487,
appendix A), whose ancestral sampler is (8) with one gamma. In Nichol and Dhariwal's learned range (2102.09672, eq. 15)
each pixel has its own, predicted by the network; small and large are their beta-tilde and beta. (2): Salimans and Ho,
"Progressive Distillation" (2202.00512).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dreamjax.diffusion.schedules import Schedule

#: What a network may predict.
KINDS = ("eps", "x0", "v")

# Below every alpha and sigma of the schedules but sigma(0) = 0 of a table: where (3) or (4) would divide by less, it
# divides by this.
_LEAST = 1e-5

# What `augment` folds into keys: a number far from those of steps, stages and the like.
_AUGMENTATION = 2**31


def per_example(values: Float[Array, " b"]) -> Float[Array, "b 1 1 1"]:
  """One number an image, to be multiplied with images."""
  return values.astype(jnp.float32)[:, None, None, None]


def draw_noise(keys: Key[Array, " b"], shape: tuple[int, int, int]) -> Float[Array, "b h w c"]:
  """Standard normal noise for images of one shape; each image's depends on its own key alone."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def fold_in(keys: Key[Array, " b"], number: int | Int[Array, ""]) -> Key[Array, " b"]:
  """Keys for another use of the same images, such as the next stage of a cascade."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def diffuse(
  x0: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], t: Float[Array, " b"], schedule: Schedule
) -> Float[Array, "b h w c"]:
  """Equation (1): the clean images x0 with the noise of time t."""
  alpha, sigma = per_example(schedule.alpha(t)), per_example(schedule.sigma(t))
  return alpha * x0.astype(jnp.float32) + sigma * eps.astype(jnp.float32)


def augment(
  low_res: Float[Array, "b h w c"], level: Float[Array, " b"], keys: Key[Array, " b"], schedule: Schedule
) -> Float[Array, "b h w c"]:
  """Noise conditioning augmentation of what a super-resolution network sees (Imagen, section 2.4).

  Args:
    low_res: the low-resolution images, at the size at which the network gets them.
    level: how noisy they become, and what the network is told: a time of the schedule, for IF's `noise_level` that of
      this timestep.
    keys: one per image; they may be the sampler's.
    schedule: of the noise.
  """
  noise = draw_noise(fold_in(keys, _AUGMENTATION), low_res.shape[1:])
  return diffuse(low_res, noise, level, schedule)


def target(
  x0: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], t: Float[Array, " b"], schedule: Schedule, kind: str
) -> Float[Array, "b h w c"]:
  """What a network that predicts `kind` should say of `diffuse(x0, eps, t, schedule)`.

  Raises:
    ValueError: if there is no such kind.
  """
  check_prediction_type(kind)
  x0, eps = x0.astype(jnp.float32), eps.astype(jnp.float32)
  if kind == "v":
    return per_example(schedule.alpha(t)) * eps - per_example(schedule.sigma(t)) * x0
  return eps if kind == "eps" else x0


def convert(
  prediction: Float[Array, "b h w c"],
  x_t: Float[Array, "b h w c"],
  t: Float[Array, " b"],
  schedule: Schedule,
  source: str,
  to: str,
) -> Float[Array, "b h w c"]:
  """Makes of one kind of prediction another, by (2), (3) and (4).

  Args:
    prediction: of the kind `source`.
    x_t: of which it is.
    t: when.
    schedule: of the noise.
    source: "eps", "x0" or "v".
    to: "eps", "x0" or "v".

  Raises:
    ValueError: if there is no such kind.
  """
  check_prediction_type(source)
  check_prediction_type(to)
  prediction, x_t = prediction.astype(jnp.float32), x_t.astype(jnp.float32)
  if source == to:
    return prediction
  alpha, sigma = per_example(schedule.alpha(t)), per_example(schedule.sigma(t))
  match source:
    case "eps":
      x0, eps = (x_t - sigma * prediction) / jnp.maximum(alpha, _LEAST), prediction
    case "x0":
      x0, eps = prediction, (x_t - alpha * prediction) / jnp.maximum(sigma, _LEAST)
    case "v":
      x0, eps = alpha * x_t - sigma * prediction, sigma * x_t + alpha * prediction
  return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[to]


def posterior(
  x_t: Float[Array, "b h w c"],
  x0: Float[Array, "b h w c"],
  t: Float[Array, " b"],
  s: Float[Array, " b"],
  schedule: Schedule,
) -> tuple[Float[Array, "b h w c"], Float[Array, " b"]]:
  """The mean (5) and the variance (6) of q(x_s | x_t, x0), for any s < t."""
  ratio = jnp.exp(schedule.log_snr(t) - schedule.log_snr(s))
  share, small, _ = _steps(t, s, schedule)
  past = per_example(ratio * schedule.alpha(s) / jnp.maximum(schedule.alpha(t), _LEAST))
  return past * x_t.astype(jnp.float32) + per_example(share * schedule.alpha(s)) * x0.astype(jnp.float32), small


def ancestral_variance(
  gamma: float | Float[Array, "b h w c"], t: Float[Array, " b"], s: Float[Array, " b"], schedule: Schedule
) -> Float[Array, "b #h #w #c"]:
  """The variance of (8).

  Args:
    gamma: 0 for the small variance, 1 for the large one, or a network's `learned_gamma`.
    t: from when.
    s: to when, before t. At s = 0 the small variance is taken for 1e-20, as its log is needed.
    schedule: of the noise.
  """
  _, small, large = _steps(t, s, schedule)
  log_small, log_large = per_example(jnp.log(jnp.maximum(small, 1e-20))), per_example(jnp.log(large))
  return jnp.exp(log_small + gamma * (log_large - log_small))


def learned_gamma(values: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """The gamma of `variance_type="learned_range"`: the network says -1 for the small variance and 1 for the large."""
  return (values.astype(jnp.float32) + 1) / 2


def _steps(
  t: Float[Array, " b"], s: Float[Array, " b"], schedule: Schedule
) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
  """1 - e^(lambda_t - lambda_s), and with it (6) and (7)."""
  share = -jnp.expm1(schedule.log_snr(t) - schedule.log_snr(s))
  return share, share * schedule.sigma(s) ** 2, share * schedule.sigma(t) ** 2


def check_prediction_type(kind: str) -> None:
  """Raises a ValueError unless `kind` is one of `KINDS`."""
  if kind not in KINDS:
    raise ValueError(f"unknown kind of prediction {kind!r}; there are: {', '.join(KINDS)}")
