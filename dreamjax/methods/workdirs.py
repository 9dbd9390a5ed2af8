"""A workdir belongs to one training: what that depends on is written down, and another is refused."""

from collections.abc import Sequence
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from dreamjax.data.photos import Photos
from dreamjax.theta import Base


def bind(
  workdir: pathlib.Path, base: Base, photos: Photos, config: dict[str, Any], free: Sequence[str], **others: Any
) -> None:
  """Writes `run.json`, what a training depends on.

  Args:
    workdir: made where missing.
    base: the generator.
    photos: what is learned from.
    config: the recipe.
    free: names of fields of the recipe, at any depth, that may change between two calls.
    **others: what else it depends on, in terms of JSON.

  Raises:
    ValueError: if something else is written there.
  """

  def bound(fields: Any) -> Any:
    if not isinstance(fields, dict):
      return fields
    return {key: bound(value) for key, value in fields.items() if key not in free}

  digest = hashlib.sha256()
  for image in photos.originals:
    digest.update(f"{image.shape}\n".encode())
    digest.update(np.ascontiguousarray(image))
  run = {"base_model": base.hash, "photos": digest.hexdigest(), "prompts": photos.prompts, "config": bound(config)}
  run = json.loads(json.dumps({**run, **others}))
  path = workdir / "run.json"
  if path.exists():
    found = json.loads(path.read_text())
    if other := [name for name in run if found.get(name) != run[name]]:
      raise ValueError(f"{workdir} holds a training with another {' and '.join(other)}: choose another workdir")
  workdir.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(run, indent=2) + "\n")
