"""TPUs that are not there: their chips, as Google publishes them, and compiled programs weighed against these.

libtpu compiles for a topology by its name, such as "v5e:4x4", on a machine without a TPU. What a compiled program says
of itself is its memory; its operations and the bytes that it moves are read from its text (`hlo`).
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from dreamjax.train import hlo

GIB = 2**30


class Chip(NamedTuple):
  """What a chip is good for.

  Attributes:
    memory: bytes of HBM that a program may use.
    flops: operations a second, in bfloat16.
    bandwidth: bytes a second between the chip and its HBM.
    links: bytes a second that the chip can send to its neighbours, over all links together, and receive as well.
  """

  memory: float
  flops: float
  bandwidth: float
  links: float


#: docs.cloud.google.com/tpu/docs, the page of each chip: peak compute, HBM, and half of the bidirectional bandwidth of
#: the interconnect. Of the memory, libtpu 0.0.52 keeps some for itself: it lets programs have what stands here.
CHIPS = {
  "v4": Chip(30.75 * GIB, 275e12, 1.2e12, 150e9),
  "v5e": Chip(15.75 * GIB, 197e12, 0.819e12, 200e9),
  "v5p": Chip(95.74 * GIB, 459e12, 2.765e12, 600e9),
  "v6e": Chip(31.25 * GIB, 918e12, 1.638e12, 400e9),
}

# By which libtpu is told not to ask where it is, nor to lock others out, nor to talk.
_QUIET = {
  "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3",
}  # fmt: skip


def chip(topology: str) -> Chip:
  """The chip of a topology's name; ValueError for one that is not known."""
  kind = topology.partition(":")[0]
  if kind not in CHIPS:
    raise ValueError(f"nothing is known of the chip {kind!r} of {topology!r}; there are: {', '.join(CHIPS)}")
  return CHIPS[kind]


def devices(topology: str) -> list[Any]:
  """The devices of a topology such as "v5e:4x4", for meshes of programs that are compiled and never run.

  Raises:
    ValueError: if libtpu is not installed, or knows no such topology.
  """
  chip(topology)
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError("the TPU compiler is not installed: pip install 'dreamjax[plan]'")
  for name, value in _QUIET.items():
    os.environ.setdefault(name, value)
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
  except (RuntimeError, ValueError) as error:
    raise ValueError(f"libtpu knows no topology {topology!r}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Load:
  """What one run of a compiled program asks of each device.

  Attributes:
    arguments, temporaries, results, code: bytes; results that take an argument's place do not count.
    flops: operations of matrix products, convolutions and attention.
    traffic: bytes between the chip and its memory.
    sent: bytes that are sent to other devices, by the kind of collective.
  """

  arguments: int
  temporaries: int
  results: int
  code: int
  flops: float
  traffic: float
  sent: dict[str, float]

  def seconds(self, chip: Chip) -> dict[str, float]:
    """How long a chip takes at least, for each of the three things that it does at the same time at best."""
    return {
      "compute": self.flops / chip.flops,
      "memory": self.traffic / chip.bandwidth,
      "collectives": sum(self.sent.values()) / chip.links,
    }


def load(lowered: jax.stages.Lowered) -> Load:
  """Compiles a program and weighs it."""
  shortest = jax.config.jax_persistent_cache_min_compile_time_secs
  try:  # it is not kept for another time, for without a TPU it could not be read again
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    compiled = lowered.compile()
  finally:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)
  memory, program = compiled.memory_analysis(), hlo.Program(compiled.as_text())
  return Load(
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
    memory.output_size_in_bytes - memory.alias_size_in_bytes,
    memory.generated_code_size_in_bytes,
    program.products() + program.attention(),
    program.traffic(),
    program.sent(),
  )


def exceeded(error: Exception) -> float:
  """The bytes that a program needed for which the compiler found no room; raises `error` again if it says otherwise."""
  found = re.search(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm", str(error))
  if found is None:
    raise error
  return float(found[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[found[2]]
