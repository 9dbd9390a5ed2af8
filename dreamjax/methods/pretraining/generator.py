"""A stage of a cascade, trained on captioned images behind a text encoder that was trained before.

Imagen (Saharia et al., 2205.11487): one network a stage, a tenth of the texts dropped, so that guidance can lead away
from the unconditional prediction; for stages of super-resolution noise of a random level on what they enlarge.
"""

from collections.abc import Callable, Sequence
import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dreamjax.convert import pretrained
from dreamjax.data.examples import Examples, epochs, on_device
from dreamjax.data.photos import Batch
from dreamjax.data.tokenizer import Tokenizer
from dreamjax.diffusion.resolution import downsample
from dreamjax.diffusion.schedules import Cosine
from dreamjax.generators import cascade, files
from dreamjax.generators.generator import TEXT
from dreamjax.methods.denoising import Recipe, stage_loss
from dreamjax.methods.pretraining.task import Task, initial, signed, warm
from dreamjax.models.t5 import T5Encoder
from dreamjax.models.unet import UNet
from dreamjax.parallel import processes
from dreamjax.theta import Full
from dreamjax.train.logs import Sheet

#: judge(images in [-1, 1], the captions that they were drawn from) -> named scalars.
Judge = Callable[[list[np.ndarray], list[str]], dict[str, float]]

_SHOWN = 32  # images on a sheet of samples


def describe(config: ml_collections.ConfigDict, encoder: T5Encoder, tokenizer: Tokenizer) -> cascade.Cascade:
  """The cascade of one stage that a config describes."""
  unet = UNet(text_width=encoder.width, **config.model)
  stage = cascade.Stage(
    config.stage,
    unet,
    Cosine(shift=config.shift),
    predicts=config.predicts,
    augmentation=Cosine() if unet.low_res else None,
    sampling=cascade.Sampling(**config.sampling),
  )
  return cascade.Cascade(config.name, encoder, tokenizer, (stage,))


def task(
  config: ml_collections.ConfigDict,
  examples: Examples,
  held_out: Examples,
  judge: Judge | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Task:
  """A stage that draws what captions say.

  Args:
    config: see `configs/pretrain.py`.
    examples: images at least as large as the stage's.
    held_out: others, whose captions are drawn to measure the stage.
    judge: measures what was drawn.
    mesh: of devices, on which parameters are born; see `parallel.sharding`.
  """
  encoder, text_params = pretrained.load(config.text_encoder)
  tokenizer = Tokenizer.load(config.text_encoder, config.length)
  drawn = describe(config, encoder, tokenizer)
  (stage,) = drawn.stages
  side = stage.image
  small = config.small if stage.unet.low_res else 0
  loss = stage_loss(
    stage, Recipe(tuple(config.augmentation_levels), small, config.text_dropout, config.min_snr), encoder
  )
  key = jax.random.key(config.seed)
  shapes = {"low_res": jnp.zeros((1, side, side, 3)), "noise_level": jnp.zeros(1)} if stage.unet.low_res else {}
  inputs = jnp.zeros((1, side, side, 3)), jnp.zeros(1), *_no_text(drawn)
  weights = initial(stage.unet, key, *inputs, mesh=mesh, **shapes)
  if config.start:
    weights = warm(weights, pretrained.load(config.start)[1])
  order = epochs(len(examples), config.batch_size, config.seed)
  null = tuple(jnp.asarray(x) for x in tokenizer([""]))
  frozen = {TEXT: text_params, stage.name: processes.fetch(weights), "null": null}

  def prepared(theta: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
    image = downsample(signed(batch["images"]), side)
    flip = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5 if config.flip else 0.0, (image.shape[0], 1, 1, 1))
    image = jnp.where(flip, image[:, :, ::-1], image)
    rows = Batch(image, batch["prompt"], jnp.ones(image.shape[0]), {})
    return loss(theta, frozen, rows, key)

  def rows(indices: np.ndarray) -> Any:
    return {"images": examples.load_images(indices), "prompt": tokenizer(examples.captions(indices))}

  take = on_device(rows, len(examples)) if config.resident else rows

  count = min(max(config.eval_examples, _SHOWN), len(held_out))
  indices = np.random.default_rng(1).permutation(len(held_out))[:count]
  prompts = held_out.captions(indices)
  evaluate = None if stage.unet.low_res else judge

  def draw(theta: Any, count: int) -> np.ndarray:
    params = {TEXT: text_params, stage.name: theta[stage.name].weights}
    if not stage.unet.low_res:
      return cascade.sample(drawn, params, prompts[:count], seed=config.seed, size=16)
    small = downsample(signed(jnp.asarray(held_out.load_images(indices[:count]))), config.small)
    texts, null = (drawn.encode(params, some) for some in (prompts[:count], [""]))
    keys = cascade.image_keys(config.seed, np.arange(len(small)))
    return np.asarray(enlarge_all(params[stage.name], texts, null, keys, small))

  @jax.jit
  def enlarge_all(params: Any, texts: Any, null: Any, keys: Any, small: Any) -> Any:
    return cascade.draw_stage(stage, stage.sampling, params, None, texts, null, keys, small)

  def measure(theta: Any) -> dict[str, float]:
    return {} if evaluate is None else evaluate(list(draw(theta, count)), prompts)

  def show(theta: Any) -> Sheet:
    return Sheet(draw(theta, _SHOWN), prompts[:_SHOWN])

  def save(theta: Any, folder: pathlib.Path) -> None:
    beside = os.path.relpath(config.text_encoder, folder)
    files.save(folder, drawn, {stage.name: theta[stage.name].weights}, text_encoder=beside)

  return Task({stage.name: Full(weights)}, prepared, lambda i: take(order(i)), measure, save, frozen, show)


def join(folders: Sequence[str], text_encoder: str, folder: pathlib.Path) -> None:
  """Writes one generator of stages that were trained apart.

  Args:
    folders: what `Task.save` wrote for each, the base stage's first.
    text_encoder: the folder of the one that all were trained behind.
    folder: where the generator is to lie.
  """
  parts = [files.load(part) for part in folders]
  stages = tuple(stage for part, _ in parts for stage in part.stages)
  params = {stage.name: params[stage.name] for part, params in parts for stage in part.stages}
  whole = dataclasses.replace(parts[0][0], stages=stages)
  files.save(folder, whole, params, text_encoder=os.path.relpath(text_encoder, folder))


def _no_text(drawn: cascade.Cascade) -> tuple[jax.Array, jax.Array]:
  """Inputs of the right shapes."""
  length = drawn.tokenizer.length
  return jnp.zeros((1, length, drawn.text_encoder.width)), jnp.ones((1, length), bool)
