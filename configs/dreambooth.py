"""Teaches a generator one subject from a few photos, by DreamBooth.

dreamjax dreambooth --images photos --class-noun dog --model DIR --workdir runs/dog
dreamjax dreambooth --images photos --class-noun dog --model DIR --workdir runs/dog --config configs/dreambooth.py:paper
"""

import ml_collections

from dreamjax.methods.dreambooth import default_config


def get_config(which: str = "toybox") -> ml_collections.ConfigDict:
  """The recipe for a generator: "toybox", or "paper" for the paper's, with all its 1,000 updates of all weights."""
  config = default_config()
  if which == "toybox":
    config.rare = (0.5, 1.0)  # the toybox's vocabulary is small: its words are ordinary ones up to the middle
    config.prior.count = 32
    base, sr = config.stages.base, config.stages.sr
    base.steps, base.optimizer.learning_rate, base.optimizer.decay = 300, 3e-4, "cosine"
    sr.steps, sr.rows, sr.prior_rows, sr.optimizer.learning_rate = 60, 4, 2, 1e-4
    config.prior.sampling.base.steps = 30
    config.prior.sampling.sr.steps = 10
  elif which != "paper":
    raise ValueError(f"which is toybox or paper, not {which!r}")
  return config
