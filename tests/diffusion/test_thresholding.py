"""Thresholding compared with numpy's percentile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.thresholding import dynamic_threshold, static_threshold


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_static_thresholding_clips():
  x0 = 3 * draw(2, 4, 4, 3)
  np.testing.assert_array_equal(static_threshold(jnp.asarray(x0)), np.clip(x0, -1, 1))


@pytest.mark.parametrize(("percentile", "max_threshold"), [(0.995, np.inf), (0.95, 1.5), (0.5, np.inf), (0.95, 1.0)])
def test_dynamic_thresholding_is_a_percentile_per_image(percentile, max_threshold):
  x0 = np.float32([0.1, 0.7, 2]).reshape(3, 1, 1, 1) * draw(3, 5, 5, 3)
  found = jax.jit(lambda x0: dynamic_threshold(x0, percentile, max_threshold))(x0)
  for thresholded, image in zip(found, np.float64(x0), strict=True):
    s = np.clip(np.percentile(np.abs(image), 100 * percentile), 1, max_threshold)
    np.testing.assert_allclose(thresholded, np.clip(image, -s, s) / s, atol=1e-6)
  np.testing.assert_array_equal(found[0], x0[0])  # in range, unchanged


def test_bad_inputs():
  with pytest.raises(ValueError, match="from 0 to 1, not 99.5"):
    dynamic_threshold(jnp.zeros((1, 2, 2, 1)), 99.5)
  with pytest.raises(ValueError, match="1 or more, not 0.5"):
    dynamic_threshold(jnp.zeros((1, 2, 2, 1)), max_threshold=0.5)
