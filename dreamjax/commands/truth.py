"""The labels that captions of the toybox promise, and how often the toybox's probe finds them in images."""

from collections.abc import Callable, Mapping, Sequence
import importlib.resources
import pathlib

import jax
import numpy as np

from dreamjax.data.image_folder import to_uint8
from dreamjax.eval import encoders
from dreamjax.toybox import captions, vocabulary

#: The labels that are compared, by the names of the probe's heads.
HEADS = ("class", "context", "colour", "style")

#: Whether a style hides a toy's colour, by the style's index.
COLOURLESS = np.isin(
  vocabulary.STYLES,
  (
    "line drawing", "pencil sketch", "wooden sculpture", "melting golden 3d rendering", "blueprint",
    "chalkboard drawing", "vintage sepia photograph",
  ),
)  # fmt: skip


def toybox_encoders(mesh: jax.sharding.Mesh | None = None) -> encoders.Encoders:
  """Loads the encoders that come with the toybox; see `eval.encoders.load`."""
  folder = pathlib.Path(str(importlib.resources.files("dreamjax.toybox") / "weights"))
  return encoders.load(folder, "toybox", mesh)


def promised(texts: Sequence[str]) -> dict[str, np.ndarray]:
  """Parses captions into labels: by head, [n] indices into the vocabulary, -1 where a caption leaves the label open.

  Where a caption names two toys, either may be the subject, and only context and style are known; the colour is known
  only in styles that show it.
  """
  parsed = [captions.parse(text) for text in texts]
  alone = np.array([caption.other_cls < 0 for caption in parsed])
  indices = {
    "class": [caption.cls for caption in parsed],
    "context": [-1 if caption.context is None else caption.context for caption in parsed],
    "colour": [-1 if caption.colour is None else caption.colour for caption in parsed],
    "style": [caption.style for caption in parsed],
  }
  sticker = np.array(indices["style"]) == vocabulary.STYLES.index("sticker")
  visible = {
    "class": alone,
    "context": ~sticker,
    "colour": alone & ~COLOURLESS[indices["style"]],
    "style": np.ones(len(parsed), bool),
  }
  return {name: np.where(visible[name], values, -1) for name, values in indices.items()}


def accuracy(
  images: Sequence[np.ndarray],
  texts: Sequence[str],
  probe: Callable[[Sequence[np.ndarray]], Mapping[str, np.ndarray]],
) -> dict[str, float]:
  """Returns the share of images in which the probe finds what the caption promises, by head.

  Args:
    images: images [h, w, 3] in [-1, 1].
    texts: their captions.
    probe: see `eval.encoders`.
  """
  scores = probe([to_uint8(image / 2 + 0.5) for image in images])
  right = {}
  for head, truth in promised(texts).items():
    known = truth >= 0
    right[head] = float(np.mean(scores[head][known].argmax(1) == truth[known])) if known.any() else float("nan")
  return right
