"""One program in one process or in several, on as many hosts: their arrays, their files, and their end.

Each process runs the same program and computes on its own devices; arrays lie on the devices of all. A batch is made by
every process from the same seed, and each moves only the rows of its own devices there. Files are written by the first
process alone, and read by all: the workdir is to lie where all of them see it.
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

#: A launcher that sees this exit status is to start the program again, which then goes on where it was.
AGAIN = 75  # sysexits.h: a temporary failure
_SILENCE = 30  # seconds without a sign of life, after which a process counts as lost
_asked = itertools.count(1)  # how often `watched` was asked: what JAX's service takes for steps never goes back

T = TypeVar("T")


class Preempted(Exception):
  """The machine is to be given up; what was done is on disk."""


def join(address: str = "", count: int = 0, index: int = 0) -> None:
  """Makes this process one of several. To be called before JAX computes anything.

  Args:
    address: host and port at which the first process is found; "" to take all from the environment, as Cloud TPU VMs,
      Slurm, Open MPI and Kubernetes set it.
    count: of processes.
    index: of this one, from 0.

  Raises:
    ValueError: if the environment says nothing, or JAX cannot begin. Where the first process is not found within
      minutes, JAX ends the program itself.
  """
  known = {"coordinator_address": address, "num_processes": count, "process_id": index} if address else {}
  try:
    jax.distributed.initialize(**known, heartbeat_timeout_seconds=_SILENCE)
  except (ValueError, RuntimeError) as error:
    raise ValueError(f"this process cannot become one of several: {error}") from error


def several() -> bool:
  """Whether there is more than one process."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def leads() -> bool:
  """Whether this is the first process, the one that writes files and speaks."""
  return not several() or jax.process_index() == 0


def quiet() -> bool | None:
  """What a progress bar's `disable` is to be: none but the first process shows any, and that on a terminal only."""
  return None if leads() else True


def once(write: Callable[[], Any]) -> None:
  """Calls a function in the first process, while the others wait.

  Raises:
    ValueError: in the others, if it failed; in the first process, what it raised.
  """
  if not several():
    write()
    return
  problem: Exception | None = None
  if leads():
    try:
      write()
    except Exception as error:
      problem = error
  if agree(problem is not None):
    multihost_utils.sync_global_devices("once")  # so that all know before one of them ends
    raise problem or ValueError("the first process cannot go on, and says why")


def agree(value: int) -> int:
  """A number of the first process, in all of them."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if several() else value


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  """Moves an array to devices, whichever process they belong to.

  Args:
    x: the same in every process, or an array that lies on the devices of all of them already.
    sharding: where it is to lie.
  """
  if not several() or (isinstance(x, jax.Array) and not x.is_fully_addressable):
    return jax.device_put(x, sharding)
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding))
  whole = np.asarray(x)
  return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def fetch(tree: Any) -> Any:
  """Arrays in the memory of every host, those too of which it has a part only."""

  def one(x: Any) -> Any:
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
      return multihost_utils.process_allgather(x, tiled=True)
    return jax.device_get(x)

  return jax.tree.map(one, tree) if several() else jax.device_get(tree)


@contextlib.contextmanager
def watched() -> Iterator[Callable[[], bool]]:
  """While it lasts, SIGTERM does not end the program at once. Elsewhere it does, but for one of several processes.

  There JAX's service keeps what it is told until it is asked, so before long: behind the next picture or update.

  Yields:
    asked(): whether the program is to end; in all processes behind the same step. To be called behind each.
  """
  if jax.distributed.is_initialized():  # then JAX's service has the signal, and finds a step that all can reach
    yield lambda: multihost_utils.reached_preemption_sync_point(next(_asked))
    return
  told = threading.Event()

  def tell(number: int, frame: FrameType | None) -> None:
    del number, frame
    told.set()

  if threading.current_thread() is not threading.main_thread():
    yield lambda: False
    return
  before = signal.signal(signal.SIGTERM, tell)
  try:
    yield told.is_set
  finally:
    signal.signal(signal.SIGTERM, before)


def until_told(items: Iterable[T]) -> Iterator[T]:
  """The items of what is drawn step by step; between two of them SIGTERM ends the program, in all processes.

  Args:
    items: as many in every process, each of which is done with one before it asks for the next.

  Raises:
    Preempted: behind an item.
  """
  with watched() as is_to_end:
    for item in items:
      yield item
      if is_to_end():
        raise Preempted("the machine is to be given up; what was drawn is on disk")
