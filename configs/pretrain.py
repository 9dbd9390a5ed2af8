"""Trains the stages of toybox-cascade, each by itself, behind the toybox's text encoder.

dreamjax pretrain --config configs/pretrain.py:base --workdir runs/base
dreamjax pretrain --config configs/pretrain.py:sr --workdir runs/sr
dreamjax pretrain --config configs/pretrain.py:cascade --workdir runs/cascade

The last joins both into the folder runs/cascade/model, a generator. A step takes its batch in pieces, for whose
gradients a CPU's caches are large enough. The first run draws the album of images.

The weights of toybox-cascade were trained so, at first on one core each of an AMD EPYC. The base stage saw images of
16x16 pixels (--config.model.image=16 --config.model.patch=1) for 3,000 steps, 3,000 of 32x32 from there, 7,500 after
the toys were repainted, 1,500 with images that go around the network, and in the calmer world of `config.view` 1,900
at 8e-4 and 3,000 at 1e-3, 0.5 to 1.1 a second; then, with attention at the second level as well, 1,600 more. All of
these were AdamW's (--config.optimizer.kind=adamw), and the last ones moved little: then Muon took 1,700, 0.3 to 0.45 a
second, and its loss was 4 % lower after 450 steps than AdamW's on the same batches.

What all of this lacked was images: the network had seen less than two million. On an NVIDIA H100 it saw 2.6 million
more in five minutes, beside other trainings (20 to 40 steps a second where it had at least half of the GPU): 5,000
steps of 512, of 196,608 images drawn there, with --config.start=dreamjax/toybox/weights/cascade/base
--config.resident=True --config.batch_size=512 --config.accumulation_steps=1 --config.optimizer.learning_rate=2e-3
--config.optimizer.decay=constant. The loss fell from 0.116 to 0.104. To compile the update took more than two minutes;
without autotuning of convolutions (--xla_gpu_autotune_level=0) a step takes ten times as long. Of 500 captions that the
whole cascade drew (tests/benchmarks/cascade.py captions), class was found in 0.960, context in 0.947, colour in 0.945,
style in 0.994, as in real images; before, in 0.920, 0.903, 0.856 and 0.988.

The stage of super-resolution was trained for 8,000 steps to predict v, which left it grainy, then 2,900 to predict x0
with both images going around it, 0.4 to 1.0 a second.
It is sampled in 8 steps of DDIM: of eight unseen photos that were made small and large again, 5, 8, 10 and 20 steps
left 24.6, 24.3, 24.0 and 23.3 dB of PSNR and 0.3, 0.6, 0.9 and 1.8 times the photos' high frequencies: after 20 that is
grain, after 5 detail is missing.
"""

import ml_collections

from dreamjax.train.optimizer import default_config as optimizer


def get_config(which: str = "base") -> ml_collections.ConfigDict:
  """The config of one stage."""
  config = ml_collections.ConfigDict()
  config.task, config.stage, config.name = "stage", which, "toybox-cascade"
  if which == "cascade":
    config.text_encoder, config.stages = "dreamjax/toybox/weights/t5", ("runs/base/model", "runs/sr/model")
    config.task = "join"
    return config
  config.seed = 0
  config.start = ""  # the folder of a stage to go on from; "" for nothing
  config.text_encoder, config.length = "dreamjax/toybox/weights/t5", 36
  config.albums, config.resolution, config.view = "runs/albums_calm", 64, {}
  config.train, config.held_out = {"train": 49152}, {"subjects": 4096}
  config.resident = False  # whether the images lie in the device's memory, for accelerators
  config.predicts, config.shift, config.min_snr, config.text_dropout = "v", 0.0, 0.0, 0.1
  config.flip = False
  config.log_every, config.save_every, config.eval_examples = 50, 500, 256
  config.optimizer = optimizer()
  if which == "base":
    config.model = {
      "image": 32, "widths": (32, 64, 128), "blocks": (1, 2, 2), "attention": (False, True, True), "head_width": 32,
      "cross_width": 128, "pool_heads": 5, "time_width": 256, "groups": 8, "step": "conv", "patch": 2, "around": True,
      "dtype": "float32",
    }  # fmt: skip
    # A world no more varied than so small a network can learn: toybox.Dial.
    config.view = {"views": 0.4, "light": 0.4, "layout": 0.3, "clutter": 0.4, "fill": (0.72, 0.88)}
    config.small, config.augmentation_levels = 0, (0.0, 1.0)
    config.sampling = {"sampler": "ddim", "steps": 30, "guidance": 2.5, "ratio": 0.0}
    config.batch_size, config.accumulation_steps, config.steps = 64, 2, 12000
    config.optimizer.kind, config.optimizer.learning_rate, config.optimizer.ema = "muon", 1e-3, 0.999
  elif which == "sr":
    config.albums, config.resolution = "runs/albums_128", 128
    config.train, config.held_out = {"train": 12288}, {"subjects": 256}
    config.model = {
      "image": 128, "widths": (64, 96, 128), "blocks": (1, 1, 1), "attention": (False, False, False), "head_width": 32,
      "cross_width": 64, "pool_heads": 5, "time_width": 128, "groups": 8, "step": "conv", "patch": 4, "around": True,
      "low_res": True, "self_attention": False, "dtype": "float32",
    }  # fmt: skip
    config.predicts = "x0"  # noise of patches this large does not pass the first level (Li & He, 2511.13720)
    config.small, config.augmentation_levels = (
      32,
      (0.0, 0.3),
    )  # above, the small images show too little to be made larger
    config.sampling = {"sampler": "ddim", "steps": 8, "guidance": 1.0, "ratio": 0.0, "level": 0.02}
    config.batch_size, config.accumulation_steps, config.steps, config.eval_examples = 8, 4, 8000, 0
    config.optimizer.learning_rate, config.optimizer.ema = 1e-3, 0.999
  else:
    raise ValueError(f"which is base, sr or cascade, not {which!r}")
  return config
