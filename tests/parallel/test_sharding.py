"""Meshes, and what lies where on them."""

import collections

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.convert import pretrained
from dreamjax.data.photos import Batch
from dreamjax.methods.denoising import Recipe, stage_loss
from dreamjax.models import clip, latent_unet, muse, residual, t5, uvit
from dreamjax.models.muse import Muse
from dreamjax.models.unet import IF_I_XL
from dreamjax.parallel import sharding
from dreamjax.parallel.sharding import batch_axes, make_mesh, shard_batch, shard_params
from dreamjax.theta import apply
from dreamjax.train import hlo
from dreamjax.train.step import accumulate


def test_a_mesh_holds_all_devices_or_the_first():
  assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
  assert dict(make_mesh((2, -1, 2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert make_mesh((1, 1, 1)).devices.ravel().tolist() == jax.devices()[:1]


@pytest.mark.parametrize("shape", [(-1, 1, 3), (16, 1, 1)])
def test_a_mesh_that_the_devices_do_not_fill_is_refused(shape):
  with pytest.raises(ValueError, match="8"):
    make_mesh(shape)


@pytest.mark.parametrize(
  ("name", "shape", "spec", "parts"),
  [
    ("base/down_0/block_0/conv_1/kernel", (3, 3, 64, 128), (None, None, "fsdp", "tensor"), 4),
    ("opt_state/1/0/mu/base/weights/conv_2/kernel", (3, 3, 64, 128), (None, None, "tensor", "fsdp"), 4),
    ("query/kernel", (128, 128), ("fsdp", "tensor"), 4),
    ("attention/out/kernel", (128, 256), ("tensor", "fsdp"), 4),
    ("attention/out/kernel", (129, 256), (None, ("fsdp", "tensor")), 4),
    ("text/block_0/mlp/gate/kernel", (128, 256), ("fsdp", "tensor"), 4),
    ("down_0/block_0/film/kernel", (512, 128), ("fsdp", "tensor"), 4),
    ("tokens/embedding", (501, 128), (None, ("fsdp", "tensor")), 4),
    ("tokens/embedding", (501, 130), (None, "fsdp"), 2),
    ("tokens/embedding", (501, 129), (None, None), 1),
    ("norm/scale", (128,), (None,), 1),
    ("step", (), (), 1),
  ],
)
def test_a_parameter_lies_where_its_name_and_its_shape_say(name, shape, spec, parts):
  mesh = make_mesh((2, 2, 2))
  assert sharding.param_sharding(name, shape, mesh).spec == jax.P(*spec)
  whole = np.random.default_rng(0).random(shape, np.float32)
  placed = sharding.param_putter(mesh)(name, whole)
  np.testing.assert_array_equal(placed, whole)
  assert placed.addressable_shards[0].data.size == whole.size // parts


@pytest.mark.parametrize(("shape", "parts"), [((1, 16, 1), 16), ((2, 8, 1), 8), ((1, 4, 4), 16)])
def test_of_a_large_network_each_device_has_its_share(shape, parts):
  mesh = jax.sharding.AbstractMesh(shape, sharding.AXES)
  text, step = jax.ShapeDtypeStruct((1, 77, 4096), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  params = jax.eval_shape(IF_I_XL.init, jax.random.key(0), images, step, text)["params"]
  places = jax.tree.leaves(sharding.param_shardings(params, mesh))
  shares = [
    np.prod(shard_params.shard_shape(x.shape)) for x, shard_params in zip(jax.tree.leaves(params), places, strict=True)
  ]
  whole = sum(x.size for x in jax.tree.leaves(params))
  assert whole / parts <= sum(shares) < 1.02 * whole / parts


# Of two products in a row, the layers that may be the first, and the second.
PAIRS = (
  (("query", "key", "value", "text_key", "text_value", "hidden", "gate"), "out"),
  (("condition_hidden",), "condition_out"),
  (("conv_1", "film", "embedding"), "conv_2"),
)


@pytest.mark.parametrize(
  ("module", "count"),
  [
    (t5.V1_1_XXL.clone(depth=1), 2),
    (clip.L_14.text.clone(depth=1), 2),
    (IF_I_XL, 60),
    (latent_unet.SD_15, 71),
    (muse.MUSE_SR.clone(depth=1, low_depth=1), 5),
    (uvit.AMUSED_512, 85),
  ],
  ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_of_two_products_in_a_row_tensor_divides_what_is_between_them(module, count):
  mesh, layers = jax.sharding.AbstractMesh((1, 1, 2), sharding.AXES), collections.defaultdict(dict)
  for keys, x in jax.tree_util.tree_leaves_with_path(pretrained.shapes(module)):
    *where, layer, leaf = "", *sharding.path_name(keys).split("/")
    if leaf == "kernel":
      layers[*where][layer] = (
        sharding.param_sharding(sharding.path_name(keys), x.shape, mesh).shard_shape(x.shape),
        x.shape,
      )
  found = 0
  for own in layers.values():
    for firsts, second in PAIRS:
      if second not in own:
        continue
      (*_, inputs, outputs), (*_, all_inputs, all_outputs) = own[second]
      assert (2 * inputs, outputs) == (all_inputs, all_outputs), own
      before = [own[name] for name in firsts if name in own]
      for (*_, inputs, outputs), (*_, all_inputs, all_outputs) in before:
        assert (inputs, 2 * outputs) == (all_inputs, all_outputs), own
      found += len(before) > 0
  assert found == count


@pytest.mark.parametrize(
  ("module", "inputs"),
  [
    (t5.Block(4, 16, 256, 1e-6, jnp.float32), ((2, 6, 128), (1, 4, 6, 6), (2, 1, 1, 6))),
    (residual.Block(64, 8, jnp.float32), ((2, 4, 4, 64), (2, 512))),
  ],
  ids=["T5", "residual"],
)
def test_between_two_products_in_a_row_nothing_is_sent(module, inputs):
  mesh = make_mesh((1, 1, 2))
  whole = jax.NamedSharding(mesh, jax.P())
  inputs = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole) for shape in inputs]
  if len(inputs) == 3:
    inputs[2] = inputs[2].update(dtype=jnp.bool)  # the mask
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  places = sharding.param_shardings(shapes, mesh)
  params = jax.tree.map(
    lambda x, shard_params: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shard_params), shapes, places
  )
  with jax.set_mesh(mesh):
    program = jax.jit(lambda params, *inputs: apply(module, params, None, *inputs)).lower(params, *inputs).compile()
  assert set(hlo.Program(program.as_text()).sent()) == {"all-reduce"}  # what comes out is added up


def test_gradients_are_the_same_wherever_the_parameters_lie(tiny_cascade, monkeypatch):
  monkeypatch.setattr(sharding, "_MIN_SHARDED", 1)
  generator, params = tiny_cascade
  stage = generator.stages[0]
  draw = np.random.default_rng(0)
  text = jax.device_get(generator.encode(params, ["a dog", "a cat", "a red dog", "a dog in the snow"]))
  images = draw.uniform(-1, 1, (4, stage.image, stage.image, 3)).astype(np.float32)
  rows = Batch(images, text, np.ones(4, np.float32), {})
  loss = stage_loss(stage, Recipe())
  gradient = jax.jit(jax.grad(lambda own, rows: loss({}, {"base": own}, rows, jax.random.key(0))[0]))
  alone = gradient(params["base"], rows)
  mesh = make_mesh((2, 2, 2))
  own = shard_params(params["base"], mesh)
  spread = {axis for x in jax.tree.leaves(own) for axis in x.sharding.spec}
  assert spread == {None, "fsdp", "tensor", ("fsdp", "tensor")}
  for a, b in zip(jax.tree.leaves(gradient(own, shard_batch(rows, mesh))), jax.tree.leaves(alone), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_parameters_are_gathered_and_activations_stay():
  module = Muse(side=8, codebook=64, width=256, heads=4, mlp=1024, depth=2, text_width=64, remat="all")
  mesh = make_mesh((1, 8, 1))
  rows = jax.NamedSharding(mesh, jax.P(batch_axes(mesh)))
  inputs = [
    jax.ShapeDtypeStruct((8, *shape), dtype, sharding=rows)
    for shape, dtype in (((64,), jnp.int32), ((8, 64), jnp.float32), ((8,), jnp.bool))
  ]
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  params = jax.tree.map(
    lambda x, shard_params: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shard_params),
    shapes,
    sharding.param_shardings(shapes, mesh),
  )
  loss = jax.jit(lambda tokens, text, mask, params: jnp.mean(apply(module, params, None, tokens, text, mask) ** 2))
  with jax.set_mesh(mesh):
    program = hlo.Program(loss.lower(*inputs, params).compile().as_text())
  sent = program.sent()
  whole = sum(4 * x.size for x in jax.tree.leaves(shapes))
  assert 0.8 * whole < sent["all-gather"] < whole and sum(sent.values()) < 1.05 * whole


def test_a_batch_is_spread_by_its_rows():
  mesh = make_mesh((2, 2, 2))
  rows = shard_batch({"x": np.arange(8)}, mesh)["x"]
  assert [shard.data.tolist() for shard in rows.addressable_shards[::2]] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_rows_that_a_config_says_are_to_be_divided():
  mesh = make_mesh((2, 2, 2))
  sharding.check_batch_size("batch_size", 8, mesh)
  sharding.check_batch_size("batch_size", 3, mesh, 1)
  for rows, prior, message in (
    (9, 0, "batch_size is 9, which does not divide over 4 devices: 8 or 12 would do"),
    (1, 0, "batch_size is 1, which does not divide over 4 devices: 4 would do"),
    (4, 2, "batch_size is 4, which with 2 prior examples does not divide over 4 devices: 2 or 6 would do"),
  ):
    with pytest.raises(ValueError, match=message):
      sharding.check_batch_size("batch_size", rows, mesh, prior)


@pytest.mark.parametrize("x", [np.ones((6, 2)), np.ones(())])
def test_rows_that_cannot_be_divided_are_refused(x):
  with pytest.raises(ValueError, match="evenly over 4 devices: 'images/x' has the shape"):
    shard_batch({"images": {"x": x}}, make_mesh((2, 2, 2)))


def test_rows_stay_where_they_are_when_a_batch_is_taken_in_pieces():
  mesh = make_mesh()
  gradient = accumulate(jax.grad(lambda w, frozen, x, key: jnp.mean((x @ w) ** 2)), 4)
  inputs = shard_params(np.ones((3, 2), np.float32), mesh), None, shard_batch(np.ones((32, 3), np.float32), mesh)
  compiled = jax.jit(gradient).lower(*inputs, jax.random.key(0)).compile().as_text()
  assert "all-reduce" in compiled  # of the gradient, which is all that need travel
  assert not [name for name in ("all-gather", "all-to-all", "collective-permute") if name in compiled]
