"""Scoring folders: layouts, prompts, labels, what is undefined, and what is wrong with the input."""

import dataclasses
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from dreamjax.eval import metrics
from dreamjax.eval.evaluate import evaluate, read_image

PROMPTS = ("a sks red toy", "a sks blue toy")


def cosine(a, b):
  return a @ b / np.sqrt(a @ a * (b @ b))


@pytest.fixture
def red(folder, paint):
  """Four images of one subject, two of each prompt, and three photos."""
  made = [paint(colour, seed) for seed, colour in enumerate(["red", "red", "blue", "red"])]
  known = [{"text": PROMPTS[i // 2], "colour": PROMPTS[i // 2].split()[2], "marking": None} for i in range(4)]
  return folder("made", made, known), folder("real", [paint("red", seed) for seed in (10, 11, 12)])


def embedded(path, encoder):
  return encoder([read_image(image) for image in sorted(path.glob("*.png"))]).astype(np.float64)


def test_scores_are_those_of_the_definitions(red, encoders):
  result = evaluate(*red, encoders)
  made, real = (embedded(path, encoders.dino) for path in red)
  fidelity = [np.mean([cosine(x, r) for r in real]) for x in made]
  ceiling = np.mean([cosine(a, b) for a, b in itertools.combinations(real, 2)])
  texts = encoders.clip_text([PROMPTS[i // 2] for i in range(4)])
  expected = {
    "dino": np.mean(fidelity),
    "clip_i": np.mean(fidelity),
    "dino_real": ceiling,
    "clip_t": np.mean([cosine(x, t) for x, t in zip(made, texts, strict=True)]),
    "div_dino": 1 - (cosine(made[0], made[1]) + cosine(made[2], made[3])) / 2,
    "accuracy_colour": 3 / 4,  # the last image is red, but should be blue
  }
  for name, value in expected.items():
    assert result["scores"][name]["mean"] == pytest.approx(value, abs=1e-5), name
    assert result["subjects"]["made"]["scores"][name] == pytest.approx(value, abs=1e-5)
  assert [image["scores"]["dino"] for image in result["images"]] == pytest.approx(fidelity, abs=1e-5)
  assert [image["scores"]["accuracy_colour"] for image in result["images"]] == [1, 1, 1, 0]
  line = result["scores"]["dino"]
  assert line["n"] == 4 and line["low"] < line["mean"] < line["high"]
  assert result["images"][2]["prompt"] == PROMPTS[1] and result["images"][2]["file"] == "02.png"
  assert result["settings"]["encoders"] == "stand-ins" and result["settings"]["interval"]["of"] == "images"


def test_what_one_subject_without_more_cannot_have_is_said(red, encoders):
  scores = evaluate(*red, encoders)["scores"]
  assert scores["retrieval"]["mean"] is None and scores["retrieval"]["note"] == (
    "undefined: there is but one subject to choose from"
  )
  assert scores["pres"]["note"] == "undefined: there are no images of the class's prompt"
  assert not {"face", "face_real", "div_lpips"} & set(scores)


def test_the_result_is_json_and_the_same_every_time(red, encoders):
  one, two = (evaluate(*red, encoders) for _ in range(2))
  assert json.loads(json.dumps(one, allow_nan=False)) == two


def test_one_photo_has_no_ceiling_and_no_copies(red, encoders, folder, paint):
  made, _ = red
  scores = evaluate(made, folder("one", [paint("red", 10)]), encoders)["scores"]
  for name in ("dino_real", "clip_i_real", "copies"):
    assert scores[name]["mean"] is None and scores[name]["note"].startswith("undefined: a single real image")
  assert scores["dino"]["mean"] > 0.5


def test_the_identifier_is_stripped_or_kept_and_that_is_recorded(red, encoders):
  read = []
  spying = dataclasses.replace(encoders, clip_text=lambda texts: read.extend(texts) or encoders.clip_text(texts))
  assert evaluate(*red, spying)["settings"]["identifier"] == "kept"
  assert evaluate(*red, spying, identifier="sks")["settings"]["identifier"] == "'sks', stripped"
  assert read == sorted(PROMPTS) + ["a blue toy", "a red toy"]
  with pytest.raises(ValueError, match="the identifier 'zwx' is in none of the prompts, such as 'a sks red toy'"):
    evaluate(*red, encoders, identifier="zwx")


def test_copies_of_photos_are_found(encoders, folder, paint):
  # A stand-in whose embedding tells the noise of one image from that of another.
  looks = dataclasses.replace(encoders, dino=lambda images: np.stack(images).reshape(len(images), -1) / 255 - 0.5)
  photos = [paint("red", seed) for seed in (10, 11, 12, 13)]
  made = [paint("red", 1), photos[2], np.clip(photos[0].astype(int) + 3, 0, 255).astype(np.uint8)]
  result = evaluate(folder("made", made), folder("real", photos), looks)
  assert [image["scores"]["copies"] for image in result["images"]] == [0, 1, 1]
  assert result["scores"]["copies"]["mean"] == pytest.approx(2 / 3)
  assert result["images"][1]["nearest"] == {"file": "02.png", "cosine": pytest.approx(1, abs=1e-5)}
  assert 0.9 < result["settings"]["copy_thresholds"]["made"] < 1
  assert "look at the copy rate" in result["scores"]["dino"]["note"]


@pytest.fixture
def several(folder, paint):
  """Three subjects of two images, one of which is drawn in another's colour; photos of four."""
  for name, colours in (("red", "red red"), ("green", "green blue"), ("blue", "blue blue")):
    images = [paint(colour, seed) for seed, colour in enumerate(colours.split())]
    made = folder(f"all/made/{name}", images, [{"text": f"a {name} toy"}] * 2).parent
  for name in ("red", "green", "blue", "white"):
    real = folder(
      f"all/real/{name}", [paint(name, seed) for seed in range(20, 20 + (1 if name == "green" else 3))]
    ).parent
  return made, real


def test_subjects_are_matched_by_name_and_retrieved_among_distractors(several, encoders):
  result = evaluate(*several, encoders)
  assert list(result["subjects"]) == ["blue", "green", "red"] and result["settings"]["candidates"] == 4
  hits = {image["file"]: image["scores"]["retrieval"] for image in result["images"]}
  assert [file for file, hit in hits.items() if not hit] == ["green/01.png"]
  assert result["scores"]["retrieval"]["mean"] == pytest.approx(5 / 6)
  assert result["settings"]["interval"]["of"] == "subjects"
  assert result["subjects"]["red"]["references"] == ["red/00.png", "red/01.png", "red/02.png"]


def test_intervals_are_of_subjects_where_there_are_several(several, encoders):
  result = evaluate(*several, encoders)
  values = jnp.asarray([image["scores"]["dino"] for image in result["images"]], jnp.float32)
  ends = metrics.bootstrap(jax.random.key(0), values, jnp.array([0, 0, 1, 1, 2, 2]), 3)
  line = result["scores"]["dino"]
  assert (line["low"], line["high"]) == pytest.approx(tuple(map(float, ends)), abs=1e-5)


def test_subjects_with_one_photo_are_named_beside_the_ceiling_of_the_others(several, encoders):
  scores = evaluate(*several, encoders)["scores"]
  assert scores["dino_real"]["n"] == 6 and scores["dino_real"]["mean"] > 0.9
  assert scores["dino_real"]["note"].startswith("undefined for green: a single real image")


def test_one_subject_may_have_its_photos_above_the_folders_of_distractors(red, several, encoders, folder, paint):
  real = folder("all/real", [paint("red", seed) for seed in (10, 11, 12)])
  result = evaluate(red[0], real, encoders)
  assert list(result["subjects"]) == ["made"] and result["settings"]["candidates"] == 5
  assert result["subjects"]["made"]["references"] == ["00.png", "01.png", "02.png"]


def test_pres_compares_members_of_the_class_with_the_subject(red, several, encoders, folder, paint):
  members = folder("members", [paint("green", 1), paint("red", 2)])
  expected = np.mean(
    [[cosine(a, b) for b in embedded(red[1], encoders.dino)] for a in embedded(members, encoders.dino)]
  )
  assert evaluate(*red, encoders, prior=members)["scores"]["pres"]["mean"] == pytest.approx(expected, abs=1e-5)
  with pytest.raises(ValueError, match="has images for none by name, and the subjects are blue, green, red"):
    evaluate(*several, encoders, prior=members)


def test_lpips_and_a_face_network_are_used_where_there_are_any(red, encoders):
  pairs = []
  lpips = lambda given: pairs.extend(given) or np.arange(1.0, len(given) + 1)  # noqa: E731
  scores = evaluate(*red, dataclasses.replace(encoders, lpips=lpips, face=encoders.dino))["scores"]
  assert scores["div_lpips"]["mean"] == 1 and "div_dino" not in scores
  assert len(pairs) == 2 and all(len(pair) == 2 for pair in pairs)
  assert scores["face"]["mean"] == scores["dino"]["mean"] and scores["face_real"]["mean"] is not None


class TestPrompts:
  def given(self, red, encoders, **options):
    return [image["prompt"] for image in evaluate(*red, encoders, **options)["images"]]

  def test_a_file_goes_before_metadata(self, red, encoders, tmp_path):
    (tmp_path / "prompts.txt").write_text("red 1\nred 2\nblue 3\nblue 4\n")
    assert self.given(red, encoders, prompts=tmp_path / "prompts.txt") == ["red 1", "red 2", "blue 3", "blue 4"]

  def test_a_file_of_the_wrong_length_is_an_error_with_both_numbers(self, red, encoders, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red toy\n" * 5)
    with pytest.raises(ValueError, match="prompts.txt has 5 prompts, and there are 4 generated images"):
      evaluate(*red, encoders, prompts=tmp_path / "prompts.txt")

  def test_they_may_lie_beside_the_images(self, red, encoders):
    (red[0] / "metadata.jsonl").unlink()
    for i in range(4):
      (red[0] / f"{i:02d}.txt").write_text(f"a red toy {i}\n")
    assert self.given(red, encoders) == [f"a red toy {i}" for i in range(4)]
    (red[0] / "02.txt").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 images have no prompt, .*02\.png for one"):
      evaluate(*red, encoders)

  def test_without_them_clip_t_and_div_are_undefined(self, red, encoders):
    (red[0] / "metadata.jsonl").unlink()
    scores = evaluate(*red, encoders)["scores"]
    assert scores["clip_t"]["note"] == "undefined: there are no prompts"
    assert scores["div_dino"]["note"] == "undefined: no two images are of the same prompt"
    assert "accuracy_colour" not in scores


def test_only_images_that_the_metadata_lists_are_scored(red, encoders, paint):
  Image.fromarray(paint("white", 0)).save(red[0] / "sheet.png")
  assert len(evaluate(*red, encoders)["images"]) == 4


def test_images_are_turned_upright_and_made_rgb(tmp_path):
  image = np.zeros((8, 16, 3), np.uint8)
  image[:, :8] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # turned by a quarter
  Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
  Image.fromarray(image[..., 0]).save(tmp_path / "grey.png")
  assert read_image(tmp_path / "turned.png").shape == (16, 8, 3)
  assert (read_image(tmp_path / "turned.png")[:8] == 255).all()
  np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), image)


class TestBadInput:
  def test_folders_that_are_missing_or_empty(self, red, encoders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
      evaluate(tmp_path / "nowhere", red[1], encoders)
    for folders in ((tmp_path / "empty", red[1]), (red[0], tmp_path / "empty")):
      with pytest.raises(ValueError, match="there are no images in .*empty"):
        evaluate(*folders, encoders)

  @pytest.mark.parametrize("content", [b"no image", None])
  def test_images_that_cannot_be_read_are_named(self, red, encoders, content):
    path = red[0] / "01.png"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} cannot be read as an image: "):
      evaluate(*red, encoders)

  def test_images_that_the_metadata_lists_but_are_not_there(self, red, encoders):
    (red[0] / "03.png").unlink()
    with pytest.raises(ValueError, match="03.png cannot be read as an image: .*No such file"):
      evaluate(*red, encoders)

  def test_metadata_that_is_none(self, red, encoders):
    with (red[0] / "metadata.jsonl").open("a") as file:
      file.write('{"text": "no name"}\n')
    with pytest.raises(ValueError, match="metadata.jsonl:5 is no JSON object with a file_name"):
      evaluate(*red, encoders)

  @pytest.mark.parametrize("name", ["../secret.png", "/secret.png", "sub/../../secret.png", "link.png", 3])
  def test_metadata_that_names_a_file_outside_the_folder(self, red, encoders, paint, name):
    secret = red[0].parent / "secret.png"
    Image.fromarray(paint("red", 0)).save(secret)
    (red[0] / "link.png").symlink_to(secret)
    name = str(secret) if name == "/secret.png" else name
    with (red[0] / "metadata.jsonl").open("a") as file:
      file.write(json.dumps({"file_name": name, "text": "a red toy"}) + "\n")
    with pytest.raises(ValueError, match=r"metadata.jsonl:5: .* is no file inside .*made"):
      evaluate(*red, encoders)

  def test_prompts_that_are_no_text(self, red, encoders, folder, paint):
    made = folder("numbers", [paint("red", 0)], [{"text": 3}])
    with pytest.raises(ValueError, match="00.png: its prompt is 3, but must be text"):
      evaluate(made, red[1], encoders)

  def test_labels_that_the_probe_does_not_know(self, red, encoders, folder, paint):
    made = folder("purple", [paint("red", 0)], [{"text": "a red toy", "colour": "purple"}])
    with pytest.raises(ValueError, match="00.png: the probe has no colour 'purple', only red, green, blue, white"):
      evaluate(made, red[1], encoders)

  def test_subjects_without_photos(self, several, red, encoders, folder, paint):
    folder("all/made/purple", [paint("red", 0)])
    with pytest.raises(ValueError, match="has no real images of purple, only of blue, green, red, white"):
      evaluate(several[0], several[1], encoders)
    with pytest.raises(ValueError, match="has no real images of blue, green, purple, red, only of none by name"):
      evaluate(several[0], red[0], encoders)

  def test_images_beside_sub_folders(self, several, encoders, folder, paint):
    folder("all/made", [paint("red", 0)])
    with pytest.raises(ValueError, match="holds images both itself and in sub-folders"):
      evaluate(*several, encoders)

  def test_encoders_that_give_no_numbers(self, red, encoders):
    broken = dataclasses.replace(encoders, dino=lambda images: np.full((len(images), 4), np.nan))
    with pytest.raises(ValueError, match="the encoder dino returns numbers that are not finite for .*00.png"):
      evaluate(*red, broken)
