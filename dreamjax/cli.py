"""The command line: `dreamjax <command>`. Only this module, `commands/`, `configs/` and `launch/` know flags."""

import argparse
from collections.abc import Sequence
import os
import re
import sys
import traceback

from etils import epy

from dreamjax.commands import demo, dreambooth, evaluate, export, feedback, plan, pretrain, sample, styledrop, toybox
from dreamjax.errors import UserError
from dreamjax.xla import prepare_xla

with epy.lazy_imports():
  import jax

  from dreamjax.parallel import processes

# Messages of JAX that say that another process can no longer be reached.
_LOST = re.compile("gloo|nccl|connection|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED", re.I)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="dreamjax", description="Personalised image generation in JAX.")
  parser.set_defaults(traceback=False)
  commands = parser.add_subparsers(dest="command", required=True)
  for command in (demo, dreambooth, styledrop, feedback, sample, export, evaluate, plan, pretrain, toybox):
    command.add(commands)
  for each in (parser, *commands.choices.values()):
    each.add_argument(
      "--traceback", action="store_true", default=argparse.SUPPRESS, help="show where in the code an error comes from"
    )
    each.set_defaults(error=each.error)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command and returns its exit status.

  Errors that a user can mend are one line on standard error and status 2: `UserError`, errors of files and folders, and
  a training whose loss is no longer finite. With --traceback they show their traceback, as all other errors always do.
  """
  args, rest = _parser().parse_known_args(argv)
  args.overrides = [argument for argument in rest if argument.startswith("--config.")]
  if unknown := [argument for argument in rest if argument not in args.overrides or not hasattr(args, "config")]:
    args.error(f"unrecognized arguments: {' '.join(unknown)}")
  prepare_xla()
  try:
    args.run(args)
  except processes.Preempted as error:
    print(f"dreamjax {args.command}: {error}; run this again to go on", file=sys.stderr)
    return processes.EXIT_RERUN
  except (UserError, OSError, FloatingPointError) as error:
    if args.traceback:
      traceback.print_exc()
    else:
      print(f"dreamjax {args.command}: {error}", file=sys.stderr)
    return _leave(2)
  except BaseException as error:
    if not processes.is_distributed():
      raise
    if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
      problem = "another process of this run is lost, or out of reach: run all of them again to go on"
      print(f"dreamjax {args.command}: {problem} ({str(error).splitlines()[0]})", file=sys.stderr)
      return _leave(processes.EXIT_RERUN)
    traceback.print_exc()
    return _leave(1)
  return 0


def _leave(status: int) -> int:
  """Returns the exit status; one of several processes exits at once, for a regular exit would wait for the others."""
  if processes.is_distributed():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status


if __name__ == "__main__":
  sys.exit(main())
