"""Personalised image generation in JAX: DreamBooth, StyleDrop, HyperDreamBooth and DreamTuner.

import dreamjax

dreamjax.prepare_xla()
generator, params = dreamjax.load("toybox-cascade")
theta = dreamjax.dreambooth(generator, params, "photos/of/my/dog", "dog", workdir="runs/dog")
images = dreamjax.sample(generator, params, ["a [V] dog on the beach"], theta=theta, n=4)
theta.save("dog.safetensors")
"""

from etils import epy

__version__ = "0.1.0"

__all__ = ["UserError", "dreambooth", "load", "load_control", "load_theta", "prepare_xla", "sample", "styledrop"]

# Each is imported when it is first used: `import dreamjax` imports no JAX.
with epy.lazy_api_imports(globals()):
  from dreamjax.errors import UserError
  from dreamjax.generators import load, load_control, load_theta, sample
  from dreamjax.methods.dreambooth import dreambooth
  from dreamjax.methods.styledrop import styledrop
  from dreamjax.xla import prepare_xla
