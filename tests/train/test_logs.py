"""Logs: lines, sheets of images, and what TensorBoard is given."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from dreamjax.train.logs import Log, Sheet


def test_images_stand_on_one_sheet_above_their_captions(tmp_path):
  values, bytes_ = [-1, 0, 1, -0.5], [0, 128, 255, 64]
  images = jnp.broadcast_to(jnp.array(values, jnp.bfloat16)[:, None, None, None], (4, 96, 96, 3))
  Log(tmp_path / "run/log.jsonl").sheet(7, "toys", Sheet(images, ["a toy"] * 4))
  page = np.asarray(Image.open(tmp_path / "run/samples/toys-7.png"))
  height, width = (page.shape[0] - 6) // 2, 96 + 6
  corners = [(6 + i // 2 * height, 6 + i % 2 * width) for i in range(4)]
  for (y, x), byte in zip(corners, bytes_, strict=True):
    assert (page[y : y + 96, x : x + 96] == byte).all()
  assert (page[6 + 96 : height] < 128).any()  # what is said below the first row


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
  log.sheet(3, "toys", Sheet(np.zeros((1, 96, 96, 3), np.float32), ["a toy"]))
  assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 3, "loss": 0.5}
  assert calls[:4] == [("hide", [], "GPU"), ("write_scalars", 3, {"loss": 0.5}), ("flush",), calls[3]]
  (name, step, images), flush = calls[3:]
  assert (name, step, images["toys"].dtype, flush) == ("write_images", 3, np.uint8, ("flush",))
  np.testing.assert_array_equal(images["toys"], np.asarray(Image.open(tmp_path / "samples/toys-3.png"))[None])
