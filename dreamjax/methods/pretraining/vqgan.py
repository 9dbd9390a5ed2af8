"""The VQGAN, trained to give images back from few tokens.

With x' the reconstruction of x, z what the encoder says and e the nearest vectors of the codebook, sg[] without a
gradient, F_l the features of a network that was trained before, each of unit length, and D the discriminator:

    L = |x - x'|^2 + |x - x'| + a sum_l |F_l(x) - F_l(x')|^2 - b D(x')                                             (1)
        + |sg[z] - e|^2 + beta |z - sg[e]|^2 + c (E H(p) - H(E p)),   p = softmax(-|z - e_k|^2 / tau)
    L_D = max(0, 1 - D(x)) + max(0, 1 + D(x'))                                                                     (2)

all of them means. "Taming Transformers" (Esser et al., 2012.09841, eqs. 4 to 6) and, for the entropies, which keep the
codebook in use, MaskGIT's published code (Chang et al., 2202.04200). Both networks are trained in one step: in (1) the
discriminator is constant, in (2) the reconstruction.

A codebook that is learned from nothing is hardly used. Therefore the networks are trained without one first, with the
first line of (1) alone and x' of z; then the vectors are the centres of clusters of their z (k-means).
"""

from collections.abc import Sequence
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
from dreamjax.methods.pretraining.task import Task, in_pieces, initial, signed, warm
from dreamjax.models.resnet import Block, ResNet
from dreamjax.models.vqgan import VQGAN, Discriminator
from dreamjax.train.logs import Sheet

_SHOWN = 16  # images on a sheet, each beside its reconstruction


def distances(z: Float[Array, "b h w e"], vectors: Float[Array, "k e"]) -> Float[Array, "n k"]:
  """|z - e_k|^2 of every place."""
  flat = z.reshape(-1, z.shape[-1])
  squares = jnp.sum(jnp.square(flat), axis=-1)[:, None] + jnp.sum(jnp.square(vectors), axis=-1)[None]
  return squares - 2 * flat @ vectors.T


def disuse(z: Float[Array, "b h w e"], vectors: Float[Array, "k e"], tau: float) -> Float[Array, ""]:
  """E H(p) - H(E p) of equation (1): least, minus log k, where each place is sure and all vectors are used alike."""
  log_p = jax.nn.log_softmax(-distances(z, vectors) / tau)
  mean = jnp.mean(jnp.exp(log_p), axis=0)
  each = -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=-1))
  return each + jnp.sum(mean * jnp.log(mean + 1e-9))


def likeness(network: ResNet, params: Any, x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, ""]:
  """sum_l |F_l(x) - F_l(y)|^2 of equation (1), over the network's blocks."""
  wide = network.clone(image=x.shape[1])
  both = {"params": params}, jnp.concatenate([x, y])
  _, seen = wide.apply(*both, capture_intermediates=lambda module, _: isinstance(module, Block))
  total = jnp.zeros(())
  for features in jax.tree.leaves(seen):
    unit = features / (jnp.linalg.norm(features, axis=-1, keepdims=True) + 1e-6)
    total = total + jnp.mean(jnp.sum(jnp.square(unit[: len(x)] - unit[len(x) :]), axis=-1))
  return total


def clusters(z: Float[np.ndarray, "n e"], count: int, seed: int) -> Float[np.ndarray, "k e"]:
  """The centres of `count` clusters of vectors, by k-means.

  Raises:
    ValueError: if there are fewer vectors than clusters.
  """
  if len(z) < count:
    raise ValueError(f"{len(z)} vectors do not make {count} clusters: config.clustered is to be of more images")
  with warnings.catch_warnings(action="ignore"):  # a cluster that ends empty stays where it was, at one of the vectors
    centres, _ = vq.kmeans2(z, count, minit="points", rng=np.random.default_rng(seed))
  return centres.astype(np.float32)


def psnr(x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
  """Peak signal-to-noise ratio of images in [-1, 1], in decibels."""
  return 10 * jnp.log10(4 / jnp.mean(jnp.square(x - y), axis=(1, 2, 3)))


def task(
  config: ml_collections.ConfigDict, examples: Examples, held_out: Examples, mesh: jax.sharding.Mesh | None = None
) -> Task:
  """A VQGAN and its discriminator.

  Args:
    config: see `configs/pretrain_muse.py`.
    examples: images.
    held_out: others, to measure with.
    mesh: of devices, on which parameters are born; see `parallel.sharding`.
  """
  model = VQGAN(**config.model)
  discriminator = Discriminator(**config.discriminator)
  judge, judge_params = pretrained.load(config.perceptual)
  if not isinstance(judge, ResNet):
    raise ValueError(f"{config.perceptual} holds a {type(judge).__name__}, whose features are not looked at here")
  side = config.resolution
  image = jnp.zeros((1, side, side, 3))
  draw, other = jax.random.split(jax.random.key(config.seed))
  theta = {
    "vqgan": initial(model, draw, image, mesh=mesh),
    "discriminator": initial(discriminator, other, image, mesh=mesh),
  }
  if config.start:
    theta["vqgan"] = warm(theta["vqgan"], pretrained.load(config.start)[1])
  if config.clustered:
    apply = jax.jit(lambda params, images: model.apply({"params": params}, signed(images), method="encode"))
    frames = examples.load_images(np.arange(min(len(examples), config.clustered)))
    z = np.asarray(in_pieces(lambda images: apply(theta["vqgan"], images), frames, 16))
    theta["vqgan"]["codebook"] = jnp.asarray(clusters(z.reshape(-1, model.embedding), model.codebook, config.seed))
  order = epochs(len(examples), config.batch_size, config.seed)

  def around(theta: Any, frozen: Any, batch: Any, key: jax.Array):
    x = signed(batch["images"])
    made = model.apply({"params": theta["vqgan"]}, x, method="around")
    squared, looks = jnp.mean(jnp.square(x - made)), likeness(judge, frozen, x, made)
    total = squared + jnp.mean(jnp.abs(x - made)) + config.likeness * looks
    return total, {"squared": squared, "likeness": looks}

  def loss(theta: Any, frozen: Any, batch: Any, key: jax.Array):
    x = signed(batch["images"])
    made, z, tokens = model.apply({"params": theta["vqgan"]}, x)
    vectors = theta["vqgan"]["codebook"]
    nearest = vectors[tokens].reshape(z.shape)
    constant = jax.lax.stop_gradient
    looks = likeness(judge, frozen, x, made)
    codebook = jnp.mean(jnp.square(constant(z) - nearest)) + config.commitment * jnp.mean(
      jnp.square(z - constant(nearest))
    )
    unused = disuse(z, vectors, config.temperature)
    squared = jnp.mean(jnp.square(x - made))
    total = squared + jnp.mean(jnp.abs(x - made)) + config.likeness * looks + codebook + config.entropy * unused
    named = {"squared": squared, "likeness": looks, "codebook": codebook, "disuse": unused}
    if not config.adversarial:
      return total, named
    fooled = discriminator.apply({"params": constant(theta["discriminator"])}, made)
    said = discriminator.apply({"params": theta["discriminator"]}, jnp.concatenate([x, constant(made)]))
    real, false = jnp.split(said, 2)
    hinge = jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + false))
    return total + jnp.mean(batch["adversarial"]) * (hinge - jnp.mean(fooled)), named | {"hinge": hinge}

  take = on_device(examples.load_images, len(examples)) if config.resident else examples.load_images

  def batches(i: int) -> Any:
    weight = config.adversarial if i >= config.adversarial_from else 0.0
    return {"images": take(order(i)), "adversarial": np.full(config.batch_size, weight, np.float32)}

  @jax.jit
  def rebuild(params: Any, images: Any) -> Any:
    made, _, tokens = model.apply({"params": params}, signed(images))
    if not config.quantised:
      made = model.apply({"params": params}, signed(images), method="around")
    made = jnp.clip(made, -1, 1)
    return made, tokens, psnr(signed(images), made)

  def measure(theta: Any) -> dict[str, float]:
    indices = np.arange(min(len(held_out), config.eval_examples))
    run = lambda images: rebuild(theta["vqgan"], images)[1:]  # noqa: E731
    tokens, decibels = in_pieces(run, held_out.load_images(indices), 16)
    used = len(np.unique(np.asarray(tokens))) / model.codebook
    return {"psnr": float(jnp.mean(decibels)), "codebook_use": used}

  def show(theta: Any) -> Sheet:
    images = held_out.load_images(np.arange(min(len(held_out), _SHOWN)))
    made = rebuild(theta["vqgan"], images)[0]
    beside = np.stack([signed(jnp.asarray(images)), made], axis=1).reshape(-1, side, side, 3)
    return Sheet(beside, _names(len(images)))

  def save(theta: Any, folder: pathlib.Path) -> None:
    pretrained.save(folder, model, theta["vqgan"])

  return Task(theta, loss if config.quantised else around, batches, measure, save, judge_params, show)


def _names(count: int) -> Sequence[str]:
  """What stands under an image and under its reconstruction."""
  return [name for i in range(count) for name in (f"image {i}", "from its tokens")]
