"""Reads from a compiled program's text its operations, the bytes that it moves, and those that devices send each other.

XLA's own analysis counts a loop's body once, however often it runs, and leaves collectives out. The text is that of
libtpu, in which products are convolutions; of CPUs' programs, collectives are understood as well.
"""

import collections
from collections.abc import Iterator
import math
import re
from typing import NamedTuple

from dreamjax.train import flops

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_SHAPE = re.compile(r"(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_COUNTERS = ("s32[]", "u32[]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"(size|stride|pad|lhs_dilate|rhs_dilate)=([\dx_-]+)")
# JAX's block-wise attention: the products of each kernel; the backward pass recomputes one.
_KERNELS = re.compile(r"splash_mha_(fwd|dkv)")
_PRODUCTS = {"fwd": 2, "dkv": 5}
_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?\})\}")
_CHAIN = re.compile(r'channel_id=(\d+).*chain_id="')
_COLLECTIVES = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
  "collective-broadcast",
)  # fmt: skip
# Instructions that move nothing to or from the chip's memory: names of buffers, and the ends of asynchronous ones.
_STILL = re.compile(
  "parameter|constant|tuple|get-tuple-element|bitcast|iota|after-all|partition-id|while|conditional|call|.*-done"
)
_STILL_CALLS = ("AllocateBuffer", "ConcatBitcast")
_SLICES = ("dynamic-slice", "slice", "gather")


class _Instruction(NamedTuple):
  root: bool
  name: str
  shape: str
  kind: str
  rest: str


def _bytes(shape: str, hbm: bool = False) -> list[int]:
  """The bytes of the arrays of a shape in the text; with `hbm` of those in the chip's HBM, with the padding there."""
  found = []
  for kind, sizes, layout in _SHAPE.findall(shape):
    bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
    dims = [int(size) for size in sizes.split(",") if size]
    if hbm:
      if "S(" in layout:
        continue
      dims = _tiled(dims, layout)
    found.append(math.prod(dims) * bits // 8)
  return found


def _tiled(dims: list[int], layout: str) -> list[int]:
  """The sizes of an array that is padded to whole tiles, as "1,0:T(8,128)" says: minor axes first, then the tile."""
  order, _, tile = layout.partition(":")
  sides = [int(x) for x in found[1].split(",")] if (found := re.match(r"T\(([\d,]+)\)", tile)) else []
  dims = list(dims)
  for axis, side in zip(order.split(","), reversed(sides), strict=False):
    if axis:
      dims[int(axis)] = math.ceil(dims[int(axis)] / side) * side
  return dims


def _sizes(shape: str) -> list[int]:
  found = _SHAPE.search(shape)
  return [int(size) for size in found[2].split(",") if size] if found else []


def _count(instruction: _Instruction) -> int | None:
  """The value of a constant, if it may be a loop's counter."""
  if instruction.kind != "constant" or instruction.shape[:5] not in _COUNTERS:
    return None
  return int(instruction.rest.partition(")")[0])


def _operands(instruction: _Instruction) -> list[str]:
  """The names of an instruction's operands."""
  return re.findall(r"%([\w.-]+)", instruction.rest.partition(")")[0])


class Program:
  """A compiled program's text: computations, which call each other, and their instructions.

  Attributes:
    computations: by name.
    devices: that the program runs on.
    entry: the name of the computation that calls the others.
    repeats: how often each computation runs.
  """

  def __init__(self, text: str) -> None:
    self.computations: dict[str, list[_Instruction]] = {}
    match = re.search(r"num_partitions=(\d+)", text)
    self.devices = int(match[1]) if match else 1
    self.entry = ""
    lines: list[_Instruction] = []
    for line in text.splitlines():
      if begun := _COMPUTATION.match(line):
        lines = self.computations.setdefault(begun[2], [])
        self.entry = begun[2] if begun[1] else self.entry
      elif found := _LINE.match(line):
        lines.append(_Instruction(found[1] is not None, *found.groups()[1:]))
    self.repeats = self._repeats()

  def _repeats(self) -> dict[str, int]:
    counts: dict[str, int] = collections.Counter()

    def visit(name: str, times: int) -> None:
      counts[name] += times
      for callee, more in self._calls(name):
        if callee in self.computations:
          visit(callee, times * more)

    visit(self.entry, 1)
    return dict(counts)

  def _calls(self, name: str) -> Iterator[tuple[str, int]]:
    for instruction in self.computations[name]:
      times = self._trips(instruction) if instruction.kind == "while" else 1
      for callee in _CALLED.findall(instruction.rest):
        yield callee, times
      for branches in _BRANCHES.findall(instruction.rest):
        for callee in branches.split(","):
          yield callee.strip().lstrip("%"), 1

  def _trips(self, loop: _Instruction) -> int:
    """How often a loop runs: its known trip count, or else its counter's end in the condition by its stride."""
    if known := _TRIPS.search(loop.rest):
      return int(known[1])
    condition, body = (
      self.computations.get(re.search(rf"{part}=%?([\w.-]+)", loop.rest)[1], []) for part in ("condition", "body")
    )
    end = max((x for x in map(_count, condition) if x is not None), default=1)
    counted = [x for x in condition if x.kind == "get-tuple-element" and x.shape[:5] in _COUNTERS]
    index = re.search(r"index=(\d+)", counted[0].rest) if counted else None
    results = next((_operands(x) for x in body if x.root), [])
    by_name = {x.name: x for x in body}
    counter = by_name.get(results[int(index[1])]) if index and int(index[1]) < len(results) else None
    if counter is None or counter.kind != "add":
      return end
    strides = [_count(by_name[name]) for name in _operands(counter) if name in by_name]
    return math.ceil(end / max((x for x in strides if x), default=1))

  def products(self) -> float:
    """Counts the operations of matrix products and convolutions: to a TPU's compiler, both are convolutions."""
    total = 0.0
    for name, times in self.repeats.items():
      shapes = self.shapes(name)
      for instruction in self.computations[name]:
        if instruction.kind == "convolution" and (labels := _LABELS.search(instruction.rest)):
          total += 2.0 * times * self._products(instruction, shapes, *labels.groups())
    return total

  def _products(self, instruction: _Instruction, shapes: dict[str, str], left: str, right: str, out: str) -> int:
    """The products of a convolution with axis labels such as b01f_01io->b01f; a batch axis may be a dilated window."""
    image, kernel = (_sizes(shapes[name]) for name in _operands(instruction)[:2])
    result, window = _sizes(instruction.shape), dict(_WINDOW.findall(instruction.rest))
    count = result[out.index("b")] * result[out.index("f")] * kernel[right.index("i")]

    def along(what: str, axis: int, usual: str) -> str:
      return window[what].split("x")[axis] if what in window else usual

    for axis in range(len(out) - 2):
      label = str(axis)
      stride, low = int(along("stride", axis, "1")), int(along("pad", axis, "0_0").split("_")[0])
      inside, outside = int(along("lhs_dilate", axis, "1")), int(along("rhs_dilate", axis, "1"))
      size, places = image[left.index(label)], result[out.index(label)]
      count *= flops.taps(size, kernel[right.index(label)], places, stride, low, inside, outside)
    return count

  def shapes(self, name: str) -> dict[str, str]:
    """Returns the shapes of a computation's parameters and results, by name."""
    return {instruction.name: instruction.shape for instruction in self.computations[name]}

  def traffic(self) -> float:
    """Counts the bytes read from the chip's memory and written to it; of a slice, those of its result."""
    fused = {
      callee
      for lines in self.computations.values()
      for instruction in lines
      if not re.fullmatch("while|conditional|call", instruction.kind)
      for callee in _CALLED.findall(instruction.rest)
    }
    total = 0.0
    for name, times in self.repeats.items():
      if name not in fused:
        shapes = self.shapes(name)
        total += times * sum(self._moved(instruction, shapes) for instruction in self.computations[name])
    return total

  def _moved(self, instruction: _Instruction, shapes: dict[str, str]) -> int:
    kind, read = instruction.kind, [shapes.get(name, "") for name in _operands(instruction)]
    if _STILL.fullmatch(kind) or (kind == "custom-call" and any(x in instruction.rest for x in _STILL_CALLS)):
      return 0
    if kind in ("copy-start", "slice-start"):  # either its result or its operand may be in faster memory
      return min(_bytes(instruction.shape)[:2]) * len(_bytes(instruction.shape, hbm=True))
    if kind.endswith("-start"):
      return sum(_bytes(instruction.shape, hbm=True))
    if kind in _SLICES:
      return 2 * sum(_bytes(instruction.shape, hbm=True))
    if kind == "dynamic-update-slice":
      return 2 * sum(_bytes(read[1], hbm=True))
    if kind == "fusion":
      return self._moved_by_fusion(instruction, read)
    return sum(sum(_bytes(shape, hbm=True)) for shape in [instruction.shape, *read])

  def _moved_by_fusion(self, fusion: _Instruction, read: list[str]) -> int:
    callee = _CALLED.search(fusion.rest)[1]
    shapes, written = self.shapes(callee), _bytes(fusion.shape, hbm=True)
    for line in self.computations[callee]:
      if line.kind == "dynamic-update-slice" and (size := sum(_bytes(line.shape))) in written:
        written[written.index(size)] = sum(_bytes(shapes[_operands(line)[1]]))  # the rest stays as it is
    moved = sum(written)
    for line in self.computations[callee]:
      if line.kind == "parameter" and (size := sum(_bytes(read[int(line.rest.partition(")")[0])], hbm=True))):
        moved += min(size, self._read(callee, line.name, size))
    return moved

  def _read(self, computation: str, name: str, size: int) -> int:
    """The bytes that a fused computation reads of a parameter of so many bytes."""
    found = 0
    for line in self.computations[computation]:
      for place in (place for place, operand in enumerate(_operands(line)) if operand == name):
        if line.kind in _SLICES and place == 0:
          found += sum(_bytes(line.shape))
        elif line.kind == "bitcast":
          found += self._read(computation, line.name, size)
        elif line.kind == "fusion":
          callee = _CALLED.search(line.rest)[1]
          inner = next(x for x in self.computations[callee] if x.kind == "parameter" and x.rest.startswith(f"{place})"))
          found += self._read(callee, inner.name, size)
        elif line.kind != "dynamic-update-slice" or place:
          found += size
    return found

  def attention(self) -> float:
    """Counts the operations of block-wise attention, a custom call to XLA: two for each product of two numbers."""
    total = 0.0
    for name, times in self.repeats.items():
      for instruction in self.computations[name]:
        if (kernel := _KERNELS.match(instruction.name)) and (operands := _OPERANDS.search(instruction.rest)):
          sizes = [[int(x) for x in size.split(",")] for kind, size, _ in _SHAPE.findall(operands[1]) if kind != "s8"]
          query, key = sizes[:2]
          total += 2.0 * times * _PRODUCTS[kernel[1]] * math.prod(query) * key[-2]
    return total

  def sent(self) -> dict[str, float]:
    """Counts the bytes that a device sends, by the kind of collective, if rings are used.

    A sum of which each device keeps a part counts as a whole all-reduce if the compiler has written it as one. One that
    overlaps several other instructions, each of which names it by the number of the chain, counts once. A ragged
    all-to-all, whose lengths are known only as it runs, counts as if they were equal and filled it.
    """
    total: dict[str, float] = collections.Counter()
    begun = set()
    for name, times in self.repeats.items():
      shapes = self.shapes(name)
      for instruction in self.computations[name]:
        kind = instruction.kind.removesuffix("-start")
        if kind not in _COLLECTIVES:
          continue
        if chain := _CHAIN.search(instruction.rest):
          if chain[1] in begun:
            continue
          begun.add(chain[1])
        sizes, operands = _bytes(instruction.shape), _operands(instruction)
        if kind == "ragged-all-to-all":
          sizes = _bytes(shapes[operands[0]])  # the others are the result's buffer, and lengths
        elif instruction.kind.endswith("-start") and kind != "all-reduce":
          sizes = sizes[len(operands) : 2 * len(operands)]  # after the operands; all-reduce needs no other buffer
        group = self._group(instruction.rest)
        share = (group - 1) / group
        whole = {"collective-permute": 1.0, "collective-broadcast": 1.0}
        factor = {"all-reduce": 2 * share, "reduce-scatter": group * share, **whole}.get(kind, share)
        total[kind] += times * sum(sizes) * factor
    return dict(total)

  def _group(self, rest: str) -> int:
    """The number of devices in a collective's group: all of them, if no groups are named."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
      sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
      return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
      return int(counted[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
      return listed[1].count(",") + 1
    return self.devices
