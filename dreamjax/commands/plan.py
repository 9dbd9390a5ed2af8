"""`dreamjax plan`: compiles a run for TPUs that this machine does not have, and says what it needs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
import functools
import json
import pathlib
import time
from typing import Any

from etils import epy

from dreamjax.commands import configs, devices
from dreamjax.errors import UserError, user_errors

with epy.lazy_imports():
  import jax
  import ml_collections
  from rich import box as boxes
  from rich import console as consoles
  from rich import table as tables

  from dreamjax import generators
  from dreamjax.generators import published
  from dreamjax.methods import dreambooth, programs, styledrop
  from dreamjax.parallel import sharding
  from dreamjax.train import topologies

PUBLISHED = ("if-xl", "sd15", "sdxl", "muse-3b", "amused512")  # as `generators.published.PUBLISHED`
_WIDTH = 120  # columns of tables that are not written to a terminal


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser(
    "plan",
    help="compile a run for TPUs that this machine does not have, and say what it needs",
    description="Compiles the updates and the sampling of a run of DreamBooth or StyleDrop for TPUs from shapes alone, "
    "with the TPU compiler, which pip install 'dreamjax[plan]' installs. For each program it prints the memory of a "
    "device by part and whether the program fits, its operations compared with the model's own, the bytes that devices "
    "send each other, and the least time the chip takes. Where one does not fit, it looks for a mesh or a batch size "
    "with which it would, and compiles that.",
  )  # fmt: skip
  parser.add_argument(
    "--config", required=True, metavar="FILE[:VARIANT]", help="the recipe; --config.KEY=VALUE changes it"
  )
  parser.add_argument("--topology", required=True, metavar="CHIP:AxB", help="such as v5e:4x4")
  parser.add_argument(
    "--model", metavar="NAME|DIR",
    help=f"the generator: {', '.join(PUBLISHED)}, whose shapes are known without their weights, or any other (default: "
    "the one of these that the config's variant is named after)",
  )  # fmt: skip
  parser.add_argument("--only", metavar="PROGRAM", help="plan only programs whose names contain this")
  parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="write all figures to this file, as JSON")
  devices.add(parser, several=False, usual="fsdp=-1")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  chip = topologies.chip(args.topology)
  config = configs.load(args.config, args.overrides)
  variant = args.config.partition(":")[2]
  if args.model is None and variant not in published.PUBLISHED:
    raise UserError(f"the config's variant {variant!r} is not named after a generator: pass --model")
  generator, params = _describe(args.model or variant)
  found = topologies.devices(args.topology)
  mesh = _mesh(args.mesh or (1, -1, 1), found)
  method = dreambooth if isinstance(generator, generators.Cascade) else styledrop
  make = functools.partial(method.programs, generator, params)
  made = make(config, mesh)
  made = [program for program in made if args.only is None or args.only in program.name]
  if not made:
    raise UserError(f"no program of this run has {args.only!r} in its name")
  console = consoles.Console()
  if not console.is_terminal:
    console.width = _WIDTH
  say = functools.partial(console.print, soft_wrap=True, markup=False, highlight=False)
  planned = []
  for program in made:
    say(f"compiling {program.name} ...", style="dim")
    one = weigh(program, chip, mesh.size)
    if not one["fits"]:
      say("  it does not fit: looking for what would ...", style="dim")
      one["instead"] = _instead(program, one, chip, found, config, make)
    planned.append(one)
  minutes = sum(one["minutes"] for one in planned)
  say(f"{generator.name} on {args.topology}, {_described(mesh)}")
  for table in _tables(planned, chip):
    console.print(table)
  say(_published(args.topology, chip))
  for program, one in zip(made, planned, strict=True):
    for line in _verdict(program, one, chip, config):
      say(line, style=None if one["fits"] else "red")
  left_out = "" if all(one["fits"] for one in planned) else ", nor programs that do not fit"
  say(f"at least {minutes:.1f} minutes, compilation not counted{left_out}")
  if args.out is not None:
    whole = {
      "model": generator.name, "topology": args.topology, "mesh": dict(mesh.shape), "config": config.to_dict(),
      "chip": chip._asdict(), "programs": planned, "minutes": minutes,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(whole, indent=2, default=list) + "\n")


def weigh(program: programs.Program, chip: topologies.Chip, devices: int) -> dict[str, Any]:
  """Compiles a program and returns what it needs of each of `devices` chips: memory, operations, bytes sent, times."""
  held = sum(program.held.values())
  known = {"name": program.name, "runs": program.runs, "batch_size": program.batch_size, "held": program.held}
  begun, load, needed = time.monotonic(), None, 0.0
  try:
    load = topologies.load(program.lower())
  except jax.errors.JaxRuntimeError as error:
    needed = topologies.exceeded(error)
  known["compiled_in"] = time.monotonic() - begun
  if load is None:
    activations = max(needed - program.arguments, 0.0)
    known |= {"activations": activations, "peak": held + activations, "fits": False, "flops": None, "model_flops": None}
    return known | {"sent": {}, "times": {}, "seconds": 0.0, "minutes": 0.0}
  activations = load.temporaries + load.results + load.code
  fits, times = held + activations <= chip.memory, load.seconds(chip)
  seconds = max(times.values())
  return known | {
    "activations": activations, "peak": held + activations, "fits": fits, "flops": load.flops,
    "model_flops": program.flops() / devices, "traffic": load.traffic, "sent": load.sent, "times": times,
    "seconds": seconds, "minutes": program.runs * seconds / 60 if fits else 0.0,
  }  # fmt: skip


def _instead(
  program: programs.Program, one: dict[str, Any], chip: topologies.Chip, devices: list[Any], *made_of: Any
) -> dict[str, Any] | None:
  """Compiles the mesh or batch size with which a program that does not fit may fit; None if none is found."""
  found = programs.fitting(program, one["activations"], chip.memory, devices, *made_of)
  if found is None:
    return None
  changed, _, mesh = found
  return {"mesh": dict(mesh.shape), "fields": changed.fields, **weigh(changed, chip, mesh.size)}


def _mesh(shape: tuple[int, int, int], devices: list[Any]) -> jax.sharding.Mesh:
  try:
    with user_errors():
      return sharding.make_mesh(shape, devices)
  except NotImplementedError as error:
    words = _words(dict(zip(sharding.AXES, shape, strict=True)))
    raise UserError(f"the chips of this topology cannot be arranged by {words}") from error


def _describe(name: str) -> tuple[generators.Cascade | generators.Masked, Any]:
  """Returns a generator and the shapes of its parameters."""
  if name in published.PUBLISHED:
    return published.describe(name)
  return generators.load(name, put=lambda _, array: jax.ShapeDtypeStruct(array.shape, array.dtype))


def _gib(size: float) -> str:
  return f"{size / topologies.GIB:.2f}"


def _words(mesh: Mapping[str, int]) -> str:
  """Returns a mesh as the argument of a command."""
  return f"--mesh {','.join(f'{axis}={size}' for axis, size in mesh.items() if size != 1) or 'data=1'}"


def _described(mesh: jax.sharding.Mesh) -> str:
  if mesh.size == 1:
    return "on one device, the default of a run"
  return f"on {mesh.size} devices by {_words(mesh.shape)}, which the run must be passed as well"


def _published(topology: str, chip: topologies.Chip) -> str:
  return (
    f"a {topology.partition(':')[0]} chip: {chip.flops / 1e12:.0f} TFLOP/s, {_gib(chip.memory)} GiB, "
    f"{chip.bandwidth / 1e9:.0f} GB/s of memory, {chip.links / 1e9:.0f} GB/s of links ({chip.source})"
  )


def _tables(planned: list[dict[str, Any]], chip: topologies.Chip) -> Iterator[tables.Table]:
  """Yields the tables of a device's memory, of what it computes, and of what it sends."""
  names = dict.fromkeys(name for one in planned for name in one["held"])
  memory = _table(f"GiB on a device, of {_gib(chip.memory)}", "runs", "batch_size", *names, "activations", "peak", "")
  for one in planned:
    sizes = [_gib(one["held"][name]) if name in one["held"] else "" for name in names]
    total = [_gib(one["activations"]), _gib(one["peak"]), "fits" if one["fits"] else "does not fit"]
    memory.add_row(
      one["name"], str(one["runs"]), str(one["batch_size"]), *sizes, *total, style=None if one["fits"] else "red"
    )
  yield memory
  planned = [one for one in planned if one["flops"] is not None]
  if planned:
    yield _computed(planned)
  if kinds := dict.fromkeys(kind for one in planned for kind in one["sent"]):
    sends = _table("MB that a device sends in a run", *kinds, "all")
    for one in planned:
      sizes = [one["sent"].get(kind, 0.0) for kind in kinds]
      sends.add_row(one["name"], *(f"{size / 1e6:.1f}" for size in (*sizes, sum(sizes))))
    yield sends


def _computed(planned: list[dict[str, Any]]) -> tables.Table:
  columns = ["GFLOP", "model's\nGFLOP", "times", "memory\nGB", "compute\nms", "memory\nms", "links\nms", "step\nms"]
  table = _table("What a device does in a run, and how long it takes at least", *columns, "all runs\nminutes")
  for one in planned:
    flops, own = one["flops"], one["model_flops"]
    times = [one["times"][name] for name in ("compute", "memory", "collectives")]
    cells = [f"{flops / 1e9:.1f}", f"{own / 1e9:.1f}", f"{flops / own:.2f}", f"{one['traffic'] / 1e9:.2f}"]
    cells += [f"{1000 * time:.2f}" for time in (*times, one["seconds"])]
    table.add_row(one["name"], *cells, f"{one['minutes']:.2f}")
  return table


def _table(title: str, *columns: str) -> tables.Table:
  table = tables.Table(title=title, title_justify="left", box=boxes.SIMPLE_HEAD, padding=(0, 1, 0, 0))
  table.add_column("program")
  for name in columns:
    table.add_column(name, justify="right", no_wrap=True)
  return table


def _verdict(
  program: programs.Program, one: dict[str, Any], chip: topologies.Chip, config: ml_collections.ConfigDict
) -> Iterator[str]:
  """Yields lines that say whether a program fits, and what would."""
  if one["fits"]:
    yield f"{one['name']} fits: {_gib(one['peak'])} of {_gib(chip.memory)} GiB"
    return
  yield f"{one['name']} does not fit: it needs {_gib(one['peak'])} of {_gib(chip.memory)} GiB"
  if (instead := one["instead"]) is not None:
    changed = [f"--config.{key}={value}" for key, value in instead["fields"].items() if value != program.fields[key]]
    words, needs = " ".join([_words(instead["mesh"]), *changed]), f"{_gib(instead['peak'])} GiB"
    if instead["fits"]:
      yield f"  it would fit, for that was compiled, by {words}: {needs}"
      return
    yield f"  nor does it fit by {words}, which was compiled: {needs}"
  yield "  no mesh of these chips and no smaller batch was found by which it would"
  yield f"  not tried: {', '.join(_untried(program, config))}"


def _untried(program: programs.Program, config: ml_collections.ConfigDict) -> Iterator[str]:
  """Yields arguments, and other means, that make a program smaller."""
  if config.dtype == "float32":
    yield "--config.dtype=bfloat16"
  if "update" in program.name and config.remat != "all":
    yield "--config.remat=all"
  stage = next(iter(program.fields), "").rpartition(".")[0]
  if stage.startswith("stages."):
    yield f"--config.{stage}.accumulation_steps={2 * program.accumulation_steps}"
  yield "more chips"
