"""Latents of images, as stages that draw latents are trained on: each is encoded once, and drawn each time."""

import hashlib
from typing import Any

import jax
from jaxtyping import Float
import numpy as np

from dreamjax.models.autoencoder import Autoencoder
from dreamjax.parallel import processes
from dreamjax.theta import apply


class Latents:
  """Images to latents, by an autoencoder that stays as it is.

  What it says of an image, a mean and a variance (`Autoencoder`, eq. 1), is kept, so that an image that comes again
  costs no more than a look.
  """

  def __init__(self, autoencoder: Autoencoder, params: Any) -> None:
    """Takes the autoencoder's parameters as well. Each of several processes encodes by itself."""
    self._scale, self._shift = autoencoder.scale, autoencoder.shift
    self._params = jax.device_put(processes.fetch(params)) if processes.is_distributed() else params
    self._encode = jax.jit(lambda params, image: apply(autoencoder, params, None, image, method="gaussian"))
    self._known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

  def __call__(self, images: Float[np.ndarray, "b h w 3"], draw: np.random.Generator) -> Float[np.ndarray, "b _ _ c"]:
    """Latents, with noise from `draw`."""
    known = [self._gaussian(image) for image in images]
    mean, spread = (np.stack(part) for part in zip(*known, strict=True))
    drawn = mean + spread * draw.standard_normal(mean.shape, np.float32)
    return np.float32(self._scale) * (drawn - np.float32(self._shift))

  def _gaussian(self, image: Float[np.ndarray, "h w 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation."""
    key = hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()
    if key not in self._known:
      mean, log_variance = jax.device_get(self._encode(self._params, image[None]))
      self._known[key] = mean[0], np.exp(0.5 * log_variance[0])
    return self._known[key]
