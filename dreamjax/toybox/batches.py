"""Applies a function to a batch on the device: in a loop on a CPU, vectorised on an accelerator."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

X = TypeVar("X")
Y = TypeVar("Y")

_AT_ONCE = 256  # elements, on an accelerator


def one_by_one(function: Callable[[X], Y], batch: X) -> Y:
  """Maps a function over a batch; on a CPU the results do not depend, to the last bit, on the size of the batch.

  XLA unrolls a loop of one iteration, and then fuses and rounds differently than within a loop: enough to let a ray
  miss an edge that it hit otherwise. So a batch of one is computed twice.

  An accelerator would wait for each of the many small programs of one element. There the function is vectorised, though
  every element then costs all branches, and results depend on the size of the batch by rounding.

  Args:
    function: computes the result of one element.
    batch: elements, stacked along a leading axis of every leaf.

  Returns:
    The results, stacked likewise.
  """
  if jax.default_backend() != "cpu":
    return jax.lax.map(function, batch, batch_size=_AT_ONCE)
  size = jax.tree.leaves(batch)[0].shape[0]
  if size == 1:
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)
  return jax.tree.map(lambda y: y[:size], jax.lax.map(function, batch))
