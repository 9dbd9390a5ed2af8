"""Random choices sliced from one array of random numbers: each call of `jax.random` takes time to compile."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Dice:
  """A sequence of independent random choices, all from one key; the order of the calls is part of the result."""

  def __init__(self, key: jax.Array, rolls: int) -> None:
    self._uniform = jax.random.uniform(key, (rolls,))
    self._used = 0

  def unit(self, *shape: int) -> Float[Array, "..."]:
    """Returns numbers uniform in [0, 1). Raises ValueError if fewer than that are left."""
    count = 1
    for n in shape:
      count *= n
    if self._used + count > self._uniform.shape[0]:
      raise ValueError(f"{self._used + count} random numbers are needed, but only {self._uniform.shape[0]} were drawn")
    self._used += count
    return self._uniform[self._used - count : self._used].reshape(shape)

  def spread(self, *shape: int) -> Float[Array, "..."]:
    """Returns numbers uniform in [-1, 1)."""
    return 2.0 * self.unit(*shape) - 1.0

  def sign(self) -> Float[Array, ""]:
    """Returns -1 or 1, with equal probability."""
    return jnp.where(self.unit() < 0.5, -1.0, 1.0)

  def chance(self, probability: float | Array) -> Array:
    """Returns True with the given probability."""
    return self.unit() < probability

  def index(self, n: int | Array) -> Int[Array, ""]:
    """Returns an integer uniform in 0 .. n-1."""
    n = jnp.asarray(n, jnp.int32)
    return jnp.minimum(jnp.floor(self.unit() * n.astype(jnp.float32)).astype(jnp.int32), n - 1)

  def weighted(self, weights: Float[Array, " n"]) -> Int[Array, ""]:
    """Returns an index with probability proportional to its weight, never one of weight 0 (0 if all weights are)."""
    edges = jnp.cumsum(weights)
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[0]), 0))
    return jnp.minimum(jnp.sum(edges <= self.unit() * edges[-1]), last).astype(jnp.int32)
