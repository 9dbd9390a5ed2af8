"""Attention ("Attention Is All You Need", Vaswani et al., 2017, eq. 1), its softmax in float32 whatever goes in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attend(
  query: Float[Array, "b n k d"],
  key: Float[Array, "b m k d"],
  value: Float[Array, "b m k e"],
  *,
  scale: float | None = None,
  bias: Float[Array, "#b #k n m"] | None = None,
  mask: Bool[Array, "#b #k #n m"] | None = None,
) -> Float[Array, "b n k e"]:
  """softmax(scale query key^T + bias) value, head by head.

  Args:
    query: what looks.
    key: what it compares itself with.
    value: what it takes over; of the same dtype as query and key.
    scale: of the logits; by default 1 / sqrt(d).
    bias: added to the logits.
    mask: true where a query may look. One that may look nowhere looks everywhere.

  Returns:
    For each query a mean of the values, in their dtype.
  """
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  logits = scale * jnp.einsum("bnkd,bmkd->bknm", query, key, preferred_element_type=jnp.float32)
  if bias is not None:
    logits = logits + bias
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  return jnp.einsum("bknm,bmke->bnke", jax.nn.softmax(logits, axis=-1).astype(value.dtype), value)
