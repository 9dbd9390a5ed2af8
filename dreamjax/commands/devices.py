"""`--mesh` and `--hosts`: the devices that a command computes on, and the processes that it shares them with."""

from __future__ import annotations

import argparse
import re
from typing import Any

from etils import epy

from dreamjax.errors import UserError, user_errors

with epy.lazy_imports():
  import jax

  from dreamjax import generators
  from dreamjax.parallel import processes, sharding

AXES = ("data", "fsdp", "tensor")  # of the mesh, as `sharding.AXES`
_SIZE = re.compile(r"-1|[1-9]\d*")
_HOSTS = re.compile(r"([^,\s]+:\d+),(\d+),(\d+)")


def add(parser: argparse.ArgumentParser, *, several: bool = True, usual: str = "one device") -> None:
  """Adds the arguments to a command's parser: `--mesh`, and `--hosts` where it can run as several processes."""
  parser.add_argument(
    "--mesh", type=_shape, metavar="AXIS=N[,AXIS=N]",
    help=f"devices along the axes {', '.join(AXES)}, such as data=-1 for all or data=2,fsdp=4: the images of a batch "
    f"are sharded over data and fsdp, parameters over fsdp and tensor (default: {usual})",
  )  # fmt: skip
  parser.set_defaults(hosts=None)
  if not several:
    return
  parser.add_argument(
    "--hosts", type=_processes, metavar="auto|HOST:PORT,COUNT,INDEX",
    help="run as one of several processes that share the devices: auto finds the others by the environment, on Cloud "
    "TPU VMs and under Slurm; or give the address of the first one, how many there are, and the index of this one, "
    "from 0. All of them must see the folders, and --mesh is by default data=-1",
  )  # fmt: skip


def _processes(text: str) -> tuple[str, int, int]:
  if text == "auto":
    return "", 0, 0
  if not (found := _HOSTS.fullmatch(text)) or not int(found[3]) < int(found[2]):
    raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor HOST:PORT,COUNT,INDEX with INDEX below COUNT")
  return found[1], int(found[2]), int(found[3])


def _shape(text: str) -> tuple[int, ...]:
  sizes = dict.fromkeys(AXES, 1)
  for part in text.split(","):
    axis, _, size = part.partition("=")
    if axis not in sizes or not _SIZE.fullmatch(size):
      axes = ", ".join(AXES)
      raise argparse.ArgumentTypeError(f"{part!r} is not AXIS=N with an axis of {axes} and N of 1 or more, or -1")
    sizes[axis] = int(size)
  return tuple(sizes.values())


def mesh(args: argparse.Namespace) -> jax.sharding.Mesh:
  """Joins the other processes and returns the mesh of the arguments: by default one device, with --hosts all of them.

  Raises:
    UserError: if the devices do not fill the mesh, the mesh leaves out devices of one of several processes, or this
      process cannot join the others.
  """
  with user_errors():
    if args.hosts is not None:
      processes.join(*args.hosts)
    made = sharding.make_mesh(args.mesh or ((1, 1, 1) if args.hosts is None else (-1, 1, 1)))
  if processes.is_distributed() and made.size < jax.device_count():
    raise UserError(f"a mesh of several processes holds all of their {jax.device_count()} devices, not {made.size}")
  return made


def say(*lines: str) -> None:
  """Prints lines, in the first of several processes."""
  if processes.is_main_process():
    print(*lines, sep="\n")


def load(name: str, mesh: jax.sharding.Mesh) -> tuple[generators.Cascade | generators.Masked, dict[str, Any]]:
  """Loads a generator; its parameters are moved to the devices of the mesh as they are read."""
  return generators.load(name, put=sharding.param_putter(mesh))
