"""The loss by which stages of masked tokens learn, whether from nothing or from one image of a style.

For a row with tokens z, text c and, in stages of super-resolution, the tokens z_low of the small image:

    r = cos(pi u / 2),  u ~ U(0, 1),  m a random share r of the places                                             (1)
    loss = weight sum_(n in m) CE( network(z masked by m, c, z_low)_n, z_n ) / sum |m|                             (2)

Muse (Chang et al., 2301.00704, section 2.4); eqs. 2 and 3 of StyleDrop (Sohn et al., 2306.00983).
"""

from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dreamjax.generators.generator import TEXT, Text, drop_texts, encode_text
from dreamjax.generators.masked import TokenStage
from dreamjax.masked.losses import masked_token_loss
from dreamjax.masked.schedules import draw_mask, draw_ratios
from dreamjax.models.t5 import T5Encoder
from dreamjax.train.step import Loss


@struct.dataclass
class TokenBatch:
  """A batch of what a stage of masked tokens is trained on.

  Attributes:
    tokens: of the images.
    prompt: what they show: `Text`, or its token ids and mask.
    weight: of each row in the loss.
    low: tokens of the smaller images, for stages that see any.
  """

  tokens: Int[Array, "b n"]
  prompt: Any
  weight: Float[Array, " b"]
  low: Int[Array, "b l"] | None = None


class Recipe(NamedTuple):
  """What a training of a stage decides.

  Attributes:
    least: share of the tokens that is masked at least; see `masked.schedules.draw_ratios`.
    smoothing: of the labels.
    drop: share of rows whose text is replaced by the empty one, for guidance.
  """

  least: float = 0.0
  smoothing: float = 0.0
  drop: float = 0.0


def stage_loss(stage: TokenStage, recipe: Recipe, encoder: T5Encoder | None = None) -> Loss:
  """Builds the loss (2) of a stage.

  Args:
    stage: which.
    recipe: how.
    encoder: the text encoder, if rows come with token ids; else their prompts are `Text`.

  Returns:
    loss(theta, frozen, rows, key), see `train.step`. theta holds the stage's theta by the stage's name; frozen holds
    the base model's parameters by the names of its parts, and the null text (one row, as prompts are) by "null". Rows
    are `TokenBatch`. The share of masked tokens that are named right is logged.
  """

  def loss(theta: Any, frozen: Any, rows: TokenBatch, key: jax.Array) -> tuple[Array, dict[str, Array]]:
    count, length = rows.tokens.shape
    ratio_key, mask_key, drop_key = jax.random.split(key, 3)
    mask = draw_mask(jax.random.split(mask_key, count), draw_ratios(ratio_key, count, recipe.min_mask_ratio), length)
    prompt = rows.prompt
    if recipe.text_dropout:
      prompt = drop_texts(drop_key, prompt, frozen["null"], recipe.text_dropout)
    text = Text(*prompt) if encoder is None else encode_text(encoder, frozen[TEXT], None, *prompt)
    hidden = jnp.where(mask, stage.transformer.mask_id, rows.tokens)
    logits = stage.predict(frozen[stage.name], theta.get(stage.name), hidden, text, rows.low)
    value = masked_token_loss(logits, rows.tokens, mask, rows.weight, recipe.smoothing)
    right = jnp.where(mask & (jnp.argmax(logits, axis=-1) == rows.tokens), 1.0, 0.0)
    return value, {"right": right.sum() / jnp.where(mask, 1.0, 0.0).sum()}

  return loss
