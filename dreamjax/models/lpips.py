"""LPIPS, a perceptual distance (Zhang et al., The Unreasonable Effectiveness of Deep Features, 1801.03924).

With y^l the activations of layer l of a classifier, u(y) = y / (|y| + 1e-10) over channels, and weights w_l >= 0 fitted
to human judgements, the distance between images x and x' is the paper's equation (1),

    d(x, x') = sum_l 1/(H_l W_l) sum_{h,w} w_l . (u(y^l_hw) - u(y'^l_hw))^2                                        (1)

as in version 0.1 of the authors' package, where w_l multiplies the squares. Their weights are not part of this package.
With torchvision and lpips installed, this writes a file of them:

    import lpips, safetensors.torch
    state = lpips.LPIPS(net="alex").state_dict()
    safetensors.torch.save_file({name: x.clone() for name, x in state.items()}, "lpips_alex.safetensors")

and this uses it:

    lpips, params = from_torch(safetensors.numpy.load_file("lpips_alex.safetensors"))
    distances = lpips.apply({"params": params}, x, y)

The classifier's weights may also have torchvision's names, `features.0.weight` for `net.slice1.0.weight`.
"""

from collections.abc import Mapping
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

# Mean and standard deviation of ImageNet's colours for images in [-1, 1], from the authors' `ScalingLayer`.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class _Conv(NamedTuple):
  """A convolution followed by a ReLU; `index` is its index in torchvision's `features`."""

  index: int
  channels: int
  kernel: int = 3
  stride: int = 1
  padding: int = 1


# The convolutions before each of the five activations that are compared, for AlexNet and for VGG-16.
_LAYERS = {
  "alex": (
    (_Conv(0, 64, kernel=11, stride=4, padding=2),),
    (_Conv(3, 192, kernel=5, padding=2),),
    (_Conv(6, 384),),
    (_Conv(8, 256),),
    (_Conv(10, 256),),
  ),
  "vgg": (
    (_Conv(0, 64), _Conv(2, 64)),
    (_Conv(5, 128), _Conv(7, 128)),
    (_Conv(10, 256), _Conv(12, 256), _Conv(14, 256)),
    (_Conv(17, 512), _Conv(19, 512), _Conv(21, 512)),
    (_Conv(24, 512), _Conv(26, 512), _Conv(28, 512)),
  ),
}
# Max pooling: its window, its stride, and the layers before which it is applied.
_POOLS = {"alex": (3, 2, (1, 2)), "vgg": (2, 2, (1, 2, 3, 4))}


class LPIPS(nn.Module):
  """Computes the distance (1).

  Attributes:
    net: the classifier, "alex" or "vgg".
  """

  net: str = "alex"

  @nn.compact
  def __call__(self, x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
    """Returns the distances between b pairs of images in [-1, 1]."""
    shift, scale = (jnp.array(constants)[None, None, None] for constants in (_SHIFT, _SCALE))
    h = (jnp.concatenate([x, y]) - shift) / scale
    window, stride, pooled_layers = _POOLS[self.net]
    distance = jnp.zeros(len(x))
    for layer, convs in enumerate(_LAYERS[self.net]):
      if layer in pooled_layers:
        h = nn.max_pool(h, (window, window), (stride, stride))
      for conv in convs:
        padding = [(conv.padding, conv.padding)] * 2
        kernel = (conv.kernel, conv.kernel)
        h = nn.Conv(conv.channels, kernel, conv.stride, padding, name=f"conv{conv.index}")(h)
        h = nn.relu(h)
      unit = h / (jnp.linalg.norm(h, axis=-1, keepdims=True) + 1e-10)
      weights = self.param(f"weights{layer}", nn.initializers.ones, (h.shape[-1],))
      squares = jnp.square(unit[: len(x)] - unit[len(x) :])
      distance += jnp.mean(squares @ weights, axis=(1, 2))
    return distance


def from_torch(tensors: Mapping[str, np.ndarray]) -> tuple[LPIPS, dict[str, Any]]:
  """Builds the module and its parameters from a torch model's state.

  Args:
    tensors: the state. Duplicates (`lins`) and constants (`scaling_layer`) are ignored.

  Raises:
    ValueError: if tensors are missing, unknown or of a wrong shape; the message lists them all.
  """
  net = "vgg" if any(name.endswith(".2.weight") for name in tensors) else "alex"  # which has no convolution at 2
  params, problems, channels = {}, [], 3
  unused = {name for name in tensors if not re.match(r"lins\.|scaling_layer\.", name)}

  def take(names: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    name = next((name for name in names if name in tensors), None)
    if name is None:
      problems.append(f"{names[0]} is missing")
      return np.zeros(shape)
    unused.discard(name)
    if tensors[name].shape != shape:
      problems.append(f"{name} has shape {tensors[name].shape} instead of {shape}")
    return tensors[name]

  for layer, convs in enumerate(_LAYERS[net]):
    for conv in convs:
      names = (f"net.slice{layer + 1}.{conv.index}", f"features.{conv.index}")
      weight = take(tuple(f"{name}.weight" for name in names), (conv.channels, channels, conv.kernel, conv.kernel))
      bias = take(tuple(f"{name}.bias" for name in names), (conv.channels,))
      params[f"conv{conv.index}"] = {"kernel": jnp.asarray(weight.transpose(2, 3, 1, 0)), "bias": jnp.asarray(bias)}
      channels = conv.channels
    params[f"weights{layer}"] = jnp.asarray(take((f"lin{layer}.model.1.weight",), (1, channels, 1, 1)).reshape(-1))
  if problems := problems + [f"{name} is unknown" for name in sorted(unused)]:
    raise ValueError(f"these are not the weights of LPIPS with {net!r}: {'; '.join(problems)}")
  return LPIPS(net), params
