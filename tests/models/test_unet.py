"""The U-Net compared with diffusers' `UNet2DConditionModel`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models import unet
from dreamjax.models.unet import UNet

# IF's stages at small sizes: keys that IF's configs omit are omitted here too.
STAGE = {
  "out_channels": 6,
  "norm_num_groups": 4,
  "encoder_hid_dim": 24,
  "cross_attention_dim": 64,
  "attention_head_dim": 4,
  "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
  "addition_embed_type": "text",
  "addition_embed_type_num_heads": 3,
  "cross_attention_norm": "group_norm",
  "resnet_time_scale_shift": "scale_shift",
}
STAGE_I = {
  **STAGE,
  "sample_size": 8,
  "in_channels": 3,
  "block_out_channels": (8, 16),
  "layers_per_block": 1,
  "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
  "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
  "act_fn": "gelu",
}
STAGE_II = {
  **STAGE,
  "sample_size": 16,
  "in_channels": 6,
  "class_embed_type": "timestep",
  "block_out_channels": (8, 12),
  "layers_per_block": (0, 1),
  "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
  "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
  "act_fn": "silu",
  "only_cross_attention": True,
  "time_embedding_dim": 20,
  "time_embedding_act_fn": "silu",
  "resnet_skip_time_act": True,
  "resnet_out_scale_factor": 1 / 0.7071,
  "mid_block_scale_factor": 1 / 0.7071,
}

SMALL = UNet(
  image=8,
  widths=(8, 16),
  blocks=(0, 0),
  attention=(False, True),
  head_width=8,
  text_width=12,
  cross_width=32,
  pool_heads=2,
  time_width=16,
  groups=4,
)


# The conditioning of its submodules.
CONDITION = unet.Condition(jnp.ones((2, 16)), jnp.ones((2, 5, 32)), jnp.ones((2, 5), bool))


# Halves the time of compilation.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Inputs(NamedTuple):
  """The arguments of `UNet.__call__`."""

  x: Any
  t: Any
  text: Any
  mask: Any = None
  low_res: Any = None
  noise_level: Any = None


def inputs(module, height=8, width=8, tokens=5):
  rng = np.random.default_rng(0)
  x, low_res = rng.standard_normal((2, 2, height, width, 3), np.float32)
  text = 2 * rng.standard_normal((2, tokens, module.text_width), np.float32)
  low_res_inputs = {"low_res": low_res, "noise_level": np.float32([250, 0])} if module.low_res else {}
  return jax.tree.map(jnp.asarray, Inputs(x, np.float32([3, 977]), text, **low_res_inputs))


@pytest.mark.parametrize(("config", "remat"), [(STAGE_I, "none"), (STAGE_II, "all")], ids=["stage_i", "stage_ii"])
def test_outputs_and_gradients_equal_the_original(twin, assert_same, config, remat):
  torch = pytest.importorskip("torch")
  import diffusers

  pair = twin(diffusers.UNet2DConditionModel(**config))
  module = pair.module.clone(remat=remat)
  args = inputs(module)
  weights = np.random.default_rng(1).standard_normal((2, 8, 8, 6), np.float32)

  def loss(params, args):
    out = module.apply({"params": params}, *args)
    return jnp.sum(out * weights), out

  (_, ours), gradients = jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(pair.params, args)

  leaves = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), args)
  images = [leaf.permute(0, 3, 1, 2) for leaf in (leaves.x, leaves.low_res) if leaf is not None]
  theirs = pair.original(torch.cat(images, dim=1), leaves.t, leaves.text, class_labels=leaves.noise_level)
  theirs = theirs.sample.permute(0, 2, 3, 1)
  assert_same(ours, theirs.detach().numpy())
  expected = pair.gradients((theirs * torch.tensor(weights)).sum())
  assert_same(gradients, (expected, jax.tree.map(lambda leaf: leaf.grad.numpy(), leaves)))


def test_masked_padding_has_no_effect(draw):
  args = inputs(SMALL, tokens=7)
  variables, predict = draw(SMALL, *args), jit(SMALL.apply)
  mask = jnp.arange(7)[None] < jnp.array([[7], [4]])
  masked = predict(variables, *args._replace(mask=mask))
  changed = jnp.where(mask[..., None], args.text, 9.0)
  np.testing.assert_allclose(predict(variables, *args._replace(mask=mask, text=changed)), masked, atol=1e-5)
  unmasked = predict(variables, *args)
  np.testing.assert_allclose(unmasked[0], masked[0], atol=1e-5)
  assert jnp.max(jnp.abs(unmasked[1] - masked[1])) > 1e-2
  cut = predict(variables, *args._replace(text=args.text[:, :4]))
  np.testing.assert_allclose(cut[1], masked[1], atol=1e-5)


def test_images_of_any_size_that_can_be_halved(draw):
  args = inputs(SMALL, 4, 6)
  assert jax.eval_shape(SMALL.apply, draw(SMALL, *args), *args).shape == (2, 4, 6, 3)


def test_remat_recomputes_each_block(draw):
  args = inputs(SMALL)
  variables = draw(SMALL, *args)
  blocks = 1 + 2 + (1 + 1) + 1  # a step down, the middle, a block of each level of the up path, and a step up
  for module, count in ((SMALL, 0), (SMALL.clone(remat="all"), blocks)):
    assert str(jax.make_jaxpr(module.apply)(variables, *args)).count("= remat") == count


def test_a_step_can_be_one_convolution(draw):
  module = SMALL.clone(step="conv")
  args = inputs(module)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
  assert shapes["down_0"]["downsample"]["conv"]["kernel"].shape == (3, 3, 8, 16)
  assert shapes["up_0"]["upsample"]["conv"]["kernel"].shape == (3, 3, 16, 8)
  assert jax.eval_shape(module.apply, {"params": shapes}, *args).shape == (2, 8, 8, 3)
  for resize, image, stride in ((unet.halve, args.x, 2), (unet.upsample_nearest, args.x.repeat(2, 1).repeat(2, 2), 1)):
    step = unet.Step(5, resize, jnp.float32)
    variables = draw(step, args.x, CONDITION)
    kernel, bias = (variables["params"]["conv"][name] for name in ("kernel", "bias"))
    axes = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(image, kernel, (stride, stride), "SAME", dimension_numbers=axes)
    np.testing.assert_allclose(step.apply(variables, args.x, CONDITION), expected + bias[None, None, None], atol=1e-5)


def test_the_output_and_all_residuals_are_zero_at_initialisation():
  args = inputs(SMALL)
  flat = SMALL.clone(widths=(16,), blocks=(0,), attention=(False,))
  out, variables = jit(flat.init_with_output)(jax.random.key(0, impl="rbg"), *args)
  assert not out.any()
  attention = functools.partial(unet.Attention, 8, True, 4, jnp.float32)
  block = unet.Block(16, "silu", 2.0, 4, jnp.float32, make_attention=attention)
  x = args.x @ jnp.ones((3, 16))
  unchanged = block.apply({"params": variables["params"]["middle_0"]}, x, CONDITION)
  np.testing.assert_allclose(unchanged, x / 2, atol=1e-6)


SR = SMALL.clone(low_res=True)


@pytest.mark.parametrize(
  ("module", "change", "problem"),
  [
    (SMALL, {"x": (2, 6, 9, 3)}, "6x9 positions cannot be halved 1 times"),
    (SMALL, {"x": (2, 8, 8, 6)}, "images have 3 channels, not 6; pass .* as low_res"),
    (SMALL, {"text": (2, 5, 32)}, "takes tokens of 12 channels, not 32"),
    (SMALL, {"noise_level": (2,)}, "takes neither, but was given noise_level"),
    (SMALL, {"low_res": (2, 8, 8, 3)}, "takes neither, but was given low_res"),
    (SR, {"noise_level": None}, "takes low_res and noise_level, but was given low_res"),
    (SR, {"low_res": None, "noise_level": None}, "takes low_res and noise_level, but was given neither"),
    (SR, {"low_res": (2, 4, 4, 3)}, r"shape \(2, 4, 4, 3\) and x \(2, 8, 8, 3\): upsample low_res first"),
    (SMALL.clone(blocks=(1, 1, 1)), {}, "argument 2 is longer"),
  ],
)
def test_inputs_of_wrong_shapes(module, change, problem):
  args = inputs(module)._replace(**{name: shape and jnp.zeros(shape) for name, shape in change.items()})
  with pytest.raises(ValueError, match=problem):
    jax.eval_shape(module.init, jax.random.key(0), *args)


def test_bfloat16_stays_close_and_norms_stay_in_float32(draw):
  args = inputs(SR)
  variables, bfloat16 = draw(SR, *args), SR.clone(dtype=jnp.bfloat16)
  float32, found = (jit(module.apply)(variables, *args) for module in (SR, bfloat16))
  assert found.dtype == jnp.float32
  assert 1e-5 < jnp.max(jnp.abs(found - float32)) < 0.05 * jnp.max(jnp.abs(float32))
  initial = jax.eval_shape(bfloat16.init, jax.random.key(1), *args)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(initial))


def test_patches_move_into_channels_and_back():
  x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
  folded = unet.space_to_depth(x, 2)
  np.testing.assert_array_equal(folded[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
  np.testing.assert_array_equal(unet.depth_to_space(folded, 2), x)


def test_input_images_are_added_to_the_prediction_times_factors(draw):
  args = inputs(SR)
  variables, module = draw(SR, *args), SR.clone(around=True)
  params = variables["params"]
  skip = {"kernel": jnp.zeros((SR.time_width, 2)), "bias": jnp.array([0.5, -2.0])}
  prediction = jit(SR.apply)(variables, *args)
  added = jit(module.apply)({"params": {**params, "around": skip}}, *args) - prediction
  np.testing.assert_allclose(added[..., :3], 0.5 * args.x - 2 * args.low_res, atol=1e-5)
  np.testing.assert_array_equal(added[..., 3:], 0)
