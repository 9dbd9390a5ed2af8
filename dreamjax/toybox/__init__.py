"""The toybox: a small 3D world of toys, rendered in pure JAX, on which every method is trained, shown and evaluated.

An image starts from `Labels` (integers that say what it shows: `labels.py`, `vocabulary.py`) and a `View` (what the
labels leave open). `world.build` turns both into a `Scene`, a pytree of quadrics and boxes; `render.render` renders it,
with depth, mask, normals and keypoints, by closed-form ray intersection; `styles.apply_style` turns the image into a
watercolour, a mosaic and so on; and `captions.caption` describes it in English, in a form that `captions.parse` can
parse.

`source.py` samples examples: `Stream` (an endless, indexable source, rendered on the device), `photos` (what a user
would have of one subject), and the held-out splits. `tfds_toybox.py` offers the same examples as a TensorFlow Datasets
builder.
"""

from dreamjax.toybox.captions import caption, parse
from dreamjax.toybox.labels import Labels
from dreamjax.toybox.scene import Frame, Scene
from dreamjax.toybox.source import SPLITS, TRAIN_SUBJECTS, Stream, Variety, photos
from dreamjax.toybox.styles import apply_style
from dreamjax.toybox.world import Dial, View, build

__all__ = [
  "SPLITS", "TRAIN_SUBJECTS", "Dial", "Frame", "Labels", "Scene", "Stream", "Variety", "View", "apply_style", "build",
  "caption", "parse", "photos",
]  # fmt: skip
