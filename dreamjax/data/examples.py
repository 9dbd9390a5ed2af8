"""Data sets of captioned and labelled images that fit on a disk but not in memory, with random access."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from dreamjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Examples:
  """A data set to train encoders on.

  Attributes:
    images: [n, h, w, 3] bytes, split into one array for each file.
    captions: maps indices of examples to their captions.
    labels: by the name of the label, [n] indices into `words`; -1 is unknown.
    words: by the name of the label, the names of its classes.
    subjects: [n], equal where two images show the same subject.
  """

  images: tuple[np.ndarray, ...]
  captions: Callable[[np.ndarray], list[str]]
  labels: Mapping[str, np.ndarray]
  words: Mapping[str, tuple[str, ...]]
  subjects: np.ndarray

  def __len__(self) -> int:
    return len(self.subjects)

  def load_images(self, indices: np.ndarray) -> np.ndarray:
    """Returns the images with these indices, [b, h, w, 3] bytes."""
    starts = np.cumsum([0, *(len(part) for part in self.images)])
    part = np.searchsorted(starts, indices, side="right") - 1
    return np.stack([self.images[p][i - starts[p]] for p, i in zip(part, indices, strict=True)])

  @staticmethod
  def join(parts: Sequence["Examples"]) -> "Examples":
    """Concatenates data sets, in which no subject occurs twice."""
    ends = np.cumsum([len(part) for part in parts])
    tops = np.cumsum([0, *(part.subjects.max() + 1 for part in parts)])

    def captions(indices: np.ndarray) -> list[str]:
      which = np.searchsorted(ends, indices, side="right")
      starts = ends - [len(part) for part in parts]
      return [parts[p].captions(np.array([i - starts[p]]))[0] for p, i in zip(which, indices, strict=True)]

    return Examples(
      images=tuple(array for part in parts for array in part.images),
      captions=captions,
      labels={name: np.concatenate([part.labels[name] for part in parts]) for name in parts[0].labels},
      words=parts[0].words,
      subjects=np.concatenate([part.subjects + top for part, top in zip(parts, tops[:-1], strict=True)]),
    )


def epochs(n: int, size: int, seed: int) -> Callable[[int], np.ndarray]:
  """Returns batches of indices below n, shuffled anew in every epoch; batch i is a pure function of (seed, i)."""
  per_epoch = n // size
  if per_epoch < 1:
    raise UserError(f"a batch of {size} cannot be drawn from {n} examples")

  def batch(i: int) -> np.ndarray:
    epoch, position = divmod(i, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(n)
    return order[position * size : (position + 1) * size]

  return batch


def on_device(rows: Callable[[np.ndarray], Any], n: int) -> Callable[[np.ndarray], Any]:
  """Computes `rows` once for all indices below n, and returns a function that gathers from the result on the device.

  An accelerator trains a small network faster than images are read and captions tokenized.
  """
  chunks = [rows(np.arange(start, min(start + 4096, n))) for start in range(0, n, 4096)]
  examples = jax.device_put(jax.tree.map(lambda *x: np.concatenate(x), *chunks))
  take = jax.jit(lambda examples, indices: jax.tree.map(lambda x: x[indices], examples))
  return lambda indices: take(examples, indices)
