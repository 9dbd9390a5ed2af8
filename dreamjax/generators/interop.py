"""Thetas of Stable Diffusion, DeepFloyd IF and aMUSEd in the files of other programs, and theirs as thetas.

Low-rank updates are known in three layouts, in all of which a layer has the name that it has in diffusers:

  diffusers  one file; "unet.<layer>.lora_A.weight", with rank and alpha in the metadata (older: lora.down, processor)
  peft       a folder for each network, of adapter_model.safetensors beside adapter_config.json
  kohya      one file; "lora_unet_<layer, _ for .>.lora_down.weight" and ".alpha"; SDXL's layers by their first names

Embeddings of the identifier's tokens are one file for diffusers' `load_textual_inversion`, whatever the layout of the
rest: "<identifier>" or, of SDXL, "clip_l" and "clip_g", of [tokens, width].

Full weights are written as a diffusers folder of the tuned generator. Of DeepFloyd IF each stage is a network "unet" by
itself, and has a folder of its own, named as the stage is; aMUSEd's network is "transformer". For these two there is no
layout of kohya's, nor a place for embeddings.
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
from dreamjax.generators import pipelines
from dreamjax.generators.cascade import Cascade, default_samplings
from dreamjax.generators.generator import TEXT
from dreamjax.generators.masked import Masked
from dreamjax.theta import Card, Embeddings, Full, LoRA, Personalisation, Theta
from dreamjax.theta.kinds import Path

FORMATS = ("diffusers", "peft", "kohya")
WEIGHTS = "pytorch_lora_weights.safetensors"  # where diffusers looks for the first layout
EMBEDDINGS = "learned_embeds.safetensors"  # and for embeddings
_TOWERS = ("clip_l", "clip_g")  # what the embeddings of SDXL's two towers are called
_UNKNOWN = ("use_dora", "use_rslora")  # settings of peft that make another update of the same numbers
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_CARD = ("dreamjax_identifier", "dreamjax_class_noun")  # in the metadata: what others leave alone

#: A network's name in diffusers, the part of the generator, where it is there, and its table.
_Network = tuple[str, str, Path, MappingTable]


class _Layer(NamedTuple):
  """Where a layer of theirs is here: the part of the generator, the path there, and how its kernel is seen."""

  part: str
  path: Path
  view: View


class _Update(NamedTuple):
  """A layer's update as others store it: A [r, inputs, ...], B [outputs, r, ...], and alpha."""

  down: np.ndarray
  up: np.ndarray
  alpha: float


def save(
  path: pathlib.Path, form: str, generator: Cascade | Masked, params: Any, made: Personalisation
) -> list[pathlib.Path]:
  """Writes a personalisation for another program.

  Args:
    path: a folder, made where missing.
    form: one of `FORMATS`.
    generator: Stable Diffusion, SDXL, DeepFloyd IF or aMUSEd.
    params: its parameters.
    made: what is written: low-rank updates, embeddings, both, or for "diffusers" full weights.

  Returns:
    What was written.

  Raises:
    ValueError: if the format is unknown, or knows no such theta or layer, or the generator is of another family.
  """
  if form not in FORMATS:
    raise ValueError(f"unknown format {form!r}; there are: {', '.join(FORMATS)}")
  by_folder = _layers(generator, params)
  kinds = {type(theta) for theta in made.thetas.values()}
  if Full in kinds and kinds <= {Full, Embeddings} and form == "diffusers":
    own = _trees(generator, params)
    tuned = {part: theta.merge(own[part]) for part, theta in made.thetas.items()}
    if isinstance(generator, Masked):
      tuned = {part: {**params[part], "transformer": tree} for part, tree in tuned.items()}
    whole = {**params, **tuned}
    if pipelines.is_if(generator):
      return pipelines.save_stages(path, _as_tuned(generator, made), whole, np.float16)
    pipelines.save(path, generator, whole, np.float16)
    return [path]
  if not kinds <= {LoRA, Embeddings}:
    known = "low-rank updates, embeddings, or full weights" if form == "diffusers" else "low-rank updates, embeddings"
    found = ", ".join(f"{part}: {type(theta).__name__}" for part, theta in made.thetas.items())
    raise ValueError(f"{form} knows {known} for all parts; those of this theta are {found}")
  if form == "kohya" and not _has_kohya(generator):
    raise ValueError(
      f"kohya's format is known for Stable Diffusion and SDXL, not for {generator.name}: use another one"
    )
  embeddings = {part: theta for part, theta in made.thetas.items() if isinstance(theta, Embeddings)}
  made = Personalisation({part: x for part, x in made.thetas.items() if part not in embeddings}, made.card)
  known_parts = {layer.part for layers in by_folder.values() for layer in layers.values()}
  if odd := set(made.thetas) - known_parts:
    raise ValueError(f"{form} has no place for updates of {', '.join(sorted(odd))}")
  if embeddings and not _has_kohya(generator):
    raise ValueError(f"diffusers reads embeddings for Stable Diffusion and SDXL only, not for {generator.name}")
  files = {"diffusers": _diffusers_files, "peft": _peft_files, "kohya": lambda some: _kohya_files(some, generator)}
  written = [_save_embeddings(path, theta, made.card.identifier) for theta in embeddings.values()]
  for folder, layers in by_folder.items():
    if not (updates := dict(_updates(layers, made))):
      continue
    for name, (tensors, metadata) in files[form](updates).items():
      file = path / folder / name
      file.parent.mkdir(parents=True, exist_ok=True)
      card = dict(zip(_CARD, (made.card.identifier, made.card.class_noun), strict=True))
      safetensors.numpy.save_file(tensors, file, metadata=metadata | card)
      written.append(file)
    if form == "peft":
      for network, some in _by_network(updates).items():
        settings = {"peft_type": "LORA", **_adapter(some)}
        (path / folder / network / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
  return written


def _as_tuned(generator: Cascade, made: Personalisation) -> Cascade:
  """The generator, whose stages are sampled as the theta says."""
  pairs = zip(generator.stages, default_samplings(generator, made), strict=True)
  return dataclasses.replace(generator, stages=tuple(dataclasses.replace(x, sampling=own) for x, own in pairs))


def _save_embeddings(path: pathlib.Path, theta: Embeddings, identifier: str) -> pathlib.Path:
  """Writes embeddings. A word that is in the vocabulary cannot be learned there: hence the brackets."""
  rows = [np.asarray(x, np.float32) for _, x in sorted(flatten_dict(theta.weights, sep="/").items())]
  names = _TOWERS if len(rows) > 1 else (f"<{identifier.replace(' ', '-')}>",)
  path.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(dict(zip(names, rows, strict=True)), path / EMBEDDINGS, metadata={"format": "pt"})
  return path / EMBEDDINGS


def _read_embeddings(
  path: pathlib.Path, tensors: dict[str, np.ndarray], generator: Cascade, params: Any
) -> tuple[Embeddings, str]:
  """Embeddings, and rare words that stand for their tokens."""
  names = _TOWERS if set(tensors) == set(_TOWERS) else tuple(tensors)
  rows = [np.atleast_2d(tensors[name]) for name in names]
  identifier = " ".join(identifiers.choose(generator.tokenizer, 0, len(rows[0]), rare=(0.5, 1.0)))
  theta = Embeddings.init(params[TEXT], identifiers.tokens(generator.tokenizer, identifier))
  tables = sorted(flatten_dict(theta.weights).items())
  if [x.shape for x in rows] != [x.shape for _, x in tables]:
    raise ValueError(
      f"{path} holds embeddings of shapes {[x.shape for x in rows]}, which do not fit a text encoder of "
      f"{' and '.join(str(x.shape[1]) for _, x in tables)} channels"
    )
  weights = unflatten_dict({where: x for (where, _), x in zip(tables, rows, strict=True)})
  return theta.replace(weights=weights), identifier


def load(path: pathlib.Path, generator: Cascade | Masked, params: Any) -> Personalisation:
  """Reads low-rank updates of another program, in any of the three layouts, or embeddings.

  Such files do not say which model they were trained beside: the card has the one that is given. Nor do they say what
  stands for [V], unless `save` wrote them; for embeddings rare words stand, one for each token.

  Args:
    path: a file, or a folder with all that belongs together, such as `save` writes: of peft's layout the networks, of
      DeepFloyd IF the stages. A file of IF is for the stage in whose folder it lies, or else for the first one.
    generator: Stable Diffusion, SDXL, DeepFloyd IF or aMUSEd.
    params: its parameters, or their shapes.

  Raises:
    ValueError: if a file is damaged, holds something else, or layers that the generator lacks or that do not fit; or if
      a folder holds none.
  """
  weights: dict[str, dict[Path, Any]] = {}
  thetas: dict[str, Theta] = {}
  identifier, class_noun = "", ""
  for file in _files(path):
    tensors, metadata = _tensors(file)
    if _are_embeddings({key: x.shape for key, x in tensors.items()}):
      if not _has_kohya(generator):
        raise ValueError(f"{file} holds embeddings, which {generator.name} does not take from others")
      thetas[TEXT], identifier = _read_embeddings(file, tensors, generator, params)
      continue
    for part, found in _read_updates(file, tensors, metadata, generator, params).items():
      weights.setdefault(part, {}).update(found)
    if said := metadata.get(_CARD[0]):
      identifier, class_noun = said, metadata.get(_CARD[1], "")
  if TEXT in thetas and TEXT in weights:
    raise ValueError(f"{path} holds both embeddings and low-rank updates of the text encoder, and only one can be read")
  thetas |= {part: LoRA(unflatten_dict(found), 1.0) for part, found in weights.items()}
  recipe: dict[str, Any] = {"method": "imported", "file": path.name}
  if pipelines.is_if(generator):  # a learned variance does not belong to what was tuned, see `methods.dreambooth`
    learned = [name for name in thetas if generator.stage(name).sampling.variance == "learned"]
    recipe["sampling"] = {name: {"variance": 0.0} for name in learned}
  return Personalisation(thetas, Card(generator.base(params), identifier, class_noun, recipe))


def _files(path: pathlib.Path) -> list[pathlib.Path]:
  if not path.is_dir():
    return [path]
  names = (WEIGHTS, ADAPTER, EMBEDDINGS)
  if not (found := sorted(file for name in names for file in path.rglob(name))):
    raise ValueError(f"{path} is a folder without any of {', '.join(names)}: name the file that is meant")
  return found


def _tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """All of a file, in float32, and its metadata."""
  with pretrained.open_tensors(path) as file:
    return {key: file.get_tensor(key).astype(np.float32) for key in file.keys()}, file.metadata() or {}


def _read_updates(
  path: pathlib.Path, tensors: dict[str, np.ndarray], metadata: dict[str, str], generator: Cascade | Masked, params: Any
) -> dict[str, dict[Path, Any]]:
  """The weights of low-rank updates of scale 1, flat, by parts."""
  by_folder = _layers(generator, params)
  layers = by_folder.get(_folder(path, by_folder), next(iter(by_folder.values())))
  kernels = {part: flatten_dict(tree) for part, tree in _trees(generator, params).items()}
  found: dict[str, dict[Path, Any]] = {}
  for name, update in _read(path, tensors, metadata, layers, generator).items():
    part, layer, view = layers[name]
    down, up = view.ours(update.down), update.up.reshape(update.up.shape[:2]).T
    kernel = kernels[part][*layer, "kernel"].shape
    if (*down.shape[:-1], up.shape[-1]) != kernel or down.shape[-1] != up.shape[0]:
      raise ValueError(f"{path}: {name} has shapes {update.down.shape} and {update.up.shape}, which do not fit it here")
    weights = found.setdefault(part, {})
    weights[*layer, "down"] = np.ascontiguousarray(down)
    weights[*layer, "up"] = np.ascontiguousarray(up) * np.float32(update.alpha / len(up))
  return found


def is_foreign(path: pathlib.Path) -> bool:
  """Whether a file holds low-rank updates in one of the layouts of others, or embeddings; folders are others', too."""
  if path.is_dir() or path.suffix in pretrained.PICKLES:
    return True  # for `load` to read or to refuse
  try:
    with safetensors.safe_open(path, "np") as file:
      shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
  except (safetensors.SafetensorError, OSError):
    return False
  return _are_embeddings(shapes) or any(re.search(r"lora(_linear_layer)?[._](A|B|down|up)\b", key) for key in shapes)


def _are_embeddings(shapes: dict[str, tuple[int, ...]]) -> bool:
  """Whether these are what others call embeddings: vectors, or rows of a few, for one tower or for SDXL's two."""
  named = set(shapes) == set(_TOWERS) or (
    len(shapes) == 1 and not re.search(r"/|^lora_|[.]weight$", next(iter(shapes)))
  )
  return named and all(len(shape) in (1, 2) for shape in shapes.values())


def _trees(generator: Cascade | Masked, params: Any) -> dict[str, Any]:
  """What thetas are of, by the names of parts: of stages of masked tokens, the transformer."""
  if isinstance(generator, Masked):
    return {stage.name: params[stage.name]["transformer"] for stage in generator.stages}
  return params


def _has_kohya(generator: Cascade | Masked) -> bool:
  """Whether a generator is Stable Diffusion or SDXL, for which there are kohya's layout and embeddings."""
  return isinstance(generator, Cascade) and generator.autoencoder is not None


def _layers(generator: Cascade | Masked, params: Any) -> dict[str, dict[str, _Layer]]:
  """All layers that may have an update, by their folder and the names of diffusers, such as "unet.conv_in"."""
  trees = _trees(generator, params)
  if isinstance(generator, Masked) and pipelines.writes(generator):
    return {"": _layers_of([("transformer", stage.name, (), uvit.TABLE) for stage in generator.stages], trees)}
  if pipelines.is_if(generator):
    return {stage.name: _layers_of([("unet", stage.name, (), unet.TABLE)], trees) for stage in generator.stages}
  if not _has_kohya(generator):
    raise ValueError(f"{generator.name} is none of the generators that diffusers has: there are no such files for it")
  networks: list[_Network] = [("unet", generator.stages[0].name, (), latent_unet.TABLE)]
  for i, _ in enumerate(generator.text_encoder.towers):
    networks.append((f"text_encoder{'_2' if i else ''}", TEXT, (f"towers_{i}",), clip.TEXT_TABLE))
  return {"": _layers_of(networks, trees)}


def _layers_of(networks: Iterable[_Network], params: Any) -> dict[str, _Layer]:
  found = {}
  for name, part, where, table in networks:
    tree = params[part]
    for key in where:
      tree = tree[key]
    kernels = [path for path in flatten_dict(tree, sep="/") if path.endswith("/kernel")]
    for key, (path, view) in table.match(kernels).items():
      layer = (*where, *path.split("/")[:-1])
      found[f"{name}.{key.removesuffix('.weight')}"] = _Layer(part, layer, view)
  return found


def _updates(layers: dict[str, _Layer], made: Personalisation) -> Iterator[tuple[str, _Update]]:
  names = {(layer.part, layer.path): (name, layer.view) for name, layer in layers.items()}
  parts = {layer.part for layer in layers.values()}
  for part, theta in made.thetas.items():
    if part not in parts:
      continue
    flat = {path: np.asarray(x, np.float32) for path, x in flatten_dict(theta.weights).items()}
    for layer in dict.fromkeys(path[:-1] for path in flat):
      name, view = names[part, layer]
      down, up = view.theirs(flat[*layer, "down"]), flat[*layer, "up"].T
      up = up.reshape(*up.shape, *(1,) * (down.ndim - 2))
      yield name, _Update(np.ascontiguousarray(down), np.ascontiguousarray(up), theta.scale * up.shape[1])


Files = dict[str, tuple[dict[str, np.ndarray], dict[str, str]]]  # by name, tensors and metadata


def _diffusers_files(updates: dict[str, _Update]) -> Files:
  tensors = {}
  for name, update in updates.items():
    tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = update.down, update.up
  networks = _by_network(updates)
  settings = {f"{network}.{key}": x for network, some in networks.items() for key, x in _adapter(some).items()}
  return {WEIGHTS: (tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(settings)})}


def _peft_files(updates: dict[str, _Update]) -> Files:
  files: Files = {}
  for network, some in _by_network(updates).items():
    tensors = {}
    for layer, update in some.items():
      key = f"base_model.model.{_of_tower(layer) if network == 'text_encoder' else layer}"
      tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = update.down, update.up
    files[f"{network}/{ADAPTER}"] = tensors, {"format": "pt"}
  return files


def _by_network(updates: dict[str, _Update]) -> dict[str, dict[str, _Update]]:
  networks: dict[str, dict[str, _Update]] = {}
  for name, update in updates.items():
    network, _, layer = name.partition(".")
    networks.setdefault(network, {})[layer] = update
  return networks


def _of_tower(layer: str) -> str:
  """A layer's name in `CLIPTextModel` as transformers 5 has it; before, it had the part "text_model" as well."""
  return layer.removeprefix("text_model.")


def _adapter(updates: dict[str, _Update]) -> dict[str, Any]:
  """What peft's config says of one network's updates: the first one's rank and alpha, and those that differ.

  Layers are named by the ends of their names, for what stands in front depends on the version of transformers.
  """
  rank, alpha = (lambda x: len(x.down)), (lambda x: x.alpha)
  first = next(iter(updates.values()))
  ends = {re.search(r"[^.]+(\.\d+)?$", layer)[0] for layer in updates}
  settings = {"r": rank(first), "lora_alpha": alpha(first), "target_modules": sorted(ends), "bias": "none"}
  for name, of in (("rank_pattern", rank), ("alpha_pattern", alpha)):
    if other := {re.escape(_of_tower(layer)): of(x) for layer, x in updates.items() if of(x) != of(first)}:
      settings[name] = other
  return settings


def _kohya_files(updates: dict[str, _Update], generator: Cascade) -> Files:
  tensors = {}
  for name, update in updates.items():
    key = _kohya_name(name, generator)
    tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = update.down, update.up
    tensors[f"{key}.alpha"] = np.asarray(update.alpha, np.float32)
  first = next(iter(updates.values()))
  metadata = {"ss_network_module": "networks.lora", "ss_network_dim": str(len(first.down))}
  return {"lora.safetensors": (tensors, {**metadata, "ss_network_alpha": str(first.alpha)})}


def _kohya_name(name: str, generator: Cascade) -> str:
  """kohya's name of a layer; ValueError for one of SDXL's that has none."""
  network, _, layer = name.partition(".")
  is_xl = len(generator.text_encoder.towers) > 1
  if network == "unet" and is_xl:
    layer = _first_name(layer, generator.stages[0].unet.blocks + 1)
    if layer is None:
      raise ValueError(f"kohya's format is written for SDXL's transformers only, not for {name}: use another format")
  prefix = {"unet": "lora_unet", "text_encoder": "lora_te1" if is_xl else "lora_te", "text_encoder_2": "lora_te2"}
  return f"{prefix[network]}_{layer}".replace(".", "_")


def _first_name(layer: str, rows: int) -> str | None:
  """The first name of a layer of SDXL's transformers, which counts the blocks of all levels; None for other layers."""
  if match := re.match(r"(down|up)_blocks\.(\d)\.attentions\.(\d)\.(.+)", layer):
    way, level, block, rest = match.groups()
    number = rows * int(level) + int(block)
    return f"input_blocks.{number + 1}.1.{rest}" if way == "down" else f"output_blocks.{number}.1.{rest}"
  match = re.match(r"mid_block\.attentions\.0\.(.+)", layer)
  return f"middle_block.1.{match[1]}" if match else None


def _read(
  path: pathlib.Path,
  tensors: dict[str, np.ndarray],
  metadata: dict[str, str],
  layers: Iterable[str],
  generator: Cascade | Masked,
) -> dict[str, _Update]:
  """Updates by the names of diffusers."""
  settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
  if (beside := path.with_name(ADAPTER_CONFIG)).is_file() and path.name == ADAPTER:
    settings |= {f"{_network(path)}.{key}": x for key, x in pretrained.read_json(beside).items()}
  for key, value in settings.items():
    if value and key.rpartition(".")[2] in _UNKNOWN:
      raise ValueError(f"{path}: {key} is {value}, and only plain low-rank updates of one alpha are known here")
  kohya = _kohya_names(layers, generator)
  parts: dict[str, dict[str, np.ndarray]] = {}
  for key, tensor in tensors.items():
    if key.endswith(".alpha"):
      name, what = key.removesuffix(".alpha"), "alpha"
    elif match := re.fullmatch(r"(.+?)(?:\.|_)lora(?:_linear_layer)?[._](A|B|down|up)(?:\.default)?\.weight", key):
      name, what = match[1], {"A": "down", "B": "up"}.get(match[2], match[2])
    else:
      raise ValueError(f"{path} holds {key}, which is no low-rank update")
    parts.setdefault(_diffusers_name(path, name, kohya), {})[what] = tensor
  known = set(layers)
  if unknown := [name for name in parts if name not in known]:
    raise ValueError(f"{path} is not for this generator: it has no {', '.join(sorted(unknown)[:5])}")
  updates = {}
  for name, found in parts.items():
    if not {"down", "up"} <= set(found):
      raise ValueError(f"{path} holds only {', '.join(found)} of {name}")
    network, _, layer = name.partition(".")
    alpha = settings.get(f"{network}.lora_alpha", len(found["down"]))
    for pattern, own in (settings.get(f"{network}.alpha_pattern") or {}).items():
      alpha = own if re.fullmatch(rf"(.*\.)?({pattern})", layer) else alpha
    updates[name] = _Update(found["down"], found["up"], float(found.get("alpha", alpha)))
  return updates


def _kohya_names(layers: Iterable[str], generator: Cascade | Masked) -> dict[str, str]:
  """All names that kohya has for the layers."""
  if not _has_kohya(generator):
    return {}
  prefixes = {"unet": ["lora_unet"], "text_encoder": ["lora_te", "lora_te1"], "text_encoder_2": ["lora_te2"]}
  rows, known = generator.stages[0].unet.blocks + 1, {}
  for name in layers:
    network, _, layer = name.partition(".")
    names = [f"{prefix}_{layer}" for prefix in prefixes[network]]
    if network == "unet" and (first := _first_name(layer, rows)):
      names.append(f"lora_unet_{first}")
    known |= {key.replace(".", "_"): name for key in names}
  return known


def _folder(path: pathlib.Path, known: Iterable[str]) -> str:
  """The stage of IF that a file is for, by the folders that it lies in."""
  return next((name for name in (path.parent.name, path.parent.parent.name) if name in known), "")


def _network(path: pathlib.Path) -> str:
  """The network of a file of peft, by its folder."""
  known = ("unet", "text_encoder", "text_encoder_2", "transformer")
  return path.parent.name if path.parent.name in known else "unet"


def _diffusers_name(path: pathlib.Path, name: str, kohya: dict[str, str]) -> str:
  """A layer's name in diffusers."""
  if name in kohya:
    return kohya[name]
  if name.startswith("base_model.model."):
    name = f"{_network(path)}.{name.removeprefix('base_model.model.')}"
  name = re.sub(r"^(text_encoder(_2)?)\.(?=encoder\.)", r"\1.text_model.", name)  # as newer transformers have it
  name = re.sub(r"\.processor\.to_(q|k|v)$", r".to_\1", name)
  return re.sub(r"\.processor\.to_out$", ".to_out.0", name)
