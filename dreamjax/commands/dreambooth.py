"""`dreamjax dreambooth`: teaches a generator one subject from a few photos."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from etils import epy

from dreamjax.commands import configs, devices

with epy.lazy_imports():
  from dreamjax import generators
  from dreamjax.generators import pipelines
  from dreamjax.methods import dreambooth, styledrop

CASCADE, SD, SDXL, IF = (f"configs/dreambooth.py:{name}" for name in ("toybox", "sd15", "sdxl", "if-xl"))
MASKED, AMUSED = (f"configs/styledrop.py:{name}" for name in ("toybox", "amused512"))


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("dreambooth", help="teach a generator one subject from a few photos")
  parser.add_argument("--images", type=pathlib.Path, required=True, metavar="DIR", help="photos of the subject")
  parser.add_argument("--class-noun", required=True, help='the class of the subject, such as "dog"')
  parser.add_argument("--model", default="toybox-cascade", metavar="NAME|DIR", help="the generator (%(default)s)")
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="for logs, checkpoints and theta.safetensors")
  parser.add_argument(
    "--config",
    metavar="FILE[:VARIANT]",
    help=f"the recipe (default: {CASCADE}; for Stable Diffusion, {SD} or {SDXL}; for DeepFloyd IF, {IF}; for "
    f"generators of masked tokens, {MASKED}, or {AMUSED}); --config.KEY=VALUE changes it",
  )
  parser.add_argument(
    "--cache", type=pathlib.Path, metavar="DIR", help="for a cascade's prior sets (default: in the workdir)"
  )
  devices.add(parser)
  parser.set_defaults(run=run)


def recipe(generator: generators.Cascade | generators.Masked) -> str:
  """Returns the default config of a generator."""
  if isinstance(generator, generators.Masked):
    return AMUSED if pipelines.writes(generator) else MASKED
  if generator.autoencoder is not None:
    return SD if generator.stages[0].sizes is None else SDXL
  return IF if pipelines.is_if(generator) else CASCADE


def run(args: argparse.Namespace) -> None:
  """Runs the command, or resumes a run that was interrupted."""
  mesh = devices.mesh(args)
  generator, params = devices.load(args.model, mesh)
  config = configs.load(args.config or recipe(generator), args.overrides)
  if isinstance(generator, generators.Masked):
    made = styledrop.subject(
      generator, params, args.images, args.class_noun, workdir=args.workdir, config=config, mesh=mesh
    )
  else:
    made = dreambooth.dreambooth(
      generator,
      params,
      args.images,
      args.class_noun,
      workdir=args.workdir,
      config=config,
      cache=args.cache,
      mesh=mesh,
    )
  theta, card = args.workdir / "theta.safetensors", made.card
  devices.say(
    f"[V] is {card.identifier!r}; {theta} holds {', '.join(made.thetas)}. Try:",
    f'dreamjax sample --model {args.model} --theta {theta} --prompt "a [V] {card.class_noun} on the beach" --out out',
  )
