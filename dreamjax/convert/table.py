"""Mapping tables between a published checkpoint and our modules: parameters by name, and settings of `config.json`."""

from collections.abc import Callable, Iterable, Mapping
import re
from typing import Any, NamedTuple

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
import numpy as np

#: put(path, array) -> what becomes of a parameter of ours as soon as it is read: it may go to devices, or be left here.
Put = Callable[[str, np.ndarray], Any]


def leave(path: str, array: np.ndarray) -> np.ndarray:
  """The `Put` that leaves parameters in the host's memory."""
  del path
  return array


class View(NamedTuple):
  """The same numbers in our layout and in theirs."""

  ours: Callable[[np.ndarray], np.ndarray]
  theirs: Callable[[np.ndarray], np.ndarray]

  def theirs_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that an array of our `shape` has there."""
    return self.theirs(np.broadcast_to(np.float32(0), shape)).shape


class Header(NamedTuple):
  """What the head of a file says of one of its tensors.

  Attributes:
    shape: of the tensor.
    file: the file, for people.
  """

  shape: tuple[int, ...]
  file: str


SAME = View(lambda x: x, lambda x: x)
TRANSPOSED = View(np.transpose, np.transpose)
CONV = View(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW, HWIO


def batched(axes: int) -> View:
  """Their array has as many axes of length 1 in front of ours."""
  return View(lambda x: x[(0,) * axes], lambda x: x[(None,) * axes])


class Row(NamedTuple):
  """One parameter, or one of each block; then {} stands for the block's number."""

  key: str
  path: str
  view: View = SAME


def dense(key: str, path: str) -> tuple[Row, Row]:
  """A linear layer with a bias."""
  return Row(f"{key}.weight", f"{path}/kernel", TRANSPOSED), Row(f"{key}.bias", f"{path}/bias")


def conv(key: str, path: str) -> tuple[Row, Row]:
  """A convolution with a bias."""
  return Row(f"{key}.weight", f"{path}/kernel", CONV), Row(f"{key}.bias", f"{path}/bias")


def norm(key: str, path: str) -> tuple[Row, Row]:
  """A layer norm."""
  return Row(f"{key}.weight", f"{path}/scale"), Row(f"{key}.bias", f"{path}/bias")


class MappingTable(NamedTuple):
  """All parameters of a model.

  Attributes:
    rows: one for each of our parameters, and of theirs.
    aliases: (pattern, replacement) pairs that turn other names for a key into the key that `rows` has. Where a
      checkpoint holds a key under both names, it holds copies.
    ignored: patterns of whole keys that our model has no use for.
  """

  rows: tuple[Row, ...]
  aliases: tuple[tuple[str, str], ...] = ()
  ignored: tuple[str, ...] = ()

  def match(self, paths: Iterable[str]) -> dict[str, tuple[str, View]]:
    """Each key of theirs, with the path and the view of the parameter of ours that it holds.

    Raises:
      ValueError: if there are parameters that no row matches.
    """
    patterns = [(re.compile(re.escape(row.path).replace(r"\{\}", r"(\d+)")), row) for row in self.rows]
    found, unmatched = {}, []
    for path in paths:
      for pattern, row in patterns:
        if match := pattern.fullmatch(path):
          found[row.key.format(*match.groups())] = (path, row.view)
          break
      else:
        unmatched.append(path)
    if unmatched:
      raise ValueError(f"no row of the table is for the parameters {', '.join(unmatched)}")
    return found

  def sources(self, paths: Iterable[str], keys: Iterable[str]) -> dict[str, tuple[str, View]]:
    """For each path of ours the key in their checkpoint, and the view.

    Args:
      paths: of all our parameters.
      keys: all that their checkpoint holds.

    Raises:
      ValueError: if a key is missing or unknown.
    """
    wanted = self.match(paths)
    keys = [key for key in keys if not any(re.fullmatch(pattern, key) for pattern in self.ignored)]
    sources = {self._rename(key): key for key in keys} | {key: key for key in keys if key in wanted}
    missing = [key for key in wanted if key not in sources]
    unknown = [key for name, key in sources.items() if name not in wanted]
    if missing or unknown:
      lists = {"missing": missing, "unknown": unknown}
      problem = "; ".join(f"{what}: {', '.join(sorted(keys))}" for what, keys in lists.items() if keys)
      raise ValueError(f"the checkpoint is not one of this model: {problem}")
    return {path: (sources[key], view) for key, (path, view) in wanted.items()}

  def to_ours(
    self,
    shapes: dict[str, Any],
    headers: Mapping[str, Header],
    read: Callable[[str], np.ndarray],
    dtype: Any,
    put: Put = leave,
  ) -> dict[str, Any]:
    """Their parameters as ours, read and put in their places one at a time, and none before it is known that all fit.

    Args:
      shapes: our tree of parameters; of its leaves only the shape counts.
      headers: of all that their checkpoint holds, by its keys.
      read: returns what it holds under a key.
      dtype: the dtype of the result.
      put: where to.

    Returns:
      A tree like `shapes`, of what `put` returns.

    Raises:
      ValueError: if a key is missing or unknown, or if a shape differs.
    """
    shapes = {path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}
    sources, problems = self.sources(shapes, headers), []
    for path, (key, view) in sources.items():
      if (found := headers[key].shape) != (wanted := view.theirs_of(shapes[path])):
        problems.append(f"{headers[key].file}: {key} has shape {found}, but in the model {wanted}")
    if problems:
      more = f"; and so on, {len(problems)} in all" if len(problems) > 3 else ""
      raise ValueError("; ".join(problems[:3]) + more)
    params = {}
    for path, (key, view) in sources.items():
      params[path] = put(path, np.asarray(view.ours(read(key)), dtype, order="C"))
    return unflatten_dict(params, sep="/")

  def to_theirs(self, params: dict[str, Any], dtype: Any) -> dict[str, np.ndarray]:
    """Our parameters as theirs.

    Raises:
      ValueError: if there are parameters that no row matches, or numbers that `dtype` cannot hold.
    """
    flat = flatten_dict(params, sep="/")
    tensors = {}
    for key, (path, view) in self.match(flat).items():
      with np.errstate(over="ignore"):
        tensors[key] = np.asarray(view.theirs(np.asarray(flat[path])), dtype, order="C")
      if not np.isfinite(tensors[key]).all():
        raise ValueError(f"{path} holds numbers that are not finite in {np.dtype(dtype)}")
    return tensors

  def _rename(self, key: str) -> str:
    for pattern, replacement in self.aliases:
      key = re.sub(pattern, replacement, key)
    return key


class Setting(NamedTuple):
  """One entry of `config.json`.

  Attributes:
    theirs: its name there.
    default: what transformers' config class takes it to be where it is left out.
    ours: the module's field; None where the module knows only one value.
    known: the values that the module knows; None for all.
  """

  theirs: str
  default: Any
  ours: str | None = None
  known: tuple[Any, ...] | None = None


def read_settings(settings: Iterable[Setting], config: dict[str, Any]) -> dict[str, Any]:
  """The module's fields.

  Raises:
    ValueError: if the module does not know a value.
  """
  fields = {}
  for setting in settings:
    value = config.get(setting.theirs, setting.default)
    if setting.known is not None and value not in setting.known:
      known = " and ".join(map(repr, setting.known))
      raise ValueError(f"{setting.theirs} is {value!r} in config.json, but this model knows only {known}")
    if setting.ours is not None:
      fields[setting.ours] = value
  return fields


def write_settings(settings: Iterable[Setting], module: nn.Module) -> dict[str, Any]:
  """The inverse of `read_settings`."""
  return {s.theirs: s.known[0] if s.ours is None else getattr(module, s.ours) for s in settings}
