"""Personalised image generation in JAX: DreamBooth, StyleDrop, HyperDreamBooth and DreamTuner.

import dreamjax

generator, params = dreamjax.load("toybox-cascade")
theta = dreamjax.dreambooth(generator, params, "photos/of/my/dog", "dog", workdir="runs/dog")
images = dreamjax.sample(generator, params, ["a [V] dog on the beach"], theta=theta, n=4)
theta.save("dog.safetensors")
"""

from typing import Any

__version__ = "0.1.0"

__all__ = ["dreambooth", "load", "load_control", "load_theta", "sample", "styledrop"]


def __getattr__(name: str) -> Any:
  """Imports what is asked for when it is asked for: whoever wants one room need not wait for all."""
  match name:
    case "load" | "load_control" | "load_theta" | "sample":
      from dreamjax import generators as room
    case "dreambooth":
      from dreamjax.methods import dreambooth as room
    case "styledrop":
      from dreamjax.methods import styledrop as room
    case _:
      raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(room, name)
