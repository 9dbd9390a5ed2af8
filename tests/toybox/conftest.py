"""Scenes that several test files share, each batch rendered by one compiled program."""

import jax
import jax.numpy as jnp
import pytest

from dreamjax.parallel.batches import batch_indices
from dreamjax.toybox import render, source, world

RESOLUTION = 48
EIGHT = 8


def in_eights(function):
  """A batched function that is compiled once, for batches of eight; the last one is padded."""
  program = jax.jit(function)

  def run(*inputs):
    parts = []
    for count, places in batch_indices(len(jax.tree.leaves(inputs)[0]), EIGHT):
      part = program(*jax.tree.map(lambda x, places=places: x[places], inputs))
      parts.append(jax.tree.map(lambda x, count=count: x[:count], part))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

  return run


@pytest.fixture(scope="session")
def stream():
  """A stream of plain renderings at a low resolution."""
  return source.Stream(seed=3, resolution=RESOLUTION, variety=source.Variety(style_share=0.0))


@pytest.fixture(scope="session")
def build():
  """Batched scenes from labels and keys."""

  def one(labels, key):
    return world.build(labels, world.sample_view(key, labels.cls, jnp.maximum(labels.other_cls, 0), world.Dial()))

  return in_eights(jax.vmap(one))


@pytest.fixture(scope="session")
def draw():
  """Batched frames from scenes, with one ray per pixel, through its centre."""
  return in_eights(lambda scenes: jax.lax.map(lambda scene: render.render(scene, RESOLUTION, 1), scenes))


@pytest.fixture(scope="session")
def scenes(stream, build):
  """Eight scenes of the stream."""
  indices = jnp.arange(EIGHT)
  return build(stream.labels(indices), jax.random.split(jax.random.key(5), EIGHT))


@pytest.fixture(scope="session")
def frames(scenes, draw):
  """The rendered scenes."""
  return draw(scenes)
