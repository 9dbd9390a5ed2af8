"""Diffusion generators: a base stage samples small images from a prompt, super-resolution stages make them larger.

Imagen (Saharia et al., 2205.11487, sections 2.2 to 2.4) and DeepFloyd IF. Each stage is a U-Net with a noise schedule
of its own. A super-resolution stage is conditioned on the image of the stage before, resized and then noised, and on
the level of that noise: noise conditioning augmentation.

Stable Diffusion (Rombach et al., 2112.10752; SDXL: Podell et al., 2307.01952) is a cascade of one stage, which samples
latents that an autoencoder decodes.

The parameters of a cascade are one tree: "text" for the text encoder, one entry for each stage, by its name, and
"autoencoder" where there is one.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

from dreamjax import renamed
from dreamjax.diffusion import process, samplers, thresholding
from dreamjax.diffusion.resolution import upsample
from dreamjax.diffusion.schedules import BetaTable, Schedule, spaced_times, uniform_times
from dreamjax.errors import UserError
from dreamjax.generators.branches import BranchGroup, Guidance, diffusion_weights, evaluate, mix
from dreamjax.generators.conditioning import Conditioning, Text
from dreamjax.generators.control import ImageControl
from dreamjax.generators.generator import Generator, merge_full_weights
from dreamjax.models.autoencoder import Autoencoder
from dreamjax.models.latent_unet import LatentUNet
from dreamjax.models.unet import UNet
from dreamjax.theta import StackedThetas, Theta
from dreamjax.theta import apply as apply_theta

SAMPLERS = ("ancestral", "ddim", "dpm")
AUTOENCODER = "autoencoder"  # its name among the parts of a cascade


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a stage is sampled.

  Attributes:
    sampler: one of `SAMPLERS`.
    steps: the number of sampling steps.
    guidance: the weight w of classifier-free guidance, u + w (c - u); 1 is none.
    lambda_a: the weight of the guidance from the base model to the personalised one, see `branches`.
    interval: the times between which there is guidance (Kynkaanniemi et al., 2404.07724): low < t <= high.
    threshold_percentile: of dynamic thresholding (Imagen, section 2.3), over 100; 1 is nearly, and 0 exactly, static
      thresholding. Latents have no bounds, so they are not thresholded.
    threshold_max: the largest threshold, see `thresholding.dynamic_threshold`; None for no limit.
    variance: of the ancestral sampler's noise: from 0, diffusers' `fixed_small`, to 1, `fixed_large`, or "learned", as
      the network predicts it.
    augmentation_level: the noise on the low-resolution image, as a time of the stage's augmentation schedule, raised to
      its smallest; ignored by base stages.
  """

  sampler: str = "ddim"
  steps: int = 30
  guidance: float = 4.0
  interval: tuple[float, float] = (0.0, 1.0)
  threshold_percentile: float = 0.995
  threshold_max: float | None = None
  variance: float | str = 0.0
  augmentation_level: float = 0.0
  lambda_a: float = 0.0

  def __post_init__(self):
    """Raises UserError for values out of range."""
    if self.sampler not in SAMPLERS:
      raise UserError(f"unknown sampler {self.sampler!r}; there are: {', '.join(SAMPLERS)}")
    if self.steps < 1:
      raise UserError(f"sampling takes one step or more, not {self.steps}")
    for name in ("threshold_percentile", "augmentation_level"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f"{name} is from 0 to 1, not {getattr(self, name)}")
    object.__setattr__(self, "interval", tuple(self.interval))  # files have lists
    if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1] <= 1:
      raise UserError(f"guidance has an interval of times within 0 and 1, not {self.interval}")

  @classmethod
  def read(cls, fields: Mapping[str, Any]) -> "Sampling":
    """The sampling that a file describes, of this version or of an earlier one."""
    return cls(**cls.current_names(fields))

  @staticmethod
  def current_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a file by the names that they have today."""
    return {renamed.SAMPLING.get(name, name): value for name, value in fields.items()}

  def branches(self, count: int, gamma: float) -> Guidance:
    """The branches of guidance with `count` personalisations, of which the second has the share gamma."""
    unguided = diffusion_weights(count, 1.0, 0.0, gamma)
    return Guidance.of(unguided, diffusion_weights(count, self.guidance, self.lambda_a, gamma))


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
    unet: the network, which also determines the size of the images, and whether it is conditioned on smaller ones.
    schedule: of the noise.
    predicts: the network's prediction type: "eps", "x0" or "v".
    augmentation: the schedule by which the low-resolution image is noised; None for a base stage.
    sampling: how the stage is sampled unless the caller says otherwise.
    masks_text: whether the network is given the mask of the text's padding. IF's are not, nor are latent networks.
    spacing: of the timesteps, where the schedule is a table.
    sizes: the size conditioning of networks that take it, see `LatentUNet`.
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
    """Raises UserError for an unknown prediction type, and for a network that does not go with its conditioning."""
    process.check_prediction_type(self.predicts)
    if (isinstance(self.unet, UNet) and self.unet.low_res) != self.is_super_resolution:
      problem = "a network takes a low-resolution image if and only if there is an augmentation schedule"
      raise UserError(f"stage {self.name}: {problem}")
    if (isinstance(self.unet, LatentUNet) and self.unet.pooled_width is not None) != (self.sizes is not None):
      raise UserError(f"stage {self.name}: there are sizes if and only if the network takes them")

  @property
  def image(self) -> int:
    """Height and width of the stage's images, or latents."""
    return self.unet.image

  @property
  def channels(self) -> int:
    """The channels of the stage's images, or latents."""
    return self.unet.channels if self.is_latent else 3

  @property
  def is_latent(self) -> bool:
    """Whether the stage samples latents."""
    return isinstance(self.unet, LatentUNet)

  @property
  def is_super_resolution(self) -> bool:
    """Whether the stage is conditioned on a low-resolution image."""
    return self.augmentation is not None

  def network_params(self, params: Any) -> Any:
    """The parameters of the network that thetas are for, of the stage's: all of them."""
    return params

  def merge(self, params: Any, theta: Theta) -> Any:
    """The stage's parameters with full weights in their places."""
    return merge_full_weights(params, theta)[0]

  def predict(
    self,
    params: Any,
    theta: Theta | StackedThetas | None,
    x_t: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    conditioning: Conditioning,
  ) -> Float[Array, "b h w k"]:
    """The prediction of the network, personalised by a theta.

    Args:
      params: the stage's.
      theta: None for the base model.
      x_t: noisy images or latents.
      t: the time of each.
      conditioning: what the network is conditioned on besides.
    """
    text = conditioning.text
    if isinstance(self.unet, LatentUNet):
      sizes = None if self.sizes is None else jnp.broadcast_to(jnp.float32(self.sizes), (len(t), len(self.sizes)))
      inputs = x_t, self.schedule.timestep(t), text.tokens, None if sizes is None else text.pooled, sizes
      control = None if conditioning.control is None else conditioning.control(*inputs)
      return apply_theta(self.unet, params, theta, *inputs, control)
    mask = text.mask if self.masks_text else None
    level = conditioning.augmentation_level
    level_step = None if level is None else self.augmentation.timestep(level)
    inputs = x_t, self.schedule.timestep(t), text.tokens, mask, conditioning.low_res, level_step
    return apply_theta(self.unet, params, theta, *inputs)


def sample_stage(
  stage: Stage,
  sampling: Sampling,
  groups: tuple[BranchGroup, ...],
  weights: Float[Array | np.ndarray, "2 k"],
  keys: Key[Array, " b"],
  low_res: Float[Array, "b h w 3"] | None = None,
  control: ImageControl | None = None,
) -> Float[Array, "b s s c"]:
  """Samples one stage. Jittable, with the first two arguments static.

  Args:
    stage: the stage.
    sampling: how; its guidance is in the branches and their weights.
    groups: the branches of guidance.
    weights: of the branches, without guidance and with it.
    keys: one an image, on which alone its noise depends.
    low_res: the images of the stage before, at their own size.
    control: for latents, a ControlNet and the image that it sees.

  Returns:
    Images in [-1, 1], or latents.
  """
  count, size = keys.shape[0], stage.image
  unguided, guided = jnp.asarray(weights)[..., None]
  level = None
  if stage.augmentation is not None:
    level = jnp.full(count, max(sampling.augmentation_level, stage.augmentation.min_time))
    low_res = process.augment(upsample(low_res, size), level, keys, stage.augmentation)

  def network(
    params: Any, theta: Any, text: Text, x_t: Array, t: Array, low_res: Array | None, level: Array | None
  ) -> Array:
    return stage.predict(params, theta, x_t, t, Conditioning(text, low_res, level, control))

  def predict(x_t: Array, t: Array) -> Array:
    low, high = sampling.interval
    outputs = evaluate(network, groups, x_t, t, low_res, level)
    by_time = jnp.where(((t > low) & (t <= high))[None], guided, unguided)
    return mix(outputs, by_time, learned_variance=outputs.shape[-1] > x_t.shape[-1])

  spacing = stage.spacing
  if isinstance(stage.schedule, BetaTable):
    times = spaced_times(stage.schedule, sampling.steps, spacing.name, spacing.offset, clean=spacing.clean)
  else:
    times = uniform_times(sampling.steps)
  start = process.draw_noise(keys, (size, size, stage.channels))
  maximum = float("inf") if sampling.threshold_max is None else sampling.threshold_max
  threshold = functools.partial(
    thresholding.dynamic_threshold, percentile=sampling.threshold_percentile, max_threshold=maximum
  )
  if not sampling.threshold_percentile:
    threshold = thresholding.static_threshold
  common = {"kind": stage.predicts, "threshold": None if stage.is_latent else threshold}
  match sampling.sampler:
    case "ancestral":
      x = samplers.ancestral(predict, start, times, stage.schedule, keys, gamma=sampling.variance, **common)
    case "ddim":
      x = samplers.ddim(predict, start, times, stage.schedule, **common)
    case "dpm":
      x = samplers.dpm_solver(predict, start, times, stage.schedule, **common)
  return x if stage.is_latent else jnp.clip(x, -1, 1)


@functools.partial(jax.jit, static_argnames=("stages", "samplings", "autoencoder"))
def sample_stages(
  stages: tuple[Stage, ...],
  samplings: tuple[Sampling, ...],
  groups: tuple[tuple[BranchGroup, ...], ...],
  weights: tuple[Float[Array | np.ndarray, "2 _"], ...],
  autoencoder_params: Any,
  keys: Key[Array, " b"],
  control: ImageControl | None = None,
  *,
  autoencoder: Autoencoder | None = None,
) -> tuple[Float[Array, "b _ _ 3"], ...]:
  """Samples stage after stage, as one program.

  Args:
    stages: the base stage first.
    samplings: of each stage.
    groups: of each stage, its branches.
    weights: of each stage, those of its branches.
    autoencoder_params: None where there is no autoencoder.
    keys: one an image.
    control: for latents, a ControlNet and the image that it sees.
    autoencoder: what decodes latents.

  Returns:
    The images of each stage, in [-1, 1].
  """
  images: list[Array] = []
  for number, (stage, sampling, own, own_weights) in enumerate(zip(stages, samplings, groups, weights, strict=True)):
    low_res = images[-1] if images else None
    folded = process.fold_in(keys, number)
    images.append(sample_stage(stage, sampling, own, own_weights, folded, low_res, control))
  if autoencoder is not None:
    images[-1] = jnp.clip(apply_theta(autoencoder, autoencoder_params, None, images[-1], method="decode"), -1, 1)
  return tuple(images)


@dataclasses.dataclass(frozen=True)
class Cascade(Generator[Stage]):
  """A text encoder and stages of diffusion.

  Attributes:
    autoencoder: what decodes latents, if the stage samples such.
  """

  autoencoder: Autoencoder | None = None

  def __post_init__(self) -> None:
    """Raises UserError for stages and an autoencoder that do not go together."""
    if any(stage.is_latent for stage in self.stages) != (self.autoencoder is not None):
      raise UserError(f"{self.name}: there is an autoencoder if and only if a stage samples latents")
    if self.autoencoder is not None and len(self.stages) > 1:
      raise UserError(f"{self.name}: latents are sampled by one stage, not {len(self.stages)}")

  @property
  def resolution(self) -> int:
    """Height and width of the finished images."""
    return self.stages[-1].image * (1 if self.autoencoder is None else self.autoencoder.factor)

  def check(self, samplings: Sequence[Sampling]) -> None:
    """Raises UserError for more sampling steps than a stage's schedule has timesteps."""
    for stage, sampling in zip(self.stages, samplings, strict=False):
      if isinstance(stage.schedule, BetaTable) and sampling.steps > stage.schedule.steps:
        timesteps = stage.schedule.steps
        raise UserError(f"stage {stage.name} has {timesteps} timesteps, too few for {sampling.steps} steps")

  def generate(self, stages, samplings, groups, weights, params, keys, control=None):
    """Samples a batch of images, see `Generator.generate`."""
    return sample_stages(
      stages, samplings, groups, weights, params.get(AUTOENCODER), keys, control, autoencoder=self.autoencoder
    )

  def decoder_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """The autoencoder's parameters, where there is one."""
    return {name: params[name] for name in (AUTOENCODER,) if name in params}
