"""The launchers: what they would do, and what they say to what they do not know. No cloud is touched."""

import os
import pathlib
import shlex
import shutil
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"


def run(script, *arguments, **environment):
  inherited = {name: value for name, value in os.environ.items() if name != "DREAMJAX_VENV"}
  environment = {**inherited, **environment}
  return subprocess.run([LAUNCH / script, *arguments], capture_output=True, text=True, check=False, env=environment)


def stub(path, text):
  """A program that is a script of the shell."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"#!/usr/bin/env bash\n{text}\n")
  path.chmod(0o755)


def test_the_scripts_are_free_of_what_shellcheck_knows():
  if shutil.which("shellcheck") is None:
    pytest.skip("shellcheck is not installed")
  scripts = [*sorted(LAUNCH.glob("*.sh")), LAUNCH.parent / ".ci/run"]
  found = subprocess.run(
    ["shellcheck", "--external-sources", *scripts], cwd=LAUNCH.parent, capture_output=True, text=True, check=False
  )
  assert found.returncode == 0, found.stdout


def in_venv_sh(command, *, path, **environment):
  """Runs a command of the shell after sourcing launch/venv.sh; only programs on the path are found."""
  given = {"PATH": str(path), "HOME": str(path), **environment}
  command = f"source {LAUNCH}/venv.sh; {command}"
  bash = shutil.which("bash")
  return subprocess.run([bash, "-c", command], capture_output=True, text=True, check=False, env=given, cwd=ROOT)


def python_stub(path, version):
  """A program that answers what launch/venv.sh asks of a Python of this version."""
  path.parent.mkdir(parents=True, exist_ok=True)
  old = tuple(map(int, version.split("."))) < (3, 11)
  path.write_text(f"#!/bin/sh\ncase $2 in *print*) echo {version} ;; *exit*) exit {int(old)} ;; esac\n")
  path.chmod(0o755)


def test_the_python_that_is_named_is_taken_or_refused(tmp_path):
  python_stub(tmp_path / "python3", "3.12")
  python_stub(tmp_path / "old", "3.10")
  python_stub(tmp_path / "new", "3.13")
  assert in_venv_sh("find_python", path=tmp_path).stdout == "python3\n"
  assert in_venv_sh("find_python", path=tmp_path, PYTHON=str(tmp_path / "new")).stdout == f"{tmp_path / 'new'}\n"
  for python in ("old", "missing"):
    refused = in_venv_sh("find_python", path=tmp_path, PYTHON=str(tmp_path / python))
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr == f"PYTHON={tmp_path / python} does not run, or is older than Python 3.11\n"
  (tmp_path / "python3").unlink()
  none = in_venv_sh("find_python", path=tmp_path)
  assert none.returncode == 1 and "needs Python 3.11 or newer" in none.stderr


def test_an_environment_of_another_python_than_the_named_one_is_refused(tmp_path):
  python_stub(tmp_path / "new", "3.13")
  python_stub(tmp_path / "venv/bin/python", "3.11")
  stub(tmp_path / "venv/bin/pip", "exit 1")
  (tmp_path / "launch").mkdir()
  shutil.copy(LAUNCH / "venv.sh", tmp_path / "launch")
  (tmp_path / "venv").rename(tmp_path / ".venv")
  command = f"cd {tmp_path}; set -e; use_venv '.[test]'"
  refused = in_venv_sh(command, path=tmp_path, PYTHON=str(tmp_path / "new"))
  assert refused.returncode == 1 and ".venv holds Python 3.11, but PYTHON=" in refused.stderr
  assert "is 3.13: remove .venv, or unset PYTHON" in refused.stderr
  python_stub(tmp_path / "new", "3.11")
  assert in_venv_sh(command, path=tmp_path, PYTHON=str(tmp_path / "new")).returncode == 0  # there is no setup.py
  assert in_venv_sh(command, path=tmp_path).returncode == 0


def test_a_python_of_a_version_is_found_on_the_path_and_in_pyenv(tmp_path):
  found = lambda **environment: in_venv_sh("find_python_version 3.13", path=tmp_path, **environment)  # noqa: E731
  assert (found().returncode, found().stdout) == (0, "")
  python_stub(tmp_path / ".pyenv/versions/3.13.0/bin/python", "3.13")
  stub(tmp_path / "python3.13", "exit 127")  # as pyenv's own does where another version is chosen
  assert found().stdout == f"{tmp_path}/.pyenv/versions/3.13.0/bin/python\n"
  assert found(PYENV_ROOT=str(tmp_path / "elsewhere")).stdout == ""
  python_stub(tmp_path / "python3.13", "3.13")
  assert found().stdout == "python3.13\n"


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
        "apt-get install -y -qq python3.11-venv nfs-common && python3.11 -m venv venv",
      ],
    ),
    (
      ("install", "me", "us-west4-a", "--bucket", "b"),
      [
        "storage buckets create gs://b --location=us-west4 --uniform-bucket-level-access --enable-hierarchical",
        "--worker=all --command=dreamjax/launch/host.sh share --bucket b",
      ],
    ),
    (("install", "me", "z", "--nfs", "h:/s"), ["--worker=all --command=dreamjax/launch/host.sh share --nfs h:/s"]),
    (
      ("run", "me", "z", "dreambooth", "--images", "my photos"),
      [
        r"--worker=all --command=dreamjax/launch/host.sh begin dreambooth --images my\ photos",
        "--worker=0 --command=dreamjax/launch/host.sh log",
      ],
    ),
    (("log", "me", "z", "3"), ["--worker=3 --command=dreamjax/launch/host.sh log"]),
    (("stop", "me", "z"), ["--worker=all --command=dreamjax/launch/host.sh stop"]),
    (("fetch", "me", "z", "runs"), [f"tpu-vm scp --recurse me:shared/runs {pathlib.Path.cwd()} --zone=z --worker=0"]),
    (("push", "me", "z", "photos"), [f"tpu-vm scp --recurse {pathlib.Path.cwd()}/photos me:shared/ --zone=z"]),
    (("delete", "me", "z"), ["tpu-vm delete me --zone=z --quiet"]),
  ],
)  # fmt: skip
def test_a_tpu_is_asked_for_as_the_cloud_wants_it(arguments, commands):
  said = run("tpu.sh", "--dry-run", *arguments)
  assert said.returncode == 0, said.stderr
  unquoted = " ".join(shlex.split(said.stdout))
  for command in commands:
    assert command in unquoted


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
        "--termination-grace-period-seconds=300", "pip install --quiet './dreamjax[tpu]' && cd /shared && ",
        r"JAX_COMPILATION_CACHE_DIR=/shared/.xla exec dreamjax dreambooth --images my\ photos --hosts auto",
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


def test_a_job_of_slurm_asks_for_a_process_for_each_gpu():
  said = run("slurm.sh", "--dry-run", "2", "8", "dreambooth", "--images", "my photos").stdout
  for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--signal=TERM@120"):
    assert f"#SBATCH {line}\n" in said
  assert r"dreamjax dreambooth --images my\ photos --hosts auto" in said


@pytest.mark.parametrize(
  ("statuses", "seconds", "status", "again"),
  [
    ((0, 0), 5000, 0, False),
    ((75, 75), 5000, 75, True),  # told to end
    ((137, 134), 5000, 75, True),  # one was killed, the other lost it
    ((2, 134), 5000, 2, False),  # what the user can mend made the other lose it
    ((1, 75), 5000, 1, False),
    ((134, 134), 300, 75, False),  # a process that never came
  ],
)
def test_a_job_of_slurm_is_queued_again_where_that_helps(tmp_path, statuses, seconds, status, again):
  stub(tmp_path / "srun", '''shift; worst=0
for index in 0 1; do
  code=0; INDEX=$index "$@" || code=$?
  ((code > worst)) && worst=$code
done
exit $worst''')  # fmt: skip
  stub(tmp_path / "scontrol", f'echo "$@" >{tmp_path}/queued')
  stub(tmp_path / "dreamjax", f"statuses=({' '.join(map(str, statuses))}); exit ${{statuses[$INDEX]}}")
  job = run("slurm.sh", "--dry-run", "1", "2", "dreambooth").stdout
  job = f"SECONDS={seconds}\n" + job.replace(str(ROOT / ".venv/bin/dreamjax"), str(tmp_path / "dreamjax"))
  environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
  assert subprocess.run(["bash", "-c", job], env=environment, check=False).returncode == status
  assert (tmp_path / "queued").exists() == again


def test_what_slurm_tells_to_end_is_waited_for(tmp_path):
  stub(tmp_path / "srun", f'shift; setsid "$@" & echo $! >{tmp_path}/pid; wait $!')
  stub(tmp_path / "dreamjax", f"trap 'sleep 1; exit 75' TERM; touch {tmp_path}/began; while true; do sleep 0.1; done")
  job = run("slurm.sh", "--dry-run", "1", "1", "dreambooth").stdout
  job = job.replace(str(ROOT / ".venv/bin/dreamjax"), str(tmp_path / "dreamjax"))
  environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
  with subprocess.Popen(["bash", "-c", job], env=environment) as running:
    wait_until((tmp_path / "began").exists)
    os.killpg(int((tmp_path / "pid").read_text()), 15)
    assert running.wait(timeout=30) == 75


def wait_until(condition, seconds=30):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)


@pytest.fixture
def host(tmp_path):
  """host(*arguments) asks the script of a host, which does without clouds what the file dreamjax.sh says."""
  (tmp_path / "shared").mkdir()
  stub(tmp_path / "venv/bin/dreamjax", 'echo "$PWD $*" >>../runs; source ../dreamjax.sh')
  return lambda *arguments: run("host.sh", *arguments, HOME=str(tmp_path))


@pytest.mark.parametrize(
  ("statuses", "status", "runs"),
  [((0,), 0, 1), ((2,), 2, 1), ((75, 0), 0, 2), ((134, 75, 2), 2, 3), ((134, 134, 134, 0), 134, 3)],
)
def test_a_run_on_a_host_is_started_again_while_that_helps(host, tmp_path, statuses, status, runs):
  listed = " ".join(map(str, statuses))
  (tmp_path / "dreamjax.sh").write_text(f"statuses=({listed}); exit ${{statuses[$(wc -l <../runs) - 1]}}")
  assert host("begin", "dreambooth", "--images", "my photos").returncode == 0
  said = host("log")
  assert said.returncode == status
  done = (tmp_path / "runs").read_text().splitlines()
  assert done == [f"{tmp_path}/shared dreambooth --images my photos --hosts auto"] * runs
  assert said.stdout.count("is started again") == min(runs, len(statuses)) - 1
  assert ("it is not started again" in said.stdout) == (status == 134)


def test_a_run_on_a_host_goes_on_alone_until_it_is_stopped(host, tmp_path):
  (tmp_path / "dreamjax.sh").write_text("trap 'echo saved; exit 75' TERM; echo began; while true; do sleep 0.1; done")
  assert host("log").returncode == 1
  assert host("begin", "dreambooth").returncode == 0
  try:
    wait_until(lambda: "began" in (tmp_path / "run.log").read_text())
    refused = host("begin", "sample")
    assert refused.returncode == 1 and "a run is going on here" in refused.stderr
  finally:
    assert host("stop").returncode == 0
  said = host("log")
  assert said.returncode == 75 and "saved" in said.stdout
  assert len((tmp_path / "runs").read_text().splitlines()) == 1


@pytest.mark.parametrize(
  ("arguments", "mounted"),
  [
    (("--bucket", "mine"), "gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 mine shared"),
    (("--nfs", "host:/share"), "mount -t nfs -o rw host:/share shared"),
  ],
)
def test_a_host_mounts_what_shared_is_to_be_and_once_more_after_a_reboot(
  tmp_path, host, monkeypatch, arguments, mounted
):
  stub(tmp_path / "bin/mountpoint", f"[[ -e {tmp_path}/mounted ]]")
  for name in ("gcsfuse", "mount"):
    stub(tmp_path / "bin" / name, f'echo "{name} $*" >>{tmp_path}/mounted')
  stub(tmp_path / "bin/sudo", '"$@"')
  stub(tmp_path / "dreamjax.sh", "exit 0")
  monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
  for call in (("share", *arguments), ("begin", "sample")):
    assert host(*call).returncode == 0
    assert (tmp_path / "mounted").read_text() == f"{mounted}\n"
  assert host("log").returncode == 0
  (tmp_path / "mounted").unlink()
  assert host("begin", "sample").returncode == 0
  assert (tmp_path / "mounted").read_text() == f"{mounted}\n"
  assert host("log").returncode == 0


def test_a_gpus_commands_are_said(tmp_path):
  said = run("gpu.sh", "--dry-run", "sample", "--prompt", "a dog").stdout
  assert shlex.split(said)[-4:] == [f"{ROOT}/.venv/bin/dreamjax", "sample", "--prompt", "a dog"]
  assert f"{ROOT}/.venv/bin/pip install --editable {ROOT}[cuda13]" in " ".join(shlex.split(said))
  assert ("-m venv" in said) == (not (ROOT / ".venv/bin/pip").exists())
  own = run("gpu.sh", "--dry-run", "sample", DREAMJAX_VENV=str(tmp_path)).stdout
  assert shlex.split(own) == [f"{tmp_path}/bin/dreamjax", "sample"]


def test_what_is_only_said_leaves_nothing_behind(tmp_path):
  for script, *arguments in (("tpu.sh", "install", "me", "z"), ("gke.sh", "run", "c", "z", "t", "n", "sample")):
    said = run(script, "--dry-run", *arguments, TMPDIR=str(tmp_path))
    assert said.stdout.splitlines()[-1].startswith("rm -r ")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("script", "arguments", "message"),
  [
    ("tpu.sh", (), "create  NAME ZONE TYPE"),
    ("tpu.sh", ("--dry-run", "create", "me", "z", "v9-8"), "no runtime is known for the type v9-8"),
    ("tpu.sh", ("--dry-run", "create", "me", "z", "v6e-8", "--cheap"), "create  NAME ZONE TYPE"),
    ("tpu.sh", ("--dry-run", "begin", "me", "z"), "create  NAME ZONE TYPE"),
    ("tpu.sh", ("--dry-run", "install", "me", "z", "--disk", "d"), "create  NAME ZONE TYPE"),
    ("host.sh", ("again",), "share | begin | log | stop"),
    ("gke.sh", ("--dry-run", "create", "c", "z"), "create CLUSTER ZONE TYPE BUCKET"),
    ("gke.sh", ("--dry-run", "create", "c", "z", "v6e-8", "b", "--cheap"), "create CLUSTER ZONE TYPE BUCKET"),
    ("slurm.sh", ("two", "8", "dreambooth"), "NODES GPUS_PER_NODE"),
    ("gpu.sh", (), "dreambooth --images photos"),
  ],
)
def test_what_makes_no_sense_is_told_how_to(script, arguments, message):
  said = run(script, *arguments)
  assert said.returncode == 2 and message in said.stderr
