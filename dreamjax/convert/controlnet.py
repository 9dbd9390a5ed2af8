"""ControlNets of Stable Diffusion in the layout of diffusers' `ControlNetModel`."""

from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.convert import latent_unet
from dreamjax.convert.latent_unet import TRUNK_ROWS, TRUNK_SETTINGS, read_trunk, write_trunk
from dreamjax.convert.table import MappingTable, Setting, conv
from dreamjax.models.controlnet import ControlNet

TABLE = MappingTable(
  rows=(
    *TRUNK_ROWS,
    *conv("controlnet_cond_embedding.conv_in", "image_in"),
    *conv("controlnet_cond_embedding.blocks.{}", "image_{}"),
    *conv("controlnet_cond_embedding.conv_out", "image_out"),
    *conv("controlnet_down_blocks.{}", "zero_{}"),
    *conv("controlnet_mid_block", "zero_middle"),
  )
)

SETTINGS = (
  *TRUNK_SETTINGS,
  Setting("conditioning_embedding_out_channels", (16, 32, 96, 256), "image_widths"),
  Setting("conditioning_channels", 3, known=(3,)),
  Setting("controlnet_conditioning_channel_order", "rgb", known=("rgb",)),
  Setting("global_pool_conditions", False, known=(False,)),
  Setting("mid_block_type", "UNetMidBlock2DCrossAttn", known=("UNetMidBlock2DCrossAttn",)),
)


def read(config: dict[str, Any]) -> ControlNet:
  """Builds the module that a `config.json` describes."""
  fields = read_trunk(config, SETTINGS)
  return ControlNet(**fields | {"image_widths": tuple(fields["image_widths"])})


def write(module: ControlNet) -> dict[str, Any]:
  """Returns the `config.json` of a module."""
  return {"_class_name": "ControlNetModel", **write_trunk(module, SETTINGS)}


def inputs(module: ControlNet) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns the shapes of inputs that the module can be initialised with."""
  x, t, text, *more = latent_unet.inputs(module)
  side = x.shape[1] * 2 ** (len(module.image_widths) - 1)
  return x, t, text, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32), *more
