"""Training of a stage of a cascade on captioned images, with a text encoder that was trained before.

Imagen (Saharia et al., 2205.11487): one network a stage, a tenth of the texts dropped, so that there is an
unconditional prediction for guidance; super-resolution stages are trained with noise conditioning augmentation.
"""

from collections.abc import Callable, Sequence
import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
import ml_collections
import numpy as np

from dreamjax.convert import pretrained
from dreamjax.data.examples import Examples, epochs, on_device
from dreamjax.data.photos import Batch
from dreamjax.data.tokenizer import Tokenizer
from dreamjax.diffusion.resolution import downsample
from dreamjax.diffusion.schedules import Cosine
from dreamjax.generators import cascade, files
from dreamjax.generators.branches import base_model_group
from dreamjax.generators.generator import TEXT, image_keys
from dreamjax.generators.sampling import sample
from dreamjax.methods.denoising import Recipe, stage_loss
from dreamjax.methods.pretraining.task import Task, init_params, load_matching, signed
from dreamjax.models.t5 import T5Encoder
from dreamjax.models.unet import UNet
from dreamjax.parallel import processes
from dreamjax.theta import Full
from dreamjax.train.logs import Sheet

#: scorer(images in [-1, 1], the captions that they were generated from) -> named scalars.
Scorer = Callable[[list[np.ndarray], list[str]], dict[str, float]]

_SHEET_IMAGES = 32  # on the sheet of samples


def describe(config: ml_collections.ConfigDict, encoder: T5Encoder, tokenizer: Tokenizer) -> cascade.Cascade:
  """Builds the cascade of one stage that a config describes."""
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


class StageTask(Task):
  """The training of one stage."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    examples: Examples,
    held_out: Examples,
    scorer: Scorer | None = None,
    mesh: jax.sharding.Mesh | None = None,
  ) -> None:
    """Initialises the parameters.

    Args:
      config: see `configs/pretrain.py`.
      examples: captioned images to train on, at least as large as the stage's.
      held_out: those whose captions images are generated from, to evaluate the stage.
      scorer: evaluates what was generated; None for no evaluation.
      mesh: devices over which parameters are sharded; see `parallel.sharding`.
    """
    self.config, self.examples, self.held_out = config, examples, held_out
    encoder, text_params = pretrained.load(config.text_encoder)
    self.tokenizer = Tokenizer.load(config.text_encoder, config.length)
    self.generator = describe(config, encoder, self.tokenizer)
    (self.stage,) = self.generator.stages
    unet = self.stage.unet
    self._scorer = None if unet.low_res else scorer
    low_res = config.small if unet.low_res else 0
    self._loss = stage_loss(
      self.stage, Recipe(tuple(config.augmentation_levels), low_res, config.text_dropout, config.min_snr), encoder
    )
    image = jnp.zeros((1, self.stage.image, self.stage.image, 3))
    text = jnp.zeros((1, self.tokenizer.length, encoder.width)), jnp.ones((1, self.tokenizer.length), bool)
    low = {"low_res": image, "noise_level": jnp.zeros(1)} if unet.low_res else {}
    weights = init_params(unet, jax.random.key(config.seed), image, jnp.zeros(1), *text, mesh=mesh, **low)
    if config.start:
      weights = load_matching(weights, pretrained.load(config.start)[1])
    self.theta = {self.stage.name: Full(weights)}
    null = tuple(jnp.asarray(x) for x in self.tokenizer([""]))
    self.frozen = {TEXT: text_params, self.stage.name: processes.fetch(weights), "null": null}
    self._order = epochs(len(examples), config.batch_size, config.seed)
    self._read = on_device(self._examples, len(examples)) if config.resident else self._examples
    count = min(max(config.eval_examples, _SHEET_IMAGES), len(held_out))
    self._indices = np.random.default_rng(1).permutation(len(held_out))[:count]
    self._prompts = held_out.captions(self._indices)
    self._sample_from = jax.jit(self._super_resolution)

  def loss(self, theta: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[Array, dict[str, Any]]:
    """Computes `denoising.stage_loss` of images resized to the stage's, half of them mirrored if the config says so."""
    image = downsample(signed(batch["images"]), self.stage.image)
    chance = 0.5 if self.config.flip else 0.0
    flip = jax.random.bernoulli(jax.random.fold_in(key, 1), chance, (image.shape[0], 1, 1, 1))
    image = jnp.where(flip, image[:, :, ::-1], image)
    return self._loss(theta, frozen, Batch(image, batch["prompt"], jnp.ones(image.shape[0]), {}), key)

  def batch(self, i: int) -> Any:
    """Returns the images of update i and the token ids and mask of their captions."""
    return self._read(self._order(i))

  def measure(self, theta: Any) -> dict[str, float]:
    """Evaluates images generated from held-out captions with the scorer; nothing for a super-resolution stage."""
    if self._scorer is None:
      return {}
    return self._scorer(list(self._generate(theta, len(self._prompts))), self._prompts)

  def show(self, theta: Any) -> Sheet:
    """Returns images generated from held-out captions."""
    return Sheet(self._generate(theta, _SHEET_IMAGES), self._prompts[:_SHEET_IMAGES])

  def save(self, theta: Any, folder: pathlib.Path) -> None:
    """Writes the stage as a generator, which refers to the folder of its text encoder."""
    text_encoder = os.path.relpath(self.config.text_encoder, folder)
    files.save(folder, self.generator, {self.stage.name: theta[self.stage.name].weights}, text_encoder=text_encoder)

  def _examples(self, indices: np.ndarray) -> Any:
    """Images in bytes and their tokenized captions."""
    return {"images": self.examples.load_images(indices), "prompt": self.tokenizer(self.examples.captions(indices))}

  def _generate(self, theta: Any, count: int) -> np.ndarray:
    """Images of the first held-out captions; a super-resolution stage gets their own images at low resolution."""
    params = {TEXT: self.frozen[TEXT], self.stage.name: theta[self.stage.name].weights}
    prompts, seed = self._prompts[:count], self.config.seed
    if not self.stage.unet.low_res:
      return sample(self.generator, params, prompts, seed=seed, batch_size=16)
    low_res = downsample(signed(jnp.asarray(self.held_out.load_images(self._indices[:count]))), self.config.small)
    texts, null = (self.generator.encode(params, some) for some in (prompts, [""]))
    keys = image_keys(seed, np.arange(len(low_res)))
    return np.asarray(self._sample_from(params[self.stage.name], texts, null, keys, low_res))

  def _super_resolution(self, params: Any, texts: Any, null: Any, keys: Any, low_res: Array) -> Array:
    """Images sampled from low-resolution ones."""
    guidance = self.stage.sampling.branches(0, 0.0)
    groups = base_model_group(guidance, params, null, texts)
    return cascade.sample_stage(self.stage, self.stage.sampling, groups, guidance.weights, keys, low_res)


def join(folders: Sequence[str], text_encoder: str, folder: pathlib.Path) -> None:
  """Writes one generator of stages that were trained separately.

  Args:
    folders: what `Task.save` wrote for each stage, the base stage's first.
    text_encoder: the folder of the text encoder that all were trained with.
    folder: where the generator is written.
  """
  parts = [files.load(part) for part in folders]
  stages = tuple(stage for part, _ in parts for stage in part.stages)
  params = {stage.name: params[stage.name] for part, params in parts for stage in part.stages}
  joined = dataclasses.replace(parts[0][0], stages=stages)
  files.save(folder, joined, params, text_encoder=os.path.relpath(text_encoder, folder))
