"""Early stopping: a training ends when its loss on held-out data no longer falls, and the best theta is what counts."""

from collections.abc import Callable
import pathlib
from typing import Any

from dreamjax.parallel import processes
from dreamjax.train.checkpoints import read_tree, write_tree
from dreamjax.train.optimizer import averaged
from dreamjax.train.state import TrainState


class EarlyStopping:
  """Evaluates a training at its checkpoints, and keeps the best theta, its loss and the evaluations since on disk.

  The file is replaced as a whole after each evaluation, so that a training that was cut off, or had ended, goes on with
  the best theta so far. An evaluation of a step that had been evaluated before the cut is not counted again.

  Attributes:
    best: the theta of the smallest loss so far, in the host's memory; None before the first evaluation.
    step: of the last evaluation.
  """

  def __init__(self, evaluate: Callable[[TrainState], float], patience: int, path: pathlib.Path) -> None:
    """Reads nothing yet: `restore` does.

    Args:
      evaluate: computes the loss of a state's averaged theta on held-out data.
      patience: how many evaluations one after another may fail to improve on the best before the training ends.
      path: of the file.
    """
    self._evaluate, self._patience, self._path = evaluate, patience, path
    self._loss, self._since = float("inf"), 0
    self.best: Any = None
    self.step = 0

  def restore(self, state: TrainState) -> None:
    """Reads the file, if there is one. The state says what thetas look like; ValueError if the file holds another."""
    if self._path.is_file():
      self.best, found = read_tree(self._path, averaged(state))
      self._loss, self._since, self.step = found["loss"], found["since"], found["step"]

  def __call__(self, state: TrainState) -> dict[str, float]:
    """Evaluates a state, and returns its loss, to be logged."""
    value = self._evaluate(state)
    if (step := int(state.step)) > self.step:
      self.step, self._since = step, self._since + 1
      if value < self._loss or self.best is None:
        self._loss, self._since, self.best = value, 0, processes.fetch(averaged(state))
      metadata = {"step": step, "loss": self._loss, "since": self._since}
      processes.on_main_process(lambda: write_tree(self._path, self.best, metadata))
    return {"held_out": value}

  def ends(self) -> bool:
    """Whether the training ends: the last evaluations, as many as `patience`, did not improve on the best."""
    return self._since >= self._patience
