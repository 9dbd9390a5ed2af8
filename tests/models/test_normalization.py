"""Our group norm compared with flax's."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models.normalization import GroupNorm


def variables(channels):
  rng = np.random.default_rng(1)
  return {
    "params": {
      "scale": rng.uniform(0.5, 2, channels).astype(np.float32),
      "bias": rng.standard_normal(channels, np.float32),
    }
  }


@pytest.mark.parametrize("shape", [(2, 4, 6, 12), (2, 5, 12)])
def test_values_and_gradients_equal_flax(shape):
  x, weights = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
  x = 3 * x + 5
  ours, theirs = GroupNorm(4), nn.GroupNorm(4, epsilon=1e-5, use_fast_variance=False)

  def loss(module):
    return jax.jit(jax.value_and_grad(lambda p, x: jnp.sum(module.apply(p, x) * weights), argnums=(0, 1)))

  found, expected = (loss(module)(variables(12), x) for module in (ours, theirs))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, expected)


def test_masked_positions_have_no_effect():
  x = jax.random.normal(jax.random.key(0), (2, 5, 8))
  mask = jnp.arange(5)[None] < jnp.array([3, 5])[:, None]
  norm, params = GroupNorm(2), variables(8)
  found = norm.apply(params, x, mask)
  np.testing.assert_allclose(found[0, :3], norm.apply(params, x[:1, :3])[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found[1], norm.apply(params, x[1:])[0], rtol=1e-5, atol=1e-6)


def test_groups_must_divide_the_channels():
  with pytest.raises(ValueError, match="10 channels cannot be divided into 4 groups"):
    GroupNorm(4).init(jax.random.key(0), jnp.zeros((1, 2, 10)))
