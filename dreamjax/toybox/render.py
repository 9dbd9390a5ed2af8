"""Renders scenes: a primary and a shadow ray per sample, and a reflected one where the ground is a mirror."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.toybox import intersect, surfaces
from dreamjax.toybox.batches import one_by_one
from dreamjax.toybox.intersect import FAR, Vec, along, dot, normalise
from dreamjax.toybox.noise import smoothstep
from dreamjax.toybox.scene import Camera, Frame, Owner, Scene

SUPERSAMPLE = 2
_SHADE = 0.18  # share of the sunlight that reaches shadows, so that toys in them can be recognised


def camera_axes(camera: Camera) -> tuple[Array, Array, Array]:
  """Returns the camera's unit vectors to the right, up and forward."""
  forward = camera.target - camera.position
  forward = forward / jnp.linalg.norm(forward)
  right = jnp.cross(forward, jnp.array([0.0, 1.0, 0.0]))
  right = right / jnp.linalg.norm(right)
  return right, jnp.cross(right, forward), forward


def project(camera: Camera, points: Float[Array, "k 3"]) -> tuple[Float[Array, "k 2"], Float[Array, " k"]]:
  """Projects points to positions (x, y) in the image, in [0, 1] from its upper left corner, and their depth."""
  right, up, forward = camera_axes(camera)
  offset = points - camera.position[None]
  depth = offset @ forward
  half = jnp.tan(camera.fov / 2) * jnp.maximum(depth, 1e-6)
  return jnp.stack([0.5 + 0.5 * (offset @ right) / half, 0.5 - 0.5 * (offset @ up) / half], axis=-1), depth


def unproject(camera: Camera, xy: Float[Array, "k 2"], depth: Float[Array, " k"]) -> Float[Array, "k 3"]:
  """Inverts `project`: returns the scene points at positions in the image and depths."""
  right, up, forward = camera_axes(camera)
  half = jnp.tan(camera.fov / 2)
  x, y = (2 * xy[:, 0] - 1) * half, (1 - 2 * xy[:, 1]) * half
  return camera.position[None] + depth[:, None] * (forward[None] + x[:, None] * right[None] + y[:, None] * up[None])


def _camera_rays(camera: Camera, size: int) -> tuple[Vec, Vec]:
  """Rays through the centres of size x size squares of the image, row by row."""
  right, up, forward = camera_axes(camera)
  half = jnp.tan(camera.fov / 2)
  steps = ((jnp.arange(size, dtype=jnp.float32) + 0.5) / size * 2 - 1) * half
  x, y = jnp.tile(steps, size), jnp.repeat(-steps, size)
  direction = normalise(tuple(forward[k] + x * right[k] + y * up[k] for k in range(3)))
  return tuple(camera.position[k] for k in range(3)), direction


def _part_surface(scene: Scene, part: Array, point: Vec) -> tuple[Vec, Vec, Array, Array]:
  """Colour, unit normal, gloss and glow of part `part` at `point`, one part per ray."""
  parts = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), scene.quadrics, scene.boxes)
  axes, radii = parts.axes, jnp.maximum(parts.radii, 1e-7)
  some = jnp.max(parts.radii) > 0

  def place():
    offset = tuple(point[k] - parts.centre[part, k] for k in range(3))
    return tuple(sum(axes[part, i, k] * offset[k] for k in range(3)) for i in range(3))

  q = surfaces.apart(some, place)
  u = tuple(q[k] / radii[part, k] for k in range(3))

  def local_normal():
    a, b, c, capped = (parts.profile[part, k] for k in range(4))
    on_cap = (capped > 0) & (jnp.abs(u[1]) > 0.999) & (u[0] ** 2 + u[2] ** 2 < 0.999 * (a + (b + c * u[1]) * u[1]))
    cap, side = (0.0 * u[1], jnp.sign(u[1]), 0.0 * u[1]), (u[0], -(0.5 * b + c * u[1]), u[2])
    largest = jnp.maximum(jnp.maximum(jnp.abs(u[0]), jnp.abs(u[1])), jnp.abs(u[2]))
    is_box = part >= scene.quadrics.pattern.shape[0]
    return tuple(
      jnp.where(
        is_box,
        jnp.where(jnp.abs(u[k]) >= largest, jnp.sign(u[k]), 0.0),
        jnp.where(on_cap, cap[k], side[k]) / radii[part, k],
      )
      for k in range(3)
    )

  local = surfaces.apart(some, local_normal)
  turned = tuple(sum(axes[part, i, k] * local[i] for i in range(3)) for k in range(3))
  normal = surfaces.apart(some, lambda: normalise(turned))
  kind, params = parts.pattern[part], tuple(parts.pattern_params[part, k] for k in range(4))
  weights = surfaces.apart(some, lambda: surfaces.pattern_weights(kind, u, q, params))
  first, second = (tuple(parts.colour[part, i, k] for k in range(3)) for i in range(2))
  colour = surfaces.pattern_colour(kind, u[1], params, weights, first, second)
  return colour, normal, parts.gloss[part], parts.glow[part]


def _footprint(scene: Scene) -> tuple[Array, Array, Array]:
  """Centre (x, z) and radius of the subject's outline on the ground, for its soft contact shadow."""
  quadrics, boxes = (
    jnp.where(((p.owner == Owner.SUBJECT) & (jnp.min(p.radii, axis=-1) > 0))[:, None], p.centre, jnp.nan)
    for p in (scene.quadrics, scene.boxes)
  )
  centres = jnp.concatenate([quadrics, boxes])[:, ::2]
  low, high = jnp.nanmin(centres, axis=0), jnp.nanmax(centres, axis=0)
  middle = jnp.nan_to_num((low + high) / 2)
  return middle[0], middle[1], jnp.nan_to_num(jnp.max(high - low) / 2) + 0.15


def _shade(scene: Scene, origin: Vec, direction: Vec, hit: intersect.Hit) -> tuple[Vec, Array, Vec, Array]:
  """The light along rays: (colour, distance, normal, whether they hit the ground)."""
  env = scene.environment
  down = jnp.where(direction[1] < -1e-4, direction[1], -1e-4)
  ground_t = jnp.where(direction[1] < -1e-4, -origin[1] / down, FAR)
  on_ground = ground_t < hit.t
  t = jnp.minimum(hit.t, ground_t)
  is_sky = t >= 0.5 * FAR
  point = along(origin, direction, jnp.minimum(t, 0.5 * FAR))

  colour, normal, gloss, glow = _part_surface(scene, hit.part, point)
  flip = jnp.where(dot(normal, direction) > 0, -1.0, 1.0)
  normal = surfaces.scale(normal, flip)
  ground_colour, ground_normal = surfaces.ground(env, point[0], point[2], t)
  colour = tuple(jnp.where(on_ground, g, c) for g, c in zip(ground_colour, colour, strict=True))
  normal = tuple(jnp.where(on_ground, g, n) for g, n in zip(ground_normal, normal, strict=True))
  gloss, glow = jnp.where(on_ground, 0.0, gloss), jnp.where(on_ground, 0.0, glow)

  sun = tuple(env.sun[k] for k in range(3))
  lifted = along(point, normal, jnp.full_like(t, 2e-3))
  lit = jnp.where(intersect.occluded(scene, lifted, sun), _SHADE, 1.0)
  diffuse = jnp.clip(dot(normal, sun), 0.0, 1.0) * lit
  half = normalise(tuple(s - d for s, d in zip(sun, direction, strict=True)))
  sharpness = 8.0 + 90.0 * gloss
  specular = gloss * (0.2 + 0.8 * gloss) * jnp.clip(dot(normal, half), 0.0, 1.0) ** sharpness * lit

  middle_x, middle_z, radius = _footprint(scene)
  near = ((point[0] - middle_x) ** 2 + (point[2] - middle_z) ** 2) / radius**2
  contact = jnp.where(on_ground, 1.0 - 0.5 * jnp.exp(-near), 0.55 + 0.45 * smoothstep(0.0, 0.6, point[1]))
  hemisphere = (0.62 + 0.38 * normal[1]) * contact

  facing = jnp.clip(-dot(normal, direction), 0.0, 1.0)
  fresnel = (1.0 - facing) ** 4
  mirrored = tuple(d + 2.0 * facing * n for d, n in zip(direction, normal, strict=True))
  # One evaluation of the sky serves both: where a ray hits the sky, nothing reflects it.
  skyward = tuple(jnp.where(is_sky, d, m) for d, m in zip(direction, mirrored, strict=True))
  above = surfaces.apart(env.haze > -1, lambda: surfaces.sky(env, skyward))
  shine = gloss * (0.06 + 0.5 * fresnel)
  shaded = tuple(
    colour[k] * (env.sun_colour[k] * diffuse + env.ambient[k] * hemisphere + 1.4 * glow)
    + specular * env.sun_colour[k]
    + shine * (above[k] - colour[k] * 0.3)
    for k in range(3)
  )
  haze = 1.0 - jnp.exp(-env.haze * jnp.maximum(t - 4.0, 0.0))
  shaded = surfaces.mix(shaded, tuple(env.horizon[k] for k in range(3)), haze)
  colour = tuple(jnp.where(is_sky, s, c) for s, c in zip(above, shaded, strict=True))
  normal = tuple(jnp.where(is_sky, -d, n) for d, n in zip(direction, normal, strict=True))
  return colour, jnp.where(is_sky, FAR, t), normal, on_ground & ~is_sky


def _bounce(
  scene: Scene, origin: Vec, direction: Vec, t: Array, normal: Vec, on_ground: Array
) -> tuple[Vec, Vec, Array]:
  """The rays that the ground mirrors, and how strongly: (origin, direction, strength)."""
  point = along(origin, direction, t)
  tilt = dot(direction, normal)
  mirrored = tuple(d - 2.0 * tilt * n for d, n in zip(direction, normal, strict=True))
  mirrored = normalise((mirrored[0], jnp.abs(mirrored[1]), mirrored[2]))
  strength = scene.environment.mirror * (0.55 + 0.45 * (1.0 - jnp.clip(-tilt, 0.0, 1.0)) ** 3)
  return (point[0], jnp.full_like(t, 2e-3), point[2]), mirrored, jnp.where(on_ground, strength, 0.0)


def _keypoints(scene: Scene) -> tuple[Float[Array, "k 2"], Array]:
  """Positions of the subject's keypoints in the image, and whether they are visible."""
  xy, depth = project(scene.camera, scene.keypoints)
  origin = tuple(scene.camera.position[k] for k in range(3))
  towards = normalise(tuple(scene.keypoints[:, k] - origin[k] for k in range(3)))
  first = intersect.nearest(scene, origin, towards).part == scene.keypoint_parts
  inside = jnp.all((xy >= 0) & (xy < 1), axis=-1) & (depth > 0)
  return xy, first & inside & (scene.keypoint_parts >= 0)


def _to_srgb(x: Array) -> Array:
  """Converts linear light to display values in [0, 1], with a soft shoulder for what is brighter than white."""
  x = jnp.where(x < 0.75, x, 1.0 - 0.25 * jnp.exp(-(x - 0.75) / 0.25))
  return jnp.clip(x, 0.0, 1.0) ** (1 / 2.2)


def render(scene: Scene, resolution: int, supersample: int = SUPERSAMPLE) -> Frame:
  """Renders a scene.

  Pure and jittable. To render many, prefer `render_batch` to `jax.vmap`: under `vmap` every image takes as long as the
  most crowded scene of the batch, and as every kind of ground together.

  Args:
    scene: without batch axis.
    resolution: height and width in pixels; static.
    supersample: a pixel is the mean of supersample x supersample rays; static.

  Returns:
    The image and its ground truth.

  Raises:
    ValueError: if `resolution` or `supersample` is below 1.
  """
  if resolution < 1 or supersample < 1:
    raise ValueError(f"resolution and supersample must be at least 1, not {resolution} and {supersample}")
  camera_origin, camera_direction = _camera_rays(scene.camera, resolution * supersample)
  flat = jnp.zeros_like(camera_direction[0])
  origin = tuple(flat + x for x in camera_origin)
  nothing = (flat, flat, flat)

  def pass_(i, state):
    """Adds the light along the camera's rays (i = 0), then that along their reflections at the ground (i = 1)."""
    (origin, direction, weight, colour), first = state
    hit = intersect.nearest(scene, origin, direction)
    light, t, normal, on_ground = _shade(scene, origin, direction, hit)
    mirrored_origin, mirrored_direction, strength = _bounce(scene, origin, direction, t, normal, on_ground)
    colour = tuple(
      c + weight * (1.0 - jnp.where(i == 0, strength, 0.0)) * s for c, s in zip(colour, light, strict=True)
    )
    part = jnp.where(on_ground | (hit.t >= FAR), -1, hit.part)
    first = jax.tree.map(lambda old, new: jnp.where(i == 0, new, old), first, (t, normal, part))
    return (mirrored_origin, mirrored_direction, strength, colour), first

  rays = (origin, camera_direction, flat + 1.0, nothing)
  passes = jnp.where(scene.environment.mirror > 0, 2, 1)
  (_, _, _, colour), (t, normal, part) = jax.lax.fori_loop(
    0, passes, pass_, (rays, (flat, nothing, jnp.zeros_like(flat, jnp.int32)))
  )  # fmt: skip
  direction = camera_direction

  forward = camera_axes(scene.camera)[2]
  depth = jnp.where(t < FAR, t * dot(direction, tuple(forward[k] for k in range(3))), FAR)
  owner = jnp.concatenate([scene.quadrics.owner, scene.boxes.owner])[part]
  owner = jnp.where(part >= 0, owner, Owner.BACKGROUND)

  def pixels(x: Array) -> Array:  # [rays] -> [h, w, samples]
    x = x.reshape(resolution, supersample, resolution, supersample)
    return x.transpose(0, 2, 1, 3).reshape(resolution, resolution, supersample**2)

  def share(where: Array) -> Array:
    return pixels(jnp.where(where, 1.0, 0.0)).mean(-1)

  depth, normal = pixels(depth), jnp.stack([pixels(n) for n in normal], axis=-1)
  front = jnp.argmin(depth, axis=-1)
  keypoints, visible = _keypoints(scene)
  return Frame(
    rgb=jnp.stack([pixels(_to_srgb(c)).mean(-1) for c in colour], axis=-1),
    depth=jnp.min(depth, axis=-1),
    mask=share(owner == Owner.SUBJECT),
    foreground=share(owner != Owner.BACKGROUND),
    normal=jnp.take_along_axis(normal, front[..., None, None], axis=2)[:, :, 0],
    keypoints=keypoints,
    visible=visible,
  )


@functools.partial(jax.jit, static_argnames=("resolution", "supersample"))
def render_batch(scenes: Scene, resolution: int, supersample: int = SUPERSAMPLE) -> Frame:
  """Renders a batch of scenes (a leading axis on every leaf), one after another in one compiled program."""
  return one_by_one(lambda scene: render(scene, resolution, supersample), scenes)
