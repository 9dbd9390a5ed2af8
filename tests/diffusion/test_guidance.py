"""Identities of guidance, and thresholding compared with numpy's percentile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion import process
from dreamjax.diffusion.guidance import dynamic_threshold, guide, static_threshold, within_interval
from dreamjax.diffusion.schedules import Cosine

# Jitted as a whole, which compiles faster than each operation alone.
mix = jax.jit(guide, static_argnames="learned_variance")
limit = jax.jit(within_interval, static_argnames=("low", "high"))


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_guidance_of_one_prompt():
  u, c = predictions = draw(2, 3, 4, 4, 2)
  for w, expected in ((0.0, u), (1.0, c), (4.0, u + 4 * (c - u)), (1.35, 1.35 * c - 0.35 * u)):
    np.testing.assert_allclose(mix(predictions, jnp.array([w])), expected, atol=1e-5)


def test_guidance_of_several_prompts():
  u, a, b = predictions = draw(3, 2, 4, 4, 2)
  np.testing.assert_allclose(mix(predictions, jnp.array([2.0, 0.5])), u + 2 * (a - u) + 0.5 * (b - u), atol=1e-5)
  # StyleDrop's two lambdas, u + l1 (a - u) + l2 (b - a), are a combination of the same form.
  np.testing.assert_allclose(mix(predictions, jnp.array([2.0 - 0.5, 0.5])), u + 2 * (a - u) + 0.5 * (b - a), atol=1e-5)


def test_each_image_may_have_its_own_weight():
  predictions = draw(2, 3, 4, 4, 2)
  found = mix(predictions, jnp.array([[0.0, 1.0, 7.0]]))
  for i, w in enumerate((0.0, 1.0, 7.0)):
    np.testing.assert_allclose(found[i], mix(predictions, jnp.array([w]))[i], atol=1e-6)


def test_a_single_branch_is_not_guided():
  predictions = draw(1, 3, 4, 4, 2)
  np.testing.assert_array_equal(mix(predictions, jnp.zeros(0)), predictions[0])


def test_guidance_of_v_and_of_x0_are_equal():
  schedule, t = Cosine(), jnp.array([0.2, 0.5, 0.8])
  x_t, predictions, weights = draw(3, 4, 4, 2), draw(2, 3, 4, 4, 2, seed=1), jnp.array([3.0])

  @jax.jit
  def orders(x_t, predictions):
    x0 = jnp.stack([process.convert(branch, x_t, t, schedule, "v", "x0") for branch in predictions])
    return guide(x0, weights), process.convert(guide(predictions, weights), x_t, t, schedule, "v", "x0")

  np.testing.assert_allclose(*orders(x_t, predictions), atol=1e-5)


def test_the_learned_variance_is_that_of_the_last_branch():
  predictions = draw(3, 2, 4, 4, 6)
  weights = jnp.array([3.0, -1.0])
  found = mix(predictions, weights, learned_variance=True)
  np.testing.assert_array_equal(found[..., :3], mix(predictions[..., :3], weights))
  np.testing.assert_array_equal(found[..., 3:], predictions[2, ..., 3:])


def test_guidance_within_an_interval():
  t = jnp.array([0.2, 0.20001, 0.5, 0.8, 0.80001])
  predictions = draw(2, 5, 4, 4, 2)
  weights = limit(jnp.array([7.0]), t, 0.2, 0.8)
  np.testing.assert_array_equal(weights, [[1, 7, 7, 7, 1]])
  np.testing.assert_allclose(mix(predictions, weights)[4], predictions[1, 4], atol=1e-6)
  predictions = draw(3, 5, 4, 4, 2)
  mixed = mix(predictions, limit(jnp.array([7.0, 2.0]), t, 0.2, 0.8))
  np.testing.assert_allclose(mixed[0], (predictions[1, 0] + predictions[2, 0]) / 2, atol=1e-6)
  np.testing.assert_allclose(mixed[2], mix(predictions, jnp.array([7.0, 2.0]))[2], atol=1e-6)


def test_static_thresholding_clips():
  x0 = 3 * draw(2, 4, 4, 3)
  np.testing.assert_array_equal(static_threshold(jnp.asarray(x0)), np.clip(x0, -1, 1))


@pytest.mark.parametrize(("ratio", "maximum"), [(0.995, np.inf), (0.95, 1.5), (0.5, np.inf), (0.95, 1.0)])
def test_dynamic_thresholding_is_a_percentile_per_image(ratio, maximum):
  x0 = np.float32([0.1, 0.7, 2]).reshape(3, 1, 1, 1) * draw(3, 5, 5, 3)
  found = jax.jit(lambda x0: dynamic_threshold(x0, ratio, maximum))(x0)
  for thresholded, image in zip(found, np.float64(x0), strict=True):
    s = np.clip(np.percentile(np.abs(image), 100 * ratio), 1, maximum)
    np.testing.assert_allclose(thresholded, np.clip(image, -s, s) / s, atol=1e-6)
  np.testing.assert_array_equal(found[0], x0[0])  # in range, unchanged


@pytest.mark.parametrize("shape", [(2,), (3, 3), (2, 4), (3, 1)])
def test_weights_of_a_wrong_shape(shape):
  with pytest.raises(ValueError, match=r"4 branches of 2 images need weights of shape \(3,\) or \(3, 2\), not"):
    guide(jnp.zeros((4, 2, 4, 4, 1)), jnp.ones(shape))


def test_bad_inputs():
  with pytest.raises(ValueError, match="needs low < high"):
    within_interval(jnp.ones(1), jnp.ones(1), 0.8, 0.2)
  with pytest.raises(ValueError, match="from 0 to 1, not 99.5"):
    dynamic_threshold(jnp.zeros((1, 2, 2, 1)), 99.5)
  with pytest.raises(ValueError, match="1 or more, not 0.5"):
    dynamic_threshold(jnp.zeros((1, 2, 2, 1)), maximum=0.5)
