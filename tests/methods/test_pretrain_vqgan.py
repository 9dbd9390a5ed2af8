"""The VQGAN's losses, which network each of them trains, and a short training."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from dreamjax.convert import pretrained
from dreamjax.data.examples import Examples
from dreamjax.methods.pretraining import perceptual, vqgan
from dreamjax.models.resnet import Classifier, ResNet

NETWORK = ResNet(embedding=8, image=16, widths=(8, 8), blocks=1)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
  """The folder of a network whose features are compared."""
  folder = tmp_path_factory.mktemp("network")
  params = NETWORK.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
  pretrained.save(folder, NETWORK, params, np.float32)
  return folder


@pytest.fixture(scope="module")
def data():
  """Images of two halves in two colours."""
  draw = np.random.default_rng(0)
  halves = draw.integers(0, 255, (32, 1, 2, 3), dtype=np.uint8)
  images = np.broadcast_to(np.repeat(halves, 8, axis=2), (32, 16, 16, 3))
  return Examples((images,), lambda indices: [""] * len(indices), {}, {}, np.arange(32))


def config(network, **fields):
  return ml_collections.ConfigDict({
    "seed": 0, "start": "", "resolution": 16, "perceptual": str(network), "batch_size": 8, "eval_examples": 16,
    "model": {"widths": (8, 8), "blocks": 1, "latent": 8, "embedding": 4, "codebook": 16, "patch": 2, "groups": 4},
    "discriminator": {"widths": (8, 8), "groups": 4}, "likeness": 0.05, "adversarial": 0.1, "adversarial_from": 1,
    "commitment": 0.25, "entropy": 0.02, "temperature": 0.1, "quantised": True, "clustered": 0, "resident": False,
    **fields,
  })  # fmt: skip


def test_an_error_of_a_hundredth_of_the_range_is_40_decibels():
  x = jnp.zeros((2, 4, 4, 3))
  np.testing.assert_allclose(vqgan.psnr(x, x + jnp.array([0.02, 0.2])[:, None, None, None]), [40, 20], rtol=1e-5)


def test_the_entropy_loss_is_least_where_positions_are_sure_and_all_vectors_are_used():
  vectors = jnp.eye(4)
  even = jnp.broadcast_to(vectors.reshape(2, 2, 4), (3, 2, 2, 4))
  assert float(vqgan.codebook_entropy_loss(even, vectors, 0.01)) == pytest.approx(-np.log(4), abs=1e-4)
  one = jnp.broadcast_to(vectors[0], (3, 2, 2, 4))
  assert float(vqgan.codebook_entropy_loss(one, vectors, 0.01)) == pytest.approx(0, abs=1e-4)
  unsure = jnp.zeros((3, 2, 2, 4))
  assert float(vqgan.codebook_entropy_loss(unsure, vectors, 0.01)) == pytest.approx(0, abs=1e-4)


def test_the_centres_of_clusters_are_near_the_vectors():
  draw = np.random.default_rng(1)
  groups = np.array([[0, 0], [10, 0], [0, 10]])
  z = (groups[draw.integers(0, 3, 300)] + 0.1 * draw.standard_normal((300, 2))).astype(np.float32)
  centres = vqgan.cluster_centres(z, 8, 0)
  assert np.square(centres[:, None] - groups[None]).sum(-1).min(1).max() < 1
  with pytest.raises(ValueError, match="7 vectors cannot form 8 clusters"):
    vqgan.cluster_centres(z[:7], 8, 0)


def test_perceptual_distance_is_0_between_equal_images_and_takes_images_of_any_size(network):
  _, params = pretrained.load(network)
  x = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32))
  near, far = x + 0.05 * jnp.sign(x), -x
  values = [float(perceptual.distance(NETWORK, params, x, y)) for y in (x, near, far)]
  assert values[0] == 0 and 0 < values[1] < values[2]


def test_each_network_is_trained_by_its_own_loss(network, data):
  task = vqgan.VQGANTask(config(network), data, data)
  gradient = jax.jit(jax.grad(lambda theta, batch: task.loss(theta, task.frozen, batch, jax.random.key(0))[0]))

  batch = task.batch(0)
  weights = [task.batch(i)["adversarial"] for i in (0, 1)]

  def gradients(i, change):
    return gradient({**task.theta, **change}, {**batch, "adversarial": weights[i]})

  early, late = gradients(0, {}), gradients(1, {})
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(early["discriminator"]))
  assert any(np.any(leaf) for leaf in jax.tree.leaves(late["discriminator"]))
  # A discriminator whose output is constant has no gradient with respect to the reconstruction.
  mute = {"discriminator": jax.tree.map(jnp.zeros_like, task.theta["discriminator"])}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradients(0, mute)["vqgan"], gradients(1, mute)["vqgan"]
  )
  moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (early["vqgan"], late["vqgan"])), strict=True)]
  assert max(moved) > 1e-4


def test_a_short_training_reconstructs_images_and_is_saved(network, data, tmp_path):
  task = vqgan.VQGANTask(config(network, adversarial_from=10_000), data, data)
  step = jax.jit(jax.value_and_grad(lambda theta, batch: task.loss(theta, task.frozen, batch, jax.random.key(0))[0]))
  theta, before = task.theta, task.measure(task.theta)
  for i in range(60):
    _, gradient = step(theta, task.batch(i))
    theta = jax.tree.map(lambda x, g, rate=0.02 * (1 - i / 60): x - rate * jnp.sign(g), theta, gradient)
  after = task.measure(theta)
  assert after["psnr"] > before["psnr"] + 3 and 0 < after["codebook_use"] <= 1
  task.save(theta, tmp_path / "model")
  again = vqgan.VQGANTask(config(network, start=str(tmp_path / "model")), data, data)
  assert again.measure(again.theta)["psnr"] == pytest.approx(after["psnr"], abs=0.1)
  clustered = vqgan.VQGANTask(config(network, start=str(tmp_path / "model"), clustered=32), data, data)
  found = clustered.measure(clustered.theta)
  assert found["codebook_use"] >= after["codebook_use"] and found["psnr"] > after["psnr"] - 1
  sheet = task.show(theta)
  assert len(sheet.images) == len(sheet.captions) == 32


def test_without_quantisation_the_codebook_is_neither_used_nor_trained(network, data):
  task = vqgan.VQGANTask(config(network, quantised=False), data, data)
  gradient = jax.jit(jax.grad(lambda theta, batch: task.loss(theta, task.frozen, batch, jax.random.key(0))[0]))
  moved = gradient(task.theta, task.batch(0))
  assert not np.any(moved["vqgan"]["codebook"]) and np.any(moved["vqgan"]["before"]["kernel"])
  other = {**task.theta, "vqgan": {**task.theta["vqgan"], "codebook": jnp.ones((16, 4))}}
  assert task.measure(task.theta)["psnr"] == task.measure(other)["psnr"]


def test_a_network_other_than_a_resnet_is_refused(data, tmp_path):
  network = Classifier(heads={"class": ("dog", "cat")}, image=16, widths=(8,), blocks=1)
  params = network.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
  pretrained.save(tmp_path, network, params)
  with pytest.raises(ValueError, match="holds a Classifier, but features are compared of a ResNet only"):
    vqgan.VQGANTask(config(tmp_path), data, data)
