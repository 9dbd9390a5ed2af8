"""Trains the parts of toybox-latent, one after another.

dreamjax pretrain --config configs/pretrain_latent.py:autoencoder --workdir runs/latent_autoencoder

The first run renders the album of images: 16,384 of 128x128 take some seven minutes on two cores (AMD EPYC, AVX-512).
An update of 8 images takes 1.35 s there.

The autoencoder is not finished. After 1,500 updates, of a schedule of 4,000, it reconstructs 256 held-out images of all
styles at 22.2 dB, with a perceptual distance of 0.44. These weights are in dreamjax/toybox/weights/latent/vae, which no
generator loads yet; training goes on from them with --config.start=dreamjax/toybox/weights/latent/vae.
"""

import ml_collections

from dreamjax.train.optimizer import default_config as optimizer


def get_config(which: str = "autoencoder") -> ml_collections.ConfigDict:
  """Returns the config of one part."""
  if which != "autoencoder":
    raise ValueError(f"which must be autoencoder, not {which!r}")
  config = ml_collections.ConfigDict()
  config.task = "autoencoder"
  config.seed = 0
  config.start = ""  # the folder of a model whose weights training starts from; "" for random ones
  config.albums = "runs/albums_latent"  # the folder that rendered images are kept in
  config.resolution = 128  # of the images
  config.view = {}  # how varied the rendered world is: fields of toybox.Dial
  # The images to train on and to evaluate on, by split. Held-out styles are among them: what the autoencoder cannot
  # show, no style of StyleDrop could have.
  config.train = {"train": 12288, "styles": 4096}
  config.held_out = {"subjects": 160, "styles": 96}
  config.style_share = 0.6  # share of the images that are rendered in a style
  config.resident = False  # whether the images are kept in the device's memory, for accelerators
  config.model = {"widths": (16, 32, 64, 128), "blocks": 1, "latent": 4, "groups": 16, "dtype": "float32"}
  config.perceptual = "dreamjax/toybox/weights/dino"  # the network whose features are compared
  config.likeness = 0.02  # a of equation (1)
  config.kl = 1e-4  # b of equation (1)
  config.batch_size = 8
  config.accumulation_steps = 1  # microbatches of an update
  config.steps = 20000
  config.log_every = 50
  config.save_every = 500
  config.eval_examples = 256  # held-out images whose reconstructions are evaluated
  config.optimizer = optimizer()
  config.optimizer.kind = "muon"
  config.optimizer.learning_rate = 2e-3
  config.optimizer.ema = 0.999
  return config
