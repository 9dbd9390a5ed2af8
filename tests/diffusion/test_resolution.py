"""Downsampling and upsampling of images."""

import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.resolution import downsample, upsample


def draw(*shape):
  return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_downsampling_averages_blocks():
  images = draw(2, 6, 6, 3)
  small = downsample(jnp.asarray(images), 2)
  np.testing.assert_allclose(small[1, 0, 1], images[1, :3, 3:].mean((0, 1)), rtol=1e-5)
  np.testing.assert_array_equal(downsample(jnp.asarray(images), 6), images)


def test_downsampling_by_a_fraction_keeps_constant_images():
  images = jnp.full((1, 10, 10, 3), 0.3)
  np.testing.assert_allclose(downsample(images, 4), np.full((1, 4, 4, 3), 0.3), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 6, 3), (1, 4, 4, 3)])
def test_images_that_cannot_be_downsampled(shape):
  with pytest.raises(ValueError, match="only square images of at least 5 pixels"):
    downsample(jnp.zeros(shape), 5)


def test_upsampling_equals_torch_with_aligned_corners():
  torch = pytest.importorskip("torch")
  images = draw(2, 5, 5, 3)
  theirs = torch.nn.functional.interpolate(
    torch.tensor(images.transpose(0, 3, 1, 2)), size=(13, 13), mode="bilinear", align_corners=True
  )
  np.testing.assert_allclose(upsample(jnp.asarray(images), 13), theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_upsampling_keeps_linear_gradients():
  slope = jnp.broadcast_to(jnp.linspace(0.0, 1.0, 4)[None, :, None, None], (1, 4, 4, 1))
  np.testing.assert_allclose(upsample(slope, 10)[0, :, 5, 0], np.linspace(0, 1, 10), atol=1e-6)
