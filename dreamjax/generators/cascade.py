"""A cascade of diffusion: a base stage draws small images from a text, further stages make them larger.

Imagen (Saharia et al., 2205.11487, sections 2.2 to 2.4) and DeepFloyd IF. Each stage is a U-Net with a schedule of its
own. A stage of super-resolution sees the image of the stage before, enlarged and then noised at a level that it is
told: noise conditioning augmentation.

Stable Diffusion (Rombach et al., 2112.10752; SDXL: Podell et al., 2307.01952) is a cascade here as well: its only stage
draws latents, of which an autoencoder makes images.

The parameters of a cascade are one tree: "text" for the text encoder, one entry for each stage, by its name, and
"autoencoder" where there is one.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from dreamjax.data.identifiers import PLACEHOLDER, fill
from dreamjax.diffusion import guidance, process, samplers
from dreamjax.diffusion.resolution import upsample
from dreamjax.diffusion.schedules import BetaTable, Schedule, spaced_times, uniform_times
from dreamjax.generators.control import ImageControl
from dreamjax.generators.generator import (
  TEXT,
  Generator,
  Text,
  image_keys,
  in_batches,
  merge_full_weights,
  over,
  spread,
)
from dreamjax.models.autoencoder import Autoencoder
from dreamjax.models.latent_unet import LatentUNet
from dreamjax.models.unet import UNet
from dreamjax.parallel import processes
from dreamjax.theta import Personalisation, Theta
from dreamjax.theta import apply as apply_theta

SAMPLERS = ("ancestral", "ddim", "dpm")
AUTOENCODER = "autoencoder"  # its name among the parts of a cascade


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a stage is sampled.

  Attributes:
    sampler: one of `SAMPLERS`.
    steps: how many.
    guidance: the weight w of u + w (c - u); 1 leaves the unconditional half out.
    interval: least and greatest of the times at which there is guidance.
    ratio: of dynamic thresholding (Imagen, section 2.3); 1 is nearly, and 0 exactly, static thresholding. Latents have
      no bounds, so for them it has no meaning.
    maximum: of the threshold, see `guidance.dynamic_threshold`; None for none.
    variance: of the ancestral sampler's noise: from 0, diffusers' `fixed_small`, to 1, `fixed_large`, or "learned",
      what the network says.
    level: the noise conditioning augmentation of the low-resolution image, as a time of the stage's augmentation
      schedule; levels below the schedule's `min_time` count as that. Stages without a low-resolution image ignore it.
  """

  sampler: str = "ddim"
  steps: int = 30
  guidance: float = 4.0
  interval: tuple[float, float] = (0.0, 1.0)
  ratio: float = 0.995
  maximum: float | None = None
  variance: float | str = 0.0
  level: float = 0.0

  def __post_init__(self):
    """Raises ValueError for what cannot be."""
    if self.sampler not in SAMPLERS:
      raise ValueError(f"unknown sampler {self.sampler!r}; there are: {', '.join(SAMPLERS)}")
    if self.steps < 1:
      raise ValueError(f"sampling takes one step or more, not {self.steps}")
    if not 0 <= self.ratio <= 1 or not 0 <= self.level <= 1:
      raise ValueError(f"ratio and level are from 0 to 1, not {self.ratio} and {self.level}")
    object.__setattr__(self, "interval", tuple(self.interval))  # files have lists
    if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1] <= 1:
      raise ValueError(f"guidance has an interval of times within 0 and 1, not {self.interval}")


@dataclasses.dataclass(frozen=True)
class Spacing:
  """Which of a table's timesteps are sampled, see `schedules.spaced_times`.

  Attributes:
    name: "leading", "linspace" or "trailing".
    offset: of "leading".
    clean: whether the last step leads to t = 0.
  """

  name: str = "trailing"
  offset: int = 0
  clean: bool = True


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a cascade.

  Attributes:
    name: of the stage, and of its part of the parameters.
    unet: the network, which also says how large the images are, and whether it sees smaller ones.
    schedule: of the noise.
    predicts: what the network says: "eps", "x0" or "v".
    augmentation: the schedule by which the low-resolution image is noised; None for a base stage.
    sampling: how the stage is sampled unless it is told otherwise.
    masks_text: whether the network is told which tokens are padding. IF is not, nor is any network that draws latents.
    spacing: of the timesteps, where the schedule is a table.
    sizes: what networks are told that take sizes, see `LatentUNet`.
  """

  name: str
  unet: UNet | LatentUNet
  schedule: Schedule
  predicts: str = "v"
  augmentation: Schedule | None = None
  sampling: Sampling = Sampling()
  masks_text: bool = True
  spacing: Spacing = Spacing()
  sizes: tuple[int, ...] | None = None

  def __post_init__(self):
    """Raises ValueError for an unknown prediction, and for a network and what it sees that do not go together."""
    process.check_prediction_type(self.predicts)
    if (isinstance(self.unet, UNet) and self.unet.low_res) != self.is_super_resolution:
      raise ValueError(f"stage {self.name}: a network sees a low-resolution image if and only if that is augmented")
    if (isinstance(self.unet, LatentUNet) and self.unet.pooled_width is not None) != (self.sizes is not None):
      raise ValueError(f"stage {self.name}: sizes are told to a network if and only if it takes them")

  @property
  def image(self) -> int:
    """Side of the stage's images, or latents."""
    return self.unet.image

  @property
  def channels(self) -> int:
    """Those of the stage's images, or latents."""
    return self.unet.channels if self.is_latent else 3

  @property
  def is_latent(self) -> bool:
    """Whether the stage draws latents."""
    return isinstance(self.unet, LatentUNet)

  @property
  def is_super_resolution(self) -> bool:
    """Whether the stage is one of super-resolution."""
    return self.augmentation is not None

  def predict(
    self,
    params: Any,
    theta: Theta | None,
    x_t: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    text: Text,
    low_res: Float[Array, "b h w 3"] | None = None,
    level: Float[Array, " b"] | None = None,
    control: ImageControl | None = None,
  ) -> Float[Array, "b h w k"]:
    """What the network says, personalised by a theta.

    Args:
      params: the network's.
      theta: None for the base model.
      x_t: noisy images.
      t: their times.
      text: what they are to show.
      low_res: enlarged and noised, see `process.augment`.
      level: how far they were noised.
      control: the image that latents follow, and how.
    """
    if isinstance(self.unet, LatentUNet):
      sizes = None if self.sizes is None else jnp.broadcast_to(jnp.float32(self.sizes), (len(t), len(self.sizes)))
      pooled = None if sizes is None else text.pooled
      told = x_t, self.schedule.timestep(t), text.tokens, pooled, sizes
      return apply_theta(self.unet, params, theta, *told, None if control is None else control(*told))
    mask = text.mask if self.masks_text else None
    timestep = self.schedule.timestep(t)
    noise_level = None if level is None else self.augmentation.timestep(level)
    return apply_theta(self.unet, params, theta, x_t, timestep, text.tokens, mask, low_res, noise_level)


@dataclasses.dataclass(frozen=True)
class Cascade(Generator[Stage]):
  """A text encoder and stages of diffusion.

  Attributes:
    autoencoder: what makes images of latents, if the stage draws such.
  """

  autoencoder: Autoencoder | None = None

  def __post_init__(self) -> None:
    """Raises ValueError for stages and an autoencoder that do not go together."""
    if any(stage.is_latent for stage in self.stages) != (self.autoencoder is not None):
      raise ValueError(f"{self.name}: there is an autoencoder if and only if a stage draws latents")
    if self.autoencoder is not None and len(self.stages) > 1:
      raise ValueError(f"{self.name}: latents are drawn by one stage, not {len(self.stages)}")

  @property
  def resolution(self) -> int:
    """Side of the finished images."""
    return self.stages[-1].image * (1 if self.autoencoder is None else self.autoencoder.factor)


def draw_stage(
  stage: Stage,
  sampling: Sampling,
  params: Any,
  theta: Theta | None,
  text: Text,
  null: Text,
  keys: Key[Array, " b"],
  low_res: Float[Array, "b h w 3"] | None = None,
  control: ImageControl | None = None,
) -> Float[Array, "b s s c"]:
  """Samples one stage. Jittable, with the first two arguments static.

  Args:
    stage: which.
    sampling: how.
    params: the network's.
    theta: the network's, or None.
    text: one row an image.
    null: one row, what guidance leads away from: the empty or the negative prompt.
    keys: one an image, on which alone its noise depends.
    low_res: the images of the stage before, at their own size.
    control: the image that latents follow, and how.

  Returns:
    Images in [-1, 1], or latents.
  """
  count, side = keys.shape[0], stage.image
  guided = sampling.guidance != 1
  if guided:
    negative = jax.tree.map(lambda x, y: jnp.broadcast_to(x, (count, *y.shape[1:])), null, text)
    text = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), negative, text)
  twice = (lambda x: jnp.concatenate([x, x])) if guided else (lambda x: x)
  seen = ()
  if stage.augmentation is not None:
    level = jnp.full(count, max(sampling.level, stage.augmentation.min_time))
    enlarged = process.augment(upsample(low_res, side), level, keys, stage.augmentation)
    seen = twice(enlarged), twice(level)

  def predict(x_t: Array, t: Array) -> Array:
    said = stage.predict(params, theta, twice(x_t), twice(t), text, *seen, control=control)
    if not guided:
      return said
    branches = said.reshape(2, count, *said.shape[1:])
    learned = said.shape[-1] > x_t.shape[-1]
    weights = guidance.within_interval(jnp.array([sampling.guidance]), t, *sampling.interval)
    return guidance.guide(branches, weights, learned_variance=learned)

  table = stage.schedule if isinstance(stage.schedule, BetaTable) else None
  spacing = stage.spacing
  if table is None:
    times = uniform_times(sampling.steps)
  else:
    times = spaced_times(table, sampling.steps, spacing.name, spacing.offset, clean=spacing.clean)
  start = process.draw_noise(keys, (side, side, stage.channels))
  maximum = float("inf") if sampling.maximum is None else sampling.maximum
  threshold = functools.partial(guidance.dynamic_threshold, ratio=sampling.ratio, maximum=maximum)
  if not sampling.ratio:
    threshold = guidance.static_threshold
  common = {"kind": stage.predicts, "threshold": None if stage.is_latent else threshold}
  match sampling.sampler:
    case "ancestral":
      drawn = samplers.ancestral(predict, start, times, stage.schedule, keys, gamma=sampling.variance, **common)
    case "ddim":
      drawn = samplers.ddim(predict, start, times, stage.schedule, **common)
    case "dpm":
      drawn = samplers.dpm_solver(predict, start, times, stage.schedule, **common)
  return drawn if stage.is_latent else jnp.clip(drawn, -1, 1)


def draw_cascade(
  stages: tuple[Stage, ...],
  samplings: tuple[Sampling, ...],
  params: Any,
  thetas: Mapping[str, Theta],
  text: Text,
  null: Text,
  keys: Key[Array, " b"],
  autoencoder: Autoencoder | None = None,
  control: ImageControl | None = None,
) -> tuple[Float[Array, "b _ _ 3"], ...]:
  """Samples stage after stage, in one program. Jittable, with the first two arguments and the autoencoder static.

  Args:
    stages: the base stage first.
    samplings: one for each.
    params: by the names of stages, and of the autoencoder.
    thetas: by the names of stages; those that are missing are not tuned.
    text: one row an image.
    null: one row.
    keys: one an image.
    autoencoder: what makes images of latents, if the stage draws such.
    control: the image that latents follow, and how.

  Returns:
    The images of each stage, in [-1, 1].
  """
  drawn: list[Array] = []
  for number, (stage, sampling) in enumerate(zip(stages, samplings, strict=True)):
    low_res = drawn[-1] if drawn else None
    own = process.fold_in(keys, number)
    theta = thetas.get(stage.name)
    drawn.append(draw_stage(stage, sampling, params[stage.name], theta, text, null, own, low_res, control))
  if autoencoder is not None:
    images = apply_theta(autoencoder, params[AUTOENCODER], None, drawn[-1], method="decode")
    drawn[-1] = jnp.clip(images, -1, 1)
  return tuple(drawn)


#: `draw_cascade`, as `batches` calls it.
jit_cascade = jax.jit(draw_cascade, static_argnums=(0, 1, 7))


def batches(
  cascade: Cascade,
  params: Any,
  prompts: Sequence[str],
  *,
  thetas: Mapping[str, Theta] | None = None,
  samplings: Sequence[Sampling] | None = None,
  negative: str = "",
  seed: int = 0,
  first: int = 0,
  size: int = 8,
  mesh: jax.sharding.Mesh | None = None,
  control: ImageControl | None = None,
) -> Iterator[tuple[Float[np.ndarray, "b _ _ 3"], ...]]:
  """Images of all stages, `size` at a time, as they are drawn; see `sample`.

  Args:
    cascade: the generator.
    params: its parameters.
    prompts: one an image, [V] already replaced.
    thetas: personalisations by the names of parts.
    samplings: one for each stage; by default each stage's own. Fewer draw fewer stages.
    negative: what guidance leads away from.
    seed: of all noise.
    first: the number of the first image: image i of a seed is the same whatever is drawn beside it.
    size: how many are drawn at once; on a mesh, as many more as make it divide.
    mesh: of devices, over which the images of a batch are spread; None for one device.
    control: of a generator that draws latents, the image that they follow, and how.
  """
  thetas = thetas or {}
  samplings = tuple(samplings or (stage.sampling for stage in cascade.stages))
  stages = cascade.stages[: len(samplings)]
  distinct = list(dict.fromkeys(prompts))
  texts = cascade.encode(params, [negative, *distinct], thetas.get(TEXT), mesh)
  null = jax.tree.map(lambda x: x[:1], texts)
  rows = np.array([1 + distinct.index(prompt) for prompt in prompts])
  used = {name: params[name] for name in (*(stage.name for stage in stages), AUTOENCODER) if name in params}
  tuned = {}
  for stage in stages:
    used[stage.name], theta = merge_full_weights(used[stage.name], thetas.get(stage.name))
    if theta is not None:
      tuned[stage.name] = theta
  for count, places in in_batches(len(prompts), size, mesh):
    text = jax.tree.map(lambda x, places=places: x[rows[places]], texts)
    text, keys = spread((text, image_keys(seed, first + places)), mesh)
    with over(mesh):
      drawn = jit_cascade(stages, samplings, used, tuned, text, null, keys, cascade.autoencoder, control)
    yield tuple(image[:count] for image in processes.fetch(drawn))


def sample(
  cascade: Cascade,
  params: Any,
  prompts: Sequence[str],
  *,
  theta: Personalisation | None = None,
  n: int = 1,
  samplings: Sequence[Sampling] | None = None,
  negative: str = "",
  seed: int = 0,
  size: int = 8,
  mesh: jax.sharding.Mesh | None = None,
  control: ImageControl | None = None,
) -> Float[np.ndarray, "n s s 3"]:
  """Draws images of prompts.

  Args:
    cascade: the generator.
    params: its parameters.
    prompts: [V] in them stands for the subject.
    theta: who the subject is; None for the base model.
    n: how many images of each prompt; they stand together.
    samplings: one for each stage; by default those of `own_samplings`.
    negative: what guidance leads away from.
    seed: of all noise. Image i of a seed does not depend on what is drawn beside it, nor on `size`.
    size: how many are drawn at once; on a mesh, as many more as make it divide.
    mesh: of devices, over which the images of a batch are spread; None for one device.
    control: of a generator that draws latents, the image that they follow, and how: see `generators.load_control`.

  Returns:
    The last stage's images, in [-1, 1].

  Raises:
    ValueError: if there are no prompts, or there is [V] in one but no theta that says what it is.
  """
  texts = [text for text in fill_prompts(prompts, theta) for _ in range(n)]
  if not texts:
    raise ValueError("there is no prompt to draw")
  thetas = {} if theta is None else theta.thetas
  samplings = default_samplings(cascade, theta) if samplings is None else samplings
  options = {"samplings": samplings, "negative": negative, "seed": seed, "size": size, "mesh": mesh, "control": control}
  return np.concatenate([stages[-1] for stages in batches(cascade, params, texts, thetas=thetas, **options)])


def default_samplings(cascade: Cascade, theta: Personalisation | None) -> tuple[Sampling, ...]:
  """How each stage is sampled unless it is told otherwise: as the generator says, or the recipe of a personalisation.

  A stage of super-resolution that was tuned with little noise on the small images is to be sampled with as little.
  """
  changes = {} if theta is None else theta.card.recipe.get("sampling", {})
  return tuple(dataclasses.replace(stage.sampling, **changes.get(stage.name, {})) for stage in cascade.stages)


def fill_prompts(prompts: Sequence[str], theta: Personalisation | None) -> list[str]:
  """Prompts with the identifier in the places of [V]; ValueError if there is one but no theta."""
  if theta is not None:
    return [fill(prompt, theta.card.identifier) for prompt in prompts]
  for prompt in prompts:
    if PLACEHOLDER.lower() in prompt.lower():
      raise ValueError(f"{prompt!r}: {PLACEHOLDER} stands for a subject, and there is no theta that says which")
  return list(prompts)
