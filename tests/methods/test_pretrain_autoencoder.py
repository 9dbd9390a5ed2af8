"""The autoencoder's loss, and what is saved of it."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from dreamjax.convert import pretrained
from dreamjax.data.examples import Examples
from dreamjax.methods.pretraining import autoencoder
from dreamjax.models.autoencoder import Gaussian
from dreamjax.models.resnet import ResNet

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
  images = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
  return Examples((images,), lambda indices: [""] * len(indices), {}, {}, np.arange(20))


def config(network, **fields):
  return ml_collections.ConfigDict({
    "seed": 0, "start": "", "resolution": 16, "perceptual": str(network), "batch_size": 4, "eval_examples": 20,
    "likeness": 0.5, "kl": 0.01, "resident": False,
    "model": {"widths": (8, 8), "blocks": 1, "latent": 4, "groups": 4}, **fields,
  })  # fmt: skip


def test_kl_divergence_is_that_of_the_gaussians_densities():
  x = np.linspace(-12, 12, 20001)
  densities = [np.exp(-0.5 * ((x - m) / s) ** 2) / (s * np.sqrt(2 * np.pi)) for m, s in ((0.7, 0.5), (-1.2, 1.5))]
  normal = -0.5 * x**2 - 0.5 * np.log(2 * np.pi)
  expected = np.mean([np.sum(p * (np.log(np.maximum(p, 1e-300)) - normal)) * (x[1] - x[0]) for p in densities])
  mean, std = jnp.array([[0.7, -1.2]]), jnp.array([[0.5, 1.5]])
  gaussian = Gaussian(mean.reshape(1, 1, 1, 2), 2 * jnp.log(std).reshape(1, 1, 1, 2))
  np.testing.assert_allclose(autoencoder.kl_divergence(gaussian), expected, rtol=1e-4)


def test_the_loss_is_the_weighted_sum_and_what_is_saved_has_latents_of_unit_variance(network, data, tmp_path):
  task = autoencoder.AutoencoderTask(config(network), data, data)
  loss, metrics = jax.jit(task.loss)(task.theta, task.frozen, task.batch(0), jax.random.key(0))
  expected = metrics["squared"] + metrics["absolute"] + 0.01 * metrics["kl"] + 0.5 * metrics["perceptual"]
  np.testing.assert_allclose(loss, expected, rtol=1e-6)

  task.save(task.theta, tmp_path)
  model, params = pretrained.load(tmp_path)
  x = jnp.asarray(data.load_images(np.arange(20)).astype(np.float32) / 127.5 - 1)
  z = jax.jit(lambda x: model.apply({"params": params}, x, method="encode"))(x)
  assert float(jnp.std(z)) == pytest.approx(1, abs=0.02)  # parameters are stored in half precision
  reconstruction = np.clip(jax.jit(lambda x: model.apply({"params": params}, x))(x), -1, 1)
  psnr = np.mean(10 * np.log10(4 / np.mean((np.asarray(x) - reconstruction) ** 2, axis=(1, 2, 3))))
  assert task.measure(task.theta)["psnr"] == pytest.approx(psnr, abs=0.05)
  assert task.show(task.theta).images.shape == (32, 16, 16, 3)

  start = autoencoder.AutoencoderTask(config(network, start=str(tmp_path)), data, data)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), start.theta, task.theta)
