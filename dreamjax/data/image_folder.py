"""Folders of images in the image-folder convention: PNGs beside a `metadata.jsonl` that says what each shows."""

from collections.abc import Iterable
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

METADATA = "metadata.jsonl"


def to_uint8(image: np.ndarray) -> np.ndarray:
  """An image in [0, 1] as bytes, rounded."""
  return (np.clip(np.asarray(image), 0.0, 1.0) * 255 + 0.5).astype(np.uint8)


def read(path: pathlib.Path) -> np.ndarray:
  """An image, [h, w, 3] in [0, 1]."""
  with Image.open(path) as image:
    return np.asarray(image.convert("RGB"), np.float32) / 255


def write(
  folder: pathlib.Path,
  images: Iterable[tuple[np.ndarray, dict[str, Any]]],
  *,
  overwrite: bool = False,
  first: int = 0,
) -> list[dict[str, Any]]:
  """Writes images and their metadata as they come.

  Args:
    folder: made where missing. Files of other names in it are left alone.
    images: pairs of an image ([h, w, 3] in [0, 1]) and what is to be known of it, such as its `text`.
    overwrite: whether images that are there already may be replaced.
    first: how many of those before these are there already, with their lines; they are kept.

  Returns:
    The new lines of the metadata: each image's `file_name` and what was given.

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
