"""Shardings on a mesh of devices: of parameters and optimizer states by their paths, of batches by their examples.

The mesh has three axes, each of which may have size 1. The examples of a batch are sharded over "data" and "fsdp". A
parameter is replicated along "data"; along "fsdp" each device holds a shard, which is gathered where it is needed
(Rajbhandari et al., 1910.02054, stage 3); along "tensor", of two consecutive matrix products the first is sharded by
its outputs and the second by its inputs, so that devices only need to add up the outputs of the second (Shoeybi et al.,
1909.08053, section 3). All networks name their layers alike, so one table says which layer is of which kind; parameters
outside such pairs are sharded along "tensor" as along "fsdp".

Activations are sharded by their examples; only "tensor" divides channels. Examples go into a program sharded so, but
where parameters are sharded as well, the compiler likes to leave these where they are and to shard channels instead of
examples: it then sends the outputs of every layer between devices, which for Muse's two transformers is 2.5 and 60
times the size of the parameters. `keep_batch_sharded` therefore constrains the outputs of layers.
"""

from collections.abc import Callable, Sequence
import contextlib
import math
import re
from typing import Any

from flax import linen as nn
import jax
from jaxtyping import Array
import numpy as np

from dreamjax.errors import UserError
from dreamjax.parallel import processes

Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh  # an abstract mesh has no devices, only their number

#: Data parallelism; data parallelism with sharded parameters; tensor parallelism within layers.
AXES = ("data", "fsdp", "tensor")
_MIN_SHARDED = 2**14  # arrays with fewer elements are replicated
_ANY = jax.P.UNCONSTRAINED

# The layers whose outputs are divided over "tensor", and the layers after them whose inputs are.
_COLUMN_PARALLEL = (
  "query", "key", "value",  # of all attention
  "text_key", "text_value",  # of the pixel U-Net's attention to the text
  "hidden",  # of all feed-forward layers, and of the embeddings of times, sizes and augmentation levels
  "gate",  # of T5's gated feed-forward layers
  "condition_hidden",  # of U-ViT's conditioning
  "conv_1",  # of the residual blocks of U-Nets, autoencoders and VQGANs
  "embedding", "film",  # what is added to the outputs of conv_1 in latent U-Nets, or modulates them in pixel U-Nets
)  # fmt: skip
_ROW_PARALLEL = ("out", "condition_out", "conv_2")

# The axis of a kernel, counted from its end, that is sharded over "tensor".
_KERNEL_AXES = tuple(
  (re.compile(rf"(^|/)({'|'.join(names)})/kernel$"), axis)
  for names, axis in ((_COLUMN_PARALLEL, -1), (_ROW_PARALLEL, -2))
)


def path_name(keys: tuple[Any, ...]) -> str:
  """The path of a leaf in a pytree as one string, such as "encoder/block_0/kernel"."""
  return jax.tree_util.keystr(keys, simple=True, separator="/")


def make_mesh(
  shape: tuple[int, int, int] = (-1, 1, 1), devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """A mesh of devices with the axes `AXES`.

  Args:
    shape: the size of each axis; one of them may be -1, and is inferred so that the mesh holds all devices. A mesh with
      fewer devices takes the first ones.
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


def use_mesh(mesh: jax.sharding.Mesh | None) -> contextlib.AbstractContextManager[Any]:
  """The context in which a program over a mesh is called, so that networks know its axes; None for no mesh."""
  return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def param_sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> jax.NamedSharding:
  """The sharding of a parameter, or of what the optimizer keeps of it.

  Args:
    name: its path, of which the end counts, such as "base/down_0/block_0/conv_1/kernel".
    shape: of the array. An axis that does not divide evenly is not sharded.
    mesh: of devices.
  """
  axes: list[str | tuple[str, ...] | None] = [None] * len(shape)
  if math.prod(shape) >= _MIN_SHARDED:
    for pattern, axis in _KERNEL_AXES:
      if pattern.search(name) and shape[axis] % mesh.shape["tensor"] == 0:
        axes[axis] = "tensor"
    for mesh_axes in ("fsdp",) if any(axes) else (("fsdp", "tensor"), "fsdp"):
      shards = math.prod(mesh.shape[axis] for axis in ((mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes))
      free = [i for i, size in enumerate(shape) if axes[i] is None and size % shards == 0]
      if free:
        axes[max(free, key=lambda i: shape[i])] = mesh_axes
        break
  return jax.NamedSharding(mesh, jax.P(*axes))


def param_shardings(tree: Any, mesh: Mesh) -> Any:
  """The `param_sharding` of each array, or each shape, of a pytree."""
  return jax.tree_util.tree_map_with_path(lambda keys, x: param_sharding(path_name(keys), np.shape(x), mesh), tree)


def shard_params(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """The arrays of a pytree, moved to their `param_sharding`. They may share their buffers with those passed in."""
  return jax.tree.map(processes.put, tree, param_shardings(tree, mesh))


def param_putter(mesh: jax.sharding.Mesh) -> Callable[[str, np.ndarray], jax.Array]:
  """put(path, array), which moves one parameter to its sharding, for `generators.load`."""
  return lambda name, array: processes.put(array, param_sharding(name, array.shape, mesh))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
  """The axes of a mesh over which the examples of a batch are sharded."""
  return tuple(axis for axis in mesh.axis_names if axis != "tensor")


def batch_shards(mesh: Mesh) -> int:
  """The number of shards of a batch."""
  return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def batch_sharding(mesh: Mesh, axis: int = 0) -> jax.NamedSharding:
  """The sharding of arrays whose examples are counted by this axis."""
  return jax.NamedSharding(mesh, jax.P(*[None] * axis, batch_axes(mesh)))


def nearest_batch_sizes(size: int, mesh: Mesh, extra: int = 0) -> str:
  """The batch sizes next to `size` that divide over a mesh, such as "8 or 12"; "" if `size` itself does.

  Args:
    size: of the batch.
    mesh: of devices.
    extra: examples that each batch has besides.
  """
  over = (size + extra) % (shards := batch_shards(mesh))
  return " or ".join(str(near) for near in (size - over, size - over + shards) if near > 0) if over else ""


def round_up_batch_size(size: int, mesh: Mesh | None) -> int:
  """The smallest batch size from `size` on that divides over a mesh."""
  shards = 1 if mesh is None else batch_shards(mesh)
  return -(-size // shards) * shards


def check_batch_size(field: str, size: int, mesh: Mesh, extra: int = 0) -> None:
  """Checks early whether the batches that a config asks for divide over a mesh.

  Args:
    field: of the config, such as "stages.base.batch_size".
    size: its value.
    mesh: of devices.
    extra: prior examples that each batch has besides.

  Raises:
    UserError: if they do not divide; the message names the field and the nearest sizes that do.
  """
  if near := nearest_batch_sizes(size, mesh, extra):
    with_prior = f" with {extra} prior examples" if extra else ""
    shards = batch_shards(mesh)
    raise UserError(f"{field} is {size}, which{with_prior} does not divide over {shards} devices: {near} would do")


def divides_over(x: Array, mesh: Mesh) -> bool:
  """Whether the examples of an array, its leading axis, divide over a mesh."""
  return x.shape[0] % batch_shards(mesh) == 0


def shard_batch(batch: Any, mesh: jax.sharding.Mesh | None, axis: int = 0) -> Any:
  """A batch whose examples are sharded over the axes "data" and "fsdp"; without a mesh the batch as it is.

  Args:
    batch: a pytree of arrays.
    mesh: of devices.
    axis: the one that counts examples, in every array.

  Raises:
    ValueError: if the examples do not divide evenly.
  """
  if mesh is None:
    return batch
  shards = batch_shards(mesh)
  for keys, x in jax.tree_util.tree_leaves_with_path(batch):
    if np.ndim(x) <= axis or x.shape[axis] % shards:
      problem = f"{path_name(keys)!r} has the shape {np.shape(x)}"
      raise ValueError(f"the examples of a batch do not divide evenly over {shards} devices: {problem}")
  return jax.tree.map(lambda x: processes.put(x, batch_sharding(mesh, axis)), batch)


def keep_batch_sharded(next_function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
  """An interceptor for `nn.intercept_methods`: under `jax.set_mesh`, outputs of layers stay sharded by examples."""
  y = next_function(*args, **kwargs)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or not isinstance(context.module, nn.Dense | nn.Conv):
    return y
  if context.method_name != "__call__" or y.ndim < 3 or not divides_over(y, mesh):
    return y
  return jax.lax.with_sharding_constraint(y, jax.P(batch_axes(mesh), *[_ANY] * (y.ndim - 1)))
