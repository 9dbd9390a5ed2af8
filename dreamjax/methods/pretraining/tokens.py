"""A stage of masked tokens, trained on captioned images behind a text encoder and VQGANs that were trained before.

Muse (Chang et al., 2301.00704): a transformer learns to name the masked tokens of an image from the others and from
the text, a tenth of the texts dropped; the one of super-resolution sees the tokens of the smaller image as well.
Images are turned into tokens once, before the first update.
"""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import ml_collections
import numpy as np

from dreamjax.convert import pretrained
from dreamjax.data.examples import Examples, epochs, on_device
from dreamjax.data.tokenizer import Tokenizer
from dreamjax.diffusion.resolution import downsample
from dreamjax.generators import files, masked
from dreamjax.generators.generator import TEXT, Text, image_keys
from dreamjax.methods.masking import Recipe, TokenBatch, stage_loss
from dreamjax.methods.pretraining.generator import Judge
from dreamjax.methods.pretraining.task import Task, in_pieces, initial, signed, warm
from dreamjax.models.muse import Muse
from dreamjax.models.vqgan import VQGAN
from dreamjax.parallel import processes
from dreamjax.theta import Full, StackedThetas
from dreamjax.train.logs import Sheet

_SHOWN = 32  # images on a sheet of samples
_PIECE = 64  # images turned into tokens at once


def tokens_of(vqgan: VQGAN, params: Any, examples: Examples, side: int, count: int) -> Int[np.ndarray, "n t"]:
  """The tokens of the first `count` images, made smaller to `side` first."""

  @jax.jit
  def encode(images: Array) -> Array:
    return vqgan.apply({"params": params}, downsample(signed(images), side), method="tokens")

  starts = range(0, count, 2048)  # so many are in memory at once
  parts = (examples.load_images(np.arange(start, min(start + 2048, count))) for start in starts)
  return np.concatenate([in_pieces(encode, part, _PIECE) for part in parts])


def task(
  config: ml_collections.ConfigDict,
  examples: Examples,
  held_out: Examples,
  judge: Judge | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Task:
  """A stage that draws what captions say.

  Args:
    config: see `configs/pretrain_muse.py`.
    examples: images at least as large as the stage's.
    held_out: others, whose captions are drawn to measure the stage; by super-resolution, from their own tokens.
    judge: measures what was drawn.
    mesh: of devices, on which parameters are born; see `parallel.sharding`.

  Raises:
    ValueError: if a folder holds another network than is wanted there, or the sides of images and tokens differ.
  """
  encoder, text_params = pretrained.load(config.text_encoder)
  tokenizer = Tokenizer.load(config.text_encoder, config.length)
  vqgan, vqgan_params = pretrained.load(config.vqgan, kinds=(VQGAN,))
  low_vqgan, low_params = pretrained.load(config.low_vqgan, kinds=(VQGAN,)) if config.low_vqgan else (None, None)
  transformer = Muse(
    side=config.image // vqgan.factor,
    codebook=vqgan.codebook,
    text_width=encoder.width,
    low_side=config.low_image // low_vqgan.factor if low_vqgan else 0,
    low_codebook=low_vqgan.codebook if low_vqgan else 0,
    **config.model,
  )
  stage = masked.TokenStage(config.stage, transformer, vqgan, masked.Decoding(**config.decoding))
  drawn = masked.Masked(config.name, encoder, tokenizer, (stage,))
  weights = initial(transformer, jax.random.key(config.seed), *_inputs(transformer, tokenizer.length), mesh=mesh)
  if config.start:
    weights = warm(weights, pretrained.load(config.start)[1])

  tokens = tokens_of(vqgan, vqgan_params, examples, config.image, len(examples))
  low = tokens_of(low_vqgan, low_params, examples, config.low_image, len(examples)) if low_vqgan else None
  order = epochs(len(examples), config.batch_size, config.seed)
  null = tuple(jnp.asarray(x) for x in tokenizer([""]))
  frozen = {TEXT: text_params, stage.name: {"transformer": processes.fetch(weights)}, "null": null}

  def rows(indices: np.ndarray) -> TokenBatch:
    smaller = None if low is None else low[indices]
    return TokenBatch(
      tokens[indices], tuple(tokenizer(examples.captions(indices))), np.ones(len(indices), np.float32), smaller
    )

  take = on_device(rows, len(examples)) if config.resident else rows

  count = min(max(config.eval_examples, _SHOWN), len(held_out))
  prompts = held_out.captions(np.arange(count))
  held_low = tokens_of(low_vqgan, low_params, held_out, config.low_image, count) if low_vqgan else None

  def whole(theta: Any) -> dict[str, Any]:
    return {TEXT: text_params, stage.name: {"transformer": theta[stage.name].weights, "vqgan": vqgan_params}}

  def draw(theta: Any, count: int) -> np.ndarray:
    params = whole(theta)
    if held_low is None:
      wishes = [masked.plain(prompt) for prompt in prompts[:count]]
      parts = masked.batches(drawn, params, wishes, seed=config.seed, size=32)
      return np.concatenate([images for (images,) in parts])
    said = [""] * count, prompts[:count]
    inputs = [drawn.encode(params, said[i]) for i in asked], np.arange(count), held_low[:count]
    return np.asarray(in_pieces(lambda x: enlarge(params[stage.name], *x), inputs, 8))

  asked, shares = masked.branch_weights(masked.plain(""), stage.decoding)

  @jax.jit
  def enlarge(params: Any, texts: Sequence[Text], numbers: Array, low: Array) -> Array:
    """Super-resolution by itself."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *texts)
    branches = StackedThetas.of(params["transformer"], [None] * len(texts))
    keys = image_keys(config.seed, numbers)
    made = masked.draw_tokens(stage, stage.decoding, params, branches, stacked, jnp.asarray(shares), keys, low)
    return stage.decode(params, made)

  def measure(theta: Any) -> dict[str, float]:
    return {} if judge is None else judge(list(draw(theta, count)), prompts)

  def show(theta: Any) -> Sheet:
    return Sheet(draw(theta, _SHOWN), prompts[:_SHOWN])

  def save(theta: Any, folder: pathlib.Path) -> None:
    beside = os.path.relpath(config.text_encoder, folder)
    files.save(folder, drawn, {stage.name: whole(theta)[stage.name]}, text_encoder=beside)

  recipe = Recipe(config.min_mask_ratio, config.smoothing, config.text_dropout)
  loss = stage_loss(stage, recipe, encoder)
  return Task({stage.name: Full(weights)}, loss, lambda i: take(order(i)), measure, save, frozen, show)


def _inputs(transformer: Muse, length: int) -> Sequence[Array]:
  """Inputs of the right shapes."""
  tokens, low = (jnp.zeros((1, side**2), jnp.int32) for side in (transformer.side, transformer.low_side))
  text = jnp.zeros((1, length, transformer.text_width)), jnp.ones((1, length), bool)
  return (tokens, *text, low) if transformer.low_side else (tokens, *text)
