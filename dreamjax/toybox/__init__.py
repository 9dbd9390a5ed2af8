"""The toybox: a small 3D world of toys, drawn in pure JAX, on which every method is trained, shown and measured.

An image begins as `Labels` (integers that say what it shows: `labels.py`, `vocabulary.py`) and a `View` (what the
labels leave open). `world.build` turns both into a `Scene`, a pytree of quadrics and boxes; `render.render` draws it,
with depth, mask, normals and keypoints, by closed-form ray intersection; `styles.apply_style` redraws it as a
watercolour, a mosaic and so on; and `captions.caption` says in English what is there, so that `captions.parse` can
read it back.

Where images come from is in `source.py`: `Stream` (an endless, indexable source, rendered on the device), `photos`
(what a user would have of one subject) and what is held out. `tfds_toybox.py` holds the same examples as a TensorFlow
Datasets builder.
"""

from etils import epy

__all__ = [
  "SPLITS", "TRAIN_SUBJECTS", "Dial", "Frame", "Labels", "Scene", "Stream", "Variety", "View", "apply_style", "build",
  "caption", "parse", "photos",
]  # fmt: skip

# Each is imported when it is first used: the vocabulary alone needs no JAX.
with epy.lazy_api_imports(globals()):
  from dreamjax.toybox.captions import caption, parse
  from dreamjax.toybox.labels import Labels
  from dreamjax.toybox.scene import Frame, Scene
  from dreamjax.toybox.source import SPLITS, TRAIN_SUBJECTS, Stream, Variety, photos
  from dreamjax.toybox.styles import apply_style
  from dreamjax.toybox.world import Dial, View, build
