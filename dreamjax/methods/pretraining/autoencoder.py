"""Training of Stable Diffusion's autoencoder on images.

With z = mean + std eps the latents of an image x, x' their reconstruction, and d the distance of `perceptual`:

    L = |x - x'|^2 + |x - x'| + a d(x, x') + b KL(N(mean, std^2) || N(0, 1))                                       (1)

all of them means over pixels or latents. "High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et
al., 2112.10752), section 3.1 and appendix G, without the discriminator. When the model is saved, its `scale` is set to
one over the standard deviation of the latents, so that they have unit variance.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import ml_collections
import numpy as np

from dreamjax.convert import pretrained
from dreamjax.data.examples import Examples, epochs, on_device
from dreamjax.methods.pretraining import perceptual
from dreamjax.methods.pretraining.task import Task, in_batches, init_params, load_matching, signed
from dreamjax.methods.pretraining.vqgan import psnr
from dreamjax.models.autoencoder import Autoencoder, Gaussian
from dreamjax.train.logs import Sheet

_SHEET_IMAGES = 16  # on the sheet of samples, each next to its reconstruction


def kl_divergence(gaussian: Gaussian) -> Float[Array, ""]:
  """Computes the mean KL divergence of each latent's Gaussian from N(0, 1), in nats."""
  mean, log_variance = gaussian
  return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)


class AutoencoderTask(Task):
  """The training of an autoencoder."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    examples: Examples,
    held_out: Examples,
    mesh: jax.sharding.Mesh | None = None,
  ) -> None:
    """Initialises the parameters.

    Args:
      config: see `configs/pretrain_latent.py`.
      examples: the images to train on.
      held_out: the images to evaluate on.
      mesh: devices over which parameters are sharded; see `parallel.sharding`.

    Raises:
      ValueError: if the network of `config.perceptual` is no ResNet.
    """
    self.config, self.examples, self.held_out = config, examples, held_out
    self.model = Autoencoder(**config.model)
    self.network, self.frozen = perceptual.load(config.perceptual)
    size = config.resolution
    self.theta = init_params(self.model, jax.random.key(config.seed), jnp.zeros((1, size, size, 3)), mesh=mesh)
    if config.start:
      self.theta = load_matching(self.theta, pretrained.load(config.start)[1])
    self._order = epochs(len(examples), config.batch_size, config.seed)
    self._read = on_device(examples.load_images, len(examples)) if config.resident else examples.load_images
    self._reconstruct = jax.jit(self._reconstruction)

  def loss(self, theta: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Array, dict[str, Array]]:
    """Computes eq. 1."""
    x = signed(batch["images"])
    gaussian = self.model.apply({"params": theta}, x, method="gaussian")
    eps = jax.random.normal(key, gaussian.mean.shape)
    z = gaussian.mean + jnp.exp(0.5 * gaussian.log_variance) * eps
    reconstruction = self.model.apply({"params": theta}, z, method="decode")
    squared, absolute = jnp.mean(jnp.square(x - reconstruction)), jnp.mean(jnp.abs(x - reconstruction))
    kl = kl_divergence(gaussian)
    total = squared + absolute + self.config.kl * kl
    metrics = {"squared": squared, "absolute": absolute, "kl": kl}
    if self.config.likeness:
      metrics["perceptual"] = perceptual.distance(self.network, frozen, x, reconstruction)
      total = total + self.config.likeness * metrics["perceptual"]
    return total, metrics

  def batch(self, i: int) -> Any:
    """Returns the images of update i."""
    return {"images": self._read(self._order(i))}

  def measure(self, theta: Any) -> dict[str, float]:
    """Evaluates reconstructions of held-out images: PSNR in decibels, and eq. 1 of `perceptual`."""
    images = self._held_out(self.config.eval_examples)
    decibels, distances = in_batches(lambda some: self._reconstruct(theta, self.frozen, some)[2:], images, 16)
    return {"psnr": float(jnp.mean(decibels)), "perceptual": float(jnp.mean(distances))}

  def show(self, theta: Any) -> Sheet:
    """Returns held-out images, each next to its reconstruction."""
    images = self._held_out(_SHEET_IMAGES)
    reconstruction = self._reconstruct(theta, self.frozen, images)[0]
    pairs = np.stack([signed(jnp.asarray(images)), reconstruction], axis=1).reshape(-1, *images.shape[1:])
    return Sheet(pairs, [name for i in range(len(images)) for name in (f"image {i}", "its reconstruction")])

  def save(self, theta: Any, folder: pathlib.Path) -> None:
    """Writes the model, its scale set so that the latents of the first training images have unit variance."""
    images = self.examples.load_images(np.arange(min(len(self.examples), self.config.eval_examples)))
    z = in_batches(lambda some: self._reconstruct(theta, self.frozen, some)[1], images, 16)
    pretrained.save(folder, self.model.clone(scale=1.0 / float(jnp.std(z))), theta)

  def _held_out(self, most: int) -> np.ndarray:
    """At most so many held-out images, evenly spaced over all splits."""
    count = len(self.held_out)
    return self.held_out.load_images(np.linspace(0, count - 1, min(count, most)).astype(int))

  def _reconstruction(self, params: Any, frozen: Any, images: Array) -> tuple[Array, Array, Array, Array]:
    """Reconstructions, latents, PSNR and perceptual distance of images in bytes."""
    x = signed(images)
    z = self.model.apply({"params": params}, x, method="encode")
    reconstruction = jnp.clip(self.model.apply({"params": params}, z, method="decode"), -1, 1)
    distance = jax.vmap(lambda a, b: perceptual.distance(self.network, frozen, a[None], b[None]))
    return reconstruction, z, psnr(x, reconstruction), distance(x, reconstruction)
