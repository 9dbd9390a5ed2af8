"""Sampling of toybox images: the distribution of labels, the held-out splits, and the stream that renders examples.

An example is a pure function of (seed, index), whatever the machine and the batch. Resuming a run therefore needs no
more than its step.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import numpy as np

from dreamjax.toybox import captions, identity, render, styles, vocabulary, world
from dreamjax.toybox import scene as scene_lib
from dreamjax.toybox.batches import one_by_one
from dreamjax.toybox.dice import Dice
from dreamjax.toybox.labels import Labels
from dreamjax.toybox.scene import Frame

#: Identities below this number are for training, the next `HELD_OUT_SUBJECTS` are held out.
TRAIN_SUBJECTS = 1 << 20
HELD_OUT_SUBJECTS = 1 << 16

_CLASSES, _CONTEXTS = len(vocabulary.CLASSES), len(vocabulary.CONTEXTS)

#: Pairs (class, context) that no training image shows, two per class; the studio (the last context) is in none.
HELD_OUT_COMBINATIONS = frozenset(
  (vocabulary.CLASSES[i], vocabulary.CONTEXTS[(5 * i + offset) % (_CONTEXTS - 1)])
  for i in range(_CLASSES)
  for offset in (3, 14)
)

SPLITS = ("train", "subjects", "combinations", "styles")


def _table(pairs: frozenset[tuple[str, str]]) -> np.ndarray:
  table = np.zeros((_CLASSES, _CONTEXTS), bool)
  for cls, context in pairs:
    table[vocabulary.CLASSES.index(cls), vocabulary.CONTEXTS.index(context)] = True
  return table


_HELD_OUT = _table(HELD_OUT_COMBINATIONS)
_IS_HELD_OUT_STYLE = np.array([name in vocabulary.HELD_OUT_STYLES for name in vocabulary.STYLES])
_STICKER, _STUDIO = vocabulary.STYLES.index("sticker"), vocabulary.CONTEXTS.index("studio")
_STATE_COUNT = np.array([len(vocabulary.STATES[name]) for name in vocabulary.CLASSES])


@dataclasses.dataclass(frozen=True)
class Variety:
  """How varied images are, from what a small network can learn to all that the world holds.

  Attributes:
    classes: the classes that occur.
    contexts: the contexts that occur.
    styles: the styles that occur besides the plain rendering (held-out ones in the split "styles" only).
    subjects: how many of the split's identities there are per class; None for all.
    style_share: share of the images in a style (in the split "styles", all are).
    accessory_share: share in which the subject wears something.
    other_share: share with a second toy.
    property_share: share with a property word.
    state_share: share in which the subject is not in its resting state.
    view: range of camera, distance, light and clutter.
  """

  classes: tuple[str, ...] = vocabulary.CLASSES
  contexts: tuple[str, ...] = vocabulary.CONTEXTS
  styles: tuple[str, ...] = vocabulary.STYLES[1:]
  subjects: int | None = None
  style_share: float = 0.3
  accessory_share: float = 0.25
  other_share: float = 0.12
  property_share: float = 0.12
  state_share: float = 0.5
  view: world.Dial = world.Dial()

  def __post_init__(self) -> None:
    """Raises ValueError for names that the vocabulary lacks and for shares outside [0, 1]."""
    for words, chosen, kind in (
      (vocabulary.CLASSES, self.classes, "class"),
      (vocabulary.CONTEXTS, self.contexts, "context"),
      (vocabulary.STYLES, self.styles, "style"),
    ):
      for name in chosen:
        vocabulary.index(words, name, kind)
    if not self.classes or not self.contexts:
      raise ValueError("a variety needs at least one class and one context")
    for field in dataclasses.fields(self):
      if field.name.endswith("_share") and not 0 <= getattr(self, field.name) <= 1:
        raise ValueError(f"{field.name} is {getattr(self, field.name)}, and must be in [0, 1]")


def _weights(names: tuple[str, ...], words: tuple[str, ...]) -> np.ndarray:
  return np.array([float(word in names) for word in words], np.float32)


def sample_labels(key: jax.Array, subject_key: jax.Array, variety: Variety, split: str) -> Labels:
  """Samples labels of an image of a split (scalars; `jax.vmap` it over keys); the subject by `subject_key` alone."""
  dice, whose = Dice(key, 24), Dice(subject_key, 24)
  allowed = _weights(variety.classes, vocabulary.CLASSES)[:, None] * _weights(variety.contexts, vocabulary.CONTEXTS)
  allowed = allowed * (_HELD_OUT if split == "combinations" else ~_HELD_OUT)
  if not allowed.any():
    raise ValueError(
      f"the split {split!r} holds no combination of classes {variety.classes} and contexts {variety.contexts}"
    )
  table = jnp.asarray(allowed)
  cls = whose.weighted(jnp.max(table, axis=1))
  whose.unit(2), dice.unit()  # numbers that are skipped, so that equal keys give what one `Dice` would
  context = dice.weighted(table[cls])
  other_cls = dice.weighted(table[:, context])

  first, count = (TRAIN_SUBJECTS, HELD_OUT_SUBJECTS) if split == "subjects" else (0, TRAIN_SUBJECTS)
  count = count if variety.subjects is None else min(count, variety.subjects)
  subject = first + whose.index(count)
  dice.unit()
  other_subject = first + dice.index(count)
  who, other = (identity.identity(c, s) for c, s in ((cls, subject), (other_cls, other_subject)))

  in_split = _IS_HELD_OUT_STYLE if split == "styles" else ~_IS_HELD_OUT_STYLE
  style_weights = _weights(variety.styles, vocabulary.STYLES) * in_split
  if split == "combinations":
    style_weights[_STICKER] = 0  # which has no context
  if split == "styles" and not style_weights.any():
    raise ValueError(f"the split 'styles' holds none of the styles {variety.styles}")
  style_share = 1.0 if split == "styles" else variety.style_share if style_weights.any() else 0.0
  style = jnp.where(dice.chance(style_share), dice.weighted(jnp.asarray(style_weights)), 0)
  has_other, states = dice.chance(variety.other_share), jnp.asarray(_STATE_COUNT)[cls]
  return Labels(
    cls=cls,
    subject=subject,
    colour=who.colour,
    marking=who.marking,
    prop=jnp.where(dice.chance(variety.property_share), 1 + dice.index(len(vocabulary.PROPERTIES) - 1), 0),
    state=jnp.where(dice.chance(variety.state_share), dice.index(states), 0),
    context=jnp.where(style == _STICKER, _STUDIO, context),  # a sticker shows no background
    accessory=jnp.where(dice.chance(variety.accessory_share), 1 + dice.index(len(vocabulary.ACCESSORIES) - 1), 0),
    style=style,
    other_cls=jnp.where(has_other, other_cls, -1),
    other_subject=jnp.where(has_other, other_subject, 0),
    other_colour=jnp.where(has_other, other.colour, 0),
    other_marking=jnp.where(has_other, other.marking, 0),
    paraphrase=dice.index(1 << 20),
  )


def scenes(labels: Labels, keys: jax.Array, dial: world.Dial) -> scene_lib.Scene:
  """Builds the scenes of a batch of labels, each with a view sampled by its key. Jittable."""

  def one(args: tuple[Labels, jax.Array]) -> scene_lib.Scene:
    labels, key = args
    return world.build(labels, world.sample_view(key, labels.cls, jnp.maximum(labels.other_cls, 0), dial))

  return one_by_one(one, (labels, keys))


def restyle(frames: Frame, style: Int[Array, " b"], keys: jax.Array) -> Frame:
  """Applies their styles to a batch of frames. Jittable."""

  def one(args) -> Array:
    frame, style, key = args
    key = jax.random.fold_in(key, 1)
    return styles.apply_style(style, frame.rgb, frame.depth, frame.normal, frame.foreground, key)

  return frames.replace(rgb=one_by_one(one, (frames, style, keys)))


@dataclasses.dataclass(frozen=True)
class Stream:
  """An endless, indexable source of examples, rendered where the program runs.

  Attributes:
    seed: two streams with different seeds have nothing in common.
    split: "train", or what it holds out: "subjects", "combinations", "styles".
    variety: how varied the images are.
    resolution: height and width in pixels.
    photos: how many consecutive examples show the same subject, in different contexts and views.
  """

  seed: int = 0
  split: str = "train"
  variety: Variety = Variety()
  resolution: int = 64
  photos: int = 1

  def __post_init__(self) -> None:
    """Raises ValueError for an unknown split, and a resolution or number of photos below 1."""
    vocabulary.index(SPLITS, self.split, "split")
    if self.resolution < 1 or self.photos < 1:
      raise ValueError(f"resolution and photos must be at least 1, not {self.resolution} and {self.photos}")

  def labels(self, indices: Int[Array, " b"]) -> Labels:
    """Samples the labels of the examples with these indices. Jittable, and cheap: nothing is rendered."""
    keys, firsts = self._keys(indices), self._keys(indices - indices % self.photos)
    keys, firsts = (jax.vmap(lambda key: jax.random.fold_in(key, 0))(k) for k in (keys, firsts))
    return jax.vmap(lambda key, first: sample_labels(key, first, self.variety, self.split))(keys, firsts)

  def examples(self, indices: Int[Array, " b"]) -> tuple[Frame, Labels]:
    """Renders the examples with these indices. Jittable."""
    labels, keys = self._sample(indices)
    frames = render.render_batch(scenes(labels, keys, self.variety.view), self.resolution)
    return restyle(frames, labels.style, keys), labels

  def _sample(self, indices: Int[Array, " b"]) -> tuple[Labels, jax.Array]:
    return self.labels(indices), jax.vmap(lambda key: jax.random.fold_in(key, 1))(self._keys(indices))

  def _keys(self, indices: Int[Array, " b"]) -> jax.Array:
    root = jax.random.fold_in(jax.random.key(self.seed), SPLITS.index(self.split))
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(indices)

  def batch(self, step: int, size: int) -> dict[str, Any]:
    """Returns batch `step`, the examples step * size to (step + 1) * size - 1, as `record` does, as device arrays."""
    return record(*self.draw(range(step * size, (step + 1) * size)))

  def draw(self, indices: range) -> tuple[Frame, Labels]:
    """Renders the examples with these indices, compiled once per number of indices."""
    labels, keys = _sample(self, jnp.asarray(indices))
    return _render(labels, keys, self.variety.view, self.resolution), labels


# Sampling and building take little time to run, but much to compile with optimization.
_UNOPTIMIZED = {"xla_backend_optimization_level": 0}
_sample = jax.jit(Stream._sample, static_argnames="self", compiler_options=_UNOPTIMIZED)
_scenes = jax.jit(scenes, static_argnames="dial", compiler_options=_UNOPTIMIZED)
_restyle = jax.jit(restyle)


def _render(labels: Labels, keys: jax.Array, dial: world.Dial, resolution: int) -> Frame:
  """Renders images by several small programs, so that images without styles need not wait for these to compile."""
  frames = render.render_batch(_scenes(labels, keys, dial), resolution)
  return _restyle(frames, labels.style, keys) if np.any(jax.device_get(labels.style)) else frames


def record(frame: Frame, labels: Labels) -> dict[str, Any]:
  """Converts a batch of examples to a dict, in the format of every source.

  Returns:
    image: [b, h, w, 3] in [0, 1]; depth: [b, h, w]; mask: [b, h, w]; keypoints: [b, k, 3], (x, y, visible);
    caption: list of b strings; labels: dict of [b] integers.
  """
  host = jax.device_get(labels)
  count = host.cls.shape[0]
  return {
    "image": frame.rgb,
    "depth": frame.depth,
    "mask": frame.mask,
    "keypoints": jnp.concatenate([frame.keypoints, jnp.where(frame.visible, 1.0, 0.0)[..., None]], axis=-1),
    "caption": [captions.caption(jax.tree.map(lambda x, i=i: x[i], host)) for i in range(count)],
    "labels": {f.name: getattr(labels, f.name) for f in dataclasses.fields(labels)},
  }


def photos(
  cls: str, subject: int, n: int = 5, seed: int = 0, resolution: int = 128, style: str = "photo"
) -> tuple[Frame, Labels]:
  """Renders photos of one subject as a user would have: its own colours, everyday contexts, several poses and views.

  Args:
    cls: the class's name.
    subject: the identity's number; numbers from `TRAIN_SUBJECTS` on were never trained on.
    n: the number of photos; a user has 3 to 6.
    seed: of contexts, poses and views.
    resolution: height and width in pixels.
    style: the style of all of them.

  Returns:
    Frames and labels, n of each.

  Raises:
    ValueError: for an unknown class or style, a negative subject, or n or resolution below 1.
  """
  number = vocabulary.index(vocabulary.CLASSES, cls, "class")
  style_index = vocabulary.index(vocabulary.STYLES, style, "style")
  if subject < 0 or n < 1 or resolution < 1:
    raise ValueError(f"subject must be at least 0, n and resolution at least 1, not {subject}, {n} and {resolution}")
  labels, keys = _photo_labels(jnp.asarray(number), jnp.asarray(subject), n, seed)
  context = jnp.full_like(labels.context, _STUDIO) if style_index == _STICKER else labels.context
  labels = labels.replace(style=jnp.full_like(labels.style, style_index), context=context)
  return _render(labels, keys, world.Dial(), resolution), labels


@functools.partial(jax.jit, static_argnames="n")
def _photo_labels(cls: Array, subject: Array, n: int, seed: Array) -> tuple[Labels, jax.Array]:
  who = identity.identity(cls, subject)
  keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), cls), subject), n)

  def one(key: jax.Array, context: Array) -> Labels:
    dice = Dice(key, 4)
    zero = jnp.zeros((), jnp.int32)
    return Labels(
      cls=cls, subject=subject, colour=who.colour, marking=who.marking, prop=zero,
      state=dice.index(jnp.asarray(_STATE_COUNT)[cls]), context=context, accessory=zero, style=zero, other_cls=zero - 1,
      other_subject=zero, other_colour=zero, other_marking=zero, paraphrase=dice.index(1 << 20),
    )  # fmt: skip

  everyday = jnp.asarray([vocabulary.CONTEXTS.index(c) for c in _EVERYDAY])
  shuffled = jax.random.permutation(jax.random.fold_in(keys[0], 1), everyday)
  contexts = shuffled[jnp.arange(n) % len(_EVERYDAY)]
  return jax.vmap(one)(keys, contexts), jax.vmap(lambda k: jax.random.fold_in(k, 2))(keys)


# Contexts in which people take photos of what they own.
_EVERYDAY = (
  "studio",
  "wooden floor",
  "white rug",
  "blue house",
  "cobblestone street",
  "dirt road",
  "mountain",
  "beach",
)
