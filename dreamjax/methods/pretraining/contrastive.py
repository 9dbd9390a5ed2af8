"""Contrastive learning: images with captions (CLIP), or photos of one subject with each other.

With n pairs of embeddings a, b of length one and a temperature tau, each pair is to be told from the other n - 1:

  (1) loss = -mean_i [ log softmax_j(a_i . b_j / tau)_i + log softmax_j(b_i . a_j / tau)_i ] / 2

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021), figure 3, learn tau.
With two photos of one subject in the places of image and caption this is instance discrimination (Chen et al., "A
Simple Framework for Contrastive Learning of Visual Representations", 2020), with another photo where they have another
crop: no label is used, only which photos show the same thing.
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
from dreamjax.eval.metrics import unit
from dreamjax.methods.pretraining.task import Task, in_pieces, initial, signed, warm
from dreamjax.models.clip import CLIP, TextTower, VisionTower
from dreamjax.models.resnet import ResNet

_LARGEST_SCALE = 100.0  # of the logits, as in CLIP


def contrast(
  a: Float[Array, "n d"], b: Float[Array, "n d"], scale: Float[Array, ""] | float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Eq. 1, with scale = 1 / tau, and the share of a's that are nearest to their own b."""
  logits = scale * unit(a) @ unit(b).T
  own = jnp.diagonal(logits)
  losses = [(jax.nn.logsumexp(rows, axis=1) - own).mean() for rows in (logits, logits.T)]
  return sum(losses) / 2, jnp.where(jnp.argmax(logits, axis=1) == jnp.arange(a.shape[0]), 1.0, 0.0).mean()


def keep_patches(key: jax.Array, rows: int, patches: int, share: float) -> Int[Array, "b k"]:
  """Which patches of each image are looked at: a random share of them.

  Contrastive training needs no more, and is as much faster (Li et al., "Scaling Language-Image Pre-training via
  Masking", 2023).
  """
  order = jnp.argsort(jax.random.uniform(key, (rows, patches)), axis=1)
  return order[:, : max(1, round(share * patches))]


def captions_task(
  config: ml_collections.ConfigDict,
  examples: Examples,
  held_out: Examples,
  tokenizer: Tokenizer,
  mesh: jax.sharding.Mesh | None = None,
) -> Task:
  """CLIP: images and their captions.

  With a `config.start`, the folder of a model, training goes on from its parameters; if that is a vision transformer,
  they are the image tower's.
  """
  model = CLIP(
    VisionTower(**config.model.vision),
    TextTower(
      vocab=len(tokenizer.inner), length=tokenizer.length, eos=tokenizer.inner.eos_token_id, **config.model.text
    ),
  )
  augment, order = Augment(**config.augment), epochs(len(examples), config.batch_size, config.seed)
  side = model.vision.image
  ids = jnp.zeros((1, tokenizer.length), jnp.int32)
  theta = {"params": initial(model, jax.random.key(config.seed), jnp.zeros((1, side, side, 3)), ids, mesh=mesh)}
  if config.start:
    other, params = pretrained.load(config.start)
    theta["params"] = warm(theta["params"], params if isinstance(other, CLIP) else {"vision": params})

  def loss(theta: Any, frozen: None, batch: Any, key: jax.Array):
    dropped, changed = jax.random.split(key)
    kept = keep_patches(dropped, len(batch["ids"]), (side // model.vision.patch) ** 2, config.keep)
    images, texts, log_scale = model.apply(theta, augment(changed, signed(batch["images"])), batch["ids"], kept)
    value, right = contrast(images, texts, jnp.minimum(jnp.exp(log_scale), _LARGEST_SCALE))
    return value, {"right": right}

  def batches(i: int) -> Any:
    indices = order(i)
    return {"images": examples.load_images(indices), "ids": tokenizer(examples.captions(indices))[0]}

  apply = jax.jit(lambda theta, images, ids: model.apply(theta, signed(images), ids)[:2])

  def measure(theta: Any) -> dict[str, float]:
    """Share of images whose own caption is the nearest of 64."""
    spread = np.random.default_rng(0).permutation(len(held_out))[:1024]  # photos of one subject stand together
    inputs = held_out.load_images(spread), tokenizer(held_out.captions(spread))[0]
    images, texts = in_pieces(lambda x: apply(theta, *x), inputs)
    scores = [contrast(images[i : i + 64], texts[i : i + 64], 1.0)[1] for i in range(0, len(spread), 64)]
    return {"held_out_64_way": float(np.mean(scores))}

  def save(theta: Any, folder: pathlib.Path) -> None:
    pretrained.save(folder, model, theta["params"])
    whole(side).save(folder)
    tokenizer.inner.save_pretrained(folder)

  return Task(theta, loss, batches, measure, save)


def photos_task(
  config: ml_collections.ConfigDict, examples: Examples, held_out: Examples, mesh: jax.sharding.Mesh | None = None
) -> Task:
  """Photos of one subject, told from photos of others; half of a batch is of subjects of few classes.

  Which subjects look alike is not learned from labels, but who is compared with whom is chosen by the label "class":
  the images of a batch are hard to tell apart.
  """
  model = ResNet(**config.model)
  augment = Augment(**config.augment)
  image = jnp.zeros((1, model.image, model.image, 3))
  theta = {"params": initial(model, jax.random.key(config.seed), image, mesh=mesh)}
  if config.start:
    theta = {"params": warm(theta["params"], pretrained.load(config.start)[1])}
  pairs = _Pairs(examples, config.only)
  present = np.unique(pairs.classes)

  def loss(theta: Any, frozen: None, batch: Any, key: jax.Array):
    images = augment(key, signed(batch["images"]))
    # In parts, for a CPU's caches are small; each image is contrasted with all of the batch nevertheless.
    out = jnp.concatenate([model.apply(theta, part) for part in jnp.split(images, config.parts)])
    value, right = contrast(*jnp.split(out, 2), 1.0 / config.temperature)
    return value, {"right": right}

  def batches(i: int) -> Any:
    draw = np.random.default_rng((config.seed, i))
    few = draw.choice(present, min(config.classes, len(present)), replace=False)
    alike = np.flatnonzero(np.isin(pairs.classes, few))
    indices = pairs.draw(draw, draw.choice(alike, config.batch_size // 2, replace=False))
    return {"images": examples.load_images(indices.T.reshape(-1))}

  apply = jax.jit(lambda theta, images: model.apply(theta, signed(images)))
  judged = _Pairs(held_out, config.only)

  def measure(theta: Any) -> dict[str, float]:
    """Share of photos to which another photo of the same subject is nearer than those of 32 others of its class."""
    indices = judged.draw(np.random.default_rng(0), np.arange(len(judged.classes)))
    embeddings = unit(in_pieces(lambda images: apply(theta, images), held_out.load_images(indices.T.reshape(-1))))
    one, other = np.split(np.asarray(embeddings), 2)
    right = []
    for c in np.unique(judged.classes):
      own = np.flatnonzero(judged.classes == c)[:33]
      right.append((one[own] @ other[own].T).argmax(1) == np.arange(len(own)))
    return {"held_out_retrieval": float(np.concatenate(right).mean())}

  def save(theta: Any, folder: pathlib.Path) -> None:
    pretrained.save(folder, model, theta["params"])
    whole(model.image).save(folder)

  return Task(theta, loss, batches, measure, save)


class _Pairs:
  """The subjects of which there are two photos.

  Attributes:
    classes: the class of each.
  """

  def __init__(self, examples: Examples, only: Mapping[str, str]) -> None:
    kept = np.ones(len(examples), bool)
    for name, word in only.items():
      kept &= examples.labels[name] == examples.words[name].index(word)
    self._places = np.flatnonzero(kept)[np.argsort(examples.subjects[kept], kind="stable")]
    _, starts, counts = np.unique(examples.subjects[self._places], return_index=True, return_counts=True)
    self._starts, self._counts = starts[counts > 1], counts[counts > 1]
    if not len(self._starts):
      raise ValueError("contrasting photos needs two of a subject at least, and there are no two of any")
    self.classes = examples.labels["class"][self._places[self._starts]]

  def draw(self, draw: np.random.Generator, subjects: np.ndarray) -> np.ndarray:
    """Indices of two different photos of each of these subjects, [n, 2]."""
    counts = self._counts[subjects]
    first = draw.integers(0, counts)
    second = (first + draw.integers(1, counts)) % counts
    return self._places[self._starts[subjects][:, None] + np.stack([first, second], axis=1)]
