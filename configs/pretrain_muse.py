"""Trains the parts of toybox-muse, each by itself.

dreamjax pretrain --config configs/pretrain_muse.py:autoencoder --workdir runs/autoencoder
dreamjax pretrain --config configs/pretrain_muse.py:vqgan_small --workdir runs/vqgan_small
dreamjax pretrain --config configs/pretrain_muse.py:vqgan --workdir runs/vqgan
dreamjax pretrain --config configs/pretrain_muse.py:base --workdir runs/muse_base
dreamjax pretrain --config configs/pretrain_muse.py:sr --workdir runs/muse_sr
dreamjax pretrain --config configs/pretrain_muse.py:muse --workdir runs/muse

The VQGANs come first, both from the autoencoder, which is the small one still without a codebook: what is trained
behind them sees their tokens. The last command joins both transformers into the folder runs/muse/model, a generator.
The first run on images of a size and a world draws their album.

The weights of toybox-muse were trained so in ten minutes on an NVIDIA H100, two or three trainings at once, on 196,608
small images, 16,384 large ones for the VQGAN and 32,768 for the transformer, drawn there; with
--config.resident=True, --config.optimizer.learning_rate=2e-3 and, for the transformers, --config.model.dtype=bfloat16.
The autoencoder took 1,000 steps of 64 images (40 a second; 25.9 dB), the small VQGAN 3,500 of 64 (45 a second; 21.3
dB, 92 % of the words in use), the large one 5,000 of 32 (35 to 70 a second; 24.8 dB, 82 %), the base transformer 6,000
of 512 (13 to 43 a second) and the one of super-resolution 3,000 of 128 (15 a second); the first update of each took a
minute or two to compile. Of the large one's 4,096 words those 578 were left out that none of 3,000 images used.

Before, there were squares of 4 pixels instead of 2, half as many words and a likeness of 0.02 in the small VQGAN, and
super-resolution was trained in the full world: of 500 captions class was found in 0.871, context in 0.914, colour in
0.924, style in 0.978. With all of this changed it is 0.967, 0.930, 0.900 and 0.988.
"""

import ml_collections

from dreamjax.train.optimizer import default_config as optimizer

# The world of toybox-cascade's base stage: see configs/pretrain.py.
CALM = {"views": 0.4, "light": 0.4, "layout": 0.3, "clutter": 0.4, "fill": (0.72, 0.88)}


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
  config.resident = False  # whether the images lie in the device's memory, for accelerators
  config.log_every, config.save_every, config.eval_examples = 50, 500, 256
  config.optimizer = optimizer()
  config.optimizer.kind, config.optimizer.learning_rate, config.optimizer.ema = "muon", 1e-3, 0.999
  if which in ("autoencoder", "vqgan_small", "vqgan"):
    return _vqgan(config, which)
  if which not in ("base", "sr"):
    raise ValueError(f"which is autoencoder, vqgan_small, vqgan, base, sr or muse, not {which!r}")
  config.task, config.stage, config.name = "tokens", which, "toybox-muse"
  config.text_encoder, config.length = "dreamjax/toybox/weights/t5", 36
  config.min_mask_ratio, config.smoothing, config.text_dropout = 0.0, 0.1, 0.1
  config.view = dict(CALM)
  if which == "base":
    config.albums, config.resolution = "runs/albums_calm", 64
    config.train, config.held_out = {"train": 49152}, {"subjects": 4096}
    config.vqgan, config.image, config.low_vqgan, config.low_image = "runs/vqgan_small/model", 64, "", 0
    config.model = {"width": 192, "heads": 6, "mlp": 768, "depth": 8, "dtype": "float32"}
    config.decoding = {"steps": 18, "temperature": 4.5, "lambda_a": 1.0, "lambda_b": 3.0, "rises": False}
    config.batch_size, config.steps = 64, 20000
  else:
    config.albums = "runs/albums_calm_128"
    config.vqgan, config.image = "runs/vqgan/model", 128
    config.low_vqgan, config.low_image = "runs/vqgan_small/model", 64
    config.model = {"width": 160, "heads": 5, "mlp": 640, "depth": 6, "low_depth": 2, "dtype": "float32"}
    config.decoding = {"steps": 12, "temperature": 4.5, "lambda_a": 0.0, "lambda_b": 0.0, "rises": False}
    config.batch_size, config.steps = 16, 10000
  config.accumulation_steps = 1
  return config


def _vqgan(config: ml_collections.ConfigDict, which: str) -> ml_collections.ConfigDict:
  """A VQGAN of images of 64x64 before it has a codebook, then with one, then of images of 128x128."""
  config.task = "vqgan"
  config.model = {
    "widths": (48, 96, 96), "blocks": 1, "latent": 96, "embedding": 32, "codebook": 2048, "patch": 2, "groups": 8,
  }  # fmt: skip
  config.discriminator = {"widths": (32, 64, 128), "groups": 8}
  config.perceptual = "dreamjax/toybox/weights/dino"
  config.likeness, config.adversarial, config.adversarial_from = 0.02, 0.0, 0
  config.commitment, config.entropy, config.temperature = 0.25, 0.02, 0.1
  config.batch_size, config.accumulation_steps = 16, 1
  if which != "autoencoder":
    config.start = "runs/autoencoder/model"
  if which == "vqgan":
    config.quantised, config.clustered, config.steps = True, 128, 5000
    config.model.codebook, config.likeness = 4096, 0.005
    return config
  config.albums, config.resolution = "runs/albums_calm", 64
  config.view = dict(CALM)
  config.train, config.held_out = {"train": 49152}, {"subjects": 4096}
  config.quantised, config.clustered, config.steps = False, 0, 1000
  if which == "vqgan_small":
    config.quantised, config.clustered, config.steps, config.likeness = True, 512, 3500, 0.3
  return config
