"""The one training loop."""

from collections.abc import Callable, Mapping
import concurrent.futures
import pathlib
import time
from typing import Any

import jax
import numpy as np
import tqdm

from dreamjax.parallel import processes
from dreamjax.parallel.sharding import make_mesh, shard_batch, shard_params
from dreamjax.train.checkpoints import Checkpoints
from dreamjax.train.early_stopping import EarlyStopping
from dreamjax.train.logs import Log, Sheet
from dreamjax.train.state import TrainState
from dreamjax.train.step import Mean, Step


def fit(
  step: Step,
  state: TrainState,
  batches: Callable[[int], Any],
  *,
  steps: int,
  workdir: pathlib.Path,
  log_every: int = 50,
  save_every: int = 500,
  inspect: Callable[[TrainState], Mapping[str, Any]] | None = None,
  early_stopping: EarlyStopping | None = None,
  mesh: jax.sharding.Mesh | None = None,
  tensorboard: bool = False,
) -> TrainState:
  """Trains, or goes on with a training that was cut off.

  Args:
    step: the update, see `make_step`; compiled here.
    state: the state before the first update; its buffers are donated, except those of `frozen`.
    batches: batch(i) is the batch of update i. It is called in a thread of its own, one step ahead.
    steps: how many updates there will have been at the end.
    workdir: holds `checkpoints/`, `log.jsonl` and what else `Log` writes. If there are checkpoints, the newest one
      replaces `state`.
    log_every: metrics are averaged over so many updates and logged.
    save_every: a checkpoint is begun after so many updates, and after the last.
    inspect: called whenever a checkpoint was begun; what it returns by name is logged: scalars, and sheets of images.
    early_stopping: evaluated at the same steps; the training ends early if it says so, and one that has ended so is not
      trained on.
    mesh: the devices, see `parallel.sharding`, by which the state and the examples of every batch are sharded. By
      default the first device alone. The result depends on it by rounding only, and a training may go on on another.
    tensorboard: whether the log is written for TensorBoard, too.

  Returns:
    The state after the last update.

  Raises:
    processes.Preempted: after a checkpoint, if the process receives SIGTERM: called again, it resumes there.
    FloatingPointError: when a metric is not finite. It names the step and the last checkpoint, which came before.
    ValueError: if the workdir holds checkpoints of another model or optimizer, if a batch cannot be divided evenly over
      the devices, or if TensorBoard's files are asked for and TensorFlow is not installed.
  """
  mesh = make_mesh((1, 1, 1)) if mesh is None else mesh
  state = shard_params(state, mesh)
  return repeat(
    jit_update(step, state, mesh),
    state,
    batches,
    steps=steps,
    workdir=workdir,
    log_every=log_every,
    save_every=save_every,
    inspect=inspect,
    early_stopping=early_stopping,
    mesh=mesh,
    tensorboard=tensorboard,
  )


def repeat(
  update: Callable[..., Any],
  state: TrainState,
  batches: Callable[[int], Any],
  *,
  steps: int,
  workdir: pathlib.Path,
  log_every: int,
  save_every: int,
  inspect: Callable[[TrainState], Mapping[str, Any]] | None = None,
  early_stopping: EarlyStopping | None = None,
  mesh: jax.sharding.Mesh,
  tensorboard: bool = False,
) -> TrainState:
  """The loop of `fit`, for an update of `jit_update` and a state that lies on the mesh already."""
  log = Log(workdir / "log.jsonl", tensorboard)
  read = lambda i: shard_batch(batches(i), mesh)  # noqa: E731
  with (
    Checkpoints(workdir / "checkpoints") as checkpoints,
    concurrent.futures.ThreadPoolExecutor(1) as ahead,
    processes.watch_preemption() as is_to_end,
  ):
    if checkpoints.latest() is not None:
      state = checkpoints.restore(state)
    first = int(state.step)
    if early_stopping is not None:
      early_stopping.restore(state)
      # A training may be cut off between a checkpoint and its evaluation. A checkpoint that was made only because the
      # process was asked to stop is not evaluated: the result must not depend on where a training was cut off.
      if early_stopping.step < first and (first % save_every == 0 or first >= steps):
        _write(log, first, early_stopping(state))
      if early_stopping.ends():
        return state
    coming = ahead.submit(read, first) if first < steps else None
    metrics: list[dict[str, Any]] = []
    began = time.perf_counter()
    bar = tqdm.trange(
      first, steps, initial=first, total=steps, unit=" steps", desc="training", disable=processes.disable_progress()
    )
    for i in bar:
      batch = coming.result()
      coming = ahead.submit(read, i + 1) if i + 1 < steps else None
      with jax.set_mesh(mesh):  # so that a loss may name the mesh's axes
        changed, named = update(state.replace(frozen=None), state.frozen, batch)
      state = changed.replace(frozen=state.frozen)
      metrics.append(named)
      done = i + 1
      preempted = is_to_end()
      is_due = done == steps or done % save_every == 0
      if preempted or is_due or done % log_every == 0:
        means = _means(metrics, done, checkpoints)
        now = time.perf_counter()
        log.write(done, means | {"steps_per_second": len(metrics) / (now - began)})
        bar.set_postfix(loss=float(np.mean(means["loss"])), refresh=False)
        metrics, began = [], now
      if preempted or is_due:
        checkpoints.save(state)
      if preempted:
        checkpoints.wait()
        raise processes.Preempted(f"the machine is to be given up; the checkpoint of step {done} is on disk")
      if is_due and inspect is not None:
        _write(log, done, inspect(state))
      if is_due and early_stopping is not None:
        _write(log, done, early_stopping(state))
        if early_stopping.ends():
          break
      if is_due:
        began = time.perf_counter()
  return state


def jit_update(step: Step, state: TrainState, mesh: jax.sharding.Mesh) -> Any:
  """Compiles the update for a state that is sharded as this one is, and stays so.

  `frozen` is an argument of its own, neither donated, so that its owner may go on reading it, nor copied.

  Args:
    step: see `make_step`.
    state: arrays, or shapes with the shardings that arrays will have.
    mesh: of devices.

  Returns:
    update(state, frozen, batch) -> (state, metrics), jitted; of both states, `frozen` is None.
  """

  def update(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, dict[str, Any]]:
    state, metrics = step(state.replace(frozen=frozen), batch)
    return state.replace(frozen=None), metrics

  shardings = jax.tree.map(lambda x: x.sharding, state.replace(frozen=None))
  return jax.jit(update, donate_argnums=0, out_shardings=(shardings, jax.NamedSharding(mesh, jax.P())))


def _write(log: Log, step: int, found: Mapping[str, Any]) -> None:
  """Logs scalars and sheets of images."""
  sheets = {name: x for name, x in found.items() if isinstance(x, Sheet)}
  if scalars := {name: float(x) for name, x in found.items() if name not in sheets}:
    log.write(step, scalars)
  for name, sheet in sheets.items():
    log.sheet(step, name, sheet)


def _means(metrics: list[dict[str, Any]], done: int, checkpoints: Checkpoints) -> dict[str, Any]:
  """Averages the metrics of the last updates, all of which must be finite.

  A `Mean` is averaged over all that was counted in these updates, and left out where that is nothing. Metrics of
  several fits, [n], stay apart; a mean of nothing is NaN there.

  They are averaged here and not by `clu.metrics`: to name the update that went wrong, the values of each are fetched.
  """
  host = jax.device_get(metrics)
  for i, named in enumerate(host):
    if bad := [name for name, value in named.items() if not all(np.isfinite(x).all() for x in jax.tree.leaves(value))]:
      last = checkpoints.latest()
      good = "there is no checkpoint yet" if last is None else f"the last good checkpoint is that of step {last}"
      raise FloatingPointError(f"{', '.join(bad)} not finite at step {done - len(host) + i + 1}; {good}")
  means = {}
  for name, value in host[0].items():
    values = [named[name] for named in host]
    if isinstance(value, Mean):
      total, count = (np.sum([getattr(x, field) for x in values], axis=0) for field in ("total", "count"))
      if np.any(count):
        means[name] = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    else:
      means[name] = np.mean(np.asarray(values, np.float64), axis=0)
  return {name: float(x) if np.ndim(x) == 0 else x for name, x in means.items()}
