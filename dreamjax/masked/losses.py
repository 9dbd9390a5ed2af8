"""The masked-token loss: cross entropy of the masked tokens.

    L = sum_i w_i sum_(n in m_i) CE(logits_in, q(token_in)) / sum_i |m_i|                                          (1)
    q(token) = (1 - s) onehot(token) + s / V                                                                      (2)

(1) is eq. 2 of StyleDrop (Sohn et al., 2306.00983), over the masked tokens m_i of example i, as in MaskGIT (2202.04200,
eq. 1), Muse and aMUSEd; StyleDrop's text says unmasked. (2) is label smoothing over the V tokens of the codebook.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(
  logits: Float[Array, "b n v"], tokens: Int[Array, "b n"], smoothing: float = 0.0
) -> Float[Array, "b n"]:
  """Computes CE(logits, q(token)) of every token, in float32.

  Args:
    logits: over the codebook.
    tokens: the targets.
    smoothing: s of (2).

  Raises:
    ValueError: if the smoothing is below 0, or not below 1.
  """
  if not 0 <= smoothing < 1:
    raise ValueError(f"label smoothing is at least 0 and below 1, not {smoothing}")
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  log_likelihood = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
  return -(1 - smoothing) * log_likelihood - smoothing * jnp.mean(log_p, axis=-1)


def masked_token_loss(
  logits: Float[Array, "b n v"],
  tokens: Int[Array, "b n"],
  mask: Bool[Array, "b n"],
  weights: Float[Array, " b"],
  smoothing: float = 0.0,
) -> Float[Array, ""]:
  """Computes (1), in float32.

  Args:
    logits: predicted by the network.
    tokens: the targets.
    mask: true at the tokens that were masked in the input.
    weights: w_i, one for each image.
    smoothing: s of (2); 0.1 in MaskGIT.
  """
  sums = jnp.sum(jnp.where(mask, cross_entropy(logits, tokens, smoothing), 0), axis=1)
  return jnp.sum(weights.astype(jnp.float32) * sums) / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1)
