"""The U-Nets of DeepFloyd IF in the layout of diffusers' `UNet2DConditionModel`.

That class covers many networks; ours is the one of the blocks named below. It covers neither convolutions as steps
between levels, nor patches, nor the skip connection of the input: the config of such a network is the same but for a
`model_type` of our own.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.convert.table import MappingTable, Row, Setting, batched, conv, dense, norm, read_settings, write_settings
from dreamjax.errors import UserError
from dreamjax.models.unet import ACTIVATIONS, UNet


def _block(key: str, path: str) -> tuple[Row, ...]:
  """Returns the rows of a residual block."""
  return (
    *norm(f"{key}.norm1", f"{path}/norm_1"),
    *conv(f"{key}.conv1", f"{path}/conv_1"),
    *dense(f"{key}.time_emb_proj", f"{path}/film"),
    *norm(f"{key}.norm2", f"{path}/norm_2"),
    *conv(f"{key}.conv2", f"{path}/conv_2"),
    *conv(f"{key}.conv_shortcut", f"{path}/around"),
  )


def _attention(key: str, path: str) -> tuple[Row, ...]:
  """Returns the rows of an attention layer."""
  return (
    *norm(f"{key}.group_norm", f"{path}/norm"),
    *norm(f"{key}.norm_cross", f"{path}/text_norm"),
    *dense(f"{key}.to_q", f"{path}/query"),
    *dense(f"{key}.to_k", f"{path}/key"),
    *dense(f"{key}.to_v", f"{path}/value"),
    *dense(f"{key}.add_k_proj", f"{path}/text_key"),
    *dense(f"{key}.add_v_proj", f"{path}/text_value"),
    *dense(f"{key}.to_out.0", f"{path}/out"),
  )


TABLE = MappingTable(
  rows=(
    *conv("conv_in", "conv_in"),
    *dense("time_embedding.linear_1", "time/hidden"),
    *dense("time_embedding.linear_2", "time/out"),
    *dense("class_embedding.linear_1", "noise_level/hidden"),
    *dense("class_embedding.linear_2", "noise_level/out"),
    *norm("add_embedding.norm1", "pool/text_norm"),
    Row("add_embedding.pool.positional_embedding", "pool/position", batched(1)),
    *dense("add_embedding.pool.q_proj", "pool/query"),
    *dense("add_embedding.pool.k_proj", "pool/key"),
    *dense("add_embedding.pool.v_proj", "pool/value"),
    *dense("add_embedding.proj", "pool/out"),
    *norm("add_embedding.norm2", "pool/norm"),
    *dense("encoder_hid_proj", "text"),
    *_block("down_blocks.{}.resnets.{}", "down_{}/block_{}"),
    *_attention("down_blocks.{}.attentions.{}", "down_{}/block_{}/attention"),
    *_block("down_blocks.{}.downsamplers.0", "down_{}/downsample"),
    *conv("down_blocks.{}.downsamplers.0.conv", "down_{}/downsample/conv"),
    *_block("mid_block.resnets.{}", "middle_{}"),
    *_attention("mid_block.attentions.{}", "middle_{}/attention"),
    *_block("up_blocks.{}.resnets.{}", "up_{}/block_{}"),
    *_attention("up_blocks.{}.attentions.{}", "up_{}/block_{}/attention"),
    *_block("up_blocks.{}.upsamplers.0", "up_{}/upsample"),
    *conv("up_blocks.{}.upsamplers.0.conv", "up_{}/upsample/conv"),
    *norm("conv_norm_out", "norm"),
    *conv("conv_out", "conv_out"),
    *dense("around", "around"),
  ),
)

SETTINGS = (
  Setting("sample_size", None, "image"),
  Setting("block_out_channels", (320, 640, 1280, 1280), "widths"),
  Setting("layers_per_block", 2, "blocks"),
  Setting("attention_head_dim", 8, "head_width"),
  Setting("encoder_hid_dim", None, "text_width"),
  Setting("cross_attention_dim", 1280, "cross_width"),
  Setting("addition_embed_type_num_heads", 64, "pool_heads"),
  Setting("time_embedding_dim", None, "time_width"),
  Setting("out_channels", 4, "out_channels"),
  Setting("resnet_out_scale_factor", 1.0, "rescale"),
  Setting("norm_num_groups", 32, "groups"),
  Setting("addition_embed_type", None, known=("text",)),
  Setting("attention_type", "default", known=("default",)),
  Setting("center_input_sample", False, known=(False,)),
  Setting("class_embeddings_concat", False, known=(False,)),
  Setting("conv_in_kernel", 3, known=(3,)),
  Setting("conv_out_kernel", 3, known=(3,)),
  Setting("cross_attention_norm", None, known=("group_norm",)),
  Setting("dropout", 0.0, known=(0.0,)),
  Setting("encoder_hid_dim_type", None, known=("text_proj", None)),
  Setting("flip_sin_to_cos", True, known=(True,)),
  Setting("freq_shift", 0, known=(0,)),
  Setting("mid_block_type", "UNetMidBlock2DCrossAttn", known=("UNetMidBlock2DSimpleCrossAttn",)),
  Setting("norm_eps", 1e-5, known=(1e-5,)),
  Setting("num_class_embeds", None, known=(None,)),
  Setting("resnet_time_scale_shift", "default", known=("scale_shift",)),
  Setting("time_cond_proj_dim", None, known=(None,)),
  Setting("time_embedding_type", "positional", known=("positional",)),
  Setting("timestep_post_act", None, known=(None,)),
)

# Groups of settings that determine one of our fields: their defaults, and the field for each supported combination of
# values. Of several combinations for the same field, the first is written.
CHOICES = {
  # The activation of the embedding is applied in every block, or once before all blocks, which is the same.
  "activation": (
    {"act_fn": "silu", "time_embedding_act_fn": None, "resnet_skip_time_act": False},
    {(name, *rest): name for name in ACTIVATIONS for rest in ((None, False), (name, True))},
  ),
  "low_res": ({"in_channels": 4, "class_embed_type": None}, {(3, None): False, (6, "timestep"): True}),
  "self_attention": (
    {"only_cross_attention": False, "mid_block_only_cross_attention": None},
    {(False, None): True, (True, None): False, (False, False): True, (True, True): False},
  ),
}
LEVELS = {
  ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"): False,
  ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"): True,
}


def _meaning(known: dict[tuple[Any, ...], Any], **settings: Any) -> Any:
  """Looks up the combination of the values of several settings, or raises a ValueError."""
  values = tuple(settings.values())
  for choice, meaning in known.items():
    if values == choice:
      return meaning
  names, choices = " and ".join(settings), " and ".join(str(list(choice)) for choice in known)
  raise UserError(f"{names} are {list(values)} in config.json, but this model knows only {choices}")


def read(config: dict[str, Any]) -> UNet:
  """Builds the module that a `config.json` describes."""
  fields = read_settings(SETTINGS, config)
  for field, (defaults, known) in CHOICES.items():
    fields[field] = _meaning(known, **{name: config.get(name, default) for name, default in defaults.items()})
  _meaning({(fields["rescale"],): None}, mid_block_scale_factor=config.get("mid_block_scale_factor", 1))
  for setting in SETTINGS:
    value = fields.get(setting.ours)
    if setting.ours in ("image", "head_width", "text_width", "cross_width") and not isinstance(value, int):
      raise UserError(f"{setting.theirs} is {value!r} in config.json, but this model needs a number")
  widths, blocks = tuple(fields["widths"]), fields["blocks"]
  downs, ups = config.get("down_block_types", ()), config.get("up_block_types", ())
  if not len(widths) == len(downs) == len(ups):
    counts = f"{len(widths)} block_out_channels, {len(downs)} down_block_types and {len(ups)} up_block_types"
    raise UserError(f"config.json has {counts}, but this model needs one of each for each level")
  pairs = zip(downs, reversed(ups), strict=True)
  fields |= {
    "widths": widths,
    "blocks": (blocks,) * len(widths) if isinstance(blocks, int) else tuple(blocks),
    "attention": tuple(_meaning(LEVELS, down_block_types=down, up_block_types=up) for down, up in pairs),
    "time_width": fields["time_width"] or 4 * widths[0],
  }
  step = _meaning({("block",): "block", ("conv",): "conv"}, step=config.get("step", "block"))
  return UNet(**fields, step=step, patch=config.get("patch", 1), around=config.get("around", False))


def write(module: UNet) -> dict[str, Any]:
  """Returns the `config.json` of a module."""
  ours = {"model_type": "dreamjax_unet", "step": module.step, "patch": module.patch, "around": module.around}
  is_theirs = module.step == "block" and module.patch == 1 and not module.around
  config = {"_class_name": "UNet2DConditionModel"} if is_theirs else ours
  config |= write_settings(SETTINGS, module) | {"mid_block_scale_factor": module.rescale}
  for field, (names, known) in CHOICES.items():
    values = next(values for values, meaning in known.items() if meaning == getattr(module, field))
    config |= dict(zip(names, values, strict=True))
  pairs = {meaning: pair for pair, meaning in LEVELS.items()}
  levels = [pairs[attends] for attends in module.attention]
  downs, ups = [down for down, _ in levels], [up for _, up in reversed(levels)]
  return config | {"down_block_types": downs, "up_block_types": ups}


def inputs(module: UNet) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns the shapes of inputs that the module can be initialised with."""
  image = jax.ShapeDtypeStruct((1, module.image, module.image, 3), jnp.float32)
  t, mask = jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((1, 1), jnp.bool)
  text = jax.ShapeDtypeStruct((1, 1, module.text_width), jnp.float32)
  return image, t, text, mask, *((image, t) if module.low_res else ())
