import json

import numpy as np
from PIL import Image
import pytest

from dreamjax.data.preprocessing import Preprocessor, whole

CLIP = {
  "size": {"shortest_edge": 12}, "do_center_crop": True, "crop_size": {"height": 12, "width": 12}, "resample": 3,
  "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
}  # fmt: skip


@pytest.fixture
def image():
  return np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)


def written(folder, entry):
  (folder / "preprocessor_config.json").write_text(json.dumps(entry))
  return Preprocessor.load(folder)


@pytest.mark.parametrize("entry", [CLIP, CLIP | {"size": 12, "crop_size": 12}], ids=["new form", "old form"])
def test_clips_images_are_resized_cropped_and_normalised(tmp_path, image, entry):
  out = written(tmp_path, entry)([image, image[:20, :20]])
  assert out.shape == (2, 12, 12, 3) and out.dtype == np.float32
  resized = np.asarray(Image.fromarray(image).resize((18, 12), Image.Resampling.BICUBIC)) / 255.0
  np.testing.assert_allclose(out[0], (resized[:, 3:15] - CLIP["image_mean"]) / CLIP["image_std"], atol=1e-6)


def test_dinos_images_are_squeezed(tmp_path, image):
  entry = {"size": 12, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
  resized = np.asarray(Image.fromarray(image).resize((12, 12), Image.Resampling.BILINEAR))
  np.testing.assert_allclose(written(tmp_path, entry)([image])[0], resized / 127.5 - 1, atol=1e-6)


def test_transformers_does_the_same(tmp_path, image):
  transformers = pytest.importorskip("transformers")
  theirs = pytest.importorskip("transformers.models.clip.image_processing_pil_clip").CLIPImageProcessorPil
  del transformers
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIP))
  expected = theirs.from_pretrained(tmp_path)(Image.fromarray(image), return_tensors="np")["pixel_values"]
  np.testing.assert_allclose(Preprocessor.load(tmp_path)([image]), expected.transpose(0, 2, 3, 1), atol=1e-5)


def test_a_saved_one_is_loaded_again(tmp_path):
  for one in (whole(16), Preprocessor(12, (12, 10), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 2)):
    one.save(tmp_path)
    assert Preprocessor.load(tmp_path) == one


def test_an_image_of_the_right_size_is_only_scaled(image):
  square = image[:16, :16]
  np.testing.assert_allclose(whole(16)([square])[0], square / 127.5 - 1, atol=1e-6)


def test_what_cannot_be_followed_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match="preprocessor_config.json"):
    Preprocessor.load(tmp_path)
  with pytest.raises(ValueError, match="lacks 'image_std'"):
    written(tmp_path, {key: value for key, value in CLIP.items() if key != "image_std"})
  with pytest.raises(ValueError, match="different sizes"):
    written(tmp_path, CLIP | {"do_center_crop": False})
