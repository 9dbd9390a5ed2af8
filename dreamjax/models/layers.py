"""Layers of one shape, one after the other: written out, or as a loop that is compiled once however deep it is."""

from collections.abc import Sequence
from typing import Any, TypeVar

from flax import linen as nn
import jax
import jax.numpy as jnp

Stream = TypeVar("Stream", bound=jax.Array)


def in_turn(layers: Sequence[nn.Module], x: Stream, *told: Any, scan: bool = False) -> Stream:
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
  if not variables or any(jax.tree.structure(one) != jax.tree.structure(variables[0]) for one in variables):
    for layer in layers:
      x = layer(x, *told)
    return x
  alone = layers[0].clone(parent=None, name=None)
  step = lambda x, own: (alone.apply(own, x, *told), None)  # noqa: E731
  return jax.lax.scan(step, x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables))[0]
