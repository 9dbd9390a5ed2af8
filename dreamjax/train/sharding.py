"""Where a training's arrays lie: one mesh of devices, the state whole on each of them, a batch spread by its rows."""

import math
from typing import Any

import jax
import numpy as np

from dreamjax.train.state import path

#: Data-parallel; data-parallel with the parameters spread, too; within layers.
AXES = ("data", "fsdp", "tensor")
_ROWS = ("data", "fsdp")  # the axes over which the rows of a batch are spread


def make_mesh(shape: tuple[int, int, int] = (-1, 1, 1)) -> jax.sharding.Mesh:
  """A mesh of devices with the axes `AXES`.

  Args:
    shape: the size of each axis; one of them may be -1, and is then what makes the mesh hold all devices. A mesh that
      is smaller takes the first devices.

  Raises:
    ValueError: if there are too few devices, or the axis of -1 would not be a whole number.
  """
  devices = jax.device_count()
  known = math.prod(size for size in shape if size != -1)
  if -1 in shape:
    if devices % known:
      raise ValueError(f"{devices} devices do not fill a mesh of the shape {shape}")
    shape = tuple(devices // known if size == -1 else size for size in shape)
  return jax.make_mesh(shape, AXES, (jax.sharding.AxisType.Auto,) * len(AXES))


def replicate(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """The arrays, whole on every device. They may share their buffers with those that are given."""
  return jax.device_put(tree, jax.NamedSharding(mesh, jax.P()))


def shard_rows(batch: Any, mesh: jax.sharding.Mesh) -> Any:
  """A batch, its rows (the leading axis of every array) spread over the axes "data" and "fsdp".

  Raises:
    ValueError: if the rows cannot be divided evenly.
  """
  parts = math.prod(mesh.shape[axis] for axis in _ROWS)
  for keys, x in jax.tree_util.tree_leaves_with_path(batch):
    if np.ndim(x) == 0 or len(x) % parts:
      raise ValueError(
        f"the rows of a batch cannot be divided evenly over {parts} devices: {path(keys)!r} has the shape {np.shape(x)}"
      )
  return jax.device_put(batch, jax.NamedSharding(mesh, jax.P(_ROWS)))
