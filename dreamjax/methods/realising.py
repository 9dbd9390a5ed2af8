"""From what is trained to the thetas that are applied, which may be one for each example of a batch.

What is trained need not be a theta: HyperDreamBooth's hypernetwork predicts one for each image, and Lightweight
DreamBooth's coordinates are one in another basis.
"""

from collections.abc import Callable
from typing import Any

import jax

from dreamjax.parallel.sharding import batch_axes, batch_shards

#: realise(theta, frozen, batch) -> thetas by the names of parts.
Realise = Callable[[Any, Any, Any], Any]


def same(theta: Any, frozen: Any, batch: Any) -> Any:
  """Returns what is trained: a theta for each part."""
  del frozen, batch
  return theta


def each(function: Callable[..., Any]) -> Callable[..., Any]:
  """Maps function(frozen, thetas, *batch) -> array [b, ...] over stacked thetas and the examples of a batch.

  On a mesh that is set, the examples stay sharded over its data axes. XLA (jax 0.10) cannot shard convolutions whose
  kernels differ between examples, so there thetas are of Dense layers.
  """

  def mapped(frozen: Any, thetas: Any, *batch: Any) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    axes = None if mesh.empty or batch_shards(mesh) == 1 else batch_axes(mesh)

    def one(thetas: Any, *example: Any) -> Any:
      return function(frozen, thetas, *jax.tree.map(lambda x: x[None], example))[0]

    return jax.vmap(one, spmd_axis_name=axes)(thetas, *batch)

  return mapped
