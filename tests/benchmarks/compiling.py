"""Times how long updates of published sizes take to compile: layers written out and as a loop, at first and again.

python tests/benchmarks/compiling.py amused512 muse-3b

For the CPU that it runs on, from shapes alone, one row in float32, each time in a new process: tracing, and what XLA
takes when it has never seen the program, and when the cache of compiled programs has it. How long TPUs' compiler takes
is told by `dreamjax plan --out`, as "compiled_in".
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import jax

import dreamjax
from dreamjax.commands import configs
from dreamjax.generators import published
from dreamjax.methods import plans
from dreamjax.parallel.sharding import make_mesh

RECIPES = {
  "amused512": "configs/styledrop.py:amused512", "muse-3b": "configs/styledrop.py:paper",
  "sdxl": "configs/dreambooth.py:sdxl",
}  # fmt: skip


def once(name: str, scan: str, folder: str) -> None:
  """Compiles the first update of a run, and prints the seconds of tracing and compiling."""
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  dreamjax.prepare_xla()
  config = configs.load(RECIPES[name], [f"--config.scan={scan}", "--config.remat=cheap"])
  rows = config.stages.base if "stages" in config else config.first.base
  rows.batch_size = 1
  program = plans.programs(*published.describe(name), config, make_mesh((1, 1, 1)))[0]
  began = time.perf_counter()
  lowered = program.lower()
  traced = time.perf_counter()
  lowered.compile()
  print(f"{traced - began:.0f} s of tracing, {time.perf_counter() - traced:.0f} s of compiling", flush=True)


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="+", choices=RECIPES)
  parser.add_argument("--once", nargs=2, metavar=("SCAN", "DIR"), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.once:
    once(args.names[0], *args.once)
    return
  for name in args.names:
    for scan in ("False", "True"):
      with tempfile.TemporaryDirectory() as folder:
        for turn in ("at first", "again"):
          print(f"{name}, {'a loop' if scan == 'True' else 'written out'}, {turn}: ", end="", flush=True)
          command = [sys.executable, str(pathlib.Path(__file__)), name, "--once", scan, folder]
          subprocess.run(command, check=True)


if __name__ == "__main__":
  main()
