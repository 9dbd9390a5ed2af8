"""Stable Diffusion's U-Net and its ControlNets against diffusers' `UNet2DConditionModel` and `ControlNetModel`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models.controlnet import ControlNet
from dreamjax.models.latent_unet import LatentUNet

# Small networks; where these configs have defaults, so have those of Stable Diffusion 1.5 and SDXL.
SHARED = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 12}
SD = {
  **SHARED,
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
  "attention_head_dim": 2,
}
SDXL = {
  **SHARED,
  "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
  "attention_head_dim": (1, 2),
  "transformer_layers_per_block": (1, 2),
  "use_linear_projection": True,
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 4,
  "projection_class_embeddings_input_dim": 6 * 4 + 10,
}
UPS = {
  ("CrossAttnDownBlock2D", "DownBlock2D"): ("UpBlock2D", "CrossAttnUpBlock2D"),
  ("DownBlock2D", "CrossAttnDownBlock2D"): ("CrossAttnUpBlock2D", "UpBlock2D"),
}
SMALL = LatentUNet(
  widths=(8, 16), blocks=1, attention=(True, False), depth=(1, 1), heads=(2, 2), text_width=12, groups=4
)

# Compiles in half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def given(module):
  """Latents, times and texts; for SDXL's, pooled texts and sizes."""
  rng = np.random.default_rng(0)
  x, text = rng.standard_normal((2, 8, 4, 4), np.float32), 2 * rng.standard_normal((2, 5, 12), np.float32)
  inputs = [x, np.float32([3, 977]), text]
  if module.pooled_width is not None:
    inputs += [rng.standard_normal((2, module.pooled_width), np.float32), 64 * np.abs(x[:, :6, 0, 0])]
  return tuple(jnp.asarray(x) for x in inputs)


def theirs_of(torch, inputs):
  """The inputs as torch's leaves, and as the arguments and options of diffusers' networks."""
  leaves = [torch.tensor(np.asarray(x), requires_grad=True) for x in inputs]
  options = {"added_cond_kwargs": {"text_embeds": leaves[3], "time_ids": leaves[4]}} if len(leaves) > 3 else {}
  return leaves, (leaves[0].permute(0, 3, 1, 2), leaves[1], leaves[2]), options


@pytest.mark.parametrize(("config", "remat"), [(SD, "none"), (SDXL, "all")], ids=["sd", "sdxl"])
def test_outputs_and_gradients_are_those_of_the_original(twin, assert_same, config, remat):
  torch = pytest.importorskip("torch")
  import diffusers

  pair = twin(diffusers.UNet2DConditionModel(**config, up_block_types=UPS[config["down_block_types"]]))
  module = pair.module.clone(remat=remat)
  inputs = given(module)
  weights = np.random.default_rng(1).standard_normal((2, 8, 4, 4), np.float32)

  def loss(params, inputs):
    out = module.apply({"params": params}, *inputs)
    return jnp.sum(out * weights), out

  (_, ours), gradients = jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(pair.params, inputs)
  leaves, arguments, options = theirs_of(torch, inputs)
  theirs = pair.original(*arguments, **options).sample.permute(0, 2, 3, 1)
  assert_same(ours, theirs.detach().numpy())
  wanted = pair.gradients((theirs * torch.tensor(weights)).sum())
  assert_same(gradients, (wanted, tuple(leaf.grad.numpy() for leaf in leaves)), 1e-3)


@pytest.mark.parametrize("config", [SD, SDXL], ids=["sd", "sdxl"])
def test_a_controlled_u_net_is_the_originals(twin, assert_same, config):
  torch = pytest.importorskip("torch")
  import diffusers

  net = twin(diffusers.UNet2DConditionModel(**config, up_block_types=UPS[config["down_block_types"]]))
  control = twin(diffusers.ControlNetModel(**config, conditioning_embedding_out_channels=(4, 6)))
  inputs = given(net.module)
  image = np.random.default_rng(2).random((2, 16, 8, 3), np.float32)

  def predict(params, image):
    residuals = control.module.apply({"params": params}, *inputs[:3], image, *inputs[3:], scale=0.7)
    out = net.module.apply({"params": net.params}, *inputs, *(() if len(inputs) > 3 else (None, None)), residuals)
    return jnp.sum(jnp.square(out)), out

  (_, ours), gradients = jit(jax.value_and_grad(predict, argnums=(0, 1), has_aux=True))(control.params, image)
  _, arguments, options = theirs_of(torch, inputs)
  conditioning = torch.tensor(image.transpose(0, 3, 1, 2), requires_grad=True)
  skips, middle = control.original(*arguments, conditioning, 0.7, return_dict=False, **options)
  theirs = net.original(
    *arguments, **options, down_block_additional_residuals=skips, mid_block_additional_residual=middle
  ).sample
  assert_same(ours, theirs.detach().numpy().transpose(0, 2, 3, 1))
  wanted = control.gradients(theirs.square().sum())
  assert_same(gradients, (wanted, conditioning.grad.numpy().transpose(0, 2, 3, 1)), 1e-3)


def test_an_untrained_control_net_changes_nothing():
  module = ControlNet(**{name: getattr(SMALL, name) for name in ("widths", "blocks", "attention", "depth", "heads")},
                      text_width=12, groups=4, image_widths=(4,))  # fmt: skip
  inputs = given(module)
  residuals = module.init_with_output(jax.random.key(0), *inputs, jnp.ones((2, 8, 4, 3)))[0]
  assert len(residuals.skips) == 4
  assert not any(jnp.any(x) for x in (*residuals.skips, residuals.middle))


@pytest.mark.parametrize(
  ("module", "shapes", "problem"),
  [
    (SMALL, [(2, 8, 4, 3), (2,), (2, 5, 12)], "latents of 4 channels, not 3"),
    (SMALL, [(2, 7, 4, 4), (2,), (2, 5, 12)], "latents of 7x4 cannot be halved 1 times"),
    (SMALL, [(2, 8, 4, 4), (2,), (2, 5, 13)], "tokens of 12 channels, not 13"),
    (SMALL, [(2, 8, 4, 4), (2,), (2, 5, 12), (2, 10), (2, 6)], "this model takes neither"),
    (SMALL.clone(pooled_width=10), [(2, 8, 4, 4), (2,), (2, 5, 12)], "this model takes both"),
    (SMALL.clone(pooled_width=10), [(2, 8, 4, 4), (2,), (2, 5, 12), (2, 9), (2, 6)], "of 10 channels, not 9"),
  ],
)
def test_inputs_that_do_not_fit_are_refused(module, shapes, problem):
  with pytest.raises(ValueError, match=problem):
    jax.eval_shape(module.init, jax.random.key(0), *(jnp.ones(shape) for shape in shapes))


def test_an_image_of_another_size_than_the_latents_is_refused():
  module = ControlNet(widths=(8,), blocks=1, attention=(True,), depth=(1,), heads=(2,), text_width=12, groups=4)
  with pytest.raises(ValueError, match="2 images of 64x32 with 3 channels for latents of 8x4"):
    jax.eval_shape(module.init, jax.random.key(0), *given(module), jnp.ones((2, 32, 32, 3)))
