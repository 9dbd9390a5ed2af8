"""`dreamjax export`: writes a personalisation of a published generator for another program."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from etils import epy

with epy.lazy_imports():
  from dreamjax import generators
  from dreamjax.generators import interop

FORMATS = ("diffusers", "peft", "kohya")  # as `interop.FORMATS`


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("export", help="write a personalisation for another program")
  parser.add_argument("--theta", type=pathlib.Path, required=True, metavar="FILE", help="the personalisation")
  parser.add_argument("--model", required=True, metavar="DIR", help="the generator that it was trained for")
  parser.add_argument("--format", choices=FORMATS, default="diffusers", help="(%(default)s)")
  parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="for the files")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  generator, params = generators.load(args.model)
  made = generators.load_theta(args.theta, generator, params)
  for path in interop.save(args.out, args.format, generator, params, made):
    print(path)
