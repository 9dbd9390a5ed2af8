"""Teaches a generator one subject from a few photos, by DreamBooth.

command    dreamjax dreambooth --images photos --class-noun dog --workdir runs/dog
           dreamjax dreambooth --images photos --class-noun dog --model DIR --config FILE:paper --workdir runs/dog
hardware   2 cores of an AMD EPYC (toybox, captioned)
minutes    4.3 of ./launch/demo.sh, which learns a toy and samples images of it, compilation included
result     toybox-cascade, captioned, ten toys: retrieval@1 of the toy among 32 of its class 0.76 (0.64 to 0.87)

The variants paper, sd15, sdxl, inversion and if-xl are not measured in training; `dreamjax plan` says what they need.

toybox     the default
captioned  toybox for photos with captions, which are the prompts of half of the examples
paper      all weights, 1,000 updates
sd15       Stable Diffusion 1: the recipe of all weights that diffusers publishes, with class images (5e-6, 800 updates
           of one photo and one image of the class)
sdxl       SDXL: diffusers' recipe of low-rank updates of its attention (1e-4, rank 4, 500 updates of four photos,
           without class images)
inversion  either: textual inversion with the numbers of diffusers (2e-3, 3,000 updates of four photos). Only the
           embedding of [V] is learned, from one prompt, "a [V] class", where diffusers draws among templates
if-xl      two stages of DeepFloyd IF, --model I+II: diffusers' recipe of low-rank updates of their attention (5e-6
           times the batch size, 1,200 updates of four photos, and 1e-6, 2,000). But the low-resolution images of the
           second stage are the photos, with next to no noise, where diffusers' script takes the noisy photos
"""

import ml_collections

from dreamjax.methods.dreambooth import default_config


def get_config(which: str = "toybox") -> ml_collections.ConfigDict:
  """Returns the recipe: "toybox", "captioned", "paper", "sd15", "sdxl", "inversion", "if-xl"."""
  config = default_config(("base",) if which in ("sd15", "sdxl", "inversion") else ("base", "sr"))
  if which in ("toybox", "captioned"):
    config.captions = 0.5 if which == "captioned" else 0.0
    config.wordings = ("a [V] {noun}", "a photo of a [V] {noun}", "a photograph of a [V] {noun}")
    config.rare = (0.5, 1.0)  # the toybox's vocabulary is small: its words are ordinary ones up to the middle
    config.prior.count = 32
    base, sr = config.stages.base, config.stages.sr
    base.steps, base.optimizer.learning_rate, base.optimizer.decay = 300, 5e-4, "cosine"
    sr.steps, sr.batch_size, sr.prior_batch_size, sr.optimizer.learning_rate = 40, 4, 2, 1e-4
    config.prior.sampling.base.steps = 30
    config.prior.sampling.sr.steps = 5
  elif which == "sd15":
    base = config.stages.base
    base.steps, base.batch_size, base.prior_batch_size, base.optimizer.learning_rate = 800, 1, 1, 5e-6
    config.prior.sampling.base.update({"sampler": "ddim", "steps": 50})
  elif which == "sdxl":
    base = config.stages.base
    base.steps, base.batch_size, base.prior_batch_size, base.optimizer.learning_rate = 500, 4, 0, 1e-4
    base.kind, base.rank, base.alpha, base.pattern = "lora", 4, 4.0, "(self|cross|attention)/(query|key|value|out)$"
    config.prior.kind = "none"
  elif which == "inversion":
    config.train_text, config.text_rate = "embeddings", 1.0
    base = config.stages.base
    base.kind, base.steps, base.batch_size, base.prior_batch_size, base.optimizer.learning_rate = (
      "none",
      3000,
      4,
      0,
      2e-3,
    )
    config.prior.kind = "none"
  elif which == "if-xl":
    for stage, steps, rate in ((config.stages.base, 1200, 2e-5), (config.stages.sr, 2000, 1e-6)):
      stage.steps, stage.batch_size, stage.prior_batch_size, stage.optimizer.learning_rate = steps, 4, 0, rate
      stage.kind, stage.rank, stage.alpha = "lora", 4, 4.0
      stage.pattern, stage.augmentation_levels = "attention/(query|key|value|text_key|text_value|out)$", (1e-3, 1e-3)
    config.prior.kind = "none"
  elif which != "paper":
    raise ValueError(f"which is toybox, captioned, paper, sd15, sdxl, inversion or if-xl, not {which!r}")
  if which in ("sd15", "sdxl", "inversion", "if-xl"):
    for stage in config.stages.values():
      stage.optimizer.b2 = 0.999  # diffusers' scripts leave it where PyTorch has it
  return config
