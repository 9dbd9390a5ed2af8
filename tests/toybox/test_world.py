"""Toys, identities and scenes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.toybox import accessories, backgrounds, classes, identity, render, rig, source, vocabulary, world
from dreamjax.toybox.labels import Labels, names
from dreamjax.toybox.scene import Owner


def make_labels(cls, subject, **more):
  """Labels of one image of a subject in the studio, its own where no others are given."""
  number = vocabulary.CLASSES.index(cls)
  who = identity.identity(jnp.asarray(number), jnp.asarray(subject))
  values = dict.fromkeys((f.name for f in Labels.__dataclass_fields__.values()), 0) | {
    "cls": number, "subject": subject, "colour": int(who.colour), "marking": int(who.marking), "other_cls": -1,
    "context": vocabulary.CONTEXTS.index("studio"),
  } | more  # fmt: skip
  return Labels(**{name: jnp.asarray(value, jnp.int32) for name, value in values.items()})


def stack(*trees):
  return jax.tree.map(lambda *x: jnp.stack(x), *trees)


@pytest.mark.parametrize("name", vocabulary.CLASSES)
def test_toys_are_affine_in_their_traits(name):
  rig.check_affine(classes.RIGS[name])


@pytest.mark.parametrize("name", vocabulary.CONTEXTS)
def test_backgrounds_are_affine_in_their_jitter(name):
  rig.check_affine(backgrounds.RIGS[name])


def test_a_builder_that_is_not_affine_is_refused():
  bad = rig.Rig(lambda b, t, v: b.ball((t.a * t.b, 0, 0), 1.0), ("a", "b"))
  with pytest.raises(ValueError, match="part 0"):
    rig.check_affine(bad)


def test_tables_reproduce_the_builders():
  """An instance made on the device equals its builder run on the same traits."""
  tables = classes.tables()
  for number, name in enumerate(vocabulary.CLASSES):
    who = identity.identity(jnp.asarray(number), jnp.asarray(11))
    coat = identity.coat(who, jnp.asarray(number), who.colour, who.marking, jnp.asarray(0.0))
    made = rig.instantiate(tables, jnp.asarray(number), jnp.asarray(0), who.traits, coat, Owner.SUBJECT)
    kind = classes.RIGS[name]
    built = kind.run(kind.variants[0], np.asarray(who.traits)[: len(kind.traits)])
    centres = np.array([p.features[:3] for p in built.parts if not p.box])
    np.testing.assert_allclose(np.asarray(made.quadrics.centre)[: len(centres)], centres, atol=1e-5)


def test_parts_stand_on_rotations(scenes):
  for parts in (scenes.quadrics, scenes.boxes):
    there = np.asarray(parts.radii).min(-1) > 0
    axes = np.asarray(parts.axes)[there]
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.broadcast_to(np.eye(3), axes.shape), atol=1e-4)
    np.testing.assert_allclose(np.linalg.det(axes), 1.0, atol=1e-4)


def test_a_toy_looks_the_same_to_two_cameras(build, draw):
  """Points of the subject that both cameras see have the same colour."""
  labels = stack(*(make_labels(cls, 5) for cls in ("dog", "teapot", "robot", "mushroom")))
  scenes = build(labels, jax.random.split(jax.random.key(1), 4))
  matte = jax.tree.map(lambda x: x, scenes)
  matte = matte.replace(**{
    name: (p := getattr(matte, name)).replace(gloss=jnp.zeros_like(p.gloss)) for name in ("quadrics", "boxes")
  })  # fmt: skip
  offset = matte.camera.position - matte.camera.target
  turned = jnp.stack([offset[:, 2] * 0.35 + offset[:, 0], offset[:, 1] * 1.2, offset[:, 2]], axis=1)
  other = matte.replace(camera=matte.camera.replace(position=matte.camera.target + turned))
  first, second = draw(matte), draw(other)
  size = first.rgb.shape[1]
  for i in range(4):
    rows, columns = np.nonzero(np.asarray(first.mask[i]) > 0.5)
    xy = jnp.asarray((np.stack([columns, rows], 1) + 0.5) / size, jnp.float32)
    cameras = [jax.tree.map(lambda x, i=i: x[i], s.camera) for s in (matte, other)]
    points = render.unproject(cameras[0], xy, first.depth[i][rows, columns])
    there, depth = render.project(cameras[1], points)
    c, r = (np.clip((np.asarray(there)[:, k] * size).astype(int), 0, size - 1) for k in range(2))
    seen = (np.abs(np.asarray(second.depth[i])[r, c] - np.asarray(depth)) < 0.02) & (
      np.asarray(second.mask[i])[r, c] > 0.5
    )
    difference = np.abs(np.asarray(first.rgb[i])[rows, columns] - np.asarray(second.rgb[i])[r, c]).mean(-1)[seen]
    assert seen.sum() > 50
    assert np.median(difference) < 0.02
    assert np.mean(difference < 0.12) > 0.85  # the rest are edges of markings, one pixel wide


def test_recolouring_changes_the_coat_and_nothing_else(build, draw):
  key = jnp.stack([jax.random.key(2)] * 2)
  plain = make_labels("cat", 4, marking=0)
  red, blue = (plain.replace(colour=jnp.asarray(vocabulary.COLOURS.index(c))) for c in ("red", "blue"))
  frames = draw(build(stack(red, blue), key))
  np.testing.assert_array_equal(np.asarray(frames.depth[0]), np.asarray(frames.depth[1]))
  mask = np.asarray(frames.mask[0]) > 0.5
  a, b = (np.median(np.asarray(frames.rgb[i])[mask], axis=0) for i in range(2))
  assert a[0] > 2 * a[2] and b[2] > 2 * b[0]
  np.testing.assert_allclose(np.asarray(frames.rgb[0])[~mask], np.asarray(frames.rgb[1])[~mask], atol=0.02)


def test_properties_and_accessories_are_visible(build, draw):
  """Shiny, cube shaped and every accessory change the image where the toy is."""
  labels = [make_labels("rabbit", 9)]
  labels += [make_labels("rabbit", 9, prop=p) for p in range(1, len(vocabulary.PROPERTIES))]
  labels += [make_labels("rabbit", 9, accessory=a) for a in range(1, len(vocabulary.ACCESSORIES))]
  images = np.asarray(draw(build(stack(*labels), jnp.stack([jax.random.key(3)] * len(labels)))).rgb)
  for i in range(len(images)):
    for j in range(i):
      assert np.mean(np.abs(images[i] - images[j]) > 0.05) > 0.01, (i, j)


def test_the_subject_fills_half_of_the_image(stream, build, draw):
  """Its outline, with what it wears, spans at least half of the image's height or width, and is inside it."""
  labels = stream.labels(jnp.arange(64, 128))
  alone = np.flatnonzero((np.asarray(labels.other_cls) < 0) & (np.asarray(labels.accessory) == 0))[:24]
  scenes = build(jax.tree.map(lambda x: x[alone], labels), jax.random.split(jax.random.key(6), len(alone)))
  for mask in np.asarray(draw(scenes).mask) > 0.5:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 >= 0.5 * len(mask)


def test_a_second_toy_is_next_to_the_subject(build):
  labels = make_labels("dog", 2, other_cls=vocabulary.CLASSES.index("car"), other_subject=7)
  scenes = build(stack(labels, labels), jax.random.split(jax.random.key(8), 2))
  for i in range(2):
    spans = []
    for owner in (Owner.SUBJECT, Owner.OTHER):
      quadrics, boxes = (
        (p := jax.tree.map(lambda x, i=i: x[i], parts)).replace(
          radii=jnp.where((p.owner == owner)[:, None], p.radii, 0.0)
        )
        for parts in (scenes.quadrics, scenes.boxes)
      )
      spans.append(np.asarray(world.bounds(quadrics, boxes)))
    (low, high), (other_low, other_high) = spans
    assert high[0] < other_low[0] or other_high[0] < low[0]
    np.testing.assert_allclose([low[1], other_low[1]], 0.0, atol=0.03)


def test_identities_are_fixed_and_distinct():
  draw = jax.jit(jax.vmap(identity.identity, in_axes=(None, 0)))
  for number in range(len(vocabulary.CLASSES)):
    who = draw(jnp.asarray(number), jnp.arange(200))
    again = draw(jnp.asarray(number), jnp.arange(200))
    jax.tree.map(np.testing.assert_array_equal, who, again)
    assert len(np.unique(np.asarray(who.traits), axis=0)) == 200
    assert len(np.unique(np.asarray(who.colour))) == len(vocabulary.COLOURS)
    freckled = np.asarray(who.marking) == vocabulary.MARKINGS.index("freckled")
    is_face = vocabulary.CLASSES[number] == "face"
    assert freckled.any() == is_face and not (is_face and (np.asarray(who.marking)[~freckled] != 0).any())


def test_one_trait_of_each_group_is_chosen():
  tables = classes.tables()
  for number in range(len(vocabulary.CLASSES)):
    who = jax.vmap(identity.identity, in_axes=(None, 0))(jnp.asarray(number), jnp.arange(50))
    traits, groups = np.asarray(who.traits), tables.group[number]
    for group in range(groups.max() + 1):
      members = traits[:, groups == group]
      np.testing.assert_array_equal(members.sum(1), 1.0)
      assert (members.mean(0) > 0).all()


def test_people_differ_in_at_least_ten_attributes():
  face = classes.RIGS["face"]
  assert len(face.ranges) + len(face.choices) + len(("skin", "eye colour", "hair colour", "freckles")) >= 10
  hair = face.choices[0]
  assert len(hair) >= 6


def test_every_class_has_an_anchor_for_every_accessory():
  tables = classes.tables()
  sizes = tables.geometry[:, :, -1 - len(classes.ANCHORS) : -1, 9:, 0]
  assert (sizes > 0.03).all()
  assert set(accessories.RIGS) == set(vocabulary.ACCESSORIES)


def test_names_are_those_of_the_labels():
  named = names(make_labels("dog", 3, other_cls=5, other_subject=2, context=0))
  assert (named["class"], named["subject"], named["other_class"], named["context"]) == ("dog", 3, "car", "jungle")
  assert names(make_labels("cat", 1))["other_class"] is None


def test_photos_show_one_subject_as_it_is():
  frame, labels = source.photos("dog", source.TRAIN_SUBJECTS + 5, n=3, resolution=32)
  who = identity.identity(jnp.asarray(0), jnp.asarray(source.TRAIN_SUBJECTS + 5))
  assert frame.rgb.shape == (3, 32, 32, 3)
  assert (np.asarray(labels.colour) == int(who.colour)).all() and (np.asarray(labels.accessory) == 0).all()
  assert len(set(np.asarray(labels.context).tolist())) == 3
  assert np.abs(np.asarray(frame.rgb[0]) - np.asarray(frame.rgb[1])).mean() > 0.02


@pytest.mark.parametrize(
  "arguments", [("dragon", 0), ("dog", -1), ("dog", 0, 0), ("dog", 0, 3, 0, 0), ("dog", 0, 3, 0, 32, "cubism")]
)
def test_photos_of_bad_arguments_are_refused(arguments):
  with pytest.raises(ValueError, match="dragon|at least|cubism"):
    source.photos(*arguments)
