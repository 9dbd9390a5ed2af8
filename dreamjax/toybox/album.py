"""Albums: examples of a stream, drawn once and kept on disk for trainings that look at them many times."""

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.toybox import captions
from dreamjax.toybox.labels import Labels
from dreamjax.toybox.source import Stream

_CHUNK = 512  # images drawn between two marks of progress


@dataclasses.dataclass(frozen=True)
class Album:
  """The first examples of a stream.

  Attributes:
    images: [n, h, w, 3], bytes; a memory map, so that n may be large.
    labels: what they show, as arrays of n integers.
  """

  images: np.ndarray
  labels: Labels

  def __len__(self) -> int:
    return self.images.shape[0]

  def captions(self, indices: Sequence[int] | np.ndarray) -> list[str]:
    """What the images with these indices show, in English."""
    return [captions.caption(jax.tree.map(lambda x, i=i: x[i], self.labels)) for i in indices]


def draw(folder: pathlib.Path, stream: Stream, count: int, progress: Callable[[int], None] | None = None) -> Album:
  """Draws the first examples of a stream into a folder, or goes on where an earlier call was cut off.

  Args:
    folder: made where missing; holds `images.npy` and `album.json`.
    stream: whose examples.
    count: how many.
    progress: called with the number of images that are there, as they are drawn.

  Raises:
    ValueError: for a count below 1, or if the folder holds another album.
  """
  if count < 1:
    raise ValueError(f"an album needs at least one image, not {count}")
  wanted = {"stream": json.loads(json.dumps(dataclasses.asdict(stream))), "count": count}
  folder.mkdir(parents=True, exist_ok=True)
  images, drawn = _open(folder, wanted, (count, stream.resolution, stream.resolution, 3))
  while drawn < count:
    if progress is not None:
      progress(drawn)
    frame, _ = stream.draw(range(drawn, drawn + min(count, _CHUNK)))  # the last chunk may draw more than it needs
    chunk = np.asarray(jnp.round(255 * jnp.clip(frame.rgb, 0.0, 1.0)).astype(jnp.uint8))[: count - drawn]
    images[drawn : drawn + len(chunk)] = chunk
    images.flush()
    drawn += len(chunk)
    _mark(folder, wanted | {"drawn": drawn})
  if progress is not None:
    progress(drawn)
  labels = jax.device_get(jax.jit(stream.labels)(jnp.arange(count)))
  return Album(np.load(folder / "images.npy", mmap_mode="r"), labels)


def _open(folder: pathlib.Path, wanted: dict[str, Any], shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
  """The album's images, open to be written, and how many are there."""
  known = folder / "album.json"
  if known.exists():
    found = json.loads(known.read_text())
    drawn = found.pop("drawn")
    if found != wanted:
      raise ValueError(f"{folder} holds another album, {found}: choose another folder")
    return np.lib.format.open_memmap(folder / "images.npy", mode="r+"), drawn
  images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
  _mark(folder, wanted | {"drawn": 0})
  return images, 0


def _mark(folder: pathlib.Path, progress: dict[str, Any]) -> None:
  new = folder / "album.json.new"
  new.write_text(json.dumps(progress))
  new.replace(folder / "album.json")
