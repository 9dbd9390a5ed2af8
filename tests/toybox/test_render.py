"""The renderer compared with an independent implementation of the scene's geometry in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.toybox import intersect, render
from dreamjax.toybox import scene as scene_lib
from dreamjax.toybox.scene import Owner


def at(tree, i):
  return jax.tree.map(lambda x: x[i], tree)


def surface_distance(scene, points):
  """How far points are from a scene's nearest surface: numpy, by Newton's step on each part's implicit function."""
  best = np.abs(points[:, 1])  # the ground
  owner = np.full(len(points), -1)
  for parts, is_box in ((scene.quadrics, False), (scene.boxes, True)):
    parts = jax.tree.map(np.asarray, parts)
    for k in np.flatnonzero(parts.radii.min(-1) > 0):
      u = (points - parts.centre[k]) @ parts.axes[k].T / parts.radii[k]
      smallest = parts.radii[k].min()
      if is_box:
        inside = np.max(np.abs(u), axis=1) - 1
        distance = np.abs(inside) * np.where(inside > 0, parts.radii[k].max(), smallest)
      else:
        a, b, c, capped = parts.profile[k]
        r2 = u[:, 0] ** 2 + u[:, 2] ** 2
        value = r2 - (a + b * u[:, 1] + c * u[:, 1] ** 2)
        gradient = np.stack([2 * u[:, 0], -(b + 2 * c * u[:, 1]), 2 * u[:, 2]], 1) / parts.radii[k]
        side = np.abs(value) / np.maximum(np.linalg.norm(gradient, axis=1), 1e-6)
        side = np.where(np.abs(u[:, 1]) <= 1.001, side, np.inf)
        cap = np.where(value <= 1e-3, np.abs(np.abs(u[:, 1]) - 1) * parts.radii[k, 1], np.inf) if capped else np.inf
        distance = np.minimum(side, cap)
      closer = distance < best
      best, owner = np.where(closer, distance, best), np.where(closer, parts.owner[k], owner)
  return best, owner


def pixel_points(scene, frame):
  """The scene points at the pixels' centres, and their positions in the image."""
  size = frame.depth.shape[0]
  rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
  xy = jnp.asarray((np.stack([columns, rows], -1).reshape(-1, 2) + 0.5) / size, jnp.float32)
  return np.asarray(render.unproject(scene.camera, xy, frame.depth.reshape(-1))), np.asarray(xy)


def test_depth_puts_every_pixel_on_a_surface(scenes, frames):
  for i in range(8):
    scene, frame = at(scenes, i), at(frames, i)
    points, _ = pixel_points(scene, frame)
    solid = np.asarray(frame.depth).reshape(-1) < 30  # beyond, float32 and grazing rays are inaccurate
    distance, _ = surface_distance(scene, points[solid])
    assert solid.mean() > 0.3
    assert np.quantile(distance, 0.99) < 2e-3
    assert distance.max() < 2e-2


def test_projection_inverts_unprojection(scenes, frames):
  scene, frame = at(scenes, 1), at(frames, 1)
  points, xy = pixel_points(scene, frame)
  back, depth = render.project(scene.camera, jnp.asarray(points))
  near = np.asarray(frame.depth).reshape(-1) < 100
  np.testing.assert_allclose(np.asarray(back)[near], xy[near], atol=1e-4)
  np.testing.assert_allclose(np.asarray(depth)[near], np.asarray(frame.depth).reshape(-1)[near], rtol=1e-4)


def test_mask_is_where_the_subject_is_nearest(scenes, frames, draw):
  def without_subject(parts):
    return parts.replace(radii=jnp.where((parts.owner == Owner.SUBJECT)[..., None], 0.0, parts.radii))

  empty = draw(scenes.replace(quadrics=without_subject(scenes.quadrics), boxes=without_subject(scenes.boxes)))
  further, mask = np.asarray(empty.depth / frames.depth), np.asarray(frames.mask) > 0.5
  assert not np.asarray(empty.mask).any()
  assert mask[further > 1.001].all() and (further[mask] > 1.00001).all()  # a foot may nearly touch the ground
  assert mask.mean((1, 2)).min() > 0.03


def test_normals_follow_from_depth(scenes, frames):
  """Where depth is smooth, the normal is the cross product of its differences."""
  scene, frame = at(scenes, 2), at(frames, 2)
  size = frame.depth.shape[0]
  points = pixel_points(scene, frame)[0].reshape(size, size, 3)
  dx, dy = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
  expected = np.cross(dy, dx)
  expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
  normal = np.asarray(frame.normal)[1:-1, 1:-1]
  subject = np.asarray(frame.mask) > 0.5
  inner = subject[1:-1, 1:-1] & subject[1:-1, 2:] & subject[1:-1, :-2] & subject[2:, 1:-1] & subject[:-2, 1:-1]
  agreement = np.sum(expected * normal, -1)[inner]
  assert inner.sum() > 30
  assert np.median(agreement) > 0.97
  np.testing.assert_allclose(np.linalg.norm(np.asarray(frames.normal), axis=-1), 1.0, atol=1e-3)


def test_visible_keypoints_lie_on_the_mask(scenes, frames):
  seen = 0
  for i in range(8):
    mask = np.asarray(frames.mask[i]) > 0.5
    mask = np.pad(mask, 1)
    grown = np.max([np.roll(mask, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)[1:-1, 1:-1]
    for (x, y), visible in zip(np.asarray(frames.keypoints[i]), np.asarray(frames.visible[i]), strict=True):
      if visible:
        seen += 1
        assert grown[int(y * mask[1:-1].shape[0]), int(x * (mask.shape[1] - 2))]
  assert seen >= 8


def test_a_wall_in_front_of_the_camera_hides_the_keypoints(scenes, frames, draw):
  """The first box becomes a wall halfway between camera and subject."""
  boxes, camera = scenes.boxes, scenes.camera
  right, up, forward = jax.vmap(render.camera_axes)(camera)
  wall = boxes.replace(
    centre=boxes.centre.at[:, 0].set(camera.position + 0.5 * forward),
    axes=boxes.axes.at[:, 0].set(jnp.stack([right, up, -forward], 1)),
    radii=boxes.radii.at[:, 0].set(jnp.array([2.0, 2.0, 0.01])),
    owner=boxes.owner.at[:, 0].set(int(Owner.BACKGROUND)),
  )
  hidden = draw(scenes.replace(boxes=wall))
  assert np.asarray(frames.visible).any() and not np.asarray(hidden.visible).any()
  assert not np.asarray(hidden.mask).any()
  np.testing.assert_allclose(np.asarray(hidden.depth), 0.49, atol=1e-3)


def test_what_is_in_shadow_is_darker(scenes, frames, draw):
  """Without its shadow casters' own colour changing, ground behind the subject is lit once the subject is gone."""
  sunny = [i for i in range(8) if float(scenes.environment.mirror[i]) == 0]
  removed = scenes.replace(**{
    name: (p := getattr(scenes, name)).replace(radii=jnp.zeros_like(p.radii)) for name in ("quadrics", "boxes")
  })  # fmt: skip
  bare = draw(removed)
  darker = brighter = 0
  for i in sunny:
    same = np.abs(np.asarray(bare.depth[i] / frames.depth[i]) - 1) < 1e-3
    same &= np.asarray(frames.depth[i]) < 30
    change = (np.asarray(frames.rgb[i]) - np.asarray(bare.rgb[i])).mean(-1)[same]
    darker, brighter = darker + np.sum(change < -0.08), brighter + np.sum(change > 0.02)
  assert darker > 50 and brighter < 0.02 * darker


@pytest.fixture(scope="module")
def smooth(scenes):
  """The scenes rendered with several rays per pixel, as users get them, so that no single grazing ray decides."""
  return render.render_batch(scenes, 32)


@pytest.mark.parametrize("size", [1, 3])
def test_an_image_does_not_depend_on_its_batch(scenes, smooth, size):
  part = render.render_batch(jax.tree.map(lambda x: x[5 : 5 + size], scenes), 32)
  np.testing.assert_allclose(np.asarray(part.rgb), np.asarray(smooth.rgb)[5 : 5 + size], atol=1 / 255)
  np.testing.assert_allclose(np.asarray(part.mask), np.asarray(smooth.mask)[5 : 5 + size], atol=1e-6)
  np.testing.assert_array_equal(np.asarray(part.visible), np.asarray(smooth.visible)[5 : 5 + size])


def test_an_image_does_not_depend_on_the_number_of_devices(scenes, smooth):
  mesh = jax.make_mesh((8,), ("data",))
  split = jax.NamedSharding(mesh, jax.P("data"))
  drawn = jax.jit(jax.shard_map(
    lambda scenes: render.render_batch(scenes, 32).rgb,
    mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"), check_vma=False,
  ))(jax.device_put(scenes, split))  # fmt: skip
  assert len(drawn.sharding.device_set) == 8
  np.testing.assert_allclose(np.asarray(drawn), np.asarray(smooth.rgb), atol=1 / 255)


def one_part(profile=scene_lib.ELLIPSOID, radii=(0.4, 0.7, 0.3), seed=0):
  """A single rotated part, as `Primitives`."""
  q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
  q *= np.sign(np.linalg.det(q))
  return scene_lib.Primitives(
    centre=jnp.array([[0.1, 0.2, -0.3]]), axes=jnp.asarray(q, jnp.float32)[None], radii=jnp.array([radii]),
    profile=jnp.array([profile]), colour=jnp.ones((1, 2, 3)), pattern=jnp.zeros(1, jnp.int32),
    pattern_params=jnp.ones((1, 4)), gloss=jnp.zeros(1), glow=jnp.zeros(1), owner=jnp.zeros(1, jnp.int32),
  )  # fmt: skip


def inside(parts, points, is_box):
  """Whether points are in the part, by its definition."""
  u = (points - np.asarray(parts.centre[0])) @ np.asarray(parts.axes[0]).T / np.asarray(parts.radii[0])
  if is_box:
    return np.max(np.abs(u), -1) <= 1
  a, b, c, _ = np.asarray(parts.profile[0])
  y = u[..., 1]
  return (np.abs(y) <= 1) & (u[..., 0] ** 2 + u[..., 2] ** 2 <= a + b * y + c * y * y)


PROFILES = {
  "ellipsoid": scene_lib.ELLIPSOID, "cylinder": scene_lib.CYLINDER, "cone": scene_lib.CONE, "dome": scene_lib.DOME,
  "barrel": scene_lib.BARREL, "vase": scene_lib.VASE, "frustum": scene_lib.frustum(0.5, 1.2),
}  # fmt: skip


@pytest.mark.parametrize("shape", [*PROFILES, "box", "plain ellipsoid"])
def test_rays_hit_each_solid_where_they_enter_it(shape):
  """Compared with marching along the rays in small steps and testing whether each point is inside."""
  is_box = shape == "box"
  parts = one_part(PROFILES.get(shape, scene_lib.ELLIPSOID))
  rng = np.random.default_rng(1)
  origin = rng.normal(size=(400, 3))
  origin *= 3 / np.linalg.norm(origin, axis=1, keepdims=True)
  aim = rng.uniform(-0.7, 0.7, size=(400, 3)) - origin
  direction = aim / np.linalg.norm(aim, axis=1, keepdims=True)
  hit = {"box": intersect.hit_box, "plain ellipsoid": intersect.hit_ellipsoid}.get(shape, intersect.hit_quadric)
  rays = [tuple(jnp.asarray(v[:, k], jnp.float32) for k in range(3)) for v in (origin, direction)]
  t = np.asarray(hit(intersect.local(parts), jnp.asarray(0), *rays))

  steps = np.linspace(0, 6, 6001)
  marched = inside(parts, origin[:, None] + steps[None, :, None] * direction[:, None], is_box)
  first = np.where(marched.any(1), steps[marched.argmax(1)], intersect.FAR)
  thick = marched.sum(1) != 1  # a ray that grazes may slip between two steps
  assert 50 < (first < intersect.FAR).sum() < 400
  both = thick & (first < intersect.FAR)
  np.testing.assert_allclose(t[both], first[both], atol=2e-3)
  assert np.mean((t < intersect.FAR) == (first < intersect.FAR)) > 0.98


def test_rays_leave_a_solid_from_inside():
  parts = one_part(scene_lib.ELLIPSOID)
  origin = tuple(jnp.full(1, v) for v in (0.1, 0.2, -0.3))
  direction = tuple(jnp.full(1, float(v)) for v in parts.axes[0, 1])
  ready = intersect.local(parts)
  np.testing.assert_allclose(intersect.hit_quadric(ready, jnp.asarray(0), origin, direction), 0.7, rtol=1e-5)
  np.testing.assert_allclose(intersect.hit_box(ready, jnp.asarray(0), origin, direction), 0.7, rtol=1e-5)


def test_compacting_moves_the_absent_parts_to_the_end_and_returns_the_new_indices(scenes):
  parts = at(scenes.quadrics, 0)
  shuffled = jax.tree.map(lambda x: x[::-1], parts)
  compacted, new = intersect.compact(shuffled)
  there = np.asarray(compacted.radii).min(-1) > 0
  assert (np.diff(there.astype(int)) <= 0).all()
  np.testing.assert_array_equal(np.asarray(compacted.centre)[np.asarray(new)], np.asarray(shuffled.centre))


@pytest.mark.parametrize(("resolution", "supersample"), [(0, 2), (-3, 2), (16, 0)])
def test_sizes_below_one_are_refused(scenes, resolution, supersample):
  with pytest.raises(ValueError, match="at least 1"):
    render.render(at(scenes, 0), resolution, supersample)
