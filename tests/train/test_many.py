"""Many fits at once, each of which ends as it does alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.parallel.sharding import make_mesh
from dreamjax.train import many
from dreamjax.train.loop import fit
from dreamjax.train.many import fit_many, stack_state
from dreamjax.train.optimizer import averaged, default_config, make_optimizer
from dreamjax.train.state import TrainState
from dreamjax.train.step import Mean, make_step

STEPS, SEEDS = 6, (5, 3, 8)


def loss(theta, frozen, batch, key):
  x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
  error = x @ frozen["kernel"] @ theta["w"] - batch["y"]
  is_large = jnp.where(jnp.abs(batch["y"]) > 1.0, 1.0, 0.0)
  return jnp.mean(error**2), {"large": Mean((is_large * error**2).sum(), is_large.sum())}


def start(number):
  return {"w": np.random.default_rng(number).normal(size=3).astype(np.float32)}


def batches(i, number):
  draw = np.random.default_rng((i, number))
  return {name: draw.normal(size=shape).astype(np.float32) for name, shape in (("x", (4, 3)), ("y", (4,)))}


def setting():
  config = default_config()
  config.update({"warmup": 0, "decay": "constant", "ema": 0.9, "learning_rate": 0.1})
  tx = make_optimizer(config, start(0), STEPS)
  return tx, {"kernel": np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)}


def stack(trees):
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def run(workdir, *, chunk=2, seeds=SEEDS, asked=None, dies_at=None, mesh=None):
  """Trains; the batches that were made are appended to `asked`."""
  tx, frozen = setting()

  def rows(i, numbers):
    if asked is not None:
      asked.append((i, numbers.tolist()))
    if (i, int(numbers[0])) == dies_at:
      raise KeyboardInterrupt
    return stack([batches(i, number) for number in numbers])

  states = lambda numbers: stack_state(jax.tree.map(jnp.asarray, stack(map(start, numbers))), tx, frozen)  # noqa: E731
  step = make_step(loss, tx, seed=0)
  return fit_many(
    step, states, rows, seeds, chunk=chunk, steps=STEPS, workdir=workdir, log_every=3, save_every=2, mesh=mesh
  )


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Three fits, two at a time: (workdir, result)."""
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, run(workdir)


def test_each_fit_ends_as_it_does_alone(whole, tmp_path):
  _, fits = whole
  assert {name: x.shape for name, x in fits.metrics.items()} == dict.fromkeys(
    ("loss", "large", "gradient_norm", "update_norm"), (3,)
  )
  tx, frozen = setting()
  for number, seed in enumerate(SEEDS):
    state = TrainState.create(jax.tree.map(jnp.asarray, start(number)), tx, frozen)
    own = lambda i, number=number: batches(i, number)  # noqa: E731
    folder = tmp_path / str(number)
    state = fit(make_step(loss, tx, seed), state, own, steps=STEPS, workdir=folder, log_every=3, save_every=2)
    np.testing.assert_allclose(fits.theta["w"][number], averaged(state)["w"], rtol=1e-5)
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    for name in ("loss", "large", "gradient_norm"):
      np.testing.assert_allclose(fits.metrics[name][number], last[name], rtol=1e-5)


def test_finished_chunks_are_read_and_not_trained_again(whole):
  workdir, fits = whole
  asked = []
  same(run(workdir, asked=asked), fits)
  assert not asked and not list(workdir.glob("*/checkpoints"))


@pytest.mark.parametrize(("dies_at", "again"), [((4, 0), (0, 2)), ((3, 2), (2, 2))], ids=["first", "last"])
def test_fits_that_were_cut_off_end_as_those_that_were_not(whole, tmp_path, dies_at, again):
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, dies_at=dies_at)
  asked = []
  same(run(tmp_path, asked=asked), whole[1])
  first = asked[0]
  assert first[0] > 0 and first[1][0] == dies_at[1]  # it goes on in the chunk, at a checkpoint
  assert all(numbers[0] >= dies_at[1] for _, numbers in asked)  # and what was finished is not trained again


def test_fits_are_the_same_in_chunks_of_any_size_and_on_a_mesh(whole, tmp_path):
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)  # noqa: E731
  jax.tree.map(close, run(tmp_path / "three", chunk=9), whole[1])
  seeds = (*SEEDS, 1, 2, 4, 6, 7, 9)
  found = run(tmp_path / "spread", chunk=8, seeds=seeds, mesh=make_mesh((4, 2, 1)))
  jax.tree.map(close, jax.tree.map(lambda x: x[:3], found), whole[1])
  assert found.theta["w"].shape == (9, 3)
  with pytest.raises(ValueError, match="a chunk of 3 fits cannot be divided evenly over 8 devices"):
    run(tmp_path / "uneven", chunk=3, mesh=make_mesh())


def test_other_fits_than_those_of_the_workdir_are_refused(whole):
  with pytest.raises(ValueError, match="holds fits with other seeds"):
    run(whole[0], seeds=(5, 4, 8))


def test_one_program_trains_all_chunks(tmp_path, monkeypatch):
  made, jit_update = [], many.jit_update
  monkeypatch.setattr(many, "jit_update", lambda *args: made.append(jit_update(*args)) or made[-1])
  run(tmp_path, chunk=1)
  assert len(made) == 1 and made[0]._cache_size() == 1
