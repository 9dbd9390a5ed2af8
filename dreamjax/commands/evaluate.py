"""`dreamjax evaluate`: scores generated images against real ones."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from etils import epy

from dreamjax.commands import devices

with epy.lazy_imports():
  import rich

  from dreamjax.commands import truth
  from dreamjax.eval import encoders, evaluate, report


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("evaluate", help="score generated images against real ones")
  folder = {"type": pathlib.Path, "metavar": "DIR"}
  parser.add_argument("--generated", **folder, required=True, help="the images to score; one sub-folder a subject")
  parser.add_argument("--reference", **folder, required=True, help="the real images, of other subjects too")
  parser.add_argument("--out", **folder, required=True, help="folder for scores.json and sheet.html")
  parser.add_argument("--encoders", default="toybox", metavar="toybox|DIR", help="folder with clip/ and dino/")
  parser.add_argument("--prompts", type=pathlib.Path, metavar="FILE", help="one prompt a line, in the images' order")
  parser.add_argument("--identifier", help="removed from the prompts before CLIP reads them (default: kept)")
  parser.add_argument("--prior", **folder, help="images of the class by the personalised models, for PRES")
  devices.add(parser, several=False)
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  named, mesh = args.encoders == "toybox", devices.mesh(args)
  networks = truth.toybox_encoders(mesh) if named else encoders.load(pathlib.Path(args.encoders), mesh=mesh)
  result = evaluate.evaluate(
    args.generated,
    args.reference,
    networks,
    prompts=args.prompts,
    identifier=args.identifier,
    prior=args.prior,
  )
  report.write(result, args.out)
  rich.print(report.table(result))
  print(f"scores.json and sheet.html, the worst images first, are in {args.out}")
