"""Saves a personalisation as one safetensors file: the theta of each part of a generator, and a card that describes it.

The card identifies the base model by a hash of the weights of each of its parts. A theta is only ever applied with the
weights that it was trained with: those of the parts that it tunes, of the text encoder and of the autoencoder. Other
parts may be missing or others: a theta of DeepFloyd's IF-I loads with and without IF-II. The card is in the file's
metadata, as text, where any program that reads safetensors shows it.
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict
import numpy as np
import safetensors
import safetensors.numpy

from dreamjax.errors import UserError
from dreamjax.theta.kinds import Adapters, Embeddings, Full, LoRA, SoftPrompt, Theta

FORMAT = "dreamjax theta 2"
_FIRST_FORMAT = "dreamjax theta 1"  # its cards have one hash, of all parameters of the generator
#: In `Base.hashes`, what the one hash of files of the first format is of: all parts together.
ALL_PARTS = ""
_SHARED = ("text", "autoencoder")  # parts that thetas of all other parts depend on
KINDS = {"full": Full, "embeddings": Embeddings, "lora": LoRA, "adapters": Adapters, "prompt": SoftPrompt}


class Base(NamedTuple):
  """A base model.

  Attributes:
    name: for people.
    hashes: the `content_hash` of each part's parameters, by its name; they decide.
  """

  name: str
  hashes: Mapping[str, str]

  @property
  def hash(self) -> str:
    """A hash of all the hashes, which identifies the parameters of the whole generator."""
    return hashlib.sha256(json.dumps(sorted(self.hashes.items())).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Card:
  """The description of a personalisation.

  Attributes:
    base: the model that it was trained with.
    identifier: the text that replaces [V] in prompts.
    class_noun: what the subject is, such as "dog".
    recipe: how it was made; anything that JSON can express.
  """

  base: Base
  identifier: str
  class_noun: str
  recipe: Mapping[str, Any]


class Personalisation(NamedTuple):
  """The result of a method.

  Attributes:
    thetas: by the names of the parts of a generator that they belong to.
    card: their description.
  """

  thetas: Mapping[str, Theta]
  card: Card

  def save(self, path: pathlib.Path | str, dtype: Any = None) -> None:
    """Writes one file, see `save`."""
    save(pathlib.Path(path), self.thetas, self.card, dtype)


def content_hash(params: Mapping[str, Any], fetch: Callable[[Any], Any] = np.asarray) -> str:
  """Computes a hash of parameters: of their paths, shapes and values, the values rounded to float16.

  So weights that are stored in float16 have the same hash whether they are loaded in float16 or in float32, which is
  that of the float32 weights from which they were stored. Weights loaded in bfloat16 have another one.

  Args:
    params: a tree, such as that of one part of a generator.
    fetch: converts one of its arrays to numpy; for arrays that are sharded over processes, collects it.
  """
  with np.errstate(over="ignore"):
    return _hash(flatten_dict(params, sep="/"), np.float16, fetch)


class Hasher:
  """Computes the `content_hash` of each part while parameters are read one at a time, before they are cast or moved.

  Parameters must be added in the order of their paths within a part, which is the order in which they are loaded.
  """

  def __init__(self) -> None:
    self._digests: dict[str, Any] = {}
    self._last: dict[str, str] = {}

  def add(self, path: str, array: np.ndarray) -> None:
    """Adds a parameter, by its path in the generator's tree; ValueError if it is out of order."""
    part, _, name = path.partition("/")
    if name <= self._last.get(part, ""):
      raise UserError(f"{path} comes after {part}/{self._last[part]}, but parameters are hashed in order")
    self._last[part] = name
    with np.errstate(over="ignore"):
      _update(self._digests.setdefault(part, hashlib.sha256()), name, np.asarray(array, np.float16))

  def hashes(self) -> dict[str, str]:
    """Returns the hash of each part, as `Base` has them."""
    return {part: digest.hexdigest() for part, digest in self._digests.items()}


def save(path: pathlib.Path, thetas: Mapping[str, Theta], card: Card, dtype: Any = None) -> None:
  """Writes a file, complete or not at all.

  Args:
    path: its folder is created where missing; an existing file is replaced.
    thetas: by the names of the parts of a generator that they belong to.
    card: their description, with a hash of each of these parts.
    dtype: of the numbers in the file; by default that of the theta's kind, its `stored`.

  Raises:
    ValueError: if there are numbers that are not finite, or not in `dtype`; or the card lacks a part's hash.
  """
  if ALL_PARTS not in card.base.hashes and (missing := sorted(set(thetas) - set(card.base.hashes))):
    raise UserError(f"the card's base {card.base.name} has no hash of {', '.join(missing)}")
  tensors = {}
  for key, leaf in flatten_dict({part: theta.weights for part, theta in thetas.items()}, sep="/").items():
    wanted = np.dtype(dtype or thetas[key.partition("/")[0]].stored)
    with np.errstate(over="ignore"):
      tensors[key] = np.ascontiguousarray(leaf).astype(wanted)
    if not np.isfinite(tensors[key]).all():
      raise UserError(f"{key} holds numbers that are not finite in {wanted}")
  metadata = {
    "format": FORMAT,
    "kind": json.dumps({part: _describe(theta) for part, theta in thetas.items()}),
    "base_model": card.base.name,
    "base_hashes": json.dumps(dict(card.base.hashes)),
    "identifier": card.identifier,
    "class_noun": card.class_noun,
    "recipe": json.dumps(card.recipe),
    "content_hash": _hash(tensors),
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.with_name(f"{path.name}.unfinished")
  safetensors.numpy.save_file(tensors, unfinished, metadata=metadata)
  os.replace(unfinished, path)


def read_card(path: pathlib.Path) -> Card:
  """Reads the description of a file.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is damaged, or of another program.
  """
  return _read(path)[0]


def parts_needed(path: pathlib.Path) -> tuple[str, ...]:
  """Returns the parts of a generator whose weights a file depends on, `ALL_PARTS` for one of the first format.

  Raises what `read_card` does.
  """
  card, kinds, _ = _read(path)
  return _parts_needed(card, kinds)


def load(path: pathlib.Path, base: Base) -> Personalisation:
  """Reads a file.

  Args:
    path: the file.
    base: the model that the theta is applied to, with the hashes of at least the parts that the file needs.

  Returns:
    The thetas, in float32, as numpy arrays (one `jax.device_put` of the caller moves them to devices), and the card.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is damaged, or of another program, or was trained with other weights.
  """
  card, kinds, stored = _read(path)
  needed = {part: (base.hashes.get(part), card.base.hashes[part]) for part in _parts_needed(card, kinds)}
  if wrong := [_compare(part, *hashes) for part, hashes in needed.items() if len(set(hashes)) > 1]:
    raise UserError(
      f"{path} was trained with {card.base.name} and does not fit {base.name}, whose {' and '.join(wrong)}: a theta "
      "works only with the weights that it was trained with"
    )
  with safetensors.safe_open(path, "np") as file:
    tensors = {key: file.get_tensor(key) for key in file.keys()}
  if _hash(tensors) != stored:
    raise UserError(f"{path} is damaged: its weights are not those that were written")
  weights = unflatten_dict({key: x.astype(np.float32) for key, x in tensors.items()}, sep="/")
  thetas = {}
  for part, description in kinds.items():
    kind, settings = description["kind"], {key: x for key, x in description.items() if key != "kind"}
    thetas[part] = KINDS[kind](weights=weights[part], **{key: _frozen(x) for key, x in settings.items()})
  return Personalisation(thetas, card)


def _describe(theta: Theta) -> dict[str, Any]:
  """Returns a theta's kind and settings, all but its weights."""
  settings = {field.name: getattr(theta, field.name) for field in dataclasses.fields(theta) if field.name != "weights"}
  return {"kind": next(name for name, kind in KINDS.items() if type(theta) is kind), **settings}


def _frozen(setting: Any) -> Any:
  """Turns the lists of a setting back into the tuples that JSON, which has lists only, was given."""
  return tuple(map(_frozen, setting)) if isinstance(setting, list) else setting


def _read(path: pathlib.Path) -> tuple[Card, dict[str, dict[str, Any]], str]:
  """Returns the card, each part's kind and settings, and the hash of the weights."""
  try:
    with safetensors.safe_open(path, "np") as file:
      metadata = file.metadata() or {}
  except safetensors.SafetensorError as error:
    raise UserError(f"{path} is no safetensors file, or a damaged one: {error}") from error
  if (form := metadata.get("format")) not in (FORMAT, _FIRST_FORMAT):
    raise UserError(f"{path} is a safetensors file, but not of a theta: its metadata lacks the format {FORMAT!r}")
  hashes = json.loads(metadata["base_hashes"]) if form == FORMAT else {ALL_PARTS: metadata["base_hash"]}
  base = Base(metadata["base_model"], hashes)
  card = Card(base, metadata["identifier"], metadata["class_noun"], json.loads(metadata["recipe"]))
  return card, json.loads(metadata["kind"]), metadata["content_hash"]


def _parts_needed(card: Card, kinds: Mapping[str, Any]) -> tuple[str, ...]:
  return tuple(part for part in card.base.hashes if part in (ALL_PARTS, *_SHARED, *kinds))


def _compare(part: str, found: str | None, wanted: str) -> str:
  """Says how a part that a theta needs differs."""
  name = f"part {part!r}" if part else "set of parameters"
  return f"{name} is missing" if found is None else f"{name} has the hash {found[:12]}, not {wanted[:12]}"


def _hash(flat: Mapping[str, Any], dtype: Any = None, fetch: Callable[[Any], Any] = np.asarray) -> str:
  """Computes the SHA-256 of arrays with their names, dtypes and shapes, fetching and rounding one at a time."""
  digest = hashlib.sha256()
  for name in sorted(flat):
    _update(digest, name, np.asarray(fetch(flat[name]), dtype))
  return digest.hexdigest()


def _update(digest: Any, name: str, array: np.ndarray) -> None:
  digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
  digest.update(np.ascontiguousarray(array).view(np.uint8))
