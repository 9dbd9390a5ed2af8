"""The photos that `dreamjax demo` begins with. What it does with them is tested with the commands that it calls."""

import json

import jax.numpy as jnp
import numpy as np
from PIL import Image

from dreamjax.commands import demo
from dreamjax.diffusion.resolution import downsample
from dreamjax.toybox import source
from dreamjax.toybox.captions import where


def test_the_photos_that_dreamjax_brings_are_those_of_the_toy(tmp_path):
  demo.photograph(demo.CLASS, demo.SUBJECT, tmp_path)
  frame, labels = source.photos(demo.CLASS, demo.SUBJECT, demo.PHOTOS, resolution=32)
  lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
  assert [line["text"] for line in lines] == [f"a [V] dog {where(int(context))}" for context in labels.context]
  brought = np.stack([np.asarray(Image.open(tmp_path / line["file_name"])) for line in lines]) / np.float32(255)
  assert brought.shape == (demo.PHOTOS, 128, 128, 3)
  away = np.abs(np.asarray(downsample(jnp.asarray(brought), 32)) - np.asarray(frame.rgb)).mean(axis=(1, 2, 3))
  apart = np.abs(np.asarray(frame.rgb) - np.roll(np.asarray(frame.rgb), 1, axis=0)).mean(axis=(1, 2, 3))
  assert away.max() < 0.02 < 0.1 < apart.min()


def test_of_any_other_toy_photos_are_rendered(tmp_path):
  demo.photograph("cat", source.TRAIN_SUBJECTS, tmp_path)
  lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
  assert len(lines) == demo.PHOTOS and all(line["class"] == "cat" and "a [V] cat" in line["text"] for line in lines)
