"""The losses of the encoders, and a few steps of each of their trainings."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from dreamjax.convert import pretrained
from dreamjax.data import tokenizer as tokenizers
from dreamjax.data.examples import Examples
from dreamjax.data.preprocessing import Preprocessor
from dreamjax.data.tokenizer import Tokenizer
from dreamjax.methods.pretraining import classifier, contrastive, text
from dreamjax.methods.pretraining.task import in_batches, init_params, load_matching, signed
from dreamjax.models.resnet import Classifier, ResNet
from dreamjax.models.vit import ViT
from dreamjax.parallel import sharding

WORDS = {"class": ("dog", "cat"), "colour": ("red", "green", "blue")}


def examples(n, seed):
  """Squares in three colours at two heights, two of each subject."""
  rng = np.random.default_rng(seed)
  cls, colour = (np.repeat(rng.integers(0, k, n // 2), 2) for k in (2, 3))
  images = rng.integers(0, 40, (n, 16, 16, 3), dtype=np.uint8)
  for i in range(n):
    images[i, 8 * cls[i] : 8 * cls[i] + 8, :, colour[i]] += 200
  captions = [f"a {WORDS['colour'][k]} {WORDS['class'][c]} on the beach" for c, k in zip(cls, colour, strict=True)]
  return Examples(
    (images,), lambda i: [captions[j] for j in i], {"class": cls, "colour": colour}, WORDS, np.arange(n) // 2
  )


@pytest.fixture(scope="module")
def data():
  return examples(64, 0), examples(32, 1)


@pytest.fixture(scope="module")
def tokenizer():
  return Tokenizer(tokenizers.train([*examples(64, 0).captions(range(64)), "what is rarely said"], 330), 12)


def config(**fields):
  return ml_collections.ConfigDict({"seed": 0, "batch_size": 16, "start": "", "keep": 1.0, **fields})


AUGMENT = {"scale": (0.9, 1.0), "flip": False, "blur": 1.0, "light": 0.0, "noise": 0.0}
RESNET = {"embedding": 8, "image": 16, "widths": (8, 8), "blocks": 1}
VIT = {"image": 16, "patch": 8, "width": 16, "depth": 1, "heads": 2, "mlp": 16}


def descend(task, steps, rate):
  """The loss at each of some steps of plain gradient descent, and the parameters after them."""
  step = jax.jit(
    lambda theta, batch: jax.value_and_grad(task.loss, has_aux=True)(theta, None, batch, jax.random.key(0))
  )
  theta, losses = task.theta, []
  for i in range(steps):
    (loss, _), gradient = step(theta, task.batch(i))
    losses.append(float(loss))
    theta = jax.tree.map(lambda x, g: x - rate * g, theta, gradient)
  return losses, theta


def test_contrast_is_the_symmetric_cross_entropy_of_cosines():
  a, b = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
  loss, accuracy = contrastive.contrast(jnp.asarray(a), jnp.asarray(b), 7.0)
  cosines = np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a])
  p = np.exp(7.0 * cosines)
  expected = -np.mean([np.log(p[i, i] / p[i].sum()) + np.log(p[i, i] / p[:, i].sum()) for i in range(5)]) / 2
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(accuracy, np.mean(cosines.argmax(1) == np.arange(5)), rtol=1e-6)


def test_cross_entropy_counts_known_labels_only():
  logits = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
  labels = np.array([2, -1, 0, 1])
  loss, accuracy = classifier.cross_entropy({"colour": jnp.asarray(logits)}, {"colour": jnp.asarray(labels)})
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  known = [0, 2, 3]
  np.testing.assert_allclose(loss, -np.mean([log_p[i, labels[i]] for i in known]), rtol=1e-5)
  np.testing.assert_allclose(accuracy["colour"], np.mean([logits[i].argmax() == labels[i] for i in known]), rtol=1e-6)
  nobody, _ = classifier.cross_entropy({"colour": jnp.asarray(logits)}, {"colour": jnp.full(4, -1)})
  assert float(nobody) == 0.0


def test_in_batches_equals_the_function_of_all_inputs():
  x = jnp.arange(22.0).reshape(11, 2)
  np.testing.assert_array_equal(in_batches(lambda y: 2 * y, x, size=4), 2 * x)


def test_signed_covers_the_range():
  np.testing.assert_allclose(signed(jnp.array([0, 255], jnp.uint8)), [-1.0, 1.0])


def test_parameters_are_initialised_sharded_and_those_that_are_loaded_into_them_too(monkeypatch):
  monkeypatch.setattr(sharding, "_MIN_SHARDED", 1)
  model = Classifier(heads=WORDS, image=16, widths=(8, 8), blocks=1)
  inputs = jax.random.key(0), jnp.zeros((1, 16, 16, 3))
  mesh = sharding.make_mesh((1, 8, 1))
  unsharded, sharded = init_params(model, *inputs), init_params(model, *inputs, mesh=mesh)
  for params in (sharded, load_matching(sharded, jax.device_get(unsharded))):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, unsharded)
    leaves = jax.tree.leaves(params)
    assert [x.sharding for x in leaves] == jax.tree.leaves(sharding.param_shardings(params, mesh))
    assert sum(x.addressable_shards[0].data.size for x in leaves) < 0.2 * sum(x.size for x in leaves)


def test_the_classifier_learns_and_its_saved_model_is_the_same(data, tmp_path):
  model = {"image": 16, "widths": (8, 8), "blocks": 1}
  task = classifier.ClassifierTask(config(model=model, augment=AUGMENT), *data)
  losses, theta = descend(task, 25, 0.1)
  assert losses[-1] < 0.5 * losses[0]
  measured = task.measure(theta)
  assert measured["held_out_class"] > 0.9 and set(measured) == {"held_out_class", "held_out_colour"}
  task.save(theta, tmp_path)
  loaded, params = pretrained.load(tmp_path)
  assert isinstance(loaded, Classifier) and dict(loaded.heads) == WORDS
  images = data[1].load_images(np.arange(4))
  ours = Classifier(heads=WORDS, **model).apply(theta, signed(jnp.asarray(images)))
  prepared = jnp.asarray(Preprocessor.load(tmp_path)(list(images)))
  theirs = loaded.apply({"params": params}, prepared)
  for name, scores in ours.items():
    np.testing.assert_allclose(theirs[name], scores, atol=0.03)  # it is stored in half precision


def test_clip_learns_to_match_images_and_captions(data, tokenizer, tmp_path):
  model = {
    "vision": {**VIT, "projection": 8}, "text": {"width": 16, "depth": 1, "heads": 2, "mlp": 16, "projection": 8},
  }  # fmt: skip
  task = contrastive.CLIPTask(config(model=model, augment=AUGMENT), *data, tokenizer)
  losses, theta = descend(task, 30, 0.3)
  assert losses[-1] < losses[0] - 0.3
  task.save(theta, tmp_path)
  loaded, _ = pretrained.load(tmp_path)
  assert loaded.text.eos == tokenizer.inner.eos_token_id
  np.testing.assert_array_equal(Tokenizer.load(tmp_path, 12)(["a red dog"])[0], tokenizer(["a red dog"])[0])


def test_clips_image_tower_starts_from_another_models_blocks(data, tokenizer, tmp_path):
  vit = ViT(**VIT)
  start = vit.init(jax.random.key(7), jnp.zeros((1, 16, 16, 3)))["params"]
  pretrained.save(tmp_path, vit, start, np.float32)
  model = {
    "vision": {**VIT, "projection": 8}, "text": {"width": 16, "depth": 1, "heads": 2, "mlp": 16, "projection": 8},
  }  # fmt: skip
  made = config(model=model, augment=AUGMENT, start=str(tmp_path))
  tower = contrastive.CLIPTask(made, *data, tokenizer).theta["params"]["vision"]
  jax.tree.map(np.testing.assert_array_equal, tower["block_0"], start["block_0"])
  np.testing.assert_array_equal(tower["embed"]["positions"], start["embed"]["positions"])
  assert "embed_norm" in tower and "bias" not in tower["embed"]["patches"]


def test_a_batch_holds_two_photos_of_each_subject(data, tmp_path):
  made = config(model=RESNET, augment=AUGMENT, temperature=0.2, classes=1, batch_size=8, parts=2, only={})
  task = contrastive.PhotosTask(made, *data)
  seen = set()
  for i in range(8):
    images = task.batch(i)["images"].astype(int)
    assert images.shape == (8, 16, 16, 3)
    halves = [np.stack([p[:8].mean((0, 1)), p[8:].mean((0, 1))]).round(-2) for p in images]
    for a, b in zip(halves[:4], halves[4:], strict=True):
      np.testing.assert_array_equal(a, b)  # the other photo shows the same
    seen.add(tuple(h[0].max() > h[1].max() for h in halves))
  assert {row[0] for row in seen} == {True, False} and all(len(set(row)) == 1 for row in seen)  # one class a batch
  losses, theta = descend(task, 40, 0.3)
  assert np.mean(losses[-5:]) < np.mean(losses[:5])
  task.save(theta, tmp_path)
  assert pretrained.load(tmp_path)[0] == ResNet(**RESNET)
  made.start = str(tmp_path)
  more = contrastive.PhotosTask(made, *data).theta
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-3), more, theta)


def test_pairs_are_two_photos_of_one_subject_among_those_of_the_config(data):
  pairs = contrastive._Pairs(data[0], {"colour": "green"})
  subjects = np.repeat(np.arange(len(pairs.classes)), 40)
  one, other = pairs.draw(np.random.default_rng(0), subjects).T
  assert (one != other).all() and (data[0].subjects[one] == data[0].subjects[other]).all()
  assert (data[0].labels["colour"][[one, other]] == 1).all()
  assert set(one) == set(other) == set(np.flatnonzero(data[0].labels["colour"] == 1))
  np.testing.assert_array_equal(data[0].labels["class"][one], pairs.classes[subjects])
  alone = dataclasses.replace(data[0], subjects=np.arange(64))
  with pytest.raises(ValueError, match="no two of any"):
    contrastive._Pairs(alone, {})


def test_the_text_encoder_learns_to_predict_tokens_and_labels(data, tokenizer, tmp_path):
  model = {"width": 16, "head_width": 8, "heads": 2, "mlp": 32, "depth": 1}
  made = config(model=model, length=10, hidden=2, rare=0.5)
  task = text.TextTask(made, *data, tokenizer)
  losses, theta = descend(task, 40, 0.3)
  assert losses[-1] < 0.6 * losses[0]
  assert task.measure(theta)["held_out_class"] > 0.9
  task.save(theta, tmp_path)
  assert pretrained.load(tmp_path)[0].width == 16


def test_masked_positions_are_tokens_rather_than_padding():
  ids = jnp.arange(40).reshape(4, 10) + 3
  mask = jnp.arange(10)[None] < jnp.array([10, 7, 5, 2])[:, None]
  kept = 0
  for seed in range(50):
    masked, positions = jax.device_get(text.mask_tokens(jax.random.key(seed), ids, mask, 3, 2))
    for row in range(4):
      length = mask[row].sum()
      assert len(set(positions[row])) == 3 and (np.sort(positions[row])[: min(3, length)] < length).all()
      changed = np.flatnonzero(masked[row] != ids[row])
      assert set(changed) <= set(positions[row]) and (masked[row][changed] == 2).all()
    kept += 12 - (masked != ids).sum()
  assert 60 < kept < 180  # one of five


def test_rare_tokens_are_inserted_after_the_first_and_nothing_else_changes(data, tokenizer):
  rare = set(text.rare_tokens(tokenizer, data[0].captions(range(64))).tolist())
  used = set(tokenizer(data[0].captions(range(64)))[0].reshape(-1).tolist())
  assert rare and not rare & used
  model = {"width": 16, "head_width": 8, "heads": 2, "mlp": 32, "depth": 1}
  task = text.TextTask(config(model=model, length=12, hidden=2, rare=1.0), *data, tokenizer)
  batch = task.batch(0)
  plain = {tuple(row) for row in tokenizer(data[0].captions(range(64)))[0].tolist()}
  for ids, mask in zip(batch["ids"].tolist(), batch["mask"].tolist(), strict=True):
    positions = [i for i, token in enumerate(ids) if token in rare]
    assert len(positions) == 1 and 1 <= positions[0] <= 3 and sum(mask) == ids.index(1) + 1
    assert tuple(ids[: positions[0]] + ids[positions[0] + 1 :] + [0]) in plain
