"""Preprocessing of images for a pretrained encoder: resizing, cropping and normalization as its folder says."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

from jaxtyping import Float
import numpy as np
from PIL import Image

from dreamjax.errors import UserError

_FILE = "preprocessor_config.json"


@dataclasses.dataclass(frozen=True)
class Preprocessor:
  """How images are preprocessed.

  Attributes:
    size: (height, width) after resizing; or the length of the shorter side, which keeps the aspect ratio.
    crop: (height, width) of a center crop; None for none.
    mean: subtracted from each channel of an image in [0, 1].
    std: then each channel is divided by it.
    resample: PIL's number of the filter.
  """

  size: tuple[int, int] | int
  crop: tuple[int, int] | None
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  resample: int = Image.Resampling.BICUBIC

  @classmethod
  def load(cls, folder: pathlib.Path) -> "Preprocessor":
    """Reads a folder's `preprocessor_config.json`, in the Hugging Face layout.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it lacks a field, or its images would differ in size.
    """
    path = folder / _FILE
    if not path.is_file():
      raise FileNotFoundError(f"{folder} holds no {_FILE}, the preprocessing of its model")
    entry = json.loads(path.read_text())
    try:
      size = entry["size"]
      if isinstance(size, dict):
        size = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
      elif not entry.get("do_center_crop", False):
        size = (size, size)  # the older form for a model that takes uncropped images
      crop = entry["crop_size"] if entry.get("do_center_crop", False) else None
      if isinstance(crop, dict):
        crop = crop["height"], crop["width"]
      elif crop is not None:
        crop = crop, crop
      if crop is None and isinstance(size, int):
        raise UserError("images would have different sizes, since they are not cropped")
      return cls(size, crop, tuple(entry["image_mean"]), tuple(entry["image_std"]), entry.get("resample", 3))
    except (KeyError, ValueError) as error:
      raise UserError(f"{path}: {'it lacks ' if isinstance(error, KeyError) else ''}{error}") from error

  def save(self, folder: pathlib.Path) -> None:
    """Writes what `load` reads."""
    sides = lambda pair: {"height": pair[0], "width": pair[1]}  # noqa: E731
    entry = {
      "do_resize": True,
      "size": {"shortest_edge": self.size} if isinstance(self.size, int) else sides(self.size),
      "do_center_crop": self.crop is not None,
      **({"crop_size": sides(self.crop)} if self.crop else {}),
      "resample": int(self.resample),
      "do_rescale": True,
      "do_normalize": True,
      "image_mean": self.mean,
      "image_std": self.std,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FILE).write_text(json.dumps(entry, indent=2) + "\n")

  def __call__(self, images: Sequence[np.ndarray]) -> Float[np.ndarray, "n h w 3"]:
    """Preprocesses images of any sizes, [h, w, 3] bytes each, to one batch in float32."""
    batch = np.stack([self._fit(image) for image in images]).astype(np.float32) / np.float32(255)
    return (batch - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

  def _fit(self, image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if isinstance(self.size, int):
      short = min(height, width)
      size = int(self.size * height / short), int(self.size * width / short)
    else:
      size = self.size
    if size != (height, width):
      image = np.asarray(Image.fromarray(image).resize(size[::-1], self.resample))
    if self.crop is not None:
      top, left = ((have - want) // 2 for have, want in zip(size, self.crop, strict=True))
      image = image[top : top + self.crop[0], left : left + self.crop[1]]
    return image


def whole(side: int) -> Preprocessor:
  """Returns the preprocessing that resizes the whole image to a square of this side, in [-1, 1]."""
  return Preprocessor((side, side), None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
