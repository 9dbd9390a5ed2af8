"""Trains the parts of toybox-muse, each alone.

dreamjax pretrain --config configs/pretrain_muse.py:autoencoder --workdir runs/autoencoder
dreamjax pretrain --config configs/pretrain_muse.py:vqgan_small --workdir runs/vqgan_small
dreamjax pretrain --config configs/pretrain_muse.py:vqgan --workdir runs/vqgan
dreamjax pretrain --config configs/pretrain_muse.py:base --workdir runs/muse_base
dreamjax pretrain --config configs/pretrain_muse.py:sr --workdir runs/muse_sr
dreamjax pretrain --config configs/pretrain_muse.py:muse --workdir runs/muse

The VQGANs come first, since the transformers are trained on their tokens; both start from the autoencoder, which is the
small one without quantisation. The last command joins both transformers into the folder runs/muse/model, a generator.
The first run on images of a size and a world renders their album.

Hardware and time of the published weights: ten minutes of an NVIDIA H100, two or three trainings at once, on 196,608
images of 64x64, 16,384 of 128x128 for the VQGAN and 32,768 for the transformer, rendered there; with
--config.resident=True, --config.optimizer.learning_rate=2e-3 and, for the transformers, --config.model.dtype=bfloat16.
The first update of each took a minute or two to compile.

| part | steps | batch | steps a second | result |
|---|---|---|---|---|
| autoencoder | 1,000 | 64 | 40 | 25.9 dB |
| vqgan_small | 3,500 | 64 | 45 | 21.3 dB, 92 % of the codebook in use |
| vqgan | 5,000 | 32 | 35 to 70 | 24.8 dB, 82 % of the codebook in use |
| base | 6,000 | 512 | 13 to 43 | |
| sr | 3,000 | 128 | 15 | |

Of the large VQGAN's 4,096 vectors, the 578 that none of 3,000 images used were removed.

Result of both stages: of 500 captions, the probe found the class in 0.967, the context in 0.930, the colour in 0.900
and the style in 0.988. With patches of 4 pixels in place of 2, half as many vectors and a `likeness` of 0.02 in the
small VQGAN, and the super-resolution stage trained in the full world, it had been 0.871, 0.914, 0.924 and 0.978.
"""

import ml_collections

from dreamjax.train.optimizer import default_config as optimizer

# The world of toybox-cascade's base stage: see configs/pretrain.py.
CALM = {"views": 0.4, "light": 0.4, "layout": 0.3, "clutter": 0.4, "fill": (0.72, 0.88)}


def get_config(which: str = "autoencoder") -> ml_collections.ConfigDict:
  """Returns the config of one part."""
  config = ml_collections.ConfigDict()
  if which == "muse":
    config.task = "join"
    config.text_encoder = "dreamjax/toybox/weights/t5"
    config.stages = ("runs/muse_base/model", "runs/muse_sr/model")
    return config
  config.seed = 0
  config.start = ""  # the folder of a model whose weights training starts from; "" for random ones
  config.albums = "runs/albums_128"  # the folder that rendered images are kept in
  config.resolution = 128  # of the rendered images
  config.view = {}  # how varied the rendered world is: fields of toybox.Dial
  config.train = {"train": 12288}  # images to train on, by split
  config.held_out = {"subjects": 256}  # images to evaluate on, by split
  config.resident = False  # whether images or tokens are kept in the device's memory, for accelerators
  config.accumulation_steps = 1  # microbatches of an update
  config.log_every = 50
  config.save_every = 500
  config.eval_examples = (
    256  # images evaluated: reconstructed by a VQGAN, or generated from held-out captions by a stage
  )
  config.optimizer = optimizer()
  config.optimizer.kind = "muon"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.ema = 0.999
  if which in ("autoencoder", "vqgan_small", "vqgan"):
    return _vqgan(config, which)
  if which not in ("base", "sr"):
    raise ValueError(f"which must be autoencoder, vqgan_small, vqgan, base, sr or muse, not {which!r}")
  config.task = "tokens"
  config.stage = which
  config.name = "toybox-muse"
  config.text_encoder = "dreamjax/toybox/weights/t5"  # the folder of a trained text encoder and its tokenizer
  config.length = 36  # tokens of a text
  config.min_mask_ratio = 0.0  # smallest share of an image's tokens that is masked
  config.smoothing = 0.1  # of the labels
  config.text_dropout = 0.1  # share of texts replaced by the empty one, for classifier-free guidance
  config.view = dict(CALM)
  if which == "base":
    config.albums = "runs/albums_calm"
    config.resolution = 64
    config.train = {"train": 49152}
    config.held_out = {"subjects": 4096}
    config.vqgan = "runs/vqgan_small/model"
    config.image = 64  # side of the images that are encoded as tokens
    config.low_vqgan = ""  # the VQGAN of low-resolution images; none
    config.low_image = 0
    config.model = {"width": 192, "heads": 6, "mlp": 768, "depth": 8, "dtype": "float32"}
    config.decoding = {"steps": 18, "temperature": 4.5, "lambda_a": 1.0, "lambda_b": 3.0, "rises": False}
    config.batch_size = 64
    config.steps = 20000
  else:
    config.albums = "runs/albums_calm_128"
    config.vqgan = "runs/vqgan/model"
    config.image = 128
    config.low_vqgan = "runs/vqgan_small/model"
    config.low_image = 64
    config.model = {"width": 160, "heads": 5, "mlp": 640, "depth": 6, "low_depth": 2, "dtype": "float32"}
    config.decoding = {"steps": 12, "temperature": 4.5, "lambda_a": 0.0, "lambda_b": 0.0, "rises": False}
    config.batch_size = 16
    config.steps = 10000
  return config


def _vqgan(config: ml_collections.ConfigDict, which: str) -> ml_collections.ConfigDict:
  """The VQGAN of images of 64x64 without quantisation, then with a codebook, and that of images of 128x128."""
  config.task = "vqgan"
  config.model = {
    "widths": (48, 96, 96), "blocks": 1, "latent": 96, "embedding": 32, "codebook": 2048, "patch": 2, "groups": 8,
  }  # fmt: skip
  config.discriminator = {"widths": (32, 64, 128), "groups": 8}
  config.perceptual = "dreamjax/toybox/weights/dino"  # the network whose features are compared
  config.likeness = 0.02  # a of equation (1)
  config.adversarial = 0.0  # b of equation (1)
  config.adversarial_from = 0  # the update at which b applies first
  config.commitment = 0.25  # beta of equation (1)
  config.entropy = 0.02  # c of equation (1)
  config.temperature = 0.1  # tau of equation (1)
  config.quantised = True  # whether images are reconstructed from tokens, rather than from z
  config.clustered = 0  # images whose z initialise the codebook by clustering; 0 to keep it as it is
  config.batch_size = 16
  if which == "vqgan":
    config.start = "runs/autoencoder/model"
    config.model.codebook = 4096
    config.likeness = 0.005
    config.clustered = 128
    config.steps = 5000
    return config
  config.albums = "runs/albums_calm"
  config.resolution = 64
  config.view = dict(CALM)
  config.train = {"train": 49152}
  config.held_out = {"subjects": 4096}
  if which == "vqgan_small":
    config.start = "runs/autoencoder/model"
    config.likeness = 0.3
    config.clustered = 512
    config.steps = 3500
  else:
    config.quantised = False
    config.steps = 1000
  return config
