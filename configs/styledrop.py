"""Teaches a generator of masked tokens a style from one image, by StyleDrop.

command    dreamjax styledrop --images style --workdir runs/style
           dreamjax styledrop --images style --model DIR --config FILE:paper --feedback human --workdir runs/style
hardware   2 cores of an AMD EPYC (toybox)
minutes    2 for one round on one of the cores, its programs compiled before
result     toybox-muse, four styles: share of images with the style 0.57 (0.42 to 0.72) after round 1, 0.41 (0.18 to
           0.64) after round 2 by CLIP's choice

The variants paper and amused512 are not measured in training; `dreamjax plan` says what they need.

toybox     the default
paper      the numbers of the paper's table S3, Adam, and its 30 prompts
amused512  aMUSEd at 512 pixels: diffusers' recipe of low-rank updates instead of adapters (rank 16, alpha 1, 1e-3
           constant after 500 updates of warm-up, 2,000 updates of one image). It has one round; a second one, where
           feedback chooses for it, is trained in the same way. For adapters, --config.first.base.kind=adapters
"""

import ml_collections

from dreamjax.methods.styledrop import default_config


def get_config(which: str = "toybox") -> ml_collections.ConfigDict:
  """Returns the recipe: "toybox", "paper" or "amused512"."""
  config = default_config(("base",) if which == "amused512" else ("base", "sr"))
  if which == "toybox":
    config.rare = (0.5, 1.0)  # the toybox's vocabulary is small: its words are ordinary ones up to the middle
    walks = [
      f"{x}{y}" for y in ("", " on a cobblestone street", " in the jungle") for x in ("a dog", "a cat", "a rabbit")
    ]
    faces = [f"a {state} face" for state in ("smiling", "sad", "surprised")]
    things = [
      f"{x} {y}"
      for y in ("on top of a wooden floor", "on top of a white rug", "on top of pink fabric")
      for x in ("a teapot", "a mushroom")
    ]
    places = ("on a cobblestone street", "with a mountain in the background", "with a wheat field in the background",
              "on the beach")  # fmt: skip
    far = [f"{x} {y}" for x in ("a boat", "a chair", "a backpack") for y in places]
    config.pool.prompts, config.pool.images_per_prompt = (*walks, *faces, *things, *far), 8
    config.views = 32  # a small network memorises one image before it learns its style
    # The fine detail of a style is in the super-resolution stage, and sampled images lose some: it is learned once.
    for settings, base, larger in ((config.first, 150, 60), (config.second, 400, 0)):
      settings.base.steps, settings.base.optimizer.learning_rate = base, 1e-3
      settings.sr.steps, settings.sr.batch_size, settings.sr.optimizer.learning_rate = larger, 4, 1e-3
      settings.sr.channels = 24  # so that less than a hundredth of the parameters is trained
      for stage in settings.values():  # AdamW, by which README's numbers were measured
        stage.optimizer.b2, stage.optimizer.weight_decay = 0.99, 0.01
  elif which == "amused512":
    for settings in (config.first.base, config.second.base):
      settings.steps, settings.batch_size = 2000, 1
      settings.kind, settings.rank, settings.alpha, settings.pattern = "lora", 16, 1.0, "(query|key|value)$"
      settings.optimizer.update({"learning_rate": 1e-3, "warmup": 500, "b2": 0.999, "weight_decay": 0.01})
  elif which != "paper":
    raise ValueError(f"which is toybox, paper or amused512, not {which!r}")
  return config
