"""Plans updates of published sizes on TPUs that are not there, for the README: what each takes of a chip.

python tests/benchmarks/plans.py --out plans
python tests/benchmarks/plans.py muse-64 muse-64-data --out plans    # some, by their names in RUNS

It needs libtpu (the extra `plan`), and a core for 3 to 90 minutes a plan. A plan that is in --out is not made again.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

HALF = {"dtype": "bfloat16", "remat": "cheap"}
SCAN = {**HALF, "scan": "True"}


def _rows(count: int, *stages: str) -> dict[str, Any]:
  """Of a recipe's stages, "stages.base" for one, a batch of so many photos and as many images of the class."""
  return {f"{stage}.{name}": count for stage in stages for name in ("batch_size", "prior_batch_size")} | {
    "prior.batch_size": 2 * count
  }


def _styled(count: int) -> dict[str, Any]:
  rows = {f"{round_}.{stage}.batch_size": count for round_ in ("first", "second") for stage in ("base", "sr")}
  return {**SCAN, **rows, "pool.batch_size": count}


class Run(NamedTuple):
  """A run, of which the programs are planned in whose names `only` is; `changed` is of the recipe."""

  recipe: str
  model: str
  topology: str
  mesh: str
  only: str
  changed: dict[str, Any]


_IF = {**HALF, **_rows(16, "stages.base", "stages.sr")}
_ATTENTION = "(self|cross|attention)/(query|key|value|out)$"  # of which diffusers' scripts of low rank learn updates
_LORA = {**HALF, "stages.base.kind": "lora", "stages.base.rank": 4, "stages.base.pattern": _ATTENTION}
_FULL = {**HALF, **_rows(2, "stages.base")}
_MUSE = ("styledrop.py:paper", "muse-3b")
RUNS = {
  "if-base": Run("dreambooth.py:paper", "if-xl", "v5e:4x4", "fsdp=16", "base: update", _IF),
  "if-sr": Run("dreambooth.py:paper", "if-xl", "v5e:4x4", "fsdp=16", "sr: update", _IF),
  "sd15-lora": Run("dreambooth.py:sd15", "sd15", "v5e:1x1", "fsdp=1", "base: update", _LORA),
  "sd15-lora-kept": Run("dreambooth.py:sd15", "sd15", "v5e:1x1", "fsdp=1", "base: update", {**_LORA, "remat": "none"}),
  "sd15-full": Run("dreambooth.py:sd15", "sd15", "v5e:2x2", "fsdp=4", "base: update", _FULL),
  "sdxl": Run("dreambooth.py:sdxl", "sdxl", "v5e:2x4", "fsdp=8", "base: update", {**SCAN, "stages.base.batch_size": 8}),
  "muse": Run(*_MUSE, "v5e:4x4", "fsdp=16", "round 1", _styled(16)),
  "amused": Run("styledrop.py:amused512", "amused512", "v5e:1x1", "fsdp=1", "round 1", SCAN),
  # One over more and more chips: a row for each, or four; parameters spread over all of them, or over 16.
  "muse-16-rows": Run(*_MUSE, "v5e:4x4", "fsdp=16", "round 1, base", _styled(64)),
  "muse-64": Run(*_MUSE, "v5e:8x8", "fsdp=64", "round 1, base", _styled(64)),
  "muse-64-data": Run(*_MUSE, "v5e:8x8", "data=4,fsdp=16", "round 1, base", _styled(64)),
  "muse-256": Run(*_MUSE, "v5e:16x16", "fsdp=256", "round 1, base", _styled(256)),
  "muse-256-data": Run(*_MUSE, "v5e:16x16", "data=16,fsdp=16", "round 1, base", _styled(256)),
}  # fmt: skip


def plan(name: str, run: Run, out: pathlib.Path) -> dict[str, Any]:
  """A plan, as `dreamjax plan` writes it."""
  file = out / f"{name}.json"
  if not file.exists():
    command = [sys.executable, "-m", "dreamjax.cli", "plan", "--config", f"configs/{run.recipe}", "--model", run.model]
    command += ["--topology", run.topology, "--mesh", run.mesh, "--only", run.only, "--out", str(file)]
    subprocess.run(command + [f"--config.{key}={value}" for key, value in run.changed.items()], check=True)
  return json.loads(file.read_text())


def line(name: str, run: Run, one: dict[str, Any]) -> str:
  """A program's row of a table."""
  cells = [f"{name}, {one['name']}", f"{run.topology}, {run.mesh}", str(one["batch_size"])]
  cells += [f"{size / 2**30:.1f}" for size in (sum(one["held"].values()), one["activations"])]
  cells += [f"{one['flops'] / one['model_flops']:.2f}", f"{sum(one['sent'].values()) / 1e9:.1f}"]
  cells += [f"{1000 * one['times'][what]:.0f}" for what in ("compute", "memory", "collectives")]
  return f"| {' | '.join([*cells, str(round(one['compiled_in'] / 60))])} |"


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="*", choices=[*RUNS, []], help="of plans (all)")
  parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="for plans as JSON")
  args = parser.parse_args()
  print("| program | chips | rows | held | activations | operations | sent | compute | memory | links | compiled in |")
  for name in args.names or RUNS:
    for one in plan(name, RUNS[name], args.out)["programs"]:
      print(line(name, RUNS[name], one), flush=True)


if __name__ == "__main__":
  main()
