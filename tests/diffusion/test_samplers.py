"""Samplers compared with closed forms on Gaussian data, and properties that hold for any network."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion import process, samplers, thresholding
from dreamjax.diffusion.schedules import BetaTable, Cosine, spaced_times, uniform_times

TABLE = BetaTable("squaredcos_cap_v2")
MEAN, STD = 0.3, 0.5


def oracle(schedule, kind, std=STD):
  """Returns the optimal prediction for images whose pixels are distributed as N(MEAN, std^2)."""

  def predict(x_t, t):
    alpha, sigma = process.per_example(schedule.alpha(t)), process.per_example(schedule.sigma(t))
    x0 = MEAN + std**2 * alpha / (std**2 * alpha**2 + sigma**2) * (x_t - alpha * MEAN)
    return process.convert(x0, x_t, t, schedule, "x0", kind)

  return predict


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def keys_of(count):
  return jax.random.split(jax.random.key(0), count)


def flow(x, t, s, schedule):
  """Integrates the probability flow ODE from x at t to s, for pixels distributed as N(MEAN, STD^2)."""
  (a_t, a_s), (s_t, s_s) = (np.float64(factor(jnp.array([t, s]))) for factor in (schedule.alpha, schedule.sigma))
  stretch = np.sqrt((STD**2 * a_s**2 + s_s**2) / (STD**2 * a_t**2 + s_t**2))
  return a_s * MEAN + stretch * (np.float64(x) - a_t * MEAN)


def error(sampler, schedule, times):
  """Returns the maximum distance between the results of a sampler and of the probability flow ODE."""
  x = draw(0, 1, 8, 8, 1)
  found = sampler(oracle(schedule, "v"), x, times, schedule, kind="v")
  return np.abs(np.asarray(found) - flow(x, times[0], times[-1], schedule)).max()


def test_ddim_and_dpm_solver_follow_the_probability_flow_at_their_orders():
  # From 0.9 to 0.1: in the log of alpha / sigma, steps next to the ends do not become shorter on a finer grid.
  coarse, fine = (np.linspace(0.9, 0.1, steps + 1) for steps in (40, 80))
  assert 1.8 < error(samplers.ddim, Cosine(), coarse) / error(samplers.ddim, Cosine(), fine) < 2.2  # first
  assert 3.5 < error(samplers.dpm_solver, Cosine(), coarse) / error(samplers.dpm_solver, Cosine(), fine) < 4.5  # second


def test_dpm_solver_is_more_accurate_than_ddim_from_noise_to_images():
  times = spaced_times(TABLE, 20, "trailing")
  assert 10 * error(samplers.dpm_solver, TABLE, times) < error(samplers.ddim, TABLE, times) < 0.3


def test_ancestral_steps_of_any_length_are_exact_with_the_true_variance():
  times, schedule = np.array([1, 0.8, 0.5, 0.2, 0.01]), TABLE

  def predict(x_t, t):
    grid = jnp.asarray(times, jnp.float32)
    s = jnp.full_like(t, grid[jnp.argmin(jnp.abs(grid - t[0])) + 1])
    # Var(x_s | x_t) = Var(x_s | x_t, x0) + (dx_s / dx0)^2 Var(x0 | x_t)
    ones = jnp.ones_like(x_t)
    by_x0, _ = process.posterior(0 * ones, ones, t, s, schedule)
    of_x0 = 1 / (1 / STD**2 + jnp.exp(schedule.log_snr(t)))
    small, large = (process.ancestral_variance(gamma, t, s, schedule) for gamma in (0.0, 1.0))
    gamma = jnp.log((small + by_x0**2 * process.per_example(of_x0)) / small) / jnp.log(large / small)
    return jnp.concatenate([oracle(schedule, "v")(x_t, t), 2 * gamma - 1], axis=-1)

  x = draw(1, 16, 64, 64, 1)
  found = np.asarray(samplers.ancestral(predict, x, times, schedule, keys_of(16), kind="v", gamma="learned"))
  alpha, sigma = schedule.alpha(jnp.array([0.01])).item(), schedule.sigma(jnp.array([0.01])).item()
  np.testing.assert_allclose(found.mean(), alpha * MEAN, atol=0.01)
  np.testing.assert_allclose(found.std(), np.sqrt(alpha**2 * STD**2 + sigma**2), rtol=0.01)


def test_ddim_steps_of_any_length_are_exact_where_the_clean_image_is_known():
  x = draw(1, 16, 64, 64, 1)  # the distribution of x_t at t = 1, to 5e-5
  predict, times, end = oracle(TABLE, "x0", std=0.0), np.array([1, 0.7, 0.4]), jnp.array([0.4])
  found = np.asarray(samplers.ddim(predict, x, times, TABLE, keys_of(16), kind="x0", eta=0.6))
  np.testing.assert_allclose(found.mean(), TABLE.alpha(end).item() * MEAN, atol=0.01)
  np.testing.assert_allclose(found.std(), TABLE.sigma(end).item(), rtol=0.01)


@pytest.mark.parametrize("schedule", [Cosine(), TABLE], ids=str)
def test_ddim_with_eta_1_equals_the_ancestral_sampler_with_gamma_0(schedule):
  x_t, x0, noise = (draw(seed, 4, 4, 4, 3) for seed in range(3))
  t, s = jnp.array([1.0, 0.6, 0.02, 0.01]), jnp.array([0.9, 0.3, 0.001, 0.005])
  ddim = jax.jit(partial(samplers.ddim_step, schedule=schedule, eta=1.0))(x_t, x0, t, s, noise=noise)
  ancestral = jax.jit(partial(samplers.ancestral_step, schedule=schedule))(x_t, x0, t, s, noise=noise)
  np.testing.assert_allclose(ddim, ancestral, atol=1e-4)


def test_a_cascade_is_one_program_and_its_images_do_not_depend_on_the_batch():
  traces = []

  @jax.jit
  def cascade(keys, weight, level):
    traces.append(len(keys))

    def base(x_t, t):
      unconditional, conditional = jnp.tanh(x_t), jnp.tanh(2 * x_t) + process.per_example(t)
      return unconditional + weight * (conditional - unconditional)

    x, threshold = process.draw_noise(keys, (4, 4, 3)), partial(thresholding.dynamic_threshold, percentile=0.9)
    base_images = samplers.ddim(base, x, uniform_times(4), Cosine(), keys, kind="v", eta=1.0, threshold=threshold)
    low_res = jnp.repeat(jnp.repeat(base_images, 2, axis=1), 2, axis=2)
    keys = process.fold_in(keys, 1)
    augmented = process.augment(low_res, jnp.broadcast_to(level, len(keys)), keys, TABLE)

    def super_resolution(x_t, t):
      return jnp.tanh(jnp.concatenate([x_t + augmented, x_t], axis=-1)).astype(jnp.bfloat16)

    x, times = process.draw_noise(keys, (8, 8, 3)), spaced_times(TABLE, 4, "trailing")
    return samplers.ancestral(super_resolution, x, times, TABLE, keys, kind="x0", gamma="learned")

  keys, weight = keys_of(3), jnp.float32(3)
  images = cascade(keys, weight, jnp.float32(0.1))
  assert images.shape == (3, 8, 8, 3)
  assert images.dtype == jnp.float32
  assert np.abs(images[0] - images[1]).max() > 0.1
  assert np.abs(images - cascade(keys, weight, jnp.float32(0.5))).max() > 0.1
  assert np.abs(images - cascade(keys, jnp.float32(1), jnp.float32(0.1))).max() > 0.1
  np.testing.assert_allclose(cascade(keys[1:2], weight, jnp.float32(0.1))[0], images[1], atol=1e-6)
  assert traces == [3, 1]


@pytest.mark.parametrize(
  ("sampler", "message"),
  [
    (partial(samplers.ancestral, gamma=1.5), 'from 0 to 1, or "learned", not 1.5'),
    (partial(samplers.ancestral, gamma="fixed"), "or \"learned\", not 'fixed'"),
    (partial(samplers.ancestral, gamma="learned"), "returns no variance, only 3 channels"),
    (partial(samplers.ancestral, keys=keys_of(1)), "2 images need 2 keys"),
    (partial(samplers.ddim, eta=-0.1), "eta is from 0 to 1"),
    (partial(samplers.ddim, eta=1.0, keys=None), "2 images need 2 keys"),
    (partial(samplers.ddim, times=np.array([1.0])), "two times or more"),
    (partial(samplers.ddim, times=np.array([0.0, 1.0])), "decrease from 1 towards 0"),
    (partial(samplers.ddim, times=np.array([999.0, 0.0])), "decrease from 1 towards 0"),
    (partial(samplers.ddim, times=np.array([1.0, -0.1])), "decrease from 1 towards 0"),
    (partial(samplers.ddim, kind="noise"), "unknown kind of prediction 'noise'"),
    (partial(samplers.ddim, predict=lambda x_t, t: x_t[..., :1]), "or twice its channels, not"),
  ],
)
def test_bad_inputs(sampler, message):
  defaults = {
    "predict": lambda x_t, t: x_t,
    "times": uniform_times(2),
    "schedule": TABLE,
    "kind": "v",
    "keys": keys_of(2),
  }
  with pytest.raises(ValueError, match=message):
    sampler(x=jnp.zeros((2, 4, 4, 3)), **{**defaults, **sampler.keywords})
