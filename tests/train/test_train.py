"""The step, the optimizer, the loop and its checkpoints, on a problem small enough to check by hand."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax.parallel import processes, sharding
from dreamjax.parallel.sharding import make_mesh
from dreamjax.train.checkpoints import Checkpoints, read_tree, write_tree
from dreamjax.train.early_stopping import EarlyStopping
from dreamjax.train.logs import Sheet
from dreamjax.train.loop import fit
from dreamjax.train.optimizer import averaged, default_config, make_optimizer
from dreamjax.train.state import TrainState
from dreamjax.train.step import Mean, accumulate, make_step

STEPS = 12


def network():
  return nn.Sequential([nn.Dense(8), nn.gelu, nn.Dense(1)])


def loss(theta, frozen, batch, key):
  x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
  x = jax.lax.with_sharding_constraint(x, jax.P("data"))  # by name: `fit` says which mesh is meant
  error = network().apply(theta, x)[:, 0] + frozen["offset"] - batch["y"]
  return jnp.mean(error**2), {"bias": jnp.mean(error)}


def batches(i, rows=4):
  draw = np.random.default_rng(i)
  x = draw.normal(size=(rows, 3)).astype(np.float32)
  return {"x": x, "y": x.sum(1)}


def config(**fields):
  made = default_config()
  made.update({"warmup": 2, **fields})
  return made


def begin(accumulation_steps=1, mesh=None, **fields):
  theta = network().init(jax.random.key(0), jnp.zeros((1, 3)))
  tx = make_optimizer(config(**fields), theta, STEPS)
  return make_step(loss, tx, 0, accumulation_steps), TrainState.create(theta, tx, {"offset": jnp.asarray(0.5)}, mesh)


def same(a, b, compare=np.testing.assert_array_equal):
  jax.tree.map(compare, *(jax.device_get((s.step, s.theta, s.opt_state)) for s in (a, b)))


def close(a, b):
  same(a, b, lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  step, state = begin()
  folder = tmp_path_factory.mktemp("straight")
  return folder, fit(step, state, batches, steps=STEPS, workdir=folder, log_every=3, save_every=6)


def test_a_training_learns_and_logs(straight):
  folder, state = straight
  lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [3, 6, 9, 12] and int(state.step) == STEPS
  assert set(lines[0]) == {"step", "loss", "bias", "gradient_norm", "update_norm", "steps_per_second"}


def test_a_resumed_training_ends_as_one_that_ran_through(straight, tmp_path):
  step, state = begin()
  fit(step, state, batches, steps=6, workdir=tmp_path, log_every=3, save_every=6)
  step, state = begin()
  same(fit(step, state, batches, steps=STEPS, workdir=tmp_path, log_every=3, save_every=6), straight[1])


def test_a_training_that_is_told_to_end_saves_and_goes_on_later(straight, tmp_path):
  def told(i):
    if i == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    return batches(i)

  step, state = begin()
  with pytest.raises(processes.Preempted, match=r"the checkpoint of step \d is on disk"):
    fit(step, state, told, steps=STEPS, workdir=tmp_path, log_every=3, save_every=6)
  saved = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"]
  assert saved in (4, 5)  # batches are made one step ahead
  step, state = begin()
  same(fit(step, state, batches, steps=STEPS, workdir=tmp_path, log_every=3, save_every=6), straight[1])


# What is killed: a training that saves after every step, on and on.
ENDLESS = """
import pathlib, runpy, sys
toy = runpy.run_path(sys.argv[1])
step, state = toy["begin"](decay="constant")
toy["fit"](step, state, toy["batches"], steps=10**6, workdir=pathlib.Path(sys.argv[2]), save_every=1)
"""


def test_a_training_killed_during_a_checkpoint_goes_on_from_the_last_complete_one(tmp_path):
  folder = tmp_path / "killed/checkpoints"

  def complete():
    return [int(path.name) for path in folder.glob("*") if path.name.isdigit()]

  def wait_until(condition):
    while not condition():
      assert training.poll() is None, "the training ended by itself"
      time.sleep(0.0005)

  training = subprocess.Popen([sys.executable, "-c", ENDLESS, __file__, tmp_path / "killed"])
  try:
    wait_until(lambda: max(complete(), default=0) >= 3)
    time.sleep(random.uniform(0.0, 0.3))
    wait_until(lambda: any(folder.glob("*.orbax-checkpoint-tmp")))
  finally:
    training.kill()
    training.wait()
  last, asked = max(complete()), []
  rows = lambda i: asked.append(i) or batches(i)  # noqa: E731
  resumed = fit(*begin(decay="constant"), rows, steps=last + 3, workdir=tmp_path / "killed")
  assert asked == [last, last + 1, last + 2]
  same(resumed, fit(*begin(decay="constant"), batches, steps=last + 3, workdir=tmp_path / "straight"))


@pytest.mark.parametrize(("accumulation_steps", "shape"), [(1, (8, 1, 1)), (2, (8, 1, 1)), (2, (2, 2, 2))])
def test_a_training_ends_alike_on_eight_devices_and_goes_on_on_fewer(tmp_path, monkeypatch, accumulation_steps, shape):
  monkeypatch.setattr(sharding, "_MIN_SHARDED", 1)

  def run(name, mesh=None):
    step, state = begin(accumulation_steps, mesh)
    born = [x.sharding for x in jax.tree.leaves(state.opt_state)]
    rows = lambda i: batches(i, 16)  # noqa: E731
    state = fit(step, state, rows, steps=6, workdir=tmp_path / name, save_every=3, mesh=mesh)
    lies = [(x.sharding, x.ndim) for x in jax.tree.leaves(state.opt_state)]
    assert all(now.is_equivalent_to(then, axes) for (now, axes), then in zip(lies, born, strict=True))
    return state

  alone, spread = run("alone"), run("spread", make_mesh(shape))
  assert all(len(x.devices()) == 8 for x in jax.tree.leaves(spread))
  assert all(x.is_fully_replicated for x in jax.tree.leaves(spread)) == (shape == (8, 1, 1))
  close(spread, alone)
  for name, mesh, count in (("one", None, 1), ("four", make_mesh((1, 4, 1)), 4)):
    shutil.copytree(tmp_path / "spread/checkpoints/3", tmp_path / name / "checkpoints/3")
    moved = run(name, mesh)
    assert all(len(x.devices()) == count for x in jax.tree.leaves(moved))
    close(moved, alone)


def test_a_batch_that_cannot_be_divided_over_the_devices_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"evenly over 8 devices: 'x' has the shape \(4, 3\)"):
    fit(*begin(), batches, steps=1, workdir=tmp_path, mesh=make_mesh())


def test_the_frozen_part_is_as_it_was(straight):
  assert float(straight[1].frozen["offset"]) == 0.5


def test_a_checkpoint_of_another_model_is_refused(straight, tmp_path):
  folder, _ = straight
  theta = {"params": {"w": jnp.zeros(3)}}
  with (
    Checkpoints(folder / "checkpoints") as checkpoints,
    pytest.raises(ValueError, match="another model or optimizer"),
  ):
    checkpoints.restore(TrainState.create(theta, optax.sgd(0.1)))


def test_the_loop_stops_where_a_number_is_not_finite(tmp_path):
  step, state = begin()

  def poisoned(i):
    batch = batches(i)
    return batch | {"y": batch["y"] * np.float32(np.nan if i == 7 else 1)}

  with pytest.raises(FloatingPointError, match=r"loss.* at step 8; the last good checkpoint is that of step 6"):
    fit(step, state, poisoned, steps=STEPS, workdir=tmp_path, log_every=3, save_every=6)
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    assert checkpoints.latest() == 6


def test_what_is_measured_and_drawn_beside_checkpoints_is_logged(tmp_path):
  step, state = begin()

  def inspect(now):
    # What is frozen is still its owner's to read.
    assert float(now.frozen["offset"]) == float(state.frozen["offset"]) == 0.5
    return {"at": int(now.step), "toys": Sheet(jnp.zeros((3, 4, 4, 3)), ["a toy"] * 3)}

  fit(step, state, batches, steps=4, workdir=tmp_path, log_every=9, save_every=2, inspect=inspect)
  lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
  assert [line["at"] for line in lines if "at" in line] == [2, 4]
  assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["toys-2.png", "toys-4.png"]


def stopping(folder, losses, patience=2):
  """Early stopping by losses that are given, by steps; it appends the steps that it evaluates to `evaluated`."""
  evaluated = []
  watch = EarlyStopping(
    lambda now: evaluated.append(int(now.step)) or losses[int(now.step)], patience, folder / "best.safetensors"
  )
  watch.evaluated = evaluated
  return watch


LOSSES = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5, 10: 0.5, 12: 0.7}


def stopped(folder, watch, rows=batches, steps=STEPS):
  return fit(*begin(), rows, steps=steps, workdir=folder, save_every=2, early_stopping=watch)


def test_a_training_ends_early_once_and_for_all(tmp_path):
  watch = stopping(tmp_path, LOSSES)
  assert int(stopped(tmp_path, watch).step) == 8 and watch.evaluated == [2, 4, 6, 8]
  straight = fit(*begin(), batches, steps=4, workdir=tmp_path / "straight")
  jax.tree.map(np.testing.assert_array_equal, watch.best, jax.device_get(averaged(straight)))
  log = (tmp_path / "log.jsonl").read_text()
  again = stopping(tmp_path, LOSSES)
  assert int(stopped(tmp_path, again, rows=pytest.fail).step) == 8 and again.evaluated == []
  jax.tree.map(np.testing.assert_array_equal, again.best, watch.best)
  assert (tmp_path / "log.jsonl").read_text() == log
  more = stopping(tmp_path, LOSSES, patience=4)  # which may be asked for later
  assert int(stopped(tmp_path, more).step) == STEPS and more.evaluated == [10, 12]
  assert not any(map(np.array_equal, *map(jax.tree.leaves, (more.best, watch.best))))


def test_a_finished_training_keeps_its_best_theta(tmp_path):
  watch = stopping(tmp_path, LOSSES, patience=9)
  stopped(tmp_path, watch)
  again = stopping(tmp_path, {}, patience=9)
  stopped(tmp_path, again, rows=pytest.fail)
  jax.tree.map(np.testing.assert_array_equal, again.best, watch.best)


@pytest.mark.parametrize("dies_at", [5, "evaluation"])
def test_early_stopping_goes_on_where_it_was_cut_off(tmp_path, dies_at):
  def dying(i):
    if i == dies_at:
      raise KeyboardInterrupt
    return batches(i)

  losses = LOSSES if dies_at == 5 else {2: 3.0, 4: 1.0}  # the evaluation of step 6 fails
  with pytest.raises((KeyboardInterrupt, KeyError)):
    stopped(tmp_path, stopping(tmp_path, losses), dying)
  again = stopping(tmp_path, LOSSES)
  assert int(stopped(tmp_path, again).step) == 8 and again.evaluated == [6, 8]
  watch = stopping(tmp_path / "straight", LOSSES)
  stopped(tmp_path / "straight", watch)
  jax.tree.map(np.testing.assert_array_equal, again.best, watch.best)


def test_an_evaluation_before_the_checkpoint_was_complete_is_not_counted_twice(tmp_path):
  stopped(tmp_path, stopping(tmp_path, LOSSES), steps=6)
  shutil.rmtree(tmp_path / "checkpoints/6")
  again = stopping(tmp_path, LOSSES)
  assert int(stopped(tmp_path, again).step) == 8 and again.evaluated == [6, 8]


def test_files_of_trees_say_which_tree_they_hold(tmp_path):
  tree = {"a": [np.arange(3), np.float32(2)], "b": np.ones((2, 1), np.float16)}
  write_tree(tmp_path / "x/tree.safetensors", tree, {"step": 3})
  found, metadata = read_tree(tmp_path / "x/tree.safetensors", tree)
  jax.tree.map(np.testing.assert_array_equal, found, tree)
  assert metadata == {"step": 3} and [path.name for path in (tmp_path / "x").iterdir()] == ["tree.safetensors"]
  with pytest.raises(ValueError, match="holds arrays of another model: choose another workdir"):
    read_tree(tmp_path / "x/tree.safetensors", {"a": tree["a"]})


def test_the_optimizer_is_adamw_as_optax_has_it():
  theta = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}
  ours = make_optimizer(config(decay="constant", warmup=0, clip=1e9, ema=0.0), theta, STEPS)
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    theirs = optax.adamw(1e-3, 0.9, 0.99, weight_decay=0.01, mask={"w": True, "b": False})
    states, thetas = [tx.init(theta) for tx in (ours, theirs)], [theta, theta]
    for i in range(3):
      gradient = jax.tree.map(lambda x, i=i: x * (i + 1.0), theta)
      for j, tx in enumerate((ours, theirs)):
        updates, states[j] = tx.update(gradient, states[j], thetas[j])
        thetas[j] = optax.apply_updates(thetas[j], updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), *thetas)


def test_muon_makes_updates_of_kernels_orthogonal_and_leaves_the_rest_to_adamw():
  rng = np.random.default_rng(0)
  theta = {
    "conv": {"kernel": rng.standard_normal((3, 3, 4, 8), np.float32)},
    "bias": np.ones(8, np.float32),
    "table": np.ones((9, 4), np.float32),
  }
  fields = {"decay": "constant", "warmup": 0, "ema": 0.0, "weight_decay": 0.0, "clip": 1e9}
  gradient = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), theta)
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    muon, adamw = (make_optimizer(config(kind=kind, **fields), theta, STEPS) for kind in ("muon", "adamw"))
    updates = muon.update(gradient, muon.init(theta), theta)[0]
    others = adamw.update(gradient, adamw.init(theta), theta)[0]
  for name in ("bias", "table"):
    np.testing.assert_array_equal(np.sign(updates[name]), np.sign(others[name]))
    np.testing.assert_allclose(np.abs(updates[name]), np.abs(updates[name]).mean(), rtol=1e-3)  # AdamW's first step
  kernel = updates["conv"]["kernel"]
  stretched = np.linalg.svd(kernel.reshape(36, 8), compute_uv=False) / (1e-3 * 0.2 * np.sqrt(36))
  assert np.all((stretched > 0.6) & (stretched < 1.3)), stretched
  assert np.sum(kernel * gradient["conv"]["kernel"]) < 0


def test_an_unknown_kind_is_refused():
  with pytest.raises(ValueError, match="sgd"):
    make_optimizer(config(kind="sgd"), {"w": jnp.ones(2)}, 9)


def test_learning_rates_by_name():
  theta = {"text": {"w": jnp.ones((2, 2))}, "image": {"w": jnp.ones((2, 2))}}
  with jax.numpy_dtype_promotion("standard"):
    tx = make_optimizer(config(multipliers=(("^text/", 0.1),), warmup=0, decay="constant", weight_decay=0.0), theta, 9)
    updates, _ = tx.update(theta, tx.init(theta), theta)
  np.testing.assert_allclose(updates["text"]["w"], 0.1 * updates["image"]["w"], rtol=1e-6)
  with pytest.raises(ValueError, match="'adapter'"):
    make_optimizer(config(multipliers=(("adapter", 0.1),)), theta, 9)


def test_an_unknown_decay_is_refused():
  with pytest.raises(ValueError, match="linear"):
    make_optimizer(config(decay="linear"), {"w": jnp.ones(2)}, 9)


def test_the_moving_average_is_that_of_all_thetas_so_far():
  theta = {"w": jnp.zeros(2)}
  tx = make_optimizer(config(ema=0.9, warmup=0, decay="constant"), theta, STEPS)
  state = TrainState.create(theta, tx)
  step = jax.jit(make_step(lambda t, f, b, k: (jnp.sum((t["w"] - 3.0) ** 2), {}), tx, 0))
  expected = np.zeros(2)
  for n in range(5):
    state, _ = step(state, None)
    keep = min(0.9, (1 + n) / (10 + n))
    expected = keep * expected + (1 - keep) * np.asarray(state.theta["w"])
  np.testing.assert_allclose(averaged(state)["w"], expected, rtol=1e-5)
  assert averaged(state.replace(opt_state=())) is state.theta


def test_pieces_of_a_batch_average_to_its_gradient():
  _, state = begin()
  batch = {"x": np.ones((6, 3), np.float32), "y": np.arange(6.0, dtype=np.float32)}
  exact = jax.value_and_grad(lambda theta, frozen, batch, key: jnp.mean(predict(theta, batch)), has_aux=False)

  def predict(theta, batch):
    return (network().apply(theta, batch["x"])[:, 0] - batch["y"]) ** 2

  whole = exact(state.theta, None, batch, jax.random.key(0))
  parts = jax.jit(accumulate(exact, 3))(state.theta, None, batch, jax.random.key(0))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, whole)


def test_a_mean_counts_what_there_is_in_all_microbatches_and_updates(tmp_path):
  """Groups of 3 and 1 in microbatches of 2, and in the last two updates none of the second group at all."""

  def grouped(theta, frozen, batch, key):
    errors = (batch["x"] - theta["w"]) ** 2
    first = jnp.where(batch["first"], 1.0, 0.0)
    named = {name: Mean((errors * own).sum(), own.sum()) for name, own in (("first", first), ("second", 1.0 - first))}
    return errors.mean(), named

  tx = optax.sgd(0.0)
  x = [np.array([1, 2, 3, 4], np.float32) + i for i in range(4)]
  is_first = [np.array([True, True, True, i > 1]) for i in range(4)]
  rows = lambda i: {"x": x[i], "first": is_first[i]}  # noqa: E731
  state = TrainState.create({"w": jnp.zeros(())}, tx)
  fit(make_step(grouped, tx, 0, accumulation_steps=2), state, rows, steps=4, workdir=tmp_path, log_every=2)
  lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
  groups = [np.concatenate([x[i][is_first[i]] for i in pair]) for pair in ((0, 1), (2, 3))]
  np.testing.assert_allclose([line["first"] for line in lines], [np.mean(group**2) for group in groups], rtol=1e-6)
  np.testing.assert_allclose(lines[0]["second"], (4**2 + 5**2) / 2, rtol=1e-6)
  assert "second" not in lines[1]


def test_pieces_have_keys_of_their_own_and_must_divide_the_batch():
  draw = accumulate(lambda theta, frozen, batch, key: jax.random.normal(key, (2,)), 2)
  a, b = jax.random.split(jax.random.key(3))
  mean = (jax.random.normal(a, (2,)) + jax.random.normal(b, (2,))) / 2
  np.testing.assert_allclose(draw(None, None, jnp.zeros(4), jax.random.key(3)), mean, rtol=1e-6)
  with pytest.raises(ValueError, match="5 examples cannot be divided into 2"):
    draw(None, None, jnp.zeros(5), jax.random.key(3))
