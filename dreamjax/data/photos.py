"""A folder of photos as users have them: read, turned upright, made RGB, scaled, and given their prompts."""

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
from dreamjax.data.image_folder import METADATA

try:
  import pillow_heif
except ImportError:
  pillow_heif = None
else:
  pillow_heif.register_heif_opener()

#: What names of images end in.
SUFFIXES = frozenset((
  ".avif", ".bmp", ".heic", ".heif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp",
))  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevx", b"mif1")
_ALIKE = 4  # levels of 256 by which thumbnails of one photo may differ when it was stored twice


@struct.dataclass
class Batch:
  """A batch of what a generator is trained on.

  Attributes:
    image: what it is to draw: images in [-1, 1], or latents.
    prompt: what it is told: arrays, or trees of arrays, whose first axis is that of the rows.
    weight: of each row in the loss; images of the class prior stand beside those of the subject with another weight.
    conditioning: by name what else it is told, such as the small image that is to be enlarged.
  """

  image: Float[Array, "b h w c"]
  prompt: Any
  weight: Float[Array, " b"]
  conditioning: dict[str, Any]

  @staticmethod
  def join(parts: Sequence["Batch"]) -> "Batch":
    """The rows of all parts, one after the other."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@dataclasses.dataclass(frozen=True)
class Photos:
  """Photos of one subject, of any sides.

  Attributes:
    names: of their files.
    prompts: what each shows; [V] stands for the identifier.
    originals: [h, w, 3], all with the same shorter side, which is the resolution.
  """

  names: tuple[str, ...]
  prompts: tuple[str, ...]
  originals: tuple[UInt8[np.ndarray, "_ _ 3"], ...]

  def __len__(self) -> int:
    return len(self.names)

  @property
  def resolution(self) -> int:
    """Height and width of the squares that are cut from the images."""
    return min(self.originals[0].shape[:2])

  def images(self) -> Float[np.ndarray, "n r r 3"]:
    """The middles of all photos, in [-1, 1]."""
    return self._squares(range(len(self)), np.full((len(self), 2), 0.5))

  def batch(
    self, step: int, size: int, *, seed: int, crop: Literal["center", "random"] = "center"
  ) -> tuple[Int[np.ndarray, " b"], Float[np.ndarray, "b r r 3"]]:
    """What update `step` sees: a pure function of the arguments.

    Photos come in rounds, shuffled anew in each, so that all are seen equally often whatever the size of a batch.

    Args:
      step: number of the update.
      size: number of rows; it may be larger than that of the photos.
      seed: of the order and of the crops.
      crop: which square is cut from an image: that in the middle, or one anywhere along its longer side.

    Returns:
      The indices of the photos, and the images, in [-1, 1].
    """
    indices = in_rounds(step, size, len(self), seed)
    offsets = np.full((size, 2), 0.5)
    if crop == "random":
      offsets = np.random.default_rng((seed, 1, step)).random((size, 2))
    return indices, self._squares(indices, offsets)

  def _squares(self, indices: Sequence[int] | np.ndarray, offsets: np.ndarray) -> Float[np.ndarray, "b r r 3"]:
    """A square of each image, at a share of the way that it can be moved down and to the right."""
    side, squares = self.resolution, []
    for i, offset in zip(indices, offsets, strict=True):
      squares.append(_square(self.originals[i], side, offset))
    return np.stack(squares).astype(np.float32) / np.float32(127.5) - np.float32(1)


def in_rounds(step: int, size: int, total: int, seed: int) -> Int[np.ndarray, " b"]:
  """Which of `total` things update `step` sees, in rounds that are shuffled anew: all are seen equally often."""
  rounds, places = np.divmod(np.arange(step * size, (step + 1) * size), total)
  order = {i: np.random.default_rng((seed, 0, i)).permutation(total) for i in set(rounds.tolist())}
  return np.array([order[i][place] for i, place in zip(rounds.tolist(), places, strict=True)])


def read_photos(
  folder: pathlib.Path, resolution: int, class_noun: str, *, with_captions: bool = False, one_size: bool = False
) -> Photos:
  """Reads a folder of photos of one subject.

  It warns of what it skips, of images smaller than the resolution and of photos that are there twice.

  Args:
    folder: its images are read by name, those of folders in it are not.
    resolution: of the images, which are scaled (Lanczos) so that their shorter sides have it.
    class_noun: what the subject is, such as "dog": the prompt of every photo is "a [V] dog".
    with_captions: whether the prompts are captions instead: the `text` of `metadata.jsonl` if there is one, or else
      the content of a .txt file beside each photo.
    one_size: whether images of different sizes are refused.

  Raises:
    OSError: if there is no such folder, or a file in it cannot be opened.
    ValueError: if it has no images, or one that cannot be read, or captions are wanted and not all there, or one size
      is and there are more.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f"there is no folder {folder}")
  names = _images_in(folder)
  prompts = _captions(folder, names) if with_captions else [f"a {PLACEHOLDER} {class_noun}".strip()] * len(names)
  images, sizes = zip(*[_scaled(folder / name, resolution) for name in names], strict=True)
  if one_size and len(set(sizes)) > 1:
    found = ", ".join(f"{name} {width} x {height}" for name, (width, height) in zip(names, sizes, strict=True))
    raise ValueError(f"the images in {folder} differ in size, and are to have one: {found}")
  for first, second in _twins(images):
    warnings.warn(f"{names[first]} and {names[second]} in {folder} are the same photo", stacklevel=2)
  return Photos(tuple(names), tuple(prompts), images)


def read_image(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
  """An image as it is to be seen: upright, RGB, on white where it is transparent.

  Colour profiles are not applied.

  Raises:
    ValueError: if it cannot be read. It names the image.
  """
  try:
    with Image.open(path) as stored:
      image = ImageOps.exif_transpose(stored)
      if image.mode.startswith("I;16"):
        return np.stack([((np.asarray(image, np.uint32) + 128) // 257).astype(np.uint8)] * 3, axis=-1)
      if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers without a range (mode {image.mode})")
      if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
      return np.array(image.convert("RGB"))
  except Exception as error:  # of whatever type: decoders of damaged files are not choosy
    reason = str(error)
    if pillow_heif is None and _is_heif(path):
      reason = "it is a HEIC image, which needs the package pillow-heif: pip install pillow-heif"
    raise ValueError(f"{path} cannot be read as an image: {reason}") from error


def read_square(path: pathlib.Path, resolution: int) -> UInt8[np.ndarray, "r r 3"]:
  """The square in the middle of an image, scaled as `read` does; see `read_image` for what is raised."""
  return _square(_scaled(path, resolution)[0], resolution, (0.5, 0.5))


def _square(image: np.ndarray, side: int, offset: Sequence[float] | np.ndarray) -> UInt8[np.ndarray, "s s 3"]:
  """The square of this side, at these shares of the way that it can be moved down and to the right."""
  top, left = (int(share * (have - side + 1)) for share, have in zip(offset, image.shape, strict=False))
  return image[top : top + side, left : left + side]


def _is_heif(path: pathlib.Path) -> bool:
  with contextlib.suppress(OSError), path.open("rb") as file:
    head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS
  return False


def _images_in(folder: pathlib.Path) -> list[str]:
  """The names of the images; warns of all else but captions."""
  files = sorted(folder.iterdir())
  names = [f.name for f in files if f.is_file() and f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
  captions = {METADATA, *(f"{pathlib.Path(name).stem}.txt" for name in names)}
  if skipped := [file.name for file in files if file.name not in (*names, *captions)]:
    warnings.warn(f"skipped in {folder}, since they are hidden or no images: {', '.join(skipped)}", stacklevel=3)
  if not names:
    raise ValueError(f"there are no images in {folder}: their names end in {', '.join(sorted(SUFFIXES))}")
  return names


def _scaled(path: pathlib.Path, resolution: int) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
  """An image whose shorter side has the resolution, and its width and height before."""
  image = read_image(path)
  height, width = image.shape[:2]
  short = min(height, width)
  if short < resolution:
    warnings.warn(f"{path} has only {width} x {height} pixels, and is enlarged to {resolution}", stacklevel=3)
  size = tuple(round(side * resolution / short) for side in (width, height))
  scaled = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
  return np.asarray(scaled), (width, height)


def _twins(images: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
  """The indices of photos that are there twice, each with that of its first twin."""
  thumbnails = np.empty((len(images), 8, 8, 3), np.int16)
  for i, image in enumerate(images):
    thumbnails[i] = Image.fromarray(image).resize((8, 8), Image.Resampling.BOX)
    alike = np.abs(thumbnails[:i] - thumbnails[i]).max((1, 2, 3)) <= _ALIKE
    if alike.any():
      yield int(alike.argmax()), i


def _captions(folder: pathlib.Path, names: Sequence[str]) -> list[str]:
  """The caption of each image; ValueError if one has none."""
  if (folder / METADATA).exists():
    captions = _metadata(folder / METADATA, names)
  else:
    files = {name: (folder / name).with_suffix(".txt") for name in names}
    captions = {name: " ".join(_text(file).split()) for name, file in files.items() if file.exists()}
  if without := [name for name in names if not captions.get(name)]:
    raise ValueError(f"captions are asked for, but in {folder} there is none for {', '.join(without)}")
  return [captions[name] for name in names]


def _metadata(path: pathlib.Path, names: Sequence[str]) -> dict[str, str]:
  """The captions in a `metadata.jsonl`."""
  captions: dict[str, str] = {}
  for number, line in enumerate(_text(path).splitlines(), start=1):
    if not line.strip():
      continue
    try:
      entry = json.loads(line)
      name, text = entry["file_name"], entry["text"]
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f"{path}:{number} is no JSON object with file_name and text") from error
    if not isinstance(text, str):
      raise ValueError(f"{path}:{number}: the text must be a string, not {text!r}")
    if name not in names:
      raise ValueError(f"{path}:{number} names {name!r}, which is no image in the folder")
    if name in captions:
      raise ValueError(f"{path}:{number} names {name!r} a second time")
    captions[name] = text.strip()
  return captions


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8-sig")  # as Windows writes it, too
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is no text in UTF-8") from error
