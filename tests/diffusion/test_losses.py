"""The denoising loss and its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion import process
from dreamjax.diffusion.losses import denoising_loss, min_snr, squared_error
from dreamjax.diffusion.process import KINDS
from dreamjax.diffusion.schedules import BetaTable, Cosine


def draw(count, batch_size=5):
  return jnp.asarray(np.random.default_rng(0).standard_normal((count, batch_size, 4, 4, 3), np.float32))


def test_the_loss_is_the_weighted_mean_of_the_squared_errors():
  prediction, target = draw(2, batch_size=3)
  errors = np.mean((np.float64(prediction) - target) ** 2, axis=(1, 2, 3))
  np.testing.assert_allclose(squared_error(prediction, target), errors, rtol=1e-6)
  found = denoising_loss(prediction, target, jnp.array([1.0, 0.0, 2.5]))
  np.testing.assert_allclose(found, (errors[0] + 2.5 * errors[2]) / 3, rtol=1e-6)


def test_weights_express_separate_losses_of_subject_and_prior():
  prediction, target = draw(2)
  n, m, prior = 2, 3, 0.7
  weights = jnp.array([5 / n] * n + [prior * 5 / m] * m)

  def separate(prediction):
    subject = denoising_loss(prediction[:n], target[:n], jnp.ones(n))
    return subject + prior * denoising_loss(prediction[n:], target[n:], jnp.ones(m))

  ours = jax.jit(jax.value_and_grad(denoising_loss))(prediction, target, weights)
  for a, b in zip(ours, jax.jit(jax.value_and_grad(separate))(prediction), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_an_example_of_weight_zero_has_no_gradient():
  prediction, target = draw(2)
  gradient = jax.jit(jax.grad(denoising_loss))(prediction, target, jnp.array([1.0, 0.0, 1.0, 1.0, 1.0]))
  assert np.all(gradient[1] == 0)
  assert np.all(gradient[0] != 0)


def test_the_loss_is_computed_in_float32():
  prediction, target = np.full((1, 2, 2, 1), 100, jnp.bfloat16), np.full((1, 2, 2, 1), 99.9, np.float32)
  loss = jax.jit(denoising_loss)(prediction, target, np.ones(1, jnp.bfloat16))
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, 0.01, rtol=1e-3)


@pytest.mark.parametrize("schedule", [Cosine(), BetaTable("linear")], ids=str)
def test_min_snr_equals_its_definition(schedule):
  t = jnp.array([0.001, 0.1, 0.3, 0.5, 0.9, 1.0])

  @jax.jit
  def weights(t):
    return schedule.log_snr(t), {
      (kind, gamma): min_snr(t, schedule, kind, gamma) for kind in KINDS for gamma in (5, 1.5)
    }

  log_snr, found = weights(t)
  snr = np.exp(np.float64(log_snr))
  for gamma in (5, 1.5):
    clamped = np.minimum(snr, gamma)
    assert 0 < np.sum(clamped < snr) < len(t)
    for kind, expected in (("x0", clamped), ("eps", clamped / snr), ("v", clamped / (snr + 1))):
      np.testing.assert_allclose(found[kind, gamma], expected, rtol=1e-4)
  np.testing.assert_allclose(found["v", 5], min_snr(t, schedule, "v"), rtol=1e-5)


def test_min_snr_gives_the_same_loss_for_every_kind_of_prediction():
  schedule, t = Cosine(), jnp.array([0.1, 0.5, 0.9])

  @jax.jit
  def losses(x0, eps, off):
    x_t = process.diffuse(x0, eps, t, schedule)
    targets = {kind: process.target(x0, eps, t, schedule, kind) for kind in KINDS}
    found = {kind: process.convert(x0 + 0.1 * off, x_t, t, schedule, "x0", kind) for kind in KINDS}
    return [denoising_loss(found[kind], targets[kind], min_snr(t, schedule, kind)) for kind in KINDS]

  first, second, third = losses(*draw(3, batch_size=3))
  np.testing.assert_allclose([second, third], [first, first], rtol=1e-3)


def test_min_snr_is_finite_at_time_0():
  weights = jax.jit(lambda t: [min_snr(t, BetaTable("linear"), kind) for kind in ("x0", "eps", "v")])
  np.testing.assert_allclose(np.ravel(weights(jnp.zeros(1))), [5, 0, 0], rtol=1e-6)


def test_bad_inputs():
  with pytest.raises(ValueError, match="unknown kind of prediction 'score'"):
    min_snr(jnp.ones(1), Cosine(), "score")
  with pytest.raises(ValueError, match="gamma is above 0"):
    min_snr(jnp.ones(1), Cosine(), "eps", gamma=0.0)
