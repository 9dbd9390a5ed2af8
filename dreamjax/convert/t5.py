"""T5's encoder in the layout of transformers' `T5EncoderModel`; of a full T5, only the encoder is loaded."""

from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.convert.table import TRANSPOSED, MappingTable, Row, Setting, read_settings, write_settings
from dreamjax.models.t5 import T5Encoder

TABLE = MappingTable(
  rows=(
    Row("shared.weight", "tokens/embedding"),
    Row("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "position_bias"),
    Row("encoder.block.{}.layer.0.layer_norm.weight", "block_{}/attention_norm/scale"),
    Row("encoder.block.{}.layer.0.SelfAttention.q.weight", "block_{}/attention/query/kernel", TRANSPOSED),
    Row("encoder.block.{}.layer.0.SelfAttention.k.weight", "block_{}/attention/key/kernel", TRANSPOSED),
    Row("encoder.block.{}.layer.0.SelfAttention.v.weight", "block_{}/attention/value/kernel", TRANSPOSED),
    Row("encoder.block.{}.layer.0.SelfAttention.o.weight", "block_{}/attention/out/kernel", TRANSPOSED),
    Row("encoder.block.{}.layer.1.layer_norm.weight", "block_{}/mlp_norm/scale"),
    Row("encoder.block.{}.layer.1.DenseReluDense.wi_0.weight", "block_{}/mlp/gate/kernel", TRANSPOSED),
    Row("encoder.block.{}.layer.1.DenseReluDense.wi_1.weight", "block_{}/mlp/hidden/kernel", TRANSPOSED),
    Row("encoder.block.{}.layer.1.DenseReluDense.wo.weight", "block_{}/mlp/out/kernel", TRANSPOSED),
    Row("encoder.final_layer_norm.weight", "norm/scale"),
  ),
  aliases=((r"^encoder\.embed_tokens\.weight$", "shared.weight"),),
  ignored=(r"decoder\..*", r"lm_head\.weight"),
)

SETTINGS = (
  Setting("vocab_size", 32128, "vocab"),
  Setting("d_model", 512, "width"),
  Setting("d_kv", 64, "head_width"),
  Setting("num_heads", 8, "heads"),
  Setting("d_ff", 2048, "mlp"),
  Setting("num_layers", 6, "depth"),
  Setting("relative_attention_num_buckets", 32, "buckets"),
  Setting("relative_attention_max_distance", 128, "max_distance"),
  Setting("layer_norm_epsilon", 1e-6, "eps"),
  Setting("feed_forward_proj", "relu", known=("gated-gelu",)),
)


def read(config: dict[str, Any]) -> T5Encoder:
  """Builds the module that a `config.json` describes."""
  return T5Encoder(**read_settings(SETTINGS, config))


def write(module: T5Encoder) -> dict[str, Any]:
  """Returns the `config.json` of a module."""
  return {"model_type": "t5", "architectures": ["T5EncoderModel"], **write_settings(SETTINGS, module)}


def inputs(module: T5Encoder) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
  """Returns the shapes of inputs that the module can be initialised with."""
  del module  # the shapes are the same for all
  return jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1, 1), jnp.bool)
