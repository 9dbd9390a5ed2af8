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
    source: where Google publishes this.
  """

  memory: float
  flops: float
  bandwidth: float
  links: float
  source: str


_PAGE = "docs.cloud.google.com/tpu/docs"
#: Peak compute and HBM are of the page of each chip. Of the memory, libtpu 0.0.52 keeps some for itself: it lets
#: programs have what stands here. Links are as many as a chip has neighbours in its torus, each with its rate one way:
#: together half of the bidirectional bandwidth that the pages tell. That of v4 tells none: its links are of the paper.
CHIPS = {
  "v4": Chip(30.75 * GIB, 275e12, 1.2e12, 6 * 50e9, f"{_PAGE}/v4; links: Jouppi et al., 2304.01433, table 4"),
  "v5e": Chip(15.75 * GIB, 197e12, 0.819e12, 4 * 50e9, f"{_PAGE}/v5e"),
  "v5p": Chip(95.73 * GIB, 459e12, 2.765e12, 6 * 100e9, f"{_PAGE}/v5p"),
  "v6e": Chip(31.24 * GIB, 918e12, 1.638e12, 4 * 100e9, f"{_PAGE}/v6e"),
}

_TOPOLOGY = re.compile(r"(\w+):(\d+(?:x\d+)*)")
# By default libtpu makes two devices of a v4, one of each TensorCore; what runs there sees one, of the whole chip.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
# How libtpu says that there is no room: the second of them is 0.0.52's.
_EXCEEDED = (
  re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm"),
  re.compile(r"memory required for [^()]*\(([\d.]+)([KMGT])\) exceeds available HBM"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

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
  """The devices of a topology such as "v5e:4x4", one a chip, for meshes of programs that are compiled and never run.

  Raises:
    ValueError: if libtpu is not installed, or knows no such topology, or does not make a device of each of its chips.
  """
  chip(topology)
  if (said := _TOPOLOGY.fullmatch(topology)) is None:
    raise ValueError(f"{topology!r} is not a chip and a number of chips along each axis, such as v5e:4x4")
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError("the TPU compiler is not installed: pip install 'dreamjax[plan]'")
  for name, value in _QUIET.items():
    os.environ.setdefault(name, value)
  try:
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **_OPTIONS.get(said[1], {}))
  except (RuntimeError, ValueError) as error:
    raise ValueError(f"libtpu knows no topology {topology!r}: {error}") from error
  chips, found = math.prod(int(count) for count in said[2].split("x")), list(described.devices)
  if len(found) != chips:
    raise ValueError(f"libtpu makes {len(found)} devices of the {chips} chips of {topology!r}, not one of each")
  return found


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
  """The bytes that a program needed for which the compiler found no room, those of its arguments among them.

  Raises:
    Exception: `error` itself, if it says something else.
  """
  for pattern in _EXCEEDED:
    if found := pattern.search(str(error)):
      return float(found[1]) * _UNITS[found[2]]
  raise error
