"""U-Nets in diffusers' layout: every parameter is mapped, and every setting is supported or an error."""

import inspect

import jax
import numpy as np
import pytest
import safetensors.numpy

from dreamjax.convert import pretrained, unet
from dreamjax.models import unet as unet_models
from dreamjax.models.unet import IF_I_XL, UNet

SMALL = UNet(
  image=4,
  widths=(8, 16),
  blocks=(0, 1),
  attention=(False, True),
  head_width=8,
  text_width=12,
  cross_width=32,
  pool_heads=2,
  time_width=20,
  groups=4,
)
SR = SMALL.clone(
  low_res=True, self_attention=False, rescale=1 / 0.7071, activation="gelu", attention=(True, False), out_channels=6
)
MODULES = {
  "stage_i": SMALL,
  "stage_ii": SR,
  "conv_steps": SMALL.clone(step="conv"),
  "input_skip": SR.clone(patch=2, image=8, around=True),
}

# The configs that deep-floyd/IF publishes; the widths of IF-I-M and the sizes of IF-II-L are inferred from their number
# of parameters.
IF = {
  "out_channels": 6,
  "cross_attention_norm": "group_norm",
  "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
  "addition_embed_type": "text",
  "act_fn": "gelu",
  "attention_head_dim": 64,
  "encoder_hid_dim": 4096,
  "resnet_time_scale_shift": "scale_shift",
}
IF_I = {
  **IF,
  "sample_size": 64,
  "in_channels": 3,
  "layers_per_block": 3,
  "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
  "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
}
IF_II_L = {
  **IF,
  "sample_size": 256,
  "in_channels": 6,
  "class_embed_type": "timestep",
  "block_out_channels": [160, 320, 640, 1280],
  "layers_per_block": [2, 4, 8, 8],
  "cross_attention_dim": 1280,
  "down_block_types": [*["ResnetDownsampleBlock2D"] * 3, "SimpleCrossAttnDownBlock2D"],
  "up_block_types": ["SimpleCrossAttnUpBlock2D", *["ResnetUpsampleBlock2D"] * 3],
  "only_cross_attention": True,
  "time_embedding_dim": 1280,
  "time_embedding_act_fn": "gelu",
  "resnet_skip_time_act": True,
  "resnet_out_scale_factor": 1 / 0.7071,
  "mid_block_scale_factor": 1 / 0.7071,
}


SMALL_SIZES = {
  "attention_head_dim": 4,
  "block_out_channels": [8, 8, 12, 16],
  "cross_attention_dim": 32,
  "encoder_hid_dim": 12,
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "addition_embed_type_num_heads": 3,
}


def draw(module):
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *unet.inputs(module))["params"]
  return jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.fixture
def folder(tmp_path):
  pretrained.save(tmp_path / "unet", SMALL, draw(SMALL), np.float32)
  return tmp_path / "unet"


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_saving_and_loading_preserves_the_model(tmp_path, module):
  params = draw(module)
  pretrained.save(tmp_path, module, params, np.float32)
  loaded, weights = pretrained.load(tmp_path)
  assert loaded == module
  jax.tree.map(np.testing.assert_array_equal, weights, params)


@pytest.mark.parametrize("config", [IF_I, IF_II_L], ids=["IF-I", "IF-II"])
def test_diffusers_loads_our_folders(tmp_path, config):
  torch = pytest.importorskip("torch")
  import diffusers

  torch.manual_seed(0)
  original = diffusers.UNet2DConditionModel(**config | SMALL_SIZES)
  original.save_pretrained(tmp_path / "theirs")
  pretrained.save(tmp_path / "ours", *pretrained.load(tmp_path / "theirs"), np.float32)
  model, report = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not any(report.values())
  inputs = torch.randn(2, config["in_channels"], 8, 8), torch.tensor([7, 800]), torch.randn(2, 3, 12)
  with torch.no_grad():
    expected, found = (x(*inputs, class_labels=torch.tensor([250, 3])).sample for x in (original, model))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_in_several_files(tmp_path):
  pytest.importorskip("torch")
  import diffusers

  model = diffusers.UNet2DConditionModel(**IF_I | SMALL_SIZES)
  for name, size in (("single", "1GB"), ("parts", "50KB")):
    model.save_pretrained(tmp_path / name, max_shard_size=size)
  assert len(list((tmp_path / "parts").glob("diffusion_pytorch_model-*-of-*.safetensors"))) > 1
  single, parts = (pretrained.load(tmp_path / name)[1] for name in ("single", "parts"))
  jax.tree.map(np.testing.assert_array_equal, parts, single)


def test_defaults_equal_those_of_diffusers():
  pytest.importorskip("torch")
  import diffusers

  defaults = inspect.signature(diffusers.UNet2DConditionModel).parameters
  assert {s.theirs: s.default for s in unet.SETTINGS} == {s.theirs: defaults[s.theirs].default for s in unet.SETTINGS}
  for choice, _ in unet.CHOICES.values():
    assert choice == {name: defaults[name].default for name in choice}
  config = unet.write(SMALL)
  assert config.pop("mid_block_scale_factor") == defaults["mid_block_scale_factor"].default
  assert unet.read(config) == SMALL


@pytest.mark.parametrize(
  "settings",
  [
    {"time_embedding_act_fn": "gelu", "resnet_skip_time_act": True},
    {"layers_per_block": 1, "blocks": (1, 1)},
    {"mid_block_only_cross_attention": True},
    {"encoder_hid_dim_type": None},
    {"time_embedding_dim": None, "time_width": 32},
    {"_diffusers_version": "0.42.1", "use_linear_projection": False, "transformer_layers_per_block": 1},
  ],
)
def test_equivalent_settings_give_the_same_module(settings):
  fields = {name: value for name, value in settings.items() if name in ("blocks", "time_width")}
  assert unet.read(unet.write(SR) | settings) == SR.clone(**fields)


@pytest.mark.parametrize(
  ("settings", "problem"),
  [
    ({"cross_attention_norm": None}, "cross_attention_norm is None in config.json, but this model knows only 'group_n"),
    ({"act_fn": "mish"}, r"\['mish', None, False\] in config.json, but this model knows only \['gelu', None, False\]"),
    ({"encoder_hid_dim": None}, "encoder_hid_dim is None in config.json, but this model needs a number"),
    ({"attention_head_dim": [8, 8]}, r"attention_head_dim is \[8, 8\] in config.json, but this model needs a number"),
    ({"resnet_skip_time_act": True}, r"resnet_skip_time_act are \['silu', None, True\] .*\['silu', 'silu', True\]$"),
    ({"time_embedding_act_fn": "gelu"}, r"\['silu', 'gelu', False\] in config.json"),
    ({"mid_block_scale_factor": 2.0}, r"mid_block_scale_factor are \[2.0\] in config.json, but .* knows only \[1.0\]"),
    ({"in_channels": 6}, r"in_channels and class_embed_type are \[6, None\] .* \[3, None\] and \[6, 'timestep'\]$"),
    ({"in_channels": 4}, r"\[4, None\] in config.json"),
    ({"only_cross_attention": [False, True]}, r"are \[\[False, True\], None\] in config.json"),
    ({"mid_block_only_cross_attention": True}, "only_cross_attention and mid_block_only_cross_attention"),
    (
      {"down_block_types": ["DownBlock2D", "SimpleCrossAttnDownBlock2D"]},
      r"\['DownBlock2D', 'ResnetUpsampleBlock2D'\]",
    ),
    ({"up_block_types": ["ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"]}, "down_block_types and up_block_types"),
    ({"step": "pool"}, r"step are \['pool'\] in config.json, but this model knows only \['block'\] and \['conv'\]"),
    (
      {"up_block_types": ["ResnetUpsampleBlock2D"]},
      "2 block_out_channels, 2 down_block_types and 1 up_block_types, but",
    ),
  ],
)
def test_unsupported_configs(settings, problem):
  with pytest.raises(ValueError, match=problem):
    unet.read(unet.write(SMALL) | settings)


def test_missing_and_unknown_tensors_of_a_checkpoint(folder):
  path = folder / "diffusion_pytorch_model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  del tensors["mid_block.attentions.0.to_k.bias"]
  safetensors.numpy.save_file(tensors | {"down_blocks.0.attentions.0.to_q.bias": np.zeros(8)}, path)
  problem = "missing: mid_block.attentions.0.to_k.bias; unknown: down_blocks.0.attentions.0.to_q.bias"
  with pytest.raises(ValueError, match=f"^{folder}: .* {problem}$"):
    pretrained.load(folder)
  path.unlink()
  with pytest.raises(FileNotFoundError, match=r"neither diffusion_pytorch_model.safetensors nor .*\.index\.json"):
    pretrained.load(folder)


@pytest.mark.parametrize(
  ("config", "millions"),
  [
    ({**IF_I, "block_out_channels": [192, 384, 576, 768], "cross_attention_dim": 768}, 371.6),
    ({**IF_I, "block_out_channels": [320, 640, 960, 1280], "cross_attention_dim": 1280}, 935.4),
    ({**IF_I, "block_out_channels": [704, 1408, 2112, 2816], "cross_attention_dim": 2816}, 4304.7),
    (IF_II_L, 1239.4),
  ],
  ids=["IF-I-M", "IF-I-L", "IF-I-XL", "IF-II-L"],
)
def test_every_parameter_of_the_published_models_is_mapped_with_its_shape(config, millions):
  torch = pytest.importorskip("torch")
  import diffusers

  with torch.device("meta"):
    state = diffusers.UNet2DConditionModel(**config).state_dict()
  module = unet.read(config)
  assert (module == IF_I_XL) == (millions == 4304.7)
  assert (module == unet_models.IF_II_L) == (millions == 1239.4)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *unet.inputs(module))["params"]
  flat = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
  for path, (key, view) in unet.TABLE.sources(flat, state).items():
    assert tuple(state[key].shape) == view.theirs_of(flat[path].shape), key
  assert round(sum(leaf.size for leaf in flat.values()) / 1e6, 1) == millions
