"""Applies layers of one shape one after the other, written out or as a loop, and rematerialises them."""

from collections.abc import Sequence
from typing import Any, TypeVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from dreamjax.models.attention import ATTENDED

Stream = TypeVar("Stream", bound=jax.Array)
M = TypeVar("M", bound=type[nn.Module])
#: What the backward pass of a layer recomputes instead of keeping it: nothing; what takes little time, which is all but
#: matrix products, convolutions and block-wise attention; or everything.
REMATS = ("none", "cheap", "all")


def _is_product(primitive: Any, *shapes: Any, **params: Any) -> bool:
  """Returns whether a primitive is a convolution or a matrix product with parameters; those within examples are not."""
  dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return primitive is jax.lax.conv_general_dilated_p or dots(primitive, *shapes, **params)


_attended = jax.checkpoint_policies.save_only_these_names(ATTENDED)
_KEPT = {"cheap": jax.checkpoint_policies.save_from_both_policies(_is_product, _attended), "all": None}


def with_remat(layer: M, remat: str) -> M:
  """Returns the class of a layer or block whose backward pass recomputes what `remat`, one of `REMATS`, says."""
  return layer if remat == "none" else nn.remat(layer, policy=_KEPT[remat])


def apply_layers(layers: Sequence[nn.Module], x: Stream, *args: Any, scan: bool = False) -> Stream:
  """Applies layers to the hidden states, one after the other.

  With `scan` the layers' parameters, and a theta's variables for them, are stacked when the program runs and a
  `lax.scan` loops over them: names, files and thetas are the same as without. It costs the memory of a copy of them.

  Args:
    layers: of one class and with the same fields, bound to the calling module.
    x: hidden states, the input of the first layer.
    *args: more arguments, the same for each layer.
    scan: whether to loop. A single layer, and layers of which a theta changes only some, are written out all the same.

  Returns:
    The hidden states after the last layer.
  """
  loops = scan and len(layers) > 1 and not layers[0].is_initializing()
  variables = [layer.variables for layer in layers] if loops else []
  shapes = [jax.tree.map(jnp.shape, one) for one in variables]  # thetas may edit only some layers, or by other ranks
  if not loops or any(one != shapes[0] for one in shapes):
    for layer in layers:
      x = layer(x, *args)
    return x
  alone = layers[0].clone(parent=None, name=None)
  step = lambda x, own: (alone.apply(own, x, *args), None)  # noqa: E731
  return jax.lax.scan(step, x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables))[0]
