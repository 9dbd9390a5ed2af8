"""A classifier with several heads, trained on labelled images; it evaluates what generated images show."""

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
from dreamjax.methods.pretraining.task import Task, in_batches, init_params, load_matching, signed
from dreamjax.models.resnet import Classifier

_MEASURED = 2048  # held-out images


def cross_entropy(
  logits: Mapping[str, Float[Array, "b _"]], labels: Mapping[str, Int[Array, " b"]]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Computes the sum over heads of the mean cross entropy, and each head's accuracy; labels of -1 are ignored."""
  total, accuracy = jnp.zeros(()), {}
  for name, scores in logits.items():
    known = jnp.where(labels[name] >= 0, 1.0, 0.0)
    count = jnp.maximum(known.sum(), 1.0)
    log_p = jax.nn.log_softmax(scores)
    picked = jnp.take_along_axis(log_p, jnp.maximum(labels[name], 0)[:, None], axis=1)[:, 0]
    total = total - (known * picked).sum() / count
    accuracy[name] = (known * jnp.where(jnp.argmax(scores, axis=1) == labels[name], 1.0, 0.0)).sum() / count
  return total, accuracy


class ClassifierTask(Task):
  """The training of a classifier with one head for each of the examples' labels."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    examples: Examples,
    held_out: Examples,
    mesh: jax.sharding.Mesh | None = None,
  ) -> None:
    """Initialises the parameters.

    Args:
      config: see `configs/pretrain_encoders.py`, "probe".
      examples: the labelled images to train on.
      held_out: those to evaluate on.
      mesh: devices over which parameters are sharded; see `parallel.sharding`.
    """
    self.examples, self.held_out = examples, held_out
    self.model = Classifier(heads=examples.words, **config.model)
    self._augment, self._order = Augment(**config.augment), epochs(len(examples), config.batch_size, config.seed)
    image = jnp.zeros((1, self.model.image, self.model.image, 3))
    self.theta = {"params": init_params(self.model, jax.random.key(config.seed), image, mesh=mesh)}
    if config.start:
      self.theta = {"params": load_matching(self.theta["params"], pretrained.load(config.start)[1])}
    self._apply = jax.jit(lambda theta, images: self.model.apply(theta, signed(images)))

  def loss(self, theta: Any, frozen: None, batch: Any, key: jax.Array) -> tuple[Array, dict[str, Array]]:
    """Computes the cross entropy of augmented images; the metrics are each head's accuracy."""
    del frozen
    return cross_entropy(self.model.apply(theta, self._augment(key, signed(batch["images"]))), batch["labels"])

  def batch(self, i: int) -> Any:
    """Returns the images and labels of update i."""
    indices = self._order(i)
    labels = {name: values[indices].astype(np.int32) for name, values in self.examples.labels.items()}
    return {"images": self.examples.load_images(indices), "labels": labels}

  def measure(self, theta: Any) -> dict[str, float]:
    """Computes each head's accuracy on held-out images."""
    indices = np.arange(min(len(self.held_out), _MEASURED))
    logits = in_batches(lambda images: self._apply(theta, images), self.held_out.load_images(indices))
    labels = {name: jnp.asarray(values[indices], jnp.int32) for name, values in self.held_out.labels.items()}
    return {f"held_out_{name}": float(value) for name, value in cross_entropy(logits, labels)[1].items()}

  def save(self, theta: Any, folder: pathlib.Path) -> None:
    """Writes the classifier and how images are prepared for it."""
    pretrained.save(folder, self.model, theta["params"])
    whole(self.model.image).save(folder)
