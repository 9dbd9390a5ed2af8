"""Rays against primitives, in closed form.

Rays are tuples (x, y, z) of arrays rather than arrays of shape (..., 3), and one primitive at a time is tested against
all
rays: every line below is then one fused pass over contiguous memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.toybox import scene as scene_lib

FAR = 1e4
_NEAR = 1e-3  # hits closer than this are the surface that the ray left
_EPS = 1e-7

Vec = tuple[Array | float, ...]  # of three


def dot(a: Vec, b: Vec) -> Array:
  """Scalar product."""
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def normalise(a: Vec) -> Vec:
  """The vector scaled to length 1."""
  scale = jax.lax.rsqrt(jnp.maximum(dot(a, a), 1e-12))
  return (a[0] * scale, a[1] * scale, a[2] * scale)


def along(origin: Vec, direction: Vec, t: Array) -> Vec:
  """The point at distance `t` on a ray."""
  return tuple(o + t * d for o, d in zip(origin, direction, strict=True))


def _safe(x: Array) -> Array:
  """x kept away from 0, so that it can be divided by."""
  return jnp.where(jnp.abs(x) < _EPS, jnp.where(x < 0, -_EPS, _EPS), x)


def _to_local(parts: scene_lib.Primitives, i: Array, v: Vec) -> Vec:
  """A direction in the frame of part `i`, scaled so that its radii are 1."""
  m = parts.axes[i] / jnp.maximum(parts.radii[i], _EPS)[:, None]
  return tuple(m[k, 0] * v[0] + m[k, 1] * v[1] + m[k, 2] * v[2] for k in range(3))


def hit_quadric(parts: scene_lib.Primitives, i: Array, origin: Vec, direction: Vec) -> Array:
  """Distance to quadric `i` along rays (in lengths of `direction`), `FAR` where it is missed.

  With p + t q the ray in the part's frame, x^2 + z^2 = a + b y + c y^2 becomes A t^2 + 2 B t + C = 0.
  """
  c = parts.centre[i]
  px, py, pz = _to_local(parts, i, tuple(origin[k] - c[k] for k in range(3)))
  qx, qy, qz = _to_local(parts, i, direction)
  a, b, c, capped = (parts.profile[i, k] for k in range(4))

  qa = _safe(qx * qx + qz * qz - c * qy * qy)
  qb = px * qx + pz * qz - (0.5 * b + c * py) * qy
  qc = px * px + pz * pz - a - (b + c * py) * py
  disc = qb * qb - qa * qc
  root = jnp.sqrt(jnp.maximum(disc, 0.0))

  def side(t):
    return jnp.where((disc > 0) & (t > _NEAR) & (jnp.abs(py + t * qy) <= 1), t, FAR)

  def cap(y, radius_squared):
    t = (y - py) / _safe(qy)
    x, z = px + t * qx, pz + t * qz
    return jnp.where((t > _NEAR) & (x * x + z * z <= radius_squared * capped), t, FAR)

  sides = jnp.minimum(side((-qb - root) / qa), side((-qb + root) / qa))
  return jnp.minimum(sides, jnp.minimum(cap(-1.0, a - b + c), cap(1.0, a + b + c)))


def hit_box(parts: scene_lib.Primitives, i: Array, origin: Vec, direction: Vec) -> Array:
  """Distance to box `i` along rays, `FAR` where it is missed (the slab method)."""
  c = parts.centre[i]
  p = _to_local(parts, i, tuple(origin[k] - c[k] for k in range(3)))
  q = _to_local(parts, i, direction)
  enter, leave = -FAR, FAR
  for k in range(3):
    inverse = 1.0 / _safe(q[k])
    middle, half = -p[k] * inverse, jnp.abs(inverse)
    enter, leave = jnp.maximum(enter, middle - half), jnp.minimum(leave, middle + half)
  t = jnp.where(enter > _NEAR, enter, leave)
  return jnp.where((enter <= leave) & (t > _NEAR), t, FAR)


class Hit(NamedTuple):
  """Nearest hit of each ray: distance (`FAR` for none) and part (boxes count on after the quadrics)."""

  t: Float[Array, " r"]
  part: Int[Array, " r"]


def _count(parts: scene_lib.Primitives) -> Array:
  """One more than the last part that is there. The parts behind it are never tested."""
  there = jnp.min(parts.radii, axis=-1) > 0
  return jnp.max(jnp.where(there, jnp.arange(there.shape[0]) + 1, 0))


def compact(parts: scene_lib.Primitives) -> tuple[scene_lib.Primitives, Array]:
  """The parts with those that are not there moved behind the others, and each old part's new index."""
  there = jnp.min(parts.radii, axis=-1) > 0
  new = jnp.where(there, jnp.cumsum(there) - 1, jnp.sum(there) + jnp.cumsum(~there) - 1)
  return jax.tree.map(lambda x: jnp.zeros_like(x).at[new].set(x, unique_indices=True), parts), new


def nearest(scene: scene_lib.Scene, origin: Vec, direction: Vec) -> Hit:
  """The nearest part along each ray."""

  def sweep(parts, hit, first, best):
    def body(i, best):
      t = hit(parts, i, origin, direction)
      closer = (t < best.t) & (jnp.min(parts.radii[i]) > 0)
      return Hit(jnp.where(closer, t, best.t), jnp.where(closer, i + first, best.part))

    return jax.lax.fori_loop(0, _count(parts), body, best)

  zero = jnp.zeros(jnp.broadcast_shapes(*(jnp.shape(x) for x in (*origin, *direction))))
  best = Hit(zero + FAR, zero.astype(jnp.int32))
  best = sweep(scene.quadrics, hit_quadric, 0, best)
  return sweep(scene.boxes, hit_box, scene.quadrics.pattern.shape[0], best)


def occluded(scene: scene_lib.Scene, origin: Vec, direction: Vec) -> Array:
  """Whether any part lies along each ray."""
  return nearest(scene, origin, direction).t < FAR
