"""Where arrays lie on a mesh of devices: parameters and the optimizer's state by their names, a batch by its rows.

The mesh has three axes, any of which may be of one device. Rows of a batch are spread over "data" and "fsdp". A
parameter is whole along "data"; along "fsdp" each device holds a part of it, which is gathered where it is needed
(Rajbhandari et al., 1910.02054, stage 3); along "tensor", of two matrix products in a row the first is spread by its
outputs and the second by its inputs, so that devices need only add up what comes out of the second (Shoeybi et al.,
1909.08053, section 3). All networks name their layers alike, so that one table says which is which; of what is in no
such pair, each device along "tensor" holds a part, as along "fsdp".
"""

from collections.abc import Callable, Sequence
import math
import re
from typing import Any

import jax
import numpy as np

from dreamjax.data import hosts
from dreamjax.models.spread import Mesh, nearest, row_parts, row_place

#: Data-parallel; data-parallel with the parameters spread, too; within layers.
AXES = ("data", "fsdp", "tensor")
_SMALL = 2**14  # numbers; what is smaller is whole everywhere

# The layers of which "tensor" divides the outputs, and behind them those of which it divides the inputs.
_FIRST = (
  "query", "key", "value",  # of all attention
  "text_key", "text_value",  # and, of the U-Net of pixels, of what it sees of the text
  "hidden",  # of all feed-forward layers, and of what networks are told: times, sizes, levels
  "gate",  # T5's feed-forward layers have two
  "condition_hidden",  # of what U-ViT is told
  "conv_1",  # of the residual blocks of U-Nets, autoencoders and VQGANs
  "embedding", "film",  # what is added or applied to the outputs of conv_1, in U-Nets of latents and of pixels
)  # fmt: skip
_SECOND = ("out", "condition_out", "conv_2")

# The axis of a kernel, counted from its end, that is spread over "tensor".
_LAYERS = tuple(
  (re.compile(rf"(^|/)({'|'.join(names)})/kernel$"), axis) for names, axis in ((_FIRST, -1), (_SECOND, -2))
)


def path(keys: tuple[Any, ...]) -> str:
  """A leaf's path in a tree as one string, such as "encoder/block_0/kernel"."""
  return jax.tree_util.keystr(keys, simple=True, separator="/")


def make_mesh(
  shape: tuple[int, int, int] = (-1, 1, 1), devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """A mesh of devices with the axes `AXES`.

  Args:
    shape: the size of each axis; one of them may be -1, and is then what makes the mesh hold all devices. A mesh that
      is smaller takes the first devices.
    devices: by default all that JAX finds.

  Raises:
    ValueError: if there are too few devices, or the axis of -1 would not be a whole number.
  """
  count = jax.device_count() if devices is None else len(devices)
  known = math.prod(size for size in shape if size != -1)
  if -1 in shape:
    if count % known:
      raise ValueError(f"{count} devices do not fill a mesh of the shape {shape}")
    shape = tuple(count // known if size == -1 else size for size in shape)
  return jax.make_mesh(shape, AXES, (jax.sharding.AxisType.Auto,) * len(AXES), devices=devices)


def sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> jax.NamedSharding:
  """Where a parameter lies, or what the optimizer keeps of it.

  Args:
    name: its path, of which the end counts, such as "base/down_0/block_0/conv_1/kernel".
    shape: of it. An axis that cannot be divided evenly is not spread.
    mesh: of devices.
  """
  axes: list[str | tuple[str, ...] | None] = [None] * len(shape)
  if math.prod(shape) >= _SMALL:
    for pattern, axis in _LAYERS:
      if pattern.search(name) and shape[axis] % mesh.shape["tensor"] == 0:
        axes[axis] = "tensor"
    for spread in ("fsdp",) if any(axes) else (("fsdp", "tensor"), "fsdp"):
      parts = math.prod(mesh.shape[axis] for axis in ((spread,) if isinstance(spread, str) else spread))
      free = [i for i, size in enumerate(shape) if axes[i] is None and size % parts == 0]
      if free:
        axes[max(free, key=lambda i: shape[i])] = spread
        break
  return jax.NamedSharding(mesh, jax.P(*axes))


def shardings(tree: Any, mesh: Mesh) -> Any:
  """The `sharding` of each array of a tree, or of each shape."""
  return jax.tree_util.tree_map_with_path(lambda keys, x: sharding(path(keys), np.shape(x), mesh), tree)


def place(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """The arrays, each where its name says. They may share their buffers with those that are given."""
  return jax.tree.map(hosts.put, tree, shardings(tree, mesh))


def placer(mesh: jax.sharding.Mesh) -> Callable[[str, np.ndarray], jax.Array]:
  """put(path, array) that places a parameter, for `generators.load`."""
  return lambda name, array: hosts.put(array, sharding(name, array.shape, mesh))


def check_rows(field: str, rows: int, mesh: Mesh, prior: int = 0) -> None:
  """Says early whether the batches that a config asks for can be divided over a mesh.

  Args:
    field: what says how many rows a batch has, such as "stages.base.rows".
    rows: what it says.
    mesh: of devices.
    prior: rows that a batch has besides.

  Raises:
    ValueError: if they cannot; it names the field and the nearest sizes that would do.
  """
  if near := nearest(rows, mesh, prior):
    beside = f" with {prior} rows of the prior" if prior else ""
    parts = row_parts(mesh)
    raise ValueError(f"{field} is {rows}, which{beside} cannot be divided over {parts} devices: {near} would do")


def shard_rows(batch: Any, mesh: jax.sharding.Mesh) -> Any:
  """A batch, its rows (the leading axis of every array) spread over the axes "data" and "fsdp".

  Raises:
    ValueError: if the rows cannot be divided evenly.
  """
  parts = row_parts(mesh)
  for keys, x in jax.tree_util.tree_leaves_with_path(batch):
    if np.ndim(x) == 0 or len(x) % parts:
      raise ValueError(
        f"the rows of a batch cannot be divided evenly over {parts} devices: {path(keys)!r} has the shape {np.shape(x)}"
      )
  return jax.tree.map(lambda x: hosts.put(x, row_place(mesh)), batch)
