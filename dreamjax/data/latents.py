"""Latents of images, to train stages on: each image is encoded once, and its latent is sampled anew each time."""

import hashlib
from typing import Any

import jax
from jaxtyping import Float
import numpy as np

from dreamjax.models.autoencoder import Autoencoder
from dreamjax.parallel import processes
from dreamjax.theta import apply


class Latents:
  """Encodes images to latents, by a frozen autoencoder.

  The mean and the variance that it predicts for an image (`Autoencoder`, eq. 1) are cached.
  """

  def __init__(self, autoencoder: Autoencoder, params: Any) -> None:
    """Takes the autoencoder and its parameters. Each of several processes encodes alone."""
    self._scale, self._shift = autoencoder.scale, autoencoder.shift
    self._params = jax.device_put(processes.fetch(params)) if processes.is_distributed() else params
    self._encode = jax.jit(lambda params, image: apply(autoencoder, params, None, image, method="gaussian"))
    self._cache: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

  def __call__(self, images: Float[np.ndarray, "b h w 3"], draw: np.random.Generator) -> Float[np.ndarray, "b _ _ c"]:
    """Samples latents, with noise from `draw`."""
    gaussians = [self._gaussian(image) for image in images]
    mean, std = (np.stack(part) for part in zip(*gaussians, strict=True))
    latents = mean + std * draw.standard_normal(mean.shape, np.float32)
    return np.float32(self._scale) * (latents - np.float32(self._shift))

  def _gaussian(self, image: Float[np.ndarray, "h w 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of an image's latent."""
    key = hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()
    if key not in self._cache:
      mean, log_variance = jax.device_get(self._encode(self._params, image[None]))
      self._cache[key] = mean[0], np.exp(0.5 * log_variance[0])
    return self._cache[key]
