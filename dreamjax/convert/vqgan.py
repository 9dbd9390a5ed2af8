"""VQGANs in the layout of diffusers' `VQModel`, of which aMUSEd's is one.

That class may have attention, ours has none. It has no patches: the config of a VQGAN with patches is the same but for
a `model_type` of our own.
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
  """Builds the module that a `config.json` describes."""
  fields = read_settings(SETTINGS, config)
  widths = tuple(fields["widths"])
  check_levels(config, len(widths))
  embedding = fields["latent"] if fields["embedding"] is None else fields["embedding"]
  return VQGAN(**fields | {"widths": widths, "embedding": embedding}, patch=config.get("patch", 1))


def write(module: VQGAN) -> dict[str, Any]:
  """Returns the `config.json` of a module."""
  ours = {"model_type": "dreamjax_vqgan", "patch": module.patch}
  config = {"_class_name": "VQModel", "lookup_from_codebook": True} if module.patch == 1 else ours
  return config | write_levels(len(module.widths)) | write_settings(SETTINGS, module)


def inputs(module: VQGAN) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns the shapes of inputs that the module can be initialised with."""
  return (jax.ShapeDtypeStruct((1, module.factor, module.factor, 3), jnp.float32),)
