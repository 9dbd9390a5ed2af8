"""Stable Diffusion, SDXL, DeepFloyd IF and aMUSEd as folders in the layout of diffusers' pipelines.

Such a folder holds `model_index.json`, which names the parts, and each part in a folder of its own: "unet", "vae",
"text_encoder" and "tokenizer" (SDXL's has a second of both), and "scheduler". What else is there, such as a safety
checker, is left alone.

Of the scheduler, what the network was trained with is read: the table of betas and what is predicted. By which sampler
images are drawn is for `Sampling` to say, and is DDIM by default; only the spacing of its timesteps is the folder's,
whose class decides what it is where it is left out. DDIM is what EulerDiscreteScheduler, SDXL's, computes as well.

Each stage of IF is a folder by itself, with "text_encoder", "tokenizer", "unet" and "scheduler", and where it enlarges
images "image_noising_scheduler". Together they are a cascade behind the first one's text encoder. Their sampler is
the ancestral one, with the thresholds and the variance that the scheduler says.

aMUSEd is a "transformer" and a "vqvae" behind one tower of CLIP. Its pipeline lets the temperature fall from 2 in the
first step to 0 in the last one (`Decoding.starts_at_temperature`). Guidance of g is a lambda_b of g - 1.
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

BASE = "base"  # the only stage's name
SCHEDULER, NOISE = "scheduler/scheduler_config.json", "image_noising_scheduler/scheduler_config.json"


class _Pipeline(NamedTuple):
  """A class of pipelines.

  Attributes:
    texts: folders of the text encoders, each with that of its tokenizer.
    penultimate: see `PromptEncoder`.
    guidance: by default.
  """

  texts: tuple[tuple[str, str], ...]
  penultimate: bool
  guidance: float


_TOWER = (("text_encoder", "tokenizer"),)
_LATENT = {
  "StableDiffusionPipeline": _Pipeline(_TOWER, False, 7.5),
  "StableDiffusionXLPipeline": _Pipeline((*_TOWER, ("text_encoder_2", "tokenizer_2")), True, 5.0),
}
_BASE, _LARGER = "IFPipeline", "IFSuperResolutionPipeline"
_TOKENS = "AmusedPipeline"
KNOWN = (*_LATENT, _BASE, _LARGER, _TOKENS)

# As the pipelines of IF have it: how long texts are; by default the steps and the guidance, of a base stage and of one
# that enlarges, and the timestep whose noise is on what is enlarged.
_IF_LENGTH, _IF_STEPS, _IF_GUIDANCE, _IF_NOISE = 77, (100, 50), (7.0, 4.0), 250

# As aMUSEd's pipeline has it: steps, the temperature of the first one, guidance, and the aesthetic score.
_TOKEN_STEPS, _TOKEN_TEMPERATURE, _TOKEN_GUIDANCE, _AESTHETIC_SCORE = 12, 2.0, 10.0, 6.0

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
# Diffusers' classes, by their spacing where none is said; and `set_alpha_to_one` of those that ask for it: the last
# step of others always leads to a clean image, whatever their configs have inherited.
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
  """The description and the parameters of a pipeline, or of the stages of IF; see `files.load`.

  Args:
    folders: where they lie, the base stage's first.
    indices: what their `model_index.json` hold.
    dtype: of the parameters.
    put: where the parameters go.

  Raises:
    ValueError: for folders that are no cascade together.
  """
  first, *larger = (index["_class_name"] for index in indices)
  if first == _LARGER:
    raise ValueError(f"{folders[0]} only enlarges images: name it behind the folder of an {_BASE}, joined by +")
  for folder, kind in zip(folders[1:], larger, strict=True):
    if first != _BASE or kind != _LARGER:
      raise ValueError(f"{folder} holds {kind}, which cannot follow {first} in {folders[0]}")
  read = functools.partial(network, dtype=dtype, put=put)
  if first == _BASE:
    return _load_if(folders, read)
  return _load_tokens(folders[0], read) if first == _TOKENS else _load_latent(folders[0], indices[0], read)


#: read(folder, kind, place): `network`, of which the rest is known.
_Read = Callable[[pathlib.Path, type, str], tuple[Any, dict[str, Any]]]


def _load_if(folders: Sequence[pathlib.Path], read: _Read) -> tuple[Cascade, dict[str, Any]]:
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
  pipeline = _LATENT[index["_class_name"]]
  zero = bool(index.get("force_zeros_for_empty_prompt", len(pipeline.texts) > 1))
  unet, unet_params = read(folder / "unet", LatentUNet, BASE)
  autoencoder, autoencoder_params = read(folder / "vae", Autoencoder, AUTOENCODER)
  encoder, tokenizer, text_params = _read_towers(folder, pipeline.texts, pipeline.penultimate, zero, read)
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


def _load_tokens(folder: pathlib.Path, read: _Read) -> tuple[Masked, dict[str, Any]]:
  transformer, transformer_params = read(folder / "transformer", UViT, f"{BASE}/transformer")
  vqgan, vqgan_params = read(folder / "vqvae", VQGAN, f"{BASE}/vqgan")
  encoder, tokenizer, text_params = _read_towers(folder, _TOWER, penultimate=True, empty_is_zero=False, read=read)
  fields = _scheduler_fields(folder / SCHEDULER, _MASKING)
  if fields["mask"] != transformer.mask_id:
    problem = f"mask_token_id is {fields['mask']}, but the transformer's is {transformer.mask_id}"
    raise ValueError(f"{folder / SCHEDULER}: {problem}")
  side = transformer.side * vqgan.factor
  decoding = Decoding(_TOKEN_STEPS, _TOKEN_TEMPERATURE, lambda_b=_TOKEN_GUIDANCE - 1, starts_at_temperature=True)
  stage = TokenStage(BASE, transformer, vqgan, decoding, (side, side, 0, 0, _AESTHETIC_SCORE), positive=True)
  params = {TEXT: text_params, BASE: {"transformer": transformer_params, "vqgan": vqgan_params}}
  return Masked(folder.resolve().name, encoder, tokenizer, (stage,)), params


def _read_towers(
  folder: pathlib.Path, texts: Sequence[tuple[str, str]], penultimate: bool, empty_is_zero: bool, read: _Read
) -> tuple[PromptEncoder, Tokenizers, dict[str, Any]]:
  """The text encoder of the towers in some folders, their tokenizers, and its parameters."""
  places = [f"{TEXT}/towers_{i}" for i in range(len(texts))]
  found = [read(folder / name, TextTower, place) for (name, _), place in zip(texts, places, strict=True)]
  towers, params = zip(*found, strict=True)
  tokenizers = [
    Tokenizer.load(_existing(folder / name), tower.length) for (_, name), tower in zip(texts, towers, strict=True)
  ]
  encoder = PromptEncoder(tuple(towers), penultimate, empty_is_zero)
  return encoder, Tokenizers(tokenizers), {f"towers_{i}": tree for i, tree in enumerate(params)}


def writes(generator: Generator) -> bool:
  """Whether `save` writes a generator: whether it reads texts as Stable Diffusion, SDXL and aMUSEd do."""
  return isinstance(generator.text_encoder, PromptEncoder)


def save(folder: pathlib.Path, generator: Cascade | Masked, params: dict[str, Any], dtype: Any) -> None:
  """Writes what `load` reads, and so does `from_pretrained` of diffusers; see `files.save`."""
  encoder, (stage,) = generator.text_encoder, generator.stages
  own = params[stage.name]
  if isinstance(generator, Masked):
    name, texts, more = _TOKENS, _TOWER, {}
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
  """Whether a generator is a cascade whose networks are those of DeepFloyd IF, which `save_stages` writes."""
  return isinstance(generator, Cascade) and all(
    isinstance(stage.unet, UNet)
    and isinstance(stage.schedule, BetaTable)
    and write_unet(stage.unet).get("_class_name") is not None
    for stage in generator.stages
  )


def save_stages(folder: pathlib.Path, cascade: Cascade, params: dict[str, Any], dtype: Any) -> list[pathlib.Path]:
  """Writes the stages of DeepFloyd IF into folders of their names, which `load` and diffusers read.

  The text encoder is in the first one alone: diffusers' pipelines take it from one to the next.
  """
  written = []
  for stage in cascade.stages:
    own = folder / stage.name
    index: dict[str, Any] = {
      "_class_name": _LARGER if stage.is_super_resolution else _BASE,
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


def network(folder: pathlib.Path, kind: type, place: str, *, dtype: Any, put: Put) -> tuple[Any, dict[str, Any]]:
  """A network of a generator, at this place in the generator's parameters; see `files.load`."""
  return pretrained.load(_existing(folder), dtype, kinds=(kind,), put=lambda path, x: put(f"{place}/{path}", x))


def _existing(folder: pathlib.Path) -> pathlib.Path:
  if not folder.is_dir():
    raise FileNotFoundError(f"there is no folder {folder}, which the generator needs")
  return folder


def _read_scheduler(path: pathlib.Path) -> tuple[BetaTable, str, Spacing]:
  """The table, what is predicted, and the spacing."""
  fields = _scheduler_fields(path, _SETTINGS)
  kind = pretrained.read_json(path).get("_class_name", "DDIMScheduler")
  if kind not in (known := (*_LEADING, *_LINSPACE)):
    raise ValueError(f"{path} describes a {kind!r}; the known ones are {', '.join(known)}")
  said = fields.pop("clean")
  clean = _CLEAN.get(kind, True) if said is None or kind not in _CLEAN else said
  usual = "leading" if kind in _LEADING else "linspace"
  spacing = Spacing(fields.pop("spacing") or usual, fields.pop("offset"), clean)
  predicts = _PREDICTS[fields.pop("predicts")]
  try:
    return BetaTable(**fields), predicts, spacing
  except (TypeError, ValueError) as error:
    raise ValueError(f"{path}: {error}") from error


def _read_thresholds(path: pathlib.Path) -> dict[str, Any]:
  """What the scheduler of a stage of pixels says of its sampling."""
  fields = _scheduler_fields(path, _THRESHOLDS)
  is_dynamic, clips = fields.pop("is_dynamic"), fields.pop("clips")
  if not is_dynamic and not clips:
    raise ValueError(f"{path}: neither thresholding nor clip_sample is true, but pixels have bounds")
  fields["variance"] = _VARIANCES[fields["variance"]]
  return fields if is_dynamic else fields | {"threshold_percentile": 0.0, "threshold_max": None}


def _scheduler_fields(path: pathlib.Path, settings: Sequence[Setting]) -> dict[str, Any]:
  if not path.is_file():
    raise FileNotFoundError(f"{path.parent} holds no {path.name}")
  found = pretrained.read_json(path)
  try:
    return read_settings(settings, found)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{path}: {error}") from error


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
  """What `_read_thresholds` reads."""
  sampling = stage.sampling
  variance = next(theirs for theirs, ours in _VARIANCES.items() if ours == sampling.variance)
  if not sampling.threshold_percentile:
    return {"clip_sample": True, "variance_type": variance}
  thresholds = {"dynamic_thresholding_ratio": sampling.threshold_percentile, "sample_max_value": sampling.threshold_max}
  return {"thresholding": True, **thresholds, "variance_type": variance}
