"""The networks of Stable Diffusion in diffusers' layout: published configs are supported, others are errors."""

import inspect
import math

from flax.traverse_util import flatten_dict
import jax
import numpy as np
import pytest

from dreamjax.convert import autoencoder, controlnet, latent_unet, pretrained
from dreamjax.models.autoencoder import SD
from dreamjax.models.controlnet import ControlNet
from dreamjax.models.latent_unet import SD_15, SD_21, SDXL, LatentUNet

SMALL = LatentUNet(
  widths=(8, 16), blocks=1, attention=(True, False), depth=(1, 1), heads=(2, 2), text_width=12, groups=4
)
# The unet/config.json of published folders, where it differs from diffusers' defaults.
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
PUBLISHED = {
  "sd15": (SD_15, {"cross_attention_dim": 768, "sample_size": 64}),
  "sd21": (
    SD_21,
    {
      "attention_head_dim": [5, 10, 20, 20],
      "cross_attention_dim": 1024,
      "sample_size": 96,
      "upcast_attention": True,
      "use_linear_projection": True,
    },
  ),
  "sdxl": (
    SDXL,
    {
      "addition_embed_type": "text_time",
      "addition_time_embed_dim": 256,
      "attention_head_dim": [5, 10, 20],
      "block_out_channels": [320, 640, 1280],
      "cross_attention_dim": 2048,
      "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
      "projection_class_embeddings_input_dim": 2816,
      "sample_size": 128,
      "transformer_layers_per_block": [1, 2, 10],
      "up_block_types": [CROSS_UP, CROSS_UP, "UpBlock2D"],
      "upcast_attention": None,
      "use_linear_projection": True,
    },
  ),
}
FOUR_LEVELS = {
  "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"],
  "up_block_types": ["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP],
}
COUNTS = {"sd15": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684}
SD_VAE = {
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D"] * 4,
  "up_block_types": ["UpDecoderBlock2D"] * 4,
  "layers_per_block": 2,
}


def assert_all_are_mapped(original, module, converter):
  """Asserts a one-to-one mapping of parameters of equal shapes; returns their number."""
  theirs = {key: tuple(x.shape) for key, x in original.state_dict().items()}
  ours = jax.eval_shape(module.init, jax.random.key(0), *converter.inputs(module))["params"]
  flat = flatten_dict(ours, sep="/")
  sources = converter.TABLE.sources(flat, theirs)
  assert {key for key, _ in sources.values()} == set(theirs)
  for path, (key, view) in sources.items():
    assert view.theirs_of(flat[path].shape) == theirs[key], key
  return sum(math.prod(shape) for shape in theirs.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_parameter_of_published_u_nets_and_control_nets_is_mapped(name):
  torch = pytest.importorskip("torch")
  import diffusers

  module, config = PUBLISHED[name]
  config = ({} if name == "sdxl" else FOUR_LEVELS) | config
  assert latent_unet.read(config) == module
  with torch.device("meta"):
    original = diffusers.UNet2DConditionModel(**config)
    control = diffusers.ControlNetModel.from_unet(original)
  assert assert_all_are_mapped(original, module, latent_unet) == COUNTS[name]
  assert_all_are_mapped(control, controlnet.read(dict(control.config)), controlnet)


def test_every_parameter_of_the_published_autoencoder_is_mapped():
  torch = pytest.importorskip("torch")
  import diffusers

  assert autoencoder.read(SD_VAE) == SD
  with torch.device("meta"):
    original = diffusers.AutoencoderKL(**SD_VAE)
  assert assert_all_are_mapped(original, SD, autoencoder) == 83_653_863


def test_old_names_of_attention_keys_are_mapped():
  paths = ["encoder/middle_attention/query/kernel", "encoder/middle_attention/out/bias"]
  keys = ["encoder.mid_block.attentions.0.query.weight", "encoder.mid_block.attentions.0.proj_attn.bias"]
  assert [key for key, _ in autoencoder.TABLE.sources(paths, keys).values()] == keys


@pytest.mark.parametrize(
  "module",
  [
    SMALL,
    SMALL.clone(pooled_width=5, size_width=4, linear=True, depth=(2, 1), image=8),
    ControlNet(widths=(8,), blocks=1, attention=(True,), depth=(1,), heads=(2,), text_width=12, groups=4),
    SD.clone(widths=(8, 4), groups=4),
  ],
  ids=["sd", "sdxl", "controlnet", "autoencoder"],
)
def test_saving_and_loading_preserves_the_model(tmp_path, module):
  kind = next(kind for kind in pretrained.KINDS.values() if kind.module is type(module))
  shapes = jax.eval_shape(module.init, jax.random.key(0), *kind.inputs(module))["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
  pretrained.save(tmp_path, module, params, np.float32)
  loaded, weights = pretrained.load(tmp_path)
  assert loaded == module
  jax.tree.map(np.testing.assert_array_equal, weights, params)


@pytest.mark.parametrize(
  ("converter", "name"),
  [(latent_unet, "UNet2DConditionModel"), (controlnet, "ControlNetModel"), (autoencoder, "AutoencoderKL")],
)
def test_defaults_equal_those_of_diffusers(converter, name):
  pytest.importorskip("torch")
  import diffusers

  defaults = inspect.signature(getattr(diffusers, name)).parameters
  ours = {s.theirs: s.default for s in converter.SETTINGS if s.theirs in defaults}
  assert ours == {name: defaults[name].default for name in ours}


@pytest.mark.parametrize(
  ("settings", "problem"),
  [
    ({"act_fn": "gelu"}, "act_fn is 'gelu' in config.json"),
    ({"only_cross_attention": True}, "only_cross_attention is True"),
    ({"out_channels": 8}, "in_channels is 4 and out_channels 8"),
    ({"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "down_block_types has 'AttnDownBlock2D'"),
    ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types is not the reverse of down_block_types"),
    ({"attention_head_dim": [2]}, "for 1, 2 and 2 levels; this model needs one of each for each level"),
    ({"layers_per_block": [1, 2]}, r"one layers_per_block for all levels, not \[1, 2\]"),
    ({"addition_embed_type": "text_time"}, "addition_time_embed_dim is None"),
    ({"addition_embed_type": "image"}, "addition_embed_type is 'image'"),
  ],
)
def test_unsupported_u_nets(settings, problem):
  with pytest.raises(ValueError, match=problem):
    latent_unet.read(latent_unet.write(SMALL) | settings)


@pytest.mark.parametrize(
  ("settings", "problem"),
  [
    ({"latents_mean": [0.0]}, "latents_mean is"),
    ({"use_quant_conv": False}, "use_quant_conv is False"),
    ({"up_block_types": ["UpDecoderBlock2D"]}, "this model needs 4 UpDecoderBlock2D"),
  ],
)
def test_unsupported_autoencoders(settings, problem):
  with pytest.raises(ValueError, match=problem):
    autoencoder.read(autoencoder.write(SD) | settings)
