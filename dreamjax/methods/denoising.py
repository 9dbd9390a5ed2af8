"""The loss by which the stages of a cascade are trained, whether from random weights or on a few photos of one subject.

For an example with image x, text c, time t and noise eps (diffusion/losses.py, eq. 1; Saharia et al., 2205.11487, 2.4):

    x_t = alpha_t x + sigma_t eps,   low = augment(upsample(downsample(x)), level),   level ~ U(levels)             (1)
    loss = weight w(t) || network(x_t, t, c, low, level) - target ||^2                                             (2)

The target is what the network should predict of x and eps. In an example that is marked "frozen" it is the frozen
network's prediction for the same x_t instead: the prior is then preserved by the model's own predictions, without class
images.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.data.photos import Batch
from dreamjax.diffusion import losses, process
from dreamjax.diffusion.resolution import downsample, upsample
from dreamjax.errors import UserError
from dreamjax.generators.cascade import Stage
from dreamjax.generators.conditioning import Conditioning, Text
from dreamjax.generators.generator import TEXT, drop_texts, encode_text
from dreamjax.methods.realising import Realise, each, same
from dreamjax.models.clip import PromptEncoder
from dreamjax.models.t5 import T5Encoder
from dreamjax.train.step import Loss, Mean


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a stage is trained.

  Attributes:
    augmentation_levels: range of the augmentation levels of the low-resolution image, as times; for super-resolution
      stages only.
    low_res_size: height and width of the low-resolution image; 0 for stages without one.
    text_dropout: share of examples whose text is replaced by the empty one, for guidance.
    min_snr: gamma of the weights of `losses.min_snr`; 0 for none.
  """

  augmentation_levels: tuple[float, float] = (0.0, 1.0)
  low_res_size: int = 0
  text_dropout: float = 0.0
  min_snr: float = 0.0

  def __post_init__(self) -> None:
    """Raises UserError for values out of range."""
    low, high = self.augmentation_levels
    if not 0 <= low <= high <= 1:
      raise UserError(f"augmentation_levels are two times from 0 to 1, the lower one first, not {low} and {high}")
    if not 0 <= self.text_dropout <= 1 or self.min_snr < 0:
      raise UserError(f"text_dropout is from 0 to 1 and min_snr at least 0, not {self.text_dropout} and {self.min_snr}")


def stage_loss(
  stage: Stage,
  recipe: Recipe,
  encoder: T5Encoder | PromptEncoder | None = None,
  realise: Realise = same,
  per_example: bool = False,
) -> Loss:
  """Builds the loss (2) of a stage.

  Args:
    stage: the stage.
    recipe: how it is trained.
    encoder: the text encoder, if it is tuned as well, or if prompts come as token ids; else they come as `Text`.
    realise: realise(theta, frozen, batch) makes of what is trained the thetas that are applied, by the names of parts;
      by default they are what is trained.
    per_example: whether `realise` returns stacked thetas, each leaf [b, ...]: one for each example.

  Returns:
    loss(theta, frozen, batch, key), see `train.step`. The thetas hold the stage's by the stage's name, and by "text"
    the text encoder's if that is tuned; frozen holds the base model's parameters by the same names, and by "null" the
    null text (one example, as prompts are). The batch is of `data.photos.Batch`, whose conditioning may hold "frozen"
    and "prior", [b] bool: which examples' target is the frozen network's prediction, and which examples' error is
    logged apart as the prior's.
  """
  return _StageLoss(stage, recipe, encoder, realise, per_example)


@dataclasses.dataclass(frozen=True)
class _StageLoss:
  """See `stage_loss`."""

  stage: Stage
  recipe: Recipe
  encoder: T5Encoder | PromptEncoder | None
  realise: Realise
  per_example: bool

  def __call__(self, theta: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[Array, dict[str, Any]]:
    stage, recipe, count = self.stage, self.recipe, batch.weight.shape[0]
    noise_key, time_key, level_key, drop_key = jax.random.split(key, 4)
    keys = jax.random.split(noise_key, count)
    t = stage.schedule.draw(time_key, count)
    eps = process.draw_noise(keys, batch.image.shape[1:])
    x_t = process.diffuse(batch.image, eps, t, stage.schedule)
    low_res = level = None
    if stage.augmentation is not None:
      low, high = recipe.augmentation_levels
      level = low + (high - low) * jax.random.uniform(level_key, (count,))
      level = jnp.maximum(level, stage.augmentation.min_time)
      blurred = upsample(downsample(batch.image, recipe.low_res_size), batch.image.shape[1])
      low_res = process.augment(blurred, level, keys, stage.augmentation)
    prompt = batch.prompt
    if recipe.text_dropout:
      prompt = drop_texts(drop_key, prompt, frozen["null"], recipe.text_dropout)
    inputs = x_t, t, prompt, low_res, level

    target = process.target(batch.image, eps, t, stage.schedule, stage.predicts)
    if "frozen" in batch.conditioning:
      is_frozen = batch.conditioning["frozen"][:, None, None, None]
      target = jnp.where(is_frozen, jax.lax.stop_gradient(self._predict(frozen, {}, *inputs)), target)
    weights = batch.weight
    if recipe.min_snr:
      weights = weights * losses.min_snr(t, stage.schedule, stage.predicts, recipe.min_snr)
    predict = each(self._predict) if self.per_example else self._predict
    prediction = predict(frozen, self.realise(theta, frozen, batch), *inputs)
    value = losses.denoising_loss(prediction, target, weights)
    errors = losses.squared_error(prediction, target)
    return value, _by_group(errors, batch.conditioning.get("prior"))

  def _predict(
    self, frozen: Any, thetas: Any, x_t: Array, t: Array, prompt: Any, low_res: Array | None, level: Array | None
  ) -> Float[Array, "b h w c"]:
    """The network's prediction, without a learned variance."""
    stage, encoder = self.stage, self.encoder
    text = Text(*prompt) if encoder is None else encode_text(encoder, frozen[TEXT], thetas.get(TEXT), *prompt)
    prediction = stage.predict(frozen[stage.name], thetas.get(stage.name), x_t, t, Conditioning(text, low_res, level))
    return prediction[..., : x_t.shape[-1]]


def _by_group(errors: Float[Array, " b"], is_prior: Array | None) -> dict[str, Any]:
  """The mean error of the subject's examples and of the prior's, before their weights."""
  if is_prior is None:
    return {"error": errors.mean()}
  prior = jnp.where(is_prior, 1.0, 0.0)
  groups = {"subject": 1.0 - prior, "prior": prior}
  return {f"error_{name}": Mean((errors * member).sum(), member.sum()) for name, member in groups.items()}
