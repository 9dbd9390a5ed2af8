"""The training of token stages: tokens are those of the images, both stages learn, and the saved generator samples."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from dreamjax import generators
from dreamjax.convert import pretrained
from dreamjax.data.examples import Examples
from dreamjax.generators import masked
from dreamjax.methods.pretraining import generator as joining
from dreamjax.methods.pretraining import tokens

CAPTIONS = ("a dog on the beach", "a red cat in the snow")


@pytest.fixture(scope="module")
def data():
  """Two images, each with its caption, many times."""
  two = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
  which = np.arange(32) % 2
  return Examples((two[which],), lambda indices: [CAPTIONS[i % 2] for i in indices], {}, {}, np.arange(32))


@pytest.fixture(scope="module")
def folders(tiny_masked, tmp_path_factory):
  """A text encoder and two VQGANs, which differ in their vectors."""
  generator, params = tiny_masked
  folder = tmp_path_factory.mktemp("parts")
  pretrained.save(folder / "t5", generator.text_encoder, params["text"], np.float32)
  generator.tokenizer.inner.save_pretrained(folder / "t5")
  for i, name in enumerate(("small", "large")):
    weights = dict(params["base"]["vqgan"])
    weights["codebook"] = weights["codebook"] * 0.5 + 0.1 * i
    pretrained.save(folder / name, generator.stages[0].vqgan, weights, np.float32)
  return folder


def config(folders, which, **fields):
  base = which == "base"
  return ml_collections.ConfigDict({
    "seed": 0, "start": "", "stage": which, "name": "tiny", "text_encoder": str(folders / "t5"), "length": 8,
    "vqgan": str(folders / ("small" if base else "large")), "image": 4 if base else 8,
    "low_vqgan": "" if base else str(folders / "small"), "low_image": 0 if base else 4,
    "model": {"width": 16, "heads": 2, "mlp": 24, "depth": 1, **({} if base else {"low_depth": 1})},
    "decoding": {"steps": 2, "temperature": 1.0, "lambda_b": 1.0}, "min_mask_ratio": 0.0, "smoothing": 0.0,
    "text_dropout": 0.1, "batch_size": 8, "eval_examples": 4, "resident": base, **fields,
  })  # fmt: skip


def descend(task, steps):
  """Losses of some steps of descent by the gradient's signs, and the theta that they lead to."""
  step = jax.jit(lambda theta, rows, key: jax.value_and_grad(task.loss, has_aux=True)(theta, task.frozen, rows, key))
  theta, losses = task.theta, []
  for i in range(steps):
    (loss, _), gradient = step(theta, task.batch(i), jax.random.key(i))
    losses.append(float(loss))
    theta = jax.tree.map(lambda x, g: x - 0.01 * jnp.sign(g), theta, gradient)
  return losses, theta


def test_both_stages_learn_and_are_joined(folders, data, tmp_path):
  scored = []

  def scorer(images, texts):
    scored.append(list(zip(images, texts, strict=True)))
    return {"class": 1.0}

  for which in ("base", "sr"):
    task = tokens.TokensTask(config(folders, which), data, data, scorer)
    vqgan, params = pretrained.load(folders / ("small" if which == "base" else "large"))
    rows = task.batch(0)
    side = 4 if which == "base" else 8
    images = jnp.asarray(data.load_images(np.arange(2))).astype(jnp.float32) / 127.5 - 1
    small = images.reshape(2, side, 8 // side, side, 8 // side, 3).mean(axis=(2, 4))
    wanted = np.asarray(vqgan.apply({"params": params}, small, method="tokens"))
    assert {tuple(row) for row in np.asarray(rows.tokens)} <= {tuple(row) for row in wanted}
    assert (rows.low is None) == (which == "base")
    losses, theta = descend(task, 60)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    assert task.measure(theta) == {"class": 1.0} and len(scored[-1]) == 32  # as many as are shown
    assert task.show(theta).images.shape == (32, side, side, 3)
    task.save(theta, tmp_path / which)
  joining.join([str(tmp_path / "base"), str(tmp_path / "sr")], str(folders / "t5"), tmp_path / "whole")
  whole, params = generators.load(tmp_path / "whole")
  assert [stage.image for stage in whole.stages] == [4, 8]
  drawn = generators.sample(whole, params, list(CAPTIONS), n=2, batch_size=4)
  assert drawn.shape == (4, 8, 8, 3) and np.abs(drawn[0] - drawn[2]).max() > 0.01


def test_super_resolution_evaluates_only_branches_with_weight(folders, data, monkeypatch):
  evaluated, sample = [], masked.sample_tokens

  def watched(*args):
    evaluated.append(args[3].shape)
    return sample(*args)

  monkeypatch.setattr(masked, "sample_tokens", watched)
  for guidance in (0.0, 1.0):
    task = tokens.TokensTask(config(folders, "sr", decoding={"steps": 1, "lambda_b": guidance}), data, data)
    task.show(task.theta)
  assert evaluated == [(2, 1), (2, 2)]


def test_a_folder_without_a_vqgan_is_refused(folders, data):
  with pytest.raises(ValueError, match="t5 holds a T5Encoder, but a VQGAN is wanted there"):
    tokens.TokensTask(config(folders, "base", vqgan=str(folders / "t5")), data, data)
