"""Batches of pictures, made one after the other on the device."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

X = TypeVar("X")
Y = TypeVar("Y")


def one_by_one(function: Callable[[X], Y], batch: X) -> Y:
  """`jax.lax.map` whose results do not depend, to the last bit, on the size of the batch.

  XLA unrolls a loop that runs once, and then fuses and rounds otherwise than within a loop: enough to let a ray pass an
  edge that it hit before. So a batch of one is done twice.

  Args:
    function: from one element to its result.
    batch: elements, stacked along a leading axis of every leaf.

  Returns:
    The results, stacked likewise.
  """
  size = jax.tree.leaves(batch)[0].shape[0]
  if size == 1:
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)
  return jax.tree.map(lambda y: y[:size], jax.lax.map(function, batch))
