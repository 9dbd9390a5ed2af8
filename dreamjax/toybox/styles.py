"""The drawing styles: pure functions of a rendered image and its ground truth.

All styles start from the same sketch of the image (`Sketch`): its smoothed colours, its lines, its surfaces and some
noise, warped as by an unsteady hand. A style's `Recipe` sets the strength of the warp and which lines are drawn; its
painter does the rest. So the costly part is compiled once for all styles. Lengths are in points, see `filters`.
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

Image = Float[Array, "h w 3"]
Plane = Float[Array, "h w"]


class Recipe(NamedTuple):
  """The parameters of a style's sketch.

  Attributes:
    wobble: largest displacement by the warp of an unsteady hand, in points.
    drip: largest displacement downwards, in points.
    width: of lines, in points.
    rim: width of the line around the subject, in points.
    outline: darkness of lines where depth jumps.
    crease: darkness of lines where normals change.
    detail: darkness of lines where colours change.
    scenery: darkness of lines outside of the subject, relative to those on it.
    rounding: standard deviation of the blur of normals, in points.
  """

  wobble: float = 0.0
  drip: float = 0.0
  width: float = 1.4
  rim: float = 1.6
  outline: float = 1.0
  crease: float = 0.7
  detail: float = 0.7
  scenery: float = 0.6
  rounding: float = 0.0


@struct.dataclass
class Sketch:
  """The input of the painters. Images are warped by the recipe's wobble and drip.

  Attributes:
    x: position of each pixel, in points from the left.
    y: position of each pixel, in points from the top.
    rgb: the image.
    soft: the image with its textures flattened.
    mask: the subject's matte.
    normal: unit normals, rounded.
    ink: the recipe's lines, 0 to 1.
    contour: a line around the subject, 0 to 1.
    flow: two noises with blobs of 18 points.
    cloud: noise with blobs of 34 points.
    grain: noise as fine as the grain of paper.
    hatch: noise of strokes in three directions.
    seed: for more noise.
  """

  x: Plane
  y: Plane
  rgb: Image
  soft: Image
  mask: Plane
  normal: Image
  ink: Plane
  contour: Plane
  flow: Float[Array, "h w 2"]
  cloud: Plane
  grain: Plane
  hatch: Image
  seed: Int[Array, ""]


# Scale along and across, and angle in degrees, of the noises: a pair of flow, cloud, grain, three of hatch, fingers.
_NOISES = np.array(
  [
    (18, 18, 0), (18, 18, 0), (34, 34, 0), (1.5, 1.5, 0), (26, 2.1, 45), (26, 2.1, 12), (26, 2.1, 105), (7, 1e9, 0),
  ], np.float32
)  # fmt: skip


def _noises(x: Plane, y: Plane, seed: Int[Array, ""]) -> Float[Array, "n h w"]:
  """All noises, computed in a loop so that XLA stores them instead of computing them again wherever they are used."""
  angle = np.radians(_NOISES[:, 2])
  rows = jnp.asarray(np.stack([_NOISES[:, 0], _NOISES[:, 1], np.cos(angle), np.sin(angle)], axis=1), jnp.float32)

  def noise(row):
    (along, across, c, s), k = row
    return fractal_noise((x * c - y * s) / along, (x * s + y * c) / across, seed + 31 * k, octaves=2)

  return jax.lax.map(noise, (rows, jnp.arange(len(_NOISES))))


def _sketch(recipe: Array, rgb: Image, depth: Plane, normal: Image, mask: Plane, key: jax.Array) -> Sketch:
  """The sketch for a row of `RECIPES`."""
  recipe = Recipe(*recipe)
  size = rgb.shape[0]
  x, y = filters.points(size)
  seed = (hash_cells(*jax.random.key_data(key).astype(jnp.int32)) * (1 << 20)).astype(jnp.int32)
  noises = _noises(x, y, seed)

  # The warp: an unsteady hand, and drips of various length, which are longer where they start lower.
  fingers = smoothstep(0.35, 0.85, noises[7])
  from_x = x + recipe.wobble * 3.0 * (noises[0] - 0.5)
  from_y = y + recipe.wobble * 3.0 * (noises[1] - 0.5) - recipe.drip * fingers * smoothstep(16.0, 88.0, y)
  strength = filters.edges(rgb, depth, normal, mask)
  stack = jnp.concatenate([rgb, mask[..., None], normal, strength], axis=-1)
  stack = filters.sample(stack, from_x, from_y)
  rgb, mask, normal, strength = stack[..., :3], stack[..., 3], stack[..., 4:7], stack[..., 7:]

  scenery = mask + (1.0 - mask) * recipe.scenery
  strongest = jnp.maximum(
    strength[..., 0] * recipe.outline, jnp.maximum(strength[..., 1] * recipe.crease, strength[..., 2] * recipe.detail)
  )
  ink = lines(strongest * scenery, recipe.width)
  wide = blur(mask, 0.5 * recipe.rim)
  normal = blur(normal, recipe.rounding)
  normal = normal / jnp.maximum(jnp.linalg.norm(normal, axis=-1, keepdims=True), 1e-3)
  return Sketch(
    x=x, y=y, rgb=rgb, soft=filters.smooth(rgb, mask, 1.6), mask=mask, normal=normal, ink=ink,
    contour=smoothstep(0.3, 0.8, 4.0 * wide * (1.0 - wide)), flow=jnp.moveaxis(noises[:2], 0, -1), cloud=noises[2],
    grain=noises[3], hatch=jnp.moveaxis(noises[4:7], 0, -1), seed=seed,
  )  # fmt: skip


def _margin(s: Sketch) -> Plane:
  """Distance from the nearest side of the image, in points."""
  return jnp.minimum(jnp.minimum(s.x, filters.SIDE - s.x), jnp.minimum(s.y, filters.SIDE - s.y))


def _fill(s: Sketch) -> Plane:
  """Where the subject is dark among lighter surroundings: pupils, noses, tyres."""
  tone = luma(s.rgb)
  return smoothstep(0.24, 0.14, tone) * s.mask * smoothstep(0.04, 0.16, blur(tone, 6.0) - tone)


def _lit(normal: Image, x: float, y: float, z: float) -> Plane:
  """Light from a direction: 1 where the surface faces it, 0 where it faces away."""
  length = (x * x + y * y + z * z) ** 0.5
  return (normal[..., 0] * x + normal[..., 1] * y + normal[..., 2] * z) / length * 0.5 + 0.5


RECIPES: dict[str, Recipe] = {}
PAINTERS: dict[str, Callable[[Sketch], Image]] = {}


def _style(name: str, **recipe: float):
  """Registers a painter under a style's name, and turns it into a function of the image and its ground truth."""

  def register(painter):
    RECIPES[name], PAINTERS[name] = Recipe(**recipe), painter

    def style(rgb: Image, depth: Plane, normal: Image, mask: Plane, key: jax.Array) -> Image:
      sketch = _sketch(jnp.asarray(RECIPES[name], jnp.float32), rgb, depth, normal, mask, key)
      return jnp.clip(painter(sketch), 0.0, 1.0)

    style.__name__, style.__qualname__, style.__doc__ = painter.__name__, painter.__qualname__, painter.__doc__
    return style

  return register


@_style("watercolor painting", wobble=1.4, width=1.2, outline=0.9, crease=0.5, detail=0.8, scenery=0.7)
def watercolor(s: Sketch) -> Image:
  """Transparent washes on rough paper: blotches, pigment that pools at edges, and a margin that is left white."""
  density = jnp.maximum(-jnp.log(jnp.clip(saturate(s.soft, 1.6), 0.05, 1.0)) - 0.1, 0.0)
  margin = _margin(s) + 15.0 * (s.flow[..., 0] - 0.5) + 4.0 * (s.cloud - 0.5)
  painted = smoothstep(5.5, 7.5, margin)
  pooled = painted * smoothstep(10.0, 7.0, margin)
  gap = s.contour * smoothstep(0.5, 0.1, s.mask)
  strength = (0.1 + 1.4 * s.cloud + 0.5 * (s.grain - 0.5)) * (0.62 + 0.38 * s.mask)
  strength = strength * (1.0 + 0.8 * s.ink + 0.7 * pooled) * (1.0 - 0.85 * gap) + 0.1 * s.ink
  paper = colour(0.985, 0.98, 0.96)[None, None] * (1.0 - 0.06 * s.grain[..., None])
  return paper * jnp.exp(-density * (strength * painted)[..., None])


@_style("oil painting", wobble=0.6)
def oil(s: Sketch) -> Image:
  """Thick brush strokes that follow the forms: large ones first, then small ones where the large ones lost detail."""
  most = 64
  tone = blur(luma(s.rgb) + 0.6 * s.mask, 2.0)
  dx, dy = shift(tone, 0, -1) - shift(tone, 0, 1), shift(tone, -1, 0) - shift(tone, 1, 0)
  turn = 3.0 * (s.flow[..., 0] + s.cloud)
  weak = 0.3 / s.rgb.shape[0]
  along = jnp.stack([-dy + weak * jnp.cos(turn), dx + weak * jnp.sin(turn)], axis=-1)
  field = jnp.concatenate([blur(s.rgb, 0.4), along, s.mask[..., None]], axis=-1)

  def layer(canvas, brush):
    n, length, width, patience = brush
    seed = s.seed + n
    x, y = filters.cell_centres(n, most, 1.0, seed)
    picked = filters.sample(jnp.concatenate([field, canvas], axis=-1), x[None], y[None])[0]
    rgb, direction, mask = picked[:, :3], picked[:, 3:5], picked[:, 5]
    direction = direction / jnp.maximum(jnp.linalg.norm(direction, axis=-1, keepdims=True), 1e-6)
    missed = jnp.max(jnp.abs(rgb - picked[:, 6:9]), axis=-1) > patience * (1.0 - 0.5 * mask)
    lot = hash_cells(jnp.arange(most * most), seed + 2)
    rgb = rgb * (0.88 + 0.24 * lot[:, None]) + 0.05 * (hash_cells(jnp.arange(most * most), seed + 3)[:, None] - 0.5)
    layers = jnp.where(missed, lot, 2.0)[:, None]
    table = jnp.concatenate([x[:, None], y[:, None], direction, layers, saturate(rgb, 1.3)], axis=-1)

    def frame(cell):
      t = table.at[cell].get(mode="promise_in_bounds")
      dx, dy = s.x - t[..., 0], s.y - t[..., 1]
      return (dx * t[..., 2] + dy * t[..., 3]) / length, (dy * t[..., 2] - dx * t[..., 3]) / width, t

    def cost(cell):
      u, v, t = frame(cell)
      off = jnp.maximum(jnp.abs(u) + 0.6 * (s.grain - 0.5), jnp.abs(v))
      return jnp.where(off < 1.0, t[..., 4], 2.0)

    cell = filters.best_cell(s.x, s.y, n, 2, cost, enough=1.5)
    _, v, t = frame(jnp.maximum(cell, 0))
    height = 1.2 * t[..., 4] + 0.25 * jnp.cos(11.0 * v + 6.0 * t[..., 4]) - 0.6 * v * v
    stroke = jnp.concatenate([t[..., 5:], height[..., None]], axis=-1)
    return jnp.where((cell >= 0)[..., None], stroke, canvas), None

  brushes = jnp.array([32, most]), *jnp.array([[8.0, 3.6], [2.7, 1.25], [-1.0, 0.16]])
  canvas = jnp.concatenate([s.soft, 0.0 * s.soft[..., :1]], axis=-1)
  canvas, _ = jax.lax.scan(layer, canvas, brushes)
  light = jnp.clip(filters.relief(canvas[..., 3], 0.12), -0.14, 0.2)[..., None]
  return canvas[..., :3] * (0.98 + light) + 0.25 * jnp.maximum(light, 0.0)


@_style("line drawing", wobble=0.25, width=1.15, rim=1.7, crease=0.9, detail=0.9, scenery=0.62)
def line_drawing(s: Sketch) -> Image:
  """Clean black ink on white paper; the darkest parts of the subject are filled in."""
  ink = jnp.maximum(jnp.maximum(s.ink, s.contour), _fill(s))
  return mix(colour(1.0, 1.0, 1.0), colour(0.03, 0.03, 0.05), ink)


@_style("pencil sketch", wobble=1.0, width=1.2, rim=1.3, crease=0.9, detail=0.8, scenery=0.65)
def pencil(s: Sketch) -> Image:
  """Graphite hatched in three directions, more where it is darker, on rough paper; it fades towards the margin."""
  gap = s.contour * smoothstep(0.5, 0.1, s.mask)
  dark = (1.0 - luma(s.soft)) * (0.55 + 0.5 * s.mask) * (1.0 - 0.8 * gap)
  dark = dark * smoothstep(2.0, 18.0, _margin(s) + 16.0 * (s.flow[..., 1] - 0.5))
  least = jnp.asarray([0.04, 0.36, 0.6], jnp.float32)[None, None]
  over = dark[..., None] - least
  strokes = smoothstep(-0.1, 0.16, 1.3 * over - s.hatch + 0.25) * smoothstep(0.0, 0.1, over)
  graphite = 1.0 - jnp.prod(1.0 - 0.4 * strokes, axis=-1)
  line = jnp.maximum(jnp.maximum(s.ink, 0.9 * s.contour), 0.9 * _fill(s))
  graphite = jnp.maximum(graphite, line) * (0.6 + 0.7 * s.grain)
  return mix(colour(0.965, 0.96, 0.945), colour(0.14, 0.14, 0.16), jnp.clip(graphite, 0.0, 1.0))


@_style("flat cartoon illustration", wobble=0.3, width=1.3, rim=2.8, crease=0.5, detail=0.35, scenery=0.55)
def flat_cartoon(s: Sketch) -> Image:
  """Flat clean colours in two tones and a bold dark outline."""
  bright = jnp.max(s.soft, axis=-1, keepdims=True)
  hue = jnp.round(saturate(s.soft / jnp.maximum(bright, 0.02), 1.25) * 6.0) / 6.0
  tone = jnp.where(bright < 0.2, 0.2, jnp.where(bright < 0.48, 0.52, jnp.where(bright < 0.72, 0.8, 1.0)))
  flat = mix(hue * tone, colour(1.0, 0.97, 0.9), 0.3 * (1.0 - s.mask))
  return mix(flat, colour(0.13, 0.09, 0.18), jnp.maximum(s.ink, s.contour))


_CRAYONS = np.array(
  [
    (0.88, 0.16, 0.18), (0.97, 0.55, 0.14), (0.99, 0.85, 0.2), (0.3, 0.68, 0.28), (0.09, 0.42, 0.25),
    (0.45, 0.75, 0.93), (0.15, 0.35, 0.8), (0.5, 0.25, 0.65), (0.96, 0.58, 0.72), (0.52, 0.32, 0.18),
    (0.2, 0.2, 0.22), (0.55, 0.55, 0.58), (0.96, 0.95, 0.92), (0.93, 0.75, 0.55), (0.12, 0.18, 0.42),
  ], np.float32
)  # fmt: skip


@_style("kid crayon drawing", wobble=2.6, width=1.7, rim=3.0, crease=0.55, detail=0.6, scenery=0.6)
def kid_crayon(s: Sketch) -> Image:
  """A child's crayons: the colours of one box, scribbled over the lines, with the paper showing through."""
  wax = snap(saturate(s.soft, 1.5), _CRAYONS, 0.45)
  strokes = jnp.where(s.mask > 0.47, s.hatch[..., 0], s.hatch[..., 1])
  cover = smoothstep(0.3, 0.48, strokes + 0.12 * s.mask + 0.3 * (s.grain - 0.5)) * (0.7 + 0.3 * s.mask)
  cover = cover * smoothstep(1.0, 6.0, _margin(s) + 12.0 * (s.flow[..., 0] - 0.5))
  line = jnp.maximum(s.ink, s.contour)
  paper = colour(0.98, 0.97, 0.94)
  crayon = mix(paper, wax, cover * (1.0 - 0.6 * line))
  return mix(crayon, wax * 0.4, line * smoothstep(0.2, 0.5, s.grain + 0.15))


_CONSOLE = np.array(
  [
    "0d0b1a", "2a2a3c", "55566a", "8a8c9c", "bfc3cc", "f4f4f0", "5c1420", "a81c2c", "e83b3b", "f8766a",
    "7a3a12", "b8591c", "f08a24", "ffb84a", "ffd93b", "fff08a", "c9a640", "143d24", "1f6b33", "3fa83c",
    "8ed94b", "5f7a2e", "10305c", "1f56b0", "3a8ee8", "7cc8f4", "bfe8f8", "2a1050", "5a1e96", "8e3fd0",
    "c08af0", "8c2a6a", "e85aa0", "ffa6c8", "4a2818", "7a4a2c", "b07a4c", "e0b084", "f8dcb8", "1a5a5c",
  ]
)  # fmt: skip
_CONSOLE = np.array([[int(c[k : k + 2], 16) / 255 for k in (0, 2, 4)] for c in _CONSOLE], np.float32)


@_style("pixel art")
def pixel_art(s: Sketch) -> Image:
  """A sprite of 32 x 32 pixels in few colours with a dark outline, as on an old game console."""
  n = 32
  x, y = filters.points(n)
  sharp = blur(s.rgb, 1.1)
  sharp = sharp + 0.7 * (sharp - blur(s.rgb, 3.5))
  tile = filters.sample(jnp.concatenate([mix(s.soft, sharp, s.mask), s.mask[..., None]], axis=-1), x, y)
  inside = tile[..., 3] > 0.4
  rgb = snap(saturate(tile[..., :3], 1.25), _CONSOLE, 0.9)
  near = shift(inside, 0, 1) | shift(inside, 0, -1) | shift(inside, 1, 0) | shift(inside, -1, 0)
  rgb = jnp.where((near & ~inside)[..., None], colour(0.08, 0.06, 0.14)[None, None], rgb)
  column, row = ((a * (n / filters.SIDE)).astype(jnp.int32) for a in (s.x, s.y))
  return rgb[row, column]


@_style("sticker", width=1.2, scenery=0.0, detail=0.3, crease=0.3)
def sticker(s: Sketch) -> Image:
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


@_style("3d clay rendering", wobble=0.7, width=1.6, rim=2.2, rounding=0.9, crease=0.9, detail=0.5)
def clay(s: Sketch) -> Image:
  """Everything kneaded from matte coloured clay, softly lit, with dents and fingerprints."""
  bright = jnp.max(s.soft, axis=-1, keepdims=True)
  hue = s.soft / jnp.maximum(bright, 0.08)
  lump = 0.16 + 0.8 * saturate(hue, 0.85) * (0.3 + 0.7 * bright**0.6)
  lump = mix(lump, colour(0.9, 0.85, 0.78), 0.3 * (1.0 - s.mask))
  prints = jnp.sin(2.2 * (jnp.hypot(s.x % 37.0 - 17.0, s.y % 41.0 - 22.0) + 9.0 * s.flow[..., 0]))
  dents = 3.5 * s.flow[..., 1] + 0.3 * prints * smoothstep(0.5, 0.6, s.cloud) + 0.35 * s.grain - 1.2 * s.ink
  light = 0.34 + 0.85 * _lit(s.normal, -0.55, 0.75, 0.6) ** 1.6 + filters.relief(dents, 0.16)
  light = light * (1.0 - 0.3 * blur(jnp.maximum(s.ink, s.contour), 1.5))
  sheen = 0.14 * _lit(s.normal, -0.5, 0.7, 0.8) ** 10
  return lump * light[..., None] * colour(1.03, 1.0, 0.95)[None, None] + sheen[..., None]


@_style("glowing neon", wobble=0.3, width=2.0, crease=0.6, detail=0.6, scenery=0.45)
def neon(s: Sketch) -> Image:
  """Glass tubes bent along the lines, glowing in pure colours in front of a black wall."""
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


@_style("wooden sculpture", wobble=0.3, width=1.3, rim=2.0, rounding=0.9, crease=0.9, detail=0.8)
def wooden(s: Sketch) -> Image:
  """Carved from pale wood, in front of darker boards, with rings and grain."""
  tone = luma(s.soft)
  away = jnp.hypot(s.x - 40.0 + 26.0 * s.normal[..., 0], 0.22 * (s.y - 150.0) + 30.0 * s.normal[..., 1])
  rings = 0.5 + 0.5 * jnp.sin(0.85 * away + 9.0 * s.flow[..., 0] + 3.0 * s.cloud)
  board = jnp.floor(s.x / 21.4)
  planks = 0.5 + 0.5 * jnp.sin(1.9 * s.x + 14.0 * s.flow[..., 1] + 8.0 * s.cloud + 2.4 * board + 0.05 * s.y)
  seam = smoothstep(
    1.1, 0.3, jnp.abs(s.x - 21.4 * (board + 0.5) - 10.7 + 21.4 * (s.x > 21.4 * (board + 0.5)).astype(jnp.float32) * 0.0)
  )
  pale = 0.4 + 0.62 * tone - 0.17 * rings**3
  dark = 0.1 + 0.42 * tone - 0.12 * planks**2 - 0.25 * seam + 0.1 * (hash_cells(board.astype(jnp.int32), s.seed) - 0.5)
  stain = pale * s.mask + dark * (1.0 - s.mask) - 0.12 * (s.grain - 0.5)
  wood = ramp(stain, (0.14, 0.06, 0.03), (0.42, 0.22, 0.1), (0.74, 0.48, 0.24), (0.97, 0.82, 0.56))
  light = _lit(s.normal, -0.6, 0.7, 0.6)
  carved = filters.relief(blur(tone, 0.6) * 2.2 - 2.2 * s.ink, 0.12)
  light = 0.42 + 0.72 * light**1.5 + carved
  shadow = 0.5 * jnp.maximum(s.ink, s.contour * (1.0 - s.mask))
  return wood * (light * (1.0 - shadow))[..., None]


@_style("melting golden 3d rendering", drip=7.0, wobble=1.0, width=1.6, rounding=1.4, crease=0.8, detail=0.5)
def melting_gold(s: Sketch) -> Image:
  """Polished gold that melts: drops run down from every edge and gather in a puddle."""
  step = filters.SIDE / s.rgb.shape[0]

  def fall(above, inside):
    above = jnp.where(inside, 0.0, above + step)
    return above, above

  _, below = jax.lax.scan(fall, jnp.full_like(s.x[0], 1e3), s.mask > 0.47)  # height of the subject's edge overhead
  pitch = 7.0
  which = jnp.floor(s.x / pitch)
  lot, size = (hash_cells(which.astype(jnp.int32), s.seed + k) for k in (11, 12))
  across = (s.x - (which + 0.5) * pitch) / (pitch * (0.22 + 0.2 * size))
  length = 22.0 * smoothstep(0.25, 1.0, lot)
  tip = length * jnp.sqrt(jnp.clip(1.0 - across**2, 0.0, 1.0))
  drop = smoothstep(0.0, 1.0, (tip - below) / (0.7 * step) + 0.5) * (1.0 - s.mask)
  there = s.mask > 0.47
  left, right = jnp.min(jnp.where(there, s.x, filters.SIDE)), jnp.max(jnp.where(there, s.x, 0.0))
  bottom = jnp.max(jnp.where(there, s.y, 0.0))
  wide = 0.55 * (right - left) + 5.0
  off = jnp.hypot((s.x - 0.5 * (left + right)) / wide, (s.y - bottom + 1.0) / 6.0) + 0.5 * (s.flow[..., 0] - 0.5)
  puddle = smoothstep(1.0, 0.92, off) * (1.0 - s.mask)

  bend = jnp.clip(across, -1.0, 1.0) * drop
  nx = s.normal[..., 0] * s.mask + 0.9 * bend
  ny = (
    s.normal[..., 1] * s.mask
    + (0.35 - 0.8 * below / jnp.maximum(length, 4.0)) * drop
    + (1.0 - drop) * puddle * (0.2 - 0.7 * off)
  )
  nz = s.normal[..., 2] * s.mask + 0.7 * drop
  n = jnp.stack([nx + 0.25 * jnp.sin(0.45 * s.x + 6.0 * s.flow[..., 0]) * s.mask, ny, nz], axis=-1)
  n = n / jnp.maximum(jnp.linalg.norm(n, axis=-1, keepdims=True), 0.3)
  mirror = (
    0.5 + 0.42 * n[..., 1] + 0.2 * n[..., 0] + 0.12 * jnp.sin(8.0 * n[..., 0] + 7.0 * n[..., 1] + 5.0 * s.flow[..., 0])
  )
  mirror = mirror + (0.4 * (luma(s.soft) - 0.5) - 0.3 * s.ink) * s.mask
  gold = ramp(mirror, (0.22, 0.09, 0.01), (0.62, 0.34, 0.04), (0.95, 0.7, 0.16), (1.0, 0.9, 0.5), (1.0, 0.99, 0.9))
  flash = _lit(n, -0.5, 0.6, 0.65) ** 30 + 0.7 * _lit(n, 0.7, 0.5, 0.4) ** 40
  gold = gold + 0.8 * flash[..., None]
  dull = ramp(0.9 * luma(s.soft), (0.05, 0.04, 0.08), (0.2, 0.15, 0.22), (0.42, 0.33, 0.4), (0.66, 0.55, 0.56))
  dull = dull * (1.0 - 0.35 * blur(jnp.maximum(s.mask, puddle), 3.0))[..., None]
  return mix(dull, gold, jnp.clip(s.mask + drop + puddle, 0.0, 1.0))


def _tiles(s: Sketch, n: int, jitter: float, round_: float, keep: float) -> tuple[Array, Array, Array, Array]:
  """Cells that keep to the edges in the image: (cell of each pixel, colours of the cells, x and y of their centres)."""
  x, y = filters.cell_centres(n, n, jitter, s.seed)
  guide = jnp.concatenate([s.soft, 1.2 * s.mask[..., None]], axis=-1)
  picked = filters.sample(guide, x[None], y[None])[0]
  table = jnp.concatenate([jnp.stack([x, y], axis=-1) * (n / filters.SIDE), picked], axis=-1)
  here = jnp.concatenate([jnp.stack([s.x, s.y], axis=-1) * (n / filters.SIDE), guide], axis=-1)

  def cost(cell):
    apart = (here - table.at[cell].get(mode="promise_in_bounds")) ** 2
    far = round_ * (apart[..., 0] + apart[..., 1]) + (1.0 - round_) * jnp.maximum(apart[..., 0], apart[..., 1])
    return far + keep * jnp.sum(apart[..., 2:], axis=-1)

  return filters.best_cell(s.x, s.y, n, 1, cost), picked[:, :3], x, y


@_style("mosaic")
def mosaic(s: Sketch) -> Image:
  """Small stone tiles, each of its own tint and tilt, set in grey grout."""
  n = 25
  cell, rgb, x, y = _tiles(s, n, 0.45, 0.15, 1.6)
  lot = hash_cells(jnp.arange(n * n)[:, None], jnp.arange(4)[None], s.seed)
  rgb = saturate(rgb, 1.35) * (0.86 + 0.3 * lot[:, :1]) + 0.05 * (lot[:, 1:] - 0.5)
  table = jnp.concatenate([rgb, lot, jnp.stack([x, y], axis=-1)], axis=-1)
  t = table.at[cell].get(mode="promise_in_bounds")
  tilt = 0.045 * ((t[..., 4] - 0.5) * (s.x - t[..., 7]) + (t[..., 5] - 0.5) * (s.y - t[..., 8]))
  grout = lines(filters.seams(cell), 1.2)
  stone = t[..., :3] * (1.03 + tilt + filters.relief(1.0 - grout, 0.14) + 0.1 * (s.grain - 0.5))[..., None]
  return mix(stone, colour(0.5, 0.47, 0.43), 0.9 * grout)


@_style("stained glass window", width=0.9, rim=2.2, outline=0.8, crease=0.4, detail=0.7, scenery=0.0)
def stained_glass(s: Sketch) -> Image:
  """Panes of luminous glass between dark strips of lead, with the subject's features painted on."""
  n = 10
  cell, rgb, x, y = _tiles(s, n, 0.8, 1.0, 0.9)
  lot = hash_cells(jnp.arange(n * n)[:, None], jnp.arange(2)[None], s.seed + 9)
  bright = jnp.max(rgb, axis=-1, keepdims=True)
  pale = 0.85 + 0.15 * jnp.cos(6.2832 * lot[:, 1:] + jnp.asarray([[0.0, 1.6, 3.6]], jnp.float32))
  rgb = saturate(rgb / jnp.maximum(bright, 0.05) * pale, 1.9) * (0.45 + 0.55 * bright) * (0.7 + 0.4 * lot[:, :1])
  pane = rgb.at[cell].get(mode="promise_in_bounds")
  lead = jnp.maximum(lines(filters.seams(cell), 1.8), s.contour)
  ripple = 0.8 + 0.35 * s.flow[..., :1] + 0.12 * (s.grain[..., None] - 0.5)
  sun = 1.15 - 0.35 * (jnp.hypot(s.x - 64.0, s.y - 50.0) / 80.0)[..., None]
  glass = pane * ripple * sun
  glass = glass + 0.45 * blur(glass * (1.0 - lead[..., None]), 2.5)
  painted = 0.85 * jnp.maximum(s.ink, _fill(s)) * s.mask
  frame = smoothstep(3.6, 2.6, _margin(s))
  return mix(glass, colour(0.05, 0.045, 0.06), jnp.maximum(jnp.maximum(lead, frame), painted))


@_style("blueprint", wobble=0.0, width=1.1, crease=0.9, detail=0.6, scenery=0.45)
def blueprint(s: Sketch) -> Image:
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
  below, side = jnp.minimum(bottom + 6.0, 122.0), jnp.maximum(left - 6.0, 6.0)
  across = jnp.maximum(rule(s.x - left), rule(s.x - right))
  width = jnp.where((s.x > left) & (s.x < right), rule(s.y - below), 0.0)
  width = jnp.maximum(width, jnp.where(jnp.abs(s.y - below) < 2.6, across, 0.0))
  across = jnp.maximum(rule(s.y - top), rule(s.y - bottom))
  height = jnp.where((s.y > top) & (s.y < bottom), rule(s.x - side), 0.0)
  height = jnp.maximum(height, jnp.where(jnp.abs(s.x - side) < 2.6, across, 0.0))
  shade = smoothstep(0.55, 0.2, luma(s.soft)) * rule((s.x + s.y) % 4.0 - 2.0, 0.6) * s.mask
  ink = jnp.maximum(jnp.maximum(s.ink, s.contour), jnp.maximum(0.8 * jnp.maximum(width, height), 0.45 * shade))
  frame = rule(_margin(s) - 3.0)
  return mix(paper, colour(0.93, 0.97, 1.0), jnp.maximum(ink, 0.8 * frame))


@_style("halftone pop art", wobble=0.3, width=1.5, rim=3.0, crease=0.6, detail=0.4, scenery=0.55)
def pop_art(s: Sketch) -> Image:
  """A printed comic panel: punchy flat inks, dots in place of shades, bold black outlines."""
  u, v = (s.x + s.y) * 0.7071, (s.x - s.y) * 0.7071
  pitch = 4.6
  dot = jnp.hypot(u % pitch - pitch / 2, v % pitch - pitch / 2) / pitch
  pixel = 0.5 * filters.SIDE / s.rgb.shape[0] / pitch
  rgb = jnp.clip((saturate(s.soft, 1.8) - 0.5) * 1.25 + 0.58, 0.0, 1.0)
  steps = rgb * 2.0
  low = jnp.floor(steps)
  share = smoothstep(0.1, 0.9, steps - low)
  cover = smoothstep(pixel, -pixel, dot[..., None] - 0.66 * share)
  inks = (low + cover) / 2.0
  paper = colour(1.0, 0.97, 0.88)[None, None]
  return mix(inks * paper, colour(0.05, 0.03, 0.08), jnp.maximum(s.ink, s.contour))


@_style("chalkboard drawing", wobble=1.2, width=1.3, rim=1.8, crease=0.8, detail=0.7, scenery=0.55)
def chalkboard(s: Sketch) -> Image:
  """Dusty chalk on a green board: white lines, and colours rubbed on with the flat of the chalk."""
  board = mix(
    colour(0.09, 0.19, 0.15), colour(0.19, 0.3, 0.25), smoothstep(0.25, 0.85, s.cloud) * (0.4 + 0.6 * s.hatch[..., 1])
  )
  bright = jnp.max(s.soft, axis=-1, keepdims=True)
  chalk = 0.3 + 0.7 * saturate(s.soft / jnp.maximum(bright, 0.1), 1.4)
  tooth = smoothstep(0.2, 0.75, s.grain)
  rubbed = smoothstep(0.2, 0.7, s.hatch[..., 0]) * (0.45 + 0.55 * tooth) * (0.12 + 0.88 * bright[..., 0])
  rubbed = rubbed * (0.32 + 0.5 * s.mask) * (1.0 - 0.5 * s.contour)
  line = jnp.maximum(s.ink, s.contour) * (0.6 + 0.4 * tooth)
  drawing = mix(mix(board, chalk, rubbed), colour(0.97, 0.97, 0.93), line)
  wood = colour(0.55, 0.36, 0.2)[None, None] * (0.75 + 0.4 * s.hatch[..., 1:2])
  return mix(drawing, wood, smoothstep(3.6, 3.0, _margin(s)))


@_style("vintage sepia photograph", width=1.0)
def sepia(s: Sketch) -> Image:
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


def apply_style(style: Int[Array, ""], rgb: Image, depth: Plane, normal: Image, mask: Plane, key: jax.Array) -> Image:
  """Applies a style to an image.

  Args:
    style: index into `vocabulary.STYLES`.
    rgb: the rendered image, square, at least 16 x 16.
    depth: distance of each pixel.
    normal: surface normal of each pixel.
    mask: the matte of what must stay recognisable.
    key: random key; the same key gives the same image.

  Returns:
    The image in the style, in [0, 1].
  """
  names = vocabulary.STYLES[1:]

  def apply():
    recipe = jnp.asarray([RECIPES[name] for name in names], jnp.float32)[jnp.maximum(style - 1, 0)]
    sketch = _sketch(recipe, rgb, depth, normal, mask, key)
    return jnp.clip(jax.lax.switch(style - 1, [PAINTERS[name] for name in names], sketch), 0.0, 1.0)

  return jax.lax.cond(style == 0, lambda: rgb, apply)
