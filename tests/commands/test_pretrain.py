"""`dreamjax pretrain` with every config of the encoders, at a tiny size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import cli, generators
from dreamjax.commands import pretrain
from dreamjax.convert import pretrained
from dreamjax.toybox import album, labels, source

TINY = {
  "t5": ["--config.model.depth=1"],
  "probe": ["--config.model.widths=(8,8,8,8)", "--config.accumulation_steps=2"],
  "clip": ["--config.model.vision.depth=1", "--config.model.text.depth=1", "--config.start="],
  "dino": ["--config.model.widths=(8,8,8,8)", "--config.classes=15", "--config.parts=2"],
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """A folder with a tokenizer and albums, which the first training fills."""
  folder = tmp_path_factory.mktemp("pretrain")
  assert run("tokenizer", folder, ["--config.captions=500", "--config.size=800"]) == 0
  return folder


def run(which, folder, overrides):
  return cli.main(
    ["pretrain", "--config", f"pretrain_encoders.py:{which}", "--workdir", str(folder / which), *overrides]
  )


def common(folder):
  return [
    f"--config.albums={folder / 'albums'}", f"--config.tokenizer={folder / 'tokenizer/model'}", "--config.steps=2",
    "--config.train.train=16", "--config.train.styles=16", "--config.held_out.subjects=16", "--config.batch_size=4",
  ]  # fmt: skip


@pytest.mark.parametrize("which", TINY)
def test_an_encoder_is_trained_measured_and_saved(shared, which, capsys):
  assert run(which, shared, common(shared) + TINY[which]) == 0
  measured = json.loads((shared / which / "measured.json").read_text())
  assert measured and all(0 <= value <= 1 for value in measured.values())
  model, params = pretrained.load(shared / which / "model")
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
  assert f"the model is in {shared / which / 'model'}" in capsys.readouterr().out


def test_another_workdirs_checkpoints_are_refused_in_one_line(shared, capsys):
  assert run("t5", shared, common(shared) + TINY["t5"]) == 0
  assert run("t5", shared, [*common(shared), "--config.model.depth=2", "--config.steps=3"]) == 2
  assert "choose another workdir" in capsys.readouterr().err


def test_examples_say_what_the_toybox_says(tmp_path):
  drawn = album.Album(np.zeros((32, 1)), jax.device_get(source.Stream().labels(jnp.arange(32))))
  made = pretrain.examples(drawn)
  for i in range(32):
    names = labels.names(jax.tree.map(lambda x, i=i: x[i], drawn.labels))
    assert {head: made.words[head][values[i]] for head, values in made.labels.items()} == {
      head: names[head] for head in made.labels
    }


def test_what_an_image_does_not_show_is_unknown_to_the_probe():
  drawn = album.Album(np.zeros((256, 1)), jax.device_get(source.Stream().labels(jnp.arange(256))))
  made, seen = pretrain.examples(drawn), pretrain.visible(drawn)
  two = drawn.labels.other_cls >= 0
  for head, values in seen.labels.items():
    hidden = values != made.labels[head]
    assert (values[hidden] == -1).all()
    if head in ("context", "style"):
      assert not hidden.any()
    elif head != "colour":
      np.testing.assert_array_equal(hidden, two & (made.labels[head] >= 0))
  styles = {made.words["style"][i] for i in made.labels["style"][~two & (seen.labels["colour"] == -1)]}
  assert "line drawing" in styles and "photo" not in styles


def test_unknown_arguments_are_refused(capsys):
  with pytest.raises(SystemExit):
    cli.main(["toybox", "--out", "x", "--config.batch_size=4"])
  assert "--config.batch_size=4" in capsys.readouterr().err


def test_stages_are_trained_apart_and_joined(shared):
  assert run("t5", shared, common(shared) + TINY["t5"]) == 0
  text = f"--config.text_encoder={shared / 't5/model'}"
  small = [
    "--config.model.widths=(8,8)", "--config.model.blocks=(1,1)", "--config.model.head_width=8",
    "--config.model.cross_width=32", "--config.model.time_width=8", "--config.sampling.steps=1",
    "--config.eval_examples=2",
    "--config.train.train=16", "--config.held_out.subjects=16", "--config.steps=2", "--config.batch_size=4",
    "--config.accumulation_steps=2", "--config.resolution=64", text,
  ]  # fmt: skip
  base = ["--config.model.image=8", "--config.model.attention=(False,True)"]
  sr = ["--config.model.image=16", "--config.model.attention=(False,False)", "--config.small=8"]
  for which, changes in (("base", base), ("sr", sr)):
    albums = f"--config.albums={shared / which / 'albums'}"
    arguments = ["--config", f"pretrain.py:{which}", "--workdir", str(shared / which), albums, *small, *changes]
    assert cli.main(["pretrain", *arguments]) == 0
    assert len(list((shared / which / "samples").iterdir())) == 1
  measured = json.loads((shared / "base/measured.json").read_text())
  assert set(measured) == {"class", "context", "colour", "style"}
  stages = f"--config.stages={(str(shared / 'base/model'), str(shared / 'sr/model'))!r}"
  arguments = ["--config", "pretrain.py:cascade", "--workdir", str(shared / "cascade"), text, stages]
  assert cli.main(["pretrain", *arguments]) == 0
  whole, params = generators.load(shared / "cascade/model")
  assert [stage.image for stage in whole.stages] == [8, 16]
  assert generators.sample(whole, params, ["a dog"], batch_size=1).shape == (1, 16, 16, 3)
