"""Trains the parts of toybox-muse, each by itself.

dreamjax pretrain --config configs/pretrain_muse.py:vqgan --workdir runs/vqgan

The VQGAN comes first: what is trained behind it sees its tokens. The first run draws the album of pictures.
"""

import ml_collections

from dreamjax.train.optimizer import default_config as optimizer


def get_config(which: str = "vqgan") -> ml_collections.ConfigDict:
  """The config of one part."""
  if which != "vqgan":
    raise ValueError(f"which is vqgan, not {which!r}")
  config = ml_collections.ConfigDict()
  config.task, config.seed = which, 0
  config.start = ""  # the folder of a model to go on from; "" for nothing
  config.albums, config.resolution, config.view = "runs/albums_128", 128, {}
  config.train, config.held_out = {"train": 12288}, {"subjects": 256}
  config.model = {
    "widths": (48, 96), "blocks": 1, "latent": 96, "embedding": 32, "codebook": 1024, "patch": 4, "groups": 8,
  }  # fmt: skip
  config.discriminator = {"widths": (32, 64, 128), "groups": 8}
  config.perceptual = "dreamjax/toybox/weights/dino"
  config.likeness, config.adversarial, config.adversarial_from = 0.05, 0.1, 3000
  config.commitment, config.entropy, config.temperature = 0.25, 0.02, 0.1
  config.batch, config.pieces, config.steps, config.judged = 16, 2, 6000, 256
  config.log_every, config.save_every = 50, 500
  config.optimizer = optimizer()
  config.optimizer.learning_rate, config.optimizer.ema = 1e-3, 0.999
  return config
