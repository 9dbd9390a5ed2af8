"""DINO's vision transformer in the layout of transformers' `ViTModel`."""

from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.convert.table import CONV, MappingTable, Row, Setting, batched, dense, norm, read_settings, write_settings
from dreamjax.models.vit import ViT

TABLE = MappingTable(
  rows=(
    Row("embeddings.cls_token", "embed/class_token", batched(2)),
    Row("embeddings.position_embeddings", "embed/positions", batched(1)),
    Row("embeddings.patch_embeddings.projection.weight", "embed/patches/kernel", CONV),
    Row("embeddings.patch_embeddings.projection.bias", "embed/patches/bias"),
    *norm("encoder.layer.{}.layernorm_before", "block_{}/attention_norm"),
    *dense("encoder.layer.{}.attention.attention.query", "block_{}/attention/query"),
    *dense("encoder.layer.{}.attention.attention.key", "block_{}/attention/key"),
    *dense("encoder.layer.{}.attention.attention.value", "block_{}/attention/value"),
    *dense("encoder.layer.{}.attention.output.dense", "block_{}/attention/out"),
    *norm("encoder.layer.{}.layernorm_after", "block_{}/mlp_norm"),
    *dense("encoder.layer.{}.intermediate.dense", "block_{}/mlp/hidden"),
    *dense("encoder.layer.{}.output.dense", "block_{}/mlp/out"),
    *norm("layernorm", "norm"),
  ),
  ignored=(r"pooler\.dense\.(weight|bias)",),
)

SETTINGS = (
  Setting("image_size", 224, "image"),
  Setting("patch_size", 16, "patch"),
  Setting("hidden_size", 768, "width"),
  Setting("num_hidden_layers", 12, "depth"),
  Setting("num_attention_heads", 12, "heads"),
  Setting("intermediate_size", 3072, "mlp"),
  Setting("layer_norm_eps", 1e-12, "eps"),
  Setting("hidden_act", "gelu", known=("gelu",)),
  Setting("num_channels", 3, known=(3,)),
  Setting("qkv_bias", True, known=(True,)),
)


def read(config: dict[str, Any]) -> ViT:
  """Builds the module that a `config.json` describes."""
  return ViT(**read_settings(SETTINGS, config))


def write(module: ViT) -> dict[str, Any]:
  """Returns the `config.json` of a module."""
  return {"model_type": "vit", "architectures": ["ViTModel"], **write_settings(SETTINGS, module)}


def inputs(module: ViT) -> tuple[jax.ShapeDtypeStruct]:
  """Returns the shapes of inputs that the module can be initialised with."""
  return (jax.ShapeDtypeStruct((1, module.image, module.image, 3), jnp.float32),)
