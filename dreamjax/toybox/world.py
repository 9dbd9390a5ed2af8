"""Builds scenes from labels and views: toys, accessories and a background, with a camera in front of them."""

import dataclasses

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from dreamjax.toybox import accessories, classes, contexts, identity, intersect, vocabulary
from dreamjax.toybox.dice import Dice
from dreamjax.toybox.labels import Labels
from dreamjax.toybox.noise import hash_cells
from dreamjax.toybox.rig import Coat, Instance, instantiate
from dreamjax.toybox.scene import Camera, Owner, Primitives, Scene

#: Vertical angle of view of every camera, in radians.
FOV = 0.6
_CORES = 3  # at most so many round parts of a toy become boxes when it is "cube shaped"
_SHINY, _CUBE = (vocabulary.PROPERTIES.index(p) for p in ("shiny", "cube shaped"))


@struct.dataclass
class View:
  """What the labels of an image leave open. Angles are in radians.

  Attributes:
    yaw: of the subject to its left; 0 faces the camera.
    head_turn: of the subject's head, further.
    azimuth: of the camera around the subject.
    elevation: of the camera above the subject.
    fill: share of the image's height or width that the subject fills.
    sun_azimuth: of the sun; 0 is behind the camera.
    sun_elevation: of the sun above the horizon.
    other_yaw: of the second toy.
    other_side: of the subject on which the second toy is, -1 or 1.
    layout: jitter of the background, in [-1, 1].
    clutter: share of the inessential background parts that are kept.
    seed: of the noise on ground and sky.
  """

  yaw: Float[Array, "*b"]
  head_turn: Float[Array, "*b"]
  azimuth: Float[Array, "*b"]
  elevation: Float[Array, "*b"]
  fill: Float[Array, "*b"]
  sun_azimuth: Float[Array, "*b"]
  sun_elevation: Float[Array, "*b"]
  other_yaw: Float[Array, "*b"]
  other_side: Float[Array, "*b"]
  layout: Float[Array, "*b l"]
  clutter: Float[Array, "*b"]
  seed: Array


def _concatenate(*parts: Primitives) -> Primitives:
  return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _stretch(toy: Instance, by: Float[Array, " 3"]) -> Instance:
  """The toy stretched along the scene's axes (parts that are askew keep their shape approximately)."""

  def parts(p: Primitives) -> Primitives:
    return p.replace(centre=p.centre * by[None], radii=p.radii * jnp.linalg.norm(p.axes * by[None, None], axis=-1))

  size = toy.anchor_size * jnp.linalg.norm(toy.anchor_axes * by[None, None], axis=-1)
  return toy.replace(
    quadrics=parts(toy.quadrics), boxes=parts(toy.boxes), anchor_centre=toy.anchor_centre * by[None], anchor_size=size
  )  # fmt: skip


def _move(toy: Instance, yaw: Array, shift: Float[Array, " 3"]) -> Instance:
  """The toy turned about the vertical and moved."""
  c, s = jnp.cos(yaw), jnp.sin(yaw)
  zero, one = jnp.zeros_like(c), jnp.ones_like(c)
  m = jnp.stack([jnp.stack([c, zero, -s]), jnp.stack([zero, one, zero]), jnp.stack([s, zero, c])])  # row vectors

  def parts(p: Primitives) -> Primitives:
    return p.replace(centre=p.centre @ m + shift[None], axes=p.axes @ m)

  return toy.replace(
    quadrics=parts(toy.quadrics), boxes=parts(toy.boxes), anchor_centre=toy.anchor_centre @ m + shift[None],
    anchor_axes=toy.anchor_axes @ m,
  )  # fmt: skip


def bounds(quadrics: Primitives, boxes: Primitives) -> tuple[Float[Array, " 3"], Float[Array, " 3"]]:
  """Computes the lower and upper corner of the box around all present parts (quadrics as if they were ellipsoids)."""
  low, high = jnp.full(3, jnp.inf), jnp.full(3, -jnp.inf)
  for parts, order in ((quadrics, 2), (boxes, 1)):
    there = (jnp.min(parts.radii, axis=-1) > 0)[:, None]
    reach = jnp.linalg.norm(parts.axes * parts.radii[..., None], ord=order, axis=-2)
    low = jnp.minimum(low, jnp.min(jnp.where(there, parts.centre - reach, jnp.inf), axis=0))
    high = jnp.maximum(high, jnp.max(jnp.where(there, parts.centre + reach, -jnp.inf), axis=0))
  return low, high


def _cubed(toy: Instance, cls: Array, state: Array) -> Instance:
  """The toy with its core parts as boxes, and stretched into a cube."""
  tables = classes.tables()
  core = jnp.asarray(tables.core)[cls, state]
  quadrics = toy.quadrics
  which = jnp.nonzero(core[: tables.quadrics], size=_CORES, fill_value=0)[0]
  is_core = (jnp.arange(_CORES) < jnp.sum(core[: tables.quadrics])) & (jnp.min(quadrics.radii[which], axis=-1) > 0)
  cubes = jax.tree.map(lambda x: x[which], quadrics)
  cubes = cubes.replace(radii=jnp.where(is_core[:, None], 0.74 * cubes.radii, 0.0))
  quadrics = quadrics.replace(radii=jnp.where(core[: tables.quadrics, None], 0.0, quadrics.radii))
  toy = toy.replace(quadrics=quadrics, boxes=_concatenate(toy.boxes, cubes))
  low, high = bounds(toy.quadrics, toy.boxes)
  extent = high - low
  return _stretch(toy, jnp.clip(jnp.prod(extent) ** (1 / 3) / extent, 0.6, 1.8))


def _toy(
  cls: Array, subject: Array, colour: Array, marking: Array, prop: Array, state: Array, head_turn: Array, owner: Array
) -> tuple[Instance, Coat]:
  """A toy at the origin, facing +z."""
  who = identity.identity(cls, subject)
  paint = identity.coat(who, cls, colour, marking, jnp.where(prop == _SHINY, 0.7, 0.0))
  toy = instantiate(classes.tables(), cls, state, who.traits, paint, owner, head_turn)
  cubed = _cubed(toy, cls, state)
  none = jax.tree.map(lambda x: x[:_CORES], toy.quadrics)
  plain = toy.replace(boxes=_concatenate(toy.boxes, none.replace(radii=jnp.zeros_like(none.radii))))
  return jax.tree.map(lambda a, b: jnp.where(prop == _CUBE, a, b), cubed, plain), paint


def _background(labels: Labels, view: View, coat: Coat) -> tuple[Primitives, Primitives]:
  """The context's parts, without those that the view's clutter leaves out."""
  zero = jnp.zeros((), jnp.int32)
  thing = instantiate(contexts.tables(), labels.context, zero, view.layout, coat, Owner.BACKGROUND)
  lots = hash_cells(view.seed, jnp.arange(thing.essential.shape[0]))
  keep = thing.essential | (lots < view.clutter)
  q = thing.quadrics.pattern.shape[0]
  return tuple(
    p.replace(radii=jnp.where(k[:, None], p.radii, 0.0))
    for p, k in ((thing.quadrics, keep[:q]), (thing.boxes, keep[q:]))
  )


def _camera(quadrics: Primitives, boxes: Primitives, view: View) -> Camera:
  """A camera that looks at the centre of the toys, at the distance at which they fill the view's share of the image."""
  ca, sa, ce, se = (f(a) for a in (view.azimuth, view.elevation) for f in (jnp.cos, jnp.sin))
  back = jnp.stack([sa * ce, se, ca * ce])  # from the toys to the camera
  axes = jnp.stack([jnp.stack([ca, 0.0 * ca, -sa]), jnp.cross(back, jnp.stack([ca, 0.0 * ca, -sa])), back])
  low, high = bounds(*(p.replace(centre=p.centre @ axes.T, axes=p.axes @ axes.T) for p in (quadrics, boxes)))
  half = (high - low) / 2
  distance = jnp.maximum(half[0], half[1]) / (view.fill * jnp.tan(FOV / 2)) + 0.45 * half[2]
  target = ((low + high) / 2) @ axes
  position = target + distance * back
  return Camera(position.at[1].set(jnp.maximum(position[1], 0.12)), target, jnp.asarray(FOV, jnp.float32))


def build(labels: Labels, view: View) -> Scene:
  """Builds the scene of labels and a view (scalars; `jax.vmap` it for a batch)."""
  there = labels.other_cls >= 0
  zero = jnp.zeros((), jnp.int32)
  both = [
    jnp.stack(pair)
    for pair in (
      (labels.cls, jnp.maximum(labels.other_cls, 0)), (labels.subject, labels.other_subject),
      (labels.colour, labels.other_colour), (labels.marking, labels.other_marking), (labels.prop, zero),
      (labels.state, zero), (view.head_turn, 0.0 * view.head_turn),
    )
  ]  # fmt: skip
  toys, coats = jax.vmap(_toy)(*both, jnp.array([Owner.SUBJECT, Owner.OTHER]))
  (toy, other), coat = (jax.tree.map(lambda x, k=k: x[k], toys) for k in range(2)), jax.tree.map(lambda x: x[0], coats)
  other = other.replace(**{
    shape: p.replace(radii=jnp.where(there, p.radii, 0.0))
    for shape, p in (("quadrics", other.quadrics), ("boxes", other.boxes))
  })  # fmt: skip

  # Feet on the ground (or below it, in water), the subject's centre at the origin, the second toy next to it.
  toy, other = _move(toy, view.yaw, jnp.zeros(3)), _move(other, view.other_yaw, jnp.zeros(3))
  low, high = bounds(toy.quadrics, toy.boxes)
  middle = (low + high) / 2
  drop = -contexts.sink(labels.context)
  shift = jnp.stack([-middle[0], drop, -middle[2]])
  toy = _move(toy, jnp.zeros(()), shift)
  high = high + shift
  other_low, other_high = bounds(other.quadrics, other.boxes)
  gap = 0.06 + high[0] + (other_high[0] - other_low[0]) / 2
  offset = jnp.stack(
    [view.other_side * gap - (other_low[0] + other_high[0]) / 2, drop, -(other_low[2] + other_high[2]) / 2]
  )
  offset = jnp.where(there, offset, 0.0)
  other = _move(other, jnp.zeros(()), offset)
  worn_quadrics, worn_boxes = accessories.wear(labels.accessory, labels.cls, toy, coat)
  far_quadrics, far_boxes = _background(labels, view, coat)

  near_quadrics = _concatenate(toy.quadrics, worn_quadrics, other.quadrics)
  near_boxes = _concatenate(toy.boxes, worn_boxes, other.boxes)
  quadrics, moved_q = intersect.compact(_concatenate(near_quadrics, far_quadrics))
  boxes, moved_b = intersect.compact(_concatenate(near_boxes, far_boxes))
  part = toy.keypoint_parts
  q, cls_q = quadrics.pattern.shape[0], classes.tables().quadrics
  centres = jnp.concatenate([toy.quadrics.centre, toy.boxes.centre])[part]
  gone = jnp.min(jnp.concatenate([toy.quadrics.radii, toy.boxes.radii])[part], axis=-1) <= 0
  new_part = jnp.where(part < cls_q, moved_q[jnp.minimum(part, cls_q - 1)], q + moved_b[jnp.maximum(part - cls_q, 0)])

  sun_flat = jnp.cos(view.sun_elevation)
  sun = jnp.stack([
    jnp.sin(view.sun_azimuth) * sun_flat, jnp.sin(view.sun_elevation), jnp.cos(view.sun_azimuth) * sun_flat
  ])  # fmt: skip
  return Scene(
    quadrics=quadrics,
    boxes=boxes,
    camera=_camera(near_quadrics, near_boxes, view),
    environment=contexts.environment(labels.context, sun, view.seed),
    keypoints=centres,
    keypoint_parts=jnp.where((part < 0) | gone, -1, new_part),
  )


@dataclasses.dataclass(frozen=True)
class Dial:
  """The ranges of views. 0 is always the same view, 1 the full range.

  Attributes:
    views: range of the yaw of the subject and its head, and of the camera's height.
    light: range of the sun's direction.
    layout: range of the background's jitter.
    clutter: share of the inessential background parts that are kept.
    fill: smallest and largest share of the image that the subject fills.
  """

  views: float = 1.0
  light: float = 1.0
  layout: float = 1.0
  clutter: float = 1.0
  fill: tuple[float, float] = (0.62, 0.88)


# Centre and half range of the yaw (degrees) from which a class is recognised best; to the left or right at random.
_YAW = {
  "dog": (48, 34), "cat": (48, 34), "rabbit": (42, 34), "bird": (46, 34), "fish": (74, 22), "car": (50, 30),
  "truck": (52, 28), "boat": (62, 26), "plane": (44, 30), "robot": (18, 32), "teapot": (66, 28), "mushroom": (15, 30),
  "chair": (28, 30), "backpack": (24, 30), "face": (14, 24),
}  # fmt: skip
_YAW_TABLE = np.radians(np.array([_YAW[name] for name in vocabulary.CLASSES], np.float32))


def sample_view(key: jax.Array, cls: Array, other_cls: Array, dial: Dial) -> View:
  """Samples a view within the dial's ranges."""
  jitter = contexts.tables().geometry.shape[-1] - 1
  dice = Dice(key, 16 + jitter)
  yaw = jnp.asarray(_YAW_TABLE)
  side = dice.sign() if dial.views > 0 else 1.0
  low, high = dial.fill
  return View(
    yaw=side * (yaw[cls, 0] + yaw[cls, 1] * dial.views * dice.spread()),
    head_turn=0.5 * dial.views * dice.spread(),
    azimuth=0.12 * dial.views * dice.spread(),
    elevation=0.15 + 0.09 * dial.views * dice.spread(),
    fill=low + (high - low) * dice.unit(),
    sun_azimuth=dice.sign() * (0.75 + 0.4 * dial.light * dice.spread()),
    sun_elevation=0.85 + 0.22 * dial.light * dice.spread(),
    other_yaw=side * (yaw[other_cls, 0] + yaw[other_cls, 1] * dial.views * dice.spread()),
    other_side=dice.sign(),
    layout=dial.layout * dice.spread(jitter),
    clutter=jnp.asarray(dial.clutter, jnp.float32),
    seed=dice.index(1 << 16),
  )
