"""Optimizers from a config: AdamW with a schedule, clipping, learning rates by name, and a moving average of theta."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from optax import contrib

from dreamjax.errors import UserError
from dreamjax.parallel.sharding import path_name


def default_config() -> ml_collections.ConfigDict:
  """Returns the fields that `make_optimizer` reads.

  Muon makes the updates of kernels orthogonal, as large as AdamW's (Jordan et al., 2024; Liu et al., 2502.16982,
  section 2.2), and leaves the rest to AdamW, without weight decay.
  """
  return ml_collections.ConfigDict({
    "kind": "adamw",  # or "muon"
    "learning_rate": 1e-3,  # the highest one
    "warmup": 100,  # updates of linear increase to it
    "decay": "cosine",  # to zero at the last update, or "constant"
    "b1": 0.9,
    "b2": 0.99,
    "weight_decay": 0.01,  # of matrices and kernels, not of vectors; 0 makes AdamW Adam
    "clip": 1.0,  # largest global norm of the gradient
    "ema": 0.999,  # decay of theta's moving average; 0 for none
    "multipliers": (),  # pairs (regex, factor) of learning rates: the first that matches a parameter's path counts
  })  # fmt: skip


def make_optimizer(config: ml_collections.ConfigDict, theta: Any, steps: int) -> optax.GradientTransformation:
  """Builds the optimizer that a config describes.

  Args:
    config: see `default_config`.
    theta: the trainable parameters, or their shapes.
    steps: how many updates there will be.

  Raises:
    ValueError: for an unknown kind or decay, or a multiplier that matches no parameter.
  """
  if config.kind not in ("adamw", "muon"):
    raise UserError(f"kind must be 'adamw' or 'muon', not {config.kind!r}")
  if config.decay not in ("cosine", "constant"):
    raise UserError(f"decay must be 'cosine' or 'constant', not {config.decay!r}")
  warmup = min(config.warmup, max(steps - 1, 0))
  if config.decay == "cosine":
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))
  else:
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    schedule = optax.join_schedules([rise, optax.constant_schedule(config.learning_rate)], [warmup])
  matrices = jax.tree.map(lambda x: x.ndim > 1, theta)
  if config.kind == "muon":
    update = contrib.muon(
      schedule, weight_decay=config.weight_decay, adam_b1=config.b1, adam_b2=config.b2, consistent_rms=0.2,
      muon_weight_dimension_numbers=lambda theta: jax.tree_util.tree_map_with_path(_as_matrix, theta),
    )  # fmt: skip
  else:
    update = optax.adamw(schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=matrices)
  parts = [optax.clip_by_global_norm(config.clip), update]
  if config.multipliers:
    factors = _factors(config.multipliers, theta)
    parts.append(optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors)))
  if config.ema:
    parts.append(_moving_average(config.ema))
  return optax.chain(*parts)


def _as_matrix(keys: Any, x: Any) -> contrib.MuonDimensionNumbers | None:
  """Says which axes of a parameter are a matrix for Muon: a kernel's last one is the outputs, all others the inputs.

  None for the rest, which AdamW updates: of a table of tokens or a codebook, an update reaches few rows only.
  """
  if not path_name(keys).endswith("kernel"):
    return None
  return contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)


def _factors(multipliers: Any, theta: Any) -> Any:
  """Returns the factor of each leaf: that of the first expression that matches its path, 1 if none does."""
  used = set()

  def factor(keys, _) -> float:
    for expression, value in multipliers:
      if re.search(expression, path_name(keys)):
        used.add(expression)
        return float(value)
    return 1.0

  factors = jax.tree_util.tree_map_with_path(factor, theta)
  if idle := [expression for expression, _ in multipliers if expression not in used]:
    raise UserError(f"no parameter's path is first matched by {', '.join(map(repr, idle))}")
  return factors


class MovingAverage(NamedTuple):
  """The moving average of theta, part of the optimizer's state so that it is saved and sharded as that is."""

  count: jax.Array
  average: Any


def _moving_average(decay: float) -> optax.GradientTransformation:
  """Leaves updates as they are, and averages theta; the decay rises to its value as (1 + n) / (10 + n)."""

  def init(theta: Any) -> MovingAverage:
    return MovingAverage(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, theta))

  def update(updates: Any, state: MovingAverage, theta: Any) -> tuple[Any, MovingAverage]:
    n = state.count.astype(jnp.float32)
    keep = jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    new = optax.apply_updates(theta, updates)
    average = jax.tree.map(lambda a, x: (keep * a + (1.0 - keep) * x).astype(a.dtype), state.average, new)
    return updates, MovingAverage(state.count + 1, average)

  return optax.GradientTransformation(init, update)


def averaged(state: Any) -> Any:
  """Returns the moving average of a `TrainState`'s theta, or theta itself if none is kept."""
  is_average = lambda x: isinstance(x, MovingAverage)  # noqa: E731
  found = [x for x in jax.tree.leaves(state.opt_state, is_leaf=is_average) if is_average(x)]
  return found[0].average if found else state.theta
