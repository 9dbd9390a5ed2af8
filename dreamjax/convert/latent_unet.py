"""Stable Diffusion's U-Nets in the layout of diffusers' `UNet2DConditionModel`.

That class covers many networks; ours is the one of the blocks named below. IF's is in `convert.unet`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.convert.residual import block
from dreamjax.convert.table import (
  TRANSPOSED,
  MappingTable,
  Row,
  Setting,
  conv,
  dense,
  norm,
  read_settings,
  write_settings,
)
from dreamjax.errors import UserError
from dreamjax.models.latent_unet import LatentUNet, Trunk


def _attention(key: str, path: str) -> tuple[Row, ...]:
  """Returns the rows of an attention layer."""
  return (
    Row(f"{key}.to_q.weight", f"{path}/query/kernel", TRANSPOSED),
    Row(f"{key}.to_k.weight", f"{path}/key/kernel", TRANSPOSED),
    Row(f"{key}.to_v.weight", f"{path}/value/kernel", TRANSPOSED),
    *dense(f"{key}.to_out.0", f"{path}/out"),
  )


def _transformer(key: str, path: str) -> tuple[Row, ...]:
  """Returns the rows of a transformer of several layers."""
  theirs, ours = f"{key}.transformer_blocks.{{}}", f"{path}/layer_{{}}"
  return (
    *norm(f"{key}.norm", f"{path}/norm"),
    *dense(f"{key}.proj_in", f"{path}/enter"),
    *conv(f"{key}.proj_in", f"{path}/enter_conv"),
    *norm(f"{theirs}.norm1", f"{ours}/norm_self"),
    *_attention(f"{theirs}.attn1", f"{ours}/self"),
    *norm(f"{theirs}.norm2", f"{ours}/norm_cross"),
    *_attention(f"{theirs}.attn2", f"{ours}/cross"),
    *norm(f"{theirs}.norm3", f"{ours}/norm_mlp"),
    *dense(f"{theirs}.ff.net.0.proj", f"{ours}/hidden"),
    *dense(f"{theirs}.ff.net.2", f"{ours}/out"),
    *dense(f"{key}.proj_out", f"{path}/leave"),
    *conv(f"{key}.proj_out", f"{path}/leave_conv"),
  )


# The down path and the middle, which ControlNets have too.
TRUNK_ROWS = (
  *conv("conv_in", "conv_in"),
  *dense("time_embedding.linear_1", "time/hidden"),
  *dense("time_embedding.linear_2", "time/out"),
  *dense("add_embedding.linear_1", "size/hidden"),
  *dense("add_embedding.linear_2", "size/out"),
  *block("down_blocks.{}.resnets.{}", "down_{}/block_{}"),
  *_transformer("down_blocks.{}.attentions.{}", "down_{}/transformer_{}"),
  *conv("down_blocks.{}.downsamplers.0.conv", "down_{}/downsample/conv"),
  *block("mid_block.resnets.0", "middle_0/block_0"),
  *_transformer("mid_block.attentions.0", "middle_0/transformer_0"),
  *block("mid_block.resnets.1", "middle_1"),
)

TABLE = MappingTable(
  rows=(
    *TRUNK_ROWS,
    *block("up_blocks.{}.resnets.{}", "up_{}/block_{}"),
    *_transformer("up_blocks.{}.attentions.{}", "up_{}/transformer_{}"),
    *conv("up_blocks.{}.upsamplers.0.conv", "up_{}/upsample/conv"),
    *norm("conv_norm_out", "norm"),
    *conv("conv_out", "conv_out"),
  ),
)

TRUNK_SETTINGS = (
  Setting("block_out_channels", (320, 640, 1280, 1280), "widths"),
  Setting("layers_per_block", 2, "blocks"),
  Setting("attention_head_dim", 8, "heads"),  # diffusers' misnomer: the number of heads, not their channels
  Setting("transformer_layers_per_block", 1, "depth"),
  Setting("cross_attention_dim", 1280, "text_width"),
  Setting("in_channels", 4, "channels"),
  Setting("addition_time_embed_dim", None, "size_width"),
  Setting("use_linear_projection", False, "linear"),
  Setting("norm_num_groups", 32, "groups"),
  Setting("act_fn", "silu", known=("silu",)),
  Setting("addition_embed_type", None, known=(None, "text_time")),
  Setting("class_embed_type", None, known=(None,)),
  Setting("downsample_padding", 1, known=(1,)),
  Setting("encoder_hid_dim", None, known=(None,)),
  Setting("encoder_hid_dim_type", None, known=(None,)),
  Setting("flip_sin_to_cos", True, known=(True,)),
  Setting("freq_shift", 0, known=(0,)),
  Setting("mid_block_scale_factor", 1, known=(1,)),
  Setting("norm_eps", 1e-5, known=(1e-5,)),
  Setting("num_attention_heads", None, known=(None,)),
  Setting("num_class_embeds", None, known=(None,)),
  Setting("only_cross_attention", False, known=(False,)),
  Setting("resnet_time_scale_shift", "default", known=("default",)),
  Setting("upcast_attention", False, known=(False, None, True)),  # our softmax is always in float32
)

SETTINGS = (
  *TRUNK_SETTINGS,
  Setting("sample_size", None, "image"),
  Setting("out_channels", 4, "channels"),
  Setting("attention_type", "default", known=("default",)),
  Setting("center_input_sample", False, known=(False,)),
  Setting("class_embeddings_concat", False, known=(False,)),
  Setting("conv_in_kernel", 3, known=(3,)),
  Setting("conv_out_kernel", 3, known=(3,)),
  Setting("cross_attention_norm", None, known=(None,)),
  Setting("dropout", 0.0, known=(0.0,)),
  Setting("dual_cross_attention", False, known=(False,)),
  Setting("mid_block_only_cross_attention", None, known=(None, False)),
  Setting("mid_block_type", "UNetMidBlock2DCrossAttn", known=("UNetMidBlock2DCrossAttn",)),
  Setting("resnet_out_scale_factor", 1.0, known=(1.0,)),
  Setting("resnet_skip_time_act", False, known=(False,)),
  Setting("reverse_transformer_layers_per_block", None, known=(None,)),
  Setting("time_cond_proj_dim", None, known=(None,)),
  Setting("time_embedding_act_fn", None, known=(None,)),
  Setting("time_embedding_dim", None, known=(None,)),
  Setting("time_embedding_type", "positional", known=("positional",)),
  Setting("timestep_post_act", None, known=(None,)),
)

DOWNS = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
UPS = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
SIZES = 6  # numbers in the micro-conditioning of SDXL


def read_trunk(config: dict[str, Any], settings: tuple[Setting, ...]) -> dict[str, Any]:
  """Returns the fields that U-Nets and ControlNets share, from a `config.json`."""
  fields = read_settings(settings, config)
  fields["widths"] = tuple(fields["widths"])
  levels = len(fields["widths"])
  for ours in ("heads", "depth"):
    value = fields[ours]
    fields[ours] = (value,) * levels if isinstance(value, int) else tuple(value)
  fields["attention"] = read_levels(config, "down_block_types", DOWNS)
  lengths = {name: len(fields[name]) for name in ("widths", "heads", "depth", "attention")}
  if len(set(lengths.values())) > 1 or not isinstance(fields["blocks"], int):
    raise UserError(
      f"config.json has {lengths['attention']} down_block_types, but attention_head_dim, block_out_channels and "
      f"transformer_layers_per_block for {lengths['heads']}, {levels} and {lengths['depth']} levels; this model needs "
      f"one of each for each level, and one layers_per_block for all levels, not {fields['blocks']}"
    )
  size_width = fields.pop("size_width")
  if config.get("addition_embed_type") == "text_time":
    width = config.get("projection_class_embeddings_input_dim")
    if not isinstance(size_width, int) or not isinstance(width, int) or width <= SIZES * size_width:
      raise UserError(
        f"addition_time_embed_dim is {size_width!r} and projection_class_embeddings_input_dim {width!r} in "
        f"config.json, but this model needs numbers, the second more than {SIZES} times the first"
      )
    fields |= {"size_width": size_width, "pooled_width": width - SIZES * size_width}
  return fields


def read_levels(config: dict[str, Any], name: str, known: dict[str, bool]) -> tuple[bool, ...]:
  """Returns which levels have attention."""
  levels = tuple(config.get(name, ()))
  if unknown := [level for level in levels if level not in known]:
    raise UserError(f"{name} has {unknown[0]!r} in config.json, but this model knows only {' and '.join(known)}")
  return tuple(known[level] for level in levels)


def write_trunk(module: Trunk, settings: tuple[Setting, ...]) -> dict[str, Any]:
  """The inverse of `read_trunk`."""
  config = write_settings(settings, module)
  names = {attends: name for name, attends in DOWNS.items()}
  config["down_block_types"] = [names[attends] for attends in module.attention]
  if module.pooled_width is None:
    return config | {"addition_time_embed_dim": None}
  width = module.pooled_width + SIZES * module.size_width
  return config | {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": width}


def read(config: dict[str, Any]) -> LatentUNet:
  """Builds the module that a `config.json` describes."""
  fields = read_trunk(config, SETTINGS)
  if config.get("in_channels", 4) != config.get("out_channels", 4):
    channels = f"in_channels is {config.get('in_channels', 4)} and out_channels {config.get('out_channels', 4)}"
    raise UserError(f"{channels} in config.json, but this model needs the same number of both")
  if read_levels(config, "up_block_types", UPS) != fields["attention"][::-1]:
    raise UserError("up_block_types is not the reverse of down_block_types in config.json, as this model needs")
  if fields["image"] is None:
    del fields["image"]
  return LatentUNet(**fields)


def write(module: LatentUNet) -> dict[str, Any]:
  """Returns the `config.json` of a module."""
  names = {attends: name for name, attends in UPS.items()}
  ups = [names[attends] for attends in reversed(module.attention)]
  return {"_class_name": "UNet2DConditionModel", **write_trunk(module, SETTINGS), "up_block_types": ups}


def inputs(module: Trunk) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns the shapes of inputs for initialisation: latents, timesteps, texts; for SDXL, pooled texts and sizes."""
  side = 2 ** (len(module.widths) - 1)
  shapes = [(1, side, side, module.channels), (1,), (1, 1, module.text_width)]
  if module.pooled_width is not None:
    shapes += [(1, module.pooled_width), (1, SIZES)]
  return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
