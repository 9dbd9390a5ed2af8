"""Contrastive learning: images with captions (CLIP), or photos of one subject with each other.

For n pairs of embeddings a, b of unit length and a temperature tau, each a must be matched to its own b among all n:

  (1) loss = -mean_i [ log softmax_j(a_i . b_j / tau)_i + log softmax_j(b_i . a_j / tau)_i ] / 2

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021), figure 3, learn tau.
With two photos of one subject in place of image and caption this is instance discrimination (Chen et al., "A Simple
Framework for Contrastive Learning of Visual Representations", 2020), with another photo where they have another crop:
no label is used, only which photos show the same subject.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import ml_collections
import numpy as np

from dreamjax.convert import pretrained
from dreamjax.data.augment import Augment
from dreamjax.data.examples import Examples, epochs
from dreamjax.data.preprocessing import whole
from dreamjax.data.tokenizer import Tokenizer
from dreamjax.errors import UserError
from dreamjax.eval.metrics import unit
from dreamjax.methods.pretraining.task import Task, in_batches, init_params, load_matching, signed
from dreamjax.models.clip import CLIP, TextTower, VisionTower
from dreamjax.models.resnet import ResNet

_LARGEST_SCALE = 100.0  # of the logits, as in CLIP


def contrast(
  a: Float[Array, "n d"], b: Float[Array, "n d"], scale: Float[Array, ""] | float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Computes eq. 1, with scale = 1 / tau, and the share of a's whose nearest b is their own."""
  logits = scale * unit(a) @ unit(b).T
  own = jnp.diagonal(logits)
  losses = [(jax.nn.logsumexp(x, axis=1) - own).mean() for x in (logits, logits.T)]
  return sum(losses) / 2, jnp.where(jnp.argmax(logits, axis=1) == jnp.arange(a.shape[0]), 1.0, 0.0).mean()


def keep_patches(key: jax.Array, batch_size: int, patches: int, share: float) -> Int[Array, "b k"]:
  """Draws the indices of a random share of each image's patches, the network's input.

  Contrastive training does as well without the others, and is faster by their share (Li et al., "Scaling Language-Image
  Pre-training via Masking", 2023).
  """
  order = jnp.argsort(jax.random.uniform(key, (batch_size, patches)), axis=1)
  return order[:, : max(1, round(share * patches))]


class CLIPTask(Task):
  """The training of CLIP on images and their captions."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    examples: Examples,
    held_out: Examples,
    tokenizer: Tokenizer,
    mesh: jax.sharding.Mesh | None = None,
  ) -> None:
    """Initialises the parameters, from those of the model in the folder `config.start` if it is given.

    If that model is no CLIP, its parameters are taken for the image tower.

    Args:
      config: see `configs/pretrain_encoders.py`, "clip".
      examples: captioned images to train on.
      held_out: those to evaluate on.
      tokenizer: of the captions.
      mesh: devices over which parameters are sharded; see `parallel.sharding`.
    """
    self.config, self.examples, self.held_out, self.tokenizer = config, examples, held_out, tokenizer
    text = TextTower(
      vocab=len(tokenizer.inner), length=tokenizer.length, eos=tokenizer.inner.eos_token_id, **config.model.text
    )
    self.model = CLIP(VisionTower(**config.model.vision), text)
    self._augment, self._order = Augment(**config.augment), epochs(len(examples), config.batch_size, config.seed)
    self._side = self.model.vision.image
    inputs = jnp.zeros((1, self._side, self._side, 3)), jnp.zeros((1, tokenizer.length), jnp.int32)
    self.theta = {"params": init_params(self.model, jax.random.key(config.seed), *inputs, mesh=mesh)}
    if config.start:
      other, params = pretrained.load(config.start)
      params = params if isinstance(other, CLIP) else {"vision": params}
      self.theta["params"] = load_matching(self.theta["params"], params)
    self._embed = jax.jit(lambda theta, images, ids: self.model.apply(theta, signed(images), ids)[:2])

  def loss(self, theta: Any, frozen: None, batch: Any, key: jax.Array) -> tuple[Array, dict[str, Array]]:
    """Computes eq. 1 of augmented images, a share of whose patches is kept, and captions."""
    del frozen
    patch_key, augment_key = jax.random.split(key)
    patches = (self._side // self.model.vision.patch) ** 2
    kept = keep_patches(patch_key, len(batch["ids"]), patches, self.config.keep)
    augmented = self._augment(augment_key, signed(batch["images"]))
    images, texts, log_scale = self.model.apply(theta, augmented, batch["ids"], kept)
    value, accuracy = contrast(images, texts, jnp.minimum(jnp.exp(log_scale), _LARGEST_SCALE))
    return value, {"accuracy": accuracy}

  def batch(self, i: int) -> Any:
    """Returns the images of update i and the token ids of their captions."""
    indices = self._order(i)
    return {"images": self.examples.load_images(indices), "ids": self.tokenizer(self.examples.captions(indices))[0]}

  def measure(self, theta: Any) -> dict[str, float]:
    """Computes the share of held-out images whose own caption is the nearest of 64."""
    # In random order, since photos of one subject are next to each other.
    indices = np.random.default_rng(0).permutation(len(self.held_out))[:1024]
    inputs = self.held_out.load_images(indices), self.tokenizer(self.held_out.captions(indices))[0]
    images, texts = in_batches(lambda x: self._embed(theta, *x), inputs)
    scores = [contrast(images[i : i + 64], texts[i : i + 64], 1.0)[1] for i in range(0, len(indices), 64)]
    return {"held_out_64_way": float(np.mean(scores))}

  def save(self, theta: Any, folder: pathlib.Path) -> None:
    """Writes the model, how images are prepared for it, and its tokenizer."""
    pretrained.save(folder, self.model, theta["params"])
    whole(self._side).save(folder)
    self.tokenizer.inner.save_pretrained(folder)


class PhotosTask(Task):
  """The training of an image encoder on pairs of photos of one subject.

  No label says which subjects look alike, but the subjects of a batch are chosen by the label "class": all are of few
  classes, which makes their photos hard to distinguish.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    examples: Examples,
    held_out: Examples,
    mesh: jax.sharding.Mesh | None = None,
  ) -> None:
    """Initialises the parameters.

    Args:
      config: see `configs/pretrain_encoders.py`, "dino".
      examples: photos to train on, two or more of a subject.
      held_out: those to evaluate on.
      mesh: devices over which parameters are sharded; see `parallel.sharding`.

    Raises:
      ValueError: if there are no two photos of any subject.
    """
    self.config, self.examples, self.held_out = config, examples, held_out
    self.model, self._augment = ResNet(**config.model), Augment(**config.augment)
    image = jnp.zeros((1, self.model.image, self.model.image, 3))
    self.theta = {"params": init_params(self.model, jax.random.key(config.seed), image, mesh=mesh)}
    if config.start:
      self.theta = {"params": load_matching(self.theta["params"], pretrained.load(config.start)[1])}
    self._pairs, self._held_out_pairs = _Pairs(examples, config.only), _Pairs(held_out, config.only)
    self._embed = jax.jit(lambda theta, images: self.model.apply(theta, signed(images)))

  def loss(self, theta: Any, frozen: None, batch: Any, key: jax.Array) -> tuple[Array, dict[str, Array]]:
    """Computes eq. 1 of augmented photos, whose second half shows the subjects of the first."""
    del frozen
    images = self._augment(key, signed(batch["images"]))
    # The network is applied to parts that fit into a CPU's caches; each photo is contrasted with the whole batch.
    parts = jnp.split(images, self.config.parts)
    embeddings = jnp.concatenate([self.model.apply(theta, part) for part in parts])
    value, accuracy = contrast(*jnp.split(embeddings, 2), 1.0 / self.config.temperature)
    return value, {"accuracy": accuracy}

  def batch(self, i: int) -> Any:
    """Returns two photos of each of update i's subjects, all first ones before all second ones."""
    classes = self._pairs.classes
    rng = np.random.default_rng((self.config.seed, i))
    present = np.unique(classes)
    few = rng.choice(present, min(self.config.classes, len(present)), replace=False)
    candidates = np.flatnonzero(np.isin(classes, few))
    indices = self._pairs.draw(rng, rng.choice(candidates, self.config.batch_size // 2, replace=False))
    return {"images": self.examples.load_images(indices.T.reshape(-1))}

  def measure(self, theta: Any) -> dict[str, float]:
    """Computes the share of photos nearer to one of the same subject than to those of 32 others of its class."""
    classes = self._held_out_pairs.classes
    indices = self._held_out_pairs.draw(np.random.default_rng(0), np.arange(len(classes)))
    images = self.held_out.load_images(indices.T.reshape(-1))
    embeddings = unit(in_batches(lambda some: self._embed(theta, some), images))
    first, second = np.split(np.asarray(embeddings), 2)
    right = []
    for c in np.unique(classes):
      own = np.flatnonzero(classes == c)[:33]
      right.append((first[own] @ second[own].T).argmax(1) == np.arange(len(own)))
    return {"held_out_retrieval": float(np.concatenate(right).mean())}

  def save(self, theta: Any, folder: pathlib.Path) -> None:
    """Writes the encoder and how images are prepared for it."""
    pretrained.save(folder, self.model, theta["params"])
    whole(self.model.image).save(folder)


class _Pairs:
  """The subjects of which there are two photos or more.

  Attributes:
    classes: the class of each subject.
  """

  def __init__(self, examples: Examples, only: Mapping[str, str]) -> None:
    kept = np.ones(len(examples), bool)
    for name, word in only.items():
      kept &= examples.labels[name] == examples.words[name].index(word)
    self._indices = np.flatnonzero(kept)[np.argsort(examples.subjects[kept], kind="stable")]
    _, starts, counts = np.unique(examples.subjects[self._indices], return_index=True, return_counts=True)
    self._starts, self._counts = starts[counts > 1], counts[counts > 1]
    if not len(self._starts):
      raise UserError("contrastive training on photos needs two of a subject at least, but there are no two of any")
    self.classes = examples.labels["class"][self._indices[self._starts]]

  def draw(self, rng: np.random.Generator, subjects: np.ndarray) -> np.ndarray:
    """Draws the indices of two different photos of each of these subjects, [n, 2]."""
    counts = self._counts[subjects]
    first = rng.integers(0, counts)
    second = (first + rng.integers(1, counts)) % counts
    return self._indices[self._starts[subjects][:, None] + np.stack([first, second], axis=1)]
