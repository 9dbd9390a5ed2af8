"""Batches of a fixed size that divide over a mesh, so that one compiled program makes all of a run's examples."""

from collections.abc import Iterator

import jax
from jaxtyping import Int
import numpy as np

from dreamjax.parallel.sharding import round_up_batch_size


def batch_indices(
  total: int, size: int, mesh: jax.sharding.Mesh | None = None
) -> Iterator[tuple[int, Int[np.ndarray, " b"]]]:
  """Yields for each batch the number of examples that count, and the indices of all its examples.

  The last batch is padded with its last example, so that all batches have one size.

  Args:
    total: the number of examples.
    size: of a batch, rounded up so that it divides over the mesh.
    mesh: of devices; None for one device.
  """
  size = round_up_batch_size(size, mesh)
  for start in range(0, total, size):
    count = min(size, total - start)
    yield count, start + np.minimum(np.arange(size), count - 1)
