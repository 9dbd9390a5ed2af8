"""Our residual networks, in our own layout."""

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
  """Builds the classifier that a `config.json` describes."""
  heads = {name: tuple(classes) for name, classes in config["heads"].items()}
  return Classifier(heads=heads, **_fields(config))


def write(module: Classifier) -> dict[str, Any]:
  """Returns the `config.json` of a classifier."""
  heads = {name: list(classes) for name, classes in module.heads.items()}
  return {"model_type": "dreamjax_classifier", **write_settings(SETTINGS, module), "heads": heads}


def read_embedding(config: dict[str, Any]) -> ResNet:
  """Builds the embedding network that a `config.json` describes."""
  return ResNet(embedding=config["embedding"], **_fields(config))


def write_embedding(module: ResNet) -> dict[str, Any]:
  """Returns the `config.json` of an embedding network."""
  return {"model_type": "dreamjax_resnet", **write_settings(SETTINGS, module), "embedding": module.embedding}


def inputs(module: Classifier | ResNet) -> tuple[jax.ShapeDtypeStruct]:
  """Returns the shapes of inputs that the module can be initialised with."""
  return (jax.ShapeDtypeStruct((1, module.image, module.image, 3), jnp.float32),)


def _fields(config: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields that both networks share."""
  fields = read_settings(SETTINGS, config)
  return {**fields, "widths": tuple(fields["widths"])}
