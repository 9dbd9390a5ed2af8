"""Stable Diffusion's autoencoders in the layout of diffusers' `AutoencoderKL`."""

from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.convert.residual import ROWS, check_levels, write_levels
from dreamjax.convert.residual import SETTINGS as SHARED
from dreamjax.convert.table import MappingTable, Setting, read_settings, write_settings
from dreamjax.models.autoencoder import Autoencoder

# Files written before diffusers 0.17 have other names for the keys of the attention.
TABLE = MappingTable(
  rows=ROWS,
  aliases=(
    (r"(mid_block\.attentions\.0)\.query\.", r"\1.to_q."),
    (r"(mid_block\.attentions\.0)\.key\.", r"\1.to_k."),
    (r"(mid_block\.attentions\.0)\.value\.", r"\1.to_v."),
    (r"(mid_block\.attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
  ),
)

SETTINGS = (
  *SHARED,
  Setting("latent_channels", 4, "latent"),
  Setting("scaling_factor", 0.18215, "scale"),
  Setting("shift_factor", None, "shift"),
  Setting("latents_mean", None, known=(None,)),
  Setting("latents_std", None, known=(None,)),
  Setting("use_quant_conv", True, known=(True,)),
  Setting("use_post_quant_conv", True, known=(True,)),
  Setting("mid_block_add_attention", True, known=(True,)),
)


def read(config: dict[str, Any]) -> Autoencoder:
  """Builds the module that a `config.json` describes."""
  fields = read_settings(SETTINGS, config)
  widths = tuple(fields["widths"])
  check_levels(config, len(widths))
  return Autoencoder(**fields | {"widths": widths, "shift": fields["shift"] or 0.0})


def write(module: Autoencoder) -> dict[str, Any]:
  """Returns the `config.json` of a module."""
  config = {"_class_name": "AutoencoderKL", **write_levels(len(module.widths))}
  return config | write_settings(SETTINGS, module) | {"shift_factor": module.shift or None}


def inputs(module: Autoencoder) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns the shapes of inputs that the module can be initialised with."""
  return (jax.ShapeDtypeStruct((1, module.factor, module.factor, 3), jnp.float32),)
