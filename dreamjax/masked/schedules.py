"""How many of an image's tokens are masked: at random while a network learns, fewer and fewer while it draws.

   r = cos(pi u / 2),  u ~ U(0, 1),  which has the density  p(r) = 2 / pi (1 - r^2)^(-1/2)  and the mean 2 / pi     (1)
   n_k = floor(N cos(pi k / (2 T))),  limited to  1 <= n_k < n_(k-1)  before the last step,  n_T = 0               (2)

(1): Chang et al., "Muse" (2301.00704), section 2.4, the truncated arccos density. (2): "MaskGIT" (2202.04200), section
3.2, step k of T of an image of which N tokens were unknown at first; the limits are those of its published code.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def draw_ratios(key: Key[Array, ""], count: int, low: float = 0.0) -> Float[Array, " {count}"]:
  """Equation (1).

  Args:
    key: of the randomness.
    count: how many.
    low: what r is truncated to from below; 0 is Muse's and aMUSEd's.

  Raises:
    ValueError: if low is not from 0 to 1.
  """
  if not 0 <= low < 1:
    raise ValueError(f"the least ratio is at least 0 and below 1, not {low}")
  largest = jnp.arccos(jnp.float32(low)) * 2 / jnp.pi
  return jnp.cos(jnp.pi / 2 * largest * jax.random.uniform(key, (count,)))


def draw_mask(keys: Key[Array, " b"], ratios: Float[Array, " b"], length: int) -> Bool[Array, "b {length}"]:
  """Masks round(r length) tokens of each image, but at least one, all choices being as likely.

  Args:
    keys: one an image.
    ratios: r of each.
    length: tokens of an image.
  """
  counts = jnp.maximum(1, jnp.round(ratios * length)).astype(jnp.int32)
  ranks = jax.vmap(lambda key: jax.random.permutation(key, length))(keys)
  return ranks < counts[:, None]


def left_masked(
  step: Int[Array, ""], steps: int, first: Int[Array, " b"], before: Int[Array, " b"]
) -> Int[Array, " b"]:
  """Equation (2): how many tokens of each image are still masked after a step.

  Args:
    step: k, from 1 to `steps`.
    steps: T.
    first: N, tokens masked before the first step.
    before: n_(k-1), tokens masked before this one.
  """
  share = jnp.cos(jnp.pi / 2 * step.astype(jnp.float32) / steps)
  wanted = jnp.floor(first.astype(jnp.float32) * share).astype(jnp.int32)
  limited = jnp.minimum(jnp.maximum(jnp.minimum(wanted, before - 1), 1), before)
  return jnp.where(step >= steps, 0, limited)
