"""Config files: `FILE[:variant]` and `--config.key=value`, by ml_collections."""

from __future__ import annotations

from collections.abc import Sequence
import importlib.util
import pathlib

from etils import epy

from dreamjax.errors import UserError

with epy.lazy_imports():
  from absl import flags
  import ml_collections
  from ml_collections import config_flags


def load(name: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """Loads a config and changes fields of it.

  Args:
    name: a Python file that defines `get_config`, followed by ":variant" if that takes an argument. A file that does
      not exist is looked for among those installed with dreamjax.
    overrides: strings such as "--config.batch_size=64".

  Raises:
    UserError: if there is no such file, variant or field, or a value is of the wrong type.
  """
  file, colon, variant = name.partition(":")
  values = flags.FlagValues()
  arguments = ["dreamjax", f"--config={_find(file)}{colon}{variant}", *overrides]
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
  try:
    values(arguments)
    return values.config
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    raise UserError(f"{name}: {error}") from error


def _find(file: str) -> pathlib.Path:
  """Returns the file of this name, from the working directory or from those installed."""
  if pathlib.Path(file).is_file():
    return pathlib.Path(file)
  spec = importlib.util.find_spec("dreamjax.configs")
  folder = pathlib.Path(spec.origin).parent if spec and spec.origin else None
  found = folder / pathlib.Path(file).name if folder else None
  if found is None or not found.is_file():
    raise UserError(f"there is no config file {file}, neither here nor among those installed with dreamjax")
  return found
