"""Trains the toybox's own encoders, each in its turn.

dreamjax pretrain --config configs/pretrain_encoders.py:tokenizer --workdir runs/tokenizer
dreamjax pretrain --config configs/pretrain_encoders.py:t5 --workdir runs/t5
dreamjax pretrain --config configs/pretrain_encoders.py:probe --workdir runs/probe
dreamjax pretrain --config configs/pretrain_encoders.py:dino --workdir runs/dino
dreamjax pretrain --config configs/pretrain_encoders.py:clip --workdir runs/clip

The tokenizer comes first, for t5 and clip read it. The first run draws the albums of images that all share: 61,440
images, 11 minutes on 2 cores. Every run goes on where it was cut off when it is started again, and writes its model
into its workdir whenever it makes a checkpoint; the folder dreamjax/toybox/weights holds copies of these. With
--config.start=DIR a run begins with the weights of such a folder.

t5 took 50 minutes on 2 cores of a shared virtual machine. The others, on one core each of an AMD EPYC, with
XLA_FLAGS=--xla_cpu_enable_fast_math=true: probe, 2,600 steps of 64 images, 1,300 more from there at half the rate,
then 3,600 at 1.5e-3 and with less change of light, all on toys of other paint, and 3,600 at 1.5e-3 on those of today;
dino, its 1,000 steps on those of before and 1,000 more on those of today; clip, on those of before, 600 steps of 128
when its image tower began as a vision transformer, then 850, and 150 with all patches. What they measure stands in the
README.
"""

import ml_collections

from dreamjax.train.optimizer import default_config as optimizer


def _base() -> ml_collections.ConfigDict:
  """What all have in common: the images, drawn once and shared by all runs."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.albums = "runs/albums"
  config.train = {"train": 49152, "styles": 8192}  # the judges know the held-out styles; no generator may
  config.held_out = {"subjects": 4096}
  config.resolution = 64
  config.view = {}  # toybox.Dial: encoders see all that the world offers
  config.tokenizer = "runs/tokenizer/model"
  config.length = 64
  config.start = ""  # the folder of a model to go on from; "" for nothing
  config.accumulation_steps = 1
  config.save_every = 300
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
    config.batch_size, config.steps = 96, 3000
    config.optimizer.learning_rate = 2e-3
  elif which == "probe":
    config.model = {"image": 64, "widths": (32, 64, 128, 256), "blocks": 1}
    config.augment = {"blur": 1.5, "light": 0.05}
    config.batch_size, config.accumulation_steps, config.steps = 64, 8, 2600
    config.optimizer.learning_rate = 2e-3
  elif which == "clip":
    config.model = {
      "vision": {"image": 64, "patch": 8, "width": 128, "depth": 6, "heads": 2, "mlp": 512, "projection": 128},
      "text": {"width": 128, "depth": 3, "heads": 2, "mlp": 384, "projection": 128},
    }
    config.augment, config.keep = {"flip": False, "blur": 2.0}, 0.5
    config.length = 36
    config.batch_size, config.steps = 128, 850
    config.optimizer.learning_rate = 1e-3
  elif which == "dino":
    config.model = {"embedding": 128, "image": 64, "widths": (32, 64, 128, 256), "blocks": 1}
    config.augment = {"scale": (0.6, 1.0), "blur": 2.0, "light": 0.1}
    config.temperature, config.classes, config.parts = 0.1, 4, 16
    config.only = {"style": "photo"}
    config.batch_size, config.steps = 256, 1000
    config.optimizer.learning_rate = 1e-3
  else:
    raise ValueError(f"which is one of tokenizer, t5, probe, clip and dino, not {which!r}")
  return config
