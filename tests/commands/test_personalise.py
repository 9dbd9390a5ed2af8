"""`dreamjax dreambooth` and `dreamjax sample`, as a user calls them, with a tiny generator in a folder."""

import dataclasses
import json

import jax
import numpy as np
from PIL import Image
import pytest
import safetensors.numpy

from dreamjax import cli, generators
from dreamjax.commands import truth
from dreamjax.parallel import processes, sharding
from dreamjax.toybox import captions, vocabulary


@pytest.fixture(scope="module")
def tuned(tiny_folder, photos, tmp_path_factory):
  """The workdir of a run with few steps."""
  workdir = tmp_path_factory.mktemp("dog")
  few = [
    f"--config.stages.{stage}.{key}={value}"
    for stage in ("base", "sr")
    for key, value in (("steps", 2), ("batch_size", 2), ("prior_batch_size", 2))
  ]
  status = cli.main(
    ["dreambooth", "--images", str(photos), "--class-noun", "dog", "--model", str(tiny_folder), "--workdir",
     str(workdir), "--config", "dreambooth.py", "--config.prior.count=2", "--config.identifier=qx", *few]
  )  # fmt: skip
  assert status == 0
  return workdir


def test_photos_become_a_theta_and_a_theta_images(tiny_folder, tuned, tmp_path, run, drawn):
  out = tmp_path / "out"
  arguments = ("--model", tiny_folder, "--theta", tuned / "theta.safetensors", "--n", 2, "--seed", 3, "--guidance", 1.5)
  status, said = run("sample", *arguments, "--prompt", "a [V] dog", "--prompt", "a cat", "--out", out)
  assert status == 0 and "4 images" in said.out
  lines = [json.loads(line)["text"] for line in (out / "metadata.jsonl").read_text().splitlines()]
  assert lines == ["a [V] dog"] * 2 + ["a cat"] * 2
  with Image.open(out / "grid.png") as grid:
    assert grid.width >= 2 * 16
  recipe = json.loads((out / "sample.json").read_text())
  assert recipe["samplings"][0]["guidance"] == 1.5 and recipe["samplings"][0]["steps"] == 3
  assert recipe["samplings"][1]["augmentation_level"] == 1e-5  # as the stage was tuned
  again = tmp_path / "again"
  assert run("sample", "--recipe", out / "sample.json", "--batch", 3, "--out", again)[0] == 0
  assert np.abs(drawn(out) - drawn(again)).max() <= 1
  half = ("--dtype", "bfloat16", "--out", tmp_path / "half")
  assert run("sample", *arguments, "--prompt", "a [V] dog", "--prompt", "a cat", *half)[0] == 0
  change = np.abs(drawn(out) - drawn(tmp_path / "half"))
  assert 0 < change.mean() < 8
  assert run("sample", "--recipe", tmp_path / "half" / "sample.json", "--out", tmp_path / "half again")[0] == 0
  assert np.abs(drawn(tmp_path / "half") - drawn(tmp_path / "half again")).max() <= 1


def test_a_mesh_of_devices_learns_and_draws_the_same(tiny_folder, tuned, photos, tmp_path, run, drawn, monkeypatch):
  monkeypatch.setattr(sharding, "_MIN_SHARDED", 1)
  known = [
    *("--images", photos, "--class-noun", "dog", "--model", tiny_folder, "--config", "dreambooth.py:paper"),
    *("--config.identifier=qx", "--config.prior.kind=none", "--config.stages.sr.steps=0"),
    *("--config.stages.base.steps=2", "--config.stages.base.batch_size=4"),
  ]
  thetas = []
  for name, mesh in (("one", ()), ("all", ("--mesh", "data=2,fsdp=2,tensor=2"))):
    assert run("dreambooth", *known, "--workdir", tmp_path / name, *mesh)[0] == 0
    thetas.append(safetensors.numpy.load_file(tmp_path / name / "theta.safetensors"))
  for path, x in thetas[0].items():
    np.testing.assert_allclose(thetas[1][path], x, rtol=1e-5, atol=1e-5)
  asked = ("--model", tiny_folder, "--theta", tuned / "theta.safetensors", "--prompt", "a [V] dog", "--n", 3)
  for name, mesh in (("few", ()), ("many", ("--mesh", "fsdp=-1"))):
    assert run("sample", *asked, "--out", tmp_path / name, *mesh)[0] == 0
  assert np.abs(drawn(tmp_path / "few") - drawn(tmp_path / "many")).max() <= 1
  status, said = run("sample", *asked, "--out", tmp_path / "more", "--mesh", "data=9")
  assert status == 2 and "9" in said.err and "Traceback" not in said.err
  with pytest.raises(SystemExit):
    run("sample", *asked, "--out", tmp_path / "more", "--mesh", "rows=2")


def test_what_cannot_be_sampled_is_one_line(tiny_folder, tuned, tmp_path, run):
  (tmp_path / "broken.json").write_text('{"model": "x"}')
  generator, params = generators.load(tiny_folder)
  generators.save(tmp_path / "base", dataclasses.replace(generator, stages=generator.stages[:1]), params)
  for arguments, message in (
    (("--model", tiny_folder), "pass --prompt, or --recipe"),
    (("--model", tiny_folder, "--prompt", "a [V] dog"), "there is no theta of one"),
    (("--model", tmp_path / "none", "--prompt", "a dog"), "there are: toybox-cascade"),
    (("--model", tiny_folder, "--prompt", "a dog", "--n", 0), "--n and --batch must be at least 1"),
    (("--model", tiny_folder, "--prompt", "a dog", "--theta", tmp_path / "no.safetensors"), "no.safetensors"),
    (
      ("--model", tmp_path / "base", "--prompt", "a dog", "--augmentation-level", 0.1),
      "--augmentation-level has no meaning for this model: it has no super-resolution stage",
    ),
    (("--model", tiny_folder, "--prompt", "a dog", "--temperature", 2), "--temperature has no meaning for this model"),
    (
      ("--model", tiny_folder, "--prompt", "a dog", *("--theta", tuned / "theta.safetensors") * 3),
      "one personalisation or two can be sampled with, not 3",
    ),
    (("--recipe", tmp_path / "broken.json"), "no recipe of `dreamjax sample`: it lacks"),
  ):
    status, said = run("sample", *arguments, "--out", tmp_path / "out")
    assert status == 2 and message in said.err and said.err.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_images_that_are_there_are_kept(tiny_folder, tmp_path, run):
  (tmp_path / "metadata.jsonl").write_text("mine\n")
  status, said = run("sample", "--model", tiny_folder, "--prompt", "a dog", "--out", tmp_path)
  assert status == 2 and "--overwrite" in said.err and (tmp_path / "metadata.jsonl").read_text() == "mine\n"


def test_a_drawing_that_was_cut_off_is_gone_on_with(tiny_folder, tmp_path, run, drawn, monkeypatch):
  prompts = ("--prompt", "a dog", "--prompt", "a cat")
  arguments = ("sample", "--model", tiny_folder, *prompts, "--n", 2, "--batch", 3, "--out")
  assert run(*arguments, tmp_path / "straight")[0] == 0

  def told(batches):
    yield next(iter(batches))
    raise processes.Preempted("the machine is to be given up")

  with monkeypatch.context() as patch:
    patch.setattr(processes, "until_preempted", told)
    status, said = run(*arguments, tmp_path / "cut")
  assert status == processes.EXIT_RERUN and len((tmp_path / "cut/metadata.jsonl").read_text().splitlines()) == 3
  status, said = run(*arguments, tmp_path / "cut", "--seed", 1)
  assert status == 2 and "holds images already" in said.err
  before = (tmp_path / "cut/00002.png").stat().st_mtime_ns
  status, said = run(*arguments, tmp_path / "cut")
  assert status == 0 and "4 images" in said.out and (tmp_path / "cut/00002.png").stat().st_mtime_ns == before
  for name in ("metadata.jsonl", "sample.json"):
    assert (tmp_path / "cut" / name).read_text() == (tmp_path / "straight" / name).read_text()
  np.testing.assert_allclose(drawn(tmp_path / "cut"), drawn(tmp_path / "straight"), atol=1)
  assert run(*arguments, tmp_path / "cut")[0] == 2


def test_a_theta_of_other_weights_is_refused(tiny_cascade, tuned, tmp_path, run):
  generator, params = tiny_cascade
  other = params | {"sr": jax.tree.map(lambda x: x + 1, params["sr"])}
  generators.save(tmp_path / "other", generator, other, dtype=np.float32)
  arguments = ("--model", tmp_path / "other", "--theta", tuned / "theta.safetensors", "--prompt", "a [V] dog")
  status, said = run("sample", *arguments, "--out", tmp_path / "out")
  assert status == 2 and "a theta works only with the weights that it was trained with" in said.err


def test_bad_photos_are_one_line_and_leave_the_workdir_usable(tiny_folder, tuned, tmp_path, run):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos/a.jpg").write_bytes(b"no image")
  before = sorted(tuned.rglob("*"))
  arguments = ("--class-noun", "dog", "--model", tiny_folder, "--workdir", tuned, "--config", "dreambooth.py")
  status, said = run("dreambooth", "--images", tmp_path / "photos", *arguments)
  assert status == 2 and "a.jpg cannot be read as an image" in said.err
  assert sorted(tuned.rglob("*")) == before


def test_captions_promise_what_they_say():
  texts = [
    "a red dog on the beach",
    "a dog next to a cat in the snow",
    "sticker of a blue cat",
    "a chair",
    "blueprint of a red car",
  ]
  promised = truth.promised(texts)
  assert promised["class"].tolist() == [
    *map(vocabulary.CLASSES.index, ["dog"]),
    -1,
    *map(vocabulary.CLASSES.index, ["cat", "chair", "car"]),
  ]
  assert promised["colour"].tolist() == [0, -1, 4, -1, -1]  # a blueprint has no red
  assert promised["context"][0] == vocabulary.CONTEXTS.index("beach") and promised["context"][2] == -1
  assert promised["style"].tolist() == [captions.parse(text).style for text in texts]


def test_accuracy_counts_what_is_promised():
  texts, lookup = ["a red dog on the beach", "a blue dog", "a cat in the snow"], {"dog": 0, "cat": 1}
  scores = {head: np.zeros((3, 30)) for head in truth.HEADS}
  scores["class"][:, lookup["dog"]] = 1
  scores["colour"][:, vocabulary.COLOURS.index("red")] = 1
  found = truth.accuracy([np.zeros((4, 4, 3))] * 3, texts, lambda images: scores)
  assert found["class"] == pytest.approx(2 / 3) and found["colour"] == pytest.approx(1 / 2)
