"""Random augmentations of training images that keep their content: crop, flip, blur, light, noise. Jittable."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Augment:
  """How strongly images are augmented.

  Attributes:
    scale: smallest and largest side of the crop, as a share of the image's.
    flip: whether half of the images are mirrored.
    blur: largest width of the resampling filter, in pixels; 1 is sharp.
    light: largest change of brightness and contrast, as a share.
    noise: largest standard deviation of Gaussian noise, for images in [-1, 1].
  """

  scale: tuple[float, float] = (0.75, 1.0)
  flip: bool = True
  blur: float = 2.5
  light: float = 0.15
  noise: float = 0.08

  def __call__(self, key: jax.Array, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Augments images in [-1, 1], each independently of the others."""
    b, side = images.shape[0], images.shape[1]
    keys = jax.random.split(key, 7)
    extent = jax.random.uniform(keys[0], (b,), minval=self.scale[0], maxval=self.scale[1])
    start = jax.random.uniform(keys[1], (b, 2)) * (1.0 - extent[:, None])
    width = jnp.maximum(1.0, jax.random.uniform(keys[2], (b,), minval=2.0 - self.blur, maxval=self.blur))
    rows = _resampling(start[:, 0], extent, width, side)
    columns = _resampling(start[:, 1], extent, width, side)
    if self.flip:
      flipped = jax.random.bernoulli(keys[3], 0.5, (b,))
      columns = jnp.where(flipped[:, None, None], columns[:, ::-1], columns)
    images = jnp.einsum("byh,bhwc->bywc", rows, images)
    images = jnp.einsum("bxw,bywc->byxc", columns, images)
    light = self.light * jax.random.uniform(keys[4], (2, b, 1, 1, 1), minval=-1.0)
    images = images * (1.0 + light[0]) + light[1]
    sigma = self.noise * jax.random.uniform(keys[5], (b, 1, 1, 1)) ** 2
    return jnp.clip(images + sigma * jax.random.normal(keys[6], images.shape), -1.0, 1.0)


def _resampling(
  start: Float[Array, " b"], extent: Float[Array, " b"], width: Float[Array, " b"], side: int
) -> Float[Array, "b side side"]:
  """Returns matrices that resample a line of pixels from start to start + extent, by a triangular filter."""
  pixel = jnp.arange(side, dtype=jnp.float32) + 0.5
  centers = float(side) * start[:, None] + extent[:, None] * pixel[None]
  weights = jnp.maximum(0.0, 1.0 - jnp.abs(centers[:, :, None] - pixel[None, None]) / width[:, None, None])
  return weights / weights.sum(-1, keepdims=True)
