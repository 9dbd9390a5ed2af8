"""The loss by which stages of a cascade learn, whether from nothing or from a few photos of one subject.

For a row with image x, text c, time t and noise eps (diffusion/losses.py, eq. 1; Saharia et al., 2205.11487, 2.4):

    x_t = alpha_t x + sigma_t eps,   low = augment(enlarge(shrink(x)), level),   level ~ U(levels)                 (1)
    loss = weight w(t) || network(x_t, t, c, low, level) - target ||^2                                             (2)

The target is what the network should have said of x and eps. In a row that is marked "frozen" it is what the frozen
network says of the same x_t instead: the prior is then preserved by the model's own answers, without class images.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.data.photos import Batch
from dreamjax.diffusion import losses, process
from dreamjax.diffusion.resolution import downsample, upsample
from dreamjax.generators.cascade import Stage
from dreamjax.generators.conditioning import Conditioning, Text
from dreamjax.generators.generator import TEXT, drop_texts, encode_text
from dreamjax.models.clip import PromptEncoder
from dreamjax.models.t5 import T5Encoder
from dreamjax.train.step import Loss


class Recipe(NamedTuple):
  """What a training of a stage decides.

  Attributes:
    levels: least and greatest noise on the low-resolution image, as times; only for stages that see one.
    small: side of the low-resolution image; 0 for stages that see none.
    drop: share of rows whose text is replaced by the empty one, for guidance.
    min_snr: gamma of the weights of `losses.min_snr`; 0 for none.
  """

  levels: tuple[float, float] = (0.0, 1.0)
  small: int = 0
  drop: float = 0.0
  min_snr: float = 0.0


def stage_loss(stage: Stage, recipe: Recipe, encoder: T5Encoder | PromptEncoder | None = None) -> Loss:
  """Builds the loss (2) of a stage.

  Args:
    stage: which.
    recipe: how.
    encoder: the text encoder, if it is tuned as well, or if rows come with token ids; else their prompts are `Text`.

  Returns:
    loss(theta, frozen, rows, key), see `train.step`. theta holds the stage's theta by the stage's name, and by "text"
    the text encoder's if that is tuned; frozen holds the base model's parameters by the same names, and the null text
    (one row, as prompts are) by "null". Rows are `data.photos.Batch`, whose conditioning may hold "frozen" and "prior",
    [b] bool: what eq. 2 says, and which rows' loss is logged apart as the prior's.
  """

  def loss(theta: Any, frozen: Any, rows: Batch, key: jax.Array) -> tuple[Array, dict[str, Array]]:
    count = rows.weight.shape[0]
    noise_key, time_key, level_key, drop_key = jax.random.split(key, 4)
    keys = jax.random.split(noise_key, count)
    t = stage.schedule.draw(time_key, count)
    eps = process.draw_noise(keys, rows.image.shape[1:])
    x_t = process.diffuse(rows.image, eps, t, stage.schedule)
    seen: tuple[Array, ...] = ()
    if stage.augmentation is not None:
      low, high = (max(level, stage.augmentation.min_time) for level in recipe.augmentation_levels)
      level = low + (high - low) * jax.random.uniform(level_key, (count,))
      enlarged = upsample(downsample(rows.image, recipe.small), rows.image.shape[1])
      seen = process.augment(enlarged, level, keys, stage.augmentation), level
    prompt = rows.prompt
    if recipe.text_dropout:
      prompt = drop_texts(drop_key, prompt, frozen["null"], recipe.text_dropout)

    def predict(theta: Any) -> Float[Array, "b h w c"]:
      text = prompt if encoder is None else encode_text(encoder, frozen[TEXT], theta.get(TEXT), *prompt)
      said = stage.predict(frozen[stage.name], theta.get(stage.name), x_t, t, Conditioning(Text(*text), *seen))
      return said[..., : rows.image.shape[-1]]

    target = process.target(rows.image, eps, t, stage.schedule, stage.predicts)
    if "frozen" in rows.conditioning:
      is_frozen = rows.conditioning["frozen"][:, None, None, None]
      target = jnp.where(is_frozen, jax.lax.stop_gradient(predict({})), target)
    weights = rows.weight
    if recipe.min_snr:
      weights = weights * losses.min_snr(t, stage.schedule, stage.predicts, recipe.min_snr)
    prediction = predict(theta)
    value = losses.denoising_loss(prediction, target, weights)
    errors = losses.squared_error(prediction, target)
    return value, _by_group(errors, rows.conditioning.get("prior"))

  return loss


def _by_group(errors: Float[Array, " b"], is_prior: Array | None) -> dict[str, Float[Array, ""]]:
  """The mean error of the subject's rows and of the prior's, before their weights."""
  if is_prior is None:
    return {"error": errors.mean()}
  prior = jnp.where(is_prior, 1.0, 0.0)
  means = {"subject": 1.0 - prior, "prior": prior}
  return {f"error_{name}": (errors * share).sum() / jnp.maximum(share.sum(), 1.0) for name, share in means.items()}
