"""What goes into self-attentions: recorded under jit, remat, loops, vmap and gradients."""

import functools

from flax import linen as nn
from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import theta as thetas
from dreamjax.models import latent_unet, muse
from dreamjax.theta import LoRA, record

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiled quickly, not well
rng = np.random.default_rng(0)
TEXT = jnp.asarray(rng.standard_normal((2, 5, 6), np.float32))
UNET = latent_unet.LatentUNet(
  widths=(8, 16), blocks=1, attention=(False, True), depth=(1, 2), heads=(2, 2), text_width=6, groups=4
)
NOISY = (jnp.asarray(rng.standard_normal((2, 4, 4, 4), np.float32)), jnp.array([3.0, 977.0]), TEXT)
MUSE = muse.Muse(
  side=4, codebook=12, width=16, heads=2, mlp=24, depth=2, text_width=6, low_side=2, low_depth=1, low_codebook=10
)
MASKED = (
  jnp.asarray(rng.integers(0, 13, (2, 16)), jnp.int32), TEXT, jnp.ones((2, 5), bool),
  jnp.asarray(rng.integers(0, 10, (2, 4)), jnp.int32),
)  # fmt: skip


def filled(module, *inputs):
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), jnp.float32), shapes)


def test_of_a_u_net_they_are_the_normed_hidden_states(moved):
  params = filled(UNET, *NOISY)
  theta = moved(LoRA.init(jax.random.key(0), params, 2, pattern="(self|cross)/(query|value)$"))
  out, features = jit(lambda theta: record(UNET, params, theta, *NOISY))(theta)
  blocks = ("down_1/transformer_0", "middle_0/transformer_0", "up_0/transformer_0", "up_0/transformer_1")
  assert set(features) == {f"{block}/layer_{i}/self" for block in blocks for i in range(2)}
  assert {path: x.shape for path, x in features.items()} == dict.fromkeys(features, (2, 4, 16))
  wanted, state = thetas.apply(
    UNET, params, theta, *NOISY, capture_intermediates=lambda module, _: module.name == "norm_self"
  )
  norms = flatten_dict(state["intermediates"], sep="/")
  np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-4)
  for path, feature in features.items():
    np.testing.assert_allclose(feature, norms[f"{path.removesuffix('self')}norm_self/__call__"][0], atol=1e-4)


def test_of_muse_they_are_the_residual_stream():
  params = filled(MUSE, *MASKED)
  _, features = jit(lambda params: record(MUSE, params, None, *MASKED))(params)
  assert set(features) == {f"{layer}/self_attention" for layer in ("low_layer_0", "layer_0", "layer_1")}
  assert features["low_layer_0/self_attention"].shape == (2, 4, 16)
  _, state = MUSE.apply({"params": params}, *MASKED, capture_intermediates=lambda module, _: module.name == "mlp")
  np.testing.assert_allclose(
    features["layer_1/self_attention"], state["intermediates"]["layer_0"]["mlp"]["__call__"][0], rtol=1e-4, atol=1e-4
  )


def test_remat_loops_vmap_and_gradients_change_nothing(moved):
  params = filled(MUSE, *MASKED)
  theta = moved(LoRA.init(jax.random.key(0), params, 2, pattern="attention/(query|value)$"))
  both = thetas.stack([theta, jax.tree.map(jnp.zeros_like, theta)])

  def loss(theta, module):
    out, features = record(module, params, theta, *MASKED)
    return jnp.mean(out**2) + sum(jnp.mean(x**2) for x in features.values()), features

  plain, other = (
    jit(jax.vmap(jax.value_and_grad(functools.partial(loss, module=module), has_aux=True)))(both)
    for module in (MUSE, MUSE.clone(scan=True, remat="all"))
  )
  assert jax.tree.structure(plain) == jax.tree.structure(other)
  for a, b in zip(*map(jax.tree.leaves, (plain, other)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * (1 + np.abs(a).max()))
  (_, features), slopes = plain
  last = features["layer_1/self_attention"]
  assert last.shape == (2, 2, 16, 16) and np.abs(last[0] - last[1]).max() > 1e-3
  assert all(np.abs(x[0]).max() > 0 for x in jax.tree.leaves(slopes))


class Attending(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + nn.Dense(x.shape[-1], name="self")(x), None


class Loop(nn.Module):
  collections: tuple

  @nn.compact
  def __call__(self, x):
    axes = dict.fromkeys(self.collections, 0)
    return nn.scan(Attending, variable_axes=axes, split_rngs={"params": True}, length=2)(name="layers")(x, None)[0]


@pytest.mark.parametrize("collection", [True, "params"])
def test_a_loop_that_cannot_be_written_out_is_refused(collection):
  x, module = jnp.ones((2, 3, 4)), Loop((collection,))
  params = module.init(jax.random.key(0), x)["params"]
  with pytest.raises(ValueError, match="the input of layers/self cannot be recorded inside of a loop"):
    record(module, params, None, x)


def test_a_network_without_self_attention_is_refused(make):
  module, params, x = make("convnet")
  with pytest.raises(ValueError, match="ConvNet has no self-attention: no module named self or self_attention"):
    record(module, params, None, x)
