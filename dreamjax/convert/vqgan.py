"""VQGANs in the layout of diffusers' `VQModel`, as aMUSEd has one.

That class may have attention, which ours has not. A VQGAN whose first level sees patches is none of them, so its
folder, otherwise alike, goes by a name of dreamjax's own.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.convert.table import Row, Setting, Table, conv, norm, read_settings, write_settings
from dreamjax.models.vqgan import VQGAN


def _block(key: str, path: str) -> tuple[Row, ...]:
  return (
    *norm(f"{key}.norm1", f"{path}/norm_1"),
    *conv(f"{key}.conv1", f"{path}/conv_1"),
    *norm(f"{key}.norm2", f"{path}/norm_2"),
    *conv(f"{key}.conv2", f"{path}/conv_2"),
    *conv(f"{key}.conv_shortcut", f"{path}/around"),
  )


def _half(name: str, level: str, step: str) -> tuple[Row, ...]:
  """The encoder, or the decoder."""
  return (
    *conv(f"{name}.conv_in", f"{name}/conv_in"),
    *_block(f"{name}.{level}_blocks.{{}}.resnets.{{}}", f"{name}/{level}_{{}}/block_{{}}"),
    *conv(f"{name}.{level}_blocks.{{}}.{step}rs.0.conv", f"{name}/{level}_{{}}/{step}/conv"),
    *_block(f"{name}.mid_block.resnets.{{}}", f"{name}/middle_{{}}"),
    *norm(f"{name}.conv_norm_out", f"{name}/norm"),
    *conv(f"{name}.conv_out", f"{name}/conv_out"),
  )


TABLE = Table(
  rows=(
    *_half("encoder", "down", "downsample"),
    *conv("quant_conv", "before"),
    Row("quantize.embedding.weight", "codebook"),
    *conv("post_quant_conv", "after"),
    *_half("decoder", "up", "upsample"),
  )
)

SETTINGS = (
  Setting("block_out_channels", (64,), "widths"),
  Setting("layers_per_block", 1, "blocks"),
  Setting("latent_channels", 3, "latent"),
  Setting("vq_embed_dim", None, "embedding"),
  Setting("num_vq_embeddings", 256, "codebook"),
  Setting("norm_num_groups", 32, "groups"),
  Setting("act_fn", "silu", known=("silu",)),
  Setting("in_channels", 3, known=(3,)),
  Setting("out_channels", 3, known=(3,)),
  Setting("norm_type", "group", known=("group",)),
  Setting("mid_block_add_attention", True, known=(False,)),
)
LEVELS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def read(config: dict[str, Any]) -> VQGAN:
  """The module that a `config.json` describes."""
  fields = read_settings(SETTINGS, config)
  widths = tuple(fields["widths"])
  for name, level in LEVELS.items():
    if list(config.get(name, (level,))) != [level] * len(widths):
      raise ValueError(f"{name} is {config.get(name)} in config.json, but this model needs {len(widths)} {level}")
  embedding = fields["latent"] if fields["embedding"] is None else fields["embedding"]
  return VQGAN(**fields | {"widths": widths, "embedding": embedding}, patch=config.get("patch", 1))


def write(module: VQGAN) -> dict[str, Any]:
  """The `config.json` of a module."""
  own = {"model_type": "dreamjax_vqgan", "patch": module.patch}
  config = {"_class_name": "VQModel", "lookup_from_codebook": True} if module.patch == 1 else own
  config |= {name: [level] * len(module.widths) for name, level in LEVELS.items()}
  return config | write_settings(SETTINGS, module)


def inputs(module: VQGAN) -> tuple[jax.ShapeDtypeStruct, ...]:
  """What the module can be initialised with."""
  return (jax.ShapeDtypeStruct((1, module.factor, module.factor, 3), jnp.float32),)
