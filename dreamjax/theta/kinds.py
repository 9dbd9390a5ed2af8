"""Kinds of theta, and how several of them are composed.

A theta is a pytree whose leaves are what is trained, in float32; the rest of it is static. With one kernel W:

  full weights   W' = theta
  embeddings     W'_i = theta_i, for the rows i of an identifier in a table W of tokens
                                                         ("Textual Inversion", Gal et al., 2208.01618, section 3)
  low rank       W' = W + scale A B                      ("LoRA", Hu et al., 2021, section 4.1)

with y the output of a module, whose parameters stay as they are,

  adapters       y' = y + gelu(y A) B                    ("StyleDrop", Sohn et al., 2306.00983, appendix B.1)

and with c the tokens of the text that a module is conditioned on,

  soft prompt    c' = [c, P]                             ("Prompt Tuning", Lester et al., 2104.08691, section 2)

For a convolution A has W's window and B is 1x1, so that A B has W's shape. An odd number of axes of a kernel means that
`nn.scan` added one in front, over its layers: 2 or 3 axes are those of a Dense, 4 or 5 those of a two-dimensional Conv.
"""

from collections.abc import Iterable, Iterator, Sequence
import difflib
import itertools
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

from dreamjax.errors import UserError

Path = tuple[str, ...]
AnyArray = Array | np.ndarray


class Full(struct.PyTreeNode):
  """Tuned values of some or all parameters.

  Attributes:
    weights: a subtree of the parameters.
  """

  weights: dict[str, Any]

  stored = np.float32  # in files, by default

  @classmethod
  def init(cls, params: dict[str, Any], pattern: str = "") -> "Full":
    """Copies the base model's values.

    Args:
      params: the base model's.
      pattern: a regular expression, searched for in paths such as "block_0/attention/query/kernel".

    Raises:
      ValueError: if it is found in none of them.
    """
    flat = flatten_dict(params)
    return cls(unflatten_dict({path: jnp.array(flat[path], jnp.float32) for path in _matching(pattern, flat)}))

  def expand(self, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables that the tuned module is applied with. ValueError if `params` are of another module."""
    return {"params": self.merge(params)}

  def merge(self, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the tuned parameters, in the dtypes of `params`; only `params` themselves undo it."""
    flat, tuned = flatten_dict(params), flatten_dict(self.weights)
    _check_fit({path: x.shape for path, x in tuned.items()}, flat)
    return unflatten_dict(flat | {path: x.astype(flat[path].dtype) for path, x in tuned.items()})


class Embeddings(struct.PyTreeNode):
  """Embeddings of an identifier's tokens in a text encoder: rows of its table, or of the table of each of its towers.

  The other rows are not in the theta, so that nothing an optimizer does, weight decay included, can change them.

  Attributes:
    weights: a tree like that of the parameters, with the tables "tokens/embedding" alone: [k, d].
    ids: of the k tokens.
  """

  weights: dict[str, Any]
  ids: tuple[int, ...] = struct.field(pytree_node=False)

  stored = np.float32  # in files, by default

  @classmethod
  def init(cls, params: dict[str, Any], ids: Sequence[int]) -> "Embeddings":
    """Copies the text encoder's rows.

    Args:
      params: of a text encoder.
      ids: the tokens.

    Raises:
      ValueError: if `ids` is empty or holds a token twice, or the network has no table of tokens, or one without these.
    """
    if not ids or len(set(ids)) != len(ids):
      raise UserError(f"embeddings are of one token or more, each once, not of {list(ids)}")
    flat = flatten_dict(params)
    tables = {path: flat[path] for path in _matching("(^|/)tokens/embedding$", flat)}
    if odd := [i for i in ids if not 0 <= i < min(map(len, tables.values()))]:
      raise UserError(f"the text encoder has no token {', '.join(map(str, odd))}")
    weights = {path: jnp.array(table[np.array(ids)], jnp.float32) for path, table in tables.items()}
    return cls(unflatten_dict(weights), tuple(map(int, ids)))

  def expand(self, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables that the text encoder is applied with. ValueError if `params` are of another one."""
    return {"params": self.merge(params)}

  def merge(self, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters with these rows in their tables, in the dtypes of `params`."""
    flat, tuned = flatten_dict(params), flatten_dict(self.weights)
    _check_fit({path: (*np.shape(flat.get(path))[:1], x.shape[1]) for path, x in tuned.items()}, flat)
    ids = np.array(self.ids)
    for path, rows in tuned.items():
      if len(flat[path]) <= ids.max():
        raise UserError(f"the theta is for token {ids.max()}, but {'/'.join(path)} has only {len(flat[path])}")
      flat[path] = jnp.asarray(flat[path]).at[ids].set(rows.astype(flat[path].dtype))
    return unflatten_dict(flat)


class LoRA(struct.PyTreeNode):
  """Low-rank updates of the kernels of Dense and Conv layers.

  Attributes:
    weights: a tree like that of the parameters, with "down" (A) and "up" (B) in place of "kernel".
    scale: of the update; alpha / rank in the paper.
  """

  weights: dict[str, Any]
  scale: float = struct.field(pytree_node=False)

  stored = np.float16  # in files, by default

  @classmethod
  def init(
    cls, key: jax.Array, params: dict[str, Any], rank: int, *, alpha: float | None = None, pattern: str = ""
  ) -> "LoRA":
    """Initialises updates that change nothing yet: A is Gaussian with variance 1 / inputs, B is zero.

    A layer's A depends on nothing but the key and the layer's path.

    Args:
      key: of the random numbers.
      params: the base model's, or their shapes.
      rank: of the updates.
      alpha: the scale times the rank; by default the rank, so that the scale is 1.
      pattern: a regular expression, searched for in the paths of layers, such as "block_0/attention/query".

    Raises:
      ValueError: if it is found in none of them.
    """
    flat = flatten_dict(params)
    kernels = {path[:-1]: x.shape for path, x in flat.items() if path[-1] == "kernel" and 2 <= x.ndim <= 5}
    weights = {}
    for layer in _matching(pattern, kernels):
      shape = kernels[layer]
      scanned = len(shape) % 2
      std = math.prod(shape[scanned:-1]) ** -0.5
      layer_key = jax.random.fold_in(key, zlib.crc32("/".join(layer).encode()))
      weights[*layer, "down"] = std * jax.random.normal(layer_key, (*shape[:-1], rank))
      weights[*layer, "up"] = jnp.zeros((*shape[:scanned], rank, shape[-1]))
    return cls(unflatten_dict(weights), (rank if alpha is None else alpha) / rank)

  def expand(self, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables that the tuned module is applied with. ValueError if `params` are of another module."""
    layers = self._layers(params)
    collection = {(*layer, "lora"): ({"down": down, "up": self.scale * up},) for layer, down, up in layers}
    return {"params": params, "theta": unflatten_dict(collection)}

  def merge(self, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the tuned parameters, in the dtypes of `params`."""
    return self._add(self.scale, params)

  def unmerge(self, params: dict[str, Any]) -> dict[str, Any]:
    """Inverts `merge`, up to rounding."""
    return self._add(-self.scale, params)

  def _add(self, scale: float, params: dict[str, Any]) -> dict[str, Any]:
    flat = flatten_dict(params)
    for layer, down, up in self._layers(params):
      kernel = flat[*layer, "kernel"]
      flat[*layer, "kernel"] = (jnp.asarray(kernel, jnp.float32) + scale * _product(down, up)).astype(kernel.dtype)
    return unflatten_dict(flat)

  def _layers(self, params: dict[str, Any]) -> Iterator[tuple[Path, Float[AnyArray, "..."], Float[AnyArray, "..."]]]:
    """Yields each layer with its A and B; ValueError if they do not fit the parameters."""
    flat = flatten_dict(self.weights)
    layers = dict.fromkeys(path[:-1] for path in flat)
    pairs = {layer: (flat[*layer, "down"], flat[*layer, "up"]) for layer in layers}
    shapes = {(*layer, "kernel"): (*down.shape[:-1], up.shape[-1]) for layer, (down, up) in pairs.items()}
    _check_fit(shapes, flatten_dict(params))
    yield from ((layer, *pair) for layer, pair in pairs.items())


class Adapters(struct.PyTreeNode):
  """Bottlenecks behind modules. The modules form groups: those of a group have one width, and share tables of weights.

  With L modules of width D in a group and bottlenecks of H channels, A [D, H] and B [H, D] of module l are

    shared:      A = A_0 + a_l,  B = B_0 + b_l,  where only a_l [H] and b_l [D] are the module's own
    not shared:  A = A_l,  B = B_l

  so that a group has 2 D H + L (D + H) parameters, or 2 L D H. A is initialised from a truncated normal distribution,
  B with zeros.

  Attributes:
    weights: for each group, "row_0" and so on, "down" and "up" and, if shared, the modules' "own_down" and "own_up".
    places: the paths of the modules, group by group.
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
    """Initialises adapters that change nothing yet.

    Args:
      key: of the random numbers.
      params: the base model's, or their shapes.
      channels: H.
      places: the paths of the modules, group by group, such as `Muse.adapted`. Each module has a layer "out".
      shared: whether the modules of a group share A_0 and B_0.
      std: standard deviation of the entries of A, before they are truncated at two standard deviations.

    Raises:
      ValueError: if the model has no such module, or those of a group differ in width.
    """
    places = tuple(tuple(group) for group in places)
    flat = flatten_dict(params, sep="/")
    truncated = jax.nn.initializers.truncated_normal(std)
    weights = {}
    for i, group in enumerate(places):
      widths = {path: _width(flat, path) for path in group}
      if len(set(widths.values())) != 1:
        raise UserError(f"adapters of one group are behind modules of one width, not of {widths}")
      width = widths[group[0]]
      tables_key, own_key = jax.random.split(jax.random.fold_in(key, i))
      if shared:
        weights[f"row_{i}"] = {
          "down": truncated(tables_key, (width, channels)),
          "up": jnp.zeros((channels, width)),
          "own_down": truncated(own_key, (len(group), channels)),
          "own_up": jnp.zeros((len(group), width)),
        }
      else:
        weights[f"row_{i}"] = {
          "down": truncated(tables_key, (len(group), width, channels)),
          "up": jnp.zeros((len(group), channels, width)),
        }
    return cls(weights, places)

  def expand(self, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables that the adapted module is applied with. ValueError if `params` are of another module."""
    flat, collection = flatten_dict(params, sep="/"), {}
    for i, group in enumerate(self.places):
      tables = self.weights[f"row_{i}"]
      down, up = tables["down"], tables["up"]
      if "own_down" in tables:
        down = down[None] + tables["own_down"][:, None]
        up = up[None] + tables["own_up"][:, None]
      for path, a, b in zip(group, down, up, strict=True):
        if (width := _width(flat, path)) != len(a):
          raise UserError(f"the theta is for {path} of width {len(a)}, but here it is {width}")
        collection[*path.split("/"), "adapter"] = ({"down": a, "up": b},)
    return {"params": params, "theta": unflatten_dict(collection)}


class SoftPrompt(struct.PyTreeNode):
  """Trained tokens behind those of the text.

  Attributes:
    weights: "tokens", P: [k, d], in the space of the text encoder's output.
  """

  weights: dict[str, Any]

  stored = np.float16  # in files, by default

  @classmethod
  def init(cls, key: jax.Array, text: Float[AnyArray, "n d"], count: int) -> "SoftPrompt":
    """Initialises with random tokens of a text, which are in the distribution that the module was trained on.

    Args:
      key: of the random numbers.
      text: the text encoder's output for any text, without padding.
      count: k.

    Raises:
      ValueError: if `count` is less than 1.
    """
    if count < 1:
      raise UserError(f"a soft prompt has one token or more, not {count}")
    return cls({"tokens": jnp.asarray(text, jnp.float32)[jax.random.randint(key, (count,), 0, len(text))]})

  def expand(self, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables that the module is applied with."""
    tokens = self.weights["tokens"]
    return {"params": params, "theta": {"soft_prompt": ({"tokens": tokens, "mask": jnp.ones(len(tokens))},)}}


Theta = Full | Embeddings | LoRA | Adapters | SoftPrompt


class StackedThetas(struct.PyTreeNode):
  """The edits of the thetas of several branches, stacked: under `jax.vmap` over it, each branch has its own.

  Attributes:
    collection: "theta", see `theta.edits`; each leaf has an axis in front, over the branches.
  """

  collection: dict[str, Any]

  @classmethod
  def of(cls, params: dict[str, Any], thetas: "Sequence[Theta | Sequence[Theta] | None]") -> "StackedThetas":
    """Stacks thetas of any kinds and ranks: where one lacks an entry, that is zero, which changes nothing.

    Args:
      params: the base model's, which all branches share.
      thetas: of each branch one, or a sequence of several; None for the base model itself.

    Raises:
      ValueError: if one is for another module, or changes the parameters themselves, as full weights and embeddings do.
    """
    if any(isinstance(theta, Full | Embeddings) for own in thetas for theta in _as_sequence(own)):
      raise UserError("full weights and embeddings cannot be stacked in branches, which share their parameters")
    branches = [flatten_dict(compose(params, own).get("theta", {})) for own in thetas]
    collection = {}
    for path in sorted({path for branch in branches for path in branch}):
      several = [branch.get(path, ()) for branch in branches]
      collection[path] = tuple(map(_stack_padded, itertools.zip_longest(*several, fillvalue={})))
    return cls(unflatten_dict(collection))

  def expand(self, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables that a module is applied with."""
    return {"params": params, "theta": self.collection}


#: The personalisation of one network: none, one theta, or several that are composed.
Thetas = Theta | StackedThetas | Sequence[Theta | StackedThetas] | None


def compose(params: dict[str, Any], thetas: Thetas) -> dict[str, Any]:
  """Returns the variables that a module is applied with when it has all of several thetas.

  Their effects add up: thetas that change parameters do so one after the other; low-rank updates of one layer are
  summed; adapters behind one module, and tokens of soft prompts, follow each other in the order of the thetas. Where
  full weights are among them, low-rank updates are added to those.

  Args:
    params: the base model's.
    thetas: none, one or several.

  Raises:
    ValueError: if one is for another module, or full weights would replace what an earlier theta has changed.
  """
  original, collection = flatten_dict(params), {}
  for theta in _as_sequence(thetas):
    if isinstance(theta, Full):
      flat = flatten_dict(params)
      if twice := [path for path in flatten_dict(theta.weights) if flat.get(path) is not original.get(path)]:
        raise UserError(f"full weights would replace what another theta made of {'/'.join(twice[0])}: put them first")
    variables = theta.expand(params)
    params = variables["params"]
    for path, entries in flatten_dict(variables.get("theta", {})).items():
      collection[path] = (*collection.get(path, ()), *entries)
  return {"params": params, "theta": unflatten_dict(collection)} if collection else {"params": params}


def _as_sequence(thetas: Thetas) -> Sequence[Theta | StackedThetas]:
  if thetas is None:
    return ()
  return thetas if isinstance(thetas, Sequence) else (thetas,)


def stack(thetas: Sequence[Any]) -> Any:
  """Stacks N thetas for `jax.vmap`: each leaf gets an axis in front, over the thetas.

  Args:
    thetas: of one network each, or trees of thetas; all of one structure.

  Raises:
    ValueError: if they differ in kind, layers, shapes or scale.
  """
  first, *others = ((jax.tree.structure(theta), [np.shape(x) for x in jax.tree.leaves(theta)]) for theta in thetas)
  for i, other in enumerate(others, start=1):
    if other != first:
      raise UserError(f"thetas 0 and {i} cannot be stacked: they differ in kind, layers, shapes or scale")
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas)


def unstack(stacked: Any) -> list[Any]:
  """Inverts `stack`."""
  count = len(jax.tree.leaves(stacked)[0])
  return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)]


def _stack_padded(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Stacks the arrays of entries of one edit, padded with zeros to the greatest shape; those of {} are zero."""
  flat = [flatten_dict(entry) for entry in entries]
  stacked = {}
  for field in sorted({field for entry in flat for field in entry}):
    shapes = [entry[field].shape for entry in flat if field in entry]
    greatest = tuple(map(max, zip(*shapes, strict=True)))
    leaves = [entry.get(field, jnp.zeros(greatest)) for entry in flat]
    padding = [[(0, most - own) for most, own in zip(greatest, x.shape, strict=True)] for x in leaves]
    stacked[field] = jnp.stack([jnp.pad(x, widths) for x, widths in zip(leaves, padding, strict=True)])
  return unflatten_dict(stacked)


def _width(flat: dict[str, Any], path: str) -> int:
  """Returns the output channels of a module, by the flat parameters; ValueError if there is no such module."""
  if (name := f"{path}/out/kernel") not in flat:
    raise UserError(f"the theta is for {path}, which this model does not have, or which has no layer 'out'")
  return int(flat[name].shape[-1])


def _product(down: Float[AnyArray, "..."], up: Float[AnyArray, "*scanned rank out"]) -> Float[AnyArray, "..."]:
  """Computes A B, in the shape of the kernel."""
  flat = down.reshape(*up.shape[:-2], -1, down.shape[-1])
  return jnp.matmul(flat, up, precision=jax.lax.Precision.HIGHEST).reshape(*down.shape[:-1], up.shape[-1])


def _matching(pattern: str, paths: Iterable[Path]) -> list[Path]:
  """Returns the paths in which a pattern is found; ValueError, which names the most similar ones, if there are none."""
  named = {"/".join(path): path for path in paths}
  if found := [path for name, path in named.items() if re.search(pattern, name)]:
    return found
  near = difflib.get_close_matches(pattern, named, n=5, cutoff=0.0)
  raise UserError(f"{pattern!r} matches none of {len(named)} paths; the nearest are {', '.join(near)}")


def _check_fit(shapes: dict[Path, tuple[int, ...]], params: dict[Path, Any]) -> None:
  """Raises ValueError if the base model lacks a parameter that a theta changes, or has it in another shape."""
  for path, shape in shapes.items():
    if path not in params:
      raise UserError(f"the theta changes {'/'.join(path)}, which this model does not have")
    if params[path].shape != shape:
      raise UserError(f"the theta is for {'/'.join(path)} of shape {shape}, but here it is {params[path].shape}")
