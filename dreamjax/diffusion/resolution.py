"""Resizing of images: downsampling of training images, and upsampling of the input of super-resolution networks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np


def downsample(images: Float[Array, "b h w c"], side: int) -> Float[Array, "b {side} {side} c"]:
  """Downsamples square images to `side` pixels, in float32.

  Averages blocks of pixels where `side` divides the size, else uses antialiased linear interpolation.

  Raises:
    ValueError: if the images are not square, or smaller than `side`.
  """
  b, height, width, c = images.shape
  if height != width or height < side:
    raise ValueError(f"only square images of at least {side} pixels can be downsampled to {side}, not {height}x{width}")
  if height % side:
    return jax.image.resize(images.astype(jnp.float32), (b, side, side, c), "linear")
  k = height // side
  return images.astype(jnp.float32).reshape(b, side, k, side, k, c).mean(axis=(2, 4))


def upsample(images: Float[Array, "b h w c"], side: int) -> Float[Array, "b {side} {side} c"]:
  """Upsamples images to `side` x `side` by bilinear interpolation with aligned corners, in float32.

  It equals torch's bilinear `interpolate(align_corners=True)`, which DeepFloyd IF applies to the input of its
  super-resolution stages.
  """
  rows, columns = (jnp.asarray(_interpolation(size, side)) for size in images.shape[1:3])
  return jnp.einsum("yh,xw,bhwc->byxc", rows, columns, images.astype(jnp.float32))


def _interpolation(size: int, side: int) -> Float[np.ndarray, "side size"]:
  """Returns the matrix that interpolates `size` values linearly at `side` evenly spaced positions, ends included."""
  positions = np.linspace(0, size - 1, side)
  return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(size))).astype(np.float32)
