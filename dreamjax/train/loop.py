"""The one training loop."""

from collections.abc import Callable, Mapping
import concurrent.futures
import math
import pathlib
import time
from typing import Any

import jax
import tqdm

from dreamjax.parallel import processes
from dreamjax.parallel.sharding import make_mesh, shard_batch, shard_params
from dreamjax.train.checkpoints import Checkpoints
from dreamjax.train.logs import Log, Sheet
from dreamjax.train.state import TrainState
from dreamjax.train.step import Step


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
  enough: Callable[[], bool] = lambda: False,
  mesh: jax.sharding.Mesh | None = None,
  tensorboard: bool = False,
) -> TrainState:
  """Trains, or goes on with a training that was cut off.

  Args:
    step: the update, see `make_step`; compiled here.
    state: the state before the first update; its buffers are given away, but for those of what is frozen.
    batches: batch(i) is what update i sees. It is called in a thread of its own, one step ahead.
    steps: how many updates there will have been at the end.
    workdir: holds `checkpoints/`, `log.jsonl` and what else `Log` writes. If there are checkpoints, the newest one
      takes `state`'s place.
    log_every: metrics are averaged over so many updates and logged.
    save_every: a checkpoint is begun after so many updates, and after the last.
    inspect: called whenever a checkpoint was begun; what it returns by name is logged: scalars, and sheets
      of images.
    enough: asked after each `inspect`; the training ends early if it says so.
    mesh: the devices, see `parallel.sharding`, which says what of the state each has, and of the rows of every batch. By
      default the first device alone. The result depends on it by rounding only, and a training may go on on another.
    tensorboard: whether the log is written for TensorBoard, too.

  Returns:
    The state after the last update.

  Raises:
    processes.Preempted: behind a checkpoint, if the process is told to end (SIGTERM): called again, it goes on there.
    FloatingPointError: when a metric is not finite. It names the step and the last checkpoint, which came before.
    ValueError: if the workdir holds checkpoints of another model or optimizer, if a batch cannot be divided evenly over
      the devices, or if TensorBoard's files are asked for and TensorFlow is not installed.
  """
  mesh = make_mesh((1, 1, 1)) if mesh is None else mesh
  log = Log(workdir / "log.jsonl", tensorboard)
  state = shard_params(state, mesh)
  run = _compiled(step, state, mesh)
  draw = lambda i: shard_batch(batches(i), mesh)  # noqa: E731
  with (
    Checkpoints(workdir / "checkpoints") as checkpoints,
    concurrent.futures.ThreadPoolExecutor(1) as ahead,
    processes.watch_preemption() as is_to_end,
  ):
    if checkpoints.latest() is not None:
      state = checkpoints.restore(state)
    first = int(state.step)
    coming = ahead.submit(draw, first) if first < steps else None
    seen: list[dict[str, jax.Array]] = []
    began = time.perf_counter()
    bar = tqdm.trange(
      first, steps, initial=first, total=steps, unit=" steps", desc="training", disable=processes.disable_progress()
    )
    for i in bar:
      batch = coming.result()
      coming = ahead.submit(draw, i + 1) if i + 1 < steps else None
      state, metrics = run(state, batch)
      seen.append(metrics)
      done = i + 1
      is_last = done == steps
      ends = is_to_end()
      saves = ends or is_last or done % save_every == 0
      if is_last or saves or done % log_every == 0:
        means = _means(seen, done, checkpoints)
        now = time.perf_counter()
        log.write(done, means | {"steps_per_second": len(seen) / (now - began)})
        bar.set_postfix(loss=means["loss"], refresh=False)
        seen, began = [], now
      if saves:
        checkpoints.save(state)
        if ends:
          checkpoints.wait()
          raise processes.Preempted(f"the machine is to be given up; the checkpoint of step {done} is on disk")
        if inspect is not None:
          _write(log, done, inspect(state))
          began = time.perf_counter()
        if enough():
          break
  return state


def jit_update(step: Step, state: TrainState, mesh: jax.sharding.Mesh) -> Any:
  """The update as `fit` compiles it, for a state that lies as this one does, and stays there.

  What is frozen passes it by: it is neither given away, so that its owner may go on reading it, nor copied.

  Args:
    step: see `make_step`.
    state: arrays, or shapes with the shardings that arrays will have.
    mesh: of devices.

  Returns:
    update(state, frozen, batch) -> (state, metrics), jitted; of both states, `frozen` is None.
  """

  def update(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    state, metrics = step(state.replace(frozen=frozen), batch)
    return state.replace(frozen=None), metrics

  places = jax.tree.map(lambda x: x.sharding, state.replace(frozen=None))
  return jax.jit(update, donate_argnums=0, out_shardings=(places, jax.NamedSharding(mesh, jax.P())))


def _compiled(step: Step, state: TrainState, mesh: jax.sharding.Mesh) -> Step:
  update = jit_update(step, state, mesh)

  def run(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    with jax.set_mesh(mesh):  # so that a loss may name the mesh's axes
      changed, metrics = update(state.replace(frozen=None), state.frozen, batch)
    return changed.replace(frozen=state.frozen), metrics

  return run


def _write(log: Log, step: int, found: Mapping[str, Any]) -> None:
  """Logs scalars and sheets of images."""
  sheets = {name: x for name, x in found.items() if isinstance(x, Sheet)}
  if scalars := {name: float(x) for name, x in found.items() if name not in sheets}:
    log.write(step, scalars)
  for name, sheet in sheets.items():
    log.sheet(step, name, sheet)


def _means(seen: list[dict[str, jax.Array]], done: int, checkpoints: Checkpoints) -> dict[str, float]:
  """The means of the metrics of some updates, all of them finite.

  They are taken here and not by `clu.metrics`: to name the update that went wrong, each one's values must be fetched.
  """
  host = jax.device_get(seen)
  for i, metrics in enumerate(host):
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
      last = checkpoints.latest()
      good = "there is no checkpoint yet" if last is None else f"the last good checkpoint is that of step {last}"
      raise FloatingPointError(f"{', '.join(bad)} not finite at step {done - len(host) + i + 1}; {good}")
  return {name: sum(float(metrics[name]) for metrics in host) / len(host) for name in host[0]}
