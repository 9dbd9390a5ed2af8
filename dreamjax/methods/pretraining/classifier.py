"""A classifier with several heads, trained on labelled images: it judges what generated ones show."""

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
from dreamjax.methods.pretraining.task import Task, in_pieces, initial, signed, warm
from dreamjax.models.resnet import Classifier


def cross_entropy(
  logits: Mapping[str, Float[Array, "b _"]], labels: Mapping[str, Int[Array, " b"]]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The sum over heads of the mean cross entropy, and each head's accuracy; a label of -1 does not count."""
  total, right = jnp.zeros(()), {}
  for name, scores in logits.items():
    known = jnp.where(labels[name] >= 0, 1.0, 0.0)
    count = jnp.maximum(known.sum(), 1.0)
    log_p = jax.nn.log_softmax(scores)
    picked = jnp.take_along_axis(log_p, jnp.maximum(labels[name], 0)[:, None], axis=1)[:, 0]
    total = total - (known * picked).sum() / count
    right[name] = (known * jnp.where(jnp.argmax(scores, axis=1) == labels[name], 1.0, 0.0)).sum() / count
  return total, right


def task(
  config: ml_collections.ConfigDict, examples: Examples, held_out: Examples, mesh: jax.sharding.Mesh | None = None
) -> Task:
  """A classifier of everything that the examples' labels name."""
  model = Classifier(heads=examples.words, **config.model)
  augment, order = Augment(**config.augment), epochs(len(examples), config.batch_size, config.seed)
  image = jnp.zeros((1, model.image, model.image, 3))
  theta = {"params": initial(model, jax.random.key(config.seed), image, mesh=mesh)}
  if config.start:
    theta = {"params": warm(theta["params"], pretrained.load(config.start)[1])}

  def loss(theta: Any, frozen: None, batch: Any, key: jax.Array):
    return cross_entropy(model.apply(theta, augment(key, signed(batch["images"]))), batch["labels"])

  def batches(i: int) -> Any:
    indices = order(i)
    labels = {name: values[indices].astype(np.int32) for name, values in examples.labels.items()}
    return {"images": examples.load_images(indices), "labels": labels}

  apply = jax.jit(lambda theta, images: model.apply(theta, signed(images)))

  def measure(theta: Any) -> dict[str, float]:
    indices = np.arange(min(len(held_out), 2048))
    logits = in_pieces(lambda images: apply(theta, images), held_out.load_images(indices))
    labels = {name: jnp.asarray(values[indices], jnp.int32) for name, values in held_out.labels.items()}
    return {f"held_out_{name}": float(value) for name, value in cross_entropy(logits, labels)[1].items()}

  def save(theta: Any, folder: pathlib.Path) -> None:
    pretrained.save(folder, model, theta["params"])
    whole(model.image).save(folder)

  return Task(theta, loss, batches, measure, save)
