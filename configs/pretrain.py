"""Trains the stages of toybox-cascade, each alone, with the toybox's text encoder.

dreamjax pretrain --config configs/pretrain.py:base --workdir runs/base
dreamjax pretrain --config configs/pretrain.py:sr --workdir runs/sr
dreamjax pretrain --config configs/pretrain.py:cascade --workdir runs/cascade

The last joins both into the folder runs/cascade/model, a generator. The first run renders the album of images.

Hardware and time of the published weights, the base stage:
- first one core of an AMD EPYC, all with AdamW (--config.optimizer.kind=adamw): 3,000 steps on images of 16x16 pixels
  (--config.model.image=16 --config.model.patch=1); from these, 3,000 on images of 32x32; 7,500 after the toys were
  repainted; 1,500 with skip connections from input to output (`around`); in the less varied world of `config.view`
  1,900 at a learning rate of 8e-4 and 3,000 at 1e-3, 0.5 to 1.1 steps a second; 1,600 with attention at the second
  level as well. As the last of these improved it little, 1,700 with Muon, 0.3 to 0.45 a second, whose loss was 4 %
  lower after 450 steps than AdamW's on the same batches. By then the network had been trained on fewer than two
  million images;
- then five minutes of an NVIDIA H100, shared with other trainings (20 to 40 steps a second where it had at least half
  of the GPU): 2.6 million more, in 5,000 steps of 512, from 196,608 images rendered there, with
  --config.start=dreamjax/toybox/weights/cascade/base --config.resident=True --config.batch_size=512
  --config.accumulation_steps=1 --config.optimizer.learning_rate=2e-3 --config.optimizer.decay=constant. The loss fell
  from 0.116 to 0.104. Compiling
  the update took more than two minutes; without autotuning of convolutions (--xla_gpu_autotune_level=0) a step takes
  ten times as long.
The super-resolution stage, on one core: 8,000 steps predicting v, which left its images grainy, then 2,900 predicting
x0 with skip connections from both inputs to the output, 0.4 to 1.0 a second.

Result: of 500 images that the whole cascade generated from captions (tests/benchmarks/cascade.py captions), the probe
found the class in 0.960, the context in 0.947, the colour in 0.945 and the style in 0.994, as in real images; before
the training on the H100, in 0.920, 0.903, 0.856 and 0.988. The super-resolution stage is sampled in 8 steps of DDIM: of
eight held-out photos, downsampled and upsampled again, 5, 8, 10 and 20 steps give a PSNR of 24.6, 24.3, 24.0 and 23.3
dB, and 0.3, 0.6, 0.9 and 1.8 times the photos' high frequencies: with 20 that is grain, with 5 detail is missing.
"""

import ml_collections

from dreamjax.train.optimizer import default_config as optimizer


def get_config(which: str = "base") -> ml_collections.ConfigDict:
  """Returns the config of one stage."""
  config = ml_collections.ConfigDict()
  config.task = "stage"
  config.stage = which
  config.name = "toybox-cascade"
  config.text_encoder = "dreamjax/toybox/weights/t5"  # the folder of a trained text encoder and its tokenizer
  if which == "cascade":
    config.task = "join"
    config.stages = ("runs/base/model", "runs/sr/model")
    return config
  config.seed = 0
  config.start = ""  # the folder of a stage whose weights training starts from; "" for random ones
  config.length = 36  # tokens of a text
  config.albums = "runs/albums_calm"  # the folder that rendered images are kept in
  config.resolution = 64  # of the rendered images
  config.view = {}  # how varied the rendered world is: fields of toybox.Dial
  config.train = {"train": 49152}  # images to train on, by split
  config.held_out = {"subjects": 4096}  # images to evaluate on, by split
  config.resident = False  # whether the images are kept in the device's memory, for accelerators
  config.flip = False  # whether half of the images are mirrored
  config.text_dropout = 0.1  # share of texts replaced by the empty one, for classifier-free guidance
  config.predicts = "v"
  config.shift = 0.0  # of the cosine schedule's log SNR
  config.min_snr = 0.0  # gamma of the min-SNR weighting; 0 for none
  config.log_every = 50
  config.save_every = 500
  config.eval_examples = 256  # images generated from held-out captions to evaluate the stage; 0 for no evaluation
  config.optimizer = optimizer()
  config.optimizer.learning_rate = 1e-3
  config.optimizer.ema = 0.999
  if which == "base":
    config.model = {
      "image": 32, "widths": (32, 64, 128), "blocks": (1, 2, 2), "attention": (False, True, True), "head_width": 32,
      "cross_width": 128, "pool_heads": 5, "time_width": 256, "groups": 8, "step": "conv", "patch": 2, "around": True,
      "dtype": "float32",
    }  # fmt: skip
    # A world no more varied than so small a network can learn.
    config.view = {"views": 0.4, "light": 0.4, "layout": 0.3, "clutter": 0.4, "fill": (0.72, 0.88)}
    config.small = 0  # side of the low-resolution images; none
    config.augmentation_levels = (0.0, 1.0)  # of noise conditioning augmentation, for super-resolution stages
    config.sampling = {"sampler": "ddim", "steps": 30, "guidance": 2.5, "threshold_percentile": 0.0}
    config.batch_size = 64
    config.accumulation_steps = 2  # microbatches: the gradients of so many images fit into a CPU's caches
    config.steps = 12000
    config.optimizer.kind = "muon"
  elif which == "sr":
    config.albums = "runs/albums_128"
    config.resolution = 128
    config.train = {"train": 12288}
    config.held_out = {"subjects": 256}
    config.model = {
      "image": 128, "widths": (64, 96, 128), "blocks": (1, 1, 1), "attention": (False, False, False), "head_width": 32,
      "cross_width": 64, "pool_heads": 5, "time_width": 128, "groups": 8, "step": "conv", "patch": 4, "around": True,
      "low_res": True, "self_attention": False, "dtype": "float32",
    }  # fmt: skip
    config.predicts = "x0"  # noise of patches this large does not pass the first level (Li & He, 2511.13720)
    config.small = 32  # side of the low-resolution images
    config.augmentation_levels = (0.0, 0.3)  # at higher levels the low-resolution images show too little
    config.sampling = {
      "sampler": "ddim",
      "steps": 8,
      "guidance": 1.0,
      "threshold_percentile": 0.0,
      "augmentation_level": 0.02,
    }
    config.batch_size = 8
    config.accumulation_steps = 4
    config.steps = 8000
    config.eval_examples = 0
  else:
    raise ValueError(f"which must be base, sr or cascade, not {which!r}")
  return config
