"""Where activations lie on a mesh of devices: their rows are spread over it, and only "tensor" divides channels.

Rows go into a program spread so. But where parameters are spread as well, the compiler likes to leave these where they
are and to spread channels in place of rows: it then sends the outputs of each layer around, which of Muse's two
transformers are 2.5 and 60 times what the parameters are. So layers say that their outputs' rows stay.
"""

import math
from typing import Any

from flax import linen as nn
import jax
from jaxtyping import Array

Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh  # an abstract one has no devices, only their number
_ANY = jax.P.UNCONSTRAINED


def row_axes(mesh: Mesh) -> tuple[str, ...]:
  """The axes of a mesh over which rows are spread."""
  return tuple(axis for axis in mesh.axis_names if axis != "tensor")


def row_parts(mesh: Mesh) -> int:
  """Over how many devices of a mesh rows are spread."""
  return math.prod(mesh.shape[axis] for axis in row_axes(mesh))


def row_place(mesh: Mesh, axis: int = 0) -> jax.NamedSharding:
  """Where arrays lie whose rows, along this axis, are spread over a mesh."""
  return jax.NamedSharding(mesh, jax.P(*[None] * axis, row_axes(mesh)))


def nearest(count: int, mesh: Mesh, beside: int = 0) -> str:
  """What numbers of rows next to `count` can be divided over a mesh, such as "8 or 12"; "" if `count` can.

  Args:
    count: how many rows there are to be.
    mesh: of devices.
    beside: rows that there are besides.
  """
  over = (count + beside) % (parts := row_parts(mesh))
  return " or ".join(str(size) for size in (count - over, count - over + parts) if size > 0) if over else ""


def rounded(count: int, mesh: Mesh | None) -> int:
  """The least number of rows, `count` or more, that can be divided over a mesh, if there is one."""
  parts = 1 if mesh is None else row_parts(mesh)
  return -(-count // parts) * parts


def spreads(x: Array, mesh: Mesh) -> bool:
  """Whether an array's rows can be divided over a mesh."""
  return x.shape[0] % row_parts(mesh) == 0


def keep_rows(next_function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
  """For `nn.intercept_methods`: of layers on a mesh that is set (`jax.set_mesh`), what comes out stays spread so."""
  y = next_function(*args, **kwargs)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or not isinstance(context.module, nn.Dense | nn.Conv):
    return y
  if context.method_name != "__call__" or y.ndim < 3 or not spreads(y, mesh):
    return y
  return jax.lax.with_sharding_constraint(y, jax.P(row_axes(mesh), *[_ANY] * (y.ndim - 1)))
