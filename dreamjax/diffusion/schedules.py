"""Noise schedules of variance-preserving diffusion, and the grids of times that samplers walk.

A schedule is one falling function of time, the log signal-to-noise ratio lambda; with alpha^2 + sigma^2 = 1 it fixes

    lambda(t) = log(alpha(t)^2 / sigma(t)^2),  alpha(t)^2 = sigmoid(lambda(t)),  sigma(t)^2 = sigmoid(-lambda(t))  (1)

There are two kinds: `Cosine`, for networks that were trained at all times, and `Table`, for those that were trained at
numbered timesteps. All that is done with a schedule is done alike with both.
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np


class Schedule(abc.ABC):
  """How much noise there is at each time, from t = 0, clean, to t = 1, pure noise; computed in float32."""

  @abc.abstractmethod
  def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The log signal-to-noise ratio lambda; it may be infinite at t = 0."""

  @abc.abstractmethod
  def draw(self, key: Key[Array, ""], count: int) -> Float[Array, "{count}"]:
    """Times to train at, all of them equally likely."""

  def alpha(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The image's share, by (1)."""
    return jnp.exp(jax.nn.log_sigmoid(self.log_snr(t)) / 2)

  def sigma(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The noise's share, by (1)."""
    return jnp.exp(jax.nn.log_sigmoid(-self.log_snr(t)) / 2)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
  """Imagen's schedule in continuous time: alpha = cos(pi t / 2), its ends cut off.

    lambda(t) = -2 log tan(a t + b) + shift,  b = arctan e^(-max / 2),  a + b = arctan e^(-min / 2)                (2)

  Imagen (Saharia et al., 2205.11487) says cosine and t ~ U(0, 1), but not where the ends are. The form (2) and its ends
  are those of the code of Salimans and Ho, "Progressive Distillation" (2202.00512); the shift is from Hoogeboom et al.,
  "Simple Diffusion" (2301.11093, section 3.1).

  Attributes:
    log_snr_min: lambda at t = 1, before the shift.
    log_snr_max: lambda at t = 0, before the shift.
    shift: 2 log(64 / side) makes images of another side as noisy as 64 x 64 ones are, judged at the scale of these.
  """

  log_snr_min: float = -20.0
  log_snr_max: float = 20.0
  shift: float = 0.0

  def __post_init__(self):
    if not -80 < self.log_snr_min < self.log_snr_max < 80:
      raise ValueError(f"log_snr_min < log_snr_max, both within 80 of 0: not {self.log_snr_min}, {self.log_snr_max}")

  def log_snr(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Equation (2)."""
    t = t.astype(jnp.float32)
    # tan(x) = sin(x) / sin(pi / 2 - x): near t = 1, float32 resolves the second angle, but not how near x is to pi / 2.
    low, high = math.atan(math.exp(-self.log_snr_max / 2)), math.atan(math.exp(self.log_snr_min / 2))
    span = math.pi / 2 - low - high
    return 2 * (jnp.log(jnp.sin(span * (1 - t) + high)) - jnp.log(jnp.sin(span * t + low))) + self.shift

  def draw(self, key: Key[Array, ""], count: int) -> Float[Array, "{count}"]:
    """Uniform in [0, 1)."""
    return jax.random.uniform(key, (count,))


@dataclasses.dataclass(frozen=True)
class BetaTable(Schedule):
  """Numbered timesteps k = 0, 1, ..., steps - 1, each with its beta, as DDPM and what descends from it have them.

    alpha(t)^2 = prod_(j <= k) (1 - beta_j)  at  t = (k + 1) / steps                                               (3)

  and 1 at t = 0. Between timesteps log alpha^2 is linear in t, as if beta acted evenly within its step. The names and
  fields are those of diffusers' schedulers; the betas are

    linear             evenly spaced from start to end (Ho et al., 2006.11239, section 4);
    scaled_linear      their square roots are (latent diffusion: start 0.00085, end 0.012 for Stable Diffusion);
    squaredcos_cap_v2  min(1 - f((k + 1) / steps) / f(k / steps), 0.999) with f(t) = cos((t + 0.008) / 1.008 pi / 2)^2
                       (Nichol and Dhariwal, 2102.09672, eq. 17; DeepFloyd IF); start and end have no part in it.

  Attributes:
    name: one of these.
    steps: how many timesteps.
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
    """The variance of the noise that each timestep adds, in float64."""
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
    """Equation (3); infinite at t = 0."""
    knots = jnp.asarray(np.cumsum(np.log1p(-np.append(0, self.betas()))), jnp.float32)
    position = t.astype(jnp.float32) * self.steps
    # (k + 1) / steps * steps is not k + 1 in float32, and the last beta of squaredcos_cap_v2 magnifies the difference.
    nearest = jnp.round(position)
    position = jnp.where(jnp.abs(position - nearest) < 1e-3, nearest, position)
    before = jnp.clip(jnp.floor(position), 0, self.steps - 1)
    low, high = knots[before.astype(jnp.int32)], knots[before.astype(jnp.int32) + 1]
    log_alpha_squared = low + (position - before) * (high - low)
    return log_alpha_squared - jnp.log(-jnp.expm1(log_alpha_squared))

  def draw(self, key: Key[Array, ""], count: int) -> Float[Array, "{count}"]:
    """The times of timesteps."""
    return self.time(jax.random.randint(key, (count,), 0, self.steps))

  def time(self, timestep: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """When a timestep is: t = (k + 1) / steps."""
    return (timestep.astype(jnp.float32) + 1) / self.steps

  def timestep(self, t: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Which timestep is at a time, or nearest to it: what the network is told; -1 stands for t = 0."""
    return jnp.round(t.astype(jnp.float32) * self.steps).astype(jnp.int32) - 1


def uniform_times(steps: int) -> Float[np.ndarray, " n"]:
  """The grid 1, ..., 0 of `steps` equal steps."""
  if steps < 1:
    raise ValueError(f"sampling takes one step or more, not {steps}")
  return np.linspace(1, 0, steps + 1)


def spaced_times(
  table: BetaTable, steps: int, spacing: str, offset: int = 0, *, clean: bool = True
) -> Float[np.ndarray, " n"]:
  """The grid of diffusers' `timestep_spacing` (Lin et al., 2305.08891, table 2), with one time more at its end.

  As DDPMScheduler and DDIMScheduler have it; diffusers' DPM-Solver spreads one more timestep and leaves the last out.

  Args:
    table: whose timesteps they are.
    steps: how many of them.
    spacing: "leading", "linspace" or "trailing".
    offset: added to each timestep of "leading", diffusers' `steps_offset`.
    clean: whether the last time is 0, instead of the table's first timestep's: diffusers' `set_alpha_to_one`.

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
    raise ValueError(f"offset {offset} leads beyond the table's last timestep, {table.steps - 1}")
  return np.append((timesteps + 1) / table.steps, 0.0 if clean else 1 / table.steps)
