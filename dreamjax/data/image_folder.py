"""Folders of images in the image-folder convention: PNGs next to a `metadata.jsonl` that describes each of them."""

from collections.abc import Iterable
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from dreamjax.errors import UserError

METADATA = "metadata.jsonl"


def to_uint8(image: np.ndarray) -> np.ndarray:
  """Converts an image in [0, 1] to bytes, rounded."""
  return (np.clip(np.asarray(image), 0.0, 1.0) * 255 + 0.5).astype(np.uint8)


def read(path: pathlib.Path) -> np.ndarray:
  """Reads an image, [h, w, 3] in [0, 1]."""
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB"), np.float32) / 255


def member(folder: pathlib.Path, name: Any) -> pathlib.Path:
  """Returns the path of the file in a folder, or in a folder of it, that a file such as `metadata.jsonl` names.

  Raises:
    ValueError: if the name is not text, or leads out of the folder: as an absolute path, by "..", or by a link.
  """
  if not isinstance(name, str) or "\0" in name or not (folder / name).resolve().is_relative_to(folder.resolve()):
    raise UserError(f"{name!r} is no file inside {folder}")
  return folder / name


def write(
  folder: pathlib.Path,
  images: Iterable[tuple[np.ndarray, dict[str, Any]]],
  *,
  overwrite: bool = False,
  first: int = 0,
) -> list[dict[str, Any]]:
  """Writes images and their metadata one after another.

  Args:
    folder: created if missing. Files of other names in it are left alone.
    images: pairs of an image ([h, w, 3] in [0, 1]) and its metadata, such as its `text`.
    overwrite: whether existing images may be replaced.
    first: number of images that exist already, with their metadata, and are kept; new ones are numbered from here.

  Returns:
    The new lines of the metadata: each image's `file_name` and the given metadata.

  Raises:
    FileExistsError: if the folder holds metadata already and `overwrite` is false.
    OSError: if it cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  if (folder / METADATA).exists() and not overwrite and not first:
    raise FileExistsError(f"{folder} holds images already: choose another folder, or say --overwrite")
  lines = []
  with (folder / METADATA).open("a" if first else "w") as out:
    for i, (image, known) in enumerate(images, first):
      lines.append({"file_name": f"{i:05d}.png", **known})
      Image.fromarray(to_uint8(image)).save(folder / lines[-1]["file_name"])
      out.write(json.dumps(lines[-1]) + "\n")
      out.flush()
  return lines
