"""The VQGAN's losses, who is trained by which, and a short training."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from dreamjax.convert import pretrained
from dreamjax.data.examples import Examples
from dreamjax.methods.pretraining import vqgan
from dreamjax.models.resnet import Classifier, ResNet

JUDGE = ResNet(embedding=8, image=16, widths=(8, 8), blocks=1)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
  """The folder of a network whose features are compared."""
  folder = tmp_path_factory.mktemp("judge")
  params = JUDGE.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
  pretrained.save(folder, JUDGE, params, np.float32)
  return folder


@pytest.fixture(scope="module")
def data():
  """Images of two halves in two colours."""
  draw = np.random.default_rng(0)
  halves = draw.integers(0, 255, (32, 1, 2, 3), dtype=np.uint8)
  images = np.broadcast_to(np.repeat(halves, 8, axis=2), (32, 16, 16, 3))
  return Examples((images,), lambda indices: [""] * len(indices), {}, {}, np.arange(32))


def config(judge, **fields):
  return ml_collections.ConfigDict({
    "seed": 0, "start": "", "resolution": 16, "perceptual": str(judge), "batch_size": 8, "eval_examples": 16,
    "model": {"widths": (8, 8), "blocks": 1, "latent": 8, "embedding": 4, "codebook": 16, "patch": 2, "groups": 4},
    "discriminator": {"widths": (8, 8), "groups": 4}, "likeness": 0.05, "adversarial": 0.1, "adversarial_from": 1,
    "commitment": 0.25, "entropy": 0.02, "temperature": 0.1, "quantised": True, "clustered": 0, "resident": False,
    **fields,
  })  # fmt: skip


def test_an_error_of_a_hundredth_of_the_range_is_40_decibels():
  x = jnp.zeros((2, 4, 4, 3))
  np.testing.assert_allclose(vqgan.psnr(x, x + jnp.array([0.02, 0.2])[:, None, None, None]), [40, 20], rtol=1e-5)


def test_disuse_is_least_where_places_are_sure_and_all_vectors_are_used():
  vectors = jnp.eye(4)
  even = jnp.broadcast_to(vectors.reshape(2, 2, 4), (3, 2, 2, 4))
  assert float(vqgan.disuse(even, vectors, 0.01)) == pytest.approx(-np.log(4), abs=1e-4)
  one = jnp.broadcast_to(vectors[0], (3, 2, 2, 4))
  assert float(vqgan.disuse(one, vectors, 0.01)) == pytest.approx(0, abs=1e-4)
  unsure = jnp.zeros((3, 2, 2, 4))
  assert float(vqgan.disuse(unsure, vectors, 0.01)) == pytest.approx(0, abs=1e-4)


def test_clusters_are_around_what_there_is_and_none_is_far_from_all():
  draw = np.random.default_rng(1)
  groups = np.array([[0, 0], [10, 0], [0, 10]])
  z = (groups[draw.integers(0, 3, 300)] + 0.1 * draw.standard_normal((300, 2))).astype(np.float32)
  centres = vqgan.clusters(z, 8, 0)
  assert np.square(centres[:, None] - groups[None]).sum(-1).min(1).max() < 1
  with pytest.raises(ValueError, match="7 vectors do not make 8 clusters"):
    vqgan.clusters(z[:7], 8, 0)


def test_likeness_is_nought_for_an_image_and_itself_and_sees_images_of_any_size(judge):
  _, params = pretrained.load(judge)
  x = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32))
  near, far = x + 0.05 * jnp.sign(x), -x
  values = [float(vqgan.likeness(JUDGE, params, x, y)) for y in (x, near, far)]
  assert values[0] == 0 and 0 < values[1] < values[2]


def test_each_network_is_trained_by_its_own_loss(judge, data):
  task = vqgan.task(config(judge), data, data)
  gradient = jax.jit(jax.grad(lambda theta, batch: task.loss(theta, task.frozen, batch, jax.random.key(0))[0]))

  batch = task.batches(0)
  weights = [task.batches(i)["adversarial"] for i in (0, 1)]

  def gradients(i, change):
    return gradient({**task.theta, **change}, {**batch, "adversarial": weights[i]})

  early, late = gradients(0, {}), gradients(1, {})
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(early["discriminator"]))
  assert any(np.any(leaf) for leaf in jax.tree.leaves(late["discriminator"]))
  # Where the discriminator says the same of everything, it neither pushes the VQGAN nor is its hinge changed by it.
  mute = {"discriminator": jax.tree.map(jnp.zeros_like, task.theta["discriminator"])}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradients(0, mute)["vqgan"], gradients(1, mute)["vqgan"]
  )
  moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (early["vqgan"], late["vqgan"])), strict=True)]
  assert max(moved) > 1e-4


def test_a_short_training_gives_images_back_and_is_saved(judge, data, tmp_path):
  task = vqgan.task(config(judge, adversarial_from=10_000), data, data)
  step = jax.jit(jax.value_and_grad(lambda theta, batch: task.loss(theta, task.frozen, batch, jax.random.key(0))[0]))
  theta, before = task.theta, task.measure(task.theta)
  for i in range(60):
    _, gradient = step(theta, task.batches(i))
    theta = jax.tree.map(lambda x, g, rate=0.02 * (1 - i / 60): x - rate * jnp.sign(g), theta, gradient)
  after = task.measure(theta)
  assert after["psnr"] > before["psnr"] + 3 and 0 < after["codebook_use"] <= 1
  task.save(theta, tmp_path / "model")
  again = vqgan.task(config(judge, start=str(tmp_path / "model")), data, data)
  assert again.measure(again.theta)["psnr"] == pytest.approx(after["psnr"], abs=0.1)
  clustered = vqgan.task(config(judge, start=str(tmp_path / "model"), clustered=32), data, data)
  found = clustered.measure(clustered.theta)
  assert found["codebook_use"] >= after["codebook_use"] and found["psnr"] > after["psnr"] - 1
  sheet = task.show(theta)
  assert len(sheet.images) == len(sheet.captions) == 32


def test_without_a_codebook_images_are_made_from_what_the_encoder_says(judge, data):
  task = vqgan.task(config(judge, quantised=False), data, data)
  gradient = jax.jit(jax.grad(lambda theta, batch: task.loss(theta, task.frozen, batch, jax.random.key(0))[0]))
  moved = gradient(task.theta, task.batches(0))
  assert not np.any(moved["vqgan"]["codebook"]) and np.any(moved["vqgan"]["before"]["kernel"])
  other = {**task.theta, "vqgan": {**task.theta["vqgan"], "codebook": jnp.ones((16, 4))}}
  assert task.measure(task.theta)["psnr"] == task.measure(other)["psnr"]


def test_a_network_without_features_to_compare_is_refused(data, tmp_path):
  network = Classifier(heads={"class": ("dog", "cat")}, image=16, widths=(8,), blocks=1)
  params = network.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
  pretrained.save(tmp_path, network, params)
  with pytest.raises(ValueError, match="holds a Classifier, whose features are not looked at here"):
    vqgan.task(config(tmp_path), data, data)
