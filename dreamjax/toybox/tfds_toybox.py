"""The toybox as a TensorFlow Datasets data set: images rendered once, kept on disk, and read by index.

Importing this module registers the name; neither writing nor reading needs TensorFlow:

  toys = tfds.data_source("toybox/tiny", split="train", data_dir=...)  # renders the images if they are not there yet
  toys = Toybox(config=ToyboxConfig("dogs", variety=source.Variety(classes=("dog",))), data_dir=...)
  toys.download_and_prepare()
  toys.as_data_source("styles")[7]

Example i of a split is example i of `source.Stream`, in 8 bits. The files describe their format, so that
`tfds.builder_from_directory` reads them without this module.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import io
import json
from typing import Any

import jax
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from dreamjax.toybox import classes, labels, source, vocabulary

# Images that are rendered at a time, and batches in a file: 2048 images of 25 kB.
_BATCH = 32
_BATCHES_PER_FILE = 64

_File = Callable[[], Iterator[tuple[int, dict[str, Any]]]]


@dataclasses.dataclass(eq=False, kw_only=True)
class ToyboxConfig(tfds.core.BuilderConfig):
  """The content of a data set. TFDS finds it on disk by its name, so different contents need different names.

  Attributes:
    seed: of the stream of images.
    variety: how varied they are.
    resolution: height and width in pixels.
    counts: the number of images per split; splits that are not in it are not built.
  """

  seed: int = 0
  variety: source.Variety = source.Variety()
  resolution: int = 128
  counts: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: {"train": 100_000, "subjects": 5_000, "combinations": 5_000, "styles": 5_000}
  )

  def __post_init__(self) -> None:
    """Raises ValueError for an unknown split, and if there is nothing to render."""
    for split, count in self.counts.items():
      vocabulary.index(source.SPLITS, split, "split")
      if count < 1:
        raise ValueError(f"a split needs at least one image, but {split!r} has {count}: leave it out instead")
    if not self.counts or self.resolution < 1:
      raise ValueError(f"there is nothing to render in {dict(self.counts)} at resolution {self.resolution}")

  def recipe(self) -> dict[str, Any]:
    """Returns everything that determines the images, as JSON types."""
    fields = ("seed", "variety", "resolution", "counts")
    return json.loads(json.dumps({name: getattr(self, name) for name in fields}, default=dataclasses.asdict))


_TINY = ToyboxConfig(
  "tiny",
  description="A taste: two classes in four contexts, at 32 px.",
  variety=source.Variety(
    classes=("dog", "cat"),
    contexts=("beach", "cobblestone street", "blue house", "studio"),
    styles=("watercolor painting", "pixel art", "glowing neon"),
  ),
  resolution=32,
  counts={"train": 256, "subjects": 32, "combinations": 32, "styles": 32},
)


# A GeneratorBasedBuilder sorts its examples, for which it needs TensorFlow as soon as a split exceeds 1000 MiB.
class Toybox(tfds.core.ShardBasedBuilder):
  """A small 3D world of toys: images with captions, depth, masks, keypoints and labels."""

  # A change of the images, by the renderer or by the vocabulary, needs a new version.
  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "The first release."}
  BUILDER_CONFIGS = [ToyboxConfig("full", description="All that the world holds, at 128 px."), _TINY]

  # Nothing is downloaded. To look for checksums, TFDS would need importlib_resources, which it does not install
  # (https://github.com/tensorflow/datasets/issues/11212).
  url_infos = None

  def __init__(self, *, file_format: str | tfds.core.FileFormat | None = "array_record", **kwargs: Any):
    """Finds the data set on disk, or prepares to render it.

    Args:
      file_format: of the files; all but "array_record" need further packages, most of them TensorFlow.
      **kwargs: `data_dir`, `config` and `version`, as of any TFDS builder.

    Raises:
      ValueError: if another config of the same name rendered what is on disk.
    """
    super().__init__(file_format=file_format, **kwargs)
    recipe = self.info.metadata["recipe"]
    if recipe != self.builder_config.recipe():
      raise ValueError(
        f"{self.data_dir} was rendered by another config of the same name, {recipe}: "
        "delete it, give the new config another name, or read the old one with tfds.builder_from_directory"
      )

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    shape = (config.resolution, config.resolution)
    points = classes.tables().keypoint_part.shape[-1]
    return tfds.core.DatasetInfo(
      builder=self,
      description="""
      Images of a small 3D world of toys, rendered by dreamjax: a dog, a teapot or a face, in one of its poses and one
      of many contexts, sometimes dressed, next to another toy or in a style, with a caption worded like the prompts of
      DreamBooth. A class and a number make a subject, which looks the same in every image, so that personalisation can
      be evaluated. The splits other than "train" show what no image of "train" does: other subjects, other
      combinations of class and context, other styles.
      """,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(*shape, 3), encoding_format="png", doc="the image, sRGB"),
          "depth": tfds.features.Tensor(
            shape=shape, dtype=np.float16, encoding="zlib", doc="distance along the viewing direction; 10000 for sky"
          ),
          "mask": tfds.features.Tensor(
            shape=shape, dtype=np.uint8, encoding="zlib", doc="share of the pixel that shows the subject, 255 for all"
          ),
          "keypoints": tfds.features.Tensor(
            shape=(points, 3), dtype=np.float32, doc="(x, y, visible); x and y in [0, 1] from the upper left corner"
          ),
          "caption": tfds.features.Text(doc="what the image shows, in English"),
          "labels": tfds.features.FeaturesDict({f.name: _label(f.name) for f in dataclasses.fields(labels.Labels)}),
        }
      ),
      metadata=tfds.core.MetadataDict(recipe=config.recipe()),
      disable_shuffling=True,
    )

  def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[_File]]:
    size = _BATCH * _BATCHES_PER_FILE
    return {
      split: [
        functools.partial(self._examples, split, range(first, min(first + size, count)))
        for first in range(0, count, size)
      ]
      for split, count in self.builder_config.counts.items()
    }

  def _examples(self, split: str, indices: range) -> Iterator[tuple[int, dict[str, Any]]]:
    """Pairs of index and example."""
    config = self.builder_config
    stream = source.Stream(config.seed, split, config.variety, config.resolution)
    for first in indices[::_BATCH]:
      batch = source.record(*stream.draw(range(first, first + _BATCH)))
      captions, arrays = batch.pop("caption"), jax.device_get(batch)
      for i in range(min(_BATCH, indices.stop - first)):
        one = jax.tree.map(lambda x, i=i: x[i], arrays)
        encoded = {
          "image": _png(_bytes(one["image"])),
          "depth": one["depth"].astype(np.float16),
          "mask": _bytes(one["mask"]),
          "caption": captions[i],
        }
        yield first + i, one | encoded


_NAMES = {
  "cls": vocabulary.CLASSES,
  "colour": vocabulary.COLOURS,
  "marking": vocabulary.MARKINGS,
  "prop": vocabulary.PROPERTIES,
  "context": vocabulary.CONTEXTS,
  "accessory": vocabulary.ACCESSORIES,
  "style": vocabulary.STYLES,
  "other_colour": vocabulary.COLOURS,
  "other_marking": vocabulary.MARKINGS,
}
_DOCS = {
  "subject": "which of the class's identities",
  "state": "what the subject does: an index into the class's own states",
  "other_cls": "class of the second toy, numbered as cls, -1 for none",  # -1 of a ClassLabel would be its last class
  "other_subject": "which of the second toy's identities",
  "paraphrase": "seed of the caption's wording",
}


def _label(name: str) -> tfds.features.FeatureConnector:
  if name in _NAMES:
    return tfds.features.ClassLabel(names=_NAMES[name])
  return tfds.features.Scalar(np.int32, doc=_DOCS[name])


def _bytes(shares: np.ndarray) -> np.ndarray:
  return np.round(shares * 255).astype(np.uint8)


# TFDS accepts an encoded image; to encode an array, it would need TensorFlow.
def _png(image: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "png")
  return buffer.getvalue()
