"""Noise that is the same on every machine, as it is made of integer hashes."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def hash_cells(*cells: Int[Array, "..."]) -> Float[Array, "..."]:
  """Computes a uniform number in [0, 1) for each tuple of integers (multiply-xorshift; a pure function)."""
  h = jnp.uint32(0x9E3779B9)
  for cell in cells:
    h = (h ^ jnp.asarray(cell).astype(jnp.int32).astype(jnp.uint32)) * jnp.uint32(0x85EBCA6B)
    h = h ^ (h >> 13)
  h = h * jnp.uint32(0xC2B2AE35)
  h = h ^ (h >> 16)
  return (h >> 8).astype(jnp.float32) * (1.0 / (1 << 24))


def smoothstep(lo: float, hi: float, x: Array) -> Array:
  """Computes a function that is 0 below `lo`, 1 above `hi`, and a cubic between."""
  x = jnp.clip((x - lo) / (hi - lo), 0.0, 1.0)
  return x * x * (3.0 - 2.0 * x)


def value_noise(x: Float[Array, "..."], y: Float[Array, "..."], seed: Int[Array, ""] | int = 0) -> Float[Array, "..."]:
  """Computes smooth noise in [0, 1] with one cell per unit."""
  ix, iy = jnp.floor(x), jnp.floor(y)
  fx, fy = x - ix, y - iy
  wx, wy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
  ix, iy = ix.astype(jnp.int32), iy.astype(jnp.int32)
  corners = [hash_cells(ix + i, iy + j, seed) for j in (0, 1) for i in (0, 1)]
  low = corners[0] + (corners[1] - corners[0]) * wx
  high = corners[2] + (corners[3] - corners[2]) * wx
  return low + (high - low) * wy


def fractal_noise(x: Array, y: Array, seed: Int[Array, ""] | int = 0, octaves: int = 3) -> Array:
  """Computes the sum of `octaves` noises, each twice as fine and half as strong as the last, in [0, 1]."""
  total, amplitude = 0.0, 0.5
  for octave in range(octaves):
    scale = 2.0**octave
    total = total + amplitude * value_noise(x * scale, y * scale, seed + 101 * octave)
    amplitude = amplitude / 2
  return total / (1.0 - 0.5**octaves)
