"""StyleDrop's adapters: their numbers, what they do to a transformer, and files of them."""

import math

from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import theta as thetas
from dreamjax.models import muse
from dreamjax.theta import Adapters, Base, Card, Full, LoRA, SoftPrompt, StackedThetas

MODULE = muse.Muse(
  side=4, codebook=12, width=16, heads=2, mlp=24, depth=2, text_width=6, low_side=2, low_depth=1, low_codebook=10
)
INPUTS = (
  jnp.asarray(np.random.default_rng(0).integers(0, 13, (2, 16)), jnp.int32),
  jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 6), np.float32)),
  jnp.ones((2, 5), bool),
  jnp.asarray(np.random.default_rng(2).integers(0, 10, (2, 4)), jnp.int32),
)


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(3)
  shapes = jax.eval_shape(MODULE.init, jax.random.key(0), *INPUTS)["params"]
  return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape, np.float32)), shapes)


def begin(params, shared, channels=3):
  return Adapters.init(jax.random.key(1), params, channels, MODULE.adapted, shared=shared)


@pytest.mark.parametrize(
  ("module", "channels", "shared", "count"),
  [(muse.MUSE_3B, 4, True, 229_760), (muse.MUSE_3B, 32, False, 12_582_912), (muse.MUSE_SR, 32, False, 6_291_456)],
)
def test_there_are_as_many_numbers_as_in_the_papers_table(module, channels, shared, count):
  side, low = module.side, [jnp.zeros((1, module.low_side**2), jnp.int32)] if module.low_side else []
  inputs = (jnp.zeros((1, side**2), jnp.int32), jnp.zeros((1, 4, 4096)), jnp.ones((1, 4), bool), *low)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  made = jax.eval_shape(
    lambda key: Adapters.init(key, shapes, channels, module.adapted, shared=shared), jax.random.key(0)
  )
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(made)) == count


@pytest.mark.parametrize("shared", [True, False])
def test_new_adapters_change_nothing_and_learn(params, shared):
  theta = begin(params, shared)
  plain = MODULE.apply({"params": params}, *INPUTS)
  run = jax.jit(lambda theta: thetas.apply(MODULE, params, theta, *INPUTS))
  np.testing.assert_allclose(run(theta), plain, atol=1e-5)
  gradient = jax.grad(lambda theta: jnp.sum(jnp.sin(run(theta))))(theta)
  for path, leaf in flatten_dict(gradient.weights, sep="/").items():
    assert (np.abs(leaf).max() > 0) == path.endswith("up"), path  # B is zero, so that A has no gradient yet


@pytest.mark.parametrize("shared", [True, False])
def test_adapters_are_the_equation_behind_each_module(params, moved, shared):
  theta = moved(begin(params, shared))
  found = thetas.apply(MODULE, params, theta, *INPUTS)
  tables = {}
  for i, row in enumerate(MODULE.adapted):
    weights = theta.weights[f"row_{i}"]
    for place, path in enumerate(row):
      if shared:
        tables[path] = (
          weights["down"] + weights["own_down"][None, place],
          weights["up"] + weights["own_up"][None, place],
        )
      else:
        tables[path] = weights["down"][place], weights["up"][place]

  def behind(call, args, kwargs, context):
    y = call(*args, **kwargs)
    path = "/".join(context.module.path)
    if context.method_name != "__call__" or path not in tables:
      return y
    down, up = tables[path]
    return y + jax.nn.gelu(y @ down) @ up

  with muse.nn.intercept_methods(behind):
    wanted = MODULE.apply({"params": params}, *INPUTS)
  np.testing.assert_allclose(found, wanted, atol=1e-4)
  assert np.abs(found - MODULE.apply({"params": params}, *INPUTS)).max() > 0.1


def test_adapters_come_back_from_a_file(tmp_path, params, moved):
  theta = moved(begin(params, True))
  base = Base("toybox-muse", {"base": "0" * 64})
  thetas.save(tmp_path / "theta", {"base": theta}, Card(base, "", "", {}), np.float32)
  loaded = thetas.load(tmp_path / "theta", base).thetas["base"]
  assert jax.tree.structure(loaded) == jax.tree.structure(theta) and loaded.places == MODULE.adapted
  np.testing.assert_array_equal(
    thetas.apply(MODULE, params, loaded, *INPUTS), thetas.apply(MODULE, params, theta, *INPUTS)
  )


def test_branches_side_by_side_are_each_branch_alone(params, moved):
  low = moved(LoRA.init(jax.random.key(2), params, 2, pattern="query|mlp/hidden"))
  several = [None, moved(begin(params, True), 4), low, moved(begin(params, False, 5), 5)]
  wanted = [thetas.apply(MODULE, params, theta, *INPUTS) for theta in several]
  run = jax.jit(jax.vmap(lambda branch: thetas.apply(MODULE, params, branch, *INPUTS)))
  np.testing.assert_allclose(run(StackedThetas.of(params, several)), jnp.stack(wanted), atol=1e-4)
  with pytest.raises(ValueError, match="full weights and embeddings cannot be stacked"):
    StackedThetas.of(params, [None, Full.init(params, "mlp")])


def test_adapters_for_another_module_are_refused(params):
  with pytest.raises(ValueError, match="layer_7/mlp, which this model does not have"):
    Adapters.init(jax.random.key(0), params, 3, (("layer_7/mlp",),))
  wide = {
    **params,
    "layer_0": {**params["layer_0"], "mlp": {**params["layer_0"]["mlp"], "out": {"kernel": jnp.zeros((24, 8))}}},
  }
  with pytest.raises(ValueError, match="modules of one width, not of"):
    Adapters.init(jax.random.key(0), wide, 3, MODULE.adapted)
  with pytest.raises(ValueError, match="layer_0/mlp of width 16, but here it is 8"):
    begin(params, True).expand(wide)


def test_a_soft_prompt_is_more_tokens_of_text(tmp_path, params):
  tokens, text, mask, low = INPUTS
  theta = SoftPrompt.init(jax.random.key(0), text[0], 3)
  assert all(np.any(np.all(own[None] == text[0], axis=1)) for own in theta.weights["tokens"])
  found = thetas.apply(MODULE, params, theta, *INPUTS)
  more = jnp.concatenate([text, jnp.tile(theta.weights["tokens"], (2, 1, 1))], axis=1)
  wanted = MODULE.apply({"params": params}, tokens, more, jnp.ones((2, 8), bool), low)
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  # Beside others it is as it is alone, though it has more tokens than the others.
  several = [None, theta, SoftPrompt.init(jax.random.key(1), text[1], 1), begin(params, True)]
  alone = [thetas.apply(MODULE, params, one, *INPUTS) for one in several]
  run = jax.jit(jax.vmap(lambda branch: thetas.apply(MODULE, params, branch, *INPUTS)))
  np.testing.assert_allclose(run(StackedThetas.of(params, several)), jnp.stack(alone), atol=1e-4)
  base = Base("toybox-muse", {"base": "0" * 64})
  thetas.save(tmp_path / "theta", {"base": theta}, Card(base, "", "", {}), np.float32)
  loaded = thetas.load(tmp_path / "theta", base).thetas["base"]
  np.testing.assert_array_equal(loaded.weights["tokens"], theta.weights["tokens"])


def test_a_soft_prompt_that_cannot_be_is_refused(params):
  text = INPUTS[1]
  with pytest.raises(ValueError, match="one token or more, not 0"):
    SoftPrompt.init(jax.random.key(0), text[0], 0)
  with pytest.raises(ValueError, match="has 5 channels, but the text has 6"):
    thetas.apply(MODULE, params, SoftPrompt({"tokens": jnp.zeros((2, 5))}), *INPUTS)
  dense = muse.nn.Dense(3)
  variables = dense.init(jax.random.key(0), text)
  with pytest.raises(ValueError, match="take a text and its mask, not for Dense"):
    thetas.apply(dense, variables["params"], SoftPrompt.init(jax.random.key(0), text[0], 1), text)
