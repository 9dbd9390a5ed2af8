"""Parallel decoding: all masked tokens are predicted at once, and the surest of them are kept, in a few steps.

In step k of T, with p what the network says of the tokens as they are, for each masked token n

    z_n ~ p_n,   c_n = log p_n(z_n) + temperature (1 - k / T) g_n,   g_n ~ Gumbel                                  (1)

and all but the n_k least certain ones, by c, are kept for good; n_k is eq. 2 of `schedules`. "MaskGIT" (Chang et al.,
2202.04200), section 3.2 and its published code; StyleDrop's temperature is 4.5, with 36 steps, and 12 at high
resolution.

An image's key yields all of its noise, so that it does not depend on what is decoded beside it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dreamjax.masked.schedules import left_masked

#: predict(tokens, progress) is the logits: of tokens some of which are `mask_id`, at a progress from 0 in the first
#: step to 1 in the last, by which guidance may change. Prompts, thetas and guidance are inside.
Predict = Callable[[Int[Array, "b n"], Float[Array, ""]], Float[Array, "b n v"]]


def decode(
  predict: Predict,
  tokens: Int[Array, "b n"],
  unknown: Bool[Array, "b n"],
  keys: Key[Array, " b"],
  *,
  mask_id: int,
  steps: int,
  temperature: float = 4.5,
) -> Int[Array, "b n"]:
  """Equation (1), step by step, as one `lax.scan`.

  Args:
    predict: the network.
    tokens: those that are known; what stands at unknown places has no meaning.
    unknown: where tokens are to be predicted: everywhere, or for in-painting at some places.
    keys: one an image.
    mask_id: what stands for a masked token.
    steps: T, how often the network is asked.
    temperature: of the choice; 0 keeps the surest.

  Returns:
    Tokens without masks. Those that were known are as they were.

  Raises:
    ValueError: if there is no step, or the temperature is below 0.
  """
  if steps < 1:
    raise ValueError(f"decoding takes one step or more, not {steps}")
  if temperature < 0:
    raise ValueError(f"the temperature of the choice is at least 0, not {temperature}")
  first = jnp.sum(unknown, axis=1)

  def step(state, k):
    tokens, masked = state
    done = k.astype(jnp.float32)
    logits = predict(tokens, (done - 1) / max(steps - 1, 1)).astype(jnp.float32)
    draw, choose = _noise(keys, k, logits.shape[1:])
    sampled = jnp.argmax(logits + draw, axis=-1).astype(tokens.dtype)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), sampled[..., None], axis=-1)[..., 0]
    certainty = log_p + temperature * (1 - done / steps) * choose
    count = left_masked(k, steps, first, jnp.sum(masked, axis=1))
    order = jnp.argsort(jnp.where(masked, certainty, jnp.inf), axis=1)
    still = jnp.argsort(order, axis=1) < count[:, None]
    return (jnp.where(still, mask_id, jnp.where(masked, sampled, tokens)), still), None

  start = jnp.where(unknown, mask_id, tokens)
  (tokens, _), _ = jax.lax.scan(step, (start, unknown), jnp.arange(1, steps + 1))
  return tokens


def _noise(
  keys: Key[Array, " b"], step: Int[Array, ""], shape: tuple[int, int]
) -> tuple[Float[Array, "b n v"], Float[Array, "b n"]]:
  """Gumbel noise of a step: one number for each token that may be drawn, and one for each place."""

  def one(key):
    draw, choose = jax.random.split(jax.random.fold_in(key, step))
    return jax.random.gumbel(draw, shape), jax.random.gumbel(choose, shape[:1])

  return jax.vmap(one)(keys)
