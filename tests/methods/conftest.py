"""Rows for trainings of the tiny cascade."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.data.photos import Batch


@pytest.fixture(scope="session")
def make_rows(tiny_cascade):
  """make_rows(side, count, **conditioning) -> Batch, of random images and two prompts."""
  generator, params = tiny_cascade
  texts = jax.device_get(generator.encode(params, ["a qx dog", "a dog"]))

  def make(side, count, **conditioning):
    image = np.random.default_rng(side).uniform(-1, 1, (count, side, side, 3)).astype(np.float32)
    prompt = jax.tree.map(lambda x: x[np.arange(count) % 2], texts)
    return jax.tree.map(jnp.asarray, Batch(image, prompt, np.ones(count, np.float32), conditioning))

  return make
