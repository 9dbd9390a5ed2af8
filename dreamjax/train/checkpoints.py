"""Checkpoints by Orbax: written beside the training, complete or not there at all, the newest few kept."""

import pathlib
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from dreamjax.train.state import TrainState


class _Manager(ocp.CheckpointManager):
  """Orbax's, but for that it does not ask whether the program is to end.

  `parallel.processes` does, by a count of its own. JAX's service, which takes the last number that anyone asked with for where
  the program is, would wait for a step that never comes if both asked.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


class Checkpoints:
  """The checkpoints of one training, in a folder. Use it as a context, so that the last one is waited for.

  What `state.frozen` holds is not saved: it is not the training's.
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
    """Begins to save a state; returns as soon as the state may change."""
    self._manager.save(int(state.step), args=ocp.args.StandardSave(_saved(state)))

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def restore(self, state: TrainState) -> TrainState:
    """The newest checkpoint, in the shapes, types and places of the state that is given.

    Raises:
      ValueError: if the checkpoint was made by another model or optimizer.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _saved(state))
    try:
      found = self._manager.restore(self.latest(), args=ocp.args.StandardRestore(abstract))
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"{self._manager.directory} holds checkpoints of another model or optimizer: choose another workdir ({error})"
      ) from error
    return state.replace(**found)


def _saved(state: TrainState) -> dict[str, Any]:
  return {"step": state.step, "theta": state.theta, "opt_state": state.opt_state}
