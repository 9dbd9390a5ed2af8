"""The masked-token loss: cross entropy at the tokens that were hidden.

    L = sum_i w_i sum_(n in m_i) CE(logits_in, q(token_in)) / sum_i |m_i|                                          (1)
    q(token) = (1 - s) onehot(token) + s / V                                                                      (2)

Eq. 2 of StyleDrop (Sohn et al., 2306.00983), whose text speaks of the unmasked tokens; it is the masked ones on which
MaskGIT (2202.04200, eq. 1), Muse and aMUSEd are trained. (2) is label smoothing over the V tokens of the codebook.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(
  logits: Float[Array, "b n v"], tokens: Int[Array, "b n"], smoothing: float = 0.0
) -> Float[Array, "b n"]:
  """CE(logits, q(token)) of every token, in float32.

  Args:
    logits: of the codebook's tokens.
    tokens: the true ones.
    smoothing: s of equation (2).

  Raises:
    ValueError: if the smoothing is not at least 0 and below 1.
  """
  if not 0 <= smoothing < 1:
    raise ValueError(f"label smoothing is at least 0 and below 1, not {smoothing}")
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  own = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
  return -(1 - smoothing) * own - smoothing * jnp.mean(log_p, axis=-1)


def masked_token_loss(
  logits: Float[Array, "b n v"],
  tokens: Int[Array, "b n"],
  mask: Bool[Array, "b n"],
  weights: Float[Array, " b"],
  smoothing: float = 0.0,
) -> Float[Array, ""]:
  """Equation (1).

  Args:
    logits: what the network says.
    tokens: the true ones.
    mask: which were hidden from the network.
    weights: one an image.
    smoothing: of the labels; MaskGIT's is 0.1.
  """
  each = jnp.sum(jnp.where(mask, cross_entropy(logits, tokens, smoothing), 0), axis=1)
  return jnp.sum(weights.astype(jnp.float32) * each) / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1)
