"""Teaches a generator of masked tokens a style from one picture, by StyleDrop.

dreamjax styledrop --images style --model DIR --workdir runs/style
dreamjax styledrop --images style --model DIR --workdir runs/style --config configs/styledrop.py:paper --feedback human
"""

import ml_collections

from dreamjax.methods.styledrop import default_config


def get_config(which: str = "toybox") -> ml_collections.ConfigDict:
  """The recipe for a generator: "toybox", or "paper" for the numbers of its table S3 and its 30 prompts."""
  config = default_config()
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
    config.pool.prompts, config.pool.each = (*walks, *faces, *things, *far), 8
    for settings in (config.first, config.second):
      settings.base.steps, settings.base.optimizer.learning_rate = 300, 1e-3
      settings.sr.steps, settings.sr.rows, settings.sr.optimizer.learning_rate = 100, 4, 1e-3
  elif which != "paper":
    raise ValueError(f"which is toybox or paper, not {which!r}")
  return config
