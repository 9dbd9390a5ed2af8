"""Reads and writes thetas of Stable Diffusion, DeepFloyd IF and aMUSEd in the files of other programs.

There are three layouts of LoRA weights, each of which derives a layer's name from its name in diffusers:

  diffusers  one file; "unet.<layer>.lora_A.weight", with rank and alpha in the metadata (older: lora.down, processor)
  peft       a folder for each network, with adapter_model.safetensors and adapter_config.json
  kohya      one file; "lora_unet_<layer, _ for .>.lora_down.weight" and ".alpha"; SDXL's layers have the names of
             Stability AI's checkpoint

Embeddings of the identifier's tokens are one file for diffusers' `load_textual_inversion`, in every layout: the tensor
"<identifier>" or, for SDXL, "clip_l" and "clip_g", of shape [tokens, width].

Full weights are written as a diffusers folder of the tuned generator. In DeepFloyd IF each stage has a network "unet"
of its own, and a folder named after the stage; aMUSEd's network is "transformer". For these two, kohya has no layout
and diffusers does not read embeddings.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import json
import pathlib
import re
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict
import numpy as np
import safetensors
import safetensors.numpy

from dreamjax.convert import clip, latent_unet, pretrained, unet, uvit
from dreamjax.convert.table import MappingTable, View
from dreamjax.data import identifiers
from dreamjax.errors import UserError
from dreamjax.generators import pipelines
from dreamjax.generators.cascade import Cascade
from dreamjax.generators.generator import TEXT
from dreamjax.generators.masked import Masked
from dreamjax.generators.sampling import default_samplings
from dreamjax.theta import Card, Embeddings, Full, LoRA, Personalisation, Theta
from dreamjax.theta.kinds import Path

FORMATS = ("diffusers", "peft", "kohya")
WEIGHTS = "pytorch_lora_weights.safetensors"  # the file that diffusers loads LoRA weights from by default
EMBEDDINGS = "learned_embeds.safetensors"  # and embeddings
_TOWERS = ("clip_l", "clip_g")  # the names of the embeddings of SDXL's two towers
_UNSUPPORTED = ("use_dora", "use_rslora")  # settings of peft that change how the update is computed from the weights
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_CARD = ("dreamjax_identifier", "dreamjax_class_noun")  # keys of the metadata, which other programs ignore

#: A network's name in diffusers, the part of the generator that has it, its path in that part, and its mapping table.
_Network = tuple[str, str, Path, MappingTable]


class _Layer(NamedTuple):
  """A layer as it is here.

  Attributes:
    part: the part of the generator.
    path: of the layer in the part's parameters.
    view: between the layout of our kernel and that of theirs.
  """

  part: str
  path: Path
  view: View


class _Update(NamedTuple):
  """A layer's LoRA weights in the layout of PyTorch.

  Attributes:
    down: A, [r, inputs, ...].
    up: B, [outputs, r, ...].
    alpha: the update is alpha / r B A.
  """

  down: np.ndarray
  up: np.ndarray
  alpha: float


def save(
  path: pathlib.Path, layout: str, generator: Cascade | Masked, params: Any, personalisation: Personalisation
) -> list[pathlib.Path]:
  """Writes a personalisation for another program.

  Args:
    path: a folder, created if it does not exist.
    layout: one of `FORMATS`.
    generator: Stable Diffusion, SDXL, DeepFloyd IF or aMUSEd.
    params: its parameters.
    personalisation: of LoRA weights, embeddings or both; for "diffusers" also of full weights.

  Returns:
    The files and folders that were written.

  Raises:
    UserError: if the layout is unknown, or has no place for such thetas or layers, or other programs do not have such a
      generator.
  """
  if layout not in FORMATS:
    raise UserError(f"unknown format {layout!r}; there are: {', '.join(FORMATS)}")
  by_folder = _layers(generator, params)
  kinds = {type(theta) for theta in personalisation.thetas.values()}
  if Full in kinds and kinds <= {Full, Embeddings} and layout == "diffusers":
    return _save_tuned(path, generator, params, personalisation)
  if not kinds <= {LoRA, Embeddings}:
    known = "LoRA weights, embeddings, or full weights" if layout == "diffusers" else "LoRA weights, embeddings"
    found = ", ".join(f"{part}: {type(theta).__name__}" for part, theta in personalisation.thetas.items())
    raise UserError(f"{layout} has a format for {known} of all parts, but this theta has {found}")
  if layout == "kohya" and not _is_stable_diffusion(generator):
    raise UserError(f"kohya's format is for Stable Diffusion and SDXL, not for {generator.name}: use another one")
  loras = {part: theta for part, theta in personalisation.thetas.items() if isinstance(theta, LoRA)}
  embeddings = [theta for theta in personalisation.thetas.values() if isinstance(theta, Embeddings)]
  known_parts = {layer.part for layers in by_folder.values() for layer in layers.values()}
  if odd := set(loras) - known_parts:
    raise UserError(f"{layout} has no format for LoRA weights of {', '.join(sorted(odd))}")
  if embeddings and not _is_stable_diffusion(generator):
    raise UserError(f"diffusers reads embeddings for Stable Diffusion and SDXL only, not for {generator.name}")
  card = personalisation.card
  files_of = {"diffusers": _diffusers_files, "peft": _peft_files, "kohya": lambda some: _kohya_files(some, generator)}
  written = [_save_embeddings(path, theta, card.identifier) for theta in embeddings]
  for folder, layers in by_folder.items():
    if not (updates := dict(_updates(layers, loras))):
      continue
    for name, (tensors, metadata) in files_of[layout](updates).items():
      file = path / folder / name
      file.parent.mkdir(parents=True, exist_ok=True)
      words = dict(zip(_CARD, (card.identifier, card.class_noun), strict=True))
      safetensors.numpy.save_file(tensors, file, metadata=metadata | words)
      written.append(file)
    if layout == "peft":
      for network, some in _by_network(updates).items():
        config = {"peft_type": "LORA", **_peft_config(some)}
        (path / folder / network / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
  return written


def _save_tuned(
  path: pathlib.Path, generator: Cascade | Masked, params: Any, personalisation: Personalisation
) -> list[pathlib.Path]:
  """Writes the tuned generator as folders of diffusers' pipelines, in float16."""
  merged = {
    part: theta.merge(params[part]) if part == TEXT else generator.stage(part).merge(params[part], theta)
    for part, theta in personalisation.thetas.items()
  }
  tuned = {**params, **merged}
  if not pipelines.is_if(generator):
    pipelines.save(path, generator, tuned, np.float16)
    return [path]
  pairs = zip(generator.stages, default_samplings(generator, [personalisation]), strict=True)
  stages = tuple(dataclasses.replace(stage, sampling=sampling) for stage, sampling in pairs)
  return pipelines.save_stages(path, dataclasses.replace(generator, stages=stages), tuned, np.float16)


def _save_embeddings(path: pathlib.Path, theta: Embeddings, identifier: str) -> pathlib.Path:
  """Writes embeddings. diffusers refuses a word that is in the vocabulary already: hence the brackets."""
  tables = [np.asarray(x, np.float32) for _, x in sorted(flatten_dict(theta.weights, sep="/").items())]
  names = _TOWERS if len(tables) > 1 else (f"<{identifier.replace(' ', '-')}>",)
  path.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(dict(zip(names, tables, strict=True)), path / EMBEDDINGS, metadata={"format": "pt"})
  return path / EMBEDDINGS


def _read_embeddings(
  path: pathlib.Path, tensors: dict[str, np.ndarray], generator: Cascade, params: Any
) -> tuple[Embeddings, str]:
  """Reads embeddings, and chooses rare words as their identifier."""
  names = _TOWERS if set(tensors) == set(_TOWERS) else tuple(tensors)
  found = [np.atleast_2d(tensors[name]) for name in names]
  identifier = " ".join(identifiers.choose(generator.tokenizer, 0, len(found[0]), rare=(0.5, 1.0)))
  theta = Embeddings.init(params[TEXT], identifiers.tokens(generator.tokenizer, identifier))
  tables = sorted(flatten_dict(theta.weights).items())
  if [x.shape for x in found] != [x.shape for _, x in tables]:
    raise UserError(
      f"{path} holds embeddings of shapes {[x.shape for x in found]}, which do not fit a text encoder of "
      f"{' and '.join(str(x.shape[1]) for _, x in tables)} channels"
    )
  weights = unflatten_dict({path: x for (path, _), x in zip(tables, found, strict=True)})
  return theta.replace(weights=weights), identifier


def load(path: pathlib.Path, generator: Cascade | Masked, params: Any) -> Personalisation:
  """Reads LoRA weights of another program, in any of the three layouts, or embeddings.

  Such files do not state the model that they were trained with: the card gets the given one. Nor do they state the
  identifier that stands for [V], unless `save` wrote them; embeddings get rare words, one for each token.

  Args:
    path: a file, or a folder of files that belong together, such as `save` writes: the networks of peft's layout, or
      the stages of DeepFloyd IF. A file of IF is for the stage that its folder is named after, or else for the first.
    generator: Stable Diffusion, SDXL, DeepFloyd IF or aMUSEd.
    params: its parameters, or their shapes.

  Raises:
    UserError: if a file is damaged or of another sort, if it has layers that the generator lacks or that differ in
      shape, or if a folder has no such file.
  """
  weights: dict[str, dict[Path, Any]] = {}
  thetas: dict[str, Theta] = {}
  identifier, class_noun = "", ""
  for file in _find_files(path):
    tensors, metadata = _read_tensors(file)
    if _are_embeddings({key: x.shape for key, x in tensors.items()}):
      if not _is_stable_diffusion(generator):
        raise UserError(
          f"{file} holds embeddings, which can be read for Stable Diffusion and SDXL only, not for {generator.name}"
        )
      thetas[TEXT], identifier = _read_embeddings(file, tensors, generator, params)
      continue
    for part, found in _read_updates(file, tensors, metadata, generator, params).items():
      weights.setdefault(part, {}).update(found)
    if stated := metadata.get(_CARD[0]):
      identifier, class_noun = stated, metadata.get(_CARD[1], "")
  if TEXT in thetas and TEXT in weights:
    raise UserError(
      f"{path} holds both embeddings and LoRA weights of the text encoder, but only one of them can be applied"
    )
  thetas |= {part: LoRA(unflatten_dict(found), 1.0) for part, found in weights.items()}
  recipe: dict[str, Any] = {"method": "imported", "file": path.name}
  if pipelines.is_if(generator):  # a tuned stage has no learned variance, see `methods.dreambooth`
    learned = [name for name in thetas if generator.stage(name).sampling.variance == "learned"]
    recipe["sampling"] = {name: {"variance": 0.0} for name in learned}
  return Personalisation(thetas, Card(generator.base(params), identifier, class_noun, recipe))


def _find_files(path: pathlib.Path) -> list[pathlib.Path]:
  """Finds the files of LoRA weights and embeddings in a folder; a file is its own."""
  if not path.is_dir():
    return [path]
  names = (WEIGHTS, ADAPTER, EMBEDDINGS)
  if not (found := sorted(file for name in names for file in path.rglob(name))):
    raise UserError(f"{path} is a folder without any of {', '.join(names)}: give the path of the file instead")
  return found


def _read_tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Reads all tensors of a file, in float32, and its metadata."""
  with pretrained.open_tensors(path) as file:
    return {key: file.get_tensor(key).astype(np.float32) for key in file.keys()}, file.metadata() or {}


def _read_updates(
  path: pathlib.Path, tensors: dict[str, np.ndarray], metadata: dict[str, str], generator: Cascade | Masked, params: Any
) -> dict[str, dict[Path, Any]]:
  """Reads LoRA weights as flat trees of thetas of scale 1, by the names of parts."""
  by_folder = _layers(generator, params)
  layers = by_folder.get(_stage_of_file(path, by_folder), next(iter(by_folder.values())))
  kernels = {part: flatten_dict(tree) for part, tree in _network_params(generator, params).items()}
  found: dict[str, dict[Path, Any]] = {}
  for name, update in _parse_updates(path, tensors, metadata, layers, generator).items():
    part, layer, view = layers[name]
    down, up = view.ours(update.down), update.up.reshape(update.up.shape[:2]).T
    kernel = kernels[part][*layer, "kernel"].shape
    if (*down.shape[:-1], up.shape[-1]) != kernel or down.shape[-1] != up.shape[0]:
      raise UserError(
        f"{path}: {name} has shapes {update.down.shape} and {update.up.shape}, which do not fit {generator.name}"
      )
    weights = found.setdefault(part, {})
    weights[*layer, "down"] = np.ascontiguousarray(down)
    weights[*layer, "up"] = np.ascontiguousarray(up) * np.float32(update.alpha / len(up))
  return found


def is_foreign(path: pathlib.Path) -> bool:
  """Whether `load` must read a path: a folder, or a file of LoRA weights or embeddings of another program."""
  if path.is_dir() or path.suffix in pretrained.PICKLES:
    return True  # `load` refuses pickles with a hint
  try:
    with safetensors.safe_open(path, "np") as file:
      shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
  except (safetensors.SafetensorError, OSError):
    return False
  return _are_embeddings(shapes) or any(re.search(r"lora(_linear_layer)?[._](A|B|down|up)\b", key) for key in shapes)


def _are_embeddings(shapes: dict[str, tuple[int, ...]]) -> bool:
  """Whether tensors of these names and shapes are embeddings: a vector or a matrix for one tower, or for SDXL's two."""
  named = set(shapes) == set(_TOWERS) or (
    len(shapes) == 1 and not re.search(r"/|^lora_|[.]weight$", next(iter(shapes)))
  )
  return named and all(len(shape) in (1, 2) for shape in shapes.values())


def _network_params(generator: Cascade | Masked, params: Any) -> dict[str, Any]:
  """The parameters of the networks that thetas are for, by the names of parts."""
  return {**params, **{stage.name: stage.network_params(params[stage.name]) for stage in generator.stages}}


def _is_stable_diffusion(generator: Cascade | Masked) -> bool:
  """Whether a generator is Stable Diffusion or SDXL, for which other programs have kohya's layout and embeddings."""
  return isinstance(generator, Cascade) and generator.autoencoder is not None


def _layers(generator: Cascade | Masked, params: Any) -> dict[str, dict[str, _Layer]]:
  """The layers that can have an update, by the folder of their files and by their names in diffusers.

  A name is such as "unet.conv_in". The folder is "" but for DeepFloyd IF, whose stages have one each.

  Raises:
    UserError: if diffusers does not have the generator.
  """
  trees = _network_params(generator, params)
  if isinstance(generator, Masked) and pipelines.writes(generator):
    return {"": _layers_of([("transformer", stage.name, (), uvit.TABLE) for stage in generator.stages], trees)}
  if pipelines.is_if(generator):
    return {stage.name: _layers_of([("unet", stage.name, (), unet.TABLE)], trees) for stage in generator.stages}
  if not _is_stable_diffusion(generator):
    raise UserError(f"diffusers has no such generator as {generator.name}, so no other program has files for it")
  networks: list[_Network] = [("unet", generator.stages[0].name, (), latent_unet.TABLE)]
  for i, _ in enumerate(generator.text_encoder.towers):
    networks.append((f"text_encoder{'_2' if i else ''}", TEXT, (f"towers_{i}",), clip.TEXT_TABLE))
  return {"": _layers_of(networks, trees)}


def _layers_of(networks: Iterable[_Network], params: Any) -> dict[str, _Layer]:
  """The layers of some networks, by their names in diffusers."""
  found = {}
  for network, part, prefix, table in networks:
    tree = params[part]
    for key in prefix:
      tree = tree[key]
    kernels = [path for path in flatten_dict(tree, sep="/") if path.endswith("/kernel")]
    for key, (path, view) in table.match(kernels).items():
      layer = (*prefix, *path.split("/")[:-1])
      found[f"{network}.{key.removesuffix('.weight')}"] = _Layer(part, layer, view)
  return found


def _updates(layers: dict[str, _Layer], loras: dict[str, LoRA]) -> Iterator[tuple[str, _Update]]:
  """Yields the names and the weights of all of `layers` that thetas update."""
  names = {(layer.part, layer.path): (name, layer.view) for name, layer in layers.items()}
  parts = {layer.part for layer in layers.values()}
  for part, theta in loras.items():
    if part not in parts:
      continue
    flat = {path: np.asarray(x, np.float32) for path, x in flatten_dict(theta.weights).items()}
    for layer in dict.fromkeys(path[:-1] for path in flat):
      name, view = names[part, layer]
      down, up = view.theirs(flat[*layer, "down"]), flat[*layer, "up"].T
      up = up.reshape(*up.shape, *(1,) * (down.ndim - 2))
      yield name, _Update(np.ascontiguousarray(down), np.ascontiguousarray(up), theta.scale * up.shape[1])


#: Tensors and metadata, by the names of files.
Files = dict[str, tuple[dict[str, np.ndarray], dict[str, str]]]


def _diffusers_files(updates: dict[str, _Update]) -> Files:
  """The file of updates in diffusers' layout."""
  tensors = {}
  for name, update in updates.items():
    tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = update.down, update.up
  networks = _by_network(updates)
  settings = {f"{network}.{key}": x for network, some in networks.items() for key, x in _peft_config(some).items()}
  return {WEIGHTS: (tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(settings)})}


def _peft_files(updates: dict[str, _Update]) -> Files:
  """The files of updates in peft's layout, one for each network, but for their configs."""
  files: Files = {}
  for network, some in _by_network(updates).items():
    tensors = {}
    for layer, update in some.items():
      key = f"base_model.model.{_without_text_model(layer) if network == 'text_encoder' else layer}"
      tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = update.down, update.up
    files[f"{network}/{ADAPTER}"] = tensors, {"format": "pt"}
  return files


def _by_network(updates: dict[str, _Update]) -> dict[str, dict[str, _Update]]:
  """The updates by the names of their networks and layers."""
  networks: dict[str, dict[str, _Update]] = {}
  for name, update in updates.items():
    network, _, layer = name.partition(".")
    networks.setdefault(network, {})[layer] = update
  return networks


def _without_text_model(layer: str) -> str:
  """A layer's name in the `CLIPTextModel` of transformers 5; earlier versions put "text_model." before it."""
  return layer.removeprefix("text_model.")


def _peft_config(updates: dict[str, _Update]) -> dict[str, Any]:
  """Peft's config of one network's updates: the rank and alpha of the first one, and those that differ.

  Layers are named by the ends of their names, because the beginnings depend on the version of transformers.
  """
  rank, alpha = (lambda x: len(x.down)), (lambda x: x.alpha)
  first = next(iter(updates.values()))
  ends = {re.search(r"[^.]+(\.\d+)?$", layer)[0] for layer in updates}
  settings = {"r": rank(first), "lora_alpha": alpha(first), "target_modules": sorted(ends), "bias": "none"}
  for name, get in (("rank_pattern", rank), ("alpha_pattern", alpha)):
    if other := {re.escape(_without_text_model(layer)): get(x) for layer, x in updates.items() if get(x) != get(first)}:
      settings[name] = other
  return settings


def _kohya_files(updates: dict[str, _Update], generator: Cascade) -> Files:
  """The file of updates in kohya's layout."""
  tensors = {}
  for name, update in updates.items():
    key = _kohya_name(name, generator)
    tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = update.down, update.up
    tensors[f"{key}.alpha"] = np.asarray(update.alpha, np.float32)
  first = next(iter(updates.values()))
  metadata = {"ss_network_module": "networks.lora", "ss_network_dim": str(len(first.down))}
  return {"lora.safetensors": (tensors, {**metadata, "ss_network_alpha": str(first.alpha)})}


def _kohya_name(name: str, generator: Cascade) -> str:
  """The name of a layer in kohya's layout; UserError for a layer of SDXL's that has none."""
  network, _, layer = name.partition(".")
  is_xl = len(generator.text_encoder.towers) > 1
  if network == "unet" and is_xl:
    layer = _original_name(layer, generator.stages[0].unet.blocks + 1)
    if layer is None:
      raise UserError(f"kohya's format is written for SDXL's transformers only, not for {name}: use another format")
  prefix = {"unet": "lora_unet", "text_encoder": "lora_te1" if is_xl else "lora_te", "text_encoder_2": "lora_te2"}
  return f"{prefix[network]}_{layer}".replace(".", "_")


def _original_name(layer: str, per_level: int) -> str | None:
  """The name of a layer of SDXL's transformers in Stability AI's checkpoint; None for other layers.

  There the blocks of all levels are numbered consecutively, `per_level` of them in each.
  """
  if match := re.match(r"(down|up)_blocks\.(\d)\.attentions\.(\d)\.(.+)", layer):
    half, level, block, rest = match.groups()
    number = per_level * int(level) + int(block)
    return f"input_blocks.{number + 1}.1.{rest}" if half == "down" else f"output_blocks.{number}.1.{rest}"
  match = re.match(r"mid_block\.attentions\.0\.(.+)", layer)
  return f"middle_block.1.{match[1]}" if match else None


def _parse_updates(
  path: pathlib.Path,
  tensors: dict[str, np.ndarray],
  metadata: dict[str, str],
  layers: Iterable[str],
  generator: Cascade | Masked,
) -> dict[str, _Update]:
  """Finds the updates in the tensors of a file of any layout, by the names of layers in diffusers.

  Args:
    path: of the file; a file of peft's has its config next to it.
    tensors: of the file.
    metadata: of the file.
    layers: the names of all layers of the generator.
    generator: the generator.

  Raises:
    UserError: if a tensor is of no LoRA weights, or of none of the layers, or one is missing.
  """
  settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
  if (config := path.with_name(ADAPTER_CONFIG)).is_file() and path.name == ADAPTER:
    settings |= {f"{_network_of_file(path)}.{key}": x for key, x in pretrained.read_json(config).items()}
  for key, value in settings.items():
    if value and key.rpartition(".")[2] in _UNSUPPORTED:
      raise UserError(f"{path}: {key} is {value}, but only plain LoRA can be read")
  kohya = _kohya_names(layers, generator)
  parts: dict[str, dict[str, np.ndarray]] = {}
  for key, tensor in tensors.items():
    if key.endswith(".alpha"):
      name, what = key.removesuffix(".alpha"), "alpha"
    elif match := re.fullmatch(r"(.+?)(?:\.|_)lora(?:_linear_layer)?[._](A|B|down|up)(?:\.default)?\.weight", key):
      name, what = match[1], {"A": "down", "B": "up"}.get(match[2], match[2])
    else:
      raise UserError(f"{path} holds {key}, which is no LoRA weight")
    parts.setdefault(_diffusers_name(path, name, kohya), {})[what] = tensor
  known = set(layers)
  if unknown := [name for name in parts if name not in known]:
    raise UserError(f"{path} is not for {generator.name}, which has no {', '.join(sorted(unknown)[:5])}")
  updates = {}
  for name, found in parts.items():
    if not {"down", "up"} <= set(found):
      raise UserError(f"{path} holds only {', '.join(found)} of {name}")
    network, _, layer = name.partition(".")
    alpha = settings.get(f"{network}.lora_alpha", len(found["down"]))
    for pattern, own in (settings.get(f"{network}.alpha_pattern") or {}).items():
      alpha = own if re.fullmatch(rf"(.*\.)?({pattern})", layer) else alpha
    updates[name] = _Update(found["down"], found["up"], float(found.get("alpha", alpha)))
  return updates


def _kohya_names(layers: Iterable[str], generator: Cascade | Masked) -> dict[str, str]:
  """The layers by all names that they can have in kohya's layout."""
  if not _is_stable_diffusion(generator):
    return {}
  prefixes = {"unet": ["lora_unet"], "text_encoder": ["lora_te", "lora_te1"], "text_encoder_2": ["lora_te2"]}
  per_level, known = generator.stages[0].unet.blocks + 1, {}
  for name in layers:
    network, _, layer = name.partition(".")
    names = [f"{prefix}_{layer}" for prefix in prefixes[network]]
    if network == "unet" and (original := _original_name(layer, per_level)):
      names.append(f"lora_unet_{original}")
    known |= {key.replace(".", "_"): name for key in names}
  return known


def _stage_of_file(path: pathlib.Path, known: Iterable[str]) -> str:
  """The stage of IF that a file is for, by the names of the folders that contain it; "" if none is a stage's."""
  return next((name for name in (path.parent.name, path.parent.parent.name) if name in known), "")


def _network_of_file(path: pathlib.Path) -> str:
  """The network that a file of peft's is for, by the name of its folder."""
  known = ("unet", "text_encoder", "text_encoder_2", "transformer")
  return path.parent.name if path.parent.name in known else "unet"


def _diffusers_name(path: pathlib.Path, name: str, kohya: dict[str, str]) -> str:
  """The name in diffusers of a layer that a file of any layout names."""
  if name in kohya:
    return kohya[name]
  if name.startswith("base_model.model."):
    name = f"{_network_of_file(path)}.{name.removeprefix('base_model.model.')}"
  name = re.sub(r"^(text_encoder(_2)?)\.(?=encoder\.)", r"\1.text_model.", name)  # transformers 5 leaves it out
  name = re.sub(r"\.processor\.to_(q|k|v)$", r".to_\1", name)
  return re.sub(r"\.processor\.to_out$", ".to_out.0", name)
