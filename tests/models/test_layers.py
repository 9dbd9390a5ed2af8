"""Layers as a loop, which compute the same as written out, with thetas and without, in a shorter program; and taps."""

import functools

from flax import linen as nn
from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models import latent_unet, muse, uvit
from dreamjax.models.taps import Tap
from dreamjax.theta import Adapters, LoRA, StackedThetas, apply

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiled quickly, not well
rng = np.random.default_rng(0)
TEXT, MASK = jnp.asarray(rng.standard_normal((2, 5, 6), np.float32)), jnp.arange(5)[None] < jnp.array([[5], [2]])
MANY, FEW = (jnp.asarray(rng.integers(0, 10, (2, n)), jnp.int32) for n in (16, 4))

MUSE = muse.Muse(side=4, codebook=12, width=16, heads=2, mlp=24, depth=3, text_width=6, low_side=2, low_depth=2,
                 low_codebook=10)  # fmt: skip
UVIT = uvit.UViT(
  side=4, codebook=11, vocab=14, token_width=10, block_width=12, block_heads=3, blocks=1, width=16, heads=2, mlp=20,
  depth=3, text_width=6, pooled_width=5, numbers=3, number_width=8,
)  # fmt: skip
UNET = latent_unet.LatentUNet(
  widths=(8, 16), blocks=1, attention=(False, True), depth=(1, 3), heads=(2, 2), text_width=6, groups=4
)
CASES = {
  "muse": (MUSE, (MANY, TEXT, MASK, FEW)),
  "uvit": (UVIT, (MANY, TEXT, None, jnp.ones((2, 5)), jnp.ones((2, 3)))),
  "unet": (UNET, (jnp.asarray(rng.standard_normal((2, 4, 4, 4), np.float32)), jnp.array([3.0, 977.0]), TEXT)),
}


def filled(tree):
  """The same tree with random numbers."""
  return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), tree)


@pytest.mark.parametrize("name", CASES)
def test_a_loop_computes_and_learns_the_same(name):
  module, inputs = CASES[name]
  loop = module.clone(scan=True, remat="cheap")
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  assert jax.eval_shape(loop.init, jax.random.key(0), *inputs)["params"] == shapes
  params, key = filled(shapes), jax.random.key(1)
  if name == "unet":
    theta = filled(LoRA.init(key, params, 2, pattern="(query|value)$"))
  else:
    theta = filled(Adapters.init(key, params, 3, module.adapted))

  def loss(params, theta, module):
    return jnp.mean(apply(module, params, theta, *inputs) ** 2)

  plain, looped = (
    jit(jax.value_and_grad(functools.partial(loss, module=one), argnums=(0, 1)))(params, theta)
    for one in (module, loop)
  )
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(looped), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * (1 + np.abs(a).max()))


def test_branches_and_thetas_of_some_layers_go_through_a_loop():
  module, inputs = CASES["muse"]
  params = filled(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])
  adapters = filled(Adapters.init(jax.random.key(1), params, 3, module.adapted))
  some = filled(LoRA.init(jax.random.key(2), params, 2, pattern="^layer_1/self_attention/query$"))
  for theta in (adapters, some):
    branches = StackedThetas.of(params, [None, theta])
    draw = lambda module: jax.vmap(lambda branch: apply(module, params, branch, *inputs))(branches)  # noqa: E731, B023
    plain, looped = (jit(functools.partial(draw, one))() for one in (module, module.clone(scan=True)))
    assert np.abs(plain[1] - plain[0]).max() > 1e-3
    np.testing.assert_allclose(looped, plain, rtol=1e-5, atol=1e-5)


def test_the_program_of_a_loop_does_not_grow_with_its_depth():
  def grows(scan):
    modules = [MUSE.clone(depth=depth, scan=scan) for depth in (3, 9)]
    inputs = CASES["muse"][1]
    shapes = [jax.eval_shape(module.init, jax.random.key(0), *inputs) for module in modules]
    programs = [jax.jit(module.apply).lower(own, *inputs) for module, own in zip(modules, shapes, strict=True)]
    few, many = (len(program.as_text("hlo").splitlines()) for program in programs)
    return many - few

  assert grows(scan=True) < 0.2 * grows(scan=False)


# The layers that have a tap, and their parameters, by the names that checkpoints know.
ATTENTION = ["key", "norm", "out", "query", "value"]
LAYERS = [f"layer_{i}" for i in range(3)]
LEVELS = ("down_1/transformer_0", "middle_0/transformer_0", "up_0/transformer_0", "up_0/transformer_1")
OWN = {"self_attention": ATTENTION, "cross_attention": ATTENTION, "mlp": ["hidden", "norm", "out"]}
UNETS = {"self": ["key", "out", "query", "value"], "cross": ["key", "out", "query", "value"]}
TAPPED = {
  "muse": (LAYERS, (2, 16, 16), {f"{part}/{name}" for part, names in OWN.items() for name in names}),
  "uvit": (LAYERS, (2, 16, 16), {f"{part}/{name}" for part, names in OWN.items() for name in ["film", *names]}),
  "unet": (
    [f"{level}/{layer}" for level in LEVELS for layer in LAYERS],
    (2, 4, 16),
    {f"{part}/{name}" for part, names in UNETS.items() for name in names}
    | {"norm_self", "norm_cross", "norm_mlp", "hidden", "out"},
  ),
}


def at_taps(calls, next_function, args, kwargs, context):
  """Writes down the inputs of taps, and adds to them what the collection "theta" holds there."""
  y = next_function(*args, **kwargs)
  if not isinstance(context.module, Tap) or context.method_name != "__call__":
    return y
  calls.append(("/".join(context.module.path), args[0].shape))
  return y + context.module.get_variable("theta", "shift") if context.module.has_variable("theta", "shift") else y


@pytest.mark.parametrize("name", CASES)
def test_each_layer_has_a_tap_and_parameters_keep_their_names(name):
  (module, inputs), (layers, shape, names) = CASES[name], TAPPED[name]
  calls = []
  with nn.intercept_methods(functools.partial(at_taps, calls)):
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  assert calls == [(f"{layer}/tap", shape) for layer in layers]
  paths = {"/".join(path[:-1]) for path in flatten_dict(params)}
  assert not [path for path in paths if "tap" in path]
  for layer in layers:
    assert {path.removeprefix(f"{layer}/") for path in paths if path.startswith(f"{layer}/")} == names


def test_what_is_added_at_taps_goes_through_a_loop_and_rematerialised_layers():
  module, inputs = CASES["muse"]
  params = filled(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])
  theta = {layer: {"tap": {"shift": jnp.full((1, 1, 16), 0.1 * i)}} for i, layer in enumerate(LAYERS, 1)}

  def loss(theta, module):
    with nn.intercept_methods(functools.partial(at_taps, [])):
      return jnp.mean(module.apply({"params": params, "theta": theta}, *inputs) ** 2)

  modules = [module, module.clone(scan=True, remat="cheap")]
  plain, looped = (jit(jax.value_and_grad(functools.partial(loss, module=one)))(theta) for one in modules)
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(looped), strict=True):
    assert np.any(a)
    np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_a_tap_is_at_the_residual_stream_between_self_and_cross_attention():
  layer = latent_unet.Layer(2, jnp.float32)
  x = jnp.asarray(rng.standard_normal((2, 7, 16), np.float32))
  params = filled(jax.eval_shape(layer.init, jax.random.key(0), x, TEXT)["params"])
  calls = []

  def record(next_function, args, kwargs, context):
    y = next_function(*args, **kwargs)
    calls.append((context.module.name, args[0], y))
    return y

  with nn.intercept_methods(record):
    layer.apply({"params": params}, x, TEXT)
  names = [name for name, *_ in calls]
  assert names.index("self") < names.index("tap") < names.index("norm_cross") < names.index("cross")
  taken, given = ({name: call[i] for name, *call in calls} for i in (0, 1))
  np.testing.assert_allclose(taken["tap"], x + given["self"], atol=1e-6)
  np.testing.assert_array_equal(taken["norm_cross"], given["tap"])
