"""Trains the toybox's own encoders, each in its turn.

dreamjax pretrain --config configs/pretrain_encoders.py:tokenizer --workdir runs/tokenizer
dreamjax pretrain --config configs/pretrain_encoders.py:t5 --workdir runs/t5
dreamjax pretrain --config configs/pretrain_encoders.py:probe --workdir runs/probe
dreamjax pretrain --config configs/pretrain_encoders.py:clip --workdir runs/clip
dreamjax pretrain --config configs/pretrain_encoders.py:dino --workdir runs/dino
"""

import ml_collections

from dreamjax.train.optimizer import default_config as optimizer


def _base() -> ml_collections.ConfigDict:
  """What all have in common: the pictures, drawn once and shared by all runs."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.albums = "runs/albums"
  config.train = {"train": 49152, "styles": 8192}  # the judges know the held-out styles; no generator may
  config.held_out = {"subjects": 4096}
  config.resolution = 64
  config.tokenizer = "runs/tokenizer/model"
  config.length = 64
  config.save_every = 500
  config.log_every = 50
  config.optimizer = optimizer()
  return config


def get_config(which: str = "probe") -> ml_collections.ConfigDict:
  """The config of one encoder."""
  config = _base()
  config.task = which
  if which == "tokenizer":
    config.size = 3000
    config.captions = 20000
  elif which == "t5":
    config.model = {"width": 160, "head_width": 32, "heads": 5, "mlp": 320, "depth": 3}
    config.length, config.hidden, config.rare = 36, 4, 0.2
    config.batch, config.steps = 96, 3000
    config.optimizer.learning_rate = 2e-3
  elif which == "probe":
    config.model = {"image": 64, "widths": (32, 64, 96, 128), "blocks": 1}
    config.augment = {}
    config.batch, config.steps = 128, 4500
    config.optimizer.learning_rate = 2e-3
  elif which == "clip":
    config.model = {
      "vision": {"image": 64, "patch": 8, "width": 128, "depth": 6, "heads": 2, "mlp": 512, "projection": 128},
      "text": {"width": 128, "depth": 3, "heads": 2, "mlp": 384, "projection": 128},
    }
    config.augment = {"flip": False, "blur": 2.0}
    config.start = "runs/dino/model"  # "" to start from nothing
    config.length = 36
    config.batch, config.steps = 128, 3000
    config.optimizer.learning_rate = 1e-3
  elif which == "dino":
    config.model = {"image": 64, "patch": 8, "width": 128, "depth": 6, "heads": 2, "mlp": 512}
    config.augment = {"scale": (0.6, 1.0), "blur": 2.0, "light": 0.1}
    config.projection, config.temperature, config.classes = 128, 0.1, 5
    config.only = {"style": "photo"}
    config.batch, config.steps = 256, 2500
    config.optimizer.learning_rate = 1e-3
  else:
    raise ValueError(f"which is one of tokenizer, t5, probe, clip and dino, not {which!r}")
  return config
