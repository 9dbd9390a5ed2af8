"""Training of a VQGAN: an autoencoder of images by way of few tokens.

With x' the reconstruction of x, z the encoder's output and e the nearest vectors of the codebook, sg[] the identity
without a gradient, d the distance of `perceptual`, and D the discriminator:

    L = |x - x'|^2 + |x - x'| + a d(x, x') - b D(x')                                                               (1)
        + |sg[z] - e|^2 + beta |z - sg[e]|^2 + c (E H(p) - H(E p)),   p = softmax(-|z - e_k|^2 / tau)
    L_D = max(0, 1 - D(x)) + max(0, 1 + D(x'))                                                                     (2)

all of them means. "Taming Transformers" (Esser et al., 2012.09841, eqs. 4 to 6) and, for the entropies, which keep all
of the codebook in use, MaskGIT's published code (Chang et al., 2202.04200). Both networks are trained in one step: in
(1) the discriminator is constant, in (2) the reconstruction.

When a codebook is trained from random vectors, few of them come into use. Therefore the networks are first trained
without quantisation, with the first line of (1), without D, and x' decoded from z; then the codebook is initialised
with the centres of clusters of z (k-means).
"""

import pathlib
from typing import Any
import warnings

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import ml_collections
import numpy as np
from scipy.cluster import vq

from dreamjax.convert import pretrained
from dreamjax.data.examples import Examples, epochs, on_device
from dreamjax.errors import UserError
from dreamjax.methods.pretraining import perceptual
from dreamjax.methods.pretraining.task import Task, in_batches, init_params, load_matching, signed
from dreamjax.models.vqgan import VQGAN, Discriminator
from dreamjax.train.logs import Sheet

_SHEET_IMAGES = 16  # on the sheet of samples, each next to its reconstruction


def squared_distances(z: Float[Array, "b h w e"], vectors: Float[Array, "k e"]) -> Float[Array, "n k"]:
  """Computes |z - e_k|^2 for every position and vector."""
  flat = z.reshape(-1, z.shape[-1])
  squares = jnp.sum(jnp.square(flat), axis=-1)[:, None] + jnp.sum(jnp.square(vectors), axis=-1)[None]
  return squares - 2 * flat @ vectors.T


def codebook_entropy_loss(z: Float[Array, "b h w e"], vectors: Float[Array, "k e"], tau: float) -> Float[Array, ""]:
  """Computes E H(p) - H(E p) of eq. 1.

  Its minimum, -log k, is reached where each position is sure of its vector and all vectors are used equally often.
  """
  log_p = jax.nn.log_softmax(-squared_distances(z, vectors) / tau)
  mean = jnp.mean(jnp.exp(log_p), axis=0)
  entropy = -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=-1))
  return entropy + jnp.sum(mean * jnp.log(mean + 1e-9))


def cluster_centres(z: Float[np.ndarray, "n e"], count: int, seed: int) -> Float[np.ndarray, "k e"]:
  """Finds the centres of `count` clusters of vectors, by k-means.

  Raises:
    ValueError: if there are fewer vectors than clusters.
  """
  if len(z) < count:
    raise UserError(f"{len(z)} vectors cannot form {count} clusters: config.clustered must be more images")
  with warnings.catch_warnings(action="ignore"):  # an empty cluster keeps its centre, which is one of the vectors
    centres, _ = vq.kmeans2(z, count, minit="points", rng=np.random.default_rng(seed))
  return centres.astype(np.float32)


def psnr(x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
  """Computes the peak signal-to-noise ratio of images in [-1, 1], in decibels."""
  return 10 * jnp.log10(4 / jnp.mean(jnp.square(x - y), axis=(1, 2, 3)))


class VQGANTask(Task):
  """The training of a VQGAN and its discriminator."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    examples: Examples,
    held_out: Examples,
    mesh: jax.sharding.Mesh | None = None,
  ) -> None:
    """Initialises the parameters of both networks, and the codebook by clustering if the config says so.

    Args:
      config: see `configs/pretrain_muse.py`.
      examples: the images to train on.
      held_out: the images to evaluate on.
      mesh: devices over which parameters are sharded; see `parallel.sharding`.

    Raises:
      ValueError: if the network of `config.perceptual` is no ResNet, or there are too few images to cluster.
    """
    self.config, self.held_out = config, held_out
    self.model, self.discriminator = VQGAN(**config.model), Discriminator(**config.discriminator)
    self.network, self.frozen = perceptual.load(config.perceptual)
    image = jnp.zeros((1, config.resolution, config.resolution, 3))
    key, discriminator_key = jax.random.split(jax.random.key(config.seed))
    self.theta = {
      "vqgan": init_params(self.model, key, image, mesh=mesh),
      "discriminator": init_params(self.discriminator, discriminator_key, image, mesh=mesh),
    }
    if config.start:
      self.theta["vqgan"] = load_matching(self.theta["vqgan"], pretrained.load(config.start)[1])
    if config.clustered:
      images = examples.load_images(np.arange(min(len(examples), config.clustered)))
      self.theta["vqgan"]["codebook"] = self._clustered_codebook(self.theta["vqgan"], images)
    self._order = epochs(len(examples), config.batch_size, config.seed)
    self._read = on_device(examples.load_images, len(examples)) if config.resident else examples.load_images
    self._reconstruct = jax.jit(self._reconstruction)

  def loss(self, theta: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Array, dict[str, Array]]:
    """Computes L + L_D of eqs. 1 and 2, or without quantisation the first line of eq. 1 without D."""
    del key
    config, x, params = self.config, signed(batch["images"]), theta["vqgan"]
    if config.quantised:
      reconstruction, z, tokens = self.model.apply({"params": params}, x)
    else:
      reconstruction = self.model.apply({"params": params}, x, method="around")
    squared = jnp.mean(jnp.square(x - reconstruction))
    distance = perceptual.distance(self.network, frozen, x, reconstruction)
    total = squared + jnp.mean(jnp.abs(x - reconstruction)) + config.likeness * distance
    metrics = {"squared": squared, "perceptual": distance}
    if not config.quantised:
      return total, metrics
    constant = jax.lax.stop_gradient
    nearest = params["codebook"][tokens].reshape(z.shape)
    codebook = jnp.mean(jnp.square(constant(z) - nearest))
    codebook = codebook + config.commitment * jnp.mean(jnp.square(z - constant(nearest)))
    entropy = codebook_entropy_loss(z, params["codebook"], config.temperature)
    total = total + codebook + config.entropy * entropy
    metrics |= {"codebook": codebook, "codebook_entropy": entropy}
    if not config.adversarial:
      return total, metrics
    generated = self.discriminator.apply({"params": constant(theta["discriminator"])}, reconstruction)
    both = jnp.concatenate([x, constant(reconstruction)])
    real, fake = jnp.split(self.discriminator.apply({"params": theta["discriminator"]}, both), 2)
    hinge = jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))
    return total + jnp.mean(batch["adversarial"]) * (hinge - jnp.mean(generated)), metrics | {"hinge": hinge}

  def batch(self, i: int) -> Any:
    """Returns the images of update i and the weight b, which is 0 before `config.adversarial_from`."""
    weight = self.config.adversarial if i >= self.config.adversarial_from else 0.0
    adversarial = np.full(self.config.batch_size, weight, np.float32)
    return {"images": self._read(self._order(i)), "adversarial": adversarial}

  def measure(self, theta: Any) -> dict[str, float]:
    """Evaluates held-out images: PSNR of reconstructions in decibels, and the share of the codebook in use."""
    images = self.held_out.load_images(np.arange(min(len(self.held_out), self.config.eval_examples)))
    tokens, decibels = in_batches(lambda some: self._reconstruct(theta["vqgan"], some)[1:], images, 16)
    used = len(np.unique(np.asarray(tokens))) / self.model.codebook
    return {"psnr": float(jnp.mean(decibels)), "codebook_use": used}

  def show(self, theta: Any) -> Sheet:
    """Returns held-out images, each next to its reconstruction."""
    images = self.held_out.load_images(np.arange(min(len(self.held_out), _SHEET_IMAGES)))
    reconstruction = self._reconstruct(theta["vqgan"], images)[0]
    pairs = np.stack([signed(jnp.asarray(images)), reconstruction], axis=1).reshape(-1, *images.shape[1:])
    return Sheet(pairs, [name for i in range(len(images)) for name in (f"image {i}", "its reconstruction")])

  def save(self, theta: Any, folder: pathlib.Path) -> None:
    """Writes the VQGAN, without the discriminator."""
    pretrained.save(folder, self.model, theta["vqgan"])

  def _clustered_codebook(self, params: Any, images: np.ndarray) -> Float[Array, "k e"]:
    """The centres of clusters of images' z."""
    encode = jax.jit(lambda params, images: self.model.apply({"params": params}, signed(images), method="encode"))
    z = np.asarray(in_batches(lambda some: encode(params, some), images, 16)).reshape(-1, self.model.embedding)
    return jnp.asarray(cluster_centres(z, self.model.codebook, self.config.seed))

  def _reconstruction(self, params: Any, images: Array) -> tuple[Array, Array, Array]:
    """Reconstructions, tokens and PSNR of images in bytes."""
    x = signed(images)
    reconstruction, _, tokens = self.model.apply({"params": params}, x)
    if not self.config.quantised:
      reconstruction = self.model.apply({"params": params}, x, method="around")
    reconstruction = jnp.clip(reconstruction, -1, 1)
    return reconstruction, tokens, psnr(x, reconstruction)
