"""Programs that run as one process or as several, on any number of hosts: their arrays, files, and preemption.

Every process runs the same program and computes on its own devices; arrays are sharded over the devices of all. Each
process makes every batch from the same seed, and moves only the shards of its own devices to them. Files are written by
the main process alone and read by all: all processes must see the same workdir.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import itertools
import signal
import threading
from types import FrameType
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from dreamjax.errors import UserError

#: The exit status by which a launcher knows that it must start the program again, which then resumes.
EXIT_RERUN = 75  # sysexits.h: a temporary failure
_HEARTBEAT_TIMEOUT = 30  # seconds without a heartbeat after which a process counts as lost
_sync_points = itertools.count(1)  # JAX's preemption service takes a step number, which must never decrease

T = TypeVar("T")


class Preempted(Exception):
  """The machine is about to be taken away; finished work is on disk."""


def join(address: str = "", count: int = 0, index: int = 0) -> None:
  """Makes this process one of several. Must be called before JAX computes anything.

  Args:
    address: host and port of the main process; "" to read everything from the environment, as Cloud TPU VMs, Slurm,
      Open MPI and Kubernetes set it.
    count: the number of processes.
    index: of this process, from 0.

  Raises:
    UserError: if the environment says nothing, or JAX cannot initialise. If the main process is not found within
      minutes, JAX ends the program itself.
  """
  known = {"coordinator_address": address, "num_processes": count, "process_id": index} if address else {}
  try:
    jax.distributed.initialize(**known, heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT)
  except (ValueError, RuntimeError) as error:
    raise UserError(f"this process cannot become one of several: {error}") from error


def is_distributed() -> bool:
  """Whether there is more than one process."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main_process() -> bool:
  """Whether this is the main process, the one that writes files and prints."""
  return not is_distributed() or jax.process_index() == 0


def disable_progress() -> bool | None:
  """The `disable` of a tqdm progress bar: only the main process shows one, and only on a terminal."""
  return None if is_main_process() else True


def on_main_process(function: Callable[[], Any]) -> None:
  """Calls a function in the main process, while the others wait.

  Raises:
    UserError: in the others, if it failed; in the main process, what the function raised.
  """
  if not is_distributed():
    function()
    return
  problem: Exception | None = None
  if is_main_process():
    try:
      function()
    except Exception as error:
      problem = error
  if broadcast_from_main(problem is not None):
    multihost_utils.sync_global_devices("on_main_process")  # so that all know before one of them ends
    raise problem or UserError("the main process failed, and says why")


def broadcast_from_main(value: int) -> int:
  """The main process's value of a number, in all processes."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if is_distributed() else value


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  """Moves an array to devices, whichever process they belong to.

  Args:
    x: the same in every process, or an array that is sharded over the devices of all of them already.
    sharding: the target.
  """
  if not is_distributed() or (isinstance(x, jax.Array) and not x.is_fully_addressable):
    return jax.device_put(x, sharding)
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding))
  host_array = np.asarray(x)
  return jax.make_array_from_callback(host_array.shape, sharding, lambda index: host_array[index])


def fetch(tree: Any) -> Any:
  """The arrays of a pytree in the memory of every host, gathered where a host has only some shards."""

  def fetch_one(x: Any) -> Any:
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
      return multihost_utils.process_allgather(x, tiled=True)
    return jax.device_get(x)

  return jax.tree.map(fetch_one, tree) if is_distributed() else jax.device_get(tree)


@contextlib.contextmanager
def watch_preemption() -> Iterator[Callable[[], bool]]:
  """A context in which SIGTERM does not end the program at once, so that it can save its work first.

  With several processes JAX's preemption service receives the signal whether this context is entered or not, and acts
  on it when it is asked next.

  Yields:
    is_preempted(): whether the program must end; true in all processes after the same step. Must be called after each.
  """
  if jax.distributed.is_initialized():  # JAX's service has the signal, and finds a step that all processes can reach
    yield lambda: multihost_utils.reached_preemption_sync_point(next(_sync_points))
    return
  terminated = threading.Event()

  def on_signal(number: int, frame: FrameType | None) -> None:
    del number, frame
    terminated.set()

  if threading.current_thread() is not threading.main_thread():
    yield lambda: False
    return
  before = signal.signal(signal.SIGTERM, on_signal)
  try:
    yield terminated.is_set
  finally:
    signal.signal(signal.SIGTERM, before)


def until_preempted(items: Iterable[T]) -> Iterator[T]:
  """Yields items that are made one after another; between two of them SIGTERM ends the program, in all processes.

  Args:
    items: as many in every process, each of which has handled one before it takes the next.

  Raises:
    Preempted: after an item.
  """
  with watch_preemption() as is_preempted:
    for item in items:
      yield item
      if is_preempted():
        raise Preempted("the machine is about to be taken away; what was made so far is on disk")
