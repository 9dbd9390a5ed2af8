"""`--mesh` and `--hosts`: the devices on which a command computes, what lies where, and who else computes."""

import argparse
import re
from typing import Any

import jax

from dreamjax import generators
from dreamjax.parallel import processes, sharding

_SIZE = re.compile(r"-1|[1-9]\d*")
_HOSTS = re.compile(r"([^,\s]+:\d+),(\d+),(\d+)")


def add(parser: argparse.ArgumentParser, *, several: bool = True, usual: str = "one device") -> None:
  """Adds the arguments to a command's: `--mesh`, and `--hosts` where it can run as several processes."""
  parser.add_argument(
    "--mesh", type=_shape, metavar="AXIS=N[,AXIS=N]",
    help=f"devices along the axes {', '.join(sharding.AXES)}, such as data=-1 for all or data=2,fsdp=4: images of a "
    "batch are spread over data and fsdp, parameters over fsdp and tensor "
    f"(default: {usual})",
  )  # fmt: skip
  parser.set_defaults(hosts=None)
  if not several:
    return
  parser.add_argument(
    "--hosts", type=_processes, metavar="auto|HOST:PORT,COUNT,INDEX",
    help="run as one of several processes, which share the devices: auto takes the others from the environment, on "
    "Cloud TPU VMs and under Slurm; or say where the first one is, how many there are, and which this is, from 0. All "
    "of them have to see the folders, and --mesh is by default data=-1",
  )  # fmt: skip


def _processes(text: str) -> tuple[str, int, int]:
  if text == "auto":
    return "", 0, 0
  if not (found := _HOSTS.fullmatch(text)) or not int(found[3]) < int(found[2]):
    raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor HOST:PORT,COUNT,INDEX with INDEX below COUNT")
  return found[1], int(found[2]), int(found[3])


def _shape(text: str) -> tuple[int, ...]:
  sizes = dict.fromkeys(sharding.AXES, 1)
  for part in text.split(","):
    axis, _, size = part.partition("=")
    if axis not in sizes or not _SIZE.fullmatch(size):
      axes = ", ".join(sharding.AXES)
      raise argparse.ArgumentTypeError(f"{part!r} is not AXIS=N with an axis of {axes} and N of 1 or more, or -1")
    sizes[axis] = int(size)
  return tuple(sizes.values())


def mesh(args: argparse.Namespace) -> jax.sharding.Mesh:
  """The mesh that was asked for, behind meeting the other processes; by default of one device, with --hosts of all.

  Raises:
    ValueError: if the devices do not fill it, or it leaves devices of one of several processes out.
  """
  if args.hosts is not None:
    processes.join(*args.hosts)
  made = sharding.make_mesh(args.mesh or ((1, 1, 1) if args.hosts is None else (-1, 1, 1)))
  if processes.is_distributed() and made.size < jax.device_count():
    raise ValueError(f"a mesh of several processes holds all of their {jax.device_count()} devices, not {made.size}")
  return made


def say(*lines: str) -> None:
  """Prints lines, in the first of several processes."""
  if processes.is_main_process():
    print(*lines, sep="\n")


def load(
  name: str, mesh: jax.sharding.Mesh, *, trains: bool = False
) -> tuple[generators.Cascade | generators.Masked, dict[str, Any]]:
  """Loads a generator, whose parameters go to their devices as they are read.

  To train it, they stay in the host's memory, if that is not the devices' own: methods place what each stage needs.
  """
  if trains and mesh.devices.flat[0].platform != "cpu":
    return generators.load(name)
  return generators.load(name, put=sharding.param_putter(mesh))
