"""Attention."""

import functools
import types

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models import attention
from dreamjax.models.attention import LONG, attend, in_blocks
from dreamjax.models.layers import with_remat
from dreamjax.parallel.sharding import make_mesh


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


@pytest.mark.parametrize("width", [24, 257])
def test_block_by_block_it_is_the_same_and_so_are_its_gradients(width):
  query, key, value, upstream = draw(*[(1, LONG, 2, width)] * 4)

  def both(function):
    loss = lambda *inputs: (function(*inputs, scale=1.5 * width**-0.5) * upstream).sum()  # noqa: E731
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(query, key, value)

  wanted, found = both(attend), both(functools.partial(in_blocks, interpret=True))
  np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4)
  for one, other in zip(found[1], wanted[1], strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("length", "masked", "kernels"), [(LONG, False, 2), (LONG, True, 0), (LONG // 2, False, 0)])
def test_on_tpus_a_kernel_computes_what_is_long_and_without_a_mask(length, masked, kernels):
  x = jax.ShapeDtypeStruct((8, length, 2, 24), jnp.bfloat16)
  mask = jnp.ones((1, 1, 1, length), bool) if masked else None
  loss = lambda *inputs: attend(*inputs, mask=mask).astype(jnp.float32).sum()  # noqa: E731
  gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
  for mesh in (make_mesh((2, 2, 2)), make_mesh((1, 1, 1))):
    with jax.set_mesh(mesh):
      text = gradient.trace(x, x, x).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == kernels
  assert "@tpu_custom_call" not in gradient.trace(x, x, x).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(
  ("platform", "version", "capability", "dtype", "width", "asked"),
  [
    ("gpu", "cuda 12080", "9.0", jnp.bfloat16, 64, True),
    ("gpu", "cuda 12080", "8.0", jnp.float16, 40, True),
    ("gpu", "cuda 12080", "7.5", jnp.float16, 64, False),
    ("gpu", "cuda 12080", "9.0", jnp.float32, 64, False),
    ("gpu", "cuda 12080", "9.0", jnp.bfloat16, 160, False),
    ("gpu", "cuda 12080", "9.0", jnp.bfloat16, 20, False),
    ("gpu", "rocm 60200", "9.0", jnp.bfloat16, 64, False),
    ("cpu", "cpu", "", jnp.bfloat16, 64, False),
  ],
)
def test_on_gpus_cudnn_is_asked_for_what_it_knows(monkeypatch, platform, version, capability, dtype, width, asked):
  client = types.SimpleNamespace(platform_version=version)
  device = types.SimpleNamespace(platform=platform, client=client, compute_capability=capability)
  calls = []

  def cudnn(query, key, value, *, scale, implementation):
    calls.append((scale, implementation))
    return value

  monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
  monkeypatch.setattr(attention.jax, "devices", lambda: [device])
  x, mask = jax.ShapeDtypeStruct((1, LONG, 2, width), dtype), jnp.ones((1, 1, 1, LONG), bool)
  short = jax.ShapeDtypeStruct((1, LONG // 2, 2, width), dtype)
  jax.make_jaxpr(attend)(x, x, x)
  jax.make_jaxpr(attend)(short, short, short)
  jax.make_jaxpr(functools.partial(attend, mask=mask))(x, x, x)
  assert calls == ([(width**-0.5, "cudnn")] if asked else [])


@pytest.mark.parametrize(("remat", "times"), [("none", 1), ("cheap", 1), ("all", 2)])
def test_only_who_keeps_nothing_computes_it_twice(remat, times):
  class Looks(nn.Module):
    @nn.compact
    def __call__(self, x):
      return attend(x, x, x)

  looks, x = with_remat(Looks, remat)(), jax.ShapeDtypeStruct((1, LONG, 1, 8), jnp.float32)
  gradient = jax.jit(jax.grad(lambda x: jnp.square(looks.apply({}, x)).sum()))
  with jax.set_mesh(make_mesh((1, 1, 1))):
    texts = {on: gradient.trace(x).lower(lowering_platforms=(on,)).as_text() for on in ("tpu", "cpu")}
  assert texts["tpu"].count("@tpu_custom_call") == times + 1  # the way back is one kernel
  assert texts["cpu"].count("stablehlo.exponential") == times + 1  # and computes the weights anew


@pytest.mark.parametrize("masked", ["nothing", "some", "everything"])
def test_on_cpus_queries_take_turns_and_nothing_changes(masked):
  query, key, value, upstream = draw((2, LONG, 2, 8), (2, 90, 2, 8), (2, 90, 2, 8), (2, LONG, 2, 8))
  share = {"nothing": 1.0, "some": 0.5, "everything": 0.0}[masked]
  mask = jnp.asarray(np.random.default_rng(1).random((2, 1, 1, 90)) < share)

  def both(function, *masks):
    loss = lambda *inputs: (function(*inputs, *masks, scale=0.3) * upstream).sum()  # noqa: E731
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(query, key, value)

  ours = both(functools.partial(attend, mask=None if masked == "nothing" else mask))
  theirs = both(jax.nn.dot_product_attention, None, jnp.broadcast_to(mask, (2, 2, LONG, 90)))
  np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
  for one, other in zip(ours[1], theirs[1], strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_where_there_is_no_tpu_a_mesh_changes_nothing():
  inputs = draw(*[(2, LONG, 1, 8)] * 3)
  with jax.set_mesh(make_mesh((2, 1, 1))):
    found = jax.jit(attend)(*inputs)
  np.testing.assert_allclose(found, attend(*inputs), atol=1e-6)
