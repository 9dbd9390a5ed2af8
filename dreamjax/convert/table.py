"""Tables that map parameters and `config.json` settings between published checkpoints and our modules."""

from collections.abc import Callable, Iterable, Mapping
import re
from typing import Any, NamedTuple

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
import numpy as np

from dreamjax.errors import UserError

#: put(path, array) places one of our parameters as soon as it is read, for instance on devices, and returns it.
Put = Callable[[str, np.ndarray], Any]


def leave(path: str, array: np.ndarray) -> np.ndarray:
  """The `Put` that keeps parameters in host memory."""
  del path
  return array


class View(NamedTuple):
  """Functions that convert an array from their layout to ours, and from ours to theirs."""

  ours: Callable[[np.ndarray], np.ndarray]
  theirs: Callable[[np.ndarray], np.ndarray]

  def theirs_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in their layout of an array that has `shape` in ours."""
    return self.theirs(np.broadcast_to(np.float32(0), shape)).shape


class Header(NamedTuple):
  """The header of a tensor in a file.

  Attributes:
    shape: of the tensor.
    file: name of the file, for error messages.
  """

  shape: tuple[int, ...]
  file: str


SAME = View(lambda x: x, lambda x: x)
TRANSPOSED = View(np.transpose, np.transpose)
CONV = View(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW to HWIO


def batched(axes: int) -> View:
  """Returns the view for their arrays with this number of additional leading axes of length 1."""
  return View(lambda x: x[(0,) * axes], lambda x: x[(None,) * axes])


class Row(NamedTuple):
  """The key and the path of a parameter, or of one parameter of every block, where {} stands for a number."""

  key: str
  path: str
  view: View = SAME


def dense(key: str, path: str) -> tuple[Row, Row]:
  """Returns the rows of a linear layer with a bias."""
  return Row(f"{key}.weight", f"{path}/kernel", TRANSPOSED), Row(f"{key}.bias", f"{path}/bias")


def conv(key: str, path: str) -> tuple[Row, Row]:
  """Returns the rows of a convolution with a bias."""
  return Row(f"{key}.weight", f"{path}/kernel", CONV), Row(f"{key}.bias", f"{path}/bias")


def norm(key: str, path: str) -> tuple[Row, Row]:
  """Returns the rows of a norm with a bias."""
  return Row(f"{key}.weight", f"{path}/scale"), Row(f"{key}.bias", f"{path}/bias")


class MappingTable(NamedTuple):
  """The mapping of all parameters of a model.

  Attributes:
    rows: one for each of our parameters and of theirs.
    aliases: (pattern, replacement) pairs that rename alternative keys to the keys of `rows`. A checkpoint with both
      names of a key holds copies.
    ignored: patterns of full keys that our model does not use.
  """

  rows: tuple[Row, ...]
  aliases: tuple[tuple[str, str], ...] = ()
  ignored: tuple[str, ...] = ()

  def match(self, paths: Iterable[str]) -> dict[str, tuple[str, View]]:
    """Maps each of their keys to the path and the view of our parameter.

    Raises:
      ValueError: if no row matches a parameter.
    """
    patterns = [(re.compile(re.escape(row.path).replace(r"\{\}", r"(\d+)")), row) for row in self.rows]
    matches, unmatched = {}, []
    for path in paths:
      for pattern, row in patterns:
        if match := pattern.fullmatch(path):
          matches[row.key.format(*match.groups())] = (path, row.view)
          break
      else:
        unmatched.append(path)
    if unmatched:
      raise UserError(f"the table has no row for the parameters {', '.join(unmatched)}")
    return matches

  def sources(self, paths: Iterable[str], keys: Iterable[str]) -> dict[str, tuple[str, View]]:
    """Maps each of our paths to the key in their checkpoint and the view.

    Args:
      paths: of all our parameters.
      keys: of all tensors of their checkpoint.

    Raises:
      ValueError: if a key is missing or unknown.
    """
    expected = self.match(paths)
    keys = [key for key in keys if not any(re.fullmatch(pattern, key) for pattern in self.ignored)]
    sources = {self._rename(key): key for key in keys} | {key: key for key in keys if key in expected}
    missing = [key for key in expected if key not in sources]
    unknown = [key for name, key in sources.items() if name not in expected]
    if missing or unknown:
      lists = {"missing": missing, "unknown": unknown}
      problem = "; ".join(f"{name}: {', '.join(sorted(keys))}" for name, keys in lists.items() if keys)
      raise UserError(f"the checkpoint is not one of this model: {problem}")
    return {path: (sources[key], view) for key, (path, view) in expected.items()}

  def to_ours(
    self,
    shapes: dict[str, Any],
    headers: Mapping[str, Header],
    read: Callable[[str], np.ndarray],
    dtype: Any,
    put: Put = leave,
  ) -> dict[str, Any]:
    """Converts their parameters to ours, one at a time, after checking all keys and shapes.

    Args:
      shapes: our parameter tree, with leaves that have a `shape`.
      headers: of all tensors of their checkpoint, by key.
      read: returns the tensor of a key.
      dtype: of the result.
      put: places each parameter.

    Returns:
      A tree like `shapes`, of the results of `put`.

    Raises:
      ValueError: if a key is missing or unknown, or if a shape differs.
    """
    shapes = {path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}
    sources, problems = self.sources(shapes, headers), []
    for path, (key, view) in sources.items():
      if (shape := headers[key].shape) != (expected := view.theirs_of(shapes[path])):
        problems.append(f"{headers[key].file}: {key} has shape {shape}, but in the model {expected}")
    if problems:
      more = f"; and so on, {len(problems)} in all" if len(problems) > 3 else ""
      raise UserError("; ".join(problems[:3]) + more)
    params = {}
    for path, (key, view) in sources.items():
      params[path] = put(path, np.asarray(view.ours(read(key)), dtype, order="C"))
    return unflatten_dict(params, sep="/")

  def to_theirs(self, params: dict[str, Any], dtype: Any) -> dict[str, np.ndarray]:
    """Converts our parameters to theirs.

    Raises:
      ValueError: if no row matches a parameter, or `dtype` cannot represent a number.
    """
    flat = flatten_dict(params, sep="/")
    tensors = {}
    for key, (path, view) in self.match(flat).items():
      with np.errstate(over="ignore"):
        tensors[key] = np.asarray(view.theirs(np.asarray(flat[path])), dtype, order="C")
      if not np.isfinite(tensors[key]).all():
        raise UserError(f"{path} has numbers that are not finite in {np.dtype(dtype)}")
    return tensors

  def _rename(self, key: str) -> str:
    """Applies the aliases to a key."""
    for pattern, replacement in self.aliases:
      key = re.sub(pattern, replacement, key)
    return key


class Setting(NamedTuple):
  """One setting of `config.json`.

  Attributes:
    theirs: its name in `config.json`.
    default: its default in the config class of transformers or diffusers.
    ours: the field of our module; None where the module supports only one value.
    known: the supported values; None for all.
  """

  theirs: str
  default: Any
  ours: str | None = None
  known: tuple[Any, ...] | None = None


def read_settings(settings: Iterable[Setting], config: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields of a module from its `config.json`.

  Raises:
    ValueError: if the module does not support a value.
  """
  fields = {}
  for setting in settings:
    value = config.get(setting.theirs, setting.default)
    if setting.known is not None and value not in setting.known:
      known = " and ".join(map(repr, setting.known))
      raise UserError(f"{setting.theirs} is {value!r} in config.json, but this model knows only {known}")
    if setting.ours is not None:
      fields[setting.ours] = value
  return fields


def write_settings(settings: Iterable[Setting], module: nn.Module) -> dict[str, Any]:
  """Returns the settings of a module for its `config.json`, the inverse of `read_settings`."""
  return {s.theirs: s.known[0] if s.ours is None else getattr(module, s.ours) for s in settings}
