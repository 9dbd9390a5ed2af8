"""Teaches a generator one subject from a few photos, by DreamBooth.

dreamjax dreambooth --images photos --class-noun dog --model DIR --workdir runs/dog
dreamjax dreambooth --images photos --class-noun dog --model DIR --workdir runs/dog --config configs/dreambooth.py:paper

sd15 and sdxl are for folders of Stable Diffusion in the layout of diffusers: the first is the recipe of all weights
that diffusers publishes for Stable Diffusion 1 with class images (5e-6, 800 updates of one photo and one picture of the
class), the second the one of low-rank updates of SDXL's attention (1e-4, rank 4, 500 updates of four photos, without
class images).
"""

import ml_collections

from dreamjax.methods.dreambooth import default_config


def get_config(which: str = "toybox") -> ml_collections.ConfigDict:
  """The recipe: "toybox"; "paper", the paper's 1,000 updates of all weights of both stages; "sd15" or "sdxl"."""
  config = default_config(("base",) if which in ("sd15", "sdxl") else ("base", "sr"))
  if which == "toybox":
    config.rare = (0.5, 1.0)  # the toybox's vocabulary is small: its words are ordinary ones up to the middle
    config.prior.count = 32
    base, sr = config.stages.base, config.stages.sr
    base.steps, base.optimizer.learning_rate, base.optimizer.decay = 300, 3e-4, "cosine"
    sr.steps, sr.rows, sr.prior_rows, sr.optimizer.learning_rate = 60, 4, 2, 1e-4
    config.prior.sampling.base.steps = 30
    config.prior.sampling.sr.steps = 10
  elif which == "sd15":
    base = config.stages.base
    base.steps, base.rows, base.prior_rows, base.optimizer.learning_rate = 800, 1, 1, 5e-6
    config.prior.sampling.base.update({"sampler": "ddim", "steps": 50})
  elif which == "sdxl":
    base = config.stages.base
    base.steps, base.rows, base.prior_rows, base.optimizer.learning_rate = 500, 4, 0, 1e-4
    base.kind, base.rank, base.alpha, base.pattern = "lora", 4, 4.0, "(self|cross|attention)/(query|key|value|out)$"
    config.prior.kind = "none"
  elif which != "paper":
    raise ValueError(f"which is toybox, paper, sd15 or sdxl, not {which!r}")
  return config
