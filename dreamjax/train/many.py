"""Many fits at once: one step, mapped over thetas of their own, with one set of frozen weights."""

from collections.abc import Callable, Sequence
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int
import numpy as np
import optax
import tqdm

from dreamjax.errors import UserError
from dreamjax.parallel import processes
from dreamjax.parallel.sharding import batch_shards, make_mesh, shard_batch, shard_params
from dreamjax.train.checkpoints import read_tree, write_tree
from dreamjax.train.loop import jit_update, repeat
from dreamjax.train.optimizer import averaged
from dreamjax.train.state import TrainState
from dreamjax.train.step import Step

#: The axes of a stacked state, for `jax.vmap`.
_AXES = TrainState(step=None, theta=0, frozen=None, opt_state=0)


class Fits(NamedTuple):
  """The results of n fits, in the host's memory.

  Attributes:
    theta: stacked, each leaf [n, ...]: the moving averages, where the optimizer keeps them.
    metrics: by name, each [n]: the means over the last updates that were logged.
  """

  theta: Any
  metrics: dict[str, np.ndarray]


def stack_state(theta: Any, tx: optax.GradientTransformation, frozen: Any = None) -> TrainState:
  """Returns the state of n fits before the first update.

  Args:
    theta: stacked, each leaf [n, ...].
    tx: the optimizer of one fit.
    frozen: what all fits read.
  """
  return TrainState(jnp.zeros((), jnp.int32), theta, frozen, jax.vmap(tx.init)(theta))


def fit_many(
  step: Step,
  states: Callable[[Int[np.ndarray, " c"]], TrainState],
  batches: Callable[[int, Int[np.ndarray, " c"]], Any],
  seeds: Sequence[int],
  *,
  chunk: int,
  steps: int,
  workdir: pathlib.Path,
  log_every: int = 50,
  save_every: int = 500,
  mesh: jax.sharding.Mesh | None = None,
) -> Fits:
  """Trains n thetas, a chunk of them at once, or goes on where an earlier call was cut off.

  Fit k ends as `fit` alone does with the seed seeds[k], its own state and its own batches. A chunk that is finished is
  read from disk, and one that was cut off goes on at its last checkpoint.

  Args:
    step: the update of one fit, see `make_step`.
    states: states(k) is the state (`stack_state`) of the fits with the numbers k, [chunk], before the first update.
      Of `frozen`, that of the first chunk is used for all.
    batches: batches(i, k) is what the fits with the numbers k see in update i, each array [chunk, ...].
    seeds: of the randomness of each fit; there are as many fits.
    chunk: how many fits are trained at once. The last chunk is filled up with its last fit, for one program to do all.
    steps: how many updates each has.
    workdir: gets a folder for each chunk.
    log_every: see `fit`; lines of the logs hold lists, one number for each fit of a chunk.
    save_every: see `fit`.
    mesh: of devices, over whose data axes the fits of a chunk are sharded; by default the first device alone.

  Raises:
    ValueError: if a chunk cannot be divided over the devices, or the workdir holds other fits.
    FloatingPointError, processes.Preempted: as `fit`.
  """
  mesh = make_mesh((1, 1, 1)) if mesh is None else mesh
  chunk = min(chunk, len(seeds))
  if chunk < 1 or chunk % batch_shards(mesh):
    raise UserError(f"a chunk of {chunk} fits cannot be divided evenly over {batch_shards(mesh)} devices")
  frozen, update, found = None, None, []
  with tqdm.tqdm(total=len(seeds), unit=" fits", desc="fits", disable=processes.disable_progress()) as bar:
    for first in range(0, len(seeds), chunk):
      count = min(chunk, len(seeds) - first)
      numbers = first + np.minimum(np.arange(chunk), count - 1)
      own = np.asarray(seeds, np.uint32)[numbers]
      folder = workdir / f"fits-{first:06d}"
      made = {"seeds": own[:count].tolist(), "steps": steps}
      state = states(numbers)
      if (result := _read(folder, averaged(state), count, made)) is None:
        if update is None:
          frozen = shard_params(state.frozen, mesh)
        state = _sharded(state, frozen, mesh)
        update = update or jit_update(_mapped(step), state, mesh)
        batch = lambda i, numbers=numbers, own=own: (batches(i, numbers), own)  # noqa: E731
        options = {"steps": steps, "log_every": log_every, "save_every": save_every, "mesh": mesh}
        state = repeat(update, state, batch, workdir=folder, **options)
        _finish(folder, jax.tree.map(lambda x, count=count: x[:count], processes.fetch(averaged(state))), count, made)
        result = _read(folder, averaged(state), count, made)
      found.append(result)
      bar.update(count)
  return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _mapped(step: Step) -> Step:
  """The step of a stacked state; a batch comes with the seed of each fit.

  The networks of a fit do not see the mesh: they would keep the examples of its batch sharded over it, where the fits
  are.
  """

  def many(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
      return jax.vmap(step, in_axes=(_AXES, 0, 0), out_axes=(_AXES, 0))(state, *batch)

  return many


def _sharded(state: TrainState, frozen: Any, mesh: jax.sharding.Mesh) -> TrainState:
  """The state, its fits sharded over the mesh's data axes."""
  theta, opt_state = shard_batch((state.theta, state.opt_state), mesh)
  return TrainState(shard_params(state.step, mesh), theta, frozen, opt_state)


def _finish(folder: pathlib.Path, theta: Any, count: int, made: dict[str, Any]) -> None:
  """Writes the results of a chunk, complete or not at all, and deletes its checkpoints."""

  def write() -> None:
    lines = (folder / "log.jsonl").read_text().splitlines()
    last = {name: x[:count] for name, x in json.loads(lines[-1]).items() if isinstance(x, list)}
    write_tree(folder / "theta.safetensors", theta, {**made, "metrics": last})
    shutil.rmtree(folder / "checkpoints")

  processes.on_main_process(write)


def _read(folder: pathlib.Path, like: Any, count: int, made: dict[str, Any]) -> Fits | None:
  """Reads the results of a chunk; None if it is not finished."""
  path = folder / "theta.safetensors"
  if not path.is_file():
    return None
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), like)
  theta, metadata = read_tree(path, like)
  if {name: metadata.get(name) for name in made} != made:
    raise UserError(f"{folder} holds fits with other seeds, or of another number of steps: choose another workdir")
  return Fits(theta, {name: np.array(x) for name, x in metadata["metrics"].items()})
