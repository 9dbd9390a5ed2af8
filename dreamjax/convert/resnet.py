"""Our residual networks, in a layout of dreamjax's own: no one else has them."""

from typing import Any

import jax
import jax.numpy as jnp

from dreamjax.convert.table import MappingTable, Row, Setting, read_settings, write_settings
from dreamjax.models.resnet import Classifier, ResNet

_PATHS = (
  "stem/kernel", "stem/bias", "block_{}_{}/norm_{}/scale", "block_{}_{}/norm_{}/bias", "block_{}_{}/conv_{}/kernel",
  "block_{}_{}/around/kernel", "norm/scale", "norm/bias", "head_{}/kernel", "head_{}/bias",
  "embedding/kernel", "embedding/bias",
)  # fmt: skip

TABLE = MappingTable(rows=tuple(Row(path.replace("/", "."), path) for path in _PATHS))

SETTINGS = (Setting("image_size", 64, "image"), Setting("widths", None, "widths"), Setting("blocks", None, "blocks"))


def read(config: dict[str, Any]) -> Classifier:
  """The classifier that a `config.json` describes."""
  heads = {name: tuple(words) for name, words in config["heads"].items()}
  return Classifier(heads=heads, **_fields(config))


def write(module: Classifier) -> dict[str, Any]:
  """The `config.json` of a classifier."""
  heads = {name: list(words) for name, words in module.heads.items()}
  return {"model_type": "dreamjax_classifier", **write_settings(SETTINGS, module), "heads": heads}


def read_embedding(config: dict[str, Any]) -> ResNet:
  """The network that a `config.json` describes."""
  return ResNet(embedding=config["embedding"], **_fields(config))


def write_embedding(module: ResNet) -> dict[str, Any]:
  """The `config.json` of a network."""
  return {"model_type": "dreamjax_resnet", **write_settings(SETTINGS, module), "embedding": module.embedding}


def inputs(module: Classifier | ResNet) -> tuple[jax.ShapeDtypeStruct]:
  """What the module can be initialised with."""
  return (jax.ShapeDtypeStruct((1, module.image, module.image, 3), jnp.float32),)


def _fields(config: dict[str, Any]) -> dict[str, Any]:
  fields = read_settings(SETTINGS, config)
  return {**fields, "widths": tuple(fields["widths"])}
