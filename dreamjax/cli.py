"""The command line: `dreamjax <command>`. With `configs/` and `launch/`, the only place that knows flags."""

import argparse
from collections.abc import Sequence
import contextlib
import os
import pathlib
import re
import sys
import traceback

import jax
import jaxlib.version

from dreamjax.commands import demo, dreambooth, evaluate, export, feedback, plan, pretrain, sample, styledrop, toybox
from dreamjax.parallel import processes

# What JAX says where it no longer hears of another process.
_LOST = re.compile("gloo|nccl|connection|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED", re.I)
_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="dreamjax", description="Personalised image generation in JAX.")
  commands = parser.add_subparsers(dest="command", required=True)
  for command in (demo, dreambooth, styledrop, feedback, sample, export, evaluate, plan, pretrain, toybox):
    command.add(commands)
  return parser


def prepare_xla() -> None:
  """Sets up what XLA reads when it starts, for a program that has not computed anything yet.

  Compiled programs are kept between runs, unless JAX was told where to: small ones, too, of which `dreamjax evaluate`
  has some 160, a quarter of its time. On a CPU, jaxlib 0.10 hands convolutions and products to YNNPACK, with which an
  update of the toybox's cascade takes a fifth longer (base) or half as long again (super-resolution), so that is turned
  off, unless XLA_FLAGS say something of it. With AVX-512 it is convolutions and sums that are handed over: there are
  then 1.3 (base) and 1.2 to 1.4 times (super-resolution) as many updates a second as without YNNPACK. A later jaxlib
  may do better, or stop at a flag that it does not know.
  """
  if jax.config.jax_compilation_cache_dir is None:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "dreamjax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  flags = os.environ.get("XLA_FLAGS", "")
  if jaxlib.version.__version_info__[:2] == (0, 10) and _YNNPACK not in flags:
    handed = "individual_convolution,reduce" if _has_avx512() else ""
    os.environ["XLA_FLAGS"] = f"{flags} {_YNNPACK}={handed}".strip()


def _has_avx512() -> bool:
  with contextlib.suppress(OSError):  # of systems other than Linux
    return "avx512f" in pathlib.Path("/proc/cpuinfo").read_text()
  return False


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command and returns the exit status. What a user can mend is one line on standard error, no traceback."""
  parser = _parser()
  args, rest = parser.parse_known_args(argv)
  args.overrides = [argument for argument in rest if argument.startswith("--config.")]
  if unknown := [argument for argument in rest if argument not in args.overrides or not hasattr(args, "config")]:
    parser.error(f"unrecognized arguments: {' '.join(unknown)}")
  prepare_xla()
  try:
    args.run(args)
  except processes.Preempted as error:
    print(f"dreamjax {args.command}: {error}; run this again to go on", file=sys.stderr)
    return processes.EXIT_RERUN
  except (ValueError, OSError, FloatingPointError) as error:
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
  """The exit status; one of several processes ends at once, for to take leave of the others it would wait for them."""
  if processes.is_distributed():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status


if __name__ == "__main__":
  sys.exit(main())
