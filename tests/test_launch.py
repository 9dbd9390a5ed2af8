"""The launchers: what they would do, and what they say to what they do not know. No cloud is touched."""

import pathlib
import shlex
import shutil
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"


def run(script, *arguments):
  return subprocess.run([LAUNCH / script, *arguments], capture_output=True, text=True, check=False)


def test_the_scripts_are_free_of_what_shellcheck_knows():
  if shutil.which("shellcheck") is None:
    pytest.skip("shellcheck is not installed")
  scripts = [*sorted(LAUNCH.glob("*.sh")), LAUNCH.parent / ".ci/run"]
  found = subprocess.run(
    ["shellcheck", "--external-sources", *scripts], cwd=LAUNCH.parent, capture_output=True, text=True, check=False
  )
  assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
  ("arguments", "commands"),
  [
    (
      ("create", "me", "us-west4-a", "v5litepod-16", "--spot"),
      ["tpu-vm create me --zone=us-west4-a --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot"],
    ),
    (
      ("create", "me", "z", "v6e-8", "--queued"),
      ["queued-resources create me --node-id=me --zone=z --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e"],
    ),
    (
      ("install", "me", "z"),
      [
        "git archive --format=tar.gz", "tpu-vm scp", "--worker=all",
        r"apt-get install -y -qq python3.11-venv nfs-common && python3.11 -m venv venv",
      ],
    ),
    (
      ("run", "me", "z", "dreambooth", "--images", "my photos"),
      ["dreambooth --images my", "photos --hosts auto", "--worker=all"],
    ),
    (("fetch", "me", "z", "runs"), [f"tpu-vm scp --recurse me:shared/runs {pathlib.Path.cwd()} --zone=z --worker=0"]),
    (("push", "me", "z", "photos"), [f"tpu-vm scp --recurse {pathlib.Path.cwd()}/photos me:shared/ --zone=z"]),
    (("delete", "me", "z"), ["tpu-vm delete me --zone=z --quiet"]),
  ],
)  # fmt: skip
def test_a_tpu_is_asked_for_as_the_cloud_wants_it(arguments, commands):
  said = run("tpu.sh", "--dry-run", *arguments)
  assert said.returncode == 0, said.stderr
  for command in commands:
    assert command in said.stdout


@pytest.mark.parametrize(
  ("arguments", "commands"),
  [
    (
      ("create", "c", "us-west4-a", "v5litepod-16", "b", "--spot"),
      [
        "gcloud storage buckets create gs://b --location=us-west4", "--enable-hierarchical-namespace",
        "xpk cluster create --cluster=c --zone=us-west4-a --tpu-type=v5litepod-16 --num-slices=1 --spot",
        "xpk storage attach shared --type=gcsfuse --cluster=c", "--mount-point=/shared",
      ],
    ),
    (
      ("run", "c", "z", "v6e-8", "me", "dreambooth", "--images", "my photos"),
      [
        "xpk workload create --cluster=c --zone=z --workload=me --tpu-type=v6e-8", "--restart-on-exit-codes=75",
        r"pip install --quiet './dreamjax[tpu]' && cd /shared && dreamjax dreambooth --images my\ photos --hosts auto",
      ],
    ),
    (("push", "b", "photos"), [f"gcloud storage cp --recursive {pathlib.Path.cwd()}/photos gs://b/"]),
    (("fetch", "b", "runs"), [f"gcloud storage cp --recursive gs://b/runs {pathlib.Path.cwd()}"]),
    (("delete", "c", "z"), ["xpk cluster delete --cluster=c --zone=z"]),
    (("delete", "c", "z", "me"), ["xpk workload delete --cluster=c --zone=z --workload=me"]),
  ],
)  # fmt: skip
def test_a_cluster_is_asked_for_as_xpk_wants_it(arguments, commands):
  said = run("gke.sh", "--dry-run", *arguments)
  assert said.returncode == 0, said.stderr
  unquoted = [" ".join(shlex.split(line)) for line in said.stdout.splitlines()]  # a line each: xpk writes a manifest
  for command in commands:
    assert any(command in line for line in unquoted), command


def test_a_job_of_slurm_asks_for_a_process_for_each_gpu_and_is_queued_again():
  said = run("slurm.sh", "--dry-run", "2", "8", "dreambooth", "--images", "my photos").stdout
  for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--signal=TERM@120"):
    assert f"#SBATCH {line}\n" in said
  assert r"dreamjax dreambooth --images my\ photos --hosts auto" in said
  assert "$status =~ ^(75|134|137)$ && $SECONDS -gt 300" in said and 'scontrol requeue "$SLURM_JOB_ID"' in said


def test_a_gpus_commands_are_said():
  said = run("gpu.sh", "--dry-run", "sample", "--prompt", "a dog")
  assert said.stdout.splitlines()[0] == ".venv/bin/pip install --editable '.[cuda13]'"
  assert said.stdout.splitlines()[1].startswith(r".venv/bin/dreamjax sample --prompt a\ dog")


@pytest.mark.parametrize(
  ("script", "arguments", "message"),
  [
    ("tpu.sh", (), "create  NAME ZONE TYPE"),
    ("tpu.sh", ("--dry-run", "create", "me", "z", "v9-8"), "no runtime is known for the type v9-8"),
    ("tpu.sh", ("--dry-run", "create", "me", "z", "v6e-8", "--cheap"), "create  NAME ZONE TYPE"),
    ("tpu.sh", ("--dry-run", "begin", "me", "z"), "create  NAME ZONE TYPE"),
    ("gke.sh", ("--dry-run", "create", "c", "z"), "create CLUSTER ZONE TYPE BUCKET"),
    ("gke.sh", ("--dry-run", "create", "c", "z", "v6e-8", "b", "--cheap"), "create CLUSTER ZONE TYPE BUCKET"),
    ("slurm.sh", ("two", "8", "dreambooth"), "NODES GPUS_PER_NODE"),
    ("gpu.sh", (), "dreambooth --images photos"),
  ],
)
def test_what_makes_no_sense_is_told_how_to(script, arguments, message):
  said = run(script, *arguments)
  assert said.returncode == 2 and message in said.stderr
