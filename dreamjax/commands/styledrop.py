"""`dreamjax styledrop`: teaches a masked-token generator a style from one image."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from etils import epy

from dreamjax.commands import configs, devices, dreambooth

with epy.lazy_imports():
  from dreamjax.commands import truth
  from dreamjax.eval import encoders
  from dreamjax.methods import styledrop

FEEDBACK = ("none", "clip", "human", "random")  # as `methods.styledrop.FEEDBACK`


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("styledrop", help="teach a generator of masked tokens a style from one image")
  parser.add_argument(
    "--images", type=pathlib.Path, required=True, metavar="DIR",
    help="the image, with its caption in metadata.jsonl or in a .txt file of the same name",
  )  # fmt: skip
  parser.add_argument(
    "--style", default="", help='the part of the caption that describes the style (default: its end, "in ... style")'
  )
  parser.add_argument("--model", default="toybox-muse", metavar="NAME|DIR", help="the generator (%(default)s)")
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="for logs, the pool and theta.safetensors")
  parser.add_argument("--feedback", choices=FEEDBACK, default="clip", help="who selects for round 2 (%(default)s)")
  parser.add_argument(
    "--config", metavar="FILE[:VARIANT]",
    help=f"the recipe (default: {dreambooth.MASKED}; for aMUSEd, {dreambooth.AMUSED}); --config.KEY=VALUE changes it",
  )  # fmt: skip
  parser.add_argument(
    "--encoders", type=pathlib.Path, metavar="DIR", help="with the CLIP that scores the pool (default: the toybox's)"
  )
  devices.add(parser)
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command, or resumes a run that was interrupted."""
  mesh = devices.mesh(args)
  generator, params = devices.load(args.model, mesh)
  config = configs.load(args.config or dreambooth.recipe(generator), args.overrides)

  def load() -> encoders.Encoders:
    return truth.toybox_encoders(mesh) if args.encoders is None else encoders.load(args.encoders, mesh=mesh)

  try:
    made = styledrop.styledrop(
      generator,
      params,
      args.images,
      workdir=args.workdir,
      style=args.style,
      feedback=args.feedback,
      config=config,
      encoders=load,
      mesh=mesh,
    )
  except styledrop.Undecided as waiting:
    devices.say(f"{args.workdir / 'round_1' / 'theta.safetensors'} holds the first round. {waiting}")
    return
  theta = args.workdir / "theta.safetensors"
  devices.say(
    f"{theta} holds the style {made.card.recipe['style']!r}. Try:",
    f'dreamjax sample --model {args.model} --theta {theta} --prompt "a boat on the beach" --out out',
  )
