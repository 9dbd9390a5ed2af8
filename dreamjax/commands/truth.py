"""What images of the toybox's captions should show, and how often they do, as the toybox's probe sees it."""

from collections.abc import Callable, Mapping, Sequence
import importlib.resources
import pathlib

import jax
import numpy as np

from dreamjax.data.image_folder import to_uint8
from dreamjax.eval import encoders
from dreamjax.toybox import captions, vocabulary

#: What is judged, by the names of the probe's heads.
HEADS = ("class", "context", "colour", "style")

#: Whether a style leaves nothing of a toy's colour, by its index.
COLOURLESS = np.isin(
  vocabulary.STYLES,
  (
    "line drawing", "pencil sketch", "wooden sculpture", "melting golden 3d rendering", "blueprint",
    "chalkboard drawing", "vintage sepia photograph",
  ),
)  # fmt: skip


def toybox_encoders(mesh: jax.sharding.Mesh | None = None) -> encoders.Encoders:
  """The encoders that come with the toybox; see `eval.encoders.load`."""
  folder = pathlib.Path(str(importlib.resources.files("dreamjax.toybox") / "weights"))
  return encoders.load(folder, "toybox", mesh)


def promised(texts: Sequence[str]) -> dict[str, np.ndarray]:
  """What captions say, [n] indices into the vocabulary by head; -1 where a caption leaves it open.

  Nothing but context and style is judged where there are two toys, for either might be the subject, and no colour where
  the style shows none.
  """
  said = [captions.parse(text) for text in texts]
  alone = np.array([caption.other_cls < 0 for caption in said])
  indices = {
    "class": [caption.cls for caption in said],
    "context": [-1 if caption.context is None else caption.context for caption in said],
    "colour": [-1 if caption.colour is None else caption.colour for caption in said],
    "style": [caption.style for caption in said],
  }
  sticker = np.array(indices["style"]) == vocabulary.STYLES.index("sticker")
  shown = {
    "class": alone,
    "context": ~sticker,
    "colour": alone & ~COLOURLESS[indices["style"]],
    "style": np.ones(len(said), bool),
  }
  return {name: np.where(shown[name], values, -1) for name, values in indices.items()}


def accuracy(
  images: Sequence[np.ndarray],
  texts: Sequence[str],
  probe: Callable[[Sequence[np.ndarray]], Mapping[str, np.ndarray]],
) -> dict[str, float]:
  """The share of images in which the probe sees what the caption says, by head.

  Args:
    originals: [h, w, 3] in [-1, 1].
    texts: their captions.
    probe: see `eval.encoders`.
  """
  scores = probe([to_uint8(image / 2 + 0.5) for image in images])
  right = {}
  for head, truth in promised(texts).items():
    known = truth >= 0
    right[head] = float(np.mean(scores[head][known].argmax(1) == truth[known])) if known.any() else float("nan")
  return right
