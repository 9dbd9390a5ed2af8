"""Attention."""

import functools
import re
import types

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models import attention
from dreamjax.models.attention import LOG_ZERO, LONG, attend, log_weights, splash
from dreamjax.models.layers import with_remat
from dreamjax.parallel.sharding import make_mesh
from dreamjax.train import topologies


def draw(*shapes):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]


def dense(query, key, value, key_bias, scale):
  """Attention of one's own in float32, with the logits of all pairs."""
  query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
  logits = scale * jnp.einsum("bnkd,bmkd->bknm", query, key) + key_bias[:, None, None]
  return jnp.einsum("bknm,bmke->bnke", jax.nn.softmax(logits, axis=-1), value)


def gradients(function, upstream, *inputs):
  loss = lambda *inputs: (function(*inputs).astype(jnp.float32) * upstream).sum()  # noqa: E731
  return jax.jit(jax.grad(loss, argnums=tuple(range(len(inputs)))))(*inputs)


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


@pytest.mark.parametrize("length", [5, LONG])
def test_a_query_that_may_attend_to_no_key_attends_to_all(length):
  query, key, value = draw((2, length, 1, 4), (2, 3, 1, 4), (2, 3, 1, 4))
  mask = jnp.array([[False] * 3, [True, False, True]])
  found, free = attend(query, key, value, mask=mask[:, None, None]), attend(query, key, value)
  np.testing.assert_allclose(found[0], free[0], atol=3e-3)
  assert np.abs(found[1] - free[1]).max() > 0.1
  each = jnp.broadcast_to(mask[:, None, None], (2, 1, length, 3))
  np.testing.assert_allclose(attend(query, key, value, mask=each)[1], found[1], atol=1e-6)


def test_the_softmax_is_in_float32_for_inputs_of_any_dtype():
  # The logits 16 and 16.05 are the same number in bfloat16.
  query = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
  key = jnp.array([[16, 0], [16, 0.05]], jnp.bfloat16).reshape(1, 2, 1, 2)
  value = jnp.array([-1, 1], jnp.bfloat16).reshape(1, 2, 1, 1)
  result = attend(query, key, value, scale=1.0)
  assert result.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(result.item()), np.tanh(0.025), atol=0.005)


def test_log_weights_are_finite_and_so_are_their_gradients():
  weights = jnp.array([0.0, 1e-30, 1.0, 2.0])
  found, slopes = jax.vmap(jax.value_and_grad(lambda w: log_weights(w[None])[0]))(weights)
  np.testing.assert_allclose(found, [LOG_ZERO, np.log(1e-30), 0.0, np.log(2.0)], rtol=1e-6)
  np.testing.assert_allclose(slopes, [0.0, 1e30, 1.0, 0.5], rtol=1e-6)
  np.testing.assert_array_equal(log_weights(jnp.array([True, False])), [0.0, LOG_ZERO])


PATHS = {
  "dense": (60, attend),
  "chunked": (LONG, attend),
  "splash": (LONG, functools.partial(splash, interpret=True)),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("path", PATHS)
def test_references_weigh_as_much_as_their_keys_do(path, dtype):
  """An image's own tokens and those of two references, of 90 and 61, each with its weight in each example."""
  n, function = PATHS[path]
  shapes = (2, n, 2, 8), (2, n + 151, 2, 8), (2, n + 151, 2, 6), (2, n, 2, 6)
  *inputs, upstream = draw(*shapes)
  inputs = [x.astype(dtype) for x in inputs]
  mask = jnp.asarray(np.random.default_rng(1).random((2, 90)) < 0.5)
  first, second = jnp.array([[3.0], [0.7]]), jnp.array([[0.0], [1e-3]])
  weights = [jnp.ones((2, n)), jnp.where(mask, first, 0.0), jnp.broadcast_to(second, (2, 61))]
  key_bias = log_weights(jnp.concatenate(weights, axis=1))
  options = {"scale": 0.8}
  ours = lambda query, key, value, key_bias: function(query, key, value, key_bias=key_bias, **options)  # noqa: E731
  wanted = dense(*inputs, key_bias, **options)
  found = jax.jit(ours)(*inputs, key_bias)
  assert found.dtype == dtype
  tolerance = 1e-5 if dtype == jnp.float32 else 8 * float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=tolerance)
  ones = jnp.ones_like(key_bias)
  if path == "splash":
    assert np.abs(wanted - dense(*inputs, 0 * ones, **options)).max() > 0.1  # what was compared depends on the bias
  wanted = gradients(functools.partial(dense, **options), upstream, *inputs, key_bias)
  found = gradients(ours, upstream, *inputs, key_bias)
  for one, other in zip(found, wanted, strict=True):
    assert one.dtype == other.dtype
    one, other = one.astype(jnp.float32), other.astype(jnp.float32)
    np.testing.assert_allclose(one, other, atol=2 * tolerance * np.abs(other).max())
  nothing = key_bias == LOG_ZERO
  for x in found[1:3]:
    assert not np.any(np.where(nothing[..., None, None], x.astype(jnp.float32), 0.0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("path", ["chunked", "splash"])
def test_a_bias_is_as_exact_as_float32_in_half_precision(path, dtype):
  """In bfloat16 the bias log(1e-4) + 100 would be wrong by up to a quarter, and so would the weights."""
  n, function = PATHS[path]
  query = jnp.zeros((1, n, 1, 8), dtype)
  value = jnp.concatenate([jnp.zeros((1, n, 1, 1)), jnp.ones((1, n, 1, 1))], axis=1).astype(dtype)
  weights = jnp.concatenate([jnp.ones((1, n)), jnp.full((1, n), 1e-2)], axis=1)
  found = jax.jit(functools.partial(function, scale=1.0))(
    query, jnp.ones((1, 2 * n, 1, 8), dtype), value, key_bias=jnp.log(weights) + 100.3
  )
  np.testing.assert_allclose(found.astype(jnp.float32), 1e-2 / 1.01, rtol=float(jnp.finfo(dtype).eps) + 1e-5)


def test_a_bias_below_all_that_half_precision_holds_is_log_zero():
  query, key, value = (x.astype(jnp.float16) for x in draw((1, LONG, 1, 8), (1, 5, 1, 8), (1, 5, 1, 8)))
  found = attend(query, key, value, key_bias=jnp.array([[0.0, -np.inf, -1e30, -1e6, 0.0]]))
  wanted = attend(query, key[:, ::4], value[:, ::4])
  np.testing.assert_allclose(found.astype(jnp.float32), wanted.astype(jnp.float32), atol=2e-3)


def test_on_cpus_there_are_no_logits_of_all_pairs():
  x, y = (jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32) for length in (LONG, LONG + 77))
  bias = jax.ShapeDtypeStruct((1, LONG + 77), jnp.float32)
  loss = lambda x, y, bias: attend(x, y, y, key_bias=bias, mask=jnp.ones((1, 1, 1, LONG + 77), bool)).sum()  # noqa: E731
  text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, y, bias).compile().as_text()
  assert re.search(r"\[1,2,128,1101\]", text) and not re.search(r"1024,1101\]", text)


def test_it_is_mapped_over_like_any_function():
  query, key, value, key_bias = draw((3, 1, LONG, 1, 8), (1, 40, 1, 8), (1, 40, 1, 8), (3, 1, 40))
  one = lambda query, key_bias: attend(query, key, value, key_bias=key_bias)  # noqa: E731
  wanted = jnp.stack([one(*each) for each in zip(query, key_bias, strict=True)])
  np.testing.assert_allclose(jax.jit(jax.vmap(one))(query, key_bias), wanted, atol=1e-5)


@pytest.mark.parametrize("width", [24, 257])
def test_the_kernel_of_tpus_computes_the_same_and_so_do_its_gradients(width):
  query, key, value, upstream = draw(*[(1, LONG, 2, width)] * 4)
  options = {"scale": 1.5 * width**-0.5}
  both = [functools.partial(function, **options) for function in (attend, functools.partial(splash, interpret=True))]
  wanted, found = (function(query, key, value) for function in both)
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  for one, other in zip(*(gradients(function, upstream, query, key, value) for function in both), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_kernel_of_tpus_takes_any_number_of_tokens():
  query, key, value, upstream = draw((1, LONG + 30, 1, 8), *[(1, LONG + 77, 1, 8)] * 2, (1, LONG + 30, 1, 8))
  none = jnp.full((1, LONG + 77), LOG_ZERO)  # of weight zero, all of them, and still more than padding
  for key_bias, tolerance in ((None, 1e-5), (none, 2e-3)):
    inner = functools.partial(splash, scale=0.4, interpret=True, key_bias=key_bias)
    np.testing.assert_allclose(inner(query, key, value), attend(query, key, value, scale=0.4), atol=tolerance)
  ours = gradients(functools.partial(splash, scale=0.4, interpret=True), upstream, query, key, value)
  theirs = gradients(functools.partial(attend, scale=0.4), upstream, query, key, value)
  for one, other in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
  ("n", "m", "kind", "kernels"),
  [
    (LONG, LONG, "", 2),
    (LONG, LONG, "mask", 2),
    (LONG, 2 * LONG + 77, "key_bias", 2),
    (LONG + 30, LONG + 77, "", 2),
    (LONG, LONG, "bias", 0),
    (LONG, 77, "mask", 0),
    (LONG // 2, LONG, "key_bias", 0),
  ],
)
def test_on_tpus_a_kernel_computes_what_is_long_and_has_no_bias_of_pairs(n, m, kind, kernels):
  x, y = (jax.ShapeDtypeStruct((8, length, 2, 24), jnp.bfloat16) for length in (n, m))
  options = {
    "mask": {"mask": jnp.ones((1, 1, 1, m), bool)},
    "bias": {"bias": jnp.ones((1, 1, n, m))},
    "key_bias": {"key_bias": jnp.ones((8, m))},
  }.get(kind, {})
  loss = lambda *inputs: attend(*inputs, **options).astype(jnp.float32).sum()  # noqa: E731
  gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
  for mesh in (make_mesh((2, 2, 2)), make_mesh((1, 1, 1))):
    with jax.set_mesh(mesh):
      text = gradient.trace(x, y, y).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == kernels
  assert "@tpu_custom_call" not in gradient.trace(x, y, y).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("width", [40, 64])
def test_compiled_for_tpus_there_are_no_logits_of_all_pairs(monkeypatch, width):
  pytest.importorskip("libtpu")
  jax.devices()  # reads the flags for CPUs, at which libtpu would stop
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  mesh = make_mesh((1, 1, 1), topologies.devices("v5e:2x2"))
  n, m, replicated = 4096, 3 * 4096 + 77, jax.NamedSharding(mesh, jax.P())
  x, y, key_bias = (
    jax.ShapeDtypeStruct(shape, dtype, sharding=replicated)
    for *shape, dtype in ((1, n, 8, width, jnp.bfloat16), (1, m, 8, width, jnp.bfloat16), (1, m, jnp.float32))
  )
  loss = lambda x, y, z, bias: attend(x, y, z, key_bias=bias).astype(jnp.float32).sum()  # noqa: E731
  with jax.set_mesh(mesh):
    load = topologies.load(jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(x, y, y, key_bias))
  assert load.temporaries < n * m * 2  # of one head in bfloat16; there are eight


@pytest.mark.parametrize(
  ("platform", "version", "capability", "dtype", "width", "plain", "masked"),
  [
    ("gpu", "cuda 12080", "9.0", jnp.bfloat16, 64, True, True),
    ("gpu", "cuda 12080", "8.0", jnp.float16, 40, True, True),
    ("gpu", "cuda 12080", "7.5", jnp.float16, 64, False, False),
    ("gpu", "cuda 12080", "9.0", jnp.float32, 64, False, False),
    ("gpu", "cuda 12080", "9.0", jnp.bfloat16, 128, True, False),
    ("gpu", "cuda 12080", "9.0", jnp.bfloat16, 160, False, False),
    ("gpu", "cuda 12080", "9.0", jnp.bfloat16, 20, False, True),
    ("gpu", "rocm 60200", "9.0", jnp.bfloat16, 64, False, False),
    ("cpu", "cpu", "", jnp.bfloat16, 64, False, False),
  ],
)
def test_on_gpus_cudnn_computes_what_it_can(monkeypatch, platform, version, capability, dtype, width, plain, masked):
  client = types.SimpleNamespace(platform_version=version)
  device = types.SimpleNamespace(platform=platform, client=client, compute_capability=capability)
  calls = []

  def cudnn(query, key, value, *, scale, implementation):
    assert query.shape == value.shape and key.shape == value.shape and query.shape[-1] % 8 == 0
    calls.append((query.shape[-1] > width, scale, implementation))
    return value

  monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
  monkeypatch.setattr(attention.jax, "devices", lambda: [device])
  x, mask = jax.ShapeDtypeStruct((1, LONG, 2, width), dtype), jnp.ones((1, 1, 1, LONG), bool)
  short = jax.ShapeDtypeStruct((1, LONG // 2, 2, width), dtype)
  jax.make_jaxpr(attend)(x, x, x)
  jax.make_jaxpr(attend)(short, short, short)
  assert calls == ([(False, width**-0.5, "cudnn")] if plain else [])
  calls.clear()
  jax.make_jaxpr(functools.partial(attend, mask=mask))(x, x, x)
  assert calls == ([(True, 1.0, "cudnn")] if masked else [])
  calls.clear()
  jax.make_jaxpr(functools.partial(attend, bias=jnp.ones((1, 1, LONG, LONG))))(x, x, x)
  assert not calls


@pytest.mark.parametrize(("remat", "times"), [("none", 1), ("cheap", 1), ("all", 2)])
def test_only_a_layer_that_keeps_nothing_computes_it_twice(remat, times):
  class Attends(nn.Module):
    @nn.compact
    def __call__(self, x):
      return attend(x, x, x)

  layer, x = with_remat(Attends, remat)(), jax.ShapeDtypeStruct((1, LONG, 1, 8), jnp.float32)
  gradient = jax.jit(jax.grad(lambda x: jnp.square(layer.apply({}, x)).sum()))
  with jax.set_mesh(make_mesh((1, 1, 1))):
    texts = {on: gradient.trace(x).lower(lowering_platforms=(on,)).as_text() for on in ("tpu", "cpu")}
  assert texts["tpu"].count("@tpu_custom_call") == times + 1  # the backward pass is one kernel
  assert texts["cpu"].count("stablehlo.exponential") == times + 1  # and computes the weights anew


def test_where_there_is_no_tpu_a_mesh_changes_nothing():
  inputs = draw(*[(2, LONG, 1, 8)] * 3)
  with jax.set_mesh(make_mesh((2, 1, 1))):
    found = jax.jit(attend)(*inputs)
  np.testing.assert_allclose(found, attend(*inputs), atol=1e-6)
