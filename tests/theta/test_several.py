"""Several thetas for one network, edits that are added to the registry, and soft prompts whose tokens are masked."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import theta as thetas
from dreamjax.models import muse, uvit
from dreamjax.theta import Adapters, Edit, Embeddings, Full, LoRA, SoftPrompt, StackedThetas, compose
from dreamjax.theta.edits import EDITS

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiled quickly, not well
rng = np.random.default_rng(0)
TEXT = jnp.asarray(rng.standard_normal((2, 5, 6), np.float32))
TOKENS = jnp.asarray(rng.integers(0, 10, (2, 16)), jnp.int32)
MUSE = muse.Muse(side=4, codebook=12, width=16, heads=2, mlp=24, depth=3, text_width=6)
INPUTS = (TOKENS, TEXT, jnp.arange(5)[None] < jnp.array([[5], [2]]))
UVIT = uvit.UViT(
  side=4, codebook=11, vocab=14, token_width=10, block_width=12, block_heads=3, blocks=1, width=16, heads=2, mlp=20,
  depth=1, text_width=6, pooled_width=5, numbers=3, number_width=8,
)  # fmt: skip


def filled(module, *inputs):
  """Parameters that all make a difference."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def params():
  return filled(MUSE, *INPUTS)


@pytest.fixture(scope="module")
def several(params, moved):
  low = [
    moved(LoRA.init(jax.random.key(i), params, rank, alpha=1.5, pattern=pattern), i)
    for i, (rank, pattern) in enumerate([(2, "query|mlp/hidden"), (3, "layer_1/(self_attention/query|mlp/out)")])
  ]
  adapters = [moved(Adapters.init(jax.random.key(i), params, 2 + i, MUSE.adapted), 5 + i) for i in range(2)]
  prompts = [SoftPrompt.init(jax.random.key(i), TEXT[i], 1 + i) for i in range(2)]
  return low, adapters, prompts


def concatenated(first, second):
  """The update whose A is [A_1, A_2], and whose B is B_1 over B_2."""

  def join(path, a, b):
    if path[-1].key == "down":
      return jnp.concatenate([a, b], axis=-1)
    return jnp.concatenate([first.scale * a, second.scale * b], axis=-2)

  return LoRA(jax.tree_util.tree_map_with_path(join, first.weights, second.weights), 1.0)


@pytest.mark.parametrize(
  ("net", "fields", "tolerance"),
  [("convnet", {}, 1e-5), ("convnet", {"dtype": jnp.bfloat16}, 0.03), ("scanned", {"is_remat": True}, 1e-5)],
)
def test_two_low_rank_updates_are_that_of_the_concatenated_matrices(make, moved, net, fields, tolerance):
  module, params, x = make(net, **fields)
  one, two = (moved(LoRA.init(jax.random.key(i), params, i, alpha=1.0), i) for i in (2, 3))

  def loss(pair, x):
    out = thetas.apply(module, params, pair, x)
    return jnp.mean(jnp.square(out.astype(jnp.float32))), out

  (_, out), slopes = jit(jax.value_and_grad(loss, has_aux=True))((one, two), x)
  (_, wanted), whole = jit(jax.value_and_grad(loss, has_aux=True))(concatenated(one, two), x)
  assert out.dtype == wanted.dtype == fields.get("dtype", jnp.float32)
  greatest = float(jnp.abs(wanted).max())
  np.testing.assert_allclose(np.float32(out) / greatest, np.float32(wanted) / greatest, rtol=0, atol=tolerance)
  alone = jit(lambda theta: thetas.apply(module, params, theta, x))(two)
  assert np.abs(out - alone).max() > 0.1 * greatest
  if tolerance < 1e-3:
    for a, b, both in zip(*map(jax.tree.leaves, (slopes[0], slopes[1], whole)), strict=True):
      if a.shape[:-1] == both.shape[:-1]:  # of A; those of B differ by the scale
        np.testing.assert_allclose(jnp.concatenate([a, b], -1), both, rtol=1e-3, atol=1e-4 * np.abs(both).max())


def test_low_rank_updates_are_added_to_full_weights_in_either_order(make, moved):
  module, params, x = make("convnet")
  full, low = moved(Full.init(params, "out|down")), moved(LoRA.init(jax.random.key(0), params, 2))
  run = jit(lambda pair: thetas.apply(module, params, pair, x))
  wanted = jit(module.apply)({"params": low.merge(full.merge(params))}, x)
  np.testing.assert_allclose(run((full, low)), wanted, rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(run([low, full]), wanted, rtol=1e-4, atol=1e-3)


def test_none_one_and_a_sequence_of_one_are_the_same_as_ever(make, moved):
  module, params, x = make("convnet")
  low = moved(LoRA.init(jax.random.key(0), params, 2, pattern="out"))
  run = jit(lambda own: thetas.apply(module, params, own, x))
  np.testing.assert_array_equal(run([low]), run(low))
  np.testing.assert_array_equal(run([]), run(None))


def test_full_weights_replace_no_other_theta(make):
  _, params, _ = make("convnet")
  some, same, others = (Full.init(params, pattern) for pattern in ("out", "out/kernel", "down"))
  assert "theta" not in compose(params, [some, others])
  with pytest.raises(ValueError, match="would replace what another theta made of out/kernel: put them first"):
    compose(params, [some, same])
  text = {"tokens": {"embedding": jnp.zeros((9, 4))}}
  rows = Embeddings({"tokens": {"embedding": jnp.ones((2, 4))}}, (3, 8))
  table = compose(text, [Full.init(text), rows])["params"]["tokens"]["embedding"]
  np.testing.assert_array_equal(table.sum(axis=1), [0, 0, 0, 4, 0, 0, 0, 0, 4])
  with pytest.raises(ValueError, match="made of tokens/embedding: put them first"):
    compose(text, [rows, Full.init(text)])


def test_low_rank_updates_adapters_and_soft_prompts_go_together(params, several):
  (low, other), (first, second), prompts = several
  run = jit(lambda params, own, *inputs: thetas.apply(MUSE, params, own, *inputs))
  tables = {}
  for adapters in (first, second):
    for *path, down, up in behind(adapters):
      tables.setdefault(path[0], []).append((down, up))

  def follow(call, args, kwargs, context):
    y = call(*args, **kwargs)
    if context.method_name == "__call__":
      for down, up in tables.get("/".join(context.module.path), ()):
        y = y + jax.nn.gelu(y @ down) @ up
    return y

  text = jnp.concatenate([TEXT, *(jnp.tile(prompt.weights["tokens"], (2, 1, 1)) for prompt in prompts)], axis=1)
  mask = jnp.concatenate([INPUTS[2], jnp.ones((2, 3), bool)], axis=1)
  with nn.intercept_methods(follow):
    wanted = MUSE.apply({"params": other.merge(low.merge(params))}, TOKENS, text, mask)
  found = run(params, (first, low, prompts[0], second, prompts[1], other), *INPUTS)
  np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-3)
  swapped = run(params, (second, low, prompts[0], first, prompts[1], other), *INPUTS)
  assert np.abs(swapped - wanted).max() > 0.01  # the order of adapters is that of the thetas


def behind(adapters):
  for i, group in enumerate(adapters.places):
    own = adapters.weights[f"row_{i}"]
    for j, path in enumerate(group):
      yield path, own["down"] + own["own_down"][None, j], own["up"] + own["own_up"][None, j]


@pytest.mark.parametrize("scan", [False, True])
def test_a_branch_may_have_several(params, several, scan):
  (low, other), (adapters, _), (prompt, longer) = several
  owns = [None, (low, other), [prompt, adapters], (other, longer, prompt)]
  module = MUSE.clone(scan=scan, remat="cheap" if scan else "none")
  alone = jit(lambda own: thetas.apply(MUSE, params, own, *INPUTS))
  run = jit(jax.vmap(lambda branch: thetas.apply(module, params, branch, *INPUTS)))
  together = run(StackedThetas.of(params, owns))
  np.testing.assert_allclose(together, jnp.stack([alone(own) for own in owns]), rtol=1e-3, atol=1e-3)
  with pytest.raises(ValueError, match="full weights and embeddings cannot be stacked"):
    StackedThetas.of(params, [None, [low, Full.init(params, "mlp")]])


def test_layers_of_which_each_has_another_rank_go_through_a_loop(params, moved):
  pair = [
    moved(LoRA.init(jax.random.key(i), params, rank, pattern=f"^layer_{i}/mlp/out$"), i)
    for i, rank in enumerate((1, 2, 3))
  ]
  plain, loop = (
    jit(lambda own, m=m: thetas.apply(m, params, own, *INPUTS))(pair) for m in (MUSE, MUSE.clone(scan=True))
  )
  np.testing.assert_allclose(loop, plain, rtol=1e-4, atol=1e-4)


def test_one_that_does_not_fit_is_refused_whatever_it_stands_with(make):
  module, params, x = make("scanned", collections=("params",))
  low, foreign = (LoRA.init(jax.random.key(0), own, 2) for own in (params, make("convnet")[1]))
  with pytest.raises(ValueError, match="changes conv_in/kernel, which this model does not have"):
    thetas.apply(module, params, [low, foreign], x)
  with pytest.raises(ValueError, match="does not reach blocks/conv, blocks/dense: give nn.scan"):
    thetas.apply(module, params, [low, low], x)


def test_zeros_that_fill_a_branch_are_never_attended_even_where_there_was_no_mask():
  inputs = (TOKENS, TEXT, None, jnp.ones((2, 5)), jnp.ones((2, 3)))
  params = filled(UVIT, *inputs)
  owns = [None, SoftPrompt.init(jax.random.key(0), TEXT[0], 3), SoftPrompt.init(jax.random.key(1), TEXT[1], 1)]
  run = jit(jax.vmap(lambda branch: thetas.apply(UVIT, params, branch, *inputs)))
  found = run(StackedThetas.of(params, owns))
  np.testing.assert_allclose(found[0], jit(UVIT.apply)({"params": params}, *inputs), rtol=1e-4, atol=1e-5)
  for i, prompt in enumerate(owns[1:], start=1):
    more = jnp.concatenate([TEXT, jnp.tile(prompt.weights["tokens"], (2, 1, 1))], axis=1)
    wanted = jit(UVIT.apply)({"params": params}, TOKENS, more, *inputs[2:])
    np.testing.assert_allclose(found[i], wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(found[i] - found[0]).max() > 1e-3


def test_a_new_edit_is_one_class(make, moved, monkeypatch):
  monkeypatch.setattr("dreamjax.theta.edits.EDITS", dict(EDITS))

  @dataclasses.dataclass(frozen=True)
  class Shift(Edit, name="shift"):
    by: jax.Array

    def before(self, module, args, kwargs):
      assert module.name == "out"
      return (args[0] + self.by, *args[1:]), kwargs

    def after(self, module, y, args, kwargs):
      return y * self.by

  module, params, x = make("convnet")
  low = moved(LoRA.init(jax.random.key(0), params, 2, pattern="out"))
  shifted = StackedThetas({"out": {"shift": ({"by": jnp.float32(3)},)}})
  found = jit(lambda own: thetas.apply(module, params, own, x))([low, shifted])
  plain = jit(lambda own: thetas.apply(module, params, own, x))(low)
  merged = low.merge(params)["out"]["kernel"]
  np.testing.assert_allclose(found, 3 * (plain + 3 * merged.sum(axis=0)[None, None, None]), rtol=1e-3, atol=1e-2)
  with pytest.raises(ValueError, match="there are two edits named 'lora': LowRank and Again"):

    class Again(Edit, name="lora"):
      pass
