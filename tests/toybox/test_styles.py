"""The drawing styles, on a synthetic image: a shaded ball on a floor in front of a blue sky."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.toybox import styles, vocabulary

SIZE = 64
STYLES = range(len(vocabulary.STYLES))


def ball_image(x=0.0, radius=0.55, colour=(0.85, 0.15, 0.1)):
  """The image of a ball, with its depth, normals and mask, in the renderer's format."""
  steps = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
  u, v = np.meshgrid(steps - x, -steps)
  inside = u**2 + v**2 < radius**2
  z = np.sqrt(np.maximum(radius**2 - u**2 - v**2, 0)) / radius
  floor = (v < -0.25) & ~inside
  normal = np.where(inside[..., None], np.stack([u / radius, v / radius, z], -1), [0.0, 0.0, 1.0])
  normal = np.where(floor[..., None], [0.0, 1.0, 0.0], normal)
  depth = np.where(inside, 3 - z, np.where(floor, 1.2 / np.maximum(-v, 0.1), 1e4))
  light = np.clip(normal @ np.array([0.5, 0.6, 0.62]), 0.15, 1)[..., None]
  checks = ((np.floor(u * 5) + np.floor(depth * 3)) % 2)[..., None]
  ground = np.array([0.45, 0.6, 0.3]) * (0.8 + 0.3 * checks)
  sky = np.array([0.5, 0.7, 0.95])
  rgb = np.where(inside[..., None], np.array(colour) * light, np.where(floor[..., None], ground, sky))
  parts = (rgb, depth, normal / np.linalg.norm(normal, axis=-1, keepdims=True), inside)
  return tuple(jnp.asarray(part, jnp.float32) for part in parts)


@pytest.fixture(scope="module")
def draw():
  """Applies a style to each image of a batch: the only compiled program of this file."""

  @jax.jit
  def draw(style, images, seeds):
    def one(args):
      style, image, seed = args
      return styles.apply_style(style, *image, jax.random.key(seed))

    return jax.lax.map(one, (style, images, seeds))

  def batch(style, images, seeds):
    images = jax.tree.map(lambda *x: jnp.stack(x), *images)
    return np.asarray(draw(jnp.asarray(style), images, jnp.asarray(seeds)))

  return batch


@pytest.fixture(scope="module")
def drawings(draw):
  """The ball in every style."""
  return draw(list(STYLES), [ball_image()] * len(STYLES), [0] * len(STYLES))


def test_drawings_are_images(drawings):
  assert np.isfinite(drawings).all() and drawings.min() >= 0 and drawings.max() <= 1
  assert (drawings.std(axis=(1, 2, 3)) > 0.05).all()


def test_a_photo_stays_as_it_is(drawings):
  np.testing.assert_array_equal(drawings[0], np.asarray(ball_image()[0]))


def test_a_key_fixes_the_drawing_and_another_changes_it(draw, drawings):
  again = draw(list(STYLES), [ball_image()] * len(STYLES), [0] * len(STYLES))
  np.testing.assert_array_equal(again, drawings)
  other = draw(list(STYLES), [ball_image()] * len(STYLES), [1] * len(STYLES))
  changed = [np.abs(other[i] - drawings[i]).mean() > 1e-3 for i in STYLES]
  assert sum(changed) >= len(STYLES) - 4  # a few, such as pixel art, have no randomness


def test_styles_differ_from_each_other(drawings):
  for i in STYLES:
    for j in range(i):
      assert np.abs(drawings[i] - drawings[j]).mean() > 0.03, (vocabulary.STYLES[i], vocabulary.STYLES[j])


def test_a_drawing_does_not_depend_on_its_batch(draw, drawings):
  alone = jax.jit(styles.apply_style)
  for i in (1, 2, 13):
    image = alone(jnp.asarray(i), *ball_image(), jax.random.key(0))
    np.testing.assert_allclose(np.asarray(image), drawings[i], atol=1 / 255)


def test_drawings_keep_what_they_show(draw):
  """A small ball on the left and a large one on the right: another seed's drawing is nearest to the same ball's."""
  left, right = ball_image(-0.4, 0.4), ball_image(0.2, 0.7, (0.2, 0.3, 0.85))
  images = [p for _ in STYLES for p in (left, right)]
  first, second = (
    draw([i for i in STYLES for _ in range(2)], images, [seed] * len(images)).reshape(len(STYLES), 2, -1)
    for seed in (3, 4)
  )
  for i in STYLES:
    for k in range(2):
      same, other = (np.abs(first[i, k] - second[i, m]).mean() for m in (k, 1 - k))
      assert same < 0.8 * other, vocabulary.STYLES[i]


@pytest.mark.parametrize("name", ["line drawing", "pencil sketch"])
def test_drawings_in_black_and_white_have_no_colour(drawings, name):
  drawing = drawings[vocabulary.STYLES.index(name)]
  assert np.mean(drawing.max(-1) - drawing.min(-1)) < 0.06


@pytest.mark.parametrize(("name", "strongest", "weakest"), [("blueprint", 2, 0), ("vintage sepia photograph", 0, 2)])
def test_drawings_in_one_hue_have_no_other(drawings, name, strongest, weakest):
  drawing = drawings[vocabulary.STYLES.index(name)]
  assert np.mean(drawing[..., strongest] - drawing[..., weakest] > -0.02) > 0.98
  assert np.mean(drawing[..., strongest] - drawing[..., weakest]) > 0.1


def test_a_sticker_shows_no_background(draw):
  rgb, depth, normal, mask = ball_image()
  other = jnp.where(mask[..., None] > 0, rgb, jnp.asarray([0.9, 0.1, 0.8])[None, None])
  style = vocabulary.STYLES.index("sticker")
  first, second = draw([style] * 2, [(rgb, depth, normal, mask), (other, depth, normal, mask)], [0, 0])
  far = np.zeros((SIZE, SIZE), bool)
  far[:8], far[:, :6], far[:, -6:] = True, True, True
  np.testing.assert_allclose(first[far], second[far], atol=1 / 255)
  assert np.abs(first - second)[np.asarray(mask) == 0].mean() < 0.02


def test_pixel_art_is_made_of_squares(drawings):
  drawing = drawings[vocabulary.STYLES.index("pixel art")]
  blocks = drawing.reshape(32, SIZE // 32, 32, SIZE // 32, 3)
  np.testing.assert_allclose(blocks, np.broadcast_to(blocks[:, :1, :, :1], blocks.shape), atol=1e-6)
  assert len(np.unique(drawing.reshape(-1, 3).round(4), axis=0)) <= 40


def test_neon_shines_in_the_dark(drawings):
  drawing = drawings[vocabulary.STYLES.index("glowing neon")]
  assert np.median(drawing.max(-1)) < 0.35 and drawing.max() > 0.9
