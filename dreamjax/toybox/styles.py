"""The drawing styles: pure functions that redraw a rendered picture with the help of its ground truth.

All styles start from the same sketch of the picture (`Sketch`): its smoothed colours, its lines, its surfaces and some noise,
warped by an unsteady hand. A style's `Recipe` says how unsteady the hand is and which lines it draws; its painter does the
rest. That way the costly part is compiled once for all styles. Lengths are in points, see `filters`.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from dreamjax.toybox import filters, vocabulary
from dreamjax.toybox.filters import blur, colour, lines, luma, mix, ramp, saturate, shift, snap
from dreamjax.toybox.noise import fractal_noise, hash_cells, smoothstep

Picture = Float[Array, "h w 3"]
Plane = Float[Array, "h w"]


class Recipe(NamedTuple):
  """How a style's sketch is made.

  Attributes:
    wobble: how far an unsteady hand goes astray, in points.
    drip: how far things run down, in points.
    width: of lines, in points.
    outline: how dark lines are where depth jumps.
    crease: where surfaces crease.
    detail: where colours change.
    scenery: how dark lines are off the subject, in proportion.
    rounding: by how many points corners are worn down.
  """

  wobble: float = 0.0
  drip: float = 0.0
  width: float = 1.6
  outline: float = 1.0
  crease: float = 0.7
  detail: float = 0.7
  scenery: float = 0.6
  rounding: float = 0.0


@struct.dataclass
class Sketch:
  """What the painters paint from. Pictures are warped by the recipe's wobble and drip.

  Attributes:
    x: place of each pixel, in points from the left.
    y: and from above.
    rgb: the picture.
    soft: the picture with its textures flattened.
    mask: the subject's matte.
    normal: unit normals, rounded.
    ink: lines as the recipe asks for, 0 to 1.
    contour: a line around the subject, 0 to 1.
    flow: noise with blobs of 18 points, a pair of it.
    cloud: noise with blobs of 34 points.
    grain: noise as fine as the tooth of paper.
    hatch: noise of strokes in three directions.
    seed: for more noise.
  """

  x: Plane
  y: Plane
  rgb: Picture
  soft: Picture
  mask: Plane
  normal: Picture
  ink: Plane
  contour: Plane
  flow: Float[Array, "h w 2"]
  cloud: Plane
  grain: Plane
  hatch: Picture
  seed: Int[Array, ""]


# Scale along and across, and the angle in degrees, of the noises: a pair of flow, cloud, grain, three of hatch.
_NOISES = np.array(
  [(18, 18, 0), (18, 18, 0), (34, 34, 0), (1.9, 1.9, 0), (26, 2.1, 45), (26, 2.1, 12), (26, 2.1, 105)], np.float32
)  # fmt: skip


def _noises(x: Plane, y: Plane, seed: Int[Array, ""]) -> Float[Array, "7 h w"]:
  angle = np.radians(_NOISES[:, 2])
  c, s = (jnp.asarray(f(angle), jnp.float32)[:, None, None] for f in (np.cos, np.sin))
  along, across = (jnp.asarray(_NOISES[:, k])[:, None, None] for k in (0, 1))
  apart = jnp.arange(1, len(_NOISES) + 1, dtype=jnp.float32)[:, None, None] * 211.0
  x, y = x[None], y[None]
  return fractal_noise((x * c - y * s) / along + apart, (x * s + y * c) / across + apart, seed, octaves=2)


def _sketch(recipe: Array, rgb: Picture, depth: Plane, normal: Picture, mask: Plane, key: jax.Array) -> Sketch:
  """The sketch for a row of `RECIPES`."""
  recipe = Recipe(*recipe)
  size = rgb.shape[0]
  x, y = filters.points(size)
  seed = (hash_cells(*jax.random.key_data(key).astype(jnp.int32)) * (1 << 20)).astype(jnp.int32)
  noises = _noises(x, y, seed)

  # The warp: an unsteady hand, and fingers of various length that run down the more the lower they start.
  fingers = smoothstep(0.35, 0.85, fractal_noise(x / 7.0, 0.0 * y, seed + 5, octaves=1))
  from_x = x + recipe.wobble * 3.0 * (noises[0] - 0.5)
  from_y = y + recipe.wobble * 3.0 * (noises[1] - 0.5) - recipe.drip * fingers * smoothstep(16.0, 88.0, y)
  strength = filters.edges(rgb, depth, normal, mask)
  stack = jnp.concatenate([rgb, mask[..., None], normal, strength], axis=-1)
  stack = filters.sample(stack, from_x, from_y)
  rgb, mask, normal, strength = stack[..., :3], stack[..., 3], stack[..., 4:7], stack[..., 7:]

  scenery = mask + (1.0 - mask) * recipe.scenery
  drawn = jnp.maximum(
    strength[..., 0] * recipe.outline, jnp.maximum(strength[..., 1] * recipe.crease, strength[..., 2] * recipe.detail)
  )
  ink = lines(drawn * scenery, recipe.width)
  wide = blur(mask, 0.5 * recipe.width)
  normal = blur(normal, recipe.rounding)
  normal = normal / jnp.maximum(jnp.linalg.norm(normal, axis=-1, keepdims=True), 1e-3)
  return Sketch(
    x=x, y=y, rgb=rgb, soft=filters.smooth(rgb, mask, 1.6), mask=mask, normal=normal, ink=ink,
    contour=smoothstep(0.3, 0.8, 4.0 * wide * (1.0 - wide)), flow=jnp.moveaxis(noises[:2], 0, -1), cloud=noises[2],
    grain=noises[3], hatch=jnp.moveaxis(noises[4:], 0, -1), seed=seed,
  )  # fmt: skip


def _margin(s: Sketch) -> Plane:
  """Distance from the nearest side of the picture, in points."""
  return jnp.minimum(jnp.minimum(s.x, filters.SIDE - s.x), jnp.minimum(s.y, filters.SIDE - s.y))


def _lit(normal: Picture, x: float, y: float, z: float) -> Plane:
  """Light from a direction: 1 where the surface faces it, 0 where it is turned away."""
  length = (x * x + y * y + z * z) ** 0.5
  return (normal[..., 0] * x + normal[..., 1] * y + normal[..., 2] * z) / length * 0.5 + 0.5


RECIPES: dict[str, Recipe] = {}
PAINTERS: dict[str, Callable[[Sketch], Picture]] = {}


def _style(name: str, **recipe: float):
  """Registers a painter under a style's name, and makes of it a function of the picture and its ground truth."""

  def register(painter):
    RECIPES[name], PAINTERS[name] = Recipe(**recipe), painter

    def style(rgb: Picture, depth: Plane, normal: Picture, mask: Plane, key: jax.Array) -> Picture:
      sketch = _sketch(jnp.asarray(RECIPES[name], jnp.float32), rgb, depth, normal, mask, key)
      return jnp.clip(painter(sketch), 0.0, 1.0)

    style.__name__, style.__qualname__, style.__doc__ = painter.__name__, painter.__qualname__, painter.__doc__
    return style

  return register


def photo(rgb: Picture, depth: Plane, normal: Picture, mask: Plane, key: jax.Array) -> Picture:
  """The plain rendering."""
  return rgb


@_style("watercolor painting", wobble=1.4, width=1.5, outline=0.9, crease=0.5, detail=0.8, scenery=0.7)
def watercolor(s: Sketch) -> Picture:
  """Transparent washes on rough paper: blotches, pigment that pools at edges, and a margin that is left white."""
  density = -jnp.log(jnp.clip(saturate(s.soft, 1.45), 0.05, 1.0))
  margin = _margin(s) + 13.0 * (s.flow[..., 0] - 0.5) + 3.0 * (s.grain - 0.5)
  painted = smoothstep(5.5, 7.0, margin)
  pooled = smoothstep(5.5, 7.0, margin) * smoothstep(10.5, 7.0, margin)
  gap = s.contour * smoothstep(0.5, 0.1, s.mask)
  strength = (0.35 + 0.9 * s.cloud + 0.5 * (s.grain - 0.5)) * (0.65 + 0.35 * s.mask)
  strength = strength * (1.0 + 0.9 * s.ink + 0.9 * pooled) * (1.0 - 0.85 * gap) + 0.12 * s.ink
  paper = colour(0.985, 0.975, 0.95)[None, None] * (1.0 - 0.07 * s.grain[..., None])
  return paper * jnp.exp(-density * (strength * painted)[..., None])


@_style("oil painting", wobble=0.8, width=2.0)
def oil(s: Sketch) -> Picture:
  """Thick brush strokes that follow the forms, each in one colour, with ridges of paint that catch the light."""
  n = 40
  x, y = filters.cell_centres(n, 1.0, s.seed)
  base = blur(s.rgb, 0.8)
  tone = blur(luma(base) + 0.6 * s.mask, 2.2)
  dx, dy = shift(tone, 0, -1) - shift(tone, 0, 1), shift(tone, -1, 0) - shift(tone, 1, 0)
  turn = 3.0 * (s.flow[..., 0] + s.cloud)
  weak = 0.02 * s.rgb.shape[0] ** -0.5
  along = jnp.stack([-dy + weak * jnp.cos(turn), dx + weak * jnp.sin(turn)], axis=-1)
  picked = filters.sample(jnp.concatenate([base, along, s.mask[..., None]], axis=-1), x[None], y[None])[0]
  lot = hash_cells(jnp.arange(n * n), s.seed + 2)
  direction = picked[:, 3:5] / jnp.maximum(jnp.linalg.norm(picked[:, 3:5], axis=-1, keepdims=True), 1e-6)
  small = picked[:, 5]
  table = jnp.stack([x, y, direction[:, 0], direction[:, 1], 7.5 - 2.5 * small, 2.5 - 0.7 * small, lot], axis=-1)

  def frame(cell):
    t = table.at[cell].get(mode="promise_in_bounds")
    dx, dy = s.x - t[..., 0], s.y - t[..., 1]
    return dx * t[..., 2] + dy * t[..., 3], dy * t[..., 2] - dx * t[..., 3], t

  def cost(cell):
    u, v, t = frame(cell)
    off = jnp.maximum((jnp.abs(u) + 4.0 * (s.grain - 0.5)) / t[..., 4], jnp.abs(v) / t[..., 5])
    return jnp.where(off < 1.0, t[..., 6], 1.0 + off)

  cell = filters.best_cell(s.x, s.y, n, 2, cost)
  _, v, t = frame(cell)
  paint = picked[:, :3] * (1.0 + 0.24 * (lot[:, None] - 0.5)) + 0.05 * (
    hash_cells(jnp.arange(n * n), s.seed + 3)[:, None] - 0.5
  )
  paint = saturate(paint, 1.35).at[cell].get(mode="promise_in_bounds")
  bristles = jnp.cos(v * 4.2 + 6.0 * t[..., 6])
  height = 1.2 * t[..., 6] + 0.22 * bristles - 0.6 * (v / t[..., 5]) ** 2
  light = jnp.clip(filters.relief(height, 0.13), -0.16, 0.22)
  return paint * (0.97 + light[..., None]) + 0.25 * jnp.maximum(light, 0.0)[..., None]


@_style("line drawing", wobble=0.25, width=1.7, crease=0.9, detail=0.95, scenery=0.75)
def line_drawing(s: Sketch) -> Picture:
  """Clean black ink on white paper; what is darkest on the subject is filled in."""
  fill = smoothstep(0.2, 0.12, luma(s.rgb)) * s.mask * smoothstep(0.05, 0.2, blur(luma(s.rgb), 6.0) - luma(s.rgb))
  ink = jnp.maximum(jnp.maximum(s.ink, 0.9 * s.contour), fill)
  return mix(colour(1.0, 1.0, 1.0), colour(0.03, 0.03, 0.05), ink)


@_style("pencil sketch", wobble=1.0, width=1.3, crease=0.9, detail=0.8, scenery=0.7)
def pencil(s: Sketch) -> Picture:
  """Graphite hatched in three directions, the darker the more, on toothy paper; it fades towards the margin."""
  dark = (1.0 - luma(s.soft)) * (0.62 + 0.38 * s.mask)
  dark = dark * smoothstep(2.0, 18.0, _margin(s) + 16.0 * (s.flow[..., 1] - 0.5))
  least = jnp.asarray([0.02, 0.28, 0.5], jnp.float32)[None, None]
  strokes = smoothstep(-0.1, 0.14, 1.5 * (dark[..., None] - least) - s.hatch + 0.25)
  strokes = strokes * smoothstep(0.0, 0.1, dark[..., None] - least)
  graphite = 1.0 - jnp.prod(1.0 - 0.42 * strokes, axis=-1)
  graphite = jnp.maximum(graphite, 0.95 * jnp.maximum(s.ink, 0.8 * s.contour)) * (0.55 + 0.8 * s.grain)
  return mix(colour(0.965, 0.96, 0.945), colour(0.16, 0.16, 0.18), jnp.clip(graphite, 0.0, 1.0))


@_style("flat cartoon illustration", wobble=0.3, width=2.6, crease=0.6, detail=0.55, scenery=0.55)
def flat_cartoon(s: Sketch) -> Picture:
  """Flat clean colours in two tones and a bold dark outline."""
  bright = jnp.max(s.soft, axis=-1, keepdims=True)
  hue = jnp.round(saturate(s.soft / jnp.maximum(bright, 0.02), 1.25) * 6.0) / 6.0
  tone = jnp.where(bright < 0.2, 0.2, jnp.where(bright < 0.48, 0.52, jnp.where(bright < 0.72, 0.8, 1.0)))
  flat = mix(hue * tone, colour(1.0, 0.97, 0.9), 0.3 * (1.0 - s.mask))
  return mix(flat, colour(0.13, 0.09, 0.18), jnp.maximum(s.ink, s.contour))


_CRAYONS = np.array(
  [
    (0.88, 0.16, 0.18), (0.97, 0.55, 0.14), (0.99, 0.85, 0.2), (0.3, 0.68, 0.28), (0.09, 0.42, 0.25), (0.45, 0.75, 0.93),
    (0.15, 0.35, 0.8), (0.5, 0.25, 0.65), (0.96, 0.58, 0.72), (0.52, 0.32, 0.18), (0.2, 0.2, 0.22), (0.55, 0.55, 0.58),
    (0.96, 0.95, 0.92), (0.93, 0.75, 0.55), (0.12, 0.18, 0.42),
  ], np.float32
)  # fmt: skip


@_style("kid crayon drawing", wobble=2.6, width=2.8, crease=0.55, detail=0.6, scenery=0.6)
def kid_crayon(s: Sketch) -> Picture:
  """A child's crayons: the colours of one box, scribbled over the lines, with the paper showing through."""
  wax = snap(saturate(s.soft, 1.5), _CRAYONS, 0.45)
  strokes = jnp.where(s.mask > 0.47, s.hatch[..., 0], s.hatch[..., 1])
  cover = smoothstep(0.3, 0.48, strokes + 0.1 * s.mask + 0.3 * (s.grain - 0.5)) * (0.72 + 0.28 * s.mask)
  cover = cover * smoothstep(1.0, 6.0, _margin(s) + 12.0 * (s.flow[..., 0] - 0.5))
  line = jnp.maximum(s.ink, s.contour)
  paper = colour(0.98, 0.97, 0.94)
  drawn = mix(paper, wax, cover * (1.0 - 0.6 * line))
  return mix(drawn, wax * 0.45, line * smoothstep(0.2, 0.5, s.grain + 0.15))


@_style("pixel art", width=1.0)
def pixel_art(s: Sketch) -> Picture:
  """A sprite of 32 x 32 pixels in few colours with a dark outline, as on an old game console."""
  n = 32
  x, y = filters.points(n)
  tile = filters.sample(jnp.concatenate([s.soft, s.mask[..., None]], axis=-1), x, y)
  inside = tile[..., 3] > 0.4
  rgb = saturate(tile[..., :3], 1.4)
  rgb = jnp.round(rgb * 4.0) / 4.0
  near = jnp.zeros_like(inside)
  for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
    near = near | shift(inside, down, right)
  rgb = jnp.where((near & ~inside)[..., None], colour(0.08, 0.06, 0.14)[None, None], rgb)
  column, row = ((a * (n / filters.SIDE)).astype(jnp.int32) for a in (s.x, s.y))
  return rgb[row, column]


@_style("sticker", width=1.2, scenery=0.0, detail=0.3, crease=0.3)
def sticker(s: Sketch) -> Picture:
  """The subject cut out with a thick white rim and a soft shadow, on a plain pastel sheet."""
  wide = blur(s.mask, 2.6)
  rim = smoothstep(0.06, 0.1, wide)
  step = max(1, s.rgb.shape[0] // 43)
  shadow = blur(shift(rim, step, step), 1.6)
  turn = 6.2832 * hash_cells(s.seed)
  sheet = 0.84 + 0.1 * jnp.cos(turn + jnp.asarray([0.0, 2.1, 4.2], jnp.float32))
  rgb = mix(sheet, sheet * 0.55, 0.75 * shadow)
  rgb = mix(rgb, colour(1.0, 1.0, 1.0), rim)
  print_ = mix(saturate(s.rgb, 1.35) * 1.06, colour(0.1, 0.08, 0.12), 0.7 * s.ink)
  return mix(rgb, print_, s.mask)


@_style("3d clay rendering", wobble=0.3, width=2.2, rounding=1.3, crease=1.0, detail=0.2)
def clay(s: Sketch) -> Picture:
  """Everything kneaded from matte pastel clay, softly lit, with dents and fingerprints."""
  bright = jnp.max(s.soft, axis=-1, keepdims=True)
  hue = s.soft / jnp.maximum(bright, 0.08)
  lump = blur(saturate(hue, 0.72) * (0.35 + 0.65 * bright**0.5), 1.0)
  lump = 0.2 + 0.74 * lump
  prints = jnp.sin(1.9 * (jnp.hypot(s.x % 37.0 - 17.0, s.y % 41.0 - 22.0) + 9.0 * s.flow[..., 0]))
  dents = 2.2 * s.flow[..., 1] + 0.28 * prints * smoothstep(0.5, 0.65, s.cloud) + 0.3 * s.grain
  light = _lit(s.normal, -0.5, 0.8, 0.7)
  light = 0.5 + 0.62 * light**1.5 + filters.relief(dents, 0.16)
  light = light * (1.0 - 0.35 * blur(s.ink, 1.6)) * (0.93 + 0.07 * s.mask)
  return lump * light[..., None] * colour(1.03, 1.0, 0.96)[None, None]


@_style("glowing neon", wobble=0.3, width=2.0, crease=0.6, detail=0.6, scenery=0.45)
def neon(s: Sketch) -> Picture:
  """Glass tubes bent along the lines, glowing in pure colours before a black wall."""
  low, high = jnp.min(s.soft, axis=-1, keepdims=True), jnp.max(s.soft, axis=-1, keepdims=True)
  turn = 6.2832 * (s.cloud + 0.4 * s.mask)[..., None] + jnp.asarray([0.0, 2.1, 4.2], jnp.float32)[None, None]
  pure = (s.soft - low) / jnp.maximum(high - low, 0.02)
  grey = smoothstep(0.22, 0.1, (high - low) / jnp.maximum(high, 0.05))
  hue = pure + (0.55 + 0.45 * jnp.cos(turn) - pure) * grey
  hue = blur(hue, 2.0)
  hue = hue / jnp.maximum(jnp.max(hue, axis=-1, keepdims=True), 0.1)
  tube = jnp.maximum(s.ink, s.contour)[..., None]
  light = hue * tube
  glow = 1.3 * blur(light, 1.6) + 1.8 * blur(light, 6.0)
  wall = colour(0.02, 0.015, 0.05)[None, None] + 0.05 * s.soft * s.mask[..., None]
  return 1.0 - jnp.exp(-1.5 * (wall + glow * (0.25 + hue) + light)) + 0.75 * tube**3 * (1.0 - hue * 0.6)


@_style("wooden sculpture", wobble=0.3, width=1.8, rounding=0.9, crease=0.9, detail=0.8)
def wooden(s: Sketch) -> Picture:
  """Carved from pale wood before a darker board, with grain, rings and the marks of the gouge."""
  tone = luma(s.soft)
  away = jnp.hypot(s.x - 40.0 + 26.0 * s.normal[..., 0], 0.22 * (s.y - 150.0) + 30.0 * s.normal[..., 1])
  rings = 0.5 + 0.5 * jnp.sin(0.85 * away + 9.0 * s.flow[..., 0] + 3.0 * s.cloud)
  planks = 0.5 + 0.5 * jnp.sin(0.8 * s.x + 10.0 * s.cloud + 0.03 * s.y)
  veins = rings**3 * s.mask + planks**3 * (1.0 - s.mask)
  stain = 0.28 + 0.62 * tone - 0.2 * veins - 0.14 * (s.grain - 0.5) + 0.12 * s.mask - 0.12 * (1.0 - s.mask)
  wood = ramp(stain, (0.16, 0.07, 0.03), (0.45, 0.24, 0.1), (0.74, 0.48, 0.24), (0.95, 0.78, 0.52))
  light = _lit(s.normal, -0.6, 0.7, 0.6)
  carved = filters.relief(blur(tone, 0.6) * 2.2 - 2.2 * s.ink, 0.12)
  light = 0.55 + 0.6 * light**1.5 + carved
  return wood * (light * (1.0 - 0.45 * s.ink))[..., None]


@_style("melting golden 3d rendering", drip=26.0, wobble=0.5, width=1.8, rounding=1.6, crease=0.8, detail=0.5)
def melting_gold(s: Sketch) -> Picture:
  """Polished gold that melts and runs down in thick drops."""
  n = s.normal
  mirror = (
    0.5 + 0.42 * n[..., 1] + 0.2 * n[..., 0] + 0.12 * jnp.sin(9.0 * n[..., 0] + 7.0 * n[..., 1] + 5.0 * s.flow[..., 0])
  )
  mirror = mirror + 0.35 * (luma(s.soft) - 0.5) - 0.25 * s.ink
  gold = ramp(mirror, (0.2, 0.08, 0.01), (0.62, 0.34, 0.04), (0.95, 0.7, 0.16), (1.0, 0.9, 0.5), (1.0, 0.99, 0.9))
  flash = _lit(n, -0.5, 0.6, 0.65) ** 28 + 0.7 * _lit(n, 0.7, 0.5, 0.4) ** 40
  gold = gold + 0.8 * flash[..., None]
  dull = ramp(0.75 * luma(s.soft), (0.07, 0.03, 0.06), (0.32, 0.16, 0.14), (0.62, 0.38, 0.22), (0.85, 0.66, 0.38))
  return mix(dull * (1.0 - 0.3 * s.ink[..., None]), gold, s.mask)


def _tiles(s: Sketch, n: int, jitter: float, round_: float, keep: float) -> tuple[Array, Array, Array, Array]:
  """Cells that keep within the picture's own borders: (cell of each pixel, colours of the cells, their x, y)."""
  x, y = filters.cell_centres(n, jitter, s.seed)
  guide = jnp.concatenate([s.soft, 1.2 * s.mask[..., None]], axis=-1)
  picked = filters.sample(guide, x[None], y[None])[0]
  table = jnp.concatenate([jnp.stack([x, y], axis=-1) * (n / filters.SIDE), picked], axis=-1)
  here = jnp.concatenate([jnp.stack([s.x, s.y], axis=-1) * (n / filters.SIDE), guide], axis=-1)

  def cost(cell):
    apart = (here - table.at[cell].get(mode="promise_in_bounds")) ** 2
    far = round_ * (apart[..., 0] + apart[..., 1]) + (1.0 - round_) * jnp.maximum(apart[..., 0], apart[..., 1])
    return far + keep * jnp.sum(apart[..., 2:], axis=-1)

  return filters.best_cell(s.x, s.y, n, 1, cost), picked[:, :3], x, y


@_style("mosaic", width=1.5)
def mosaic(s: Sketch) -> Picture:
  """Small stone tiles, each of its own tint and tilt, set in pale grout."""
  n = 21
  cell, rgb, x, y = _tiles(s, n, 0.45, 0.15, 1.2)
  lot = hash_cells(jnp.arange(n * n)[:, None], jnp.arange(4)[None], s.seed)
  rgb = saturate(rgb, 1.3) * (0.86 + 0.28 * lot[:, :1]) + 0.05 * (lot[:, 1:] - 0.5)
  table = jnp.concatenate([rgb, lot, jnp.stack([x, y], axis=-1)], axis=-1)
  t = table.at[cell].get(mode="promise_in_bounds")
  tilt = 0.035 * ((t[..., 4] - 0.5) * (s.x - t[..., 7]) + (t[..., 5] - 0.5) * (s.y - t[..., 8]))
  grout = lines(filters.seams(cell), 1.3)
  stone = t[..., :3] * (1.0 + tilt + filters.relief(1.0 - grout, 0.12) + 0.1 * (s.grain - 0.5))[..., None]
  return mix(stone, colour(0.86, 0.83, 0.76), grout)


@_style("stained glass window", width=2.0, crease=0.0, detail=0.0, scenery=0.8)
def stained_glass(s: Sketch) -> Picture:
  """Panes of luminous glass between dark strips of lead."""
  n = 9
  cell, rgb, x, y = _tiles(s, n, 0.8, 1.0, 0.9)
  lot = hash_cells(jnp.arange(n * n), s.seed + 9)[:, None]
  bright = jnp.max(rgb, axis=-1, keepdims=True)
  rgb = saturate(rgb / jnp.maximum(bright, 0.05), 1.9) * (0.45 + 0.55 * bright) * (0.75 + 0.4 * lot)
  pane = rgb.at[cell].get(mode="promise_in_bounds")
  lead = jnp.maximum(lines(filters.seams(cell), 1.9), s.contour)
  ripple = 0.8 + 0.35 * s.flow[..., :1] + 0.12 * (s.grain[..., None] - 0.5)
  sun = 1.15 - 0.35 * (jnp.hypot(s.x - 64.0, s.y - 50.0) / 80.0)[..., None]
  glass = pane * ripple * sun
  glass = glass + 0.45 * blur(glass * (1.0 - lead[..., None]), 2.5)
  frame = smoothstep(3.6, 2.6, _margin(s))
  lead = jnp.maximum(lead, frame)
  return mix(glass, colour(0.05, 0.045, 0.06), lead)


@_style("blueprint", wobble=0.0, width=1.1, crease=0.9, detail=0.6, scenery=0.45)
def blueprint(s: Sketch) -> Picture:
  """White construction lines on blue paper with a grid, the subject's measures and a title block."""
  size = s.rgb.shape[0]
  pixel = filters.SIDE / size

  def rule(distance, width=0.7):
    return smoothstep(0.5 * width + 0.5 * pixel, 0.5 * width - 0.35 * pixel, jnp.abs(distance))

  def grid(pitch):
    return jnp.maximum(*(rule((a + pitch / 2) % pitch - pitch / 2, 0.4) for a in (s.x, s.y)))

  paper = mix(colour(0.07, 0.22, 0.52), colour(0.11, 0.3, 0.63), s.cloud)
  paper = mix(paper, colour(0.45, 0.62, 0.9), jnp.maximum(0.16 * grid(8.0), 0.34 * grid(32.0)))
  there = s.mask > 0.4
  left, top = (jnp.min(jnp.where(there, a, filters.SIDE)) for a in (s.x, s.y))
  right, bottom = (jnp.max(jnp.where(there, a, 0.0)) for a in (s.x, s.y))
  below, beside = jnp.minimum(bottom + 6.0, 122.0), jnp.maximum(left - 6.0, 6.0)
  across = jnp.maximum(rule(s.x - left), rule(s.x - right))
  width = jnp.where((s.x > left) & (s.x < right), rule(s.y - below), 0.0)
  width = jnp.maximum(width, jnp.where(jnp.abs(s.y - below) < 2.6, across, 0.0))
  across = jnp.maximum(rule(s.y - top), rule(s.y - bottom))
  height = jnp.where((s.y > top) & (s.y < bottom), rule(s.x - beside), 0.0)
  height = jnp.maximum(height, jnp.where(jnp.abs(s.x - beside) < 2.6, across, 0.0))
  shade = smoothstep(0.55, 0.2, luma(s.soft)) * rule((s.x + s.y) % 4.0 - 2.0, 0.6) * s.mask
  ink = jnp.maximum(jnp.maximum(s.ink, s.contour), jnp.maximum(0.8 * jnp.maximum(width, height), 0.45 * shade))
  frame = rule(_margin(s) - 3.0)
  return mix(paper, colour(0.93, 0.97, 1.0), jnp.maximum(ink, 0.8 * frame))


@_style("halftone pop art", wobble=0.3, width=2.6, crease=0.6, detail=0.5, scenery=0.55)
def pop_art(s: Sketch) -> Picture:
  """A printed comic panel: punchy flat inks, dots in the place of shades, bold black outlines."""
  u, v = (s.x + s.y) * 0.7071, (s.x - s.y) * 0.7071
  pitch = 4.6
  dot = jnp.hypot(u % pitch - pitch / 2, v % pitch - pitch / 2) / pitch
  pixel = 0.5 * filters.SIDE / s.rgb.shape[0] / pitch
  rgb = saturate(s.soft, 1.7)
  rgb = jnp.clip((rgb - 0.5) * 1.25 + 0.55, 0.0, 1.0)
  steps = rgb * 2.0
  low = jnp.floor(steps)
  share = smoothstep(0.1, 0.9, steps - low)
  cover = smoothstep(pixel, -pixel, dot[..., None] - 0.66 * share)
  inks = (low + cover) / 2.0
  paper = colour(1.0, 0.97, 0.88)[None, None]
  return mix(inks * paper, colour(0.05, 0.03, 0.08), jnp.maximum(s.ink, s.contour))


@_style("chalkboard drawing", wobble=1.2, width=1.7, crease=0.8, detail=0.8, scenery=0.6)
def chalkboard(s: Sketch) -> Picture:
  """Dusty chalk on a green board: white lines, and colours rubbed on with the flat of the chalk."""
  board = mix(colour(0.1, 0.2, 0.16), colour(0.2, 0.31, 0.26), smoothstep(0.3, 0.8, s.cloud) * (0.5 + s.hatch[..., 1]))
  bright = jnp.max(s.soft, axis=-1, keepdims=True)
  chalk = 0.35 + 0.65 * saturate(s.soft / jnp.maximum(bright, 0.1), 1.3)
  tooth = smoothstep(0.35, 0.65, s.grain)
  rubbed = smoothstep(0.35, 0.65, s.hatch[..., 0]) * tooth * (0.3 + 0.55 * s.mask) * (0.25 + 0.75 * bright[..., 0])
  line = jnp.maximum(s.ink, s.contour) * (0.45 + 0.55 * tooth)
  drawn = mix(mix(board, chalk, rubbed), colour(0.96, 0.96, 0.92), line)
  frame = smoothstep(3.6, 3.0, _margin(s))
  wood = colour(0.55, 0.36, 0.2)[None, None] * (0.75 + 0.4 * s.hatch[..., :1])
  return mix(drawn, wood, frame)


@_style("vintage sepia photograph", width=1.0)
def sepia(s: Sketch) -> Picture:
  """A faded brown print with soft focus, dark corners, grain and scratches, and a pale worn margin."""
  tone = luma(blur(s.rgb, 0.7))
  tone = 0.5 + (tone - 0.5) * 0.95 + 0.16 * (s.grain - 0.5) + 0.14 * (s.cloud - 0.5)
  corner = jnp.hypot(s.x - 64.0, s.y - 64.0) / 64.0
  tone = tone * (1.0 - 0.5 * smoothstep(0.6, 1.4, corner))
  scratch = smoothstep(0.9, 0.97, fractal_noise(s.x / 1.1 + 0.02 * s.y, s.y / 90.0, s.seed + 3, octaves=1))
  tone = tone + 0.22 * scratch
  print_ = ramp(tone, (0.17, 0.1, 0.06), (0.46, 0.32, 0.2), (0.76, 0.61, 0.43), (0.96, 0.88, 0.72))
  card = colour(0.95, 0.91, 0.82)[None, None] * (0.93 + 0.1 * s.cloud[..., None])
  return mix(print_, card, smoothstep(7.6, 6.8, _margin(s)))


#: Every style, in the order of `vocabulary.STYLES`.
STYLES: dict[str, Callable[..., Picture]] = dict(
  zip(
    vocabulary.STYLES,
    (
      photo, watercolor, oil, line_drawing, pencil, flat_cartoon, kid_crayon, pixel_art, sticker, clay, neon, wooden,
      melting_gold, mosaic, stained_glass, blueprint, pop_art, chalkboard, sepia,
    ),
    strict=True,
  )
)  # fmt: skip


def apply_style(
  style: Int[Array, ""], rgb: Picture, depth: Plane, normal: Picture, mask: Plane, key: jax.Array
) -> Picture:
  """Redraws a picture in a style.

  Args:
    style: index into `vocabulary.STYLES`.
    rgb: the rendered picture, square, at least 16 x 16.
    depth: distance of each pixel.
    normal: surface normal of each pixel.
    mask: the matte of what must stay readable.
    key: random key; the same key gives the same picture.

  Returns:
    The drawing, in [0, 1].
  """
  names = vocabulary.STYLES[1:]

  def draw():
    recipe = jnp.asarray([RECIPES[name] for name in names], jnp.float32)[jnp.maximum(style - 1, 0)]
    sketch = _sketch(recipe, rgb, depth, normal, mask, key)
    return jnp.clip(jax.lax.switch(style - 1, [PAINTERS[name] for name in names], sketch), 0.0, 1.0)

  return jax.lax.cond(style == 0, lambda: rgb, draw)
