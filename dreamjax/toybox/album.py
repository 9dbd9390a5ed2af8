"""Albums: examples of a stream, rendered once and kept on disk for trainings that read them many times."""

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

_CHUNK = 512  # images rendered between two updates of the progress file


@dataclasses.dataclass(frozen=True)
class Album:
  """The first examples of a stream.

  Attributes:
    images: [n, h, w, 3], bytes; a memory map, so that n may be large.
    labels: what the images show, as arrays of n integers.
  """

  images: np.ndarray
  labels: Labels

  def __len__(self) -> int:
    return self.images.shape[0]

  def captions(self, indices: Sequence[int] | np.ndarray) -> list[str]:
    """Returns the captions of the images with these indices."""
    return [captions.caption(jax.tree.map(lambda x, i=i: x[i], self.labels)) for i in indices]


def draw(folder: pathlib.Path, stream: Stream, count: int, progress: Callable[[int], None] | None = None) -> Album:
  """Renders the first examples of a stream into a folder, or resumes where an earlier call was interrupted.

  Args:
    folder: created if missing; holds `images.npy` and `album.json`.
    stream: the stream whose examples are rendered.
    count: the number of examples.
    progress: called with the number of images rendered so far.

  Raises:
    ValueError: for a count below 1, or if the folder holds another album.
  """
  if count < 1:
    raise ValueError(f"an album needs at least one image, not {count}")
  wanted = {"stream": json.loads(json.dumps(dataclasses.asdict(stream))), "count": count}
  folder.mkdir(parents=True, exist_ok=True)
  images, rendered = _open(folder, wanted, (count, stream.resolution, stream.resolution, 3))
  while rendered < count:
    if progress is not None:
      progress(rendered)
    # The last chunk may render more than is needed.
    frame, _ = stream.draw(range(rendered, rendered + min(count, _CHUNK)))
    chunk = np.asarray(jnp.round(255 * jnp.clip(frame.rgb, 0.0, 1.0)).astype(jnp.uint8))[: count - rendered]
    images[rendered : rendered + len(chunk)] = chunk
    images.flush()
    rendered += len(chunk)
    _write_progress(folder, wanted | {"drawn": rendered})
  if progress is not None:
    progress(rendered)
  labels = jax.device_get(jax.jit(stream.labels)(jnp.arange(count)))
  return Album(np.load(folder / "images.npy", mmap_mode="r"), labels)


def _open(folder: pathlib.Path, wanted: dict[str, Any], shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
  """The album's images, open for writing, and how many of them are rendered."""
  known = folder / "album.json"
  if known.exists():
    found = json.loads(known.read_text())
    rendered = found.pop("drawn")
    if found != wanted:
      raise ValueError(f"{folder} holds another album, {found}: choose another folder")
    return np.lib.format.open_memmap(folder / "images.npy", mode="r+"), rendered
  images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
  _write_progress(folder, wanted | {"drawn": 0})
  return images, 0


def _write_progress(folder: pathlib.Path, progress: dict[str, Any]) -> None:
  """Replaces the progress file atomically."""
  new = folder / "album.json.new"
  new.write_text(json.dumps(progress))
  new.replace(folder / "album.json")
