"""Filters of which the drawing styles consist: lines, smoothing, warps, cells and light, at any resolution.

Lengths are in points, 128ths of the image's side, so that a style looks alike at every resolution.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped
import numpy as np

from dreamjax.toybox.noise import hash_cells, smoothstep

#: The image's side in points.
SIDE = 128.0
_FAR = 40.0  # depths beyond are not distinguished


def points(size: int) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
  """Returns the positions (x, y) of the pixels of a size x size image, in points from its upper left corner."""
  steps = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (SIDE / size)
  return jnp.tile(steps[None], (size, 1)), jnp.tile(steps[:, None], (1, size))


def luma(rgb: Float[Array, "*b 3"]) -> Float[Array, "*b"]:
  """Computes the luma of a colour."""
  return 0.3 * rgb[..., 0] + 0.59 * rgb[..., 1] + 0.11 * rgb[..., 2]


def saturate(rgb: Float[Array, "*b 3"], by: Array | float) -> Float[Array, "*b 3"]:
  """Scales the distance of colours from their grey by a factor."""
  grey = luma(rgb)[..., None]
  return jnp.clip(grey + (rgb - grey) * by, 0.0, 1.0)


def mix(a: Array, b: Array, w: Float[Array, "h w"]) -> Float[Array, "h w 3"]:
  """Interpolates from colour or image `a` (w = 0) to `b` (w = 1)."""
  a, b = (c.reshape((1,) * (3 - c.ndim) + c.shape) for c in (a, b))
  return a + (b - a) * w[..., None]


def colour(*rgb: float) -> Float[Array, "3"]:
  """Returns a colour as an array."""
  return jnp.asarray(rgb, jnp.float32)


def ramp(t: Float[Array, "h w"], *stops: tuple[float, float, float]) -> Float[Array, "h w 3"]:
  """Interpolates a ramp through evenly spaced colours, the stops, at `t` in [0, 1]."""
  at = np.linspace(0.0, 1.0, len(stops)).astype(np.float32)
  table = np.array(stops, np.float32)
  t = jnp.clip(t, 0.0, 1.0)[..., None]
  out = jnp.broadcast_to(jnp.asarray(table[0])[None, None], (*t.shape[:2], 3))
  for k in range(len(stops) - 1):
    share = jnp.clip((t - at[k]) / (at[k + 1] - at[k]), 0.0, 1.0)
    out = out + share * jnp.asarray(table[k + 1] - table[k])[None, None]
  return out


def snap(rgb: Float[Array, "h w 3"], palette: np.ndarray, brightness: float = 0.6) -> Float[Array, "h w 3"]:
  """Replaces each pixel's colour by the nearest of a palette; `brightness` weighs lightness against hue."""

  def features(c):
    grey = luma(c)[..., None]
    return jnp.concatenate([brightness * grey, c - grey], axis=-1)

  inks = jnp.asarray(palette, jnp.float32)
  a, b = features(rgb), features(inks)
  distance = jnp.sum(b * b, axis=-1)[None, None] - 2.0 * jnp.einsum("hwc,kc->hwk", a, b)
  return inks[jnp.argmin(distance, axis=-1)]


def shift(image: Shaped[Array, "h w *c"], down: int, right: int) -> Shaped[Array, "h w *c"]:
  """Translates an image by whole pixels; the margin is repeated."""
  h, w = image.shape[:2]
  pad = [(max(down, 0), max(-down, 0)), (max(right, 0), max(-right, 0))] + [(0, 0)] * (image.ndim - 2)
  padded = jnp.pad(image, pad, mode="edge")
  return padded[max(-down, 0) : max(-down, 0) + h, max(-right, 0) : max(-right, 0) + w]


def blur(image: Float[Array, "h w *c"], radius: Array | float) -> Float[Array, "h w *c"]:
  """Applies a Gaussian blur with a standard deviation of `radius` points, as a product with two band matrices."""
  size = image.shape[0]
  sigma = jnp.maximum(jnp.asarray(radius, jnp.float32) * (size / SIDE), 0.05)
  steps = jnp.arange(size, dtype=jnp.float32)
  band = jnp.exp(-0.5 * ((steps[:, None] - steps[None]) / sigma) ** 2)
  band = band / jnp.sum(band, axis=1, keepdims=True)
  planes = image.reshape(size, size, -1)
  planes = jnp.einsum("yh,hwc->ywc", band, planes)
  return jnp.einsum("xw,ywc->yxc", band, planes).reshape(image.shape)


def sample(image: Float[Array, "h w c"], x: Array, y: Array) -> Array:
  """Samples an image at positions in points, with interpolation."""
  size = image.shape[0]
  x, y = (jnp.clip(a * (size / SIDE) - 0.5, 0.0, size - 1.001) for a in (x, y))
  ix, iy = jnp.floor(x), jnp.floor(y)
  fx, fy = (x - ix)[..., None], (y - iy)[..., None]
  ix, iy = ix.astype(jnp.int32), iy.astype(jnp.int32)
  flat = image.reshape(size * size, -1)

  def pick(j, i):
    return flat.at[(iy + j) * size + ix + i].get(mode="promise_in_bounds")

  top = pick(0, 0) + (pick(0, 1) - pick(0, 0)) * fx
  bottom = pick(1, 0) + (pick(1, 1) - pick(1, 0)) * fx
  return top + (bottom - top) * fy


def smooth(rgb: Float[Array, "h w 3"], mask: Float[Array, "h w"], radius: float) -> Float[Array, "h w 3"]:
  """Flattens textures but keeps edges (Kuwahara's filter).

  Each pixel becomes the mean of the neighbourhood of least variance.
  Details of the subject that would be lost, such as eyes, stay as they are.
  """
  size = rgb.shape[0]
  guide = (luma(rgb) + mask)[..., None]
  mean = blur(jnp.concatenate([rgb, guide, guide * guide], axis=-1), radius)
  step = max(1, round(1.3 * radius * size / SIDE))
  best, least = None, None
  for down in (-step, step):
    for right in (-step, step):
      near = shift(mean, down, right)
      variance = near[..., 4] - near[..., 3] ** 2
      best = near[..., :3] if best is None else jnp.where((variance < least)[..., None], near[..., :3], best)
      least = variance if least is None else jnp.minimum(variance, least)
  lost = smoothstep(0.1, 0.3, jnp.max(jnp.abs(rgb - best), axis=-1)) * mask
  return mix(best, rgb, lost)


def edges(
  rgb: Float[Array, "h w 3"], depth: Float[Array, "h w"], normal: Float[Array, "h w 3"], mask: Float[Array, "h w"]
) -> Float[Array, "h w 3"]:
  """Finds edges one pixel wide, of strength in [0, 1]: where depth jumps, where normals change, where colours change.

  Of a step between two pixels, the smaller one of the steps before and after it is subtracted: slopes are no edges, and
  neither are flat surfaces seen at an angle, whose inverse depth is a slope.
  """
  inverse = (1.0 / jnp.minimum(depth, _FAR))[..., None]
  planes = jnp.concatenate([inverse, mask[..., None], normal, rgb], axis=-1)

  def steps(down, right):
    step = jnp.abs(shift(planes, -down, -right) - planes)
    step = jnp.maximum(step - jnp.minimum(shift(step, down, right), shift(step, -down, -right)), 0.0)
    jump = jnp.maximum(step[..., 0] / planes[..., 0], 0.3 * step[..., 1])
    return jnp.stack([jump, jnp.sum(step[..., 2:5], axis=-1), jnp.sum(step[..., 5:8], axis=-1)], axis=-1)

  strongest = jnp.maximum(steps(0, 1), steps(1, 0))
  low, high = (jnp.asarray(t, jnp.float32)[None, None] for t in ((0.03, 0.35, 0.16), (0.08, 0.9, 0.45)))
  return smoothstep(0.0, 1.0, (strongest - low) / (high - low))


def lines(strength: Float[Array, "h w *c"], width: Array | float) -> Float[Array, "h w *c"]:
  """Draws lines `width` points wide, with ink in [0, 1], along edges that are one pixel wide."""
  sigma = jnp.asarray(width, jnp.float32) / 2
  return smoothstep(0.12, 0.75, 2.07 * sigma * (strength.shape[0] / SIDE) * blur(strength, sigma))


def relief(height: Float[Array, "h w"], strength: float) -> Float[Array, "h w"]:
  """Computes the light from the upper left on a surface with `height` (in points), around 0."""
  slope = shift(height, -1, -1) - shift(height, 1, 1)
  return strength * (height.shape[0] / SIDE) * slope / 2.83


def cell_centres(
  n: Int[Array, ""] | int, most: int, jitter: float, seed: Int[Array, ""]
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
  """Computes the centres (x, y) in points of n x n cells, row by row, off the grid by up to half a cell times `jitter`.

  The arrays have most x most elements; those beyond n x n have no meaning.
  """
  index = jnp.arange(most * most)
  row, column = index // n, index % n
  pitch = SIDE / jnp.asarray(n, jnp.float32)
  x = (column.astype(jnp.float32) + 0.5 + jitter * (hash_cells(index, seed) - 0.5)) * pitch
  y = (row.astype(jnp.float32) + 0.5 + jitter * (hash_cells(index, seed + 1) - 0.5)) * pitch
  return x, y


def best_cell(
  x: Float[Array, "h w"],
  y: Float[Array, "h w"],
  n: Int[Array, ""] | int,
  reach: int,
  cost: Callable[[Array], Array],
  enough: float = jnp.inf,
) -> Int[Array, "h w"]:
  """Finds the cell of least cost for each pixel, among those up to `reach` cells away; `cost` takes indices of cells.

  The result is -1 where no cost is below `enough`.
  """
  per_point = jnp.asarray(n, jnp.float32) / SIDE
  column, row = ((a * per_point).astype(jnp.int32) for a in (x, y))
  span = 2 * reach + 1

  def visit(k, state):
    least, best = state
    i = jnp.clip(column + k % span - reach, 0, n - 1)
    j = jnp.clip(row + k // span - reach, 0, n - 1)
    this = cost(j * n + i)
    return jnp.minimum(least, this), jnp.where(this < least, j * n + i, best)

  start = jnp.full_like(x, enough), jnp.full_like(column, -1)
  return jax.lax.fori_loop(0, span * span, visit, start)[1]


def seams(cell: Int[Array, "h w"]) -> Float[Array, "h w"]:
  """Returns 1 where the cell to the right or below is another one, else 0."""
  padded = jnp.pad(cell, ((0, 1), (0, 1)), mode="edge")
  return ((padded[:-1, 1:] != cell) | (padded[1:, :-1] != cell)).astype(jnp.float32)
