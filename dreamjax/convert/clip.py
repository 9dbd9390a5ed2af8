"""CLIP in the layout of transformers' `CLIPModel`, and each tower alone, with or without its projection."""

from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.convert.table import (
  CONV,
  TRANSPOSED,
  MappingTable,
  Row,
  Setting,
  dense,
  norm,
  read_settings,
  write_settings,
)
from dreamjax.errors import UserError
from dreamjax.models.clip import CLIP, TextTower, VisionTower
from dreamjax.models.transformer import ACTIVATIONS


def _blocks(tower: str) -> tuple[Row, ...]:
  """Returns the rows of the transformer blocks of a tower."""
  layer = f"{tower}.encoder.layers.{{}}"
  return (
    *norm(f"{layer}.layer_norm1", "block_{}/attention_norm"),
    *dense(f"{layer}.self_attn.q_proj", "block_{}/attention/query"),
    *dense(f"{layer}.self_attn.k_proj", "block_{}/attention/key"),
    *dense(f"{layer}.self_attn.v_proj", "block_{}/attention/value"),
    *dense(f"{layer}.self_attn.out_proj", "block_{}/attention/out"),
    *norm(f"{layer}.layer_norm2", "block_{}/mlp_norm"),
    *dense(f"{layer}.mlp.fc1", "block_{}/mlp/hidden"),
    *dense(f"{layer}.mlp.fc2", "block_{}/mlp/out"),
  )


_POSITION_IDS = r"(.*\.)?embeddings\.position_ids"  # 0, 1, 2, ..., which older versions of transformers stored

# Newer versions of transformers omit the name of the tower where they save a tower without a projection.
VISION_TABLE = MappingTable(
  rows=(
    Row("vision_model.embeddings.class_embedding", "embed/class_token"),
    Row("vision_model.embeddings.position_embedding.weight", "embed/positions"),
    Row("vision_model.embeddings.patch_embedding.weight", "embed/patches/kernel", CONV),
    *norm("vision_model.pre_layrnorm", "embed_norm"),
    *_blocks("vision_model"),
    *norm("vision_model.post_layernorm", "norm"),
    Row("visual_projection.weight", "projection/kernel", TRANSPOSED),
  ),
  aliases=((r"^(?=(embeddings|pre_layrnorm|encoder|post_layernorm)\.)", "vision_model."),),
  ignored=(_POSITION_IDS,),
)
TEXT_TABLE = MappingTable(
  rows=(
    Row("text_model.embeddings.token_embedding.weight", "tokens/embedding"),
    Row("text_model.embeddings.position_embedding.weight", "positions"),
    *_blocks("text_model"),
    *norm("text_model.final_layer_norm", "norm"),
    Row("text_projection.weight", "projection/kernel", TRANSPOSED),
  ),
  aliases=((r"^(?=(embeddings|encoder|final_layer_norm)\.)", "text_model."),),
  ignored=(_POSITION_IDS,),
)
TABLE = MappingTable(
  rows=(
    *(row._replace(path=f"vision/{row.path}") for row in VISION_TABLE.rows),
    *(row._replace(path=f"text/{row.path}") for row in TEXT_TABLE.rows),
    Row("logit_scale", "logit_scale"),
  ),
  ignored=(_POSITION_IDS,),
)

VISION_SETTINGS = (
  Setting("image_size", 224, "image"),
  Setting("patch_size", 32, "patch"),
  Setting("hidden_size", 768, "width"),
  Setting("num_hidden_layers", 12, "depth"),
  Setting("num_attention_heads", 12, "heads"),
  Setting("intermediate_size", 3072, "mlp"),
  Setting("projection_dim", 512, "projection"),
  Setting("hidden_act", "quick_gelu", "activation", known=tuple(ACTIVATIONS)),
  Setting("layer_norm_eps", 1e-5, "eps"),
  Setting("num_channels", 3, known=(3,)),
)
TEXT_SETTINGS = (
  Setting("vocab_size", 49408, "vocab"),
  Setting("max_position_embeddings", 77, "length"),
  Setting("hidden_size", 512, "width"),
  Setting("num_hidden_layers", 12, "depth"),
  Setting("num_attention_heads", 8, "heads"),
  Setting("intermediate_size", 2048, "mlp"),
  Setting("projection_dim", 512, "projection"),
  Setting("eos_token_id", 49407, "eos"),
  Setting("hidden_act", "quick_gelu", "activation", known=tuple(ACTIVATIONS)),
  Setting("layer_norm_eps", 1e-5, "eps"),
)
_TOWERS = ("vision_config", "text_config")
_HIGHEST = 2  # as eos_token_id: the highest id, as in the first configs of transformers


def _has_projection(config: dict[str, Any]) -> bool:
  """Whether the architecture of a tower has a projection."""
  return any(name.endswith("WithProjection") for name in config.get("architectures") or ())


def read_vision(config: dict[str, Any]) -> VisionTower:
  """Builds the vision tower that a `config.json` describes."""
  tower = VisionTower(**read_settings(VISION_SETTINGS, config))
  return tower if _has_projection(config) else tower.clone(projection=None)


def read_text(config: dict[str, Any]) -> TextTower:
  """Builds the text tower that a `config.json` describes."""
  tower = TextTower(**read_settings(TEXT_SETTINGS, config))
  tower = tower.clone(eos=tower.vocab - 1) if tower.eos == _HIGHEST else tower
  return tower if _has_projection(config) else tower.clone(projection=None)


def read(config: dict[str, Any]) -> CLIP:
  """Builds the module that a `config.json` describes; where it describes a tower twice, the `_dict` counts."""
  vision, text = ({**(config.get(name) or {}), **(config.get(f"{name}_dict") or {})} for name in _TOWERS)
  width = config.get("projection_dim", 512)
  return CLIP(read_vision(vision).clone(projection=width), read_text(text).clone(projection=width))


def _write_tower(kind: str, settings: tuple[Setting, ...], module: VisionTower | TextTower) -> dict[str, Any]:
  """Returns the `config.json` of a tower."""
  name = "CLIPVisionModel" if kind == "clip_vision_model" else "CLIPTextModel"
  fields = write_settings(settings, module)
  if module.projection is None:
    del fields["projection_dim"]
  else:
    name += "WithProjection"
  return {"model_type": kind, "architectures": [name], **fields}


def write_vision(module: VisionTower) -> dict[str, Any]:
  """Returns the `config.json` of a vision tower."""
  return _write_tower("clip_vision_model", VISION_SETTINGS, module)


def write_text(module: TextTower) -> dict[str, Any]:
  """Returns the `config.json` of a text tower.

  Raises:
    ValueError: if transformers interprets its `eos` as another id.
  """
  if module.eos == _HIGHEST:
    raise UserError(f"transformers interprets the end-of-text token {_HIGHEST} as the highest id: use another one")
  unknown = {"bos_token_id": None, "pad_token_id": None}  # only the tokenizer knows them, and the defaults are CLIP's
  return {**_write_tower("clip_text_model", TEXT_SETTINGS, module), **unknown}


def write(module: CLIP) -> dict[str, Any]:
  """Returns the `config.json` of a module.

  Raises:
    ValueError: if the projections of the towers have different widths.
  """
  width = module.vision.projection
  if width is None or width != module.text.projection:
    raise UserError(f"the projections of the towers have different widths, {width} and {module.text.projection}")
  towers = dict(zip(_TOWERS, (write_vision(module.vision), write_text(module.text)), strict=True))
  return {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": width, **towers}


def vision_inputs(module: VisionTower) -> tuple[jax.ShapeDtypeStruct]:
  """Returns the shapes of inputs that the tower can be initialised with."""
  return (jax.ShapeDtypeStruct((1, module.image, module.image, 3), jnp.float32),)


def text_inputs(module: TextTower) -> tuple[jax.ShapeDtypeStruct]:
  """Returns the shapes of inputs that the tower can be initialised with."""
  return (jax.ShapeDtypeStruct((1, module.length), jnp.int32),)


def inputs(module: CLIP) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
  """Returns the shapes of inputs that the module can be initialised with."""
  return (*vision_inputs(module.vision), *text_inputs(module.text))
