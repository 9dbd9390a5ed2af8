"""A personalisation as one safetensors file: the theta of each part of a generator, and a card that says what it is.

The card names the base model by a hash of its weights, so that a theta is only ever applied to those that it was
trained beside. All of it is in the file's metadata, as text, where any program that reads safetensors shows it.
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

from dreamjax.theta.kinds import Adapters, Embeddings, Full, LoRA, SoftPrompt, Theta

FORMAT = "dreamjax theta 1"
KINDS = {"full": Full, "embeddings": Embeddings, "lora": LoRA, "adapters": Adapters, "prompt": SoftPrompt}


class Base(NamedTuple):
  """A base model.

  Attributes:
    name: for people.
    hash: see `content_hash`; it decides.
  """

  name: str
  hash: str

  def __str__(self) -> str:
    return f"{self.name} ({self.hash[:12]})"


@dataclasses.dataclass(frozen=True)
class Card:
  """What a personalisation is.

  Attributes:
    base: the model that it was trained beside.
    identifier: what stands for [V] in prompts.
    class_noun: what the subject is, such as "dog".
    recipe: how it was made; anything that JSON can say.
  """

  base: Base
  identifier: str
  class_noun: str
  recipe: Mapping[str, Any]


class Personalisation(NamedTuple):
  """What a method ends in.

  Attributes:
    thetas: by the names of the parts of a generator that they belong to.
    card: what they are.
  """

  thetas: Mapping[str, Theta]
  card: Card

  def save(self, path: pathlib.Path | str, dtype: Any = None) -> None:
    """`save`, as one file."""
    save(pathlib.Path(path), self.thetas, self.card, dtype)


def content_hash(params: Mapping[str, Any], fetch: Callable[[Any], Any] = np.asarray) -> str:
  """A hash of parameters: of their paths, shapes and values, these rounded to float16.

  So weights that are stored in float16 have one hash, whether they are loaded in float16 or in float32, and it is that
  of the float32 weights which they were stored from. Weights that were loaded in bfloat16 have another.

  Args:
    params: a tree, with all parts of a generator in it.
    fetch: makes a numpy array of one of these.
  """
  with np.errstate(over="ignore"):
    return _hash(flatten_dict(params, sep="/"), np.float16, fetch)


def save(path: pathlib.Path, thetas: Mapping[str, Theta], card: Card, dtype: Any = None) -> None:
  """Writes a file, complete or not at all.

  Args:
    path: its folder is made where missing; a file that is there already is replaced.
    thetas: by the names of the parts of a generator that they belong to.
    card: what it is.
    dtype: of the numbers in the file; by default float32 for full weights and float16 for other kinds.

  Raises:
    ValueError: if there are numbers that are not finite, or not in `dtype`.
  """
  tensors = {}
  for key, leaf in flatten_dict({part: theta.weights for part, theta in thetas.items()}, sep="/").items():
    wanted = np.dtype(dtype or thetas[key.partition("/")[0]].stored)
    with np.errstate(over="ignore"):
      tensors[key] = np.ascontiguousarray(leaf).astype(wanted)
    if not np.isfinite(tensors[key]).all():
      raise ValueError(f"{key} holds numbers that are not finite in {wanted}")
  metadata = {
    "format": FORMAT,
    "kind": json.dumps({part: _describe(theta) for part, theta in thetas.items()}),
    "base_model": card.base.name,
    "base_hash": card.base.hash,
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
  """What a file holds, without its weights.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is damaged, or of another program.
  """
  return _read(path)[0]


def load(path: pathlib.Path, base: Base) -> Personalisation:
  """Reads a file.

  Args:
    path: the file.
    base: the model that the theta is to be applied to.

  Returns:
    The thetas, in float32, as numpy arrays (where they are to live is for the caller to say, by one
    `jax.device_put`), and the card.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is damaged, or of another program, or for another base model.
  """
  card, kinds, stored = _read(path)
  if card.base.hash != base.hash:
    raise ValueError(
      f"{path} was trained beside {card.base} and does not fit {base}: a theta works only with the very weights "
      "that it was trained beside"
    )
  with safetensors.safe_open(path, "np") as file:
    tensors = {key: file.get_tensor(key) for key in file.keys()}
  if _hash(tensors) != stored:
    raise ValueError(f"{path} is damaged: its weights are not those that were written")
  weights = unflatten_dict({key: x.astype(np.float32) for key, x in tensors.items()}, sep="/")
  thetas = {}
  for part, description in kinds.items():
    kind, settings = description["kind"], {key: x for key, x in description.items() if key != "kind"}
    thetas[part] = KINDS[kind](weights=weights[part], **{key: _frozen(x) for key, x in settings.items()})
  return Personalisation(thetas, card)


def _describe(theta: Theta) -> dict[str, Any]:
  """A theta without its weights."""
  settings = {field.name: getattr(theta, field.name) for field in dataclasses.fields(theta) if field.name != "weights"}
  return {"kind": next(name for name, kind in KINDS.items() if type(theta) is kind), **settings}


def _frozen(setting: Any) -> Any:
  """A setting as it was before JSON, which has lists only, made lists of its tuples."""
  return tuple(map(_frozen, setting)) if isinstance(setting, list) else setting


def _read(path: pathlib.Path) -> tuple[Card, dict[str, dict[str, Any]], str]:
  """The card, each part's description, and the hash of the weights."""
  try:
    with safetensors.safe_open(path, "np") as file:
      metadata = file.metadata() or {}
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path} is no safetensors file, or a damaged one: {error}") from error
  if metadata.get("format") != FORMAT:
    raise ValueError(f"{path} is a safetensors file, but not of a theta: its metadata lacks the format {FORMAT!r}")
  base = Base(metadata["base_model"], metadata["base_hash"])
  card = Card(base, metadata["identifier"], metadata["class_noun"], json.loads(metadata["recipe"]))
  return card, json.loads(metadata["kind"]), metadata["content_hash"]


def _hash(flat: Mapping[str, Any], dtype: Any = None, fetch: Callable[[Any], Any] = np.asarray) -> str:
  """SHA-256 of arrays, fetched and rounded to a dtype one at a time, with their names, dtypes and shapes, by name."""
  digest = hashlib.sha256()
  for name in sorted(flat):
    array = np.asarray(fetch(flat[name]), dtype)
    digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8))
  return digest.hexdigest()
