"""Layers of one shape, one after the other, as a loop or written out; and what of a layer is kept for the way back."""

from collections.abc import Sequence
from typing import Any, TypeVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from dreamjax.models.attention import ATTENDED

Stream = TypeVar("Stream", bound=jax.Array)
M = TypeVar("M", bound=type[nn.Module])
#: What a layer computes anew on the way back, instead of keeping it: nothing; what takes little time, which is all but
#: its matrix products, its convolutions and attention between many places; or everything.
REMATS = ("none", "cheap", "all")


def _is_product(primitive: Any, *shapes: Any, **params: Any) -> bool:
  """A matrix product with parameters, or a convolution; products within rows are of attention between few places."""
  dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return primitive is jax.lax.conv_general_dilated_p or dots(primitive, *shapes, **params)


_attended = jax.checkpoint_policies.save_only_these_names(ATTENDED)
_KEPT = {"cheap": jax.checkpoint_policies.save_from_both_policies(_is_product, _attended), "all": None}


def with_remat(layer: M, remat: str) -> M:
  """The class of a layer or block, which keeps for the way back what `remat`, of `REMATS`, lets it."""
  return layer if remat == "none" else nn.remat(layer, policy=_KEPT[remat])


def apply_layers(layers: Sequence[nn.Module], x: Stream, *told: Any, scan: bool = False) -> Stream:
  """What goes around, through all layers.

  With `scan` the layers' parameters, and what a theta puts beside them, are stacked when the program runs and gone
  through by `lax.scan`: names, files and thetas are the same as without. It costs the memory of a copy of them.

  Args:
    layers: of one class and of the same fields, bound to the module that calls.
    x: what goes into the first.
    *told: what each of them is told besides.
    scan: whether to loop. A single layer, and layers of which a theta changes only some, are written out all the same.
  """
  loops = scan and len(layers) > 1 and not layers[0].is_initializing()
  variables = [layer.variables for layer in layers] if loops else []
  shapes = [jax.tree.map(jnp.shape, one) for one in variables]  # thetas may edit only some layers, or by other ranks
  if not loops or any(one != shapes[0] for one in shapes):
    for layer in layers:
      x = layer(x, *told)
    return x
  alone = layers[0].clone(parent=None, name=None)
  step = lambda x, own: (alone.apply(own, x, *told), None)  # noqa: E731
  return jax.lax.scan(step, x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables))[0]
