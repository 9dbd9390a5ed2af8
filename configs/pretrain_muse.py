"""Trains the parts of toybox-muse, each by itself.

dreamjax pretrain --config configs/pretrain_muse.py:autoencoder --workdir runs/autoencoder
dreamjax pretrain --config configs/pretrain_muse.py:vqgan_small --workdir runs/vqgan_small
dreamjax pretrain --config configs/pretrain_muse.py:vqgan --workdir runs/vqgan
dreamjax pretrain --config configs/pretrain_muse.py:base --workdir runs/muse_base
dreamjax pretrain --config configs/pretrain_muse.py:sr --workdir runs/muse_sr
dreamjax pretrain --config configs/pretrain_muse.py:muse --workdir runs/muse

The VQGANs come first, each from the one before, the first still without a codebook: what is trained behind them sees
their tokens. The last command joins both transformers into the folder runs/muse/model, a generator. The first run on
pictures of a size draws their album.

The weights of toybox-muse were trained so. The autoencoder, the small VQGAN and the first 300 steps of the large one,
with 1,024 words, are a CPU's work of some hours. The rest was done in ten minutes on an NVIDIA H100, several trainings
at once, on 98,304 small pictures and 16,384 large ones drawn there, with --config.resident=True and, for the
transformers, --config.model.dtype=bfloat16 and --config.optimizer.learning_rate=2e-3: the small VQGAN 2,500 steps of 64
pictures (70 to 140 a second; from 19.9 to 21.1 dB), the large one 2,500 of 32 with 4,096 words, whose vectors then gave
way to 8,192 clusters, and 4,000 more (80 to 105 a second; 24.8 dB of what it draws in its album, 99 % of the words in
use); the base transformer 4,480 steps of 512 out of the 6,400 that its learning rate was to fall over (23 to 52 a
second), the one of super-resolution 2,600 of 128 (23 to 30 a second). The first update took a minute to compile.
"""

import ml_collections

from dreamjax.train.optimizer import default_config as optimizer


def get_config(which: str = "autoencoder") -> ml_collections.ConfigDict:
  """The config of one part."""
  config = ml_collections.ConfigDict()
  if which == "muse":
    config.task, config.text_encoder = "join", "dreamjax/toybox/weights/t5"
    config.stages = ("runs/muse_base/model", "runs/muse_sr/model")
    return config
  config.seed = 0
  config.start = ""  # the folder of a model to go on from; "" for nothing
  config.albums, config.resolution, config.view = "runs/albums_128", 128, {}
  config.train, config.held_out = {"train": 12288}, {"subjects": 256}
  config.resident = False  # whether the pictures lie in the device's memory, for accelerators
  config.log_every, config.save_every, config.judged = 50, 500, 256
  config.optimizer = optimizer()
  config.optimizer.kind, config.optimizer.learning_rate, config.optimizer.ema = "muon", 1e-3, 0.999
  if which in ("autoencoder", "vqgan_small", "vqgan"):
    return _vqgan(config, which)
  if which not in ("base", "sr"):
    raise ValueError(f"which is autoencoder, vqgan_small, vqgan, base, sr or muse, not {which!r}")
  config.task, config.stage, config.name = "tokens", which, "toybox-muse"
  config.text_encoder, config.length = "dreamjax/toybox/weights/t5", 36
  config.least, config.smoothing, config.drop = 0.0, 0.1, 0.1
  # The world of toybox-cascade's base stage: see configs/pretrain.py.
  config.view = {"views": 0.4, "light": 0.4, "layout": 0.3, "clutter": 0.4, "fill": (0.72, 0.88)}
  if which == "base":
    config.albums, config.resolution = "runs/albums_calm", 64
    config.train, config.held_out = {"train": 49152}, {"subjects": 4096}
    config.vqgan, config.image, config.low_vqgan, config.low_image = "runs/vqgan_small/model", 64, "", 0
    config.model = {"width": 192, "heads": 6, "mlp": 768, "depth": 8, "dtype": "float32"}
    config.decoding = {"steps": 18, "temperature": 4.5, "lambda_a": 2.0, "lambda_b": 3.0, "rises": False}
    config.batch, config.steps = 64, 20000
  else:
    config.albums = "runs/albums_calm_128"
    config.vqgan, config.image = "runs/vqgan/model", 128
    config.low_vqgan, config.low_image = "runs/vqgan_small/model", 64
    config.model = {"width": 160, "heads": 5, "mlp": 640, "depth": 6, "low_depth": 2, "dtype": "float32"}
    config.decoding = {"steps": 12, "temperature": 4.5, "lambda_a": 1.0, "lambda_b": 0.0, "rises": False}
    config.batch, config.steps = 16, 10000
  config.pieces = 1
  return config


def _vqgan(config: ml_collections.ConfigDict, which: str) -> ml_collections.ConfigDict:
  """A VQGAN of pictures of 64x64 before it has a codebook, then with one, then of pictures of 128x128."""
  config.task = "vqgan"
  config.model = {
    "widths": (48, 96), "blocks": 1, "latent": 96, "embedding": 32, "codebook": 1024, "patch": 4, "groups": 8,
  }  # fmt: skip
  config.discriminator = {"widths": (32, 64, 128), "groups": 8}
  config.perceptual = "dreamjax/toybox/weights/dino"
  config.likeness, config.adversarial, config.adversarial_from = 0.02, 0.0, 0
  config.commitment, config.entropy, config.temperature = 0.25, 0.02, 0.1
  config.batch, config.pieces = 16, 1
  if which == "vqgan":
    config.start, config.quantised, config.clustered, config.steps = "runs/vqgan_small/model", True, 256, 3000
    config.model.codebook, config.likeness = 8192, 0.005
    return config
  config.albums, config.resolution = "runs/albums_calm", 64
  config.view = {"views": 0.4, "light": 0.4, "layout": 0.3, "clutter": 0.4, "fill": (0.72, 0.88)}
  config.train, config.held_out = {"train": 49152}, {"subjects": 4096}
  config.quantised, config.clustered, config.steps = False, 0, 600
  if which == "vqgan_small":
    config.start, config.quantised, config.clustered, config.steps = "runs/autoencoder/model", True, 1024, 2400
  return config
