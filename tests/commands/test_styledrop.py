"""`dreamjax styledrop`, `dreambooth` and `sample` with a tiny generator of masked tokens, as a user calls them."""

import json

import numpy as np
from PIL import Image
import pytest

from dreamjax import generators

FEW = [
  f"--config.{round_}.{stage}.{key}={value}"
  for round_ in ("first", "second")
  for stage in ("base", "sr")
  for key, value in (("steps", 2), ("batch_size", 2))
]
SMALL = [
  *FEW,
  '--config.pool.prompts=("a dog", "a red cat")',
  "--config.pool.images_per_prompt=2",
  "--config.pool.batch_size=4",
]


@pytest.fixture(scope="module")
def model(tiny_masked, tmp_path_factory):
  """The folder of a generator."""
  folder = tmp_path_factory.mktemp("tiny")
  generators.save(folder, *tiny_masked, dtype=np.float32)
  return folder


def test_a_style_and_a_subject_are_learned_and_drawn_together(model, photos, tmp_path, run, drawn):
  style, subject = tmp_path / "style", tmp_path / "subject"
  learn = ("styledrop", "--images", photos, "--model", model, "--workdir", style, "--feedback", "human", *SMALL)
  status, said = run(*learn)
  assert status == 0 and f"dreamjax feedback --pool {style / 'pool'}" in said.out
  assert "score" in (style / "pool/metadata.jsonl").read_text()  # the toybox's CLIP has looked at it
  (style / "pool/selection.json").write_text('{"chosen": ["00003.png"]}')
  status, said = run(*learn)
  assert status == 0 and "holds the style 'in red clay style'" in said.out
  assert json.loads((style / "round_2_human/chosen.json").read_text()) == ["00003.png"]
  learn = ("dreambooth", "--images", photos, "--class-noun", "dog", "--model", model, "--workdir", subject)
  assert run(*learn, "--config.identifier=qx", *FEW)[0] == 0

  out, again = tmp_path / "out", tmp_path / "again"
  both = ("--theta", style / "theta.safetensors", "--theta", subject / "theta.safetensors")
  options = ("--gamma", 0.6, "--lambda-a", 2, "--lambda-b", 5, "--sr-steps", 1, "--n", 3)
  status, said = run("sample", "--model", model, *both, *options, "--prompt", "a [V] dog", "--out", out)
  assert status == 0, said.err
  recipe = json.loads((out / "sample.json").read_text())
  assert recipe["gamma"] == 0.6 and [x["steps"] for x in recipe["samplings"]] == [3, 1]
  assert run("sample", "--recipe", out / "sample.json", "--batch", 2, "--out", again)[0] == 0
  assert np.abs(drawn(out) - drawn(again)).max() <= 1


def test_what_cannot_be_asked_of_masked_tokens_is_one_line(model, photos, tmp_path, run):
  (tmp_path / "plain").mkdir()
  Image.new("RGB", (9, 9)).save(tmp_path / "plain/a.png")
  (tmp_path / "plain/a.txt").write_text("a dog in the snow")
  (tmp_path / "sizes").mkdir()
  for name, size in (("a", (9, 8)), ("b", (12, 10))):
    Image.new("RGB", size).save(tmp_path / f"sizes/{name}.png")
    (tmp_path / f"sizes/{name}.txt").write_text("a dog in red clay style")
  sample = ("sample", "--model", model, "--prompt", "a dog", "--out", tmp_path / "out")
  learn = ("styledrop", "--model", model, "--workdir", tmp_path / "run")
  for arguments, message in (
    ((*sample, "--gamma", 1.5), "gamma is from 0"),
    ((*sample, "--guidance", 2), "--guidance has no meaning for this model"),
    ((*sample, "--augmentation-level", 0.1), "--augmentation-level has no meaning for this model"),
    ((*sample, "--level", 0.1), "--level is called --augmentation-level now"),
    ((*learn, "--images", tmp_path / "plain"), "'a dog in the snow' has no half for the style"),
    ((*learn, "--images", tmp_path / "sizes"), "differ in size, but must have one: a.png 9 x 8, b.png 12 x 10"),
    ((*learn, "--images", photos, "--style", "in ink"), "does not end in 'in ink'"),
    (("styledrop", "--model", "toybox-cascade", "--workdir", tmp_path / "run", "--images", photos), "is none"),
  ):
    status, said = run(*arguments)
    assert status == 2 and message in said.err and said.err.count("\n") == 1, said
  assert not (tmp_path / "out").exists() and not (tmp_path / "run").exists()
