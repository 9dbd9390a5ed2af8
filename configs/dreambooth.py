"""Teaches a generator one subject from a few photos, by DreamBooth.

dreamjax dreambooth --images photos --class-noun dog --model DIR --workdir runs/dog
dreamjax dreambooth --images photos --class-noun dog --model DIR --workdir runs/dog --config configs/dreambooth.py:paper

captioned is toybox for photos that have captions, which half of the rows are told. sd15 and sdxl are for folders of
Stable Diffusion in the layout of diffusers: the first is the recipe of all weights that diffusers publishes for Stable
Diffusion 1 with class images (5e-6, 800 updates of one photo and one image of the class), the second the one of
low-rank updates of SDXL's attention (1e-4, rank 4, 500 updates of four photos, without class images). inversion, for
either, is textual inversion with the numbers of diffusers (2e-3, 3,000 updates of four photos): only what [V] stands
for is learned, from one prompt, "a [V] class", where theirs draws among templates. if-xl is for two stages of DeepFloyd
IF, --model I+II, and is diffusers' of low-rank updates of their attention, too (5e-6 times the batch, 1,200 updates of
four photos, and 1e-6, 2,000), but for what the second stage sees: the photos made small, with next to no noise, where
diffusers' script shows it the noisy photos themselves.
"""

import ml_collections

from dreamjax.methods.dreambooth import default_config


def get_config(which: str = "toybox") -> ml_collections.ConfigDict:
  """The recipe: "toybox", "captioned", "paper" (all weights, 1,000 updates), "sd15", "sdxl", "inversion", "if-xl"."""
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
