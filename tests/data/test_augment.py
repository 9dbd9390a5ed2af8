import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.data.augment import Augment

STILL = {"scale": (1.0, 1.0), "flip": False, "blur": 1.0, "light": 0.0, "noise": 0.0}


@pytest.fixture(scope="module")
def images():
  return jax.random.uniform(jax.random.key(0), (8, 16, 16, 3), minval=-1.0)


def test_nothing_changes_where_nothing_may(images):
  np.testing.assert_allclose(Augment(**STILL)(jax.random.key(1), images), images, atol=1e-6)


def test_flips_mirror_some_images_and_leave_the_others(images):
  out = np.asarray(Augment(**STILL | {"flip": True})(jax.random.key(1), images))
  kept = [np.allclose(a, b, atol=1e-6) for a, b in zip(out, images, strict=True)]
  flipped = [np.allclose(a, b[:, ::-1], atol=1e-6) for a, b in zip(out, np.asarray(images), strict=True)]
  assert all(k != f for k, f in zip(kept, flipped, strict=True)) and any(kept) and any(flipped)


def test_a_crop_magnifies_a_ramp_without_bending_it():
  ramp = jnp.broadcast_to(jnp.linspace(-0.9, 0.9, 32)[None, None, :, None], (4, 32, 32, 3))
  out = np.asarray(Augment(**STILL | {"scale": (0.5, 0.5)})(jax.random.key(2), ramp))[:, 16, 2:-2, 0]
  steps = np.diff(out, axis=1)
  np.testing.assert_allclose(steps, 0.5 * 1.8 / 31, atol=1e-5)
  assert len(set(out[:, 0].round(3).tolist())) == 4  # each image has a crop of its own


def test_blur_keeps_the_mean_of_a_constant_and_lessens_contrast(images):
  flat = jnp.full((2, 16, 16, 3), 0.3)
  blur = Augment(**STILL | {"blur": 3.0})
  np.testing.assert_allclose(blur(jax.random.key(3), flat), flat, atol=1e-6)
  assert np.std(blur(jax.random.key(3), images)) < 0.9 * np.std(images)


def test_the_result_is_the_keys_alone_and_stays_in_range(images):
  augment = Augment()
  one, same, other = (augment(jax.random.key(seed), images) for seed in (4, 4, 5))
  np.testing.assert_array_equal(one, same)
  assert not np.allclose(one, other) and float(jnp.abs(one).max()) <= 1.0
