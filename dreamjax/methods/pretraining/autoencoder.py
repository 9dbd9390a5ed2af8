"""Training of Stable Diffusion's autoencoder on images.

With z = mean + std eps the latents of an image x, x' their reconstruction, and F_l the features of a frozen network,
each of unit length:

    L = |x - x'|^2 + |x - x'| + a sum_l |F_l(x) - F_l(x')|^2 + b KL(N(mean, std^2) || N(0, 1))                     (1)

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
from dreamjax.methods.pretraining.task import Task, in_pieces, initial, signed, warm
from dreamjax.methods.pretraining.vqgan import likeness, psnr
from dreamjax.models.autoencoder import Autoencoder, Gaussian
from dreamjax.models.resnet import ResNet
from dreamjax.train.logs import Sheet

_SHEET_IMAGES = 16  # on the sheet of samples, each next to its reconstruction


def kl_divergence(gaussian: Gaussian) -> Float[Array, ""]:
  """The mean KL divergence of each latent's Gaussian from N(0, 1), in nats."""
  mean, log_variance = gaussian
  return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)


def task(
  config: ml_collections.ConfigDict, examples: Examples, held_out: Examples, mesh: jax.sharding.Mesh | None = None
) -> Task:
  """The training of an autoencoder.

  Args:
    config: see `configs/pretrain_latent.py`.
    examples: the images to train on.
    held_out: the images to evaluate on.
    mesh: of devices, on which parameters are initialised; see `parallel.sharding`.

  Raises:
    ValueError: if the network of `config.perceptual` is no ResNet, whose features are compared here.
  """
  model = Autoencoder(**config.model)
  scorer, scorer_params = pretrained.load(config.perceptual)
  if not isinstance(scorer, ResNet):
    raise ValueError(f"{config.perceptual} holds a {type(scorer).__name__}, not a ResNet, whose features are compared")
  size = config.resolution
  theta = initial(model, jax.random.key(config.seed), jnp.zeros((1, size, size, 3)), mesh=mesh)
  if config.start:
    theta = warm(theta, pretrained.load(config.start)[1])
  order = epochs(len(examples), config.batch_size, config.seed)

  def loss(theta: Any, frozen: Any, batch: Any, key: jax.Array):
    x = signed(batch["images"])
    gaussian = model.apply({"params": theta}, x, method="gaussian")
    eps = jax.random.normal(key, gaussian.mean.shape)
    z = gaussian.mean + jnp.exp(0.5 * gaussian.log_variance) * eps
    reconstruction = model.apply({"params": theta}, z, method="decode")
    squared, absolute = jnp.mean(jnp.square(x - reconstruction)), jnp.mean(jnp.abs(x - reconstruction))
    kl = kl_divergence(gaussian)
    total = squared + absolute + config.kl * kl
    metrics = {"squared": squared, "absolute": absolute, "kl": kl}
    if config.likeness:
      metrics["perceptual"] = likeness(scorer, frozen, x, reconstruction)
      total = total + config.likeness * metrics["perceptual"]
    return total, metrics

  take = on_device(examples.load_images, len(examples)) if config.resident else examples.load_images

  @jax.jit
  def reconstruct(params: Any, frozen: Any, images: Any) -> Any:
    x = signed(images)
    z = model.apply({"params": params}, x, method="encode")
    reconstruction = jnp.clip(model.apply({"params": params}, z, method="decode"), -1, 1)
    distances = jax.vmap(lambda a, b: likeness(scorer, frozen, a[None], b[None]))(x, reconstruction)
    return reconstruction, z, psnr(x, reconstruction), distances

  def latents_std(params: Any) -> float:
    images = examples.load_images(np.arange(min(len(examples), config.eval_examples)))
    z = in_pieces(lambda some: reconstruct(params, scorer_params, some)[1], images, 16)
    return float(jnp.std(z))

  def measure(theta: Any) -> dict[str, float]:
    images = held_out.load_images(
      np.linspace(0, len(held_out) - 1, min(len(held_out), config.eval_examples)).astype(int)
    )
    decibels, distances = in_pieces(lambda some: reconstruct(theta, scorer_params, some)[2:], images, 16)
    return {"psnr": float(jnp.mean(decibels)), "perceptual": float(jnp.mean(distances))}

  def show(theta: Any) -> Sheet:
    images = held_out.load_images(np.linspace(0, len(held_out) - 1, min(len(held_out), _SHEET_IMAGES)).astype(int))
    reconstruction = reconstruct(theta, scorer_params, images)[0]
    pairs = np.stack([signed(jnp.asarray(images)), reconstruction], axis=1).reshape(-1, size, size, 3)
    return Sheet(pairs, [name for i in range(len(images)) for name in (f"image {i}", "its reconstruction")])

  def save(theta: Any, folder: pathlib.Path) -> None:
    pretrained.save(folder, model.clone(scale=1.0 / latents_std(theta)), theta)

  batches = lambda i: {"images": take(order(i))}  # noqa: E731
  return Task(theta, loss, batches, measure, save, scorer_params, show)
