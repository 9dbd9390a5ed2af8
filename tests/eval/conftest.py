"""Small stand-ins for encoders, and folders of images, for tests that need no trained network."""

import json

import numpy as np
from PIL import Image
import pytest

from dreamjax.eval.encoders import Encoders

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 60, 220), "white": (240, 240, 240)}


def looks(images):
  """Mean colours of the cells of a 2 x 2 grid, less grey."""
  cells = [np.asarray(Image.fromarray(image).resize((2, 2), Image.Resampling.BOX)) for image in images]
  return np.stack(cells).reshape(len(images), -1).astype(np.float32) / 255 - 0.5


def reads(texts):
  """The embedding that an image all of the text's first colour has."""
  rows = [next(c for word, c in COLOURS.items() if word in text) for text in texts]
  return np.tile(np.array(rows, np.float32) / 255 - 0.5, 4)


@pytest.fixture
def encoders():
  def probe(images):
    seen = looks(images).reshape(len(images), 4, 3).mean(1)
    return {"colour": -np.stack([np.square(seen - reads([word])[0, :3]).sum(1) for word in COLOURS], axis=1)}

  return Encoders("stand-ins", looks, reads, looks, probe=probe, words={"colour": tuple(COLOURS)})


def draw(colour, seed, size=(24, 16)):
  """An image of one colour with some noise."""
  noise = np.random.default_rng(seed).normal(0, 20, (*size, 3))
  return (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
  """Makes folders: `folder("name", [image, ...], [what is known of it, ...])`."""

  def make(name, images, known=None, suffix=".png"):
    path = tmp_path / name
    path.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
      Image.fromarray(image).save(path / f"{i:02d}{suffix}")
    if known is not None:
      lines = [json.dumps({"file_name": f"{i:02d}{suffix}", **entry}) for i, entry in enumerate(known)]
      (path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return path

  return make


@pytest.fixture
def paint():
  return draw
