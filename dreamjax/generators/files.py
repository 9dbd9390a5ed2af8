"""Loads and saves generators as folders, and names those that come with dreamjax.

A folder holds `model_index.json`, which describes the stages, and one folder for each network in the layout of
`convert.pretrained`: "<stage>" for a stage of a cascade, "<stage>/transformer" and "<stage>/vqgan" for a stage of
masked tokens. The text encoder and its tokenizer may be outside the folder; then the index has the relative path.
Folders in the layout of diffusers' pipelines are read and written by `generators.pipelines`.
"""

from collections.abc import Callable
import dataclasses
import importlib.resources
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamjax import theta
from dreamjax.convert import pretrained
from dreamjax.convert.table import Put, leave
from dreamjax.data import photos
from dreamjax.data.tokenizer import Tokenizer
from dreamjax.diffusion.schedules import BetaTable, Cosine, Schedule
from dreamjax.errors import UserError
from dreamjax.generators import interop, pipelines
from dreamjax.generators.cascade import Cascade, Sampling, Spacing, Stage
from dreamjax.generators.control import ImageControl, check_fits
from dreamjax.generators.generator import TEXT
from dreamjax.generators.masked import Decoding, Masked, TokenStage
from dreamjax.generators.pipelines import network
from dreamjax.models.controlnet import ControlNet
from dreamjax.models.muse import Muse
from dreamjax.models.t5 import T5Encoder
from dreamjax.models.unet import UNet
from dreamjax.models.vqgan import VQGAN
from dreamjax.theta import Base, Personalisation

INDEX = "model_index.json"
_SCHEDULES = {"cosine": Cosine, "table": BetaTable}

_REPOSITORY = re.compile(r"(\w[\w.-]*)/\w[\w.-]*(@\w[\w./-]*)?")  # owner/model, or owner/model@revision
_STAGE = re.compile(r"\w[\w-]*")

#: The generators that come with dreamjax, by name: the package that contains each, and its folder in the package.
SHIPPED = {
  "toybox-cascade": ("dreamjax.toybox", "weights/cascade"),
  "toybox-muse": ("dreamjax.toybox", "weights/muse"),
}


def load(
  name: str | os.PathLike[str], *, dtype: Any = np.float32, put: Put = leave
) -> tuple[Cascade | Masked, dict[str, Any]]:
  """Loads a generator and its parameters.

  Args:
    name: one of `SHIPPED`, a folder, or a repository of the Hugging Face hub, such as "owner/model", or
      "owner/model@revision" for a branch, tag or commit. The stages of DeepFloyd IF have a folder or repository each;
      join their names by "+".
    dtype: of the parameters. A theta fits its base model in float32 and in float16, but in bfloat16 none does.
    put: put(path, array) is called with each parameter as soon as it is read, and its result takes the array's place in
      the tree; see `to_device`. By default the parameters stay in the host's memory.

  Returns:
    The description, and the tree of parameters: numpy arrays, or the results of `put`.

  Raises:
    FileNotFoundError: if there is no such generator, or one of its files is missing.
    UserError: if the index or a network is invalid, or the folders do not go together.
  """
  folders = _locate(name)
  indices = [_read_index(folder / INDEX) for folder in folders]
  if all(index["_class_name"] in pipelines.KNOWN for index in indices):
    return pipelines.load(folders, indices, dtype, put)
  if len(folders) > 1:
    raise UserError(f"{name}: only stages of DeepFloyd IF can be joined by +")
  (folder,), (index,) = folders, indices
  text_folder = folder / index["text_encoder"]
  encoder, encoder_params = network(text_folder, T5Encoder, TEXT, dtype=dtype, put=put)
  family = _FAMILIES[index["_class_name"]]
  params, stages = {TEXT: encoder_params}, []
  for entry in index["stages"]:
    found = {part: _load_part(folder, entry["name"], part, dtype, put) for part in family.parts}
    networks = {part.field: module for part, (module, _) in found.items()}
    weights = {part.folder: tree for part, (_, tree) in found.items()}
    params[entry["name"]] = weights.get("", weights)
    stages.append(_read_stage(folder / INDEX, family, entry, networks))
  tokenizer = Tokenizer.load(text_folder, index["length"], index.get("lowers", False))
  return family.generator(index["name"], encoder, tokenizer, tuple(stages)), params


def to_device(path: str, array: np.ndarray) -> jax.Array:
  """Moves a parameter to the first device; a `put` for `load`."""
  del path
  return jax.device_put(array)


def load_theta(
  path: pathlib.Path | str, generator: Cascade | Masked, params: Any, base: Base | None = None
) -> Personalisation:
  """Reads a personalisation of a generator.

  Files and folders of LoRA weights or embeddings from other programs are read by `interop.load`, all others by
  `theta.load`, which raises UserError for a theta that was trained with another base model.

  Args:
    path: a file, or a folder.
    generator: the description.
    params: its parameters.
    base: `generator.base(params)` if it has been computed; by default only the parts that the theta needs are hashed.
      Parameters in bfloat16 have lost what is hashed: use a `theta.Hasher` while they are loaded.
  """
  if interop.is_foreign(pathlib.Path(path)):
    return interop.load(pathlib.Path(path), generator, params)
  needed = theta.parts_needed(pathlib.Path(path))
  if base is None or theta.ALL_PARTS in needed:
    base = generator.base(params, needed)
  return theta.load(pathlib.Path(path), base)


def is_bound_to_all(path: pathlib.Path | str) -> bool:
  """Whether a theta is bound by one hash to all parameters of its generator, as those of the first format are."""
  return not interop.is_foreign(pathlib.Path(path)) and theta.ALL_PARTS in theta.parts_needed(pathlib.Path(path))


def load_control(
  name: str | os.PathLike[str],
  image: pathlib.Path | str,
  generator: Cascade | Masked,
  *,
  scale: float = 1.0,
  dtype: Any = np.float32,
  put: Put = leave,
) -> ImageControl:
  """Loads a ControlNet and its conditioning image, for `sample`. It computes in the dtype of the generator's U-Net.

  Args:
    name: a folder in diffusers' layout, or a repository of the Hugging Face hub.
    image: the file of an image of the sort that the ControlNet was trained on, such as edges. Its central square is
      used, scaled to the size of the generator's images.
    generator: one of latent diffusion.
    scale: the factor of the ControlNet's outputs.
    dtype: of its parameters.
    put: see `load`.

  Raises:
    FileNotFoundError: if there is no such network, or one of its files is missing.
    UserError: if the image cannot be read, the generator samples no latents, or the ControlNet does not fit its U-Net.
  """
  if not isinstance(generator, Cascade) or generator.autoencoder is None:
    raise UserError(f"{generator.name} samples no latents, so no ControlNet can be used with it")
  (stage,) = generator.stages
  square = photos.read_square(pathlib.Path(image), generator.resolution).astype(np.float32) / np.float32(255)
  module, params = pretrained.load(name, dtype, kinds=(ControlNet,), put=lambda path, x: put(f"controlnet/{path}", x))
  try:
    check_fits(module, stage.unet, generator.autoencoder.factor)
  except ValueError as error:
    raise UserError(f"{name}: {error}") from error
  return ImageControl(module.clone(dtype=stage.unet.dtype), params, square, scale)


def save(
  folder: pathlib.Path,
  generator: Cascade | Masked,
  params: dict[str, Any],
  *,
  text_encoder: str | None = None,
  dtype: Any = None,
) -> None:
  """Writes a generator as a folder, in diffusers' layout where diffusers has such a pipeline.

  Args:
    folder: created if it does not exist.
    generator: the description.
    params: the parameters; stages without parameters are not written.
    text_encoder: the path of an existing text encoder, relative to `folder`; without it, the text encoder is written.
    dtype: of the stored weights, by default float16.
  """
  folder.mkdir(parents=True, exist_ok=True)
  if pipelines.writes(generator):
    pipelines.save(folder, generator, params, np.float16 if dtype is None else dtype)
    return
  options = {} if dtype is None else {"dtype": dtype}
  name, family = next((name, family) for name, family in _FAMILIES.items() if type(generator) is family.generator)
  if text_encoder is None:
    pretrained.save(folder / "text_encoder", generator.text_encoder, params[TEXT], **options)
    generator.tokenizer.inner.save_pretrained(folder / "text_encoder")
  for stage in generator.stages:
    if stage.name in params:
      for part in family.parts:
        weights = params[stage.name][part.folder] if part.folder else params[stage.name]
        pretrained.save(folder / stage.name / part.folder, getattr(stage, part.field), weights, **options)
  index = {
    "_class_name": name,
    "name": generator.name,
    "text_encoder": text_encoder or "text_encoder",
    "length": generator.tokenizer.length,
    "lowers": generator.tokenizer.lowers,
    "stages": [{"name": stage.name, **family.write(stage)} for stage in generator.stages],
  }
  (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _locate(name: str | os.PathLike[str]) -> list[pathlib.Path]:
  """Finds the folders of a generator, see `load`; only the stages of DeepFloyd IF have more than one."""
  if pathlib.Path(name).is_dir():
    return [pathlib.Path(name)]
  if os.fspath(name) in SHIPPED:
    package, folder = SHIPPED[os.fspath(name)]
    return [pathlib.Path(str(importlib.resources.files(package) / folder))]
  if len(parts := os.fspath(name).split("+")) > 1:
    return [folder for part in parts for folder in _locate(part)]
  if (found := _REPOSITORY.fullmatch(os.fspath(name))) and not pathlib.Path(found[1]).exists():
    return [pretrained.locate(name, parts=True)]
  raise FileNotFoundError(f"there is no folder {name}, nor a generator of that name; there are: {', '.join(SHIPPED)}")


def _read_index(path: pathlib.Path) -> dict[str, Any]:
  """Reads a `model_index.json`, of ours or of diffusers, and checks that it has all the keys that are needed."""
  if not path.is_file():
    raise FileNotFoundError(f"{path.parent} holds no {INDEX}, so it is no generator")
  try:
    index = pretrained.read_json(path)
    if (kind := index["_class_name"]) in pipelines.KNOWN:
      return index
    if kind in _FAMILIES and (missing := {"name", "text_encoder", "length", "stages"} - set(index)):
      raise UserError(f"it lacks {', '.join(sorted(missing))}")
    for stage in index["stages"] if kind in _FAMILIES else ():
      if not _STAGE.fullmatch(stage["name"]):  # it names folders, here and where a training writes
        raise UserError(f"the name of a stage is of letters, digits, - and _, not {stage['name']!r}")
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path} is no index of a generator: {error}") from error
  if kind not in _FAMILIES:
    raise UserError(f"{path} describes a {kind}, not one of {', '.join((*_FAMILIES, *pipelines.KNOWN))}")
  return index


class _Part(NamedTuple):
  """A network of a stage.

  Attributes:
    folder: its folder in the stage's folder, and its key in the stage's parameters; "" for the only network of a stage.
    field: its field of the stage's description.
    kind: its class.
  """

  folder: str
  field: str
  kind: type


class _Family(NamedTuple):
  """How a family of generators is stored.

  Attributes:
    generator: the class of the description.
    parts: the networks of each stage.
    read: read(**entry, **networks) makes a stage of its entry in the index and its networks.
    write: write(stage) is the stage's entry in the index, without its name.
  """

  generator: type
  parts: tuple[_Part, ...]
  read: Callable[..., Any]
  write: Callable[[Any], dict[str, Any]]


def _load_part(folder: pathlib.Path, stage: str, part: _Part, dtype: Any, put: Put) -> tuple[Any, dict[str, Any]]:
  """Loads a network of a stage and its parameters."""
  return network(folder / stage / part.folder, part.kind, f"{stage}/{part.folder}".rstrip("/"), dtype=dtype, put=put)


def _read_stage(path: pathlib.Path, family: _Family, entry: dict[str, Any], networks: dict[str, Any]) -> Any:
  """Makes a stage of its entry in the index at `path`, which is named in errors."""
  try:
    return family.read(**entry, **networks)
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path}: the entry of stage {entry.get('name')!r} is invalid: {error}") from error


def _read_diffusion(
  *, schedule: Any, augmentation: Any = None, sampling: Any = None, spacing: Any = None, **fields: Any
) -> Stage:
  return Stage(
    schedule=_read_schedule(schedule),
    spacing=Spacing(**(spacing or {})),
    augmentation=None if augmentation is None else _read_schedule(augmentation),
    sampling=Sampling.read(sampling or {}),
    **fields,
  )


def _write_diffusion(stage: Stage) -> dict[str, Any]:
  return {
    "predicts": stage.predicts,
    "masks_text": stage.masks_text,
    "schedule": _write_schedule(stage.schedule),
    "augmentation": None if stage.augmentation is None else _write_schedule(stage.augmentation),
    "sampling": dataclasses.asdict(stage.sampling),
    "spacing": dataclasses.asdict(stage.spacing),
  }


def _read_tokens(*, decoding: Any = None, **fields: Any) -> TokenStage:
  return TokenStage(sampling=Decoding.read(decoding or {}), **fields)


def _write_tokens(stage: TokenStage) -> dict[str, Any]:
  return {"decoding": dataclasses.asdict(stage.sampling)}


_FAMILIES = {
  "DreamjaxCascade": _Family(Cascade, (_Part("", "unet", UNet),), _read_diffusion, _write_diffusion),
  "DreamjaxMasked": _Family(
    Masked,
    (_Part("transformer", "transformer", Muse), _Part("vqgan", "vqgan", VQGAN)),
    _read_tokens,
    _write_tokens,
  ),
}


def _read_schedule(entry: dict[str, Any]) -> Schedule:
  fields = dict(entry)
  return _SCHEDULES[fields.pop("kind")](**fields)


def _write_schedule(schedule: Schedule) -> dict[str, Any]:
  kind = next(kind for kind, cls in _SCHEDULES.items() if type(schedule) is cls)
  return {"kind": kind, **dataclasses.asdict(schedule)}
