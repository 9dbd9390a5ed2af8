"""The forward process, the conversions between kinds of prediction, and the posterior.

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

#: The kinds of prediction.
KINDS = ("eps", "x0", "v")

# Lower bound of the divisors of (3) and (4). All alphas and sigmas of the schedules are larger, but for a table's
# sigma(0) = 0.
_MIN_DIVISOR = 1e-5

# Folded into keys by `augment`; far from the numbers of steps, stages and the like.
_AUGMENTATION = 2**31


def per_example(values: Float[Array, " b"]) -> Float[Array, "b 1 1 1"]:
  """Reshapes one number per image, in float32, to broadcast against images."""
  return values.astype(jnp.float32)[:, None, None, None]


def draw_noise(keys: Key[Array, " b"], shape: tuple[int, int, int]) -> Float[Array, "b h w c"]:
  """Samples standard normal noise of shape h w c for each key; the noise of an image depends on its own key only."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def fold_in(keys: Key[Array, " b"], number: int | Int[Array, ""]) -> Key[Array, " b"]:
  """Folds a number into each key, for another use of the same images, such as the next stage of a cascade."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def diffuse(
  x0: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], t: Float[Array, " b"], schedule: Schedule
) -> Float[Array, "b h w c"]:
  """Noises clean images x0 to time t, by (1)."""
  alpha, sigma = per_example(schedule.alpha(t)), per_example(schedule.sigma(t))
  return alpha * x0.astype(jnp.float32) + sigma * eps.astype(jnp.float32)


def augment(
  low_res: Float[Array, "b h w c"], level: Float[Array, " b"], keys: Key[Array, " b"], schedule: Schedule
) -> Float[Array, "b h w c"]:
  """Noises the low-resolution input of a super-resolution network: noise conditioning augmentation (Imagen, 2.4).

  Args:
    low_res: low-resolution images, already resized to the input size of the network.
    level: the time of the schedule to which they are noised and on which the network is conditioned; for IF's
      `noise_level`, the time of that timestep.
    keys: one per image; may be the keys of the sampler.
    schedule: the noise schedule.
  """
  noise = draw_noise(fold_in(keys, _AUGMENTATION), low_res.shape[1:])
  return diffuse(low_res, noise, level, schedule)


def target(
  x0: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], t: Float[Array, " b"], schedule: Schedule, kind: str
) -> Float[Array, "b h w c"]:
  """Returns the training target of a network that predicts `kind` from `diffuse(x0, eps, t, schedule)`.

  Raises:
    ValueError: if the kind is unknown.
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
  """Converts a prediction from one kind to another, by (2), (3) and (4).

  Args:
    prediction: of the kind `source`.
    x_t: the noisy images that it was made from.
    t: their times.
    schedule: the noise schedule.
    source: "eps", "x0" or "v".
    to: "eps", "x0" or "v".

  Raises:
    ValueError: if a kind is unknown.
  """
  check_prediction_type(source)
  check_prediction_type(to)
  prediction, x_t = prediction.astype(jnp.float32), x_t.astype(jnp.float32)
  if source == to:
    return prediction
  alpha, sigma = per_example(schedule.alpha(t)), per_example(schedule.sigma(t))
  match source:
    case "eps":
      x0, eps = (x_t - sigma * prediction) / jnp.maximum(alpha, _MIN_DIVISOR), prediction
    case "x0":
      x0, eps = prediction, (x_t - alpha * prediction) / jnp.maximum(sigma, _MIN_DIVISOR)
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
  """Returns the mean (5) and the variance (6) of q(x_s | x_t, x0), for any s < t."""
  ratio = jnp.exp(schedule.log_snr(t) - schedule.log_snr(s))
  share, small, _ = _variances(t, s, schedule)
  coefficient = per_example(ratio * schedule.alpha(s) / jnp.maximum(schedule.alpha(t), _MIN_DIVISOR))
  return coefficient * x_t.astype(jnp.float32) + per_example(share * schedule.alpha(s)) * x0.astype(jnp.float32), small


def ancestral_variance(
  gamma: float | Float[Array, "b h w c"], t: Float[Array, " b"], s: Float[Array, " b"], schedule: Schedule
) -> Float[Array, "b #h #w #c"]:
  """Computes the variance of (8).

  Args:
    gamma: 0 for the small variance, 1 for the large one, or a network's `learned_gamma`.
    t: times before the step.
    s: times after the step, below t. At s = 0 the small variance, whose log is needed, is bounded below by 1e-20.
    schedule: the noise schedule.
  """
  _, small, large = _variances(t, s, schedule)
  log_small, log_large = per_example(jnp.log(jnp.maximum(small, 1e-20))), per_example(jnp.log(large))
  return jnp.exp(log_small + gamma * (log_large - log_small))


def learned_gamma(values: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """Maps outputs of `variance_type="learned_range"`, -1 for the small variance and 1 for the large, to gamma."""
  return (values.astype(jnp.float32) + 1) / 2


def _variances(
  t: Float[Array, " b"], s: Float[Array, " b"], schedule: Schedule
) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
  """Returns 1 - e^(lambda_t - lambda_s), (6) and (7)."""
  share = -jnp.expm1(schedule.log_snr(t) - schedule.log_snr(s))
  return share, share * schedule.sigma(s) ** 2, share * schedule.sigma(t) ** 2


def check_prediction_type(kind: str) -> None:
  """Raises a ValueError unless `kind` is one of `KINDS`."""
  if kind not in KINDS:
    raise ValueError(f"unknown kind of prediction {kind!r}; there are: {', '.join(KINDS)}")
