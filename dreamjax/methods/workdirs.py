"""What methods share: a workdir belongs to one training; parameters are on devices only while they are needed."""

from collections.abc import Iterable, Mapping, Sequence
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from dreamjax.data.photos import Photos
from dreamjax.errors import UserError
from dreamjax.parallel.sharding import shard_params
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
    free: paths of the fields that may change between two calls, such as "stages.*.steps"; "*" is any one name.
    **others: what else it depends on, in terms of JSON.

  Raises:
    ValueError: if something else is written there.
  """
  digest = hashlib.sha256()
  for image in photos.originals:
    digest.update(f"{image.shape}\n".encode())
    digest.update(np.ascontiguousarray(image))
  bound = _without(config, [path.split(".") for path in free])
  run = {"base_model": base.hash, "photos": digest.hexdigest(), "prompts": photos.prompts, "config": bound}
  run = json.loads(json.dumps({**run, **others}))
  path = workdir / "run.json"
  if path.exists():
    found = json.loads(path.read_text())
    if other := [name for name in run if found.get(name) != run[name]]:
      raise UserError(f"{workdir} holds a training with another {' and '.join(other)}: choose another workdir")
  workdir.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(run, indent=2) + "\n")


def _without(fields: dict[str, Any], paths: Sequence[Sequence[str]]) -> dict[str, Any]:
  """The fields of a config but those at some paths."""
  kept = {}
  for key, value in fields.items():
    below = [path[1:] for path in paths if path[0] in (key, "*")]
    if [] not in below:
      kept[key] = _without(value, below) if isinstance(value, dict) else value
  return kept


def place_parts(params: Mapping[str, Any], parts: Iterable[str], mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Returns some parts of a generator's parameters on a mesh, where they are no longer than the result is held.

  Parts that the caller has on the mesh are not copied; those that the generator does not have are left out.
  """
  return shard_params({part: params[part] for part in parts if part in params}, mesh)
