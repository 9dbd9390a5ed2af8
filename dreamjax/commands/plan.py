"""`dreamjax plan`: what a run will need of TPUs that are not there yet."""

import argparse
import json
import pathlib
import time
from typing import Any

import jax
import ml_collections
import rich.box
import rich.console
import rich.table

from dreamjax import generators
from dreamjax.commands import configs, devices
from dreamjax.generators import published
from dreamjax.methods import plans
from dreamjax.train import sharding, topologies


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser(
    "plan",
    help="compile a run for TPUs that are not there, and say what it needs",
    description="Compiles the updates and the drawings of a run of DreamBooth or StyleDrop for TPUs, from shapes "
    "alone, by the TPU's compiler, which pip install 'dreamjax[plan]' brings. Of each program it says what lies on a "
    "device and whether it fits, the operations beside those that the model asks for, the bytes that devices send "
    "each other, and how long the chip takes at least.",
  )  # fmt: skip
  parser.add_argument(
    "--config", required=True, metavar="FILE[:VARIANT]", help="the recipe; --config.KEY=VALUE changes it"
  )
  parser.add_argument("--topology", required=True, metavar="CHIP:AxB", help="such as v5e:4x4")
  parser.add_argument(
    "--model", metavar="NAME|DIR",
    help=f"the generator: {', '.join(published.PUBLISHED)}, whose sizes are known, or one that there is (default: "
    "that of these after which the config's variant is named)",
  )  # fmt: skip
  parser.add_argument("--only", metavar="PROGRAM", help="plan the programs in whose names this is")
  parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="write all figures there, as JSON")
  devices.add(parser, several=False, usual="fsdp=-1")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  chip = topologies.chip(args.topology)
  config = configs.load(args.config, args.overrides)
  variant = args.config.partition(":")[2]
  if args.model is None and variant not in published.PUBLISHED:
    raise ValueError(f"the config's variant {variant!r} does not say for which generator it is: say --model")
  generator, params = _describe(args.model or variant)
  found = topologies.devices(args.topology)
  mesh = sharding.make_mesh(args.mesh or (1, -1, 1), found)
  console = rich.console.Console()
  planned = []
  for program in plans.programs(generator, params, config, mesh):
    if args.only is None or args.only in program.name:
      console.print(f"compiling {program.name} ...", style="dim")
      planned.append(weigh(program, chip, mesh.size))
  if not planned:
    raise ValueError(f"no program of this run has {args.only!r} in its name")
  shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  console.print(_table(planned, f"{generator.name} on {args.topology} ({shape}), a device"))
  minutes = sum(one["runs"] * one["seconds"] for one in planned if one["fits"]) / 60
  left_out = "" if all(one["fits"] for one in planned) else ", nor what does not fit"
  console.print(f"at least {minutes:.1f} minutes, compilation not counted{left_out}")
  for one in planned:
    if not one["fits"]:
      console.print(f"{one['name']} does not fit: it needs {_gib(one['peak'])} of {_gib(chip.memory)} GiB")
      console.print(f"  {_advice(one, config, mesh, chip)}")
  if args.out is not None:
    whole = {
      "model": generator.name, "topology": args.topology, "mesh": dict(mesh.shape), "config": config.to_dict(),
      "chip": chip._asdict(), "programs": planned, "minutes": minutes,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(whole, indent=2, default=list) + "\n")


def weigh(program: plans.Program, chip: topologies.Chip, devices: int) -> dict[str, Any]:
  """Compiles a program and says what it asks of each of so many devices of a kind."""
  held = sum(program.held.values())
  known = {"name": program.name, "runs": program.runs, "rows": program.rows, "held": program.held}
  begun, load, needed = time.monotonic(), None, 0.0
  try:
    load = topologies.load(program.lower())
  except jax.errors.JaxRuntimeError as error:
    needed = topologies.exceeded(error)  # the program's arguments included, which lie there in any case
  known["compiled_in"] = time.monotonic() - begun
  if load is None:
    rest = {"activations": max(needed - held, 0.0), "peak": max(needed, held), "fits": False}
    return {**known, **rest, "flops": None, "model_flops": None, "sent": {}, "times": {}, "seconds": 0.0}
  activations = load.temporaries + load.results + load.code
  times = load.seconds(chip)
  return {
    **known, "activations": activations, "peak": held + activations, "fits": held + activations <= chip.memory,
    "flops": load.flops, "model_flops": program.flops() / devices, "traffic": load.traffic, "sent": load.sent,
    "times": times, "seconds": max(times.values()),
  }  # fmt: skip


def _describe(name: str) -> tuple[generators.Cascade | generators.Masked, Any]:
  """A generator and the shapes of its parameters."""
  if name in published.PUBLISHED:
    return published.describe(name)
  return generators.load(name, put=lambda _, array: jax.ShapeDtypeStruct(array.shape, array.dtype))


def _gib(size: float) -> str:
  return f"{size / topologies.GIB:.2f}"


def _table(planned: list[dict[str, Any]], title: str) -> rich.table.Table:
  caption = "GiB; operations beside the model's; MiB sent; seconds at least"
  table = rich.table.Table(title=title, caption=caption, box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
  table.add_column("program")
  for name in ("runs", "rows", "held", "acti-\nvations", "peak", "opera-\ntions", "sent", "com-\npute", "mem-\nory",
               "links"):  # fmt: skip
    table.add_column(name, justify="right", no_wrap=True)
  for one in planned:
    cells = [one["name"], str(one["runs"]), str(one["rows"]), _gib(sum(one["held"].values()))]
    cells += [_gib(one["activations"]), _gib(one["peak"])]
    if one["flops"] is not None:
      sent = sum(one["sent"].values()) / 2**20
      cells += [f"{one['flops'] / one['model_flops']:.2f}x", f"{sent:.0f}"]
      cells += [f"{one['times'][name]:.3f}" for name in ("compute", "memory", "collectives")]
    table.add_row(*cells, style=None if one["fits"] else "red")
  return table


def _advice(one: dict[str, Any], config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, chip: Any) -> str:
  """What would make a program smaller, by what most of its memory is."""
  held, wishes = sum(one["held"].values()), []
  if mesh.shape["fsdp"] < mesh.size and held > chip.memory / 2:
    wishes.append(f"--mesh fsdp={mesh.size} spreads parameters and optimizer over all devices")
  if held > chip.memory:
    wishes.append(f"what lies there takes {_gib(held)} GiB by itself: take a larger topology, or low-rank updates")
  else:
    if "update" in one["name"] and config.remat != "all":
      wishes.append("--config.remat=cheap computes anew what takes little time, and --config.remat=all everything")
    if config.dtype == "float32":
      wishes.append("--config.dtype=bfloat16 halves activations")
    wishes.append("fewer rows, or more pieces, make activations smaller in proportion")
  return "; ".join(wishes)
