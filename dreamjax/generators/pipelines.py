"""Stable Diffusion and SDXL as folders in the layout of diffusers' pipelines.

Such a folder holds `model_index.json`, which names the parts, and each part in a folder of its own: "unet", "vae",
"text_encoder" and "tokenizer" (SDXL's has a second of both), and "scheduler". What else is there, such as a safety
checker, is left alone.

Of the scheduler, what the network was trained with is read: the table of betas and what is predicted. By which sampler
pictures are drawn is for `Sampling` to say, and is DDIM by default; only the spacing of its timesteps is the folder's.
"""

import json
import pathlib
from typing import Any, NamedTuple

from dreamjax.convert import pretrained
from dreamjax.convert.table import Setting, read_settings
from dreamjax.data.tokenizer import Tokenizer, Tokenizers
from dreamjax.diffusion.schedules import Table
from dreamjax.generators.cascade import AUTOENCODER, Cascade, Sampling, Spacing, Stage
from dreamjax.generators.generator import TEXT
from dreamjax.models.autoencoder import Autoencoder
from dreamjax.models.clip import PromptEncoder, TextTower
from dreamjax.models.latent_unet import LatentUNet

BASE = "base"  # the only stage's name
SCHEDULER = "scheduler/scheduler_config.json"


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


KNOWN = {
  "StableDiffusionPipeline": _Pipeline((("text_encoder", "tokenizer"),), False, 7.5),
  "StableDiffusionXLPipeline": _Pipeline((("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")), True, 5.0),
}

_SETTINGS = (
  Setting("beta_schedule", "linear", "name"),
  Setting("beta_start", 0.0001, "start"),
  Setting("beta_end", 0.02, "end"),
  Setting("num_train_timesteps", 1000, "steps"),
  Setting("prediction_type", "epsilon", "predicts", known=("epsilon", "v_prediction", "sample")),
  Setting("timestep_spacing", "leading", "spacing"),
  Setting("steps_offset", 0, "offset"),
  Setting("set_alpha_to_one", True, "clean"),
  Setting("trained_betas", None, known=(None,)),
  Setting("rescale_betas_zero_snr", False, known=(False,)),
)
_PREDICTS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def load(folder: pathlib.Path, index: dict[str, Any]) -> tuple[Cascade, dict[str, Any]]:
  """A pipeline's description and its parameters; see `files.load`.

  Args:
    folder: where it lies.
    index: what its `model_index.json` holds.
  """
  pipeline = KNOWN[index["_class_name"]]
  zero = bool(index.get("force_zeros_for_empty_prompt", len(pipeline.texts) > 1))
  unet, unet_params = _part(folder, "unet", LatentUNet)
  autoencoder, autoencoder_params = _part(folder, "vae", Autoencoder)
  found = [_part(folder, name, TextTower) for name, _ in pipeline.texts]
  towers, tower_params = zip(*found, strict=True)
  encoder = PromptEncoder(tuple(towers), pipeline.penultimate, empty_is_zero=zero)
  tokenizers = []
  for (_, name), tower in zip(pipeline.texts, towers, strict=True):
    _existing(folder / name)
    tokenizers.append(Tokenizer.load(folder / name, tower.length))
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
  params = {
    TEXT: {f"towers_{i}": tree for i, tree in enumerate(tower_params)},
    BASE: unet_params,
    AUTOENCODER: autoencoder_params,
  }
  return Cascade(folder.resolve().name, encoder, Tokenizers(tokenizers), (stage,), autoencoder), params


def save(folder: pathlib.Path, cascade: Cascade, params: dict[str, Any], dtype: Any) -> None:
  """Writes what `load` reads, and so does `from_pretrained` of diffusers; see `files.save`."""
  encoder = cascade.text_encoder
  stage = cascade.stages[0]
  count = len(encoder.towers)
  name, pipeline = next((name, some) for name, some in KNOWN.items() if len(some.texts) == count)
  pretrained.save(folder / "unet", stage.unet, params[stage.name], dtype)
  pretrained.save(folder / "vae", cascade.autoencoder, params[AUTOENCODER], dtype)
  index: dict[str, Any] = {"_class_name": name, "_diffusers_version": "0.35.0"}
  for i, (texts, tokens) in enumerate(pipeline.texts):
    tower = encoder.towers[i]
    pretrained.save(folder / texts, tower, params[TEXT][f"towers_{i}"], dtype)
    cascade.tokenizer.all[i].inner.save_pretrained(folder / tokens)
    kind = "CLIPTextModel" if tower.projection is None else "CLIPTextModelWithProjection"
    index |= {texts: ["transformers", kind], tokens: ["transformers", "CLIPTokenizer"]}
  index |= {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
  }
  if count == 1:
    nothing = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    index |= nothing
  else:
    index |= {"force_zeros_for_empty_prompt": encoder.empty_is_zero}
  (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
  (folder / SCHEDULER).parent.mkdir(exist_ok=True)
  (folder / SCHEDULER).write_text(json.dumps(_write_scheduler(stage), indent=2) + "\n")


def _part(folder: pathlib.Path, name: str, kind: type) -> tuple[Any, dict[str, Any]]:
  return pretrained.load(_existing(folder / name), kinds=(kind,))


def _existing(folder: pathlib.Path) -> pathlib.Path:
  if not folder.is_dir():
    raise FileNotFoundError(f"there is no folder {folder}, which the generator needs")
  return folder


def _read_scheduler(path: pathlib.Path) -> tuple[Table, str, Spacing]:
  """The table, what is predicted, and the spacing."""
  if not path.is_file():
    raise FileNotFoundError(f"{path.parent} holds no {path.name}")
  try:
    fields = read_settings(_SETTINGS, json.loads(path.read_text()))
    spacing = Spacing(fields.pop("spacing"), fields.pop("offset"), fields.pop("clean"))
    predicts = _PREDICTS[fields.pop("predicts")]
    return Table(**fields), predicts, spacing
  except (TypeError, ValueError) as error:
    raise ValueError(f"{path}: {error}") from error


def _write_scheduler(stage: Stage) -> dict[str, Any]:
  table, spacing = stage.schedule, stage.spacing
  said = next(theirs for theirs, ours in _PREDICTS.items() if ours == stage.predicts)
  return {
    "_class_name": "DDIMScheduler",
    "beta_schedule": table.name,
    "beta_start": table.start,
    "beta_end": table.end,
    "num_train_timesteps": table.steps,
    "prediction_type": said,
    "timestep_spacing": spacing.name,
    "steps_offset": spacing.offset,
    "set_alpha_to_one": spacing.clean,
    "clip_sample": False,
  }
