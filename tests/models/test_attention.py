"""Attention."""

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.models.attention import attend


def draw(*shapes):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]


def test_it_is_what_jax_calls_attention():
  query, key, value, bias = draw((2, 5, 3, 4), (2, 6, 3, 4), (2, 6, 3, 4), (1, 3, 5, 6))
  mask = jnp.asarray(np.random.default_rng(1).random((2, 1, 5, 6)) < 0.7)
  np.testing.assert_allclose(attend(query, key, value), jax.nn.dot_product_attention(query, key, value), atol=1e-5)
  ours = attend(query, key, value, scale=2.0, bias=bias, mask=mask)
  theirs = jax.nn.dot_product_attention(query, key, value, bias, mask, scale=2.0)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_values_may_have_another_width():
  query, key, value = draw((2, 5, 3, 4), (2, 6, 3, 4), (2, 6, 3, 7))
  whole = attend(query, key, value)
  np.testing.assert_allclose(whole[..., :2], attend(query, key, value[..., :2]), atol=1e-6)


def test_a_query_that_may_look_nowhere_looks_everywhere():
  query, key, value = draw((1, 2, 1, 4), (1, 3, 1, 4), (1, 3, 1, 4))
  result = attend(query, key, value, mask=jnp.zeros((1, 1, 1, 3), bool))
  np.testing.assert_allclose(result, np.broadcast_to(value.mean(axis=1, keepdims=True), result.shape), atol=1e-6)


def test_the_softmax_is_in_float32_whatever_goes_in():
  # The logits 16 and 16.05 are the same number in bfloat16.
  query = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
  key = jnp.array([[16, 0], [16, 0.05]], jnp.bfloat16).reshape(1, 2, 1, 2)
  value = jnp.array([-1, 1], jnp.bfloat16).reshape(1, 2, 1, 1)
  result = attend(query, key, value, scale=1.0)
  assert result.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(result.item()), np.tanh(0.025), atol=0.005)
