"""Mask schedules: the random mask ratios of training, and the number of masked tokens after each decoding step.

   r = cos(pi u / 2),  u ~ U(0, 1),  which has the density  p(r) = 2 / pi (1 - r^2)^(-1/2)  and the mean 2 / pi     (1)
   n_k = floor(N cos(pi k / (2 T))),  limited to  1 <= n_k < n_(k-1)  before the last step,  n_T = 0               (2)

(1): Chang et al., "Muse" (2301.00704), section 2.4, the truncated arccos density. (2): "MaskGIT" (2202.04200), section
3.2, step k of T of an image with N unknown tokens; the limits are those of its published code.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def draw_ratios(key: Key[Array, ""], count: int, low: float = 0.0) -> Float[Array, " {count}"]:
  """Samples mask ratios from (1), truncated below.

  Args:
    key: PRNG key.
    count: number of ratios.
    low: the minimum of r; 0 in Muse and aMUSEd.

  Raises:
    ValueError: if low is below 0, or not below 1.
  """
  if not 0 <= low < 1:
    raise ValueError(f"the minimum mask ratio is at least 0 and below 1, not {low}")
  max_u = jnp.arccos(jnp.float32(low)) * 2 / jnp.pi
  return jnp.cos(jnp.pi / 2 * max_u * jax.random.uniform(key, (count,)))


def draw_mask(keys: Key[Array, " b"], ratios: Float[Array, " b"], length: int) -> Bool[Array, "b {length}"]:
  """Samples masks of round(r length) tokens of each image, at least one, uniformly.

  Args:
    keys: one per image.
    ratios: r of each image.
    length: number of tokens of an image.
  """
  counts = jnp.maximum(1, jnp.round(ratios * length)).astype(jnp.int32)
  ranks = jax.vmap(lambda key: jax.random.permutation(key, length))(keys)
  return ranks < counts[:, None]


def left_masked(
  step: Int[Array, ""], steps: int, first: Int[Array, " b"], before: Int[Array, " b"]
) -> Int[Array, " b"]:
  """Computes (2), the number of tokens of each image that are still masked after a step.

  Args:
    step: k, from 1 to `steps`.
    steps: T.
    first: N, the number of tokens masked before the first step.
    before: n_(k-1), the number of tokens masked before this step.
  """
  ratio = jnp.cos(jnp.pi / 2 * step.astype(jnp.float32) / steps)
  count = jnp.floor(first.astype(jnp.float32) * ratio).astype(jnp.int32)
  limited = jnp.minimum(jnp.maximum(jnp.minimum(count, before - 1), 1), before)
  return jnp.where(step >= steps, 0, limited)
