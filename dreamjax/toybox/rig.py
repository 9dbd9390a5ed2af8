"""Blend-shape tables: toys, accessories and backgrounds as affine functions of traits.

A builder is an ordinary Python function that assembles parts from a few numbers, its *traits* (how long the legs are,
how far left the tree is). Its geometry must be affine in them, as in a morphable model (Blanz & Vetter,
SIGGRAPH 1999): evaluating the builder once at the origin and once per trait then gives a table from which any instance
follows by one small matrix product, on the device, for a whole batch at once, whatever the number of kinds of toy.
`check_affine` raises an error if a builder is not affine.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import enum
import math

from flax import struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from dreamjax.toybox import scene
from dreamjax.toybox.scene import Owner, Pattern, Primitives

_FEATURES = 12  # centre, up, right, radii: three numbers each
_HINT = np.array([0.31, 0.17, 0.93])  # sideways direction of round limbs; arbitrary, but parallel to none of them

#: The two sides of a toy, and where each is along x.
SIDES = (("left", 1.0), ("right", -1.0))

Point = Sequence[float | int] | np.ndarray


class Slot(enum.IntEnum):
  """Indices into an identity's palette; a toy's parts refer to their colours by slot."""

  PRIMARY = 0
  SECONDARY = 1
  ACCENT = 2
  EYE = 3
  SKIN = 4


def linear(srgb: Point) -> np.ndarray:
  """Converts a display colour to linear RGB (the inverse is in `render`)."""
  return np.clip(np.asarray(srgb, np.float64), 0, 1) ** 2.2


@dataclasses.dataclass(frozen=True)
class Paint:
  """The look of a part.

  Attributes:
    a: first colour, a palette slot or display RGB.
    b: second colour.
    pattern: how both are mixed.
    params: the pattern's parameters.
    gloss: 0 to 1.
    glow: 0 to 1.
    coat: whether the identity's marking replaces `pattern`.
  """

  a: Slot | tuple[float, float, float] = Slot.PRIMARY
  b: Slot | tuple[float, float, float] = Slot.SECONDARY
  pattern: Pattern = Pattern.PLAIN
  params: tuple[float, float, float, float] = (0.2, 0.0, 0.5, 0.0)
  gloss: float = 0.25
  glow: float = 0.0
  coat: bool = False


COAT = Paint(coat=True)
PRIMARY, SECONDARY, ACCENT = (Paint(s, s) for s in (Slot.PRIMARY, Slot.SECONDARY, Slot.ACCENT))
SKIN = Paint(Slot.SKIN, Slot.SKIN, gloss=0.12)


def flat(r: float, g: float, b: float, gloss: float = 0.15, glow: float = 0.0) -> Paint:
  """Returns paint of one display colour."""
  return Paint((r, g, b), (r, g, b), gloss=gloss, glow=glow)


BLACK, WHITE, SILVER = flat(0.09, 0.09, 0.1, 0.4), flat(0.95, 0.95, 0.93), flat(0.72, 0.74, 0.78, 0.8)
GLASS, RUBBER, GOLD = flat(0.35, 0.52, 0.66, 0.95), flat(0.13, 0.13, 0.14, 0.1), flat(0.93, 0.72, 0.2, 0.85)
ROSE, WOOD, BEAK = flat(0.93, 0.55, 0.6), flat(0.52, 0.34, 0.19), flat(0.98, 0.62, 0.12)
EYE = Paint((0.97, 0.97, 0.95), Slot.EYE, Pattern.PUPIL, (0.62, 0.8, 0.0, 0.0), gloss=0.6)
BUTTON_EYE = Paint((0.08, 0.07, 0.08), (0.08, 0.07, 0.08), Pattern.PUPIL, (2.0, 2.0, 0.0, 0.0), gloss=0.7)


def turn(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> np.ndarray:
  """Returns a rotation matrix: by `z` degrees about the z axis, then `x` about x, then `y` about y."""
  cx, sx, cy, sy, cz, sz = (f(math.radians(a)) for a in (x, y, z) for f in (math.cos, math.sin))
  about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
  about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
  about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
  return about_y @ about_x @ about_z


@dataclasses.dataclass
class _Part:
  box: bool
  features: np.ndarray
  profile: tuple[float, float, float, float]
  paint: Paint
  head: bool
  core: bool
  essential: bool
  keypoint: str | None


class Builder:
  """Collects the parts of one toy, accessory or background, in its own coordinates (y up, facing +z)."""

  def __init__(self) -> None:
    self.parts: list[_Part] = []
    self.anchors: dict[str, tuple[np.ndarray, bool]] = {}
    self.head_pivot = np.zeros(3)
    self._origin, self._rotation = np.zeros(3), np.eye(3)
    self._head = self._essential = False

  @contextlib.contextmanager
  def frame(self, at: Point = (0, 0, 0), rotation: np.ndarray | None = None, *, head: bool = False) -> Iterator[None]:
    """Places parts added inside relative to `at`, rotated; those of the head turn around `at` with the gaze."""
    before = self._origin, self._rotation, self._head
    self._origin = self._origin + self._rotation @ np.asarray(at, float)
    self._rotation = self._rotation @ (np.eye(3) if rotation is None else rotation)
    if head:
      self._head, self.head_pivot = True, self._origin
    yield
    self._origin, self._rotation, self._head = before

  @contextlib.contextmanager
  def essential(self) -> Iterator[None]:
    """Keeps background parts added inside at any amount of clutter."""
    self._essential = True
    yield
    self._essential = False

  def _features(self, at: Point, up: np.ndarray, right: np.ndarray, radii: Point) -> np.ndarray:
    place = self._origin + self._rotation @ np.asarray(at, float)
    return np.concatenate([place, self._rotation @ up, self._rotation @ right, np.asarray(radii, float)])

  def _add(self, box, at, up, right, radii, profile, paint, core=False, keypoint=None):
    features = self._features(at, up, right, radii)
    self.parts.append(_Part(box, features, profile, paint, self._head, core, self._essential, keypoint))

  def quadric(
    self, at: Point, radii: Point, paint: Paint = COAT, *, rotation=None, profile=scene.ELLIPSOID, core=False, key=None
  ) -> None:
    """Adds a round part. `core` parts become boxes in a "cube shaped" toy; `key` names the keypoint at its centre."""
    r = np.eye(3) if rotation is None else rotation
    self._add(False, at, r[:, 1], r[:, 0], radii, profile, paint, core, key)

  def ball(self, at: Point, radius: float, paint: Paint = COAT, **kwargs) -> None:
    """Adds a sphere."""
    self.quadric(at, (radius, radius, radius), paint, **kwargs)

  def box(self, at: Point, half: Point, paint: Paint = COAT, *, rotation=None, core=False, key=None) -> None:
    """Adds a box with half extents `half`."""
    r = np.eye(3) if rotation is None else rotation
    self._add(True, at, r[:, 1], r[:, 0], half, scene.ELLIPSOID, paint, core, key)

  def limb(
    self, start: Point, end: Point, radius: float, paint: Paint = COAT, *, taper: float = 1.0, key=None,
    capped: bool = True,
  ) -> None:  # fmt: skip
    """Adds a round bar from `start` to `end`; `taper` is the ratio of its radii at end and start."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    profile = scene.frustum(1.0, taper, capped)
    radii = (radius, 0.5, radius)  # the y radius is in lengths of the axis
    self._add(False, (start + end) / 2, end - start, _HINT, radii, profile, paint, keypoint=key)

  def anchor(self, name: str, at: Point, size: Point, rotation: np.ndarray | None = None) -> None:
    """Adds an anchor for accessories, by the box that they are made to fit (half extents `size`)."""
    r = np.eye(3) if rotation is None else rotation
    self.anchors[name] = (self._features(at, r[:, 1], r[:, 0], size), self._head)


class Traits:
  """Named numbers, read as attributes."""

  def __init__(self, names: Sequence[str], values: Sequence[float]) -> None:
    self._values = dict(zip(names, map(float, values), strict=True))

  def __getattr__(self, name: str) -> float:
    try:
      return self.__dict__["_values"][name]
    except KeyError:
      raise AttributeError(f"no trait {name!r}") from None

  def choose(self, **options: float) -> float:
    """Returns the value of the option whose trait is 1 (options are 0 or 1 and sum to 1, so that this is affine)."""
    return sum(getattr(self, name) * value for name, value in options.items())


@dataclasses.dataclass(frozen=True)
class Rig:
  """A kind of thing that a builder makes.

  Attributes:
    build: called as build(builder, traits, variant).
    ranges: the names of traits that vary continuously, in [-1, 1].
    choices: groups of traits of which exactly one is 1 and the others 0.
    variants: what else the builder depends on, such as the states of a class.
    upright: whether markings are most visible from the front (a teapot) rather than from the side (a dog).
  """

  build: Callable[[Builder, Traits, str], None]
  ranges: tuple[str, ...] = ()
  choices: tuple[tuple[str, ...], ...] = ()
  variants: tuple[str, ...] = ("",)
  upright: bool = False

  @property
  def traits(self) -> tuple[str, ...]:
    """All names of traits, in the order of a trait vector."""
    return self.ranges + tuple(name for group in self.choices for name in group)

  def run(self, variant: str, values: np.ndarray) -> Builder:
    """Runs the builder for one trait vector."""
    builder = Builder()
    self.build(builder, Traits(self.traits, values), variant)
    return builder


@struct.dataclass
class Tables:
  """Blend-shape tables of several rigs, indexed [rig, variant, ...].

  Attributes:
    geometry: features of quadrics, then boxes, then anchors, then the head's pivot; last axis: constant, then one per
      trait.
    profile: of the quadrics and boxes.
    colour: constant colours, linear.
    slot: palette slot of each colour, or -1 for the constant.
    pattern: a `Pattern`.
    pattern_params: the pattern's parameters.
    gloss: of each part.
    glow: of each part.
    coat: whether the part takes the identity's marking.
    head: whether the part (or anchor) follows the gaze.
    core: whether the part becomes a box in a cube shaped toy.
    essential: whether a background part is kept at any amount of clutter.
    keypoint_part: part of each keypoint, -1 for none.
    is_range: whether a trait is continuous, [rig, trait].
    group: number of the choice that a trait belongs to, -1 for none, [rig, trait].
    upright: of the rig, [rig].
    quadrics: how many of the parts are quadrics.
    anchor_names: in the order of the geometry.
  """

  geometry: np.ndarray
  profile: np.ndarray
  colour: np.ndarray
  slot: np.ndarray
  pattern: np.ndarray
  pattern_params: np.ndarray
  gloss: np.ndarray
  glow: np.ndarray
  coat: np.ndarray
  head: np.ndarray
  core: np.ndarray
  essential: np.ndarray
  keypoint_part: np.ndarray
  is_range: np.ndarray
  group: np.ndarray
  upright: np.ndarray
  quadrics: int = struct.field(pytree_node=False)
  anchor_names: tuple[str, ...] = struct.field(pytree_node=False)


def _rows(builder: Builder, quadrics: int, boxes: int, anchors: Sequence[str]) -> np.ndarray:
  """Features of one evaluation, padded with absent parts: [quadrics + boxes + anchors + 1, features]."""
  rows = np.zeros((quadrics + boxes + len(anchors) + 1, _FEATURES))
  rows[:, 4], rows[:, 6] = 1.0, 1.0
  for start, is_box in ((0, False), (quadrics, True)):
    parts = [p.features for p in builder.parts if p.box == is_box]
    rows[start : start + len(parts)] = np.reshape(parts, (-1, _FEATURES))
  for i, name in enumerate(anchors):
    rows[quadrics + boxes + i] = builder.anchors[name][0]
  rows[-1, :3] = builder.head_pivot
  return rows


def make_tables(rigs: Sequence[Rig], anchors: Sequence[str] = ()) -> Tables:
  """Evaluates every rig in every variant at the origin and along every trait, and stacks the results."""
  bases = [[rig.run(v, np.zeros(len(rig.traits))) for v in rig.variants] for rig in rigs]
  everything = [b for row in bases for b in row]
  quadrics = max(sum(not p.box for p in b.parts) for b in everything)
  boxes = max(1, max(sum(p.box for p in b.parts) for b in everything))
  variants, traits = max(len(r.variants) for r in rigs), max(len(r.traits) for r in rigs)
  keypoints = max(1, max(sum(p.keypoint is not None for p in b.parts) for b in everything))
  n, lead = quadrics + boxes, (len(rigs), variants)

  t = Tables(
    geometry=np.zeros((*lead, n + len(anchors) + 1, _FEATURES, 1 + traits), np.float32),
    profile=np.zeros((*lead, n, 4), np.float32),
    colour=np.zeros((*lead, n, 2, 3), np.float32),
    slot=np.full((*lead, n, 2), -1, np.int32),
    pattern=np.zeros((*lead, n), np.int32),
    pattern_params=np.ones((*lead, n, 4), np.float32),
    gloss=np.zeros((*lead, n), np.float32),
    glow=np.zeros((*lead, n), np.float32),
    coat=np.zeros((*lead, n), bool),
    head=np.zeros((*lead, n + len(anchors)), bool),
    core=np.zeros((*lead, n), bool),
    essential=np.zeros((*lead, n), bool),
    keypoint_part=np.full((*lead, keypoints), -1, np.int32),
    is_range=np.zeros((len(rigs), traits), bool),
    group=np.full((len(rigs), traits), -1, np.int32),
    upright=np.array([r.upright for r in rigs], np.float32),
    quadrics=quadrics,
    anchor_names=tuple(anchors),
  )
  for i, rig in enumerate(rigs):
    t.is_range[i, : len(rig.ranges)] = True
    start = len(rig.ranges)
    for g, group in enumerate(rig.choices):
      t.group[i, start : start + len(group)] = g
      start += len(group)
    for j, variant in enumerate(rig.variants):
      base = _rows(bases[i][j], quadrics, boxes, anchors)
      t.geometry[i, j, ..., 0] = base
      for k, unit in enumerate(np.eye(len(rig.traits))):
        t.geometry[i, j, ..., 1 + k] = _rows(rig.run(variant, unit), quadrics, boxes, anchors) - base
      _fill_materials(t, i, j, bases[i][j], n)
    for j in range(len(rig.variants), variants):  # unused variants repeat the first
      for field in dataclasses.fields(t):
        value = getattr(t, field.name)
        if isinstance(value, np.ndarray) and value.shape[:2] == lead:
          value[i, j] = value[i, 0]
  return t


def _fill_materials(t: Tables, i: int, j: int, builder: Builder, n: int) -> None:
  """Writes what does not depend on traits into the tables at [i, j]."""
  next_free = {False: 0, True: t.quadrics}
  keypoint = 0
  for part in builder.parts:
    k = next_free[part.box]
    next_free[part.box] += 1
    t.profile[i, j, k] = part.profile
    for c, colour in enumerate((part.paint.a, part.paint.b)):
      if isinstance(colour, Slot):
        t.slot[i, j, k, c] = colour
      else:
        t.colour[i, j, k, c] = linear(colour)
    t.pattern[i, j, k], t.pattern_params[i, j, k] = part.paint.pattern, part.paint.params
    t.gloss[i, j, k], t.glow[i, j, k], t.coat[i, j, k] = part.paint.gloss, part.paint.glow, part.paint.coat
    t.head[i, j, k], t.core[i, j, k], t.essential[i, j, k] = part.head, part.core, part.essential
    if part.keypoint is not None:
      t.keypoint_part[i, j, keypoint] = k
      keypoint += 1
  for a, name in enumerate(t.anchor_names):
    t.head[i, j, n + a] = builder.anchors[name][1]


def check_affine(rig: Rig, seed: int = 0) -> None:
  """Raises ValueError, naming the part, if the rig's builder is not affine in its traits."""
  rng = np.random.default_rng(seed)
  values = rng.uniform(-1, 1, len(rig.traits))
  for variant in rig.variants:
    base = rig.run(variant, 0 * values)
    units = [rig.run(variant, unit) for unit in np.eye(len(rig.traits))]
    actual = rig.run(variant, values)
    for p, part in enumerate(actual.parts):
      start = base.parts[p].features
      expected = start + sum(
        (v * (u.parts[p].features - start) for v, u in zip(values, units, strict=True)), np.zeros(12)
      )
      if not np.allclose(part.features, expected, atol=1e-6):
        raise ValueError(f"part {p} of variant {variant!r} is not affine in the traits: {part.features - expected}")


def _orthonormal(up: Array, right: Array) -> tuple[Array, Array]:
  """Rotation rows (x, y, z) from the two directions, and the length of `up`."""
  length = jnp.linalg.norm(up, axis=-1)
  y = up / jnp.maximum(length, 1e-6)[..., None]
  x = right - jnp.sum(right * y, axis=-1, keepdims=True) * y
  x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
  return jnp.stack([x, y, jnp.cross(x, y)], axis=-2), length


@struct.dataclass
class Instance:
  """One thing made from a rig.

  Attributes:
    quadrics: its round parts.
    boxes: its angular parts.
    anchor_centre: positions of its anchors.
    anchor_axes: axes of its anchors.
    anchor_size: half extents of its anchors.
    keypoint_parts: index of each keypoint's part among the quadrics and then the boxes, -1 for none.
    essential: which parts are kept at any amount of clutter.
  """

  quadrics: Primitives
  boxes: Primitives
  anchor_centre: Float[Array, "a 3"]
  anchor_axes: Float[Array, "a 3 3"]
  anchor_size: Float[Array, "a 3"]
  keypoint_parts: Int[Array, " k"]
  essential: Array


@struct.dataclass
class Coat:
  """The colours and pattern of an identity, for the parts of a rig.

  Attributes:
    palette: colours by `Slot`, linear RGB.
    pattern: the marking, a `Pattern`.
    params: the marking's (scale, phase, strength).
    shine: added to the gloss of every part.
  """

  palette: Float[Array, "s 3"]
  pattern: Int[Array, ""]
  params: Float[Array, " 3"]
  shine: Float[Array, ""]


def instantiate(
  tables: Tables,
  rig: Int[Array, ""],
  variant: Int[Array, ""],
  traits: Float[Array, " t"],
  coat: Coat,
  owner: Int[Array, ""] | Owner,
  head_turn: Float[Array, ""] | float = 0.0,
) -> Instance:
  """Builds one thing: looks up its tables, blends them by the traits, paints it, turns its head left (in radians)."""
  row = {
    f.name: jnp.asarray(value)[rig, variant]
    for f in dataclasses.fields(tables)
    if isinstance(value := getattr(tables, f.name), np.ndarray) and value.ndim > 2
  }
  slots, patterns = jnp.asarray(tables.slot)[rig, variant], jnp.asarray(tables.pattern)[rig, variant]
  n, anchors = row["gloss"].shape[0], len(tables.anchor_names)
  features = row["geometry"] @ jnp.concatenate([jnp.ones(1), traits])
  centre, up, right, radii = (features[:, k : k + 3] for k in (0, 3, 6, 9))
  axes, length = _orthonormal(up, right)
  radii = radii.at[:, 1].multiply(length)
  pivot, centre, axes, radii = centre[-1], centre[:-1], axes[:-1], radii[:-1]

  c, s = jnp.cos(head_turn), jnp.sin(head_turn)
  zero, one = jnp.zeros_like(c), jnp.ones_like(c)
  gaze = jnp.stack([jnp.stack([c, zero, s]), jnp.stack([zero, one, zero]), jnp.stack([-s, zero, c])])
  head = row["head"]
  centre = jnp.where(head[:, None], pivot[None] + (centre - pivot[None]) @ gaze.T, centre)
  axes = jnp.where(head[:, None, None], axes @ gaze.T, axes)

  colour = jnp.where(slots[..., None] >= 0, coat.palette[jnp.maximum(slots, 0)], row["colour"])
  marking = jnp.concatenate([coat.params, jnp.asarray(tables.upright)[rig][None]])
  parts = Primitives(
    centre=centre[:n],
    axes=axes[:n],
    radii=jnp.where(jnp.min(radii[:n], axis=-1, keepdims=True) > 2e-3, radii[:n], 0.0),
    profile=row["profile"],
    colour=colour,
    pattern=jnp.where(row["coat"], coat.pattern, patterns),
    pattern_params=jnp.where(row["coat"][:, None], marking[None], row["pattern_params"]),
    gloss=jnp.clip(row["gloss"] + coat.shine, 0.0, 1.0),
    glow=row["glow"],
    owner=jnp.full(n, owner, jnp.int32),
  )
  q = tables.quadrics
  quadrics, boxes = (_slice(parts, part) for part in (slice(0, q), slice(q, n)))
  return Instance(
    quadrics, boxes, centre[n:], axes[n:], radii[n : n + anchors], row["keypoint_part"], row["essential"]
  )  # fmt: skip


def _slice(parts: Primitives, part: slice) -> Primitives:
  return Primitives(**{f.name: getattr(parts, f.name)[part] for f in dataclasses.fields(parts)})
