"""The colours of surfaces: patterns on parts, textures of the ground, the sky.

Colours are linear RGB as tuples (r, g, b) of arrays; `u` is a point in a part's own frame with its radii scaled to 1,
`q` the same point in scene units.
"""

from collections.abc import Callable
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import numpy as np

from dreamjax.toybox.intersect import Vec
from dreamjax.toybox.noise import fractal_noise, hash_cells, smoothstep, value_noise
from dreamjax.toybox.scene import Environment, Ground, Pattern

T = TypeVar("T")


def apart(when: Array, compute: Callable[[], T]) -> T:
  """Returns `compute()`, computed in a separate branch, or zeros if `when` (a scalar known only at run time) is false.

  XLA's CPU compiler fuses an expression into each of its readers, so what three colour channels share would be computed
  three times; nothing is fused across a branch.
  """
  shapes = jax.eval_shape(compute)
  return jax.lax.cond(when, compute, lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))


def mix(a: Vec, b: Vec, w: Array | float) -> Vec:
  """Interpolates from `a` (w = 0) to `b` (w = 1)."""
  return tuple(x + (y - x) * w for x, y in zip(a, b, strict=True))


def scale(a: Vec, s: Array | float) -> Vec:
  """Multiplies a vector or colour by a number."""
  return tuple(x * s for x in a)


def _threshold(x: Array, at: Array | float, width: float = 0.04) -> Array:
  """1 where x exceeds `at`, with a soft edge."""
  return smoothstep(-width, width, x - at)


def _hue(h: Array) -> Vec:
  """A saturated colour of hue `h` (in turns)."""
  return tuple(jnp.clip(jnp.abs((h + k) % 1.0 * 6.0 - 3.0) - 1.0, 0.02, 0.9) for k in (0.0, 2 / 3, 1 / 3))


def _spots(q: Vec, size: Array, seed: Array, radius: Array | float) -> Array:
  """One ball at a random position in each cubic cell of edge `size`."""
  cells = [x / jnp.maximum(size, 1e-3) for x in q]
  index = [jnp.floor(c) for c in cells]
  ints = [i.astype(jnp.int32) for i in index]
  distance = 0.0
  for k in range(3):
    middle = 0.35 + 0.3 * hash_cells(*ints, seed.astype(jnp.int32) + 7 * k)
    distance = distance + (cells[k] - index[k] - middle) ** 2
  return 1.0 - _threshold(jnp.sqrt(distance), radius, 0.05)


def _star(x: Array, y: Array, radius: Array | float) -> Array:
  """A five-pointed star around the origin, one point up."""
  turns = jnp.arctan2(x, y) * (5 / (2 * math.pi))
  tip = jnp.abs(turns - jnp.round(turns)) * 2  # 0 at a tip, 1 between two
  return 1.0 - _threshold(jnp.hypot(x, y), radius * (1.0 - 0.58 * tip), 0.03)


def pattern_weights(
  kind: Int[Array, "..."], u: Vec, q: Vec, params: tuple[Array, Array, Array, Array]
) -> tuple[Array, Array, Array]:
  """Computes how a part's colours mix at a point.

  Args:
    kind: a `Pattern`.
    u: the point, radii scaled to 1.
    q: the point, in scene units.
    params: four numbers, of a marking (scale, phase, strength, axis), where the axis is 0 for toys that are long in
      z (an animal) and 1 for those that stand upright (a teapot): it puts stripes and stars on the visible side.

  Returns:
    The share of the second colour, by how much the result is then darkened, and the share of white over it.
  """
  size, phase, strength, axis = params
  upright = axis > 0.5
  along = jnp.where(upright, q[1], q[2] + 0.35 * q[1])
  stripes = _threshold(jnp.sin(2 * math.pi * (along / size + phase)), 0.65 - 0.35 * strength, 0.2)
  is_freckles = kind == Pattern.FRECKLES
  spots = _spots(q, size, phase * 97.0, jnp.where(is_freckles, 0.34, 0.28 + 0.14 * strength))
  freckles = jnp.where((u[2] > 0.2) & (u[1] < 0.12) & (u[1] > -0.5), spots, 0.0)
  turn = 2 * math.pi * phase
  sx, sy, sz = 0.9 * jnp.sign(jnp.cos(turn * 3)), 0.35 * jnp.sin(turn * 2), 0.7 * jnp.sin(turn)
  px, pz = jnp.where(upright, sz, sx), jnp.where(upright, 0.9, sz)
  patch_distance = jnp.sqrt((u[0] - px) ** 2 + (u[1] - sy) ** 2 + (u[2] - pz) ** 2)
  patch = 1.0 - _threshold(patch_distance, 0.6 + 0.25 * strength, 0.05)
  belly = 1.0 - _threshold(u[1] + 0.12 * jnp.sin(6 * u[2]), -0.45 + 0.25 * strength, 0.06)
  star = _star(jnp.where(upright, q[0], q[2]), q[1], 0.12 + 0.05 * strength)
  star = jnp.where(jnp.abs(jnp.where(upright, u[2], u[0])) > 0.3, star, 0.0)
  checker = ((jnp.floor(q[0] / size) + jnp.floor(q[1] / size) + jnp.floor(q[2] / size)) % 2.0) > 0.5
  column, row = (q[0] + q[2]) / size, q[1] / size
  lit = hash_cells(jnp.floor(column).astype(jnp.int32), jnp.floor(row).astype(jnp.int32)) < strength
  windows = (jnp.abs(column % 1.0 - 0.5) < 0.28) & (jnp.abs(row % 1.0 - 0.5) < 0.3) & lit
  cap = _threshold(u[1] + 0.1 * phase * jnp.sin(9 * jnp.arctan2(u[0], u[2])), size, 0.05)
  rings = 1.0 - _threshold(jnp.hypot(u[0], u[2]), size, 0.04)
  bands = _threshold(jnp.sin(2 * math.pi * (u[1] * size + phase)), 0.0, 0.2)
  iris = _threshold(u[2], size, 0.05)

  weight = jnp.zeros_like(u[0])
  for pattern, value in (
    (Pattern.STRIPES, stripes), (Pattern.SPOTS, spots), (Pattern.PATCH, patch), (Pattern.BELLY, belly),
    (Pattern.STAR, star), (Pattern.FRECKLES, freckles), (Pattern.CHECKER, jnp.where(checker, 1.0, 0.0)),
    (Pattern.WINDOWS, jnp.where(windows, 1.0, 0.0)), (Pattern.CAP, cap), (Pattern.RINGS, rings), (Pattern.BANDS, bands),
    (Pattern.PUPIL, iris),
  ):  # fmt: skip
    weight = jnp.where(kind == pattern, value, weight)
  is_eye = kind == Pattern.PUPIL
  pupil = _threshold(u[2], phase, 0.04)
  highlight = 1.0 - _threshold((u[0] - 0.32) ** 2 + (u[1] - 0.36) ** 2, 0.045, 0.02)
  return weight, jnp.where(is_eye, 0.97 * pupil, 0.0), jnp.where(is_eye & (u[2] > 0), highlight, 0.0)


def pattern_colour(kind: Array, height: Array, params: tuple, weights: tuple, a: Vec, b: Vec) -> Vec:
  """Computes a part's colour at a point of height `height` (-1 to 1) from `pattern_weights` and its two colours."""
  weight, dark, white = weights
  colour = mix(scale(mix(a, b, weight), 1.0 - dark), (0.95, 0.95, 0.95), white)
  rainbow = _hue(height * params[0] + params[1])
  return tuple(jnp.where(kind == Pattern.RAINBOW, r, c) for r, c in zip(rainbow, colour, strict=True))


# For each ground: cells per unit of its coarse noise (x, z) and of its detail (x, z), and brick size (x, z).
_GRAIN = np.array(
  [
    {
      Ground.GRASS: (0.8, 0.8, 14, 5, 1, 1), Ground.SNOW: (0.9, 0.9, 1.1, 0.9, 1, 1),
      Ground.SAND: (1, 1, 30, 30, 1, 1), Ground.COBBLES: (1, 1, 1, 1, 0.42, 0.32),
      Ground.PLANKS: (2, 22, 1, 1, 3.2, 0.42), Ground.WATER: (0.7, 1.6, 2.2, 4.5, 1, 1),
      Ground.WHEAT: (1, 1, 9, 2.5, 1, 1), Ground.LEAVES: (1, 1, 1, 1, 0.16, 0.13),
      Ground.ROAD: (0.5, 0.5, 12, 5, 1, 1), Ground.FABRIC: (0.6, 0.6, 0.5, 0.7, 1, 1),
      Ground.STREET: (1, 1, 20, 20, 0.9, 0.8),
    }.get(kind, (1, 1, 1, 1, 1, 1))
    for kind in Ground
  ],
  np.float32,
)  # fmt: skip


def ground(env: Environment, x: Array, z: Array, distance: Array) -> tuple[Vec, Vec]:
  """Computes the texture of the ground plane.

  Args:
    env: the environment, of which `ground`, `ground_colours`, `ground_scale` and `seed` are read.
    x: first coordinate on the plane.
    z: second coordinate on the plane.
    distance: from the camera; fine detail fades with it, since it would alias.

  Returns:
    The colour, and the unit normal.
  """
  fine = 1.0 / (1.0 + (distance / 9.0) ** 2)
  sx, sz = x / env.ground_scale, z / env.ground_scale
  coarse_x, coarse_z, detail_x, detail_z, width, depth = (jnp.asarray(_GRAIN)[env.ground, k] for k in range(6))
  coarse = fractal_noise(sx * coarse_x, sz * coarse_z, env.seed, 2)
  detail = value_noise(sx * detail_x, sz * detail_z, env.seed + 5)
  # Bricks: the position within the brick (-1 to 1), and a random number for each brick.
  row = jnp.floor(sz / depth)
  shift = sx / width + 0.5 * (row % 2.0)
  column = jnp.floor(shift)
  dx, dz = (shift - column - 0.5) * 2, (sz / depth - row - 0.5) * 2
  brick = hash_cells(column.astype(jnp.int32), row.astype(jnp.int32), env.seed)
  zero, one = jnp.zeros_like(x), jnp.ones_like(x)

  # Each texture is: share of the second colour, share of the third over that, a factor, slopes along x and z.

  def plain():
    return zero, zero, one, zero, zero

  def grass():
    return coarse, _threshold(detail * fine + 0.5 * (1 - fine), 0.62, 0.2), one, zero, zero

  def snow():
    return coarse, zero, one, 0.35 * (coarse - 0.5), 0.35 * (detail - 0.5)

  def sand():
    ripple = jnp.sin(9 * (sz + 0.5 * coarse)) * fine
    return 0.5 + 0.35 * ripple, 0.25 * detail * fine, one, zero, 0.12 * ripple

  def cobbles():
    return brick, _threshold(dx**4 + dz**4, 0.62, 0.25), one, 0.45 * dx**3 * fine, 0.45 * dz**3 * fine

  def planks():
    gap = _threshold(jnp.maximum(jnp.abs(dz) - 0.93, jnp.abs(dx) - 0.992), 0.0, 0.02) * (0.3 + 0.7 * fine)
    return brick, 0.45 * coarse, 1.0 - 0.6 * gap, zero, zero

  def water():
    crest = _threshold(0.6 * coarse + 0.4 * detail, 0.62, 0.12)
    return coarse, 0.5 * crest, one, 0.5 * (coarse - 0.5), 0.5 * (detail - 0.5) * fine

  def wheat():
    rows = 0.5 + 0.5 * jnp.sin(5 * sz + 2 * coarse)
    return detail * fine + 0.5 * (1 - fine), 0.5 * rows * detail, one, 0.3 * (detail - 0.5), zero

  def leaves():
    leaf = (1.0 - _threshold(dx * dx + dz * dz, 0.75, 0.2)) * _threshold(brick, 0.35, 0.02) * (0.45 + 0.55 * fine)
    shade = (brick * 7.0) % 1.0 - 0.5
    return leaf, leaf * _threshold(brick, 0.68, 0.1), 1.0 + 0.6 * leaf * shade, zero, zero

  def road():
    edge = jnp.abs(x + 0.12 * z + 0.5 * (coarse - 0.5)) - 0.95
    grassy = _threshold(edge, 0.0, 0.08)
    rut = 1.0 - _threshold(jnp.abs(edge + 0.5), 0.1, 0.06)
    dirt = 0.85 + 0.3 * detail - 0.25 * rut
    return grassy, grassy * detail, dirt + (1.0 - dirt) * grassy, zero, zero

  def fabric():
    drape = 2.1 * sx + 3.0 * coarse
    fold = jnp.sin(drape) + jnp.sin(1.3 * sz - 4.0 * detail)
    return 0.5 + 0.25 * fold, zero, one, 0.3 * jnp.cos(drape), 0.16 * fold

  def tiles():
    column, row = jnp.floor(sx), jnp.floor(sz)
    grout = _threshold(jnp.maximum(jnp.abs(sx - column - 0.5), jnp.abs(sz - row - 0.5)), 0.485, 0.012) * fine
    return (column + row) % 2.0, grout, one, zero, zero

  def street():
    slab = (0.9 + 0.2 * brick) * (1.0 - 0.35 * _threshold(jnp.maximum(jnp.abs(dx), jnp.abs(dz)), 0.95, 0.03))
    is_road = _threshold(-z, 1.75, 0.03)
    line = jnp.where((jnp.abs(z + 3.1) < 0.09) & (jnp.sin(3.0 * x) > -0.2), 1.0, 0.0)
    kerb = jnp.where(jnp.abs(z + 1.7) < 0.07, 1.25, 1.0)
    return 1.0 - is_road, line, (slab + (0.85 + 0.3 * detail - slab) * is_road) * kerb, zero, zero

  def milk():
    ring = jnp.sin(7 * jnp.hypot(x, z) - 2 * coarse) * jnp.exp(-0.5 * jnp.hypot(x, z))
    return 0.5 * coarse, zero, one, 0.5 * ring * x / (1 + jnp.abs(x)), 0.5 * ring

  textures = {
    Ground.PLAIN: plain, Ground.GRASS: grass, Ground.SNOW: snow, Ground.SAND: sand, Ground.COBBLES: cobbles,
    Ground.PLANKS: planks, Ground.WATER: water, Ground.WHEAT: wheat, Ground.LEAVES: leaves, Ground.ROAD: road,
    Ground.FABRIC: fabric, Ground.TILES: tiles, Ground.STREET: street, Ground.MILK: milk,
  }  # fmt: skip
  second, third, factor, slope_x, slope_z = jax.lax.switch(env.ground, [textures[kind] for kind in Ground])
  c0, c1, c2 = (tuple(env.ground_colours[i, k] for k in range(3)) for i in range(3))
  colour = scale(mix(mix(c0, c1, second), c2, third), factor)
  up = jax.lax.rsqrt(1.0 + slope_x**2 + slope_z**2)
  return colour, (slope_x * up, up, slope_z * up)


def sky(env: Environment, direction: Vec) -> Vec:
  """Computes the light from the sky, or from the wall of a room, in a direction (unit vectors)."""
  dx, dy, dz = direction
  horizon, zenith = (tuple(c[k] for k in range(3)) for c in (env.horizon, env.zenith))
  height = jnp.clip(dy, 0.0, 1.0)
  colour = mix(horizon, zenith, 1.0 - (1.0 - height) ** 4)

  def clouds():
    lift = 1.0 / (height + 0.12)
    puff = fractal_noise(dx * lift * 1.2, dz * lift * 1.2, env.seed, 3)
    return 0.85 * _threshold(puff, 0.86 - 0.42 * env.clouds, 0.12) * env.clouds * smoothstep(0.0, 0.12, dy)

  def stars():
    sx, sy = dx / (1.2 - dz) * 90, dy / (1.2 - dz) * 90
    cell = hash_cells(jnp.floor(sx).astype(jnp.int32), jnp.floor(sy).astype(jnp.int32), env.seed)
    ox, oy = sx - jnp.floor(sx) - 0.5, sy - jnp.floor(sy) - 0.5
    return jnp.where(cell > 0.965, 1.2 * jnp.exp(-12.0 * (ox * ox + oy * oy)) * env.stars, 0.0)

  star = apart(env.stars > 0, stars)
  colour = mix(colour, tuple(0.25 + 0.75 * h for h in horizon), apart(env.clouds > 0, clouds))
  colour = tuple(c + star for c in colour)

  glare = jnp.clip(dx * env.sun[0] + dy * env.sun[1] + dz * env.sun[2], 0.0, 1.0)
  glow = 0.35 * glare**24 * (1.0 - env.indoors)
  outdoors = tuple(c + glow * env.sun_colour[k] for k, c in enumerate(colour))
  wall = mix(horizon, zenith, smoothstep(-0.2, 0.7, dy))
  return mix(outdoors, wall, env.indoors)
