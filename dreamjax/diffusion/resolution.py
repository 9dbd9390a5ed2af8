"""Images at other sizes: what a super-resolution network is given, and what it is to make of it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np


def downsample(images: Float[Array, "b h w c"], side: int) -> Float[Array, "b {side} {side} c"]:
  """Square images, made smaller: means over blocks of pixels, or, where the sides do not divide, over triangles.

  Raises:
    ValueError: if they are not square, or smaller than `side`.
  """
  b, height, width, c = images.shape
  if height != width or height < side:
    raise ValueError(f"square images of {side} pixels or more are made smaller, not {height}x{width}")
  if height % side:
    return jax.image.resize(images.astype(jnp.float32), (b, side, side, c), "linear")
  k = height // side
  return images.astype(jnp.float32).reshape(b, side, k, side, k, c).mean(axis=(2, 4))


def upsample(images: Float[Array, "b h w c"], side: int) -> Float[Array, "b {side} {side} c"]:
  """Images, made larger by straight lines between pixels, the outermost of which stay at the borders.

  That is torch's bilinear interpolation with align_corners=True, by which DeepFloyd IF enlarges what its stages of
  super-resolution see.
  """
  rows, columns = (jnp.asarray(_between(size, side)) for size in images.shape[1:3])
  return jnp.einsum("yh,xw,bhwc->byxc", rows, columns, images.astype(jnp.float32))


def _between(size: int, side: int) -> Float[np.ndarray, "side size"]:
  """The weights of `size` points in each of `side` points that are evenly spread from the first to the last."""
  places = np.linspace(0, size - 1, side)
  return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size))).astype(np.float32)
