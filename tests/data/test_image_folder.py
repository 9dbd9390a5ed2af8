"""Writing folders of images."""

import json

import numpy as np
from PIL import Image
import pytest

from dreamjax.data import image_folder


def test_images_come_back_as_they_were_written(tmp_path):
  images = np.random.default_rng(0).random((3, 5, 7, 3)).astype(np.float32)
  lines = image_folder.write(tmp_path / "a" / "b", ((image, {"text": f"number {i}"}) for i, image in enumerate(images)))
  stored = [json.loads(line) for line in (tmp_path / "a" / "b" / "metadata.jsonl").read_text().splitlines()]
  assert stored == lines and [line["text"] for line in lines] == ["number 0", "number 1", "number 2"]
  for line, image in zip(lines, images, strict=True):
    with Image.open(tmp_path / "a" / "b" / line["file_name"]) as frame:
      assert np.abs(np.asarray(frame) / 255 - image).max() <= 0.5001 / 255


def test_bytes_are_rounded_and_clipped():
  given = np.array([-1.0, 0.0, 0.5 / 255, 0.49 / 255, 1.0, 2.0])
  np.testing.assert_array_equal(image_folder.to_uint8(given), [0, 0, 1, 0, 255, 255])


def test_an_interrupted_run_leaves_metadata_for_what_it_wrote(tmp_path):
  def failing():
    yield np.zeros((2, 2, 3)), {"text": "a"}
    raise OSError("the disk is full")

  with pytest.raises(OSError, match="full"):
    image_folder.write(tmp_path, failing())
  assert len((tmp_path / "metadata.jsonl").read_text().splitlines()) == 1


def test_a_folder_that_holds_images_is_refused(tmp_path):
  image_folder.write(tmp_path, [(np.zeros((2, 2, 3)), {})])
  with pytest.raises(FileExistsError, match="holds images already"):
    image_folder.write(tmp_path, [])
  image_folder.write(tmp_path, [], overwrite=True)


def test_a_member_is_inside_of_its_folder(tmp_path):
  folder = tmp_path / "folder"
  (folder / "sub").mkdir(parents=True)
  (tmp_path / "outside.png").touch()
  (folder / "out.png").symlink_to("../outside.png")
  (folder / "sub" / "up").symlink_to(tmp_path)
  (folder / "in.png").symlink_to("sub/other.png")
  for name in ("a.png", "sub/a.png", "sub/../a.png", "in.png", "..a.png"):
    assert image_folder.member(folder, name) == folder / name
  outside = ["../outside.png", "..", str(tmp_path / "outside.png"), "out.png", "sub/up/outside.png", "a\0.png", 3, None]
  for name in outside:
    with pytest.raises(ValueError, match="is no file inside"):
      image_folder.member(folder, name)
  (tmp_path / "link").symlink_to(folder)
  assert image_folder.member(tmp_path / "link", "a.png") == tmp_path / "link" / "a.png"
