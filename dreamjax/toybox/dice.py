"""Random choices sliced from one draw: every call of `jax.random` costs compile time, a slice costs nothing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Dice:
  """A sequence of independent random choices, all from one key; the order of the calls is part of the result."""

  def __init__(self, key: jax.Array, rolls: int) -> None:
    self._uniform = jax.random.uniform(key, (rolls,))
    self._used = 0

  def unit(self, *shape: int) -> Float[Array, "..."]:
    """Uniform in [0, 1). Raises ValueError when more numbers are asked for than were drawn."""
    count = 1
    for n in shape:
      count *= n
    if self._used + count > self._uniform.shape[0]:
      raise ValueError(f"{self._used + count} rolls of {self._uniform.shape[0]}")
    self._used += count
    return self._uniform[self._used - count : self._used].reshape(shape)

  def spread(self, *shape: int) -> Float[Array, "..."]:
    """Uniform in [-1, 1)."""
    return 2.0 * self.unit(*shape) - 1.0

  def sign(self) -> Float[Array, ""]:
    """-1 or 1."""
    return jnp.where(self.unit() < 0.5, -1.0, 1.0)

  def chance(self, probability: float | Array) -> Array:
    """True with the given probability."""
    return self.unit() < probability

  def index(self, n: int | Array) -> Int[Array, ""]:
    """Uniform in 0 .. n-1."""
    n = jnp.asarray(n, jnp.int32)
    return jnp.minimum(jnp.floor(self.unit() * n.astype(jnp.float32)).astype(jnp.int32), n - 1)

  def weighted(self, weights: Float[Array, " n"]) -> Int[Array, ""]:
    """An index with probability in proportion to its weight, never one of weight 0 (0 if all weights are 0)."""
    edges = jnp.cumsum(weights)
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[0]), 0))
    return jnp.minimum(jnp.sum(edges <= self.unit() * edges[-1]), last).astype(jnp.int32)
