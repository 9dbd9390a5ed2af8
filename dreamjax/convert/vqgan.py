"""VQGANs in the layout of diffusers' `VQModel`, as aMUSEd has one.

That class may have attention, which ours has not. A VQGAN whose first level sees patches is none of them, so its
folder, otherwise alike, goes by a name of dreamjax's own.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.convert.residual import ROWS, check_levels, write_levels
from dreamjax.convert.residual import SETTINGS as SHARED
from dreamjax.convert.table import MappingTable, Row, Setting, read_settings, write_settings
from dreamjax.models.vqgan import VQGAN

TABLE = MappingTable(rows=(*ROWS, Row("quantize.embedding.weight", "codebook")))

SETTINGS = (
  *SHARED,
  Setting("latent_channels", 3, "latent"),
  Setting("vq_embed_dim", None, "embedding"),
  Setting("num_vq_embeddings", 256, "codebook"),
  Setting("norm_type", "group", known=("group",)),
  Setting("mid_block_add_attention", True, known=(False,)),
)


def read(config: dict[str, Any]) -> VQGAN:
  """The module that a `config.json` describes."""
  fields = read_settings(SETTINGS, config)
  widths = tuple(fields["widths"])
  check_levels(config, len(widths))
  embedding = fields["latent"] if fields["embedding"] is None else fields["embedding"]
  return VQGAN(**fields | {"widths": widths, "embedding": embedding}, patch=config.get("patch", 1))


def write(module: VQGAN) -> dict[str, Any]:
  """The `config.json` of a module."""
  own = {"model_type": "dreamjax_vqgan", "patch": module.patch}
  config = {"_class_name": "VQModel", "lookup_from_codebook": True} if module.patch == 1 else own
  return config | write_levels(len(module.widths)) | write_settings(SETTINGS, module)


def inputs(module: VQGAN) -> tuple[jax.ShapeDtypeStruct, ...]:
  """What the module can be initialised with."""
  return (jax.ShapeDtypeStruct((1, module.factor, module.factor, 3), jnp.float32),)
