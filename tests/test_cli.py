"""The command line, run in this process as a user would call it."""

import json

import numpy as np
from PIL import Image
import pytest

from dreamjax import cli
from dreamjax.toybox import captions, source, vocabulary


def run(capsys, *arguments):
  status = cli.main([str(a) for a in arguments])
  return status, capsys.readouterr()


def read(folder):
  return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_toybox_writes_an_image_folder_and_a_sheet(tmp_path, capsys):
  out = tmp_path / "images"
  status, said = run(capsys, "toybox", "--out", out, "--n", 3, "--resolution", 32, "--seed", 5)
  assert status == 0 and "3 images" in said.out
  lines = read(out)
  assert [line["file_name"] for line in lines] == ["00000.png", "00001.png", "00002.png"]
  stream = source.Stream(seed=5, resolution=32)
  frame, _ = stream.draw(range(3))
  for line, rgb in zip(lines, np.asarray(frame.rgb), strict=True):
    with Image.open(out / line["file_name"]) as image:
      assert image.size == (32, 32) and image.mode == "RGB"
      assert np.abs(np.asarray(image) / 255 - rgb).max() <= 1.01 / 255
    said = captions.parse(line["text"])
    assert vocabulary.CLASSES[said.cls] == line["class"] and vocabulary.STYLES[said.style] == line["style"]
  with Image.open(out / "sheet.png") as sheet:
    assert sheet.width > 64


def test_toybox_draws_one_subject_in_a_held_out_style(tmp_path, capsys):
  name = "stained glass window"
  arguments = ("--class", "cat", "--subject", 7, "--n", 2, "--style", name, "--resolution", 32)
  assert run(capsys, "toybox", "--out", tmp_path, *arguments)[0] == 0
  for line in read(tmp_path):
    assert (line["class"], line["subject"], line["style"]) == ("cat", 7, name)


def test_what_is_there_already_is_kept_unless_said_otherwise(tmp_path, capsys):
  (tmp_path / "metadata.jsonl").write_text("mine\n")
  status, said = run(capsys, "toybox", "--out", tmp_path, "--n", 3, "--resolution", 32, "--seed", 5)
  assert status == 2 and "--overwrite" in said.err
  assert (tmp_path / "metadata.jsonl").read_text() == "mine\n" and len(list(tmp_path.iterdir())) == 1
  assert run(capsys, "toybox", "--out", tmp_path, "--n", 3, "--resolution", 32, "--seed", 5, "--overwrite")[0] == 0
  assert len(read(tmp_path)) == 3


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--class", "dgo"), "did you mean 'dog'"),
    (("--class", "dog", "--context", "moon"), "moon"),
    (("--style", "cubism"), "cubism"),
    (("--resolution", 0), "--resolution must be at least 1"),
    (("--n", 0), "--n and"),
    (("--subject", 3), "--class"),
    (("--class", "dog", "--subject", -1), "subject must be at least 0"),
    (("--split", "validation"), "unknown split"),
  ],
)
def test_bad_input_is_one_clear_line(tmp_path, capsys, arguments, message):
  status, said = run(capsys, "toybox", "--out", tmp_path / "out", *arguments)
  assert status == 2 and message in said.err
  assert len(said.err.strip().splitlines()) == 1 and "Traceback" not in said.err
  assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  status, said = run(capsys, "toybox", "--out", tmp_path / "file" / "out")
  assert status == 2 and str(tmp_path / "file") in said.err
  assert len(said.err.strip().splitlines()) == 1
