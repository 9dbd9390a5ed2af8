"""`--mesh`: the devices on which a command computes, and what lies where."""

import argparse
import re
from typing import Any

import jax

from dreamjax import generators
from dreamjax.train import sharding

_SIZE = re.compile(r"-1|[1-9]\d*")


def add(parser: argparse.ArgumentParser) -> None:
  """Adds the argument to a command's."""
  parser.add_argument(
    "--mesh", type=_shape, metavar="AXIS=N[,AXIS=N]",
    help=f"devices along the axes {', '.join(sharding.AXES)}, such as data=-1 for all or data=2,fsdp=4: pictures of a "
    "batch are spread over data and fsdp, parameters over fsdp and tensor (default: one device)",
  )  # fmt: skip


def _shape(text: str) -> tuple[int, ...]:
  sizes = dict.fromkeys(sharding.AXES, 1)
  for part in text.split(","):
    axis, _, size = part.partition("=")
    if axis not in sizes or not _SIZE.fullmatch(size):
      axes = ", ".join(sharding.AXES)
      raise argparse.ArgumentTypeError(f"{part!r} is not AXIS=N with an axis of {axes} and N of 1 or more, or -1")
    sizes[axis] = int(size)
  return tuple(sizes.values())


def mesh(args: argparse.Namespace) -> jax.sharding.Mesh | None:
  """The mesh that was asked for; ValueError if the devices do not fill it."""
  return None if args.mesh is None else sharding.make_mesh(args.mesh)


def load(name: str, mesh: jax.sharding.Mesh | None) -> tuple[generators.Cascade | generators.Masked, dict[str, Any]]:
  """A generator whose parameters go to their devices as they are read."""
  return generators.load(name, put=generators.to_device if mesh is None else sharding.placer(mesh))
