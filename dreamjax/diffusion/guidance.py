"""Guidance, and thresholds for the predictions of x0 that it drives out of range.

With the prediction u without a prompt, and c_i with the i-th:

    u + sum_i w_i (c_i - u)                                                                                        (1)

For one prompt this is classifier-free guidance, w c + (1 - w) u in Imagen (Saharia et al., 2205.11487, eq. 2); for
several, composition (Liu et al., 2206.01714). Any affine mixture of branches is (1) with some weights.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def guide(
  predictions: Float[Array, "k b h w c"], weights: Float[Array, "n *b"], *, learned_variance: bool = False
) -> Float[Array, "b h w c"]:
  """Equation (1), in float32.

  Args:
    predictions: one branch beside the other, u first. Of which kind (eps, x0, v) makes no difference.
    weights: one for each branch but the first; or for each of these and each image.
    learned_variance: the second half of the channels is a learned variance. It is not mixed but taken from the last
      branch, as in DeepFloyd IF.

  Raises:
    ValueError: if the weights do not fit the branches.
  """
  branches, rows, *_, channels = predictions.shape
  if weights.shape not in ((branches - 1,), (branches - 1, rows)):
    shapes = f"({branches - 1},) or ({branches - 1}, {rows})"
    raise ValueError(f"{branches} branches of {rows} images take weights of shape {shapes}, not {weights.shape}")
  predictions = predictions.astype(jnp.float32)
  weights = weights.astype(jnp.float32).reshape(weights.shape + (1,) * (5 - weights.ndim))
  mixed = predictions[0] + jnp.sum(weights * (predictions[1:] - predictions[:1]), axis=0)
  if not learned_variance:
    return mixed
  half = channels // 2
  return jnp.concatenate([mixed[..., :half], predictions[-1, ..., half:]], axis=-1)


def within_interval(weights: Float[Array, " n"], t: Float[Array, " b"], low: float, high: float) -> Float[Array, "n b"]:
  """Weights for `guide` that guide only at times low < t <= high (Kynkaanniemi et al., 2404.07724).

  At other times they make it the plain conditional prediction, that is the mean of all branches with a prompt.

  Raises:
    ValueError: if low is not below high.
  """
  if low >= high:
    raise ValueError(f"an interval of times begins before it ends: not {low}, {high}")
  inside = (t > low) & (t <= high)
  return jnp.where(inside[None], weights.astype(jnp.float32)[:, None], 1 / len(weights))


def static_threshold(x0: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """Imagen's static thresholding (section 2.3): clips to [-1, 1]."""
  return jnp.clip(x0, -1, 1)


def dynamic_threshold(
  x0: Float[Array, "b h w c"], ratio: float = 0.995, maximum: float = float("inf")
) -> Float[Array, "b h w c"]:
  """Imagen's dynamic thresholding (section 2.3): s a percentile of an image's |x0|, clipped to [-s, s] over s.

  Args:
    x0: predictions of the clean images.
    ratio: the percentile over 100; 0.995 is Imagen's, 0.95 DeepFloyd IF's.
    maximum: s lies between 1, where this is static thresholding, and this; infinite for Imagen, for IF 1.5 in stage I
      and 1 in II and III.

  Raises:
    ValueError: if the ratio is not one, or the maximum below 1.
  """
  if not 0 <= ratio <= 1:
    raise ValueError(f"the ratio of pixels below the threshold is from 0 to 1: not {ratio}")
  if maximum < 1:
    raise ValueError(f"the maximum of the threshold is 1 or more, not {maximum}")
  x0 = x0.astype(jnp.float32)
  s = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), ratio, axis=1)
  s = jnp.clip(s, 1, maximum)[:, None, None, None]
  return jnp.clip(x0, -s, s) / s
