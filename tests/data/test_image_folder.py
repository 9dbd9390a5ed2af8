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
