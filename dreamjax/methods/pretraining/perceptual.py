"""A distance between images by the features of a trained network.

"The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (Zhang et al., 1801.03924), eq. 1, without
learned weights of the channels: with F_l the features of the network's block l, each pixel's of unit length,

    d(x, y) = sum_l mean |F_l(x) - F_l(y)|^2                                                                       (1)
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.convert import pretrained
from dreamjax.errors import UserError
from dreamjax.models.resnet import Block, ResNet


def load(folder: str) -> tuple[ResNet, Any]:
  """Loads the network whose features are compared, and its parameters.

  Raises:
    ValueError: if the folder holds another kind of network than a `ResNet`.
  """
  network, params = pretrained.load(folder)
  if not isinstance(network, ResNet):
    raise UserError(f"{folder} holds a {type(network).__name__}, but features are compared of a ResNet only")
  return network, params


def distance(network: ResNet, params: Any, x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, ""]:
  """Computes eq. 1 of square images in [-1, 1] of any size, averaged over the batch."""
  network = network.clone(image=x.shape[1])
  _, intermediates = network.apply(
    {"params": params}, jnp.concatenate([x, y]), capture_intermediates=lambda module, _: isinstance(module, Block)
  )
  total = jnp.zeros(())
  for features in jax.tree.leaves(intermediates):
    unit = features / (jnp.linalg.norm(features, axis=-1, keepdims=True) + 1e-6)
    total = total + jnp.mean(jnp.sum(jnp.square(unit[: len(x)] - unit[len(x) :]), axis=-1))
  return total
