"""Thresholding of the x0 predictions that guidance drives out of range."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def static_threshold(x0: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """Clips x0 predictions to [-1, 1]: static thresholding (Imagen, section 2.3)."""
  return jnp.clip(x0, -1, 1)


def dynamic_threshold(
  x0: Float[Array, "b h w c"], percentile: float = 0.995, max_threshold: float = float("inf")
) -> Float[Array, "b h w c"]:
  """Clips x0 predictions to [-s, s] and divides by s: dynamic thresholding (Imagen, section 2.3).

  The threshold s of an image is a quantile of its |x0|, clipped to [1, max_threshold].

  Args:
    x0: predicted clean images.
    percentile: the quantile, from 0 to 1; 0.995 in Imagen, 0.95 in DeepFloyd IF.
    max_threshold: the largest s; infinite in Imagen, 1.5 in IF-I, 1 (which is static thresholding) in IF-II and IF-III.

  Raises:
    ValueError: if the percentile is not from 0 to 1, or the largest threshold below 1.
  """
  if not 0 <= percentile <= 1:
    raise ValueError(f"the quantile of dynamic thresholding is from 0 to 1, not {percentile}")
  if max_threshold < 1:
    raise ValueError(f"the maximum of dynamic thresholding is 1 or more, not {max_threshold}")
  x0 = x0.astype(jnp.float32)
  s = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), percentile, axis=1)
  s = jnp.clip(s, 1, max_threshold)[:, None, None, None]
  return jnp.clip(x0, -s, s) / s
