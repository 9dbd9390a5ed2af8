"""Images at other sizes."""

import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.resolution import downsample, upsample


def draw(*shape):
  return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_smaller_images_are_means_of_blocks():
  images = draw(2, 6, 6, 3)
  small = downsample(jnp.asarray(images), 2)
  np.testing.assert_allclose(small[1, 0, 1], images[1, :3, 3:].mean((0, 1)), rtol=1e-5)
  np.testing.assert_array_equal(downsample(jnp.asarray(images), 6), images)


def test_sides_that_do_not_divide_keep_the_mean_of_what_is_even():
  images = jnp.full((1, 10, 10, 3), 0.3)
  np.testing.assert_allclose(downsample(images, 4), np.full((1, 4, 4, 3), 0.3), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 6, 3), (1, 4, 4, 3)])
def test_what_cannot_be_made_smaller_is_refused(shape):
  with pytest.raises(ValueError, match="pixels or more are made smaller"):
    downsample(jnp.zeros(shape), 5)


def test_larger_images_are_those_of_torch_with_aligned_corners():
  torch = pytest.importorskip("torch")
  images = draw(2, 5, 5, 3)
  theirs = torch.nn.functional.interpolate(
    torch.tensor(images.transpose(0, 3, 1, 2)), size=(13, 13), mode="bilinear", align_corners=True
  )
  np.testing.assert_allclose(upsample(jnp.asarray(images), 13), theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_a_slope_stays_a_slope():
  slope = jnp.broadcast_to(jnp.linspace(0.0, 1.0, 4)[None, :, None, None], (1, 4, 4, 1))
  np.testing.assert_allclose(upsample(slope, 10)[0, :, 5, 0], np.linspace(0, 1, 10), atol=1e-6)
