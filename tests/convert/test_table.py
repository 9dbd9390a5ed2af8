"""Mapping tables: names, layouts, and error messages."""

import jax
import numpy as np
import pytest

from dreamjax.convert import clip, pretrained, t5, table, vit
from dreamjax.convert.table import MappingTable, Row, Setting
from dreamjax.models import clip as clip_models
from dreamjax.models import t5 as t5_models
from dreamjax.models import vit as vit_models

SMALL = MappingTable(
  rows=(
    *table.dense("layers.{}.fc", "block_{}/mlp"),
    Row("conv.weight", "conv", table.CONV),
    Row("token", "token", table.batched(2)),
    Row("scale", "scale"),
  ),
  aliases=((r"^old\.", ""),),
  ignored=(r"head\..*",),
)
SHAPES = {
  "block_0": {"mlp": {"kernel": (2, 3), "bias": (3,)}},
  "block_1": {"mlp": {"kernel": (3, 4), "bias": (4,)}},
  "conv": (5, 6, 7, 8),
  "token": (9,),
  "scale": (),
}


def tree():
  rng = np.random.default_rng(0)
  is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
  return jax.tree.map(lambda shape: rng.standard_normal(shape).astype(np.float32), SHAPES, is_leaf=is_shape)


def to_ours(tensors, dtype=np.float32, **options):
  headers = {key: table.Header(np.shape(tensor), "a file") for key, tensor in tensors.items()}
  return SMALL.to_ours(tree(), headers, tensors.__getitem__, dtype, **options)


def test_conversion_can_be_inverted():
  ours = tree()
  theirs = SMALL.to_theirs(ours, np.float32)
  assert {key: tensor.shape for key, tensor in theirs.items()} == {
    "layers.0.fc.weight": (3, 2),
    "layers.0.fc.bias": (3,),
    "layers.1.fc.weight": (4, 3),
    "layers.1.fc.bias": (4,),
    "conv.weight": (8, 7, 5, 6),
    "token": (1, 1, 9),
    "scale": (),
  }
  np.testing.assert_array_equal(theirs["layers.1.fc.weight"], ours["block_1"]["mlp"]["kernel"].T)
  assert theirs["conv.weight"][1, 2, 3, 4] == ours["conv"][3, 4, 2, 1]
  jax.tree.map(np.testing.assert_array_equal, to_ours(theirs), ours)


def test_dtypes_are_cast():
  halves = SMALL.to_theirs(tree(), np.float16)
  assert {tensor.dtype for tensor in halves.values()} == {np.dtype(np.float16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(to_ours(halves))} == {np.dtype(np.float32)}
  assert {leaf.dtype for leaf in jax.tree.leaves(to_ours(halves, np.float16))} == {np.dtype(np.float16)}


def test_aliases_and_ignored_keys():
  ours, theirs = tree(), SMALL.to_theirs(tree(), np.float32)
  theirs["head.weight"] = np.zeros(3)
  theirs["old.scale"] = np.float32(7)
  jax.tree.map(np.testing.assert_array_equal, to_ours(theirs), ours)
  del theirs["scale"]
  assert to_ours(theirs)["scale"] == 7


def test_all_unmatched_keys_are_listed():
  theirs = SMALL.to_theirs(tree(), np.float32)
  del theirs["conv.weight"], theirs["layers.1.fc.bias"]
  theirs |= {"ahead.weight": np.zeros(3), "layers.2.fc.bias": np.zeros(3)}
  with pytest.raises(ValueError, match="missing: conv.weight, layers.1.fc.bias; unknown: ahead.weight, layers.2.fc"):
    to_ours(theirs)
  with pytest.raises(ValueError, match="not one of this model: missing: scale$"):
    to_ours({key: tensor for key, tensor in SMALL.to_theirs(tree(), np.float32).items() if key != "scale"})
  with pytest.raises(ValueError, match="not one of this model: unknown: ahead.weight$"):
    to_ours({**SMALL.to_theirs(tree(), np.float32), "ahead.weight": np.zeros(3)})
  with pytest.raises(ValueError, match="the table has no row for the parameters block_0/gate, other"):
    SMALL.to_theirs(tree() | {"other": np.zeros(3), "block_0": {"gate": np.zeros(3)}}, np.float32)


def test_wrong_shapes_are_listed_before_any_parameter_is_placed():
  theirs, put = SMALL.to_theirs(tree(), np.float32), []
  theirs["layers.1.fc.weight"] = theirs["layers.1.fc.weight"].T
  theirs["scale"] = np.zeros(1)
  with pytest.raises(ValueError, match=r"file: layers.1.fc.weight has shape \(3, 4\), but in the model \(4, 3\); a f"):
    to_ours(theirs, put=lambda path, _: put.append(path))
  assert not put


def test_numbers_that_a_dtype_cannot_represent():
  with pytest.raises(ValueError, match="scale has numbers that are not finite in float16"):
    SMALL.to_theirs({"scale": np.float32(1e5)}, np.float16)
  assert SMALL.to_theirs({"scale": np.float32(1e5)}, np.float32)["scale"] == 1e5


def test_settings_are_read_and_written():
  settings = (Setting("d", 3, "width"), Setting("act", "relu", known=("gelu",)), Setting("depth", 2, "depth"))
  assert table.read_settings(settings, {"act": "gelu", "d": 4, "other": 5}) == {"width": 4, "depth": 2}
  with pytest.raises(ValueError, match="act is 'relu' in config.json, but this model knows only 'gelu'"):
    table.read_settings(settings, {"d": 4})
  assert table.write_settings(settings[:2], vit_models.DINO_S_16) == {"d": 384, "act": "gelu"}


@pytest.mark.parametrize(("kind", "full"), [("t5", {"feed_forward_proj": "gated-gelu"}), ("clip", {}), ("vit", {})])
def test_defaults_equal_those_of_transformers(kind, full):
  import transformers

  config = transformers.AutoConfig.for_model(kind, **full)
  assert pretrained.KINDS[kind].read(full) == pretrained.KINDS[kind].read(config.to_dict())
  for name in ("clip_text_model", "clip_vision_model") if kind == "clip" else ():
    config = transformers.AutoConfig.for_model(name)
    assert pretrained.KINDS[name].read({}) == pretrained.KINDS[name].read(config.to_dict())


T5 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
T5_SMALL = {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
T5_XXL = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
B_32 = {"vision_config": {}, "text_config": {"eos_token_id": 2}}
L_14 = {
  "projection_dim": 768,
  "vision_config": {
    "patch_size": 14,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
  },
  "text_config": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
H_14 = {
  "projection_dim": 1024,
  "vision_config": {
    "patch_size": 14,
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "hidden_act": "gelu",
  },
  "text_config": {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
  },
}
BIG_G_TEXT = {
  "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "intermediate_size": 5120,
  "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
SD_1_TEXT = {
  "hidden_size": 768,
  "num_attention_heads": 12,
  "intermediate_size": 3072,
  "architectures": ["CLIPTextModel"],
}
SD_2_TEXT = H_14["text_config"] | {"num_hidden_layers": 23, "architectures": ["CLIPTextModel"]}
DINO = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "layer_norm_eps": 1e-6}


@pytest.mark.parametrize(
  ("kind", "original", "config", "module", "millions"),
  [
    ("t5", "T5EncoderModel", {**T5, **T5_SMALL}, t5_models.V1_1_SMALL, 35.3),
    ("t5", "T5EncoderModel", {**T5, **T5_XXL}, t5_models.V1_1_XXL, 4762.3),
    ("clip", "CLIPModel", B_32, clip_models.B_32, 151.3),
    ("clip", "CLIPModel", L_14, clip_models.L_14, 427.6),
    ("clip", "CLIPModel", H_14, clip_models.H_14, 986.1),
    ("clip_text_model", "CLIPTextModel", SD_1_TEXT, clip_models.L_14.text.clone(projection=None), 123.1),
    ("clip_text_model", "CLIPTextModel", SD_2_TEXT, clip_models.SD_2_TEXT, 340.4),
    ("clip_text_model", "CLIPTextModelWithProjection", BIG_G_TEXT, clip_models.BIG_G_TEXT, 694.7),
    ("vit", "ViTModel", DINO, vit_models.DINO_S_16, 21.7),
  ],
)
def test_every_parameter_of_the_published_models_is_mapped_with_its_shape(kind, original, config, module, millions):
  torch = pytest.importorskip("torch")
  import transformers
  from transformers.core_model_loading import revert_weight_conversion

  config = transformers.AutoConfig.for_model(kind, **config)
  with torch.device("meta"):
    model = getattr(transformers, original)(config)
  state = revert_weight_conversion(model, model.state_dict())  # under the names in files

  entry = pretrained.KINDS[kind]
  assert entry.read({**config.to_dict(), "architectures": [original]}) == module
  shapes = jax.eval_shape(module.init, jax.random.key(0), *entry.inputs(module))["params"]
  flat = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
  sources = entry.table.sources(flat, state)
  assert sources.keys() == flat.keys()
  for path, (key, view) in sources.items():
    assert tuple(state[key].shape) == view.theirs_of(flat[path].shape), key
  assert round(sum(leaf.size for leaf in flat.values()) / 1e6, 1) == millions


@pytest.mark.parametrize("entry", [t5.TABLE, clip.TABLE, clip.VISION_TABLE, clip.TEXT_TABLE, vit.TABLE])
def test_keys_and_paths_are_unique(entry):
  assert len({row.key for row in entry.rows}) == len({row.path for row in entry.rows}) == len(entry.rows)
