"""Intersections of rays and primitives, in closed form.

Rays are tuples (x, y, z) of arrays rather than arrays of shape (..., 3), and one primitive at a time is tested against
all rays: every line below is then one fused pass over contiguous memory.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.toybox import scene as scene_lib

FAR = 1e4
_NEAR = 1e-3  # hits closer than this are the surface that the ray left
_EPS = 1e-7
_STRIDE = 2  # parts per step of a loop: each step synchronises threads, each part takes longer to compile

T = TypeVar("T")
Vec = tuple[Array | float, ...]  # (x, y, z)


def dot(a: Vec, b: Vec) -> Array:
  """Computes the scalar product."""
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def normalise(a: Vec) -> Vec:
  """Scales a vector to length 1."""
  scale = jax.lax.rsqrt(jnp.maximum(dot(a, a), 1e-12))
  return (a[0] * scale, a[1] * scale, a[2] * scale)


def along(origin: Vec, direction: Vec, t: Array) -> Vec:
  """Returns the point at distance `t` on a ray."""
  return tuple(o + t * d for o, d in zip(origin, direction, strict=True))


def _safe(x: Array) -> Array:
  """x kept away from 0, so that it can be divided by."""
  return jnp.where(jnp.abs(x) < _EPS, jnp.where(x < 0, -_EPS, _EPS), x)


class _Local(NamedTuple):
  """Parts for the tests below: `to_local` maps scene directions to a part's frame, scaled so that its radii are 1."""

  centre: Float[Array, "n 3"]
  to_local: Float[Array, "n 3 3"]
  profile: Float[Array, "n 4"]


def local(parts: scene_lib.Primitives) -> _Local:
  """Converts parts to what the tests below need."""
  return _Local(parts.centre, parts.axes / jnp.maximum(parts.radii, _EPS)[..., None], parts.profile)


def _ray(parts: _Local, i: Array, origin: Vec, direction: Vec) -> tuple[Vec, Vec]:
  """A ray in the frame of part `i`: (p, q) for the points p + t q."""
  m, c = parts.to_local[i], parts.centre[i]
  offset = tuple(origin[k] - c[k] for k in range(3))
  return tuple(tuple(m[k, 0] * v[0] + m[k, 1] * v[1] + m[k, 2] * v[2] for k in range(3)) for v in (offset, direction))


# Divisions are written as multiplications by a shared reciprocal: XLA stores a quotient that is read twice, while sums
# and products are fused into their readers.


def hit_quadric(parts: _Local, i: Array, origin: Vec, direction: Vec) -> Array:
  """Computes the distance to quadric `i` along rays (in lengths of `direction`), `FAR` where it is missed.

  With p + t q the ray in the part's frame, x^2 + z^2 = a + b y + c y^2 becomes A t^2 + 2 B t + C = 0.
  """
  (px, py, pz), (qx, qy, qz) = _ray(parts, i, origin, direction)
  a, b, c, capped = (parts.profile[i, k] for k in range(4))
  inverse = 1.0 / _safe(qx * qx + qz * qz - c * qy * qy)
  middle = -(px * qx + pz * qz - (0.5 * b + c * py) * qy) * inverse
  disc = middle * middle - (px * px + pz * pz - a - (b + c * py) * py) * inverse
  half = jnp.sqrt(jnp.maximum(disc, 0.0))
  inverse_y = 1.0 / _safe(qy)

  def side(t: Array) -> Array:
    return jnp.where((disc > 0) & (t > _NEAR) & (jnp.abs(py + t * qy) <= 1), t, FAR)

  def cap(y: float, radius_squared: Array) -> Array:
    t = (y - py) * inverse_y
    x, z = px + t * qx, pz + t * qz
    return jnp.where((t > _NEAR) & (x * x + z * z <= radius_squared * capped), t, FAR)

  sides = jnp.minimum(side(middle - half), side(middle + half))
  return jnp.minimum(sides, jnp.minimum(cap(-1.0, a - b + c), cap(1.0, a + b + c)))


def hit_ellipsoid(parts: _Local, i: Array, origin: Vec, direction: Vec) -> Array:
  """Computes `hit_quadric` for ellipsoids, which most parts are, at half the cost."""
  p, q = _ray(parts, i, origin, direction)
  inverse = 1.0 / jnp.maximum(dot(q, q), _EPS)
  middle = -dot(p, q) * inverse
  disc = middle * middle - (dot(p, p) - 1.0) * inverse
  half = jnp.sqrt(jnp.maximum(disc, 0.0))
  near, far = middle - half, middle + half
  return jnp.where(disc > 0, jnp.where(near > _NEAR, near, jnp.where(far > _NEAR, far, FAR)), FAR)


def hit_box(parts: _Local, i: Array, origin: Vec, direction: Vec) -> Array:
  """Computes the distance to box `i` along rays, `FAR` where it is missed (the slab method)."""
  p, q = _ray(parts, i, origin, direction)
  enter, leave = -FAR, FAR
  for k in range(3):
    inverse = 1.0 / _safe(q[k])
    middle, half = -p[k] * inverse, jnp.abs(inverse)
    enter, leave = jnp.maximum(enter, middle - half), jnp.minimum(leave, middle + half)
  t = jnp.where(enter > _NEAR, enter, leave)
  return jnp.where((enter <= leave) & (t > _NEAR), t, FAR)


def _there(parts: scene_lib.Primitives) -> Array:
  return jnp.min(parts.radii, axis=-1) > 0


def _is_ellipsoid(parts: scene_lib.Primitives) -> Array:
  return jnp.all(parts.profile == jnp.asarray(scene_lib.ELLIPSOID)[None], axis=-1)


def compact(parts: scene_lib.Primitives) -> tuple[scene_lib.Primitives, Array]:
  """Sorts parts into ellipsoids, others and absent ones, and returns them and the new index of each old part."""
  kind = jnp.where(_there(parts), jnp.where(_is_ellipsoid(parts), 0, 1), 2)
  new, start = jnp.zeros_like(kind), 0
  for k in range(3):
    members = kind == k
    new = jnp.where(members, start + jnp.cumsum(members) - 1, new)
    start = start + jnp.sum(members)
  return jax.tree.map(lambda x: jnp.zeros_like(x).at[new].set(x, unique_indices=True), parts), new


def _fold(scene: scene_lib.Scene, origin: Vec, direction: Vec, state: T, visit: Callable[[T, Array, Array], T]) -> T:
  """Computes `state = visit(state, distance, part)` for each part of a scene; boxes are numbered after the quadrics."""

  def sweep(parts, hit, first, last, offset, state):
    there, ready = _there(parts), local(parts)

    def body(step, state):
      for k in range(_STRIDE):
        i = first + _STRIDE * step + k
        state = visit(state, jnp.where(there[i] & (i < last), hit(ready, i, origin, direction), FAR), i + offset)
      return state

    return jax.lax.fori_loop(0, (last - first + _STRIDE - 1) // _STRIDE, body, state)

  # Absent parts after the last present one are never tested, and the ellipsoids before the others are tested cheaply.
  quadrics, boxes = scene.quadrics, scene.boxes
  ellipsoids = jnp.sum(jnp.cumprod((_is_ellipsoid(quadrics) & _there(quadrics)).astype(jnp.int32)))
  last_quadric, last_box = (jnp.max(jnp.where(_there(p), jnp.arange(len(p.gloss)) + 1, 0)) for p in (quadrics, boxes))
  state = sweep(quadrics, hit_ellipsoid, 0, ellipsoids, 0, state)
  state = sweep(quadrics, hit_quadric, ellipsoids, last_quadric, 0, state)
  return sweep(boxes, hit_box, 0, last_box, len(quadrics.gloss), state)


def _per_ray(origin: Vec, direction: Vec) -> Array:
  return jnp.zeros(jnp.broadcast_shapes(*(jnp.shape(x) for x in (*origin, *direction))))


class Hit(NamedTuple):
  """The nearest hit of each ray: distance (`FAR` for none) and part (boxes are numbered after the quadrics)."""

  t: Float[Array, " r"]
  part: Int[Array, " r"]


def nearest(scene: scene_lib.Scene, origin: Vec, direction: Vec) -> Hit:
  """Finds the nearest part along each ray."""
  zero = _per_ray(origin, direction)

  def visit(best: Hit, t: Array, part: Array) -> Hit:
    closer = t < best.t
    return Hit(jnp.where(closer, t, best.t), jnp.where(closer, part, best.part))

  return _fold(scene, origin, direction, Hit(zero + FAR, zero.astype(jnp.int32)), visit)


def occluded(scene: scene_lib.Scene, origin: Vec, direction: Vec) -> Array:
  """Returns whether each ray hits any part."""
  blocked = _per_ray(origin, direction) > 0
  return _fold(scene, origin, direction, blocked, lambda blocked, t, part: blocked | (t < FAR))
