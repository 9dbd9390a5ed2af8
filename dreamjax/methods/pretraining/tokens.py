"""Training of a stage of masked tokens on captioned images, with a text encoder and VQGANs that were trained before.

Muse (Chang et al., 2301.00704): a transformer predicts the masked tokens of an image from the others and from the text,
a tenth of the texts dropped; the super-resolution stage is conditioned on the tokens of the low-resolution image, too.
Images are encoded as tokens once, before the first update.
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
from dreamjax.generators.branches import base_model_group
from dreamjax.generators.conditioning import Text
from dreamjax.generators.generator import TEXT, image_keys
from dreamjax.generators.sampling import batches
from dreamjax.methods.masking import Recipe, TokenBatch, stage_loss
from dreamjax.methods.pretraining.generator import Scorer
from dreamjax.methods.pretraining.task import Task, in_batches, init_params, load_matching, signed
from dreamjax.models.muse import Muse
from dreamjax.models.vqgan import VQGAN
from dreamjax.parallel import processes
from dreamjax.theta import Full
from dreamjax.train.logs import Sheet

_SHEET_IMAGES = 32  # on the sheet of samples
_ENCODED_AT_ONCE = 64  # images
_READ_AT_ONCE = 2048  # images, which are then in memory


def encode_images(vqgan: VQGAN, params: Any, examples: Examples, side: int, count: int) -> Int[np.ndarray, "n t"]:
  """Encodes the first `count` images as tokens, after resizing them to `side` pixels."""

  @jax.jit
  def encode(images: Array) -> Array:
    return vqgan.apply({"params": params}, downsample(signed(images), side), method="tokens")

  starts = range(0, count, _READ_AT_ONCE)
  parts = (examples.load_images(np.arange(start, min(start + _READ_AT_ONCE, count))) for start in starts)
  return np.concatenate([in_batches(encode, part, _ENCODED_AT_ONCE) for part in parts])


class TokensTask(Task):
  """The training of one stage."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    examples: Examples,
    held_out: Examples,
    scorer: Scorer | None = None,
    mesh: jax.sharding.Mesh | None = None,
  ) -> None:
    """Encodes the images as tokens and initialises the parameters.

    Args:
      config: see `configs/pretrain_muse.py`.
      examples: captioned images to train on, at least as large as the stage's.
      held_out: those whose captions images are generated from, to evaluate the stage; super-resolution stages are
        conditioned on their low-resolution tokens.
      scorer: evaluates what was generated; None for no evaluation.
      mesh: devices over which parameters are sharded; see `parallel.sharding`.

    Raises:
      ValueError: if a folder holds another kind of network than is wanted, or the sides of images and tokens differ.
    """
    self.config, self.examples, self._scorer = config, examples, scorer
    encoder, text_params = pretrained.load(config.text_encoder)
    self.tokenizer = Tokenizer.load(config.text_encoder, config.length)
    vqgan, self._vqgan_params = pretrained.load(config.vqgan, kinds=(VQGAN,))
    low_vqgan, low_params = pretrained.load(config.low_vqgan, kinds=(VQGAN,)) if config.low_vqgan else (None, None)
    transformer = Muse(
      side=config.image // vqgan.factor,
      codebook=vqgan.codebook,
      text_width=encoder.width,
      low_side=config.low_image // low_vqgan.factor if low_vqgan else 0,
      low_codebook=low_vqgan.codebook if low_vqgan else 0,
      **config.model,
    )
    self.stage = masked.TokenStage(config.stage, transformer, vqgan, masked.Decoding(**config.decoding))
    self.generator = masked.Masked(config.name, encoder, self.tokenizer, (self.stage,))
    self._loss = stage_loss(self.stage, Recipe(config.min_mask_ratio, config.smoothing, config.text_dropout), encoder)
    inputs = _inputs(transformer, self.tokenizer.length)
    weights = init_params(transformer, jax.random.key(config.seed), *inputs, mesh=mesh)
    if config.start:
      weights = load_matching(weights, pretrained.load(config.start)[1])
    self.theta = {self.stage.name: Full(weights)}
    null = tuple(jnp.asarray(x) for x in self.tokenizer([""]))
    self.frozen = {TEXT: text_params, self.stage.name: {"transformer": processes.fetch(weights)}, "null": null}

    def encode_low(images: Examples, count: int) -> Int[np.ndarray, "n l"] | None:
      return encode_images(low_vqgan, low_params, images, config.low_image, count) if low_vqgan else None

    self._tokens = encode_images(vqgan, self._vqgan_params, examples, config.image, len(examples))
    self._low = encode_low(examples, len(examples))
    self._order = epochs(len(examples), config.batch_size, config.seed)
    self._read = on_device(self._examples, len(examples)) if config.resident else self._examples
    count = min(max(config.eval_examples, _SHEET_IMAGES), len(held_out))
    self._prompts = held_out.captions(np.arange(count))
    self._held_out_low = encode_low(held_out, count)
    self._sample_from = jax.jit(self._super_resolution)

  def loss(self, theta: Any, frozen: Any, batch: TokenBatch, key: jax.Array) -> tuple[Array, dict[str, Any]]:
    """Computes `masking.stage_loss`."""
    return self._loss(theta, frozen, batch, key)

  def batch(self, i: int) -> TokenBatch:
    """Returns the tokens of update i's images, of their captions and of the low-resolution images."""
    return self._read(self._order(i))

  def measure(self, theta: Any) -> dict[str, float]:
    """Evaluates images generated from held-out captions with the scorer."""
    if self._scorer is None:
      return {}
    return self._scorer(list(self._generate(theta, len(self._prompts))), self._prompts)

  def show(self, theta: Any) -> Sheet:
    """Returns images generated from held-out captions."""
    return Sheet(self._generate(theta, _SHEET_IMAGES), self._prompts[:_SHEET_IMAGES])

  def save(self, theta: Any, folder: pathlib.Path) -> None:
    """Writes the stage as a generator, which refers to the folder of its text encoder."""
    text_encoder = os.path.relpath(self.config.text_encoder, folder)
    files.save(folder, self.generator, {self.stage.name: self._params(theta)}, text_encoder=text_encoder)

  def _examples(self, indices: np.ndarray) -> TokenBatch:
    """Tokens of images, of captions and of low-resolution images."""
    low = None if self._low is None else self._low[indices]
    prompt = tuple(self.tokenizer(self.examples.captions(indices)))
    return TokenBatch(self._tokens[indices], prompt, np.ones(len(indices), np.float32), low)

  def _params(self, theta: Any) -> dict[str, Any]:
    """The stage's parameters."""
    return {"transformer": theta[self.stage.name].weights, "vqgan": self._vqgan_params}

  def _generate(self, theta: Any, count: int) -> np.ndarray:
    """Images of the first held-out captions."""
    params, prompts = {TEXT: self.frozen[TEXT], self.stage.name: self._params(theta)}, self._prompts[:count]
    if self._held_out_low is None:
      parts = batches(self.generator, params, prompts, seed=self.config.seed, batch_size=32)
      return np.concatenate([images for (images,) in parts])
    negative = self.generator.encode(params, [""])
    inputs = self.generator.encode(params, prompts), np.arange(count), self._held_out_low[:count]
    return np.asarray(in_batches(lambda x: self._sample_from(params[self.stage.name], negative, *x), inputs, 8))

  def _super_resolution(self, params: Any, negative: Text, text: Text, numbers: Array, low: Array) -> Array:
    """Images sampled from low-resolution tokens."""
    guidance = self.stage.sampling.branches(0, 0.0)
    groups, keys = base_model_group(guidance, params, negative, text), image_keys(self.config.seed, numbers)
    tokens = masked.sample_tokens(self.stage, self.stage.sampling, groups, guidance.weights, keys, low)
    return self.stage.decode(params, tokens)


def _inputs(transformer: Muse, length: int) -> Sequence[Array]:
  """Inputs of the right shapes."""
  tokens, low = (jnp.zeros((1, side**2), jnp.int32) for side in (transformer.side, transformer.low_side))
  text = jnp.zeros((1, length, transformer.text_width)), jnp.ones((1, length), bool)
  return (tokens, *text, low) if transformer.low_side else (tokens, *text)
