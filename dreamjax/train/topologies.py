"""Compiles programs for TPUs on machines without one, and compares them with the chips' published numbers.

libtpu compiles for a topology by its name, such as "v5e:4x4". A compiled program reports its memory; its operations and
the bytes that it moves are read from its text (`hlo`).
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from dreamjax.errors import UserError
from dreamjax.train import hlo

GIB = 2**30


class Chip(NamedTuple):
  """The published numbers of a chip.

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
#: Peak compute and HBM are from the page of each chip. libtpu 0.0.52 keeps some of the memory for itself: these are the
#: bytes that programs may use. A chip has a link to each neighbour in its torus, here with its rate one way: together
#: half of the bidirectional bandwidth on the pages. The page of v4 has none: its links are from the paper.
CHIPS = {
  "v4": Chip(30.75 * GIB, 275e12, 1.2e12, 6 * 50e9, f"{_PAGE}/v4; links: Jouppi et al., 2304.01433, table 4"),
  "v5e": Chip(15.75 * GIB, 197e12, 0.819e12, 4 * 50e9, f"{_PAGE}/v5e"),
  "v5p": Chip(95.73 * GIB, 459e12, 2.765e12, 6 * 100e9, f"{_PAGE}/v5p"),
  "v6e": Chip(31.24 * GIB, 918e12, 1.638e12, 4 * 100e9, f"{_PAGE}/v6e"),
}

_TOPOLOGY = re.compile(r"(\w+):(\d+(?:x\d+)*)")
# By default libtpu makes two devices of a v4, one of each TensorCore; programs on a real v4 see one, the whole chip.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
# Messages by which libtpu reports that memory is exceeded; the second is that of 0.0.52.
_EXCEEDED = (
  re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm"),
  re.compile(r"memory required for [^()]*\(([\d.]+)([KMGT])\) exceeds available HBM"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

# Settings by which libtpu does not query the metadata server, lock other processes out or log.
_QUIET = {
  "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3",
}  # fmt: skip


def chip(topology: str) -> Chip:
  """Returns the chip of a topology's name; ValueError for one that is not known."""
  kind = topology.partition(":")[0]
  if kind not in CHIPS:
    raise UserError(f"nothing is known of the chip {kind!r} of {topology!r}; there are: {', '.join(CHIPS)}")
  return CHIPS[kind]


def devices(topology: str) -> list[Any]:
  """Returns the devices of a topology such as "v5e:4x4", one per chip, for programs that are compiled and never run.

  Raises:
    ValueError: if libtpu is not installed, or knows no such topology, or does not make a device of each of its chips.
  """
  chip(topology)
  if (match := _TOPOLOGY.fullmatch(topology)) is None:
    raise UserError(f"{topology!r} is not a chip and a number of chips along each axis, such as v5e:4x4")
  if importlib.util.find_spec("libtpu") is None:
    raise UserError("the TPU compiler is not installed: pip install 'dreamjax[plan]'")
  for name, value in _QUIET.items():
    os.environ.setdefault(name, value)
  try:
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **_OPTIONS.get(match[1], {}))
  except (RuntimeError, ValueError) as error:
    raise UserError(f"libtpu knows no topology {topology!r}: {error}") from error
  chips, found = math.prod(int(count) for count in match[2].split("x")), list(described.devices)
  if len(found) != chips:
    raise UserError(f"libtpu makes {len(found)} devices of the {chips} chips of {topology!r}, not one of each")
  return found


@dataclasses.dataclass(frozen=True)
class Load:
  """What one run of a compiled program takes of each device.

  Attributes:
    arguments, temporaries, results, code: bytes; results in the buffers of donated arguments do not count.
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
    """Returns lower bounds of the time on a chip; at best compute, memory and collectives overlap fully."""
    return {
      "compute": self.flops / chip.flops,
      "memory": self.traffic / chip.bandwidth,
      "collectives": sum(self.sent.values()) / chip.links,
    }


def load(lowered: jax.stages.Lowered) -> Load:
  """Compiles a program and returns what it takes."""
  shortest = jax.config.jax_persistent_cache_min_compile_time_secs
  try:  # it does not go into the compilation cache, from which it could not be read without a TPU
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
  """Returns the bytes that a program would have needed, arguments included, from the compiler's error.

  Raises:
    Exception: `error` itself, if it is another one.
  """
  for pattern in _EXCEEDED:
    if found := pattern.search(str(error)):
      return float(found[1]) * _UNITS[found[2]]
  raise error
