"""Logs of a training, as JSON lines."""

from collections.abc import Mapping
import json
import pathlib


class Log:
  """A file of JSON lines, one for each time that something was measured."""

  def __init__(self, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    self._path = path

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds a line."""
    with self._path.open("a") as out:
      out.write(json.dumps({"step": step, **{name: float(value) for name, value in values.items()}}) + "\n")
