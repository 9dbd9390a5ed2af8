"""Kinds of theta.

A theta is a pytree whose leaves are what is trained, in float32; the rest of it is static. With one kernel W:

  full weights   W' = theta
  embeddings     W'_i = theta_i, for the rows i of an identifier in a table W of tokens
                                                         ("Textual Inversion", Gal et al., 2208.01618, section 3)
  low rank       W' = W + scale A B                      ("LoRA", Hu et al., 2021, section 4.1)

and with y what leaves a module, beside which W stays as it is

  adapters       y' = y + gelu(y A) B                    ("StyleDrop", Sohn et al., 2306.00983, appendix B.1)

and with c the tokens of a text, which a module is told

  soft prompt    c' = [c, P]                             ("Prompt Tuning", Lester et al., 2104.08691, section 2)

For a convolution A has W's window and B is 1x1, so that A B has W's shape. An odd number of a kernel's axes says that
`nn.scan` put one in front, over its layers: 2 or 3 axes are those of a Dense, 4 or 5 those of a two-dimensional Conv.
"""

from collections.abc import Iterable, Iterator, Sequence
import difflib
import math
import re
from typing import Any
import zlib

from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

Path = tuple[str, ...]
AnyArray = Array | np.ndarray


class Full(struct.PyTreeNode):
  """Some of the parameters, or all of them, as they are after tuning.

  Attributes:
    weights: a part of the tree of parameters.
  """

  weights: dict[str, Any]

  stored = np.float32  # in files, by default

  @classmethod
  def init(cls, params: dict[str, Any], pattern: str = "") -> "Full":
    """The parameters as they are.

    Args:
      params: the base model's.
      pattern: a regular expression, searched for in paths such as "block_0/attention/query/kernel".

    Raises:
      ValueError: if it is found in none.
    """
    flat = flatten_dict(params)
    return cls(unflatten_dict({path: jnp.array(flat[path], jnp.float32) for path in _matching(pattern, flat)}))

  def expand(self, params: dict[str, Any]) -> dict[str, Any]:
    """The variables that the tuned module is applied with. ValueError if `params` are those of another module."""
    return {"params": self.merge(params)}

  def merge(self, params: dict[str, Any]) -> dict[str, Any]:
    """The tuned parameters, in the dtypes of `params`. The way back is to keep `params`."""
    flat, tuned = flatten_dict(params), flatten_dict(self.weights)
    _check_fit({path: x.shape for path, x in tuned.items()}, flat)
    return unflatten_dict(flat | {path: x.astype(flat[path].dtype) for path, x in tuned.items()})


class Embeddings(struct.PyTreeNode):
  """What a text encoder takes some tokens for, those of an identifier: rows of its table, or of each tower's.

  No other row is a parameter, so nothing that an optimizer does, weight decay included, can change it.

  Attributes:
    weights: a tree like that of the parameters, of the tables "tokens/embedding" alone: [k, d].
    ids: of the k tokens.
  """

  weights: dict[str, Any]
  ids: tuple[int, ...] = struct.field(pytree_node=False)

  stored = np.float32  # in files, by default

  @classmethod
  def init(cls, params: dict[str, Any], ids: Sequence[int]) -> "Embeddings":
    """The rows as they are.

    Args:
      params: of a text encoder.
      ids: the tokens.

    Raises:
      ValueError: if there are none, or one twice, or the network has no table of tokens, or one without these.
    """
    if not ids or len(set(ids)) != len(ids):
      raise ValueError(f"embeddings are of one token or more, each once, not of {list(ids)}")
    flat = flatten_dict(params)
    tables = {path: flat[path] for path in _matching("(^|/)tokens/embedding$", flat)}
    if odd := [i for i in ids if not 0 <= i < min(map(len, tables.values()))]:
      raise ValueError(f"the text encoder knows no token {', '.join(map(str, odd))}")
    weights = {path: jnp.array(table[np.array(ids)], jnp.float32) for path, table in tables.items()}
    return cls(unflatten_dict(weights), tuple(map(int, ids)))

  def expand(self, params: dict[str, Any]) -> dict[str, Any]:
    """The variables that the text encoder is applied with. ValueError if `params` are those of another one."""
    return {"params": self.merge(params)}

  def merge(self, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with these rows in their tables, in the dtypes of `params`. The way back is to keep `params`."""
    flat, tuned = flatten_dict(params), flatten_dict(self.weights)
    _check_fit({path: (*np.shape(flat.get(path))[:1], x.shape[1]) for path, x in tuned.items()}, flat)
    ids = np.array(self.ids)
    for path, rows in tuned.items():
      if len(flat[path]) <= ids.max():
        raise ValueError(f"the theta is for token {ids.max()}, but {'/'.join(path)} has only {len(flat[path])}")
      flat[path] = jnp.asarray(flat[path]).at[ids].set(rows.astype(flat[path].dtype))
    return unflatten_dict(flat)


class LoRA(struct.PyTreeNode):
  """Low-rank updates of the kernels of Dense and Conv layers.

  Attributes:
    weights: a tree like that of the parameters, where "down" is A and "up" is B in the place of "kernel".
    scale: of the update; alpha / rank in the words of the paper.
  """

  weights: dict[str, Any]
  scale: float = struct.field(pytree_node=False)

  stored = np.float16  # in files, by default

  @classmethod
  def init(
    cls, key: jax.Array, params: dict[str, Any], rank: int, *, alpha: float | None = None, pattern: str = ""
  ) -> "LoRA":
    """An update that changes nothing yet: A is Gaussian, of variance 1 / inputs, and B is zero.

    A layer's A depends on the key and on the layer's path alone.

    Args:
      key: of the randomness.
      params: the base model's, or their shapes.
      rank: of the updates.
      alpha: the scale times the rank; by default the rank, so that the scale is 1.
      pattern: a regular expression, searched for in the paths of layers, such as "block_0/attention/query".

    Raises:
      ValueError: if it is found in none.
    """
    flat = flatten_dict(params)
    kernels = {path[:-1]: x.shape for path, x in flat.items() if path[-1] == "kernel" and 2 <= x.ndim <= 5}
    weights = {}
    for layer in _matching(pattern, kernels):
      shape = kernels[layer]
      scanned = len(shape) % 2
      std = math.prod(shape[scanned:-1]) ** -0.5
      draw = jax.random.fold_in(key, zlib.crc32("/".join(layer).encode()))
      weights[*layer, "down"] = std * jax.random.normal(draw, (*shape[:-1], rank))
      weights[*layer, "up"] = jnp.zeros((*shape[:scanned], rank, shape[-1]))
    return cls(unflatten_dict(weights), (rank if alpha is None else alpha) / rank)

  def expand(self, params: dict[str, Any]) -> dict[str, Any]:
    """The variables that the tuned module is applied with. ValueError if `params` are those of another module."""
    collection = {}
    for layer, down, up in self._layers(params):
      collection[*layer, "lora_down"], collection[*layer, "lora_up"] = down, self.scale * up
    return {"params": params, "theta": unflatten_dict(collection)}

  def merge(self, params: dict[str, Any]) -> dict[str, Any]:
    """The tuned parameters, in the dtypes of `params`."""
    return self._add(self.scale, params)

  def unmerge(self, params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `merge`, up to rounding."""
    return self._add(-self.scale, params)

  def _add(self, scale: float, params: dict[str, Any]) -> dict[str, Any]:
    flat = flatten_dict(params)
    for layer, down, up in self._layers(params):
      kernel = flat[*layer, "kernel"]
      flat[*layer, "kernel"] = (jnp.asarray(kernel, jnp.float32) + scale * _product(down, up)).astype(kernel.dtype)
    return unflatten_dict(flat)

  def _layers(self, params: dict[str, Any]) -> Iterator[tuple[Path, Float[AnyArray, "..."], Float[AnyArray, "..."]]]:
    """Each layer with its A and B, if they fit."""
    flat = flatten_dict(self.weights)
    layers = dict.fromkeys(path[:-1] for path in flat)
    pairs = {layer: (flat[*layer, "down"], flat[*layer, "up"]) for layer in layers}
    shapes = {(*layer, "kernel"): (*down.shape[:-1], up.shape[-1]) for layer, (down, up) in pairs.items()}
    _check_fit(shapes, flatten_dict(params))
    yield from ((layer, *pair) for layer, pair in pairs.items())


class Adapters(struct.PyTreeNode):
  """Bottlenecks behind modules, which stand in rows: those of a row have one width, and tables of their own.

  With L modules in a row, of width D, and bottlenecks of H channels, A of [D, H] and B of [H, D] are, for each module

    shared:      A = A_0 + a_l,  B = B_0 + b_l,  where a_l of [H] and b_l of [D] are all that a module has of its own
    not shared:  A = A_l,  B = B_l

  so that a row has 2 D H + L (D + H) numbers, or 2 L D H. A is drawn from a truncated normal distribution, B is zero.

  Attributes:
    weights: "row_0" and so on; each holds "down" and "up" and, if shared, the modules' "own_down" and "own_up".
    places: the paths of the modules, row by row.
  """

  weights: dict[str, Any]
  places: tuple[tuple[str, ...], ...] = struct.field(pytree_node=False)

  stored = np.float16  # in files, by default

  @classmethod
  def init(
    cls,
    key: jax.Array,
    params: dict[str, Any],
    channels: int,
    places: Sequence[Sequence[str]],
    *,
    shared: bool = True,
    std: float = 0.02,
  ) -> "Adapters":
    """Adapters that change nothing yet.

    Args:
      key: of the randomness.
      params: the base model's, or their shapes.
      channels: H.
      places: the paths of the modules, row by row, such as `Muse.adapted` has them. Each has a layer "out".
      shared: whether the modules of a row share A_0 and B_0.
      std: of the numbers that A is made of, before they are truncated at two standard deviations.

    Raises:
      ValueError: if the model has no such module, or those of a row differ in width.
    """
    places = tuple(tuple(row) for row in places)
    flat = flatten_dict(params, sep="/")
    truncated = jax.nn.initializers.truncated_normal(std)
    weights = {}
    for i, row in enumerate(places):
      widths = {path: _width(flat, path) for path in row}
      if len(set(widths.values())) != 1:
        raise ValueError(f"adapters of one row stand behind modules of one width, not of {widths}")
      width = widths[row[0]]
      draw, own = jax.random.split(jax.random.fold_in(key, i))
      if shared:
        weights[f"row_{i}"] = {
          "down": truncated(draw, (width, channels)),
          "up": jnp.zeros((channels, width)),
          "own_down": truncated(own, (len(row), channels)),
          "own_up": jnp.zeros((len(row), width)),
        }
      else:
        weights[f"row_{i}"] = {
          "down": truncated(draw, (len(row), width, channels)),
          "up": jnp.zeros((len(row), channels, width)),
        }
    return cls(weights, places)

  def expand(self, params: dict[str, Any]) -> dict[str, Any]:
    """The variables that the adapted module is applied with. ValueError if `params` are those of another module."""
    flat, collection = flatten_dict(params, sep="/"), {}
    for i, row in enumerate(self.places):
      tables = self.weights[f"row_{i}"]
      down, up = tables["down"], tables["up"]
      if "own_down" in tables:
        down = down[None] + tables["own_down"][:, None]
        up = up[None] + tables["own_up"][:, None]
      for path, a, b in zip(row, down, up, strict=True):
        if (width := _width(flat, path)) != len(a):
          raise ValueError(f"the theta is for {path} of width {len(a)}, but here it is {width}")
        layer = tuple(path.split("/"))
        collection[*layer, "adapter_down"], collection[*layer, "adapter_up"] = a, b
    return {"params": params, "theta": unflatten_dict(collection)}


class SoftPrompt(struct.PyTreeNode):
  """Tokens of no word, behind those of the text.

  Attributes:
    weights: "tokens", P: [k, d], in the space of what the text encoder says.
  """

  weights: dict[str, Any]

  stored = np.float16  # in files, by default

  @classmethod
  def init(cls, key: jax.Array, text: Float[AnyArray, "n d"], count: int) -> "SoftPrompt":
    """Tokens drawn from some of a text's, which so are where the module knows its way.

    Args:
      key: of the randomness.
      text: what the text encoder says of any text, padding left out.
      count: k.

    Raises:
      ValueError: if there is to be no token.
    """
    if count < 1:
      raise ValueError(f"a soft prompt has one token or more, not {count}")
    return cls({"tokens": jnp.asarray(text, jnp.float32)[jax.random.randint(key, (count,), 0, len(text))]})

  def expand(self, params: dict[str, Any]) -> dict[str, Any]:
    """The variables that the module is applied with."""
    tokens = self.weights["tokens"]
    return {"params": params, "theta": {"soft_tokens": tokens, "soft_mask": jnp.ones(len(tokens))}}


Theta = Full | Embeddings | LoRA | Adapters | SoftPrompt


class StackedThetas(struct.PyTreeNode):
  """What several thetas put beside one module's parameters; under `jax.vmap` over it, each branch has its own.

  Attributes:
    collection: a tree that mirrors the modules; each leaf has an axis in front, over the branches.
  """

  collection: dict[str, Any]

  @classmethod
  def of(cls, params: dict[str, Any], thetas: Sequence["Theta | None"]) -> "StackedThetas":
    """Thetas side by side, be they of different kinds and ranks: what one lacks is zero, which changes nothing.

    Args:
      params: the base model's, which all branches share.
      thetas: one for each branch; None for the base model itself.

    Raises:
      ValueError: if one is for another module, or changes the parameters themselves, as full weights and embeddings do.
    """
    flat = []
    for theta in thetas:
      if isinstance(theta, Full | Embeddings):
        raise ValueError("full weights and embeddings are no branch beside others: they share no parameters with them")
      flat.append({} if theta is None else flatten_dict(theta.expand(params)["theta"]))
    collection = {}
    for path in sorted({path for branch in flat for path in branch}):
      shapes = [branch[path].shape for branch in flat if path in branch]
      greatest = tuple(map(max, zip(*shapes, strict=True)))
      rows = []
      for branch in flat:
        leaf = branch.get(path, jnp.zeros(greatest))
        rows.append(jnp.pad(leaf, [(0, wide - own) for wide, own in zip(greatest, leaf.shape, strict=True)]))
      collection[path] = jnp.stack(rows)
    return cls(unflatten_dict(collection))

  def expand(self, params: dict[str, Any]) -> dict[str, Any]:
    """The variables that a module is applied with."""
    return {"params": params, "theta": self.collection}


def stack(thetas: Sequence[Any]) -> Any:
  """N thetas as one, for `jax.vmap`: each leaf has an axis in front, over the thetas.

  Args:
    thetas: or trees of thetas, all of one structure.

  Raises:
    ValueError: if they differ in kind, layers, shapes or scale.
  """
  first, *others = ((jax.tree.structure(theta), [np.shape(x) for x in jax.tree.leaves(theta)]) for theta in thetas)
  for i, other in enumerate(others, start=1):
    if other != first:
      raise ValueError(f"thetas 0 and {i} cannot be stacked: they differ in kind, layers, shapes or scale")
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas)


def unstack(stacked: Any) -> list[Any]:
  """The inverse of `stack`."""
  count = len(jax.tree.leaves(stacked)[0])
  return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)]


def _width(flat: dict[str, Any], path: str) -> int:
  """Channels that leave a module, by the flat parameters; ValueError if there is no such module."""
  if (name := f"{path}/out/kernel") not in flat:
    raise ValueError(f"the theta is for {path}, which this model does not have, or which has no layer 'out'")
  return int(flat[name].shape[-1])


def _product(down: Float[AnyArray, "..."], up: Float[AnyArray, "*scanned rank out"]) -> Float[AnyArray, "..."]:
  """A B, in the shape of the kernel."""
  flat = down.reshape(*up.shape[:-2], -1, down.shape[-1])
  return jnp.matmul(flat, up, precision=jax.lax.Precision.HIGHEST).reshape(*down.shape[:-1], up.shape[-1])


def _matching(pattern: str, paths: Iterable[Path]) -> list[Path]:
  """The paths that a pattern is found in; ValueError, with those that are most like it, if there are none."""
  named = {"/".join(path): path for path in paths}
  if found := [path for name, path in named.items() if re.search(pattern, name)]:
    return found
  near = difflib.get_close_matches(pattern, named, n=5, cutoff=0.0)
  raise ValueError(f"{pattern!r} matches none of {len(named)} paths; the nearest are {', '.join(near)}")


def _check_fit(shapes: dict[Path, tuple[int, ...]], params: dict[Path, Any]) -> None:
  """ValueError if the base model lacks a parameter that a theta changes, or has it in another shape."""
  for path, shape in shapes.items():
    if path not in params:
      raise ValueError(f"the theta changes {'/'.join(path)}, which this model does not have")
    if params[path].shape != shape:
      raise ValueError(f"the theta is for {'/'.join(path)} of shape {shape}, but here it is {params[path].shape}")
