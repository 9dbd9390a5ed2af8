"""The U-Net against diffusers' `UNet2DConditionModel`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models import unet
from dreamjax.models.unet import UNet

# IF's stages, made small: what is left out of these configs is left out of IF's.
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


# For modules that are part of it.
CONDITION = unet.Condition(jnp.ones((2, 16)), jnp.ones((2, 5, 32)), jnp.ones((2, 5), bool))


# Compiles in half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Inputs(NamedTuple):
  """Arguments of the module's call."""

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
  second = {"low_res": low_res, "noise_level": np.float32([250, 0])} if module.low_res else {}
  return jax.tree.map(jnp.asarray, Inputs(x, np.float32([3, 977]), text, **second))


@pytest.mark.parametrize(("config", "remat"), [(STAGE_I, "none"), (STAGE_II, "all")], ids=["stage_i", "stage_ii"])
def test_outputs_and_gradients_are_those_of_the_original(twin, assert_same, config, remat):
  torch = pytest.importorskip("torch")
  import diffusers

  pair = twin(diffusers.UNet2DConditionModel(**config))
  module = pair.module.clone(remat=remat)
  given = inputs(module)
  weights = np.random.default_rng(1).standard_normal((2, 8, 8, 6), np.float32)

  def loss(params, given):
    out = module.apply({"params": params}, *given)
    return jnp.sum(out * weights), out

  (_, ours), gradients = jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(pair.params, given)

  leaves = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), given)
  images = [leaf.permute(0, 3, 1, 2) for leaf in (leaves.x, leaves.low_res) if leaf is not None]
  theirs = pair.original(torch.cat(images, dim=1), leaves.t, leaves.text, class_labels=leaves.noise_level)
  theirs = theirs.sample.permute(0, 2, 3, 1)
  assert_same(ours, theirs.detach().numpy())
  wanted = pair.gradients((theirs * torch.tensor(weights)).sum())
  assert_same(gradients, (wanted, jax.tree.map(lambda leaf: leaf.grad.numpy(), leaves)))


def test_padding_that_is_masked_changes_nothing(draw):
  given = inputs(SMALL, tokens=7)
  variables, predict = draw(SMALL, *given), jit(SMALL.apply)
  mask = jnp.arange(7)[None] < jnp.array([[7], [4]])
  masked = predict(variables, *given._replace(mask=mask))
  changed = jnp.where(mask[..., None], given.text, 9.0)
  np.testing.assert_allclose(predict(variables, *given._replace(mask=mask, text=changed)), masked, atol=1e-5)
  whole = predict(variables, *given)
  np.testing.assert_allclose(whole[0], masked[0], atol=1e-5)
  assert jnp.max(jnp.abs(whole[1] - masked[1])) > 1e-2
  cut = predict(variables, *given._replace(text=given.text[:, :4]))
  np.testing.assert_allclose(cut[1], masked[1], atol=1e-5)


def test_images_of_any_size_that_can_be_halved_pass(draw):
  given = inputs(SMALL, 4, 6)
  assert jax.eval_shape(SMALL.apply, draw(SMALL, *given), *given).shape == (2, 4, 6, 3)


def test_remat_computes_each_block_anew(draw):
  given = inputs(SMALL)
  variables = draw(SMALL, *given)
  blocks = 1 + 2 + (1 + 1) + 1  # a step down, the middle, and a block of each level up, with a step between them
  for module, count in ((SMALL, 0), (SMALL.clone(remat="all"), blocks)):
    assert str(jax.make_jaxpr(module.apply)(variables, *given)).count("= remat") == count


def test_a_step_may_be_one_convolution(draw):
  module = SMALL.clone(step="conv")
  given = inputs(module)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *given)["params"]
  assert shapes["down_0"]["downsample"]["conv"]["kernel"].shape == (3, 3, 8, 16)
  assert shapes["up_0"]["upsample"]["conv"]["kernel"].shape == (3, 3, 16, 8)
  assert jax.eval_shape(module.apply, {"params": shapes}, *given).shape == (2, 8, 8, 3)
  for resize, image, stride in (
    (unet.halve, given.x, 2),
    (unet.upsample_nearest, given.x.repeat(2, 1).repeat(2, 2), 1),
  ):
    step = unet.Step(5, resize, jnp.float32)
    variables = draw(step, given.x, CONDITION)
    kernel, bias = (variables["params"]["conv"][name] for name in ("kernel", "bias"))
    axes = ("NHWC", "HWIO", "NHWC")
    wanted = jax.lax.conv_general_dilated(image, kernel, (stride, stride), "SAME", dimension_numbers=axes)
    np.testing.assert_allclose(step.apply(variables, given.x, CONDITION), wanted + bias[None, None, None], atol=1e-5)


def test_it_starts_with_nothing_added():
  given = inputs(SMALL)
  flat = SMALL.clone(widths=(16,), blocks=(0,), attention=(False,))
  out, variables = jit(flat.init_with_output)(jax.random.key(0, impl="rbg"), *given)
  assert not out.any()
  attention = functools.partial(unet.Attention, 8, True, 4, jnp.float32)
  block = unet.Block(16, "silu", 2.0, 4, jnp.float32, make_attention=attention)
  x = given.x @ jnp.ones((3, 16))
  unchanged = block.apply({"params": variables["params"]["middle_0"]}, x, CONDITION)
  np.testing.assert_allclose(unchanged, x / 2, atol=1e-6)


SECOND = SMALL.clone(low_res=True)


@pytest.mark.parametrize(
  ("module", "change", "problem"),
  [
    (SMALL, {"x": (2, 6, 9, 3)}, "images of 6x9 cannot be halved 1 times"),
    (SMALL, {"x": (2, 8, 8, 6)}, "images have 3 channels, not 6; .* is passed as low_res"),
    (SMALL, {"text": (2, 5, 32)}, "reads tokens of 12 channels, not 32"),
    (SMALL, {"noise_level": (2,)}, "takes neither, but was given noise_level"),
    (SMALL, {"low_res": (2, 8, 8, 3)}, "takes neither, but was given low_res"),
    (SECOND, {"noise_level": None}, "takes low_res and noise_level, but was given low_res"),
    (SECOND, {"low_res": None, "noise_level": None}, "takes low_res and noise_level, but was given neither"),
    (SECOND, {"low_res": (2, 4, 4, 3)}, r"shape \(2, 4, 4, 3\) and x \(2, 8, 8, 3\): enlarge it first"),
    (SMALL.clone(blocks=(1, 1, 1)), {}, "argument 2 is longer"),
  ],
)
def test_inputs_that_do_not_fit_are_refused(module, change, problem):
  given = inputs(module)._replace(**{name: shape and jnp.zeros(shape) for name, shape in change.items()})
  with pytest.raises(ValueError, match=problem):
    jax.eval_shape(module.init, jax.random.key(0), *given)


def test_bfloat16_stays_close_and_out_of_what_float32_is_for(draw):
  given = inputs(SECOND)
  variables, rough = draw(SECOND, *given), SECOND.clone(dtype=jnp.bfloat16)
  exact, near = (jit(module.apply)(variables, *given) for module in (SECOND, rough))
  assert near.dtype == jnp.float32
  assert 1e-5 < jnp.max(jnp.abs(near - exact)) < 0.05 * jnp.max(jnp.abs(exact))
  rough_variables = jax.eval_shape(rough.init, jax.random.key(1), *given)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rough_variables))


def test_patches_are_folded_into_channels_and_back():
  x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
  folded = unet.space_to_depth(x, 2)
  np.testing.assert_array_equal(folded[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
  np.testing.assert_array_equal(unet.depth_to_space(folded, 2), x)


def test_images_go_around_the_network_each_times_its_share(draw):
  given = inputs(SECOND)
  variables, module = draw(SECOND, *given), SECOND.clone(around=True)
  params = variables["params"]
  around = {"kernel": jnp.zeros((SECOND.time_width, 2)), "bias": jnp.array([0.5, -2.0])}
  said = jit(SECOND.apply)(variables, *given)
  added = jit(module.apply)({"params": {**params, "around": around}}, *given) - said
  np.testing.assert_allclose(added[..., :3], 0.5 * given.x - 2 * given.low_res, atol=1e-5)
  np.testing.assert_array_equal(added[..., 3:], 0)
