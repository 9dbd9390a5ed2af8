"""The prior set: images of the class, sampled from the frozen model, for the prior-preservation loss.

"DreamBooth" (Ruiz et al., 2208.12242, section 3.3): some hundreds, up to about 1,000, by the ancestral sampler. A set
is sampled once and cached, under a hash of all that its images depend on.
"""

from collections.abc import Callable, Iterator, Mapping
import hashlib
import json
import os
import pathlib
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image

from dreamjax.errors import UserError
from dreamjax.parallel import processes

#: draw(first, count) yields images first, ..., first + count - 1 in order, [h, w, 3] in [-1, 1].
Draw = Callable[[int, int], Iterator[Float[np.ndarray, "h w 3"]]]

_RECIPE = "recipe.json"


def read_or_draw(
  cache: pathlib.Path,
  recipe: Mapping[str, Any],
  count: int,
  draw: Draw,
  progress: Callable[[int], None] | None = None,
) -> UInt8[np.ndarray, "n h w 3"]:
  """Returns the first images of a prior set; those that the cache lacks are sampled.

  Each image is written as soon as it is sampled, so that an interrupted call can be resumed.

  Args:
    cache: folder of sets, created if missing.
    recipe: all that an image depends on besides its number: the model's hash, the prompt, the seed, the sampler; JSON.
    count: number of images.
    draw: samples them.
    progress: called with the number of images that exist.

  Raises:
    ValueError: if count is below 1, or an image in the cache cannot be read; the message names it.
  """
  folder = cache / name(recipe)

  def write() -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _RECIPE).write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n")

  processes.on_main_process(write)
  return complete(folder, count, draw, progress)


def complete(
  folder: pathlib.Path, count: int, draw: Draw, progress: Callable[[int], None] | None = None
) -> UInt8[np.ndarray, "n h w 3"]:
  """Returns the first images of a folder, 00000.png and so on; those that it lacks are sampled. See `read_or_draw`."""
  if count < 1:
    raise UserError(f"a set of images has one image or more, not {count}")
  processes.on_main_process(lambda: folder.mkdir(parents=True, exist_ok=True))
  there = 0
  while there < count and file(folder, there).is_file():
    there += 1
  there = processes.broadcast_from_main(there)
  if progress is not None:
    progress(there)
  if there < count:
    for number, image in enumerate(processes.until_preempted(draw(there, count - there)), start=there):
      if processes.is_main_process():
        _write_image(file(folder, number), image)
      if progress is not None:
        progress(number + 1)
  processes.on_main_process(lambda: None)  # waits until all images are written
  return np.stack([_read_image(file(folder, number)) for number in range(count)])


def name(recipe: Mapping[str, Any]) -> str:
  """Returns the name of a set's folder: a hash of its recipe."""
  return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def file(folder: pathlib.Path, number: int) -> pathlib.Path:
  """Returns the path of an image of a set."""
  return folder / f"{number:05d}.png"


def _write_image(path: pathlib.Path, image: Float[np.ndarray, "h w 3"]) -> None:
  """Writes an image atomically."""
  unfinished = path.with_suffix(".unfinished")
  pixels = np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
  Image.fromarray(pixels).save(unfinished, format="PNG")
  os.replace(unfinished, path)


def _read_image(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
  try:
    with Image.open(path) as image:
      return np.array(image.convert("RGB"))
  except OSError as error:
    raise UserError(f"{path} cannot be read: delete it, and it is sampled anew ({error})") from error
