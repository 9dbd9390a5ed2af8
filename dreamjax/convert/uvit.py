"""aMUSEd's transformers in the layout of diffusers' `UVit2DModel`.

That class supports biases, dropout and norms without scales. The published models and ours have none of these.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.convert.table import (
  CONV,
  TRANSPOSED,
  MappingTable,
  Row,
  Setting,
  View,
  batched,
  read_settings,
  write_settings,
)
from dreamjax.errors import UserError
from dreamjax.models.uvit import UViT

# Convolutions as linear layers: a 1x1 one; a transposed 2x2 one of stride 2, IOHW, which maps to 2x2 pixels in
# row-major order.
_POINTWISE = View(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
_DOUBLING = View(
  lambda x: x.transpose(0, 2, 3, 1).reshape(len(x), -1),
  lambda x: x.reshape(len(x), 2, 2, -1).transpose(0, 3, 1, 2),
)


def _linear(key: str, path: str) -> Row:
  """Returns the row of a linear layer without a bias."""
  return Row(f"{key}.weight", f"{path}/kernel", TRANSPOSED)


def _norm(key: str, path: str) -> Row:
  """Returns the row of a norm without a bias."""
  return Row(f"{key}.weight", f"{path}/scale")


def _attention(key: str, path: str) -> tuple[Row, ...]:
  """Returns the rows of an attention layer."""
  names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out"}
  return tuple(_linear(f"{key}.{theirs}", f"{path}/{ours}") for theirs, ours in names.items())


def _block(name: str) -> tuple[Row, ...]:
  """Returns the rows of the blocks before the layers ("down") or after them ("up")."""
  conv, attention, path = f"{name}_block.res_blocks.{{}}", f"{name}_block.attention_blocks.{{}}", f"{name}_{{}}"
  return (
    Row(f"{conv}.depthwise.weight", f"{path}/conv/depthwise/kernel", CONV),
    _norm(f"{conv}.norm", f"{path}/conv/norm"),
    _linear(f"{conv}.channelwise_linear_1", f"{path}/conv/hidden"),
    Row(f"{conv}.channelwise_norm.gamma", f"{path}/conv/response/scale", batched(3)),
    Row(f"{conv}.channelwise_norm.beta", f"{path}/conv/response/bias", batched(3)),
    _linear(f"{conv}.channelwise_linear_2", f"{path}/conv/out"),
    _linear(f"{conv}.cond_embeds_mapper", f"{path}/conv/film"),
    _linear(f"{attention}.kv_mapper", f"{path}/text"),
    _norm(f"{attention}.norm1", f"{path}/attention_0/norm"),
    *_attention(f"{attention}.attn1", f"{path}/attention_0"),
    _norm(f"{attention}.norm2", f"{path}/attention_1/norm"),
    *_attention(f"{attention}.attn2", f"{path}/attention_1"),
  )


def _modulated(number: int, path: str) -> tuple[Row, Row]:
  """Returns the rows of the norm of a sublayer and of the modulation after it."""
  key = f"transformer_layers.{{}}.norm{number}"
  return _norm(f"{key}.norm", f"layer_{{}}/{path}/norm"), _linear(f"{key}.linear", f"layer_{{}}/{path}/film")


TABLE = MappingTable(
  rows=(
    _linear("encoder_proj", "text"),
    _norm("encoder_proj_layer_norm", "text_norm"),
    _linear("cond_embed.linear_1", "condition_hidden"),
    _linear("cond_embed.linear_2", "condition_out"),
    Row("embed.embeddings.weight", "tokens/embedding"),
    _norm("embed.layer_norm", "tokens_norm"),
    Row("embed.conv.weight", "conv_in/kernel", _POINTWISE),
    _norm("down_block.downsample.norm", "downsample_norm"),
    Row("down_block.downsample.conv.weight", "downsample/kernel", CONV),
    *_block("down"),
    _norm("project_to_hidden_norm", "enter_norm"),
    _linear("project_to_hidden", "enter"),
    *_modulated(1, "self_attention"),
    *_attention("transformer_layers.{}.attn1", "layer_{}/self_attention"),
    *_modulated(2, "cross_attention"),
    *_attention("transformer_layers.{}.attn2", "layer_{}/cross_attention"),
    *_modulated(3, "mlp"),
    _linear("transformer_layers.{}.ff.net.0.proj", "layer_{}/mlp/hidden"),
    _linear("transformer_layers.{}.ff.net.2", "layer_{}/mlp/out"),
    _norm("project_from_hidden_norm", "leave_norm"),
    _linear("project_from_hidden", "leave"),
    *_block("up"),
    _norm("up_block.upsample.norm", "upsample_norm"),
    Row("up_block.upsample.conv.weight", "upsample/kernel", _DOUBLING),
    Row("mlm_layer.conv1.weight", "conv_out/kernel", _POINTWISE),
    _norm("mlm_layer.layer_norm", "norm"),
    Row("mlm_layer.conv2.weight", "logits/kernel", _POINTWISE),
  )
)

SETTINGS = (
  Setting("hidden_size", 1024, "width"),
  Setting("use_bias", False, known=(False,)),
  Setting("hidden_dropout", 0.0, known=(0.0,)),
  Setting("cond_embed_dim", 768, "pooled_width"),
  Setting("micro_cond_encode_dim", 256, "number_width"),
  Setting("encoder_hidden_size", 768, "text_width"),
  Setting("vocab_size", 8256, "vocab"),
  Setting("codebook_size", 8192, "codebook"),
  Setting("in_channels", 768, "token_width"),
  Setting("block_out_channels", 768, "block_width"),
  Setting("num_res_blocks", 3, "blocks"),
  Setting("downsample", False, "halved"),
  Setting("block_num_heads", 12, "block_heads"),
  Setting("num_hidden_layers", 22, "depth"),
  Setting("num_attention_heads", 16, "heads"),
  Setting("attention_dropout", 0.0, known=(0.0,)),
  Setting("intermediate_size", 2816, "mlp"),
  Setting("layer_norm_eps", 1e-6, "eps"),
  Setting("ln_elementwise_affine", True, known=(True,)),
  Setting("sample_size", 64, "side"),
)
# Settings that are determined by others, and their defaults.
DEFAULTS = {"micro_cond_embed_dim": 1280, "upsample": False}


def read(config: dict[str, Any]) -> UViT:
  """Builds the transformer that a `config.json` describes."""
  fields = read_settings(SETTINGS, config)
  channels, upsample = (config.get(name, default) for name, default in DEFAULTS.items())
  if upsample != fields["halved"]:
    problem = f"downsample is {fields['halved']} and upsample {upsample} in config.json"
    raise UserError(f"{problem}, but this model needs the same for both")
  numbers, remainder = divmod(channels, fields["number_width"])
  if remainder:
    problem = f"micro_cond_embed_dim is {channels} in config.json"
    raise UserError(f"{problem}, but this model needs a multiple of micro_cond_encode_dim, {fields['number_width']}")
  return UViT(**fields, numbers=numbers)


def write(module: UViT) -> dict[str, Any]:
  """Returns the `config.json` of a transformer."""
  determined = {"micro_cond_embed_dim": module.numbers * module.number_width, "upsample": module.halved}
  return {"_class_name": "UVit2DModel"} | write_settings(SETTINGS, module) | determined


def inputs(module: UViT) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns the shapes of inputs that the module can be initialised with."""
  tokens = jax.ShapeDtypeStruct((1, module.side**2), jnp.int32)
  shapes = (1, 1, module.text_width), (1, module.pooled_width), (1, module.numbers)
  text, pooled, numbers = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
  return tokens, text, jax.ShapeDtypeStruct((1, 1), jnp.bool), pooled, numbers
