"""Noise schedules of variance-preserving diffusion, and the time grids of samplers.

A schedule is a decreasing function of time, the log signal-to-noise ratio lambda; with alpha^2 + sigma^2 = 1 it fixes

    lambda(t) = log(alpha(t)^2 / sigma(t)^2),  alpha(t)^2 = sigmoid(lambda(t)),  sigma(t)^2 = sigmoid(-lambda(t))  (1)

There are two kinds with the same methods: `Cosine`, for networks trained in continuous time, and `Table`, for networks
trained at numbered timesteps.
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np


class Schedule(abc.ABC):
  """The noise level at each time from t = 0, the clean image, to t = 1, pure noise; computed in float32."""

  @abc.abstractmethod
  def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the log signal-to-noise ratio lambda at times t; it may be infinite at t = 0."""

  @abc.abstractmethod
  def draw(self, key: Key[Array, ""], count: int) -> Float[Array, "{count}"]:
    """Samples training times uniformly."""

  @property
  @abc.abstractmethod
  def min_time(self) -> float:
    """The smallest time that a network can be conditioned on."""

  @abc.abstractmethod
  def timestep(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Converts times to the timesteps that networks are conditioned on, in float32; they need not be whole."""

  def alpha(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the factor of the image at times t, by (1)."""
    return jnp.exp(jax.nn.log_sigmoid(self.log_snr(t)) / 2)

  def sigma(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the factor of the noise at times t, by (1)."""
    return jnp.exp(jax.nn.log_sigmoid(-self.log_snr(t)) / 2)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
  """Imagen's schedule in continuous time: alpha = cos(pi t / 2), truncated at both ends.

    lambda(t) = -2 log tan(a t + b) + shift,  b = arctan e^(-max / 2),  a + b = arctan e^(-min / 2)                (2)

  Imagen (Saharia et al., 2205.11487) specifies cosine and t ~ U(0, 1), but not where the ends are. The form (2) and its
  ends are those of the code of Salimans and Ho, "Progressive Distillation" (2202.00512); the shift is from Hoogeboom et
  al., "Simple Diffusion" (2301.11093, section 3.1). Networks are conditioned on the timestep 1000 t - 1.

  Attributes:
    log_snr_min: lambda at t = 1, before the shift.
    log_snr_max: lambda at t = 0, before the shift.
    shift: added to lambda. 2 log(64 / side) gives images of another side the noise that 64 x 64 images have, compared
      at 64 x 64.
  """

  log_snr_min: float = -20.0
  log_snr_max: float = 20.0
  shift: float = 0.0

  def __post_init__(self):
    if not -80 < self.log_snr_min < self.log_snr_max < 80:
      raise ValueError(f"log_snr_min < log_snr_max, both within 80 of 0: not {self.log_snr_min}, {self.log_snr_max}")

  def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes (2)."""
    t = t.astype(jnp.float32)
    # tan(x) = sin(x) / sin(pi / 2 - x): near t = 1, float32 resolves the second angle, but not how near x is to pi / 2.
    low, high = math.atan(math.exp(-self.log_snr_max / 2)), math.atan(math.exp(self.log_snr_min / 2))
    span = math.pi / 2 - low - high
    return 2 * (jnp.log(jnp.sin(span * (1 - t) + high)) - jnp.log(jnp.sin(span * t + low))) + self.shift

  def draw(self, key: Key[Array, ""], count: int) -> Float[Array, "{count}"]:
    """Samples times uniformly from [0, 1)."""
    return jax.random.uniform(key, (count,))

  @property
  def min_time(self) -> float:
    """0: continuous time includes the clean end."""
    return 0.0

  def timestep(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes 1000 t - 1."""
    return 1000 * t.astype(jnp.float32) - 1


@dataclasses.dataclass(frozen=True)
class BetaTable(Schedule):
  """Numbered timesteps k = 0, 1, ..., steps - 1, each with its beta, as in DDPM and its descendants.

    alpha(t)^2 = prod_(j <= k) (1 - beta_j)  at  t = (k + 1) / steps                                               (3)

  and 1 at t = 0. Between timesteps log alpha^2 is interpolated linearly in t. The names and fields are those of
  diffusers' schedulers; the betas are

    linear             evenly spaced from start to end (Ho et al., 2006.11239, section 4);
    scaled_linear      squares of evenly spaced roots (latent diffusion: start 0.00085, end 0.012 in Stable Diffusion);
    squaredcos_cap_v2  min(1 - f((k + 1) / steps) / f(k / steps), 0.999) with f(t) = cos((t + 0.008) / 1.008 pi / 2)^2
                       (Nichol and Dhariwal, 2102.09672, eq. 17; DeepFloyd IF); it ignores start and end.

  Attributes:
    name: one of these.
    steps: number of timesteps, diffusers' `num_train_timesteps`.
    start: first beta.
    end: last beta.
  """

  name: str
  steps: int = 1000
  start: float = 1e-4
  end: float = 0.02

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(f"a table has one timestep or more, not {self.steps}")
    if not 0 < self.start <= self.end < 1:
      raise ValueError(f"betas rise from start to end, between 0 and 1: not from {self.start} to {self.end}")
    self.betas()

  def betas(self) -> Float[np.ndarray, " steps"]:
    """Computes the variance of the noise that each timestep adds, in float64."""
    match self.name:
      case "linear":
        return np.linspace(self.start, self.end, self.steps)
      case "scaled_linear":
        return np.linspace(math.sqrt(self.start), math.sqrt(self.end), self.steps) ** 2
      case "squaredcos_cap_v2":
        f = np.cos((np.arange(self.steps + 1) / self.steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], 0.999)
    raise ValueError(f"unknown table {self.name!r}; there are: linear, scaled_linear, squaredcos_cap_v2")

  def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes lambda from (3); it is infinite at t = 0."""
    knots = jnp.asarray(np.cumsum(np.log1p(-np.append(0, self.betas()))), jnp.float32)
    position = self._position(t)
    knot = jnp.clip(jnp.floor(position), 0, self.steps - 1)
    low, high = knots[knot.astype(jnp.int32)], knots[knot.astype(jnp.int32) + 1]
    log_alpha_squared = low + (position - knot) * (high - low)
    return log_alpha_squared - jnp.log(-jnp.expm1(log_alpha_squared))

  def draw(self, key: Key[Array, ""], count: int) -> Float[Array, "{count}"]:
    """Samples timesteps uniformly and returns their times."""
    return self.time(jax.random.randint(key, (count,), 0, self.steps))

  @property
  def min_time(self) -> float:
    """The time of timestep 0."""
    return 1 / self.steps

  def time(self, timestep: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Converts timesteps to times: t = (k + 1) / steps."""
    return (timestep.astype(jnp.float32) + 1) / self.steps

  def timestep(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Inverts `time`: steps t - 1. Times of timesteps give whole numbers."""
    return self._position(t) - 1

  def _position(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes steps t, rounded where float32 makes it fractional: squaredcos_cap_v2's last beta magnifies that."""
    position = t.astype(jnp.float32) * self.steps
    nearest = jnp.round(position)
    return jnp.where(jnp.abs(position - nearest) < 1e-3, nearest, position)


def uniform_times(steps: int) -> Float[np.ndarray, " n"]:
  """Returns the `steps` + 1 evenly spaced times from 1 to 0."""
  if steps < 1:
    raise ValueError(f"sampling takes one step or more, not {steps}")
  return np.linspace(1, 0, steps + 1)


def spaced_times(
  table: BetaTable, steps: int, spacing: str, offset: int = 0, *, clean: bool = True
) -> Float[np.ndarray, " n"]:
  """Returns the times of diffusers' `timestep_spacing` (Lin et al., 2305.08891, table 2), and the time they end at.

  The timesteps are those of DDPMScheduler and DDIMScheduler; diffusers' DPM-Solver spaces one timestep more and drops
  the last one.

  Args:
    table: the schedule.
    steps: number of sampling steps.
    spacing: "leading", "linspace" or "trailing".
    offset: added to each timestep of "leading", diffusers' `steps_offset`.
    clean: whether the last time is 0, or else that of timestep 0: diffusers' `set_alpha_to_one`.

  Raises:
    ValueError: if the spacing is unknown, or the table has no such timesteps.
  """
  if not 1 <= steps <= table.steps:
    raise ValueError(f"sampling takes 1 to {table.steps} steps of this table, not {steps}")
  match spacing:
    case "leading":
      timesteps = np.arange(steps)[::-1] * (table.steps // steps) + offset
    case "linspace":
      timesteps = np.linspace(0, table.steps - 1, steps).round()[::-1]
    case "trailing":
      timesteps = np.round(table.steps - np.arange(steps) * (table.steps / steps)) - 1
    case _:
      raise ValueError(f"unknown spacing {spacing!r}; there are: leading, linspace, trailing")
  if timesteps[0] >= table.steps:
    raise ValueError(f"offset {offset} exceeds the table's last timestep, {table.steps - 1}")
  return np.append((timesteps + 1) / table.steps, 0.0 if clean else 1 / table.steps)
