"""Reads and writes models as folders in the layout of transformers or diffusers: `config.json` next to safetensors."""

from collections.abc import Callable
import json
import os
import pathlib
from types import ModuleType
from typing import Any, NamedTuple

from flax import linen as nn
from flax.traverse_util import flatten_dict
import huggingface_hub
import jax
import numpy as np
import safetensors
import safetensors.numpy

from dreamjax.convert import autoencoder, clip, controlnet, latent_unet, muse, resnet, t5, unet, uvit, vit, vqgan
from dreamjax.convert.table import Header, MappingTable, Put, leave
from dreamjax.errors import UserError
from dreamjax.models.autoencoder import Autoencoder
from dreamjax.models.clip import CLIP, TextTower, VisionTower
from dreamjax.models.controlnet import ControlNet
from dreamjax.models.latent_unet import LatentUNet
from dreamjax.models.muse import Muse
from dreamjax.models.resnet import Classifier, ResNet
from dreamjax.models.t5 import T5Encoder
from dreamjax.models.unet import UNet
from dreamjax.models.uvit import UViT
from dreamjax.models.vit import ViT
from dreamjax.models.vqgan import VQGAN

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
VARIANTS = (".fp16", ".bf16")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_FILES = ("*.json", "*.model", "*.txt")  # downloaded besides weights; the last two are tokenizers'


class _Kind(NamedTuple):
  module: type[nn.Module]
  table: MappingTable
  read: Callable[[dict[str, Any]], nn.Module]
  write: Callable[[Any], dict[str, Any]]
  inputs: Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]]
  weights: str = WEIGHTS


def _functions(converter: ModuleType) -> tuple[Any, ...]:
  """Returns the table and the functions that a module of this package has for its model."""
  return converter.TABLE, converter.read, converter.write, converter.inputs


def _name(config: dict[str, Any]) -> Any:
  """Returns the key in `KINDS`. Diffusers has one class for two models, of which only IF's pools its text."""
  name = config.get("model_type") or config.get("_class_name")
  return f"{name} of IF" if name == "UNet2DConditionModel" and config.get("addition_embed_type") == "text" else name


_UNET = _Kind(UNet, *_functions(unet), DIFFUSERS_WEIGHTS)
_VQGAN = _Kind(VQGAN, *_functions(vqgan), DIFFUSERS_WEIGHTS)

# By the `model_type` of transformers and of our own layouts, or the `_class_name` of diffusers; see `_name`.
KINDS = {
  "AutoencoderKL": _Kind(Autoencoder, *_functions(autoencoder), DIFFUSERS_WEIGHTS),
  "clip": _Kind(CLIP, *_functions(clip)),
  "clip_text_model": _Kind(TextTower, clip.TEXT_TABLE, clip.read_text, clip.write_text, clip.text_inputs),
  "clip_vision_model": _Kind(VisionTower, clip.VISION_TABLE, clip.read_vision, clip.write_vision, clip.vision_inputs),
  "ControlNetModel": _Kind(ControlNet, *_functions(controlnet), DIFFUSERS_WEIGHTS),
  "dreamjax_classifier": _Kind(Classifier, *_functions(resnet)),
  "dreamjax_muse": _Kind(Muse, *_functions(muse)),
  "dreamjax_resnet": _Kind(ResNet, resnet.TABLE, resnet.read_embedding, resnet.write_embedding, resnet.inputs),
  "dreamjax_unet": _UNET,
  "dreamjax_vqgan": _VQGAN,
  "t5": _Kind(T5Encoder, *_functions(t5)),
  "UNet2DConditionModel": _Kind(LatentUNet, *_functions(latent_unet), DIFFUSERS_WEIGHTS),
  "UNet2DConditionModel of IF": _UNET,
  "UVit2DModel": _Kind(UViT, *_functions(uvit), DIFFUSERS_WEIGHTS),
  "VQModel": _VQGAN,
  "vit": _Kind(ViT, *_functions(vit)),
}


def load(
  name: str | os.PathLike[str],
  dtype: Any = np.float32,
  *,
  kinds: tuple[type[nn.Module], ...] = (nn.Module,),
  put: Put = leave,
) -> tuple[nn.Module, dict[str, Any]]:
  """Loads a model with its weights.

  Args:
    name: a folder, or else a model on the Hugging Face hub, see `locate`.
    dtype: of the weights.
    kinds: the modules that the model may be.
    put: put(path, array) is called with each parameter as soon as it is read, and its result replaces the array, so
      that weights need not all be in the host's memory on their way to devices. By default they stay there.

  Returns:
    The module and its tree of parameters, for `module.apply({"params": params}, ...)`: numpy arrays, or
    what `put` returns.

  Raises:
    FileNotFoundError: if there is no such model, or a file of it is missing.
    ValueError: if the model is of an unknown kind or of none of `kinds`, or its weights do not fit it.
  """
  folder = locate(name)
  config = read_json(_existing(folder / CONFIG))
  if (model_type := _name(config)) not in KINDS:
    known = ", ".join(KINDS)
    raise UserError(f"{folder / CONFIG} describes a model of type {model_type!r}; the known ones are {known}")
  kind = KINDS[model_type]
  if not issubclass(kind.module, kinds):
    wanted = " or ".join(kind.__name__ for kind in kinds)
    raise UserError(f"{folder} holds a {kind.module.__name__}, but a {wanted} is wanted there")
  try:
    module = kind.read(config)
    wanted = _shapes(kind, module)
  except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
    raise UserError(f"{folder / CONFIG}: {error}") from error
  headers = _find_headers(folder, kind.weights)

  def read(key: str) -> np.ndarray:
    with open_tensors(folder / headers[key].file) as file:
      return file.get_tensor(key)

  try:
    return module, kind.table.to_ours(wanted, headers, read, dtype, put)
  except ValueError as error:
    raise UserError(f"{folder}: {error}") from error


def save(folder: pathlib.Path, module: nn.Module, params: dict[str, Any], dtype: Any = np.float16) -> None:
  """Writes a model so that `load` reads it, and so does `from_pretrained` of transformers or diffusers.

  Args:
    folder: created if missing; a model in it is replaced.
    module: the model.
    params: its parameters.
    dtype: in which they are stored.

  Raises:
    ValueError: if no layout is known for the module, the parameters are not its own, or `dtype` overflows.
  """
  kind = _kind(module)
  config = kind.write(module)
  own, given = (
    {(path, np.shape(leaf)) for path, leaf in flatten_dict(tree, sep="/").items()}
    for tree in (_shapes(kind, module), params)
  )
  if own != given:
    lists = {"its own": own - given, "given": given - own}
    problem = "; ".join(f"{what}: {', '.join(f'{p} {s}' for p, s in sorted(leaves))}" for what, leaves in lists.items())
    raise UserError(f"the parameters are not those of the module; {problem}")
  tensors = kind.table.to_theirs(params, dtype)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
  # transformers requires the format "pt" for its own layout.
  safetensors.numpy.save_file(tensors, folder / kind.weights, metadata={"format": "pt"})


def shapes(module: nn.Module) -> dict[str, Any]:
  """Returns the shapes of a model's parameters; ValueError if no layout is known for it."""
  return _shapes(_kind(module), module)


def _kind(module: nn.Module) -> _Kind:
  kind = next((kind for kind in KINDS.values() if type(module) is kind.module), None)
  if kind is None:
    known = ", ".join(kind.module.__name__ for kind in KINDS.values())
    raise UserError(f"no layout is known for {type(module).__name__}, only for {known}")
  return kind


def _shapes(kind: _Kind, module: nn.Module) -> dict[str, Any]:
  return jax.eval_shape(module.init, jax.random.key(0), *kind.inputs(module))["params"]


def locate(name: str | os.PathLike[str], parts: bool = False) -> pathlib.Path:
  """Returns the folder of a model, downloaded from the Hugging Face hub if there is none.

  Args:
    name: a folder, or else a repository such as "owner/model", or "owner/model@revision" for a branch, tag or commit.
    parts: whether the models are in sub-folders, as those of a pipeline are.

  Raises:
    FileNotFoundError: if there is neither, or the repository has no such revision.
  """
  if pathlib.Path(name).is_dir():
    return pathlib.Path(name)
  repository, at, revision = os.fspath(name).partition("@")
  if at and not revision:
    raise FileNotFoundError(f"{name} names no revision after the @: a branch, a tag or a commit")
  where, index = ("*/", ["model_index.json"]) if parts else ("", [])
  for variant in ("", *VARIANTS):  # where there are weights of full precision, those of half are not downloaded
    stems = [f"{file.removesuffix('.safetensors')}{variant}" for file in (WEIGHTS, DIFFUSERS_WEIGHTS)]
    weights = [f"{where}{stem}{shard}.safetensors" for stem in stems for shard in ("", "-*-of-*")]
    files = [*(where + file for file in _HUB_FILES), *index, *weights]
    try:
      found = huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=files)
    except huggingface_hub.errors.RevisionNotFoundError as error:
      problem = f"{repository} on the Hugging Face hub has no branch, tag or commit {revision or 'main'!r}"
      raise FileNotFoundError(problem) from error
    except (OSError, huggingface_hub.errors.HFValidationError) as error:
      problem = f"there is no folder {name}, nor could a model of that name be had from the Hugging Face hub"
      raise FileNotFoundError(f"{problem}: {error}") from error
    folder = pathlib.Path(found)
    if any(any(folder.glob(pattern)) for pattern in weights):
      break
  return folder


def _existing(path: pathlib.Path) -> pathlib.Path:
  if not path.is_file():
    raise FileNotFoundError(f"{path.parent} holds no {path.name}")
  return path


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object; ValueError if the file holds none."""
  try:
    found = json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f"{path} is no JSON: {error}") from error
  if not isinstance(found, dict):
    raise UserError(f"{path} holds a {type(found).__name__}, not settings by name")
  return found


def open_tensors(path: pathlib.Path) -> Any:
  """Opens a file of tensors; ValueError if it is damaged, or of a format that can run code when it is read."""
  if path.suffix in PICKLES:
    problem = f"{path} can run code when it is read, so it is not"
    raise UserError(f"{problem}: where torch is installed, load it and write it by safetensors.torch.save_file")
  try:
    return safetensors.safe_open(path, "np")
  except safetensors.SafetensorError as error:
    raise UserError(f"{path} is no complete safetensors file: {error}") from error


def _find_headers(folder: pathlib.Path, weights: str) -> dict[str, Header]:
  """Reads the headers of all tensors, from the file named `weights` or from the shards that an index lists.

  If there is neither, a variant of half precision is taken, such as model.fp16.safetensors.
  """
  stem = weights.removesuffix(".safetensors")
  for variant in ("", *VARIANTS):
    if (folder / f"{stem}{variant}.safetensors").is_file():
      return _read_headers(folder, f"{stem}{variant}.safetensors")
    index = folder / f"{weights}.index{variant}.json"
    if index.is_file():
      return _read_shards(folder, index)
  raise FileNotFoundError(
    f"{folder} holds neither {weights} nor {weights}.index.json. A pytorch_model.bin can run code when it is read, so "
    f'it is not: convert it where torch is installed, by from_pretrained(...).save_pretrained("{folder}") of the '
    "model's class"
  )


def _read_headers(folder: pathlib.Path, name: str) -> dict[str, Header]:
  with open_tensors(_existing(folder / name)) as file:
    return {key: Header(tuple(file.get_slice(key).get_shape()), name) for key in file.keys()}


def _read_shards(folder: pathlib.Path, index: pathlib.Path) -> dict[str, Header]:
  files = read_json(index).get("weight_map")
  if not isinstance(files, dict):
    raise UserError(f"{index} has no weight_map")
  for name in files.values():
    if not isinstance(name, str) or pathlib.PurePath(name).name != name:
      raise UserError(f"{index} names {name!r}, which is no file of its folder")
  headers = {name: _read_headers(folder, name) for name in dict.fromkeys(files.values())}
  if missing := [key for key, name in files.items() if key not in headers[name]]:
    raise UserError(f"{folder / files[missing[0]]} lacks {missing[0]}, which {index.name} says is there")
  return {key: headers[name][key] for key, name in files.items()}
