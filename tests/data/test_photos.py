"""Photo folders as users have them, with all that can be wrong with them."""

import importlib.util
import json

import numpy as np
from PIL import Image, ImageOps
import pytest

from dreamjax.data import image_folder
from dreamjax.data.photos import Batch, Photos, read_image, read_photos

ORIENTATION = 0x0112


def painted(height=24, width=32, seed=0):
  """A smooth image that is different in each corner."""
  corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
  return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture
def image():
  return painted()


@pytest.fixture
def folder(tmp_path):
  for i in range(3):
    painted(seed=i).save(tmp_path / f"{i}.png")
  return tmp_path


def near(path, image, tolerance):
  found = read_image(path)
  assert found.dtype == np.uint8 and found.shape == (*image.size[::-1], 3)
  difference = np.abs(found.astype(int) - np.asarray(image).astype(int))
  assert difference.mean() <= tolerance, difference.mean()


class TestFormats:
  @pytest.mark.parametrize("orientation", range(1, 9))
  @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
  def test_photos_are_turned_upright(self, tmp_path, image, orientation, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    # The camera's image is the one that its orientation turns into ours: for quarter turns, the other quarter turn.
    camera = ImageOps.exif_transpose(self.marked(image, {6: 8, 8: 6}.get(orientation, orientation)))
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(suffix, {})
    camera.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    near(tmp_path / f"a.{suffix}", image, 3 if suffix == "jpg" else 0)

  @staticmethod
  def marked(image, orientation):
    image = image.copy()
    image.getexif()[ORIENTATION] = orientation
    return image

  def test_cmyk(self, tmp_path, image):
    image.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
      assert stored.mode == "CMYK"
    near(tmp_path / "a.jpg", image, 3)

  @pytest.mark.parametrize("suffix", ["png", "tif"])
  def test_sixteen_bits(self, tmp_path, suffix):
    deep = np.linspace(0, 65535, 12 * 16).astype(np.uint16).reshape(12, 16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    found = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(found, np.repeat(np.round(deep / 257)[..., None], 3, axis=-1))

  def test_a_palette(self, tmp_path, image):
    few = image.quantize(256)
    few.save(tmp_path / "a.png")
    near(tmp_path / "a.png", few.convert("RGB"), 0)

  def test_a_palette_with_a_transparent_colour(self, tmp_path):
    indexed = Image.new("P", (8, 4))
    indexed.putpalette([255, 0, 0, 0, 0, 255])
    indexed.paste(1, (4, 0, 8, 4))
    indexed.save(tmp_path / "a.png", transparency=0)
    found = read_image(tmp_path / "a.png")
    assert (found[:, :4] == 255).all() and (found[:, 4:] == (0, 0, 255)).all()

  @pytest.mark.parametrize("mode", ["LA", "RGBA"])
  @pytest.mark.parametrize("suffix", ["png", "webp"])
  def test_transparency_is_put_on_white(self, tmp_path, mode, suffix):
    seen = Image.new(mode, (8, 4), (0, 255) if mode == "LA" else (0, 0, 0, 255))
    seen.putalpha(Image.fromarray(np.repeat(np.uint8([[255, 128, 0, 0]]), 2, axis=1).repeat(4, axis=0)))
    seen.save(tmp_path / f"a.{suffix}", **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}")[0, ::2, 0], [0, 127, 255, 255])

  def test_grey_and_black_and_white(self, tmp_path, image):
    for mode in ("L", "1"):
      image.convert(mode).save(tmp_path / "a.png")
      near(tmp_path / "a.png", image.convert(mode).convert("RGB"), 0)

  def test_webp_and_avif(self, tmp_path, image):
    image.save(tmp_path / "a.webp", quality=95)
    near(tmp_path / "a.webp", image, 4)
    if ".avif" in Image.registered_extensions():
      image.save(tmp_path / "a.avif", quality=95)
      near(tmp_path / "a.avif", image, 4)

  def test_heic(self, tmp_path, image):
    pytest.importorskip("pillow_heif")
    image.save(tmp_path / "a.heic", quality=95)
    near(tmp_path / "a.heic", image, 4)

  @pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is not None, reason="pillow_heif is installed")
  @pytest.mark.parametrize("name", ["a.heic", "called.jpg"])
  def test_heic_without_its_package(self, tmp_path, name):
    (tmp_path / name).write_bytes(b"\0\0\0\x1cftypheic" + b"\0" * 100)
    with pytest.raises(
      ValueError, match=rf"{name} cannot be read as an image: it is a HEIC .* pip install pillow-heif"
    ):
      read_photos(tmp_path, 8, "dog")

  @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
  def test_what_was_cut_off(self, folder, image, suffix):
    image.save(folder / f"cut.{suffix}")
    content = (folder / f"cut.{suffix}").read_bytes()
    (folder / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"cut\.{suffix} cannot be read as an image"):
      read_photos(folder, 8, "dog")

  @pytest.mark.parametrize("content", [b"a text", b"", b"\xff\xd8\xff\xe0"])
  def test_what_is_only_called_an_image(self, folder, content):
    (folder / "notes.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.jpg cannot be read as an image"):
      read_photos(folder, 8, "dog")

  def test_numbers_without_a_range(self, tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif cannot be read as an image: its pixels .* \(mode F\)"):
      read_image(tmp_path / "a.tif")

  def test_an_exif_block_that_makes_no_sense(self, tmp_path, image):
    image.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*" + b"\xff" * 30)
    try:
      near(tmp_path / "a.jpg", image, 3)
    except ValueError as error:
      assert "a.jpg cannot be read as an image" in str(error)


class TestFolders:
  def test_images_are_squares_in_minus_one_to_one_by_name(self, folder):
    found = read_photos(folder, 12, "dog")
    assert found.names == ("0.png", "1.png", "2.png") and len(found) == 3 and found.resolution == 12
    assert found.prompts == ("a [V] dog",) * 3
    images = found.images()
    assert images.shape == (3, 12, 12, 3) and images.dtype == np.float32
    assert -1 <= images.min() < -0.1 and 0.1 < images.max() <= 1
    middle = painted(seed=1).resize((16, 12), Image.Resampling.LANCZOS).crop((2, 0, 14, 12))
    np.testing.assert_allclose(images[1], np.asarray(middle) / 127.5 - 1, atol=1.01 / 127.5)

  def test_without_a_class_noun_there_is_none_in_the_prompt(self, folder):
    assert read_photos(folder, 8, "").prompts[0] == "a [V]"

  def test_names_may_be_in_capitals(self, tmp_path, image):
    image.save(tmp_path / "IMG_1.JPG")
    assert read_photos(tmp_path, 8, "dog").names == ("IMG_1.JPG",)

  def test_a_folder_that_we_wrote_is_read(self, tmp_path, image):
    image_folder.write(tmp_path, [(np.asarray(image) / 255, {"text": "a dog"})])
    assert read_photos(tmp_path, 8, "dog").prompts == ("a [V] dog",)
    assert read_photos(tmp_path, 8, "dog", with_captions=True).prompts == ("a dog",)

  def test_what_is_hidden_or_no_image_is_skipped_with_a_warning(self, folder, image):
    image.save(folder / "._0.png")
    for name in (".DS_Store", "clip.mov", "other.txt"):
      (folder / name).touch()
    (folder / "more.png").mkdir()
    with pytest.warns(UserWarning, match=r"skipped .*: \.DS_Store, \._0\.png, clip\.mov, more\.png, other\.txt$"):
      assert len(read_photos(folder, 8, "dog")) == 3

  def test_small_images_are_enlarged_with_a_warning(self, tmp_path, image):
    image.save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match=r"a\.png has only 32 x 24 pixels, and is enlarged to 48"):
      assert read_photos(tmp_path, 48, "dog").images().shape == (1, 48, 48, 3)

  def test_a_photo_that_is_there_twice_is_warned_about(self, folder):
    painted(200, 240, seed=9).save(folder / "big.png")
    painted(100, 120, seed=9).save(folder / "copy.jpg", quality=80)
    with pytest.warns(UserWarning, match=r"big\.png and copy\.jpg in .* are the same photo"):
      assert len(read_photos(folder, 16, "dog")) == 5

  def test_a_missing_folder(self, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
      read_photos(tmp_path / "nowhere", 8, "dog")

  def test_an_empty_folder(self, tmp_path):
    with pytest.raises(ValueError, match=r"there are no images in .*: their names end in \.avif, \.bmp"):
      read_photos(tmp_path, 8, "dog")


class TestCaptions:
  LINES = tuple({"file_name": f"{i}.png", "text": f" a [V] dog, number {i}\n"} for i in range(3))

  @staticmethod
  def write(folder, *lines):
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text)
    return lambda: read_photos(folder, 8, "dog", with_captions=True)

  def test_they_are_read_from_the_metadata(self, folder):
    (folder / "0.txt").write_text("not this one")
    assert self.write(folder, *self.LINES[::-1], "")().prompts == tuple(f"a [V] dog, number {i}" for i in range(3))

  def test_they_are_read_from_the_text_beside_each_photo(self, folder):
    for i in range(3):
      (folder / f"{i}.txt").write_text(f"\ufeffein schöner\n[V] dog, number {i}\n", encoding="utf-8")
    assert read_photos(folder, 8, "dog", with_captions=True).prompts[2] == "ein schöner [V] dog, number 2"
    assert read_photos(folder, 8, "dog").prompts == ("a [V] dog",) * 3

  def test_there_are_none(self, folder):
    with pytest.raises(ValueError, match=r"captions are asked for, but in .* there is none for 0\.png, 1\.png, 2\.png"):
      read_photos(folder, 8, "dog", with_captions=True)

  @pytest.mark.parametrize("second", ["", None], ids=["empty", "missing"])
  def test_one_is_missing(self, folder, second):
    for i in (0, 2):
      (folder / f"{i}.txt").write_text("a dog")
    if second is not None:
      (folder / "1.txt").write_text(second)
    with pytest.raises(ValueError, match=r"there is none for 1\.png$"):
      read_photos(folder, 8, "dog", with_captions=True)

  def test_one_is_missing_from_the_metadata(self, folder):
    with pytest.raises(ValueError, match=r"there is none for 2\.png$"):
      self.write(folder, *self.LINES[:2])()

  @pytest.mark.parametrize("name", ["../1.png", "/etc/1.png", "link.png", ["0.png"], None])
  def test_the_metadata_names_what_is_outside_the_folder(self, folder, tmp_path_factory, name):
    outside = tmp_path_factory.mktemp("outside") / "1.png"
    painted(seed=7).save(outside)
    (folder / "link.png").symlink_to(outside)
    with pytest.raises(ValueError, match=r"metadata\.jsonl:2: .* is no file inside "):
      self.write(folder, self.LINES[0], {"file_name": name, "text": "a dog"})()

  @pytest.mark.parametrize("name", ["9.png", "sub/0.png"])
  def test_the_metadata_names_what_is_not_there(self, folder, name):
    with pytest.raises(ValueError, match=r"metadata\.jsonl:2 names .*, which is no image in the folder"):
      self.write(folder, self.LINES[0], {"file_name": name, "text": "a dog"})()

  @pytest.mark.parametrize(
    "line", ['{"file_name": "1.png",', "[1]", "3", '{"file_name": "1.png"}', '{"text": "a dog"}']
  )
  def test_a_line_that_is_not_understood_is_named_by_its_number(self, folder, line):
    with pytest.raises(ValueError, match=r"metadata\.jsonl:3 is no JSON object with file_name and text"):
      self.write(folder, self.LINES[0], "", line)()

  def test_a_caption_that_is_no_text(self, folder):
    with pytest.raises(ValueError, match=r"metadata\.jsonl:1: the text must be a string, not 7"):
      self.write(folder, {"file_name": "0.png", "text": 7})()

  def test_an_image_with_two_captions(self, folder):
    with pytest.raises(ValueError, match=r"metadata\.jsonl:2 names '0\.png' a second time"):
      self.write(folder, self.LINES[0], self.LINES[0])()

  def test_text_of_another_encoding(self, folder):
    (folder / "0.txt").write_bytes("schön".encode("latin-1"))
    with pytest.raises(ValueError, match=r"0\.txt is not text in UTF-8"):
      read_photos(folder, 8, "dog", with_captions=True)


class TestBatches:
  @pytest.fixture
  def three(self, folder):
    return read_photos(folder, 12, "dog")

  @pytest.mark.parametrize("size", [1, 2, 3, 7])
  def test_all_photos_are_seen_equally_often(self, three, size):
    indices = np.concatenate([three.batch(step, size, seed=0)[0] for step in range(30)])
    for start in range(0, len(indices) - 2, 3):
      assert sorted(indices[start : start + 3]) == [0, 1, 2]
    assert len({tuple(indices[start : start + 3]) for start in range(0, 3 * (len(indices) // 3), 3)}) > 3

  def test_images_are_those_of_the_indices(self, three):
    indices, images = three.batch(5, 4, seed=1)
    np.testing.assert_array_equal(images, three.images()[indices])

  @pytest.mark.parametrize("crop", ["center", "random"])
  def test_a_batch_depends_on_seed_and_step_alone(self, three, crop):
    batch = lambda step, seed: three.batch(step, 3, seed=seed, crop=crop)[1]  # noqa: E731
    np.testing.assert_array_equal(batch(2, 0), batch(2, 0))
    assert np.abs(batch(2, 0) - batch(3, 0)).max() > 0.1
    assert np.abs(batch(2, 0) - batch(2, 1)).max() > 0.1

  def test_random_crops_come_from_anywhere_along_the_longer_side(self):
    wide = np.broadcast_to(np.arange(9, dtype=np.uint8)[None, :, None], (4, 9, 3))
    for image in (wide, wide.transpose(1, 0, 2)):
      one = Photos(("a",), ("a [V] dog",), (image,))
      corners = {float(one.batch(step, 1, seed=0, crop="random")[1][0, 0, 0, 0]) for step in range(100)}
      np.testing.assert_allclose(sorted(corners), np.arange(6) / 127.5 - 1, atol=1e-6)

  def test_rows_of_the_subject_and_of_the_prior_are_joined(self):
    def rows(n, weight):
      image = np.full((n, 4, 4, 3), weight, np.float32)
      prompt = {"ids": np.full((n, 5), n), "mask": np.ones((n, 5), bool)}
      return Batch(image, prompt, np.full(n, weight, np.float32), {"low": image[:, ::2, ::2]})

    joined = Batch.join([rows(2, 1.0), rows(3, 0.5)])
    np.testing.assert_array_equal(joined.weight, [1, 1, 0.5, 0.5, 0.5])
    assert joined.prompt["ids"].shape == (5, 5) and joined.conditioning["low"].shape == (5, 2, 2, 3)


def test_the_smallest_side_of_an_image_is_the_resolution_however_odd_its_shape(tmp_path):
  for i, size in enumerate([(7, 100), (100, 7), (33, 34), (1, 5)]):
    painted(*size, seed=i).save(tmp_path / f"{i}.png")
  with pytest.warns(UserWarning, match="enlarged"):
    found = read_photos(tmp_path, 11, "dog")
  assert [min(image.shape[:2]) for image in found.originals] == [11] * 4
  assert found.images().shape == (4, 11, 11, 3)
