"""Reads and writes Stable Diffusion, SDXL, DeepFloyd IF and aMUSEd as folders in the layout of diffusers' pipelines.

Such a folder holds `model_index.json`, which names the parts, and a folder for each part: "unet", "vae", "text_encoder"
and "tokenizer" (SDXL has a second of both), and "scheduler". Other parts, such as a safety checker, are ignored.

A scheduler's config determines the table of betas, the prediction type and the spacing of the timesteps; where the
config states no spacing, its class has a default. The sampler is not read from it: `Sampling` determines it, by default
DDIM, which computes the same as SDXL's EulerDiscreteScheduler.

Each stage of IF is a folder of its own, with "text_encoder", "tokenizer", "unet" and "scheduler", and for a
super-resolution stage "image_noising_scheduler". Together they are a cascade with the first stage's text encoder. Their
sampler is the ancestral one, with the thresholds and the variance of the scheduler's config.

aMUSEd has a "transformer" and a "vqvae", conditioned on one text tower of CLIP. As in its pipeline, the temperature
falls from 2 in the first step to 0 in the last (`Decoding.starts_at_temperature`). A guidance scale of g is a lambda_b
of g - 1.
"""

from collections.abc import Callable, Sequence
import functools
import json
import pathlib
from typing import Any, NamedTuple

from dreamjax.convert import pretrained
from dreamjax.convert.table import Put, Setting, read_settings
from dreamjax.convert.unet import write as write_unet
from dreamjax.data.tokenizer import Tokenizer, Tokenizers
from dreamjax.diffusion.schedules import BetaTable
from dreamjax.errors import UserError
from dreamjax.generators.cascade import AUTOENCODER, Cascade, Sampling, Spacing, Stage
from dreamjax.generators.generator import TEXT, Generator
from dreamjax.generators.masked import Decoding, Masked, TokenStage
from dreamjax.models.autoencoder import Autoencoder
from dreamjax.models.clip import PromptEncoder, TextTower
from dreamjax.models.latent_unet import LatentUNet
from dreamjax.models.t5 import T5Encoder
from dreamjax.models.unet import UNet
from dreamjax.models.uvit import UViT
from dreamjax.models.vqgan import VQGAN

BASE = "base"  # the name of the first stage, or of the only one
SCHEDULER, NOISE = "scheduler/scheduler_config.json", "image_noising_scheduler/scheduler_config.json"


class _Pipeline(NamedTuple):
  """A class of diffusers' pipelines for latent diffusion.

  Attributes:
    texts: for each text encoder, its folder and the folder of its tokenizer.
    penultimate: see `PromptEncoder`.
    guidance: the default weight of guidance.
  """

  texts: tuple[tuple[str, str], ...]
  penultimate: bool
  guidance: float


_TOWER = (("text_encoder", "tokenizer"),)
_LATENT = {
  "StableDiffusionPipeline": _Pipeline(_TOWER, False, 7.5),
  "StableDiffusionXLPipeline": _Pipeline((*_TOWER, ("text_encoder_2", "tokenizer_2")), True, 5.0),
}
_BASE, _SUPER_RESOLUTION = "IFPipeline", "IFSuperResolutionPipeline"
_AMUSED = "AmusedPipeline"
KNOWN = (*_LATENT, _BASE, _SUPER_RESOLUTION, _AMUSED)

# Defaults of IF's pipelines: the length of prompts in tokens; the steps and the guidance of a base stage and of a
# super-resolution stage; and the timestep of the noise on the low-resolution image.
_IF_LENGTH, _IF_STEPS, _IF_GUIDANCE, _IF_NOISE = 77, (100, 50), (7.0, 4.0), 250

# Defaults of aMUSEd's pipeline: the steps, the temperature in the first step, the guidance, and the aesthetic score.
_AMUSED_STEPS, _AMUSED_TEMPERATURE, _AMUSED_GUIDANCE, _AESTHETIC_SCORE = 12, 2.0, 10.0, 6.0

_SETTINGS = (
  Setting("beta_schedule", "linear", "name"),
  Setting("beta_start", 0.0001, "start"),
  Setting("beta_end", 0.02, "end"),
  Setting("num_train_timesteps", 1000, "steps"),
  Setting("prediction_type", "epsilon", "predicts", known=("epsilon", "v_prediction", "sample")),
  Setting("timestep_spacing", None, "spacing"),
  Setting("steps_offset", 0, "offset"),
  Setting("set_alpha_to_one", None, "clean"),
  Setting("trained_betas", None, known=(None,)),
  Setting("rescale_betas_zero_snr", False, known=(False,)),
  Setting("use_flow_sigmas", False, known=(False,)),
)
# Diffusers' classes by their default spacing, and the default `set_alpha_to_one` of those that read it: the last step
# of all other classes leads to a clean image, even if their configs have inherited another value.
_LEADING = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
_LINSPACE = (
  "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
  "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
  "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
_CLEAN = {"DDIMScheduler": True, "PNDMScheduler": False}
_PREDICTS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_THRESHOLDS = (
  Setting("thresholding", False, "is_dynamic", known=(False, True)),
  Setting("dynamic_thresholding_ratio", 0.995, "threshold_percentile"),
  Setting("sample_max_value", 1.0, "threshold_max"),
  Setting("clip_sample", True, "clips", known=(False, True)),
  Setting("clip_sample_range", 1.0, known=(1.0,)),
  Setting("variance_type", "fixed_small", "variance", known=("fixed_small", "fixed_large", "learned_range")),
)
_MASKING = (Setting("masking_schedule", "cosine", known=("cosine",)), Setting("mask_token_id", None, "mask"))
_VARIANCES = {"fixed_small": 0.0, "fixed_large": 1.0, "learned_range": "learned"}


def load(
  folders: Sequence[pathlib.Path], indices: Sequence[dict[str, Any]], dtype: Any, put: Put
) -> tuple[Cascade | Masked, dict[str, Any]]:
  """Loads a pipeline, or the stages of IF, as a description and parameters; see `files.load`.

  Args:
    folders: one for each stage, the base stage's first.
    indices: the contents of their `model_index.json`.
    dtype: of the parameters.
    put: see `files.load`.

  Raises:
    UserError: if the folders are not the stages of one cascade, or one of them is invalid.
  """
  first, *later = (index["_class_name"] for index in indices)
  if first == _SUPER_RESOLUTION:
    raise UserError(f"{folders[0]} is a super-resolution stage: put the folder of an {_BASE} before it, joined by +")
  for folder, kind in zip(folders[1:], later, strict=True):
    if first != _BASE or kind != _SUPER_RESOLUTION:
      raise UserError(f"{folder} holds {kind}, which cannot follow {first} in {folders[0]}")
  read = functools.partial(network, dtype=dtype, put=put)
  if first == _BASE:
    return _load_if(folders, read)
  return _load_amused(folders[0], read) if first == _AMUSED else _load_latent(folders[0], indices[0], read)


#: read(folder, kind, path): `network` with its other arguments bound.
_Read = Callable[[pathlib.Path, type, str], tuple[Any, dict[str, Any]]]


def _load_if(folders: Sequence[pathlib.Path], read: _Read) -> tuple[Cascade, dict[str, Any]]:
  """Loads the stages of DeepFloyd IF."""
  encoder, text_params = read(folders[0] / "text_encoder", T5Encoder, TEXT)
  tokenizer = Tokenizer.load(_existing(folders[0] / "tokenizer"), _IF_LENGTH, lowers=True)
  params, stages = {TEXT: text_params}, []
  for i, folder in enumerate(folders):
    name = BASE if i == 0 else "sr" if i == 1 else f"sr_{i}"
    unet, params[name] = read(folder / "unet", UNet, name)
    schedule, predicts, spacing = _read_scheduler(folder / SCHEDULER)
    sampling = {"sampler": "ancestral", "steps": _IF_STEPS[i > 0], "guidance": _IF_GUIDANCE[i > 0]}
    sampling |= _read_thresholds(folder / SCHEDULER)
    augmentation = None
    if unet.low_res:
      augmentation, _, _ = _read_scheduler(folder / NOISE)
      if augmentation.steps <= _IF_NOISE:
        raise UserError(
          f"{folder / NOISE}: IF's noise level, {_IF_NOISE}, is not one of {augmentation.steps} timesteps"
        )
      sampling["augmentation_level"] = (_IF_NOISE + 1) / augmentation.steps
    own = Sampling(**sampling)
    stages.append(Stage(name, unet, schedule, predicts, augmentation, own, masks_text=False, spacing=spacing))
  return Cascade("+".join(folder.resolve().name for folder in folders), encoder, tokenizer, tuple(stages)), params


def _load_latent(folder: pathlib.Path, index: dict[str, Any], read: _Read) -> tuple[Cascade, dict[str, Any]]:
  """Loads Stable Diffusion or SDXL."""
  pipeline = _LATENT[index["_class_name"]]
  empty_is_zero = bool(index.get("force_zeros_for_empty_prompt", len(pipeline.texts) > 1))
  unet, unet_params = read(folder / "unet", LatentUNet, BASE)
  autoencoder, autoencoder_params = read(folder / "vae", Autoencoder, AUTOENCODER)
  encoder, tokenizer, text_params = _read_towers(folder, pipeline.texts, pipeline.penultimate, empty_is_zero, read)
  side = unet.image * autoencoder.factor
  schedule, predicts, spacing = _read_scheduler(folder / SCHEDULER)
  stage = Stage(
    BASE,
    unet,
    schedule,
    predicts,
    sampling=Sampling(steps=30, guidance=pipeline.guidance),
    masks_text=False,
    spacing=spacing,
    sizes=None if unet.pooled_width is None else (side, side, 0, 0, side, side),
  )
  params = {TEXT: text_params, BASE: unet_params, AUTOENCODER: autoencoder_params}
  return Cascade(folder.resolve().name, encoder, tokenizer, (stage,), autoencoder), params


def _load_amused(folder: pathlib.Path, read: _Read) -> tuple[Masked, dict[str, Any]]:
  """Loads aMUSEd."""
  transformer, transformer_params = read(folder / "transformer", UViT, f"{BASE}/transformer")
  vqgan, vqgan_params = read(folder / "vqvae", VQGAN, f"{BASE}/vqgan")
  encoder, tokenizer, text_params = _read_towers(folder, _TOWER, penultimate=True, empty_is_zero=False, read=read)
  fields = _scheduler_fields(folder / SCHEDULER, _MASKING)
  if fields["mask"] != transformer.mask_id:
    problem = f"mask_token_id is {fields['mask']}, but the transformer's is {transformer.mask_id}"
    raise UserError(f"{folder / SCHEDULER}: {problem}")
  side = transformer.side * vqgan.factor
  decoding = Decoding(_AMUSED_STEPS, _AMUSED_TEMPERATURE, lambda_b=_AMUSED_GUIDANCE - 1, starts_at_temperature=True)
  stage = TokenStage(BASE, transformer, vqgan, decoding, (side, side, 0, 0, _AESTHETIC_SCORE), positive=True)
  params = {TEXT: text_params, BASE: {"transformer": transformer_params, "vqgan": vqgan_params}}
  return Masked(folder.resolve().name, encoder, tokenizer, (stage,)), params


def _read_towers(
  folder: pathlib.Path, texts: Sequence[tuple[str, str]], penultimate: bool, empty_is_zero: bool, read: _Read
) -> tuple[PromptEncoder, Tokenizers, dict[str, Any]]:
  """Loads a text encoder of one CLIP tower or more: the description, the tokenizers, and the parameters.

  Args:
    folder: the pipeline's.
    texts: see `_Pipeline`.
    penultimate: see `PromptEncoder`.
    empty_is_zero: see `PromptEncoder`.
    read: loads a network.
  """
  found = [read(folder / name, TextTower, f"{TEXT}/towers_{i}") for i, (name, _) in enumerate(texts)]
  towers, params = zip(*found, strict=True)
  tokenizers = [
    Tokenizer.load(_existing(folder / name), tower.length) for (_, name), tower in zip(texts, towers, strict=True)
  ]
  encoder = PromptEncoder(tuple(towers), penultimate, empty_is_zero)
  return encoder, Tokenizers(tokenizers), {f"towers_{i}": tree for i, tree in enumerate(params)}


def writes(generator: Generator) -> bool:
  """Whether `save` can write a generator: whether its text encoder is of CLIP, as Stable Diffusion's and aMUSEd's."""
  return isinstance(generator.text_encoder, PromptEncoder)


def save(folder: pathlib.Path, generator: Cascade | Masked, params: dict[str, Any], dtype: Any) -> None:
  """Writes a pipeline that `load` and diffusers' `from_pretrained` can read; see `files.save`."""
  encoder, (stage,) = generator.text_encoder, generator.stages
  own = params[stage.name]
  if isinstance(generator, Masked):
    name, texts, more = _AMUSED, _TOWER, {}
    networks = {
      "transformer": ("UVit2DModel", stage.transformer, own["transformer"]),
      "vqvae": ("VQModel", stage.vqgan, own["vqgan"]),
    }
    kind = "AmusedScheduler"
    scheduler = {"masking_schedule": "cosine", "mask_token_id": stage.transformer.mask_id}
  else:
    name, texts = next((name, some.texts) for name, some in _LATENT.items() if len(some.texts) == len(encoder.towers))
    networks = {
      "unet": ("UNet2DConditionModel", stage.unet, own),
      "vae": ("AutoencoderKL", generator.autoencoder, params[AUTOENCODER]),
    }
    kind = "DDIMScheduler"
    scheduler = {**_write_scheduler(stage), "set_alpha_to_one": stage.spacing.clean, "clip_sample": False}
    more = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    if len(texts) > 1:
      more = {"force_zeros_for_empty_prompt": encoder.empty_is_zero}
  index: dict[str, Any] = {"_class_name": name, "_diffusers_version": "0.35.0"}
  for part, (cls, module, weights) in networks.items():
    pretrained.save(folder / part, module, weights, dtype)
    index[part] = ["diffusers", cls]
  for i, (part, tokens) in enumerate(texts):
    tower = encoder.towers[i]
    pretrained.save(folder / part, tower, params[TEXT][f"towers_{i}"], dtype)
    generator.tokenizer.all[i].inner.save_pretrained(folder / tokens)
    cls = "CLIPTextModel" if tower.projection is None else "CLIPTextModelWithProjection"
    index |= {part: ["transformers", cls], tokens: ["transformers", "CLIPTokenizer"]}
  index |= {"scheduler": ["diffusers", kind], **more}
  _write_config(folder / "model_index.json", index)
  _write_config(folder / SCHEDULER, {"_class_name": kind, **scheduler})


def is_if(generator: Generator) -> bool:
  """Whether a generator is a cascade of DeepFloyd IF's networks, which `save_stages` can write."""
  return isinstance(generator, Cascade) and all(
    isinstance(stage.unet, UNet)
    and isinstance(stage.schedule, BetaTable)
    and write_unet(stage.unet).get("_class_name") is not None
    for stage in generator.stages
  )


def save_stages(folder: pathlib.Path, cascade: Cascade, params: dict[str, Any], dtype: Any) -> list[pathlib.Path]:
  """Writes each stage of DeepFloyd IF into a folder of its name, for `load` and for diffusers.

  Only the first has the text encoder, which diffusers' pipelines pass on from stage to stage.

  Returns:
    The folders.
  """
  written = []
  for stage in cascade.stages:
    own = folder / stage.name
    index: dict[str, Any] = {
      "_class_name": _SUPER_RESOLUTION if stage.is_super_resolution else _BASE,
      "_diffusers_version": "0.35.0",
    }
    pretrained.save(own / "unet", stage.unet, params[stage.name], dtype)
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    _write_config(
      own / SCHEDULER, {"_class_name": "DDPMScheduler", **_write_scheduler(stage), **_write_thresholds(stage)}
    )
    if written:
      index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    else:
      pretrained.save(own / "text_encoder", cascade.text_encoder, params[TEXT], dtype)
      cascade.tokenizer.inner.save_pretrained(own / "tokenizer")
      index |= {"text_encoder": ["transformers", "T5EncoderModel"]}
      index |= {"tokenizer": ["transformers", type(cascade.tokenizer.inner).__name__]}
    if stage.is_super_resolution:
      _write_config(own / NOISE, {"_class_name": "DDPMScheduler", **_write_table(stage.augmentation)})
      index |= {"image_noising_scheduler": ["diffusers", "DDPMScheduler"]}
    absent = {part: [None, None] for part in ("safety_checker", "feature_extractor", "watermarker")}
    _write_config(own / "model_index.json", index | absent | {"requires_safety_checker": False})
    written.append(own)
  return written


def _write_config(path: pathlib.Path, config: dict[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(config, indent=2) + "\n")


def network(folder: pathlib.Path, kind: type, path: str, *, dtype: Any, put: Put) -> tuple[Any, dict[str, Any]]:
  """Loads a network of a generator and its parameters.

  Args:
    folder: of the network.
    kind: its class.
    path: of its parameters among the generator's.
    dtype: see `files.load`.
    put: see `files.load`.
  """
  return pretrained.load(_existing(folder), dtype, kinds=(kind,), put=lambda name, x: put(f"{path}/{name}", x))


def _existing(folder: pathlib.Path) -> pathlib.Path:
  """The folder; FileNotFoundError if there is none."""
  if not folder.is_dir():
    raise FileNotFoundError(f"there is no folder {folder}, which the generator needs")
  return folder


def _read_scheduler(path: pathlib.Path) -> tuple[BetaTable, str, Spacing]:
  """Reads a scheduler's config: the table of betas, the prediction type, and the spacing of the timesteps."""
  fields = _scheduler_fields(path, _SETTINGS)
  kind = pretrained.read_json(path).get("_class_name", "DDIMScheduler")
  if kind not in (known := (*_LEADING, *_LINSPACE)):
    raise UserError(f"{path} describes a {kind!r}, not one of {', '.join(known)}")
  stated = fields.pop("clean")
  clean = _CLEAN.get(kind, True) if stated is None or kind not in _CLEAN else stated
  default = "leading" if kind in _LEADING else "linspace"
  spacing = Spacing(fields.pop("spacing") or default, fields.pop("offset"), clean)
  predicts = _PREDICTS[fields.pop("predicts")]
  try:
    return BetaTable(**fields), predicts, spacing
  except (TypeError, ValueError) as error:
    raise UserError(f"{path}: {error}") from error


def _read_thresholds(path: pathlib.Path) -> dict[str, Any]:
  """Reads the fields of `Sampling` that the scheduler's config of a pixel stage determines."""
  fields = _scheduler_fields(path, _THRESHOLDS)
  is_dynamic, clips = fields.pop("is_dynamic"), fields.pop("clips")
  if not is_dynamic and not clips:
    raise UserError(f"{path}: neither thresholding nor clip_sample is true, but one must be for pixels")
  fields["variance"] = _VARIANCES[fields["variance"]]
  return fields if is_dynamic else fields | {"threshold_percentile": 0.0, "threshold_max": None}


def _scheduler_fields(path: pathlib.Path, settings: Sequence[Setting]) -> dict[str, Any]:
  """Reads some settings of a scheduler's config, by our names."""
  if not path.is_file():
    raise FileNotFoundError(f"{path.parent} holds no {path.name}")
  config = pretrained.read_json(path)
  try:
    return read_settings(settings, config)
  except (TypeError, ValueError) as error:
    raise UserError(f"{path}: {error}") from error


def _write_scheduler(stage: Stage) -> dict[str, Any]:
  spacing = stage.spacing
  return {
    **_write_table(stage.schedule),
    "prediction_type": next(theirs for theirs, ours in _PREDICTS.items() if ours == stage.predicts),
    "timestep_spacing": spacing.name,
    "steps_offset": spacing.offset,
  }


def _write_table(table: BetaTable) -> dict[str, Any]:
  return {
    "beta_schedule": table.name,
    "beta_start": table.start,
    "beta_end": table.end,
    "num_train_timesteps": table.steps,
  }


def _write_thresholds(stage: Stage) -> dict[str, Any]:
  """The settings that `_read_thresholds` reads."""
  sampling = stage.sampling
  variance = next(theirs for theirs, ours in _VARIANCES.items() if ours == sampling.variance)
  if not sampling.threshold_percentile:
    return {"clip_sample": True, "variance_type": variance}
  thresholds = {"dynamic_thresholding_ratio": sampling.threshold_percentile, "sample_max_value": sampling.threshold_max}
  return {"thresholding": True, **thresholds, "variance_type": variance}
