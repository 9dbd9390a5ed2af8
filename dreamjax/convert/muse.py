"""Muse's transformers, in our own layout, since the paper's weights are not published."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.convert.table import MappingTable, Row
from dreamjax.errors import UserError
from dreamjax.models.muse import Muse

_LAYERS = ("layer_{}", "low_layer_{}")
_ATTENTIONS = tuple(f"{layer}/{part}_attention" for layer in _LAYERS for part in ("self", "cross"))
_PATHS = (
  *(f"{x}/{name}/kernel" for x in _ATTENTIONS for name in ("query", "key", "value", "out")),
  *(f"{layer}/mlp/{name}/{kind}" for layer in _LAYERS for name in ("hidden", "out") for kind in ("kernel", "bias")),
  *(f"{x}/norm/{kind}" for x in (*_ATTENTIONS, *(f"{y}/mlp" for y in _LAYERS)) for kind in ("scale", "bias")),
  *(f"{name}/{kind}" for name in ("norm", "text_norm", "low_norm") for kind in ("scale", "bias")),
  *(f"{low}{name}" for low in ("", "low_") for name in ("row_positions", "column_positions", "tokens/embedding")),
  "text/kernel", "logits/kernel", "logits/bias",
)  # fmt: skip

TABLE = MappingTable(rows=tuple(Row(path.replace("/", "."), path) for path in _PATHS))

_COMPUTING = ("parent", "name", "dtype", "remat", "scan")  # fields that do not affect the weights
_FIELDS = tuple(field.name for field in dataclasses.fields(Muse) if field.name not in _COMPUTING)


def read(config: dict[str, Any]) -> Muse:
  """Builds the transformer that a `config.json` describes.

  Raises:
    ValueError: if a setting is missing.
  """
  if missing := [name for name in _FIELDS if name not in config]:
    raise UserError(f"config.json lacks {', '.join(missing)}")
  return Muse(**{name: config[name] for name in _FIELDS})


def write(module: Muse) -> dict[str, Any]:
  """Returns the `config.json` of a transformer."""
  return {"model_type": "dreamjax_muse", **{name: getattr(module, name) for name in _FIELDS}}


def inputs(module: Muse) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns the shapes of inputs that the module can be initialised with."""
  tokens = jax.ShapeDtypeStruct((1, module.side**2), jnp.int32)
  text = jax.ShapeDtypeStruct((1, 1, module.text_width), jnp.float32), jax.ShapeDtypeStruct((1, 1), jnp.bool)
  if not module.low_side:
    return tokens, *text
  return tokens, *text, jax.ShapeDtypeStruct((1, module.low_side**2), jnp.int32)
