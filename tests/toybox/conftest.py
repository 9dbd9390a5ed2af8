"""Scenes that several files look at, each drawn by one compiled program."""

import jax
import jax.numpy as jnp
import pytest

from dreamjax.toybox import render, source, world

RESOLUTION = 48


@pytest.fixture(scope="session")
def stream():
  """A stream of plain renderings at a low resolution."""
  return source.Stream(seed=3, resolution=RESOLUTION, variety=source.Variety(style_share=0.0))


@pytest.fixture(scope="session")
def build():
  """Batched scenes from labels and keys."""

  def one(labels, key):
    return world.build(labels, world.sample_view(key, labels.cls, jnp.maximum(labels.other_cls, 0), world.Dial()))

  return jax.jit(jax.vmap(one))


@pytest.fixture(scope="session")
def draw():
  """Batched frames from scenes, with one ray per pixel, through its middle."""
  return jax.jit(lambda scenes: jax.lax.map(lambda scene: render.render(scene, RESOLUTION, 1), scenes))


@pytest.fixture(scope="session")
def scenes(stream, build):
  """Eight scenes of the stream."""
  indices = jnp.arange(8)
  return build(stream.labels(indices), jax.random.split(jax.random.key(5), 8))


@pytest.fixture(scope="session")
def frames(scenes, draw):
  """What they look like."""
  return draw(scenes)
