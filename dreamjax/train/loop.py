"""The one training loop."""

from collections.abc import Callable
import concurrent.futures
import math
import pathlib
import time
from typing import Any

import jax
import tqdm

from dreamjax.train.checkpoints import Checkpoints
from dreamjax.train.logs import Log
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
  inspect: Callable[[TrainState], dict[str, float]] | None = None,
) -> TrainState:
  """Trains, or goes on with a training that was cut off.

  Args:
    step: the update, see `make_step`; compiled here.
    state: the state before the first update; its buffers are given away.
    batches: batch(i) is what update i sees. It is called in a thread of its own, one step ahead.
    steps: how many updates there will have been at the end.
    workdir: holds `checkpoints/` and `log.jsonl`. If there are checkpoints, the newest one takes `state`'s place.
    log_every: metrics are averaged over so many updates and logged.
    save_every: a checkpoint is begun after so many updates, and after the last.
    inspect: called whenever a checkpoint was begun; what it measures is logged. It may write pictures, too.

  Returns:
    The state after the last update.

  Raises:
    FloatingPointError: when a metric is not finite. It names the step and the last checkpoint, which came before.
    ValueError: if the workdir holds checkpoints of another model or optimizer.
  """
  run = jax.jit(step, donate_argnums=0)
  log = Log(workdir / "log.jsonl")
  with Checkpoints(workdir / "checkpoints") as checkpoints, concurrent.futures.ThreadPoolExecutor(1) as ahead:
    if checkpoints.latest() is not None:
      state = checkpoints.restore(state)
    state = jax.device_put(state, jax.devices()[0])  # all in one place, so that the step is compiled once
    first = int(state.step)
    coming = ahead.submit(batches, first) if first < steps else None
    seen: list[dict[str, jax.Array]] = []
    began = time.perf_counter()
    for i in tqdm.trange(first, steps, initial=first, total=steps, unit=" steps", desc="training", disable=None):
      batch = coming.result()
      coming = ahead.submit(batches, i + 1) if i + 1 < steps else None
      state, metrics = run(state, batch)
      seen.append(metrics)
      done = i + 1
      is_last = done == steps
      saves = is_last or done % save_every == 0
      if is_last or saves or done % log_every == 0:
        means = _means(seen, done, checkpoints)
        now = time.perf_counter()
        log.write(done, means | {"steps_per_second": len(seen) / (now - began)})
        seen, began = [], now
      if saves:
        checkpoints.save(state)
        if inspect is not None:
          log.write(done, inspect(state))
          began = time.perf_counter()
  return state


def _means(seen: list[dict[str, jax.Array]], done: int, checkpoints: Checkpoints) -> dict[str, float]:
  """The means of the metrics of some updates, all of them finite."""
  host = jax.device_get(seen)
  for i, metrics in enumerate(host):
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
      last = checkpoints.latest()
      good = "there is no checkpoint yet" if last is None else f"the last good checkpoint is that of step {last}"
      raise FloatingPointError(f"{', '.join(bad)} not finite at step {done - len(host) + i + 1}; {good}")
  return {name: sum(float(metrics[name]) for metrics in host) / len(host) for name in host[0]}
