"""Plans updates of published sizes on TPUs that are not there, for the README: what each takes of a chip.

python tests/benchmarks/plans.py muse amused --out plans          # by name; all of RUNS, without names
python tests/benchmarks/plans.py --scale 16 64 256 --out plans    # one, over more and more chips

It needs libtpu (the extra `plan`), and a core for 3 to 90 minutes a plan. A plan that is in --out is not made again.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

HALF = {"dtype": "bfloat16", "remat": "cheap"}
SCAN = {**HALF, "scan": "True"}


def _rows(count: int, *stages: str) -> dict[str, Any]:
  """Of a recipe's stages, "stages.base" for one, a batch of so many photos and as many pictures of the class."""
  return {f"{stage}.{name}": count for stage in stages for name in ("rows", "prior_rows")} | {"prior.batch": 2 * count}


def _styled(count: int) -> dict[str, Any]:
  rows = {f"{round_}.{stage}.rows": count for round_ in ("first", "second") for stage in ("base", "sr")}
  return {**SCAN, **rows, "pool.batch": count}


_IF = {**HALF, **_rows(16, "stages.base", "stages.sr")}
_LORA = {"stages.base.kind": "lora", "stages.base.rank": 4}
# Of each: the recipe, the generator, the topology, the programs, and what of the recipe is changed.
RUNS = {
  "if-base": ("dreambooth.py:paper", "if-xl", "v5e:4x4", "base: update", _IF),
  "if-sr": ("dreambooth.py:paper", "if-xl", "v5e:4x4", "sr: update", _IF),
  "sd15-lora": ("dreambooth.py:sd15", "sd15", "v5e:1x1", "base: update", {"dtype": "bfloat16", **_LORA}),
  "sd15-full": ("dreambooth.py:sd15", "sd15", "v5e:2x2", "base: update", {**HALF, **_rows(2, "stages.base")}),
  "sdxl": ("dreambooth.py:sdxl", "sdxl", "v5e:2x4", "base: update", {**SCAN, "stages.base.rows": 8}),
  "muse": ("styledrop.py:paper", "muse-3b", "v5e:4x4", "round 1", _styled(16)),
  "amused": ("styledrop.py:amused512", "amused512", "v5e:1x1", "round 1", SCAN),
}  # fmt: skip
TOPOLOGIES = {16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"}


def plan(name: str, run: tuple[str, str, str, str, dict[str, Any]], out: pathlib.Path) -> dict[str, Any]:
  """A plan, as `dreamjax plan` writes it."""
  file = out / f"{name}.json"
  if not file.exists():
    recipe, model, topology, only, changed = run
    command = [sys.executable, "-m", "dreamjax.cli", "plan", "--config", f"configs/{recipe}", "--model", model]
    command += ["--topology", topology, "--only", only, "--out", str(file)]
    subprocess.run(command + [f"--config.{key}={value}" for key, value in changed.items()], check=True)
  return json.loads(file.read_text())


def line(name: str, topology: str, one: dict[str, Any]) -> str:
  """A program's row of a table."""
  gib = [f"{size / 2**30:.1f}" for size in (sum(one["held"].values()), one["activations"])]
  sent = sum(one["sent"].values()) / 1e9
  times = [f"{1000 * one['times'][what]:.0f}" for what in ("compute", "memory", "collectives")]
  cells = [f"{name}, {one['name']}", topology, str(one["rows"]), *gib, f"{one['flops'] / one['model_flops']:.2f}"]
  cells += [f"{sent:.1f}", *times, f"{one['compiled_in'] / 60:.0f}"]
  return f"| {' | '.join(cells)} |"


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="*", choices=[*RUNS, []], help="of plans (all)")
  parser.add_argument("--scale", nargs="+", type=int, choices=TOPOLOGIES, metavar="CHIPS", help="plan Muse for so many")
  parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="for plans as JSON")
  args = parser.parse_args()
  runs = {name: RUNS[name] for name in args.names or RUNS}
  if args.scale:
    recipe, model, _, _, _ = RUNS["muse"]
    runs = {
      f"muse-{chips}-{each}": (recipe, model, TOPOLOGIES[chips], "round 1, base", _styled(chips * each))
      for chips in args.scale for each in (1, 4)
    }  # fmt: skip
  print("| program | chips | rows | held | activations | operations | sent | compute | memory | links | compiled in |")
  for name, run in runs.items():
    for one in plan(name, run, args.out)["programs"]:
      print(line(name, run[2], one), flush=True)


if __name__ == "__main__":
  main()
