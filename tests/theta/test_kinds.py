"""What thetas do to a module: applied, merged, trained and stacked."""

from flax import linen as nn
from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import theta as thetas
from dreamjax.models.t5 import T5Encoder
from dreamjax.models.vit import ViT
from dreamjax.theta import Embeddings, Full, LoRA

T5 = T5Encoder(vocab=20, width=8, head_width=4, heads=3, mlp=12, depth=2, buckets=8, max_distance=9)
VIT = ViT(image=8, patch=4, width=8, depth=2, heads=2, mlp=12)


def begin(kind, params, pattern="", rank=3, **fields):
  if kind == "full":
    return Full.init(params, pattern)
  return LoRA.init(jax.random.key(1), params, rank, pattern=pattern, **fields)


def close(a, b, atol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("net", ["convnet", "scanned"])
def test_a_new_theta_changes_nothing(make, net, kind):
  module, params, x = make(net)
  plain = jax.jit(module.apply)({"params": params}, x)
  run = jax.jit(lambda params, theta: thetas.apply(module, params, theta, x))
  np.testing.assert_array_equal(run(params, begin(kind, params)), plain)
  np.testing.assert_array_equal(run(params, None), plain)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize(
  ("net", "fields"), [("convnet", {}), ("scanned", {}), ("scanned", {"is_remat": True})], ids=["conv", "scan", "remat"]
)
def test_a_theta_does_what_its_merged_weights_do(make, moved, net, fields, kind):
  module, params, x = make(net, **fields)
  theta = moved(begin(kind, params, **({"alpha": 1.5} if kind == "lora" else {})))
  applied = jax.jit(lambda theta: thetas.apply(module, params, theta, x))(theta)
  merged = jax.jit(lambda theta: module.apply({"params": theta.merge(params)}, x))(theta)
  plain = jax.jit(module.apply)({"params": params}, x)
  assert np.abs(applied - plain).max() > 0.1
  greatest = float(np.abs(merged).max())
  close(applied / greatest, merged / greatest)


def test_each_sort_of_layer_is_changed(make, moved):
  module, params, x = make("convnet")
  run = jax.jit(lambda theta: thetas.apply(module, params, theta, x))
  for layer in ("conv_in", "down", "point", "dilated", "out"):
    theta = moved(begin("lora", params, f"^{layer}$"))
    assert set(theta.weights) == {layer}
    assert np.abs(run(theta) - run(None)).max() > 1e-2
    close(run(theta), module.apply({"params": theta.merge(params)}, x))


def test_models_of_the_library_take_one(moved):
  ids = jnp.arange(12).reshape(2, 6)
  inputs = {T5: (ids, ids < 9), VIT: (jnp.ones((2, 8, 8, 3)),)}
  for module, args in inputs.items():
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    params = moved(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    theta = moved(begin("lora", params, "attention/(query|value)$"))
    paths = {"/".join(path[:-1]) for path in flatten_dict(theta.weights)}
    assert paths == {f"block_{i}/attention/{name}" for i in (0, 1) for name in ("query", "value")}
    applied = jax.jit(lambda theta, m=module, p=params, a=args: thetas.apply(m, p, theta, *a)[0])(theta)
    close(applied, jax.jit(module.apply)({"params": theta.merge(params)}, *args)[0])


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize(("net", "fields"), [("convnet", {}), ("scanned", {"is_remat": True})], ids=["conv", "remat"])
def test_gradients_are_those_of_the_merged_weights_and_of_theta_alone(make, moved, net, fields, kind):
  module, params, x = make(net, **fields)
  theta = moved(begin(kind, params, "conv|down|dense"))
  before = jax.tree.map(np.array, params)
  applied = jax.jit(jax.grad(lambda theta: jnp.mean(thetas.apply(module, params, theta, x) ** 2)))(theta)
  merged = jax.jit(jax.grad(lambda theta: jnp.mean(module.apply({"params": theta.merge(params)}, x) ** 2)))(theta)
  assert jax.tree.structure(applied) == jax.tree.structure(theta)
  for a, b in zip(jax.tree.leaves(applied), jax.tree.leaves(merged), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(float(np.abs(b).max()), 1.0))
  stepped = jax.tree.map(lambda w, g: w - 0.1 * g, theta, applied)
  assert np.abs(jax.tree.leaves(stepped)[0] - jax.tree.leaves(theta)[0]).max() > 0
  equal(params, before)


def test_a_new_low_rank_update_has_a_gradient_in_b(make):
  module, params, x = make("convnet")
  gradient = jax.jit(jax.grad(lambda theta: jnp.sum(thetas.apply(module, params, theta, x))))(begin("lora", params))
  for (*_, name), leaf in flatten_dict(gradient.weights).items():
    assert (np.abs(leaf).max() > 0) == (name == "up")


@pytest.mark.parametrize("net", ["convnet", "scanned"])
def test_merged_weights_come_out_again(make, moved, net):
  _, params, _ = make(net)
  theta = moved(begin("lora", params, alpha=6.0))
  merged = theta.merge(params)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  assert any(np.abs(a - b).max() > 0.1 for a, b in zip(*map(jax.tree.leaves, (merged, params)), strict=True))
  close(theta.unmerge(merged), params, atol=2e-6)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_merged_weights_have_the_dtypes_of_the_base(make, moved, kind):
  _, params, _ = make("convnet")
  halves = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), params)
  merged = moved(begin(kind, params)).merge(halves)
  assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {np.dtype(np.float16)}


def test_the_scale_is_alpha_over_rank(make, moved):
  _, params, _ = make("convnet")
  assert begin("lora", params).scale == 1.0
  theta = moved(begin("lora", params, rank=4, alpha=2.0))
  assert theta.scale == 0.5
  kernel, change = params["out"]["kernel"], theta.weights["out"]
  close(theta.merge(params)["out"]["kernel"], kernel + 0.5 * change["down"] @ change["up"])


def test_shapes_follow_from_those_of_the_kernels(make):
  _, params, _ = make("scanned")
  theta = begin("lora", jax.eval_shape(lambda: params))
  assert jax.tree.map(jnp.shape, theta.weights["blocks"]) == {
    "conv": {"down": (3, 3, 3, 3, 3), "up": (3, 3, 3)},
    "dense": {"down": (3, 3, 3), "up": (3, 3, 3)},
  }
  _, params, _ = make("convnet")
  theta = begin("lora", params)
  assert set(theta.weights) == {"conv_in", "down", "point", "dilated", "out"}
  assert jax.tree.map(jnp.shape, theta.weights["down"]) == {"down": (3, 3, 6, 3), "up": (3, 8)}


def test_a_layer_begins_alike_whichever_others_are_tuned_and_differently_from_them():
  params = {name: {"kernel": np.zeros((300, 20), np.float32)} for name in "ab"}
  both, one = begin("lora", params, rank=10), begin("lora", params, "^b$", rank=10)
  equal(one.weights["b"], both.weights["b"])
  assert np.abs(both.weights["a"]["down"] - both.weights["b"]["down"]).max() > 0.1
  np.testing.assert_allclose(np.std(both.weights["a"]["down"]), 300**-0.5, rtol=0.05)


def test_full_weights_can_be_some_parameters_only_and_share_no_memory(make):
  _, params, _ = make("convnet")
  theta = begin("full", params, "^out/|norm/scale")
  assert set(flatten_dict(theta.weights, sep="/")) == {"norm/scale", "out/bias", "out/kernel"}
  jax.jit(lambda theta: jax.tree.map(lambda x: 2.0 * x, theta), donate_argnums=0)(theta)  # as a training's step does
  assert theta.weights["out"]["bias"].is_deleted() and not params["out"]["bias"].is_deleted()


def test_bfloat16_layers_compute_the_update_in_bfloat16(make, moved):
  module, params, x = make("convnet", dtype=jnp.bfloat16)
  theta = moved(begin("lora", params, "out"))
  applied = jax.jit(lambda theta: thetas.apply(module, params, theta, x))(theta)
  assert applied.dtype == jnp.bfloat16
  exact = jax.jit(lambda theta: thetas.apply(module.clone(dtype=jnp.float32), params, theta, x))(theta)
  close(applied.astype(jnp.float32), exact, atol=0.05 * float(np.abs(exact).max()))


class TestStacks:
  @pytest.mark.parametrize("kind", ["full", "lora"])
  @pytest.mark.parametrize("net", ["convnet", "scanned"])
  def test_a_stack_in_vmap_is_its_thetas_one_by_one(self, make, moved, net, kind):
    module, params, x = make(net, **({"is_remat": True} if net == "scanned" else {}))
    several = [moved(begin(kind, params), seed) for seed in range(3)]
    run = jax.jit(lambda theta: thetas.apply(module, params, theta, x))
    together = jax.jit(jax.vmap(run))(thetas.stack(several))
    one_by_one = jnp.stack([run(theta) for theta in several])
    assert np.abs(one_by_one[0] - one_by_one[1]).max() > 0.1
    close(together, one_by_one, atol=1e-5 * float(np.abs(one_by_one).max()))

  def test_a_stack_is_taken_apart_again(self, make, moved):
    _, params, _ = make("convnet")
    several = [{"base": moved(begin("lora", params), seed)} for seed in range(3)]
    for a, b in zip(thetas.unstack(thetas.stack(several)), several, strict=True):
      equal(a, b)

  def test_a_stack_is_begun_and_merged_in_vmap(self, make):
    _, params, _ = make("convnet")
    keys = jax.random.split(jax.random.key(0), 2)
    stacked = jax.vmap(lambda key: LoRA.init(key, params, 2))(keys)
    equal(thetas.unstack(stacked)[1], LoRA.init(keys[1], params, 2))
    merged = jax.vmap(lambda theta: theta.merge(params))(stacked)
    close(merged["down"]["kernel"], jnp.stack([params["down"]["kernel"]] * 2))

  def test_what_differs_cannot_be_stacked(self, make):
    _, params, _ = make("convnet")
    first = begin("lora", params)
    for other in (
      begin("full", params),
      begin("lora", params, "out"),
      begin("lora", params, rank=2),
      begin("lora", params, alpha=1.0),
    ):
      with pytest.raises(ValueError, match="0 and 2 cannot be stacked"):
        thetas.stack([first, first, other])


class TestWhatDoesNotFit:
  @pytest.mark.parametrize("kind", ["full", "lora"])
  def test_a_pattern_that_matches_nothing(self, make, kind):
    _, params, _ = make("scanned")
    with pytest.raises(ValueError, match=r"'block/dens' matches none of \d paths; the nearest are blocks/dense"):
      begin(kind, params, "block/dens")

  @pytest.mark.parametrize("kind", ["full", "lora"])
  def test_another_module(self, make, kind):
    theta = begin(kind, make("convnet")[1])
    module, params, x = make("scanned")
    with pytest.raises(ValueError, match="changes conv_in/[a-z]+, which this model does not have"):
      thetas.apply(module, params, theta, x)

  @pytest.mark.parametrize("kind", ["full", "lora"])
  def test_layers_of_another_size(self, make, kind):
    _, params, _ = make("convnet")
    other = params | {"out": {"kernel": jnp.ones((8, 7)), "bias": jnp.ones(7)}}
    with pytest.raises(ValueError, match=r"is for out/[a-z]+ of shape .*, but here it is"):
      begin(kind, params, "out").merge(other)

  def test_a_scan_that_does_not_hand_it_in(self, make, moved):
    module, params, x = make("scanned", collections=("params",))
    with pytest.raises(ValueError, match="does not reach blocks/conv, blocks/dense: give nn.scan"):
      thetas.apply(module, params, begin("lora", params), x)
    thetas.apply(module, params, moved(begin("full", params)), x)

  @pytest.mark.parametrize(
    "layer", [nn.Conv(4, (3,)), nn.Conv(4, (3, 3), feature_group_count=2), nn.DenseGeneral((2, 4), axis=-1)]
  )
  def test_layers_of_a_sort_that_is_not_known(self, layer):
    x = jnp.ones((1, 6, 6, 4))
    params = layer.init(jax.random.key(0), x)["params"]
    with pytest.raises(ValueError, match=f"not for .*, a {type(layer).__name__} whose"):
      thetas.apply(layer, params, begin("lora", params), x)


def test_a_module_that_is_one_layer_takes_one(moved):
  x = jnp.ones((2, 3))
  layer = nn.Dense(4)
  params = layer.init(jax.random.key(0), x)["params"]
  theta = moved(begin("lora", params))
  close(thetas.apply(layer, params, theta, x), layer.apply({"params": theta.merge(params)}, x))


def test_arguments_of_apply_are_passed_on(make):
  module, params, x = make("convnet")
  _, state = thetas.apply(module, params, begin("lora", params), x, capture_intermediates=True, mutable="intermediates")
  assert state["intermediates"]["down"]["__call__"][0].shape == (2, 4, 4, 8)


def test_embeddings_are_refused_where_they_do_not_belong():
  params = T5.init(jax.random.key(0), jnp.zeros((1, 3), int), jnp.ones((1, 3), bool))["params"]
  theta = Embeddings.init(params, [17, 3])
  equal(theta.merge(params), params)
  for ids, message in (
    ([], "one token or more"),
    ([3, 3], "each once"),
    ([3, 20], "has no token 20"),
    ([-1], "no token -1"),
  ):
    with pytest.raises(ValueError, match=message):
      Embeddings.init(params, ids)
  with pytest.raises(ValueError, match="matches none of"):
    Embeddings.init({"out": {"kernel": jnp.ones((2, 2))}}, [1])
  with pytest.raises(ValueError, match=r"tokens/embedding of shape \(20, 8\), but here it is \(20, 6\)"):
    theta.merge({"tokens": {"embedding": jnp.ones((20, 6))}})
  with pytest.raises(ValueError, match="for token 17, but tokens/embedding has only 9"):
    theta.merge({"tokens": {"embedding": jnp.ones((9, 8))}})
  with pytest.raises(ValueError, match="changes tokens/embedding, which this model does not have"):
    theta.merge({"out": {"kernel": jnp.ones((2, 2))}})
  with pytest.raises(ValueError, match="embeddings cannot be stacked"):
    thetas.StackedThetas.of(params, [theta])
