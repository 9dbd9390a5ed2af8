"""The forward process, conversions of predictions and posteriors: identities, and comparisons with float64."""

from functools import partial
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion import process
from dreamjax.diffusion.schedules import BetaTable, Cosine

TABLE = BetaTable("squaredcos_cap_v2")
SCHEDULES = [Cosine(), TABLE]
TIMES = np.array([0.0, 0.02, 0.1, 0.4, 0.7, 0.95, 1.0], np.float32)
SHAPE = (7, 3, 2, 3)


def draw(count):
  return np.random.default_rng(0).standard_normal((count, *SHAPE), np.float32)


def per_row(*values):
  return [np.float64(value).reshape(-1, 1, 1, 1) for value in values]


def factors(schedule, t):
  return per_row(*jax.jit(lambda t: (schedule.alpha(t), schedule.sigma(t)))(t))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_each_image_is_noised_at_its_own_time(schedule):
  x0, eps = draw(2)
  alpha, sigma = factors(schedule, TIMES)
  found = jax.jit(partial(process.diffuse, schedule=schedule))(x0, eps, TIMES)
  np.testing.assert_allclose(found, alpha * x0 + sigma * eps, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_prediction_converts_to_every_other(schedule):
  x0, eps = draw(2)

  @jax.jit
  def convert(x0, eps, t):
    x_t = process.diffuse(x0, eps, t, schedule)
    exact = {kind: process.target(x0, eps, t, schedule, kind) for kind in process.KINDS}
    found = {(a, b): process.convert(exact[a], x_t, t, schedule, a, b) for a in exact for b in exact}
    return exact, found

  exact, found = convert(x0, eps, TIMES)
  assert len(found) == 9
  for (source, to), converted in found.items():
    np.testing.assert_allclose(converted[1:-1], exact[to][1:-1], atol=3e-5, err_msg=f"{source} to {to}")


def test_targets_equal_their_definitions():
  x0, eps = draw(2)
  alpha, sigma = factors(Cosine(), TIMES)
  found = {kind: process.target(*map(jnp.asarray, (x0, eps, TIMES)), Cosine(), kind) for kind in process.KINDS}
  np.testing.assert_array_equal(found["eps"], eps)
  np.testing.assert_array_equal(found["x0"], x0)
  np.testing.assert_allclose(found["v"], alpha * eps - sigma * x0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_conversions_are_finite_at_both_ends(schedule):
  x_t, prediction = draw(2)

  @jax.jit
  def convert(prediction, x_t, t):
    pairs = itertools.product(process.KINDS, process.KINDS)
    return {pair: process.convert(prediction, x_t, t, schedule, *pair) for pair in pairs}

  found = convert(prediction, x_t, TIMES)
  for pair, converted in found.items():
    assert np.all(np.isfinite(converted)), pair
  # The bound of the divisors is below what schedules reach: at t = 1 x0 is exact, however small alpha is.
  alpha, sigma = factors(schedule, TIMES)
  expected = (np.float64(x_t) - sigma * prediction) / alpha
  np.testing.assert_allclose(found["eps", "x0"][-1], expected[-1], rtol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_posterior_is_bayes_rule(schedule):
  x_t, x0 = draw(2)
  t = np.array([1.0, 0.9, 0.5, 0.2, 0.002, 0.7, 0.3], np.float32)
  s = np.array([0.999, 0.3, 0.45, 0.001, 0.001, 0.1, 0.2], np.float32)
  (a_t, s_t), (a_s, s_s) = factors(schedule, t), factors(schedule, s)
  # x_s | x0 ~ N(a_s x0, s_s^2) and x_t | x_s ~ N(a x_s, b), whose precisions add up.
  a = a_t / a_s
  b = s_t**2 - a**2 * s_s**2
  precision = 1 / s_s**2 + a**2 / b

  @jax.jit
  def find(x_t, x0, t, s):
    variances = [process.ancestral_variance(gamma, t, s, schedule) for gamma in (0.0, 1.0)]
    return *process.posterior(x_t, x0, t, s, schedule), *variances

  mean, variance, small, large = find(x_t, x0, t, s)
  np.testing.assert_allclose(mean, (a_s / s_s**2 * x0 + a / b * x_t) / precision, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(variance, 1 / precision.ravel(), rtol=1e-3)
  np.testing.assert_allclose(small.ravel(), variance, rtol=1e-5)
  np.testing.assert_allclose(large, b, rtol=2e-3)


def test_the_posterior_of_the_clean_end_is_x0():
  x_t, x0 = draw(2)
  t, s = np.full(7, 0.3, np.float32), np.zeros(7, np.float32)

  @jax.jit
  def find(x_t, x0, t, s):
    return *process.posterior(x_t, x0, t, s, TABLE), process.ancestral_variance(0.5, t, s, TABLE)

  mean, variance, middle = find(x_t, x0, t, s)
  np.testing.assert_array_equal(mean, x0)
  np.testing.assert_array_equal(variance, 0)
  assert np.all(np.isfinite(middle))


def test_the_learned_variance_is_that_of_nichol_and_dhariwal():
  (values,) = draw(1)
  k, previous = 400, 300
  alpha_bar = np.cumprod(1 - TABLE.betas())
  beta = 1 - alpha_bar[k] / alpha_bar[previous]
  small = beta * (1 - alpha_bar[previous]) / (1 - alpha_bar[k])
  fraction = (np.float64(values) + 1) / 2
  expected = np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(small))

  @jax.jit
  def find(values, k, previous):
    return process.ancestral_variance(process.learned_gamma(values), TABLE.time(k), TABLE.time(previous), TABLE)

  np.testing.assert_allclose(find(values, np.full(7, k), np.full(7, previous)), expected, rtol=1e-5)


def test_noise_depends_on_the_image_s_own_key_only():
  keys, shape = jax.random.split(jax.random.key(0), 4), (8, 8, 3)

  @jax.jit
  def draw(keys):
    return process.draw_noise(keys, shape), process.draw_noise(process.fold_in(keys, 1), shape)

  np.testing.assert_array_equal(draw(keys)[0][3], jax.random.normal(keys[3], shape))
  noise = np.concatenate(draw(keys))
  assert np.abs(np.corrcoef(noise.reshape(8, -1)) - np.eye(8)).max() < 0.3
  assert abs(noise.std() - 1) < 0.1


def test_augmentation_noises_each_image_to_its_level():
  low_res = np.random.default_rng(0).standard_normal((4, 32, 32, 3), np.float32)
  keys = jax.random.split(jax.random.key(0), 4)

  @jax.jit
  def augment(low_res, timesteps, keys):
    augmented = process.augment(low_res, TABLE.time(timesteps), keys, TABLE)
    return augmented, process.draw_noise(keys, low_res.shape[1:])

  found, start = map(np.asarray, augment(low_res, np.array([-1, 250, 999, 250]), keys))
  np.testing.assert_array_equal(found[0], low_res[0])
  noises = {1: (found[1] - np.sqrt(1 - 0.1541) * low_res[1]) / np.sqrt(0.1541), 2: found[2]}
  for i, noise in noises.items():
    assert abs(noise.std() - 1) < 0.05
    others = np.stack([low_res[i], noise, start[i], start[3]]).reshape(4, -1)
    assert np.abs(np.corrcoef(others) - np.eye(4)).max() < 0.1  # the sampler may start from the same keys


def test_everything_is_computed_in_float32():
  x0, eps = np.asarray(draw(2), jnp.bfloat16)
  diffuse = jax.jit(partial(process.diffuse, schedule=TABLE))
  np.testing.assert_array_equal(diffuse(x0, eps, TIMES), diffuse(np.float32(x0), np.float32(eps), TIMES))

  def everything(x0, eps, t):
    targets = [process.target(x0, eps, t, TABLE, kind) for kind in process.KINDS]
    converted = [process.convert(x0, eps, t, TABLE, kind, "x0") for kind in process.KINDS]
    return [*targets, *converted, process.posterior(x0, eps, t, t / 2, TABLE)[0], process.learned_gamma(eps)]

  assert all(found.dtype == jnp.float32 for found in jax.eval_shape(everything, x0, eps, TIMES))


@pytest.mark.parametrize("kinds", [("noise", "x0"), ("x0", "noise")])
def test_unknown_kinds(kinds):
  x, t = jnp.zeros((1, 1, 1, 1)), jnp.ones(1)
  with pytest.raises(ValueError, match="unknown kind of prediction 'noise'; there are: eps, x0, v"):
    process.convert(x, x, t, TABLE, *kinds)
  with pytest.raises(ValueError, match="unknown kind"):
    process.target(x, x, t, TABLE, "noise")
