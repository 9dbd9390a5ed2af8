"""Parallel decoding: in each of a few steps, all masked tokens are predicted at once and the most certain ones kept.

In step k of T, with p the predicted distribution given the current tokens, for each masked token n

    z_n ~ p_n,   c_n = log p_n(z_n) + temperature (1 - k / T) g_n,   g_n ~ Gumbel                                  (1)

and z_n is kept for good, except at the n_k tokens of lowest certainty c, which stay masked (n_k: eq. 2 of `schedules`).
"MaskGIT" (Chang et al., 2202.04200), section 3.2 and its published code. StyleDrop's temperature is 4.5, with 36 steps,
and 12 at high resolution.

The key of an image yields all of its noise, so that an image does not depend on the others of its batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dreamjax.masked.schedules import left_masked

#: predict(tokens, progress) returns logits for tokens, some of which are `mask_id`. The progress, from 0 in the first
#: step to 1 in the last, lets guidance change. The function contains the conditioning and the guidance.
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
  """Decodes tokens by (1), as one `lax.scan`.

  Args:
    predict: the network.
    tokens: the known tokens; values at unknown positions are ignored.
    unknown: true where a token is to be predicted: everywhere, or for inpainting at some positions.
    keys: one per image.
    mask_id: the id of the mask token.
    steps: T, the number of evaluations of the network.
    temperature: of the choice of tokens to keep; 0 keeps the most certain ones.

  Returns:
    Tokens without masks, unchanged where they were known.

  Raises:
    ValueError: if steps is below 1, or the temperature below 0.
  """
  if steps < 1:
    raise ValueError(f"decoding takes one step or more, not {steps}")
  if temperature < 0:
    raise ValueError(f"the temperature is at least 0, not {temperature}")
  first = jnp.sum(unknown, axis=1)

  def step(state, k):
    tokens, masked = state
    number = k.astype(jnp.float32)
    logits = predict(tokens, (number - 1) / max(steps - 1, 1)).astype(jnp.float32)
    token_noise, choice_noise = _noise(keys, k, logits.shape[1:])
    sampled = jnp.argmax(logits + token_noise, axis=-1).astype(tokens.dtype)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), sampled[..., None], axis=-1)[..., 0]
    certainty = log_p + temperature * (1 - number / steps) * choice_noise
    count = left_masked(k, steps, first, jnp.sum(masked, axis=1))
    order = jnp.argsort(jnp.where(masked, certainty, jnp.inf), axis=1)
    still_masked = jnp.argsort(order, axis=1) < count[:, None]
    return (jnp.where(still_masked, mask_id, jnp.where(masked, sampled, tokens)), still_masked), None

  start = jnp.where(unknown, mask_id, tokens)
  (tokens, _), _ = jax.lax.scan(step, (start, unknown), jnp.arange(1, steps + 1))
  return tokens


def _noise(
  keys: Key[Array, " b"], step: Int[Array, ""], shape: tuple[int, int]
) -> tuple[Float[Array, "b n v"], Float[Array, "b n"]]:
  """Samples the Gumbel noise of a step: for each position and token id, and for each position."""

  def sample(key):
    token_key, choice_key = jax.random.split(jax.random.fold_in(key, step))
    return jax.random.gumbel(token_key, shape), jax.random.gumbel(choice_key, shape[:1])

  return jax.vmap(sample)(keys)
