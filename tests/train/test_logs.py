"""Logs: lines, sheets of pictures, and what TensorBoard is given."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from dreamjax.train.logs import Log


def test_pictures_stand_side_by_side_on_one_sheet(tmp_path):
  colours = np.array([[-1, -1, -1], [1, -1, -1], [0, 0, 0], [-1, 1, -1], [-1, -1, 1]], np.float32)
  pictures = np.broadcast_to(colours[:, None, None], (5, 4, 6, 3))
  Log(tmp_path / "run/log.jsonl").images(7, "toys", jnp.asarray(pictures, jnp.bfloat16))
  sheet = np.asarray(Image.open(tmp_path / "run/samples/toys-7.png"))
  assert sheet.shape == (2 * 4, 3 * 6, 3)
  expected = [[[0, 0, 0], [255, 0, 0], [128, 128, 128]], [[0, 255, 0], [0, 0, 255], [255, 255, 255]]]
  np.testing.assert_array_equal(sheet[::4, ::6], expected)
  np.testing.assert_array_equal(sheet[3::4, 5::6], expected)


def test_event_files_need_tensorflow(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  with pytest.raises(ValueError, match=r"pip install '\.\[tensorboard\]'"):
    Log(tmp_path / "log.jsonl", tensorboard=True)


def test_event_files_hold_what_the_lines_and_sheets_do(tmp_path, monkeypatch):
  calls = []

  class Writer:
    def __init__(self, folder):
      assert folder == str(tmp_path / "tensorboard")

    def __getattr__(self, name):
      return lambda *args: calls.append((name, *args))

  hide = lambda devices, kind: calls.append(("hide", devices, kind))  # noqa: E731
  tensorflow = types.SimpleNamespace(config=types.SimpleNamespace(set_visible_devices=hide))
  monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
  monkeypatch.setitem(sys.modules, "clu.metric_writers", types.SimpleNamespace(SummaryWriter=Writer))
  log = Log(tmp_path / "log.jsonl", tensorboard=True)
  log.write(3, {"loss": 0.5})
  log.images(3, "toys", np.zeros((1, 2, 2, 3), np.float32))
  assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 3, "loss": 0.5}
  assert calls[:4] == [("hide", [], "GPU"), ("write_scalars", 3, {"loss": 0.5}), ("flush",), calls[3]]
  (name, step, images), flush = calls[3:]
  assert (name, step, images["toys"].shape, flush) == ("write_images", 3, (1, 2, 2, 3), ("flush",))
