"""Logs of a training: JSON lines, sheets of images, and TensorBoard's event files on request."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any, NamedTuple

import jax
from jaxtyping import Float
import numpy as np

from dreamjax.data.contact_sheet import contact_sheet
from dreamjax.errors import UserError
from dreamjax.parallel import processes


class Sheet(NamedTuple):
  """Images for people to look at, [n, h, w, 3] in [-1, 1], and a caption for each."""

  images: Float[np.ndarray, "n h w 3"] | Float[jax.Array, "n h w 3"]
  captions: Sequence[str]


class Log:
  """A file of JSON lines, one for each time that something was measured, and the files next to it.

  Of several processes, the first one writes. A training that was cut off repeats the steps since its last checkpoint:
  of two lines of a step the later one counts.

  Args:
    path: the file. Images go into the folder `samples` next to it, event files into `tensorboard`.
    tensorboard: whether TensorBoard's event files are written, too.

  Raises:
    ValueError: if event files are requested, but TensorFlow is not installed.
  """

  def __init__(self, path: pathlib.Path, tensorboard: bool = False) -> None:
    self._writes, self._path = processes.is_main_process(), path
    if self._writes:
      path.parent.mkdir(parents=True, exist_ok=True)
    self._events = _event_writer(path.parent / "tensorboard") if tensorboard and self._writes else None

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds a line of scalars, or of arrays [n] of what is measured of n fits; TensorBoard gets the means of arrays."""
    if not self._writes:
      return
    with self._path.open("a") as out:
      out.write(json.dumps({"step": step, **{name: np.asarray(x).tolist() for name, x in values.items()}}) + "\n")
    if self._events is not None:
      self._events.write_scalars(step, {name: float(np.nanmean(x)) for name, x in values.items()})
      self._events.flush()

  def sheet(self, step: int, name: str, sheet: Sheet) -> None:
    """Writes images above their captions into one file, `samples/NAME-STEP.png`."""
    if not self._writes:
      return
    page = contact_sheet(list(np.asarray(sheet.images, np.float32) / 2 + 0.5), sheet.captions)
    folder = self._path.parent / "samples"
    folder.mkdir(exist_ok=True)
    page.save(folder / f"{name}-{step}.png")
    if self._events is not None:
      self._events.write_images(step, {name: np.asarray(page)[None]})
      self._events.flush()


def _event_writer(folder: pathlib.Path) -> Any:
  """Returns clu's writer of event files, which needs TensorFlow."""
  try:
    from clu import metric_writers
    import tensorflow as tf
  except ImportError as error:
    raise UserError("TensorBoard's event files need TensorFlow: pip install '.[tensorboard]'") from error
  tf.config.set_visible_devices([], "GPU")  # else TensorFlow takes all of a GPU's memory
  return metric_writers.SummaryWriter(str(folder))
