"""What surfaces look like: patterns on parts, textures of the ground, the sky.

Colours are linear RGB as tuples (r, g, b) of arrays; `u` is a point in a part's own frame with its radii scaled to 1, `q` the
same point in scene units.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.toybox.intersect import Vec
from dreamjax.toybox.noise import fractal_noise, hash_cells, smoothstep, value_noise
from dreamjax.toybox.scene import Environment, Ground, Pattern


def mix(a: Vec, b: Vec, w: Array | float) -> Vec:
  return tuple(x + (y - x) * w for x, y in zip(a, b, strict=True))


def scale(a: Vec, s: Array | float) -> Vec:
  return tuple(x * s for x in a)


def _threshold(x: Array, at: Array | float, width: float = 0.04) -> Array:
  """1 where x exceeds `at`, with a soft edge."""
  return smoothstep(-width, width, x - at)


def _hue(h: Array) -> Vec:
  """A saturated colour of hue `h` (in turns)."""
  return tuple(jnp.clip(jnp.abs((h + k) % 1.0 * 6.0 - 3.0) - 1.0, 0.02, 0.9) for k in (0.0, 2 / 3, 1 / 3))


def _spots(q: Vec, size: Array, seed: Array, radius: Array | float) -> Array:
  """One ball of random place in each cubic cell of edge `size`."""
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


def pattern_colour(
  kind: Int[Array, "..."], u: Vec, q: Vec, params: tuple[Array, Array, Array, Array], a: Vec, b: Vec
) -> Vec:
  """The colour of a part at a point.

  Args:
    kind: a `Pattern`.
    u: the point, radii scaled to 1.
    q: the point, in scene units.
    params: four numbers; a marking reads (scale, phase, strength, axis), where the axis is 0 for toys that are long in z (an
      animal) and 1 for those that stand upright (a teapot): it turns stripes and stars to the side that is seen.
    a: the first colour.
    b: the second colour.

  Returns:
    The colour.
  """
  size, phase, strength, axis = params
  upright = axis > 0.5
  along = jnp.where(upright, q[1], q[2] + 0.35 * q[1])
  stripes = _threshold(jnp.sin(2 * math.pi * (along / size + phase)), 0.15 - 0.5 * strength, 0.2)
  spots = _spots(q, size, phase * 97.0, 0.28 + 0.14 * strength)
  turn = 2 * math.pi * phase
  sx, sy, sz = 0.9 * jnp.sign(jnp.cos(turn * 3)), 0.35 * jnp.sin(turn * 2), 0.7 * jnp.sin(turn)
  px, pz = jnp.where(upright, sz, sx), jnp.where(upright, 0.9, sz)
  patch_distance = jnp.sqrt((u[0] - px) ** 2 + (u[1] - sy) ** 2 + (u[2] - pz) ** 2)
  patch = 1.0 - _threshold(patch_distance, 0.7 + 0.25 * strength, 0.05)
  belly = 1.0 - _threshold(u[1] + 0.12 * jnp.sin(6 * u[2]), -0.25 + 0.3 * strength, 0.06)
  star = _star(jnp.where(upright, u[0], u[2]), u[1] - 0.05, 0.62 + 0.2 * strength)
  star = star * (jnp.abs(jnp.where(upright, u[2], u[0])) > 0.3)
  freckles = _spots(q, size, phase * 89.0, 0.34) * (u[2] > 0.2) * (u[1] < 0.12) * (u[1] > -0.5)
  checker = ((jnp.floor(q[0] / size) + jnp.floor(q[1] / size) + jnp.floor(q[2] / size)) % 2.0) > 0.5
  column, row = (q[0] + q[2]) / size, q[1] / size
  lit = hash_cells(jnp.floor(column).astype(jnp.int32), jnp.floor(row).astype(jnp.int32)) < strength
  windows = (jnp.abs(column % 1.0 - 0.5) < 0.28) & (jnp.abs(row % 1.0 - 0.5) < 0.3) & lit
  cap = _threshold(u[1] + 0.1 * phase * jnp.sin(9 * jnp.arctan2(u[0], u[2])), size, 0.05)
  rings = 1.0 - _threshold(jnp.hypot(u[0], u[2]), size, 0.04)
  planks = (jnp.abs(q[1] / size % 1.0 - 0.5) > 0.44) * 1.0
  bands = _threshold(jnp.sin(2 * math.pi * (u[1] * size + phase)), 0.0, 0.2)
  iris = _threshold(u[2], size, 0.05)

  weight = jnp.zeros_like(u[0])
  for pattern, value in {
    Pattern.STRIPES: stripes,
    Pattern.SPOTS: spots,
    Pattern.PATCH: patch,
    Pattern.BELLY: belly,
    Pattern.STAR: star,
    Pattern.FRECKLES: freckles,
    Pattern.CHECKER: checker,
    Pattern.WINDOWS: windows,
    Pattern.CAP: cap,
    Pattern.RINGS: rings,
    Pattern.PLANKS: planks,
    Pattern.BANDS: bands,
    Pattern.PUPIL: iris,
  }.items():
    weight = jnp.where(kind == pattern, value, weight)
  colour = mix(a, b, weight)

  rainbow = _hue(u[1] * size + phase)
  pupil = _threshold(u[2], phase, 0.04)
  highlight = 1.0 - _threshold((u[0] - 0.32) ** 2 + (u[1] - 0.36) ** 2, 0.045, 0.02)
  eye = mix(scale(colour, 1.0 - 0.97 * pupil), (0.95, 0.95, 0.95), highlight * (u[2] > 0))
  return tuple(
    jnp.where(kind == Pattern.RAINBOW, r, jnp.where(kind == Pattern.PUPIL, e, c))
    for r, e, c in zip(rainbow, eye, colour, strict=True)
  )


def ground(env: Environment, x: Array, z: Array, distance: Array) -> tuple[Vec, Vec]:
  """Texture of the ground plane.

  Args:
    env: whose `ground`, `ground_colours`, `ground_scale` and `seed` are read.
    x: first coordinate on the plane.
    z: second coordinate on the plane.
    distance: from the eye; fine detail fades with it, since it could not be sampled.

  Returns:
    The colour, and the unit normal.
  """
  c0, c1, c2 = (tuple(env.ground_colours[i, k] + 0.0 * x for k in range(3)) for i in range(3))
  fine = 1.0 / (1.0 + (distance / 9.0) ** 2)
  sx, sz = x / env.ground_scale, z / env.ground_scale
  seed = env.seed
  flat = 0.0 * x

  def noise(kx, kz, octaves=2):
    return fractal_noise(sx * kx, sz * kz, seed, octaves)

  def plain():
    return c0, flat, flat

  def grass():
    blades = value_noise(sx * 14, sz * 5, seed) * fine + 0.5 * (1 - fine)
    return mix(mix(c0, c1, noise(0.8, 0.8)), c2, _threshold(blades, 0.62, 0.2)), flat, flat

  def snow():
    drift = noise(0.9, 0.9)
    return mix(c0, c1, drift), 0.35 * (drift - 0.5), 0.35 * (noise(1.1, 0.9) - 0.5)

  def sand():
    ripple = jnp.sin(9 * (sz + 0.5 * noise(1.0, 1.0))) * fine
    grain = value_noise(sx * 30, sz * 30, seed) * fine
    return mix(mix(c0, c1, 0.5 + 0.35 * ripple), c2, 0.25 * grain), flat, 0.12 * ripple

  def cells(width, depth):
    row = jnp.floor(sz / depth)
    shift = sx / width + 0.5 * (row % 2.0)
    column = jnp.floor(shift)
    dx, dz = (shift - column - 0.5) * 2, (sz / depth - row - 0.5) * 2
    return dx, dz, hash_cells(column.astype(jnp.int32), row.astype(jnp.int32), seed)

  def cobbles():
    dx, dz, tint = cells(0.42, 0.32)
    edge = dx**4 + dz**4
    stone = 1.0 - _threshold(edge, 0.62, 0.25)
    return mix(c2, mix(c0, c1, tint), stone), 0.45 * dx**3 * fine, 0.45 * dz**3 * fine

  def planks():
    dx, dz, tint = cells(3.2, 0.42)
    gap = _threshold(jnp.maximum(jnp.abs(dz) - 0.93, jnp.abs(dx) - 0.992), 0.0, 0.02)
    grain = fractal_noise(sx * 2.0 + 40 * tint, sz * 22, seed, 2)
    return mix(mix(mix(c0, c1, tint), c2, 0.45 * grain), scale(c2, 0.4), gap * (0.3 + 0.7 * fine)), flat, flat

  def water():
    a, b = noise(0.7, 1.6), value_noise(sx * 2.2, sz * 4.5, seed + 5)
    crest = _threshold(0.6 * a + 0.4 * b, 0.62, 0.12)
    return mix(mix(c0, c1, a), c2, 0.5 * crest), 0.5 * (a - 0.5), 0.5 * (b - 0.5) * fine

  def wheat():
    ear = value_noise(sx * 9, sz * 2.5, seed)
    rows = 0.5 + 0.5 * jnp.sin(5 * sz + 2 * noise(1.0, 1.0))
    return mix(mix(c0, c1, ear * fine + 0.5 * (1 - fine)), c2, 0.5 * rows * ear), 0.3 * (ear - 0.5), flat

  def leaves():
    dx, dz, tint = cells(0.16, 0.13)
    leaf = (1.0 - _threshold(dx * dx + dz * dz, 0.75, 0.2)) * _threshold(tint, 0.35, 0.02)
    shade = 0.65 + 0.7 * hash_cells((tint * 4096).astype(jnp.int32))
    colour = mix(c1, c2, _threshold(tint, 0.68, 0.1))
    return mix(c0, scale(colour, shade), leaf * (0.45 + 0.55 * fine)), flat, flat

  def road():
    edge = jnp.abs(x + 0.12 * z + 0.5 * (noise(0.5, 0.5) - 0.5)) - 0.95
    grassy = _threshold(edge, 0.0, 0.08)
    rut = 1.0 - _threshold(jnp.abs(edge + 0.5), 0.1, 0.06)
    dirt = mix(scale(c0, 0.85 + 0.3 * value_noise(sx * 8, sz * 8, seed)), scale(c0, 0.62), 0.6 * rut)
    return mix(dirt, mix(c1, c2, value_noise(sx * 12, sz * 5, seed)), grassy), flat, flat

  def fabric():
    fold = jnp.sin(2.1 * sx + 3.0 * noise(0.6, 0.6)) + jnp.sin(1.3 * sz - 4.0 * noise(0.5, 0.7))
    return mix(c0, c1, 0.5 + 0.25 * fold), 0.3 * jnp.cos(2.1 * sx + 3.0 * noise(0.6, 0.6)), 0.16 * fold

  def tiles():
    column, row = jnp.floor(sx), jnp.floor(sz)
    dx, dz = jnp.abs(sx - column - 0.5), jnp.abs(sz - row - 0.5)
    grout = _threshold(jnp.maximum(dx, dz), 0.485, 0.012) * fine
    return mix(mix(c0, c1, (column + row) % 2.0), c2, grout), flat, flat

  def street():
    dx, dz, tint = cells(0.9, 0.8)
    slab = mix(scale(c1, 0.9 + 0.2 * tint), scale(c1, 0.6), _threshold(jnp.maximum(jnp.abs(dx), jnp.abs(dz)), 0.95, 0.03))
    line = (jnp.abs(z + 3.1) < 0.09) & (jnp.sin(3.0 * x) > -0.2)
    asphalt = mix(scale(c0, 0.85 + 0.3 * value_noise(sx * 20, sz * 20, seed)), c2, line * 1.0)
    kerb = mix(slab, asphalt, _threshold(-z, 1.75, 0.03))
    return mix(kerb, scale(c1, 1.25), (jnp.abs(z + 1.7) < 0.07) * 1.0), flat, flat

  def milk():
    ring = jnp.sin(7 * jnp.hypot(x, z) - 2 * noise(1.0, 1.0)) * jnp.exp(-0.5 * jnp.hypot(x, z))
    return mix(c0, c1, 0.5 * noise(1.0, 1.0)), 0.5 * ring * x / (1 + jnp.abs(x)), 0.5 * ring

  branches = {
    Ground.PLAIN: plain,
    Ground.GRASS: grass,
    Ground.SNOW: snow,
    Ground.SAND: sand,
    Ground.COBBLES: cobbles,
    Ground.PLANKS: planks,
    Ground.WATER: water,
    Ground.WHEAT: wheat,
    Ground.LEAVES: leaves,
    Ground.ROAD: road,
    Ground.FABRIC: fabric,
    Ground.TILES: tiles,
    Ground.STREET: street,
    Ground.MILK: milk,
  }
  colour, bump_x, bump_z = jax.lax.switch(env.ground, [branches[kind] for kind in Ground])
  up = jax.lax.rsqrt(1.0 + bump_x**2 + bump_z**2)
  return colour, (bump_x * up, up, bump_z * up)


def sky(env: Environment, direction: Vec) -> Vec:
  """Light from the sky, or from the wall of a room, in a direction (unit vectors)."""
  dx, dy, dz = direction
  horizon, zenith = (tuple(c[k] for k in range(3)) for c in (env.horizon, env.zenith))
  height = jnp.clip(dy, 0.0, 1.0)
  colour = mix(horizon, zenith, 1.0 - (1.0 - height) ** 4)

  lift = 1.0 / (height + 0.12)
  puff = fractal_noise(dx * lift * 1.2, dz * lift * 1.2, env.seed, 3)
  cover = _threshold(puff, 0.86 - 0.42 * env.clouds, 0.12) * env.clouds * smoothstep(0.0, 0.12, dy)
  colour = mix(colour, tuple(0.25 + 0.75 * h for h in horizon), 0.85 * cover)

  sx, sy = dx / (1.2 - dz) * 90, dy / (1.2 - dz) * 90
  cell = hash_cells(jnp.floor(sx).astype(jnp.int32), jnp.floor(sy).astype(jnp.int32), env.seed)
  ox, oy = sx - jnp.floor(sx) - 0.5, sy - jnp.floor(sy) - 0.5
  star = (cell > 0.965) * jnp.exp(-12.0 * (ox * ox + oy * oy)) * env.stars
  colour = tuple(c + 1.2 * star for c in colour)

  glare = jnp.clip(dx * env.sun[0] + dy * env.sun[1] + dz * env.sun[2], 0.0, 1.0)
  glow = 0.35 * glare**24 * (1.0 - env.indoors)
  outdoors = tuple(c + glow * env.sun_colour[k] for k, c in enumerate(colour))
  wall = mix(horizon, zenith, smoothstep(-0.2, 0.7, dy))
  return mix(outdoors, wall, env.indoors)
