"""The loss by which stages of masked tokens are trained, whether from random weights or on one image of a style.

For an example with tokens z, text c and, in super-resolution stages, the tokens z_low of the low-resolution image:

    r = cos(pi u / 2),  u ~ U(0, 1),  m a random share r of the tokens                                             (1)
    loss = weight sum_(n in m) CE( network(z masked by m, c, z_low)_n, z_n ) / sum |m|                             (2)

Muse (Chang et al., 2301.00704, section 2.4); eqs. 2 and 3 of StyleDrop (Sohn et al., 2306.00983).
"""

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.errors import UserError
from dreamjax.generators.conditioning import Conditioning, Text
from dreamjax.generators.generator import TEXT, drop_texts, encode_text
from dreamjax.generators.masked import TokenStage
from dreamjax.masked.losses import masked_token_loss
from dreamjax.masked.schedules import draw_mask, draw_ratios
from dreamjax.methods.realising import Realise, each, same
from dreamjax.models.t5 import T5Encoder
from dreamjax.train.step import Loss, Mean


@struct.dataclass
class TokenBatch:
  """A batch that a stage of masked tokens is trained on.

  Attributes:
    tokens: of the images.
    prompt: what they show: `Text`, or its token ids and mask.
    weight: of each example in the loss.
    low: tokens of the low-resolution images, for super-resolution stages.
  """

  tokens: Int[Array, "b n"]
  prompt: Any
  weight: Float[Array, " b"]
  low: Int[Array, "b l"] | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a stage is trained.

  Attributes:
    min_mask_ratio: smallest share of the tokens that is masked; see `masked.schedules.draw_ratios`.
    smoothing: of the labels.
    text_dropout: share of examples whose text is replaced by the empty one, for guidance.
  """

  min_mask_ratio: float = 0.0
  smoothing: float = 0.0
  text_dropout: float = 0.0

  def __post_init__(self) -> None:
    """Raises UserError for values out of range."""
    if not 0 <= self.min_mask_ratio < 1 or not 0 <= self.smoothing < 1:
      wrong = f"{self.min_mask_ratio} and {self.smoothing}"
      raise UserError(f"min_mask_ratio and smoothing are at least 0 and below 1, not {wrong}")
    if not 0 <= self.text_dropout <= 1:
      raise UserError(f"text_dropout is from 0 to 1, not {self.text_dropout}")


def stage_loss(
  stage: TokenStage,
  recipe: Recipe,
  encoder: T5Encoder | None = None,
  realise: Realise = same,
  per_example: bool = False,
) -> Loss:
  """Builds the loss (2) of a stage.

  Args:
    stage: the stage.
    recipe: how it is trained.
    encoder: the text encoder, if prompts come as token ids; else they come as `Text`.
    realise: realise(theta, frozen, batch) makes of what is trained the thetas that are applied, by the names of parts;
      by default they are what is trained.
    per_example: whether `realise` returns stacked thetas, each leaf [b, ...]: one for each example.

  Returns:
    loss(theta, frozen, batch, key), see `train.step`. The thetas hold the stage's by the stage's name; frozen holds the
    base model's parameters by the names of its parts, and the null text (one example, as prompts are) by "null". The
    batch is of `TokenBatch`. The share of masked tokens that are predicted right is logged.
  """
  return _StageLoss(stage, recipe, encoder, realise, per_example)


@dataclasses.dataclass(frozen=True)
class _StageLoss:
  """See `stage_loss`."""

  stage: TokenStage
  recipe: Recipe
  encoder: T5Encoder | None
  realise: Realise
  per_example: bool

  def __call__(self, theta: Any, frozen: Any, batch: TokenBatch, key: jax.Array) -> tuple[Array, dict[str, Any]]:
    recipe, (count, length) = self.recipe, batch.tokens.shape
    ratio_key, mask_key, drop_key = jax.random.split(key, 3)
    mask = draw_mask(jax.random.split(mask_key, count), draw_ratios(ratio_key, count, recipe.min_mask_ratio), length)
    prompt = batch.prompt
    if recipe.text_dropout:
      prompt = drop_texts(drop_key, prompt, frozen["null"], recipe.text_dropout)
    masked = jnp.where(mask, self.stage.transformer.mask_id, batch.tokens)
    predict = each(self._predict) if self.per_example else self._predict
    logits = predict(frozen, self.realise(theta, frozen, batch), masked, prompt, batch.low)
    value = masked_token_loss(logits, batch.tokens, mask, batch.weight, recipe.smoothing)
    right = jnp.where(mask & (jnp.argmax(logits, axis=-1) == batch.tokens), 1.0, 0.0)
    return value, {"right": Mean(right.sum(), jnp.where(mask, 1.0, 0.0).sum())}

  def _predict(
    self, frozen: Any, thetas: Any, tokens: Int[Array, "b n"], prompt: Any, low: Int[Array, "b l"] | None
  ) -> Float[Array, "b n v"]:
    """The logits of all tokens."""
    text = Text(*prompt) if self.encoder is None else encode_text(self.encoder, frozen[TEXT], None, *prompt)
    return self.stage.predict(frozen[self.stage.name], thetas.get(self.stage.name), tokens, Conditioning(text, low))
