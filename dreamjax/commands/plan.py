"""`dreamjax plan`: what a run will need of TPUs that are not there yet."""

import argparse
from collections.abc import Iterator, Mapping
import functools
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
from dreamjax.methods import dreambooth, programs, styledrop
from dreamjax.parallel import sharding
from dreamjax.train import topologies

_WIDTH = 120  # columns of tables that are written to no terminal


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser(
    "plan",
    help="compile a run for TPUs that are not there, and say what it needs",
    description="Compiles the updates and the sampling of a run of DreamBooth or StyleDrop for TPUs, from shapes "
    "alone, by the TPU's compiler, which pip install 'dreamjax[plan]' brings. Of each program it says how much memory "
    "of a device it takes and whether it fits, its operations next to the model's own, the bytes that devices send "
    "each other, and how long the chip takes at least. Where one does not fit, it looks for a mesh or a batch with "
    "which it would, and compiles that.",
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
  mesh = _mesh(args.mesh or (1, -1, 1), found)
  method = dreambooth if isinstance(generator, generators.Cascade) else styledrop
  make = functools.partial(method.programs, generator, params)
  made = make(config, mesh)
  made = [program for program in made if args.only is None or args.only in program.name]
  if not made:
    raise ValueError(f"no program of this run has {args.only!r} in its name")
  console = rich.console.Console()
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
  say(f"{generator.name} on {args.topology}, {_told(mesh)}")
  for table in _tables(planned, chip):
    console.print(table)
  say(_published(args.topology, chip))
  for program, one in zip(made, planned, strict=True):
    for line in _verdict(program, one, chip, config):
      say(line, style=None if one["fits"] else "red")
  left_out = "" if all(one["fits"] for one in planned) else ", nor what does not fit"
  say(f"at least {minutes:.1f} minutes, compilation not counted{left_out}")
  if args.out is not None:
    whole = {
      "model": generator.name, "topology": args.topology, "mesh": dict(mesh.shape), "config": config.to_dict(),
      "chip": chip._asdict(), "programs": planned, "minutes": minutes,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(whole, indent=2, default=list) + "\n")


def weigh(program: programs.Program, chip: topologies.Chip, devices: int) -> dict[str, Any]:
  """Compiles a program and says what it asks of each of so many devices of a kind."""
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
  """What may fit in place of a program that does not, compiled; None if nothing is found."""
  found = programs.fitting(program, one["activations"], chip.memory, devices, *made_of)
  if found is None:
    return None
  changed, _, mesh = found
  return {"mesh": dict(mesh.shape), "fields": changed.fields, **weigh(changed, chip, mesh.size)}


def _mesh(shape: tuple[int, int, int], devices: list[Any]) -> jax.sharding.Mesh:
  try:
    return sharding.make_mesh(shape, devices)
  except NotImplementedError as error:
    words = _words(dict(zip(sharding.AXES, shape, strict=True)))
    raise ValueError(f"the chips of this topology cannot be arranged by {words}") from error


def _describe(name: str) -> tuple[generators.Cascade | generators.Masked, Any]:
  """A generator and the shapes of its parameters."""
  if name in published.PUBLISHED:
    return published.describe(name)
  return generators.load(name, put=lambda _, array: jax.ShapeDtypeStruct(array.shape, array.dtype))


def _gib(size: float) -> str:
  return f"{size / topologies.GIB:.2f}"


def _words(mesh: Mapping[str, int]) -> str:
  """A mesh as the argument of a command."""
  return f"--mesh {','.join(f'{axis}={size}' for axis, size in mesh.items() if size != 1) or 'data=1'}"


def _told(mesh: jax.sharding.Mesh) -> str:
  if mesh.size == 1:
    return "on one device, as a run computes without --mesh"
  return f"on {mesh.size} devices by {_words(mesh.shape)}, which the run has to be told as well"


def _published(topology: str, chip: topologies.Chip) -> str:
  return (
    f"a {topology.partition(':')[0]} chip: {chip.flops / 1e12:.0f} TFLOP/s, {_gib(chip.memory)} GiB, "
    f"{chip.bandwidth / 1e9:.0f} GB/s of memory, {chip.links / 1e9:.0f} GB/s of links ({chip.source})"
  )


def _tables(planned: list[dict[str, Any]], chip: topologies.Chip) -> Iterator[rich.table.Table]:
  """What lies on a device, what it computes, and what it sends."""
  names = dict.fromkeys(name for one in planned for name in one["held"])
  lies = _table(f"GiB on a device, of {_gib(chip.memory)}", "runs", "batch_size", *names, "activations", "peak", "")
  for one in planned:
    sizes = [_gib(one["held"][name]) if name in one["held"] else "" for name in names]
    told = [_gib(one["activations"]), _gib(one["peak"]), "fits" if one["fits"] else "does not fit"]
    lies.add_row(
      one["name"], str(one["runs"]), str(one["batch_size"]), *sizes, *told, style=None if one["fits"] else "red"
    )
  yield lies
  planned = [one for one in planned if one["flops"] is not None]
  if planned:
    yield _computed(planned)
  if kinds := dict.fromkeys(kind for one in planned for kind in one["sent"]):
    sends = _table("MB that a device sends in a run", *kinds, "all")
    for one in planned:
      sizes = [one["sent"].get(kind, 0.0) for kind in kinds]
      sends.add_row(one["name"], *(f"{size / 1e6:.1f}" for size in (*sizes, sum(sizes))))
    yield sends


def _computed(planned: list[dict[str, Any]]) -> rich.table.Table:
  columns = ["GFLOP", "model's\nGFLOP", "times", "memory\nGB", "compute\nms", "memory\nms", "links\nms", "step\nms"]
  table = _table("What a device does in a run, and how long it takes at least", *columns, "all runs\nminutes")
  for one in planned:
    flops, asked = one["flops"], one["model_flops"]
    times = [one["times"][name] for name in ("compute", "memory", "collectives")]
    cells = [f"{flops / 1e9:.1f}", f"{asked / 1e9:.1f}", f"{flops / asked:.2f}", f"{one['traffic'] / 1e9:.2f}"]
    cells += [f"{1000 * time:.2f}" for time in (*times, one["seconds"])]
    table.add_row(one["name"], *cells, f"{one['minutes']:.2f}")
  return table


def _table(title: str, *columns: str) -> rich.table.Table:
  table = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
  table.add_column("program")
  for name in columns:
    table.add_column(name, justify="right", no_wrap=True)
  return table


def _verdict(
  program: programs.Program, one: dict[str, Any], chip: topologies.Chip, config: ml_collections.ConfigDict
) -> Iterator[str]:
  """Whether a program fits, and what would."""
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
  """What else makes a program smaller."""
  if config.dtype == "float32":
    yield "--config.dtype=bfloat16"
  if "update" in program.name and config.remat != "all":
    yield "--config.remat=all"
  stage = next(iter(program.fields), "").rpartition(".")[0]
  if stage.startswith("stages."):
    yield f"--config.{stage}.accumulation_steps={2 * program.accumulation_steps}"
  yield "more chips"
