"""Checkpoints of a training by Orbax, and single files of trees; a file is complete or not there at all."""

from collections.abc import Mapping
import json
import os
import pathlib
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy

from dreamjax.errors import UserError
from dreamjax.parallel.sharding import path_name as path_of
from dreamjax.train.state import TrainState


class _Manager(ocp.CheckpointManager):
  """Orbax's manager without its own check for preemption.

  `parallel.processes` checks for it, by a count of its own. JAX's service takes the last number that it was asked with
  for the program's step, and would wait for a step that never comes if both asked.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


class Checkpoints:
  """The newest checkpoints of one training, in a folder. As a context, it waits for the last one at its end.

  `state.frozen` is not saved, as the training does not change it.
  """

  def __init__(self, folder: pathlib.Path, keep: int = 2) -> None:
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    self._manager = _Manager(folder.resolve(), options=options)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self._manager.close()

  def latest(self) -> int | None:
    """The step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(self, state: TrainState) -> None:
    """Begins to save a state in the background; returns as soon as its buffers may be overwritten."""
    self._manager.save(int(state.step), args=ocp.args.StandardSave(_saved(state)))

  def wait(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()

  def restore(self, state: TrainState) -> TrainState:
    """Reads the newest checkpoint, in the shapes, dtypes and shardings of the state that is given.

    Raises:
      ValueError: if the checkpoint was made by another model or optimizer.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _saved(state))
    try:
      found = self._manager.restore(self.latest(), args=ocp.args.StandardRestore(abstract))
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f"{self._manager.directory} holds checkpoints of another model or optimizer: choose another workdir ({error})"
      ) from error
    return state.replace(**found)


def _saved(state: TrainState) -> dict[str, Any]:
  return {"step": state.step, "theta": state.theta, "opt_state": state.opt_state}


def write_tree(path: pathlib.Path, tree: Any, metadata: Mapping[str, Any]) -> None:
  """Writes a tree of arrays as one safetensors file, its folder made where missing.

  Args:
    path: the file; one that is there already is replaced.
    tree: of arrays in the host's memory.
    metadata: what else the file says, in terms of JSON.
  """
  leaves = {path_of(keys): np.asarray(x, order="C") for keys, x in jax.tree_util.tree_leaves_with_path(tree)}
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.with_name(f"{path.name}.unfinished")
  safetensors.numpy.save_file(leaves, unfinished, metadata={name: json.dumps(x) for name, x in metadata.items()})
  os.replace(unfinished, path)


def read_tree(path: pathlib.Path, like: Any) -> tuple[Any, dict[str, Any]]:
  """Reads a file of `write_tree`.

  Args:
    path: the file.
    like: a tree of arrays, or of shapes, with the structure and the shapes of the one that was written.

  Returns:
    The tree, of numpy arrays, and the metadata.

  Raises:
    ValueError: if the file holds another tree.
  """
  with safetensors.safe_open(path, "numpy") as file:
    metadata = {name: json.loads(x) for name, x in (file.metadata() or {}).items()}
    found = {name: file.get_tensor(name) for name in file.keys()}
  wanted = {path_of(keys): np.shape(x) for keys, x in jax.tree_util.tree_leaves_with_path(like)}
  if wanted != {name: x.shape for name, x in found.items()}:
    raise UserError(f"{path} holds arrays of another model: choose another workdir")
  return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted]), metadata
