"""Guidance, and thresholding of the x0 predictions that it drives out of range.

With u the prediction without a prompt and c_i the prediction with the i-th prompt:

    u + sum_i w_i (c_i - u)                                                                                        (1)

With one prompt this is classifier-free guidance, w c + (1 - w) u in Imagen (Saharia et al., 2205.11487, eq. 2); with
several, composition (Liu et al., 2206.01714). Any affine combination of branches is (1) with some weights.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def guide(
  predictions: Float[Array, "k b h w c"], weights: Float[Array, "n *b"], *, learned_variance: bool = False
) -> Float[Array, "b h w c"]:
  """Combines the predictions of several branches by (1), in float32.

  Args:
    predictions: stacked branches, u first; all eps, all x0 or all v.
    weights: w_i of each branch but the first, for all images or for each image.
    learned_variance: whether the second half of the channels is a learned variance. It is not guided but taken from
      the last branch, as in DeepFloyd IF.

  Raises:
    ValueError: if the shape of the weights does not match the branches.
  """
  branches, batch, *_, channels = predictions.shape
  if weights.shape not in ((branches - 1,), (branches - 1, batch)):
    shapes = f"({branches - 1},) or ({branches - 1}, {batch})"
    raise ValueError(f"{branches} branches of {batch} images need weights of shape {shapes}, not {weights.shape}")
  predictions = predictions.astype(jnp.float32)
  weights = weights.astype(jnp.float32).reshape(weights.shape + (1,) * (5 - weights.ndim))
  guided = predictions[0] + jnp.sum(weights * (predictions[1:] - predictions[:1]), axis=0)
  if not learned_variance:
    return guided
  half = channels // 2
  return jnp.concatenate([guided[..., :half], predictions[-1, ..., half:]], axis=-1)


def within_interval(weights: Float[Array, " n"], t: Float[Array, " b"], low: float, high: float) -> Float[Array, "n b"]:
  """Limits guidance to times low < t <= high (Kynkaanniemi et al., 2404.07724).

  Returns the weights for `guide`, one for each branch with a prompt and each image. Outside the interval they give the
  plain conditional prediction, the mean of all branches with a prompt.

  Raises:
    ValueError: if low is not below high.
  """
  if low >= high:
    raise ValueError(f"the guidance interval needs low < high, not {low}, {high}")
  inside = (t > low) & (t <= high)
  return jnp.where(inside[None], weights.astype(jnp.float32)[:, None], 1 / len(weights))


def static_threshold(x0: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """Clips x0 predictions to [-1, 1]: static thresholding (Imagen, section 2.3)."""
  return jnp.clip(x0, -1, 1)


def dynamic_threshold(
  x0: Float[Array, "b h w c"], ratio: float = 0.995, maximum: float = float("inf")
) -> Float[Array, "b h w c"]:
  """Clips x0 predictions to [-s, s] and divides by s: dynamic thresholding (Imagen, section 2.3).

  The threshold s of an image is a quantile of its |x0|, clipped to [1, maximum].

  Args:
    x0: predicted clean images.
    ratio: the quantile, from 0 to 1; 0.995 in Imagen, 0.95 in DeepFloyd IF.
    maximum: of s; infinite in Imagen, 1.5 in IF-I, 1 (which is static thresholding) in IF-II and IF-III.

  Raises:
    ValueError: if the ratio is not from 0 to 1, or the maximum below 1.
  """
  if not 0 <= ratio <= 1:
    raise ValueError(f"the quantile of dynamic thresholding is from 0 to 1, not {ratio}")
  if maximum < 1:
    raise ValueError(f"the maximum of dynamic thresholding is 1 or more, not {maximum}")
  x0 = x0.astype(jnp.float32)
  s = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), ratio, axis=1)
  s = jnp.clip(s, 1, maximum)[:, None, None, None]
  return jnp.clip(x0, -s, s) / s
