"""Trains the toybox's own encoders, one after another.

dreamjax pretrain --config configs/pretrain_encoders.py:tokenizer --workdir runs/tokenizer
dreamjax pretrain --config configs/pretrain_encoders.py:t5 --workdir runs/t5
dreamjax pretrain --config configs/pretrain_encoders.py:probe --workdir runs/probe
dreamjax pretrain --config configs/pretrain_encoders.py:dino --workdir runs/dino
dreamjax pretrain --config configs/pretrain_encoders.py:clip --workdir runs/clip

The tokenizer comes first, since t5 and clip read it. The first run renders the albums of images that all share: 61,440
images, 11 minutes on 2 cores. A run that was interrupted resumes when it is started again, and writes its model into
its workdir at each checkpoint; the folder dreamjax/toybox/weights holds copies of these. With --config.start=DIR a run
starts from the weights in such a folder.

Hardware and time: t5 took 50 minutes on 2 cores of a shared virtual machine. The others, on one core each of an AMD
EPYC, with XLA_FLAGS=--xla_cpu_enable_fast_math=true: probe, 2,600 steps of 64 images, 1,300 more from there at half
the learning rate, then 3,600 at 1.5e-3 and with smaller changes of light, all on toys of other paint, and 3,600 at
1.5e-3 on today's toys; dino, its 1,000 steps on the former toys and 1,000 more on today's; clip, on the former toys,
600 steps of 128 when its image tower was initialised from a vision transformer, then 850, and 150 with all patches.

Result: retrieval of dino 0.853, of clip 0.858; the probe's accuracy for context, class and colour 1.000, 0.974 and
0.920; more, and how it was measured, in the README.
"""

import ml_collections

from dreamjax.train.optimizer import default_config as optimizer


def _base() -> ml_collections.ConfigDict:
  """The fields that all share: the images, rendered once for all runs."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.albums = "runs/albums"  # the folder that rendered images are kept in
  # Images to train on, by split. Held-out styles are among them: the encoders must know them, no generator may.
  config.train = {"train": 49152, "styles": 8192}
  config.held_out = {"subjects": 4096}  # images to evaluate on, by split
  config.resolution = 64  # of the rendered images
  config.view = {}  # how varied the rendered world is: fields of toybox.Dial; encoders get all of it
  config.tokenizer = "runs/tokenizer/model"
  config.length = 64  # tokens of a text
  config.start = ""  # the folder of a model whose weights training starts from; "" for random ones
  config.accumulation_steps = 1  # microbatches of an update
  config.save_every = 300
  config.log_every = 50
  config.optimizer = optimizer()
  return config


def get_config(which: str = "probe") -> ml_collections.ConfigDict:
  """Returns the config of one encoder."""
  config = _base()
  config.task = which
  if which == "tokenizer":
    config.size = 3000  # tokens of the vocabulary
    config.captions = 20000  # captions that it is learned from
  elif which == "t5":
    config.model = {"width": 160, "head_width": 32, "heads": 5, "mlp": 320, "depth": 3}
    config.length = 36
    config.hidden = 4  # tokens of a caption that are predicted
    config.rare = 0.2  # share of captions into which a rare token is inserted
    config.batch_size = 96
    config.steps = 3000
    config.optimizer.learning_rate = 2e-3
  elif which == "probe":
    config.model = {"image": 64, "widths": (32, 64, 128, 256), "blocks": 1}
    config.augment = {"blur": 1.5, "light": 0.05}
    config.batch_size = 64
    config.accumulation_steps = 8
    config.steps = 2600
    config.optimizer.learning_rate = 2e-3
  elif which == "clip":
    config.model = {
      "vision": {"image": 64, "patch": 8, "width": 128, "depth": 6, "heads": 2, "mlp": 512, "projection": 128},
      "text": {"width": 128, "depth": 3, "heads": 2, "mlp": 384, "projection": 128},
    }
    config.augment = {"flip": False, "blur": 2.0}
    config.keep = 0.5  # share of an image's patches that are the network's input
    config.length = 36
    config.batch_size = 128
    config.steps = 850
    config.optimizer.learning_rate = 1e-3
  elif which == "dino":
    config.model = {"embedding": 128, "image": 64, "widths": (32, 64, 128, 256), "blocks": 1}
    config.augment = {"scale": (0.6, 1.0), "blur": 2.0, "light": 0.1}
    config.temperature = 0.1
    config.classes = 4  # of the subjects of a batch: the fewer, the more alike they are
    config.parts = 16  # in which a batch passes through the network, to fit into a CPU's caches
    config.only = {"style": "photo"}  # the labels of the images that are used
    config.batch_size = 256
    config.steps = 1000
    config.optimizer.learning_rate = 1e-3
  else:
    raise ValueError(f"which must be tokenizer, t5, probe, clip or dino, not {which!r}")
  return config
