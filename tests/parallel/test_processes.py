"""Two processes of four devices each, on this machine: they learn what one learns, and end when one of them is lost."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time

from flax.traverse_util import flatten_dict
import jax
from jax.experimental import multihost_utils
import numpy as np
import optax
import pytest
import safetensors.numpy

from dreamjax import cli, generators
from dreamjax.commands import devices
from dreamjax.parallel import processes
from dreamjax.parallel.sharding import make_mesh, shard_params
from dreamjax.train.checkpoints import Checkpoints
from dreamjax.train.state import TrainState

RECIPE = (
  "--config=dreambooth.py:paper", "--config.identifier=qx", "--config.prior.count=8", "--config.stages.sr.steps=0",
  "--config.stages.base.steps=4", "--config.stages.base.batch_size=4", "--config.stages.base.prior_batch_size=4",
  "--config.stages.base.log_every=1", "--config.stages.base.save_every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """A folder of two photos, with captions that end in a style."""
  from PIL import Image

  folder = tmp_path_factory.mktemp("photos")
  draw = np.random.default_rng(0)
  for i in range(2):
    Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / f"{i}.txt").write_text("a dog in red clay style")
  return folder


# What the processes run: `dreamjax`, but that parameters of the tiny networks count as large, of which each has a part.
PROGRAM = """
import sys
from dreamjax import cli
from dreamjax.parallel import sharding
sharding._MIN_SHARDED = 512
sys.exit(cli.main())
"""
ENDLESS = ("--config.stages.base.steps=1000000", "--config.stages.base.batch_size=8", "--config.prior.kind=none")


def command(model, photos, workdir, *more):
  known = ("--images", photos, "--class-noun", "dog", "--model", model, "--workdir", workdir)
  return [str(x) for x in ("dreambooth", *known, *RECIPE, *more)]


def begin(arguments, index, address, log, count=2):
  """Starts one of some processes, with four devices."""
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
  cache = {
    f"JAX_COMPILATION_CACHE_{name}": str(jax.config.values[f"jax_compilation_cache_{name.lower()}"])
    for name in ("DIR", "MAX_SIZE")
  }
  environment = {**os.environ, **cache, "XLA_FLAGS": flags}
  with log.open("w") as out:
    return subprocess.Popen(
      [sys.executable, "-c", PROGRAM, *arguments, "--hosts", f"{address},{count},{index}"],
      stdout=out, stderr=out, env=environment, cwd=log.parent,
    )  # fmt: skip


def address():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


def begin_two(arguments, folder):
  where = address()
  return [begin(arguments, index, where, folder / f"{index}.log") for index in range(2)]


HALF = {"rtol": 1e-2, "atol": 1e-3}  # of what is stored as float16


def assert_close(one, two, **tolerance):
  """Of two files, that all arrays of the first are in the second."""
  one, two = safetensors.numpy.load_file(one), safetensors.numpy.load_file(two)
  for path, x in one.items():
    np.testing.assert_allclose(two[path], x, **tolerance)


# Nothing that the network says depends on these: Adam makes steps of the rounding in their gradients.
ADRIFT = {"base/pool/key/bias", "base/text/bias"}


def test_two_processes_learn_what_one_does(tiny_cascade, tiny_folder, photos, tmp_path):
  rate = "--config.stages.base.optimizer.learning_rate=1e-3"
  both = begin_two(command(tiny_folder, photos, tmp_path / "two", rate, "--mesh", "data=2,fsdp=4"), tmp_path)
  ends = [process.wait(timeout=300) for process in both]
  logs = [(tmp_path / f"{index}.log").read_text() for index in range(2)]
  assert ends == [0, 0], logs
  # On one device, with the same images of the class: a value that is rounded to another byte is another image.
  assert cli.main(command(tiny_folder, photos, tmp_path / "one", rate, "--cache", tmp_path / "two/priors")) == 0
  assert cli.main(command(tiny_folder, photos, tmp_path / "prior", "--config.stages.base.steps=0")) == 0
  (kept,) = (tmp_path / "two/base/checkpoints/4").glob("*/_sharding")  # how the processes had the state between them
  places = [json.loads(shard_params)["partition_spec"] for shard_params in json.loads(kept.read_text()).values()]
  assert sum("fsdp" in json.dumps(shard_params) for shard_params in places) > 50
  before = flatten_dict(tiny_cascade[1], sep="/")
  one, two = (safetensors.numpy.load_file(tmp_path / name / "theta.safetensors") for name in ("one", "two"))
  assert one.keys() == two.keys() > ADRIFT
  for path in one.keys() - ADRIFT:
    assert np.abs(one[path] - before[path]).max() > 1e-3, path
    np.testing.assert_allclose(two[path], one[path], rtol=1e-5, atol=1e-5, err_msg=path)
  one, two = (log_of(tmp_path / name) for name in ("one", "two"))
  assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4]  # written once, not by both
  for name in ("loss", "gradient_norm", "update_norm"):
    np.testing.assert_allclose([line[name] for line in two], [line[name] for line in one], rtol=1e-5)
  images = [sorted((tmp_path / name / "priors").glob("*/*.png")) for name in ("prior", "two")]
  assert len(images[0]) == len(images[1]) == 8
  for a, b in zip(*images, strict=True):
    assert np.abs(pixels(a) - pixels(b)).max() <= 1


@pytest.mark.slow
def test_two_processes_learn_a_style_and_draw_what_one_does(tiny_masked, photos, tmp_path):
  model = tmp_path / "model"
  generators.save(model, *tiny_masked, dtype=np.float32)
  rows = [f"--config.{part}.{stage}.{key}=8" for part in ("first", "second") for stage in ("base", "sr")
          for key in ("steps", "batch_size")]  # fmt: skip
  learn = ["styledrop", "--images", photos, "--model", model, "--feedback", "random", "--config", "styledrop.py:paper",
           "--config.pool.images_per_prompt=1", *rows, "--mesh", "data=2,fsdp=4"]  # fmt: skip
  draw = ["sample", "--model", model, "--theta", tmp_path / "one/theta.safetensors", "--prompt", "a cat", "--n", "3",
          "--mesh", "data=-1"]  # fmt: skip
  for what, where in ((learn, "--workdir"), (draw, "--out")):
    folders = [tmp_path / f"{name}{'' if where == '--workdir' else ' images'}" for name in ("one", "two")]
    one, two = ([str(x) for x in (*what, where, folder)] for folder in folders)
    assert cli.main(one) == 0
    both = begin_two(two, tmp_path)
    assert [process.wait(timeout=300) for process in both] == [0, 0], (tmp_path / "0.log").read_text()
  assert_close(*(tmp_path / name / "theta.safetensors" for name in ("one", "two")), **HALF)
  for a, b in zip(*(sorted((tmp_path / f"{name} images").glob("0*.png")) for name in ("one", "two")), strict=True):
    assert np.abs(pixels(a) - pixels(b)).max() <= 1


@pytest.mark.slow
def test_two_processes_train_an_encoder_as_one_does(tmp_path):
  words = ["pretrain", "--config", "pretrain_encoders.py:tokenizer", "--config.captions=500", "--config.size=800"]
  assert cli.main([*words, "--workdir", str(tmp_path / "words")]) == 0
  train = ["pretrain", "--config", "pretrain_encoders.py:t5", "--config.model.depth=1", "--config.train.train=16",
           "--config.train.styles=16", "--config.held_out.subjects=16", "--config.batch_size=8", "--config.steps=3",
           f"--config.tokenizer={tmp_path / 'words/model'}", "--mesh", "data=2,fsdp=4"]  # fmt: skip
  one, two = ([*train, f"--config.albums={tmp_path / name} albums", "--workdir", str(tmp_path / name)]
              for name in ("one", "two"))  # fmt: skip
  assert cli.main(one) == 0
  both = begin_two(two, tmp_path)
  assert [process.wait(timeout=600) for process in both] == [0, 0], (tmp_path / "0.log").read_text()
  assert_close(*(tmp_path / name / "model/model.safetensors" for name in ("one", "two")), **HALF)
  measured = [json.loads((tmp_path / name / "measured.json").read_text()) for name in ("one", "two")]
  assert measured[0].keys() == measured[1].keys()
  assert (tmp_path / "0.log").read_text().count("the model is in") == 1
  assert "the model is in" not in (tmp_path / "1.log").read_text()


@pytest.mark.slow
def test_what_is_wrong_ends_both_processes_with_the_users_status(tiny_folder, photos, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run/run.json").write_text('{"base_model": "another"}')
  both = begin_two(command(tiny_folder, photos, tmp_path / "run"), tmp_path)
  assert [process.wait(timeout=120) for process in both] == [2, 2]
  assert "holds a training with another base_model" in (tmp_path / "0.log").read_text()


def pixels(path):
  from PIL import Image

  return np.asarray(Image.open(path), np.int16)


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_when_one_process_is_lost_the_other_ends_and_says_so(tiny_folder, photos, tmp_path, lost):
  endless = command(tiny_folder, photos, tmp_path / "run", *ENDLESS)
  both = begin_two(endless, tmp_path)
  try:
    wait_until(lambda: len(log_of(tmp_path / "run")) > 5, both)
    both[lost].kill()
    began = time.monotonic()
    status = both[1 - lost].wait(timeout=60)
    assert status != 0 and time.monotonic() - began < 60
    said = (tmp_path / f"{1 - lost}.log").read_text()
    assert "another process of this run is lost" in said or "JAX distributed service detected fatal errors" in said
  finally:
    for process in both:
      process.kill()
      process.wait()


@pytest.mark.slow
def test_a_program_that_is_told_to_end_saves_and_goes_on_later(tiny_folder, photos, tmp_path):
  endless = command(tiny_folder, photos, tmp_path / "run", *ENDLESS)
  both = begin_two(endless, tmp_path)
  try:
    wait_until(lambda: len(log_of(tmp_path / "run")) > 5, both)
    both[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=120) for process in both] == [processes.EXIT_RERUN] * 2
  finally:
    for process in both:
      process.kill()
      process.wait()
  with Checkpoints(tmp_path / "run/base/checkpoints") as checkpoints:
    step = checkpoints.latest()
  assert step >= log_of(tmp_path / "run")[-1]["step"]
  # What two processes of eight devices wrote, one process goes on with, on one device.
  rest = command(tiny_folder, photos, tmp_path / "run", *ENDLESS, f"--config.stages.base.steps={step + 1}")
  assert cli.main(rest) == 0
  assert log_of(tmp_path / "run")[-1]["step"] == step + 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_drawing_that_is_told_to_end_keeps_what_it_drew(tiny_folder, photos, tmp_path, count):
  endless = command(tiny_folder, photos, tmp_path / "run", "--config.prior.count=1000000")
  where = address()
  running = [begin(endless, index, where, tmp_path / f"{index}.log", count) for index in range(count)]
  drawn = lambda: sorted((tmp_path / "run/priors").rglob("*.png"))  # noqa: E731
  try:
    wait_until(lambda: len(drawn()) > 8, running)
    running[-1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=60) for process in running] == [processes.EXIT_RERUN] * count
  finally:
    for process in running:
      process.kill()
      process.wait()
  assert "what was made so far is on disk; run this again to go on" in (tmp_path / "0.log").read_text()
  assert [path.name for path in drawn()] == [f"{i:05d}.png" for i in range(len(drawn()))]


def log_of(workdir):
  path = workdir / "base/log.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition, processes, seconds=300):
  end = time.monotonic() + seconds
  while not condition():
    assert all(process.poll() is None for process in processes), "a process ended by itself"
    assert time.monotonic() < end
    time.sleep(0.1)


def test_in_one_process_sigterm_is_asked_for_behind_each_step():
  with processes.watch_preemption() as is_to_end:
    assert not is_to_end()
    os.kill(os.getpid(), signal.SIGTERM)
    assert is_to_end()
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_is_drawn_ends_between_two_items_when_it_is_told_to():
  def items():
    yield 1
    os.kill(os.getpid(), signal.SIGTERM)
    yield 2
    raise AssertionError("nobody is to ask for a third")

  seen = []
  with pytest.raises(processes.Preempted, match="what was made so far is on disk"):
    for item in processes.until_preempted(items()):
      seen.append(item)
  assert seen == [1, 2] and list(processes.until_preempted("ab")) == ["a", "b"]
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_checkpoints_do_not_ask_beside_us_whether_the_program_is_to_end(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    for step in (1, 2):
      checkpoints.save(TrainState.create({"x": np.ones(2)}, optax.sgd(0.1)).replace(step=np.int32(step)))
    checkpoints.wait()
    assert checkpoints.latest() == 2 and not asked


def test_with_hosts_all_devices_are_used_even_by_one_process(monkeypatch):
  monkeypatch.setattr(processes, "join", lambda *known: None)
  usual = {"mesh": None, "hosts": None}
  for changes, size in (({}, 1), ({"hosts": ("", 0, 0)}, 8), ({"hosts": ("", 0, 0), "mesh": (2, 1, 1)}, 2)):
    assert devices.mesh(argparse.Namespace(**usual | changes)).size == size


def test_what_fails_in_the_first_process_fails():
  with pytest.raises(ZeroDivisionError):
    processes.on_main_process(lambda: 1 / 0)
  assert processes.broadcast_from_main(7) == 7 and processes.is_main_process() and not processes.is_distributed()


def test_arrays_are_fetched_from_wherever_they_lie():
  tree = {"kernel": np.arange(64.0, dtype=np.float32).reshape(8, 8), "key": np.ones(3, np.float32)}
  np.testing.assert_array_equal(processes.fetch(shard_params(tree, make_mesh((2, 2, 2))))["kernel"], tree["kernel"])


@pytest.mark.parametrize("said", ["somewhere", "localhost:1,2", "localhost:1,2,2", "localhost,2,0"])
def test_hosts_that_cannot_be_are_refused(said, capsys):
  with pytest.raises(SystemExit):
    cli.main(["sample", "--prompt", "a dog", "--out", "x", "--hosts", said])
  assert "auto" in capsys.readouterr().err
