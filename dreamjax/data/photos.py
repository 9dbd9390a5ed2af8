"""Reads folders of a user's photos: turns them upright, converts to RGB, scales them, and pairs them with prompts."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import json
import pathlib
from typing import Any, Literal
import warnings

from flax import struct
import jax
from jaxtyping import Array, Float, Int, UInt8
import numpy as np
from PIL import Image, ImageOps

from dreamjax.data.identifiers import PLACEHOLDER
from dreamjax.data.image_folder import METADATA, member
from dreamjax.errors import UserError

try:
  import pillow_heif
except ImportError:
  pillow_heif = None
else:
  pillow_heif.register_heif_opener()

#: Suffixes of image files.
SUFFIXES = frozenset((
  ".avif", ".bmp", ".heic", ".heif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp",
))  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevx", b"mif1")
_ALIKE = 4  # levels of 256 by which thumbnails of one photo may differ when it was stored twice


@struct.dataclass
class Batch:
  """A batch of training examples for a generator.

  Attributes:
    image: the targets: images in [-1, 1], or latents.
    prompt: the encoded or tokenized prompts: trees of arrays whose first axis is the batch.
    weight: of each example in the loss; the class prior's images differ in it from those of the subject.
    conditioning: further conditioning by name, such as the low-resolution image of super-resolution.
  """

  image: Float[Array, "b h w c"]
  prompt: Any
  weight: Float[Array, " b"]
  conditioning: dict[str, Any]

  @staticmethod
  def join(parts: Sequence["Batch"]) -> "Batch":
    """Concatenates batches."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@dataclasses.dataclass(frozen=True)
class Photos:
  """Photos of one subject, of any aspect ratios.

  Attributes:
    names: of their files.
    prompts: one for each photo; [V] stands for the identifier.
    originals: [h, w, 3] bytes each, all with the same shorter side, which is the resolution.
  """

  names: tuple[str, ...]
  prompts: tuple[str, ...]
  originals: tuple[UInt8[np.ndarray, "_ _ 3"], ...]

  def __len__(self) -> int:
    return len(self.names)

  @property
  def resolution(self) -> int:
    """Side of the square crops."""
    return min(self.originals[0].shape[:2])

  def images(self) -> Float[np.ndarray, "n r r 3"]:
    """Returns the center crops of all photos, in [-1, 1]."""
    return self._crops(range(len(self)), np.full((len(self), 2), 0.5))

  def batch(
    self, step: int, size: int, *, seed: int, crop: Literal["center", "random"] = "center"
  ) -> tuple[Int[np.ndarray, " b"], Float[np.ndarray, "b r r 3"]]:
    """Returns the batch of update `step`, a pure function of the arguments.

    Photos come in rounds, shuffled anew in each, so that all are used equally often whatever the size of a batch.

    Args:
      step: number of the update.
      size: batch size; it may be larger than the number of photos.
      seed: of the order and of the crops.
      crop: the square in the middle of each image, or a random one along its longer side.

    Returns:
      The indices of the photos, and their crops in [-1, 1].
    """
    indices = in_rounds(step, size, len(self), seed)
    offsets = np.full((size, 2), 0.5)
    if crop == "random":
      offsets = np.random.default_rng((seed, 1, step)).random((size, 2))
    return indices, self._crops(indices, offsets)

  def _crops(self, indices: Sequence[int] | np.ndarray, offsets: np.ndarray) -> Float[np.ndarray, "b r r 3"]:
    """Crops a square of each image, at offsets in [0, 1] from its top and left; 1 is at the bottom or the right."""
    side, squares = self.resolution, []
    for i, offset in zip(indices, offsets, strict=True):
      squares.append(_crop(self.originals[i], side, offset))
    return np.stack(squares).astype(np.float32) / np.float32(127.5) - np.float32(1)


def in_rounds(step: int, size: int, total: int, seed: int) -> Int[np.ndarray, " b"]:
  """Returns `size` indices below `total` for update `step`, in rounds, each of which is a new permutation."""
  rounds, positions = np.divmod(np.arange(step * size, (step + 1) * size), total)
  order = {i: np.random.default_rng((seed, 0, i)).permutation(total) for i in set(rounds.tolist())}
  return np.array([order[i][position] for i, position in zip(rounds.tolist(), positions, strict=True)])


def read_photos(
  folder: pathlib.Path, resolution: int, class_noun: str, *, with_captions: bool = False, one_size: bool = False
) -> Photos:
  """Reads a folder of photos of one subject.

  Warns of files that it skips, of images smaller than the resolution, and of duplicate photos.

  Args:
    folder: its images are read in the order of their names, sub-folders are not.
    resolution: length to which the images' shorter sides are scaled (Lanczos).
    class_noun: what the subject is, such as "dog": the prompt of every photo is "a [V] dog".
    with_captions: whether the prompts are captions instead: the `text` of `metadata.jsonl` if there is one, or else
      the content of a .txt file next to each photo.
    one_size: whether images of different sizes are refused.

  Raises:
    OSError: if there is no such folder, or a file in it cannot be opened.
    ValueError: if it has no images, or one that cannot be read; if captions are wanted and one is missing; or if
      `one_size` and sizes differ.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f"there is no folder {folder}")
  names = _image_names(folder)
  prompts = _read_captions(folder, names) if with_captions else [f"a {PLACEHOLDER} {class_noun}".strip()] * len(names)
  images, sizes = zip(*[_read_scaled(folder / name, resolution) for name in names], strict=True)
  if one_size and len(set(sizes)) > 1:
    found = ", ".join(f"{name} {width} x {height}" for name, (width, height) in zip(names, sizes, strict=True))
    raise UserError(f"the images in {folder} differ in size, but must have one: {found}")
  for first, second in _duplicates(images):
    warnings.warn(f"{names[first]} and {names[second]} in {folder} are the same photo", stacklevel=2)
  return Photos(tuple(names), tuple(prompts), images)


def read_image(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
  """Reads an image, upright, in RGB, on white where it is transparent.

  Colour profiles are not applied.

  Raises:
    ValueError: if it cannot be read; the message names the file.
  """
  try:
    with Image.open(path) as stored:
      image = ImageOps.exif_transpose(stored)
      if image.mode.startswith("I;16"):
        return np.stack([((np.asarray(image, np.uint32) + 128) // 257).astype(np.uint8)] * 3, axis=-1)
      if image.mode in ("I", "F"):
        raise UserError(f"its pixels are numbers without a range (mode {image.mode})")
      if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
      return np.array(image.convert("RGB"))
  except Exception as error:  # decoders of damaged files raise all kinds of errors
    reason = str(error)
    if pillow_heif is None and _is_heif(path):
      reason = "it is a HEIC image, which needs the package pillow-heif: pip install pillow-heif"
    raise UserError(f"{path} cannot be read as an image: {reason}") from error


def read_square(path: pathlib.Path, resolution: int) -> UInt8[np.ndarray, "r r 3"]:
  """Reads the center crop of an image, scaled as `read` does; raises as `read_image` does."""
  return _crop(_read_scaled(path, resolution)[0], resolution, (0.5, 0.5))


def _crop(image: np.ndarray, side: int, offset: Sequence[float] | np.ndarray) -> UInt8[np.ndarray, "s s 3"]:
  """Crops a square of this side, at offsets in [0, 1] from top and left."""
  top, left = (int(share * (have - side + 1)) for share, have in zip(offset, image.shape, strict=False))
  return image[top : top + side, left : left + side]


def _is_heif(path: pathlib.Path) -> bool:
  with contextlib.suppress(OSError), path.open("rb") as file:
    head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS
  return False


def _image_names(folder: pathlib.Path) -> list[str]:
  """Returns the names of the images in a folder; warns of other files but captions."""
  files = sorted(folder.iterdir())
  names = [f.name for f in files if f.is_file() and f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
  captions = {METADATA, *(f"{pathlib.Path(name).stem}.txt" for name in names)}
  if skipped := [file.name for file in files if file.name not in (*names, *captions)]:
    warnings.warn(f"skipped in {folder}, since they are hidden or not images: {', '.join(skipped)}", stacklevel=3)
  if not names:
    raise UserError(f"there are no images in {folder}: their names end in {', '.join(sorted(SUFFIXES))}")
  return names


def _read_scaled(path: pathlib.Path, resolution: int) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
  """Reads an image, scales its shorter side to the resolution, and returns it with its original width and height."""
  image = read_image(path)
  height, width = image.shape[:2]
  short = min(height, width)
  if short < resolution:
    warnings.warn(f"{path} has only {width} x {height} pixels, and is enlarged to {resolution}", stacklevel=3)
  size = tuple(round(side * resolution / short) for side in (width, height))
  scaled = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
  return np.asarray(scaled), (width, height)


def _duplicates(images: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
  """Yields pairs of indices of duplicate photos, the first occurrence first."""
  thumbnails = np.empty((len(images), 8, 8, 3), np.int16)
  for i, image in enumerate(images):
    thumbnails[i] = Image.fromarray(image).resize((8, 8), Image.Resampling.BOX)
    alike = np.abs(thumbnails[:i] - thumbnails[i]).max((1, 2, 3)) <= _ALIKE
    if alike.any():
      yield int(alike.argmax()), i


def _read_captions(folder: pathlib.Path, names: Sequence[str]) -> list[str]:
  """Reads the caption of each image; ValueError if one has none."""
  if (folder / METADATA).exists():
    captions = _read_metadata(folder / METADATA, names)
  else:
    files = {name: (folder / name).with_suffix(".txt") for name in names}
    captions = {name: " ".join(_read_text(file).split()) for name, file in files.items() if file.exists()}
  if without := [name for name in names if not captions.get(name)]:
    raise UserError(f"captions are asked for, but in {folder} there is none for {', '.join(without)}")
  return [captions[name] for name in names]


def _read_metadata(path: pathlib.Path, names: Sequence[str]) -> dict[str, str]:
  """Reads the captions in a `metadata.jsonl`."""
  captions: dict[str, str] = {}
  for number, line in enumerate(_read_text(path).splitlines(), start=1):
    if not line.strip():
      continue
    try:
      entry = json.loads(line)
      name, text = entry["file_name"], entry["text"]
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path}:{number} is no JSON object with file_name and text") from error
    if not isinstance(text, str):
      raise UserError(f"{path}:{number}: the text must be a string, not {text!r}")
    try:
      member(path.parent, name)
    except ValueError as error:
      raise UserError(f"{path}:{number}: {error}") from error
    if name not in names:
      raise UserError(f"{path}:{number} names {name!r}, which is no image in the folder")
    if name in captions:
      raise UserError(f"{path}:{number} names {name!r} a second time")
    captions[name] = text.strip()
  return captions


def _read_text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8-sig")  # Windows writes a byte order mark
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not text in UTF-8") from error
