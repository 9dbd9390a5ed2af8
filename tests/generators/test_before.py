"""Files and images of an earlier version: thetas and recipes still load, and give the images that they gave then.

`data/before` was made at commit 739bbb1: thetas of every kind with fixed random weights, the recipes of two calls of
`dreamjax sample`, and images of both toybox generators, with and without these thetas, in float16.
"""

import pathlib

import numpy as np
import pytest

from dreamjax import generators

DATA = pathlib.Path(__file__).parent / "data/before"
PROMPTS = ["a red dog on the beach", "a [V] dog in the snow"]
FRAMES = [PROMPTS[0], "a blue car in the jungle"]


@pytest.fixture(scope="module", params=["toybox-cascade", "toybox-muse"])
def toybox(request):
  return request.param, *generators.load(request.param)


@pytest.mark.slow
def test_images_are_what_they_were(toybox):
  name, generator, params = toybox
  wanted = np.load(DATA / "images.npz")
  load = lambda stem: generators.load_theta(DATA / f"{stem}.safetensors", generator, params)  # noqa: E731
  if name == "toybox-cascade":
    calls = {
      "cascade": (FRAMES, {"seed": 3}),
      "cascade_lora": (PROMPTS, {"seed": 3, "theta": load("cascade_lora")}),
      "cascade_embeddings_full": (PROMPTS[1:], {"seed": 4, "theta": load("cascade_embeddings_full")}),
    }
  else:
    style, subject = load("muse_adapters"), load("muse_prompt")
    calls = {
      "muse": (FRAMES, {"seed": 3}),
      "muse_adapters": (["a cat"], {"seed": 3, "theta": style}),
      "muse_two": (["a [V] cat"], {"seed": 3, "theta": [style, subject], "gamma": 0.4}),
    }
  for key, (prompts, options) in calls.items():
    found = generators.sample(generator, params, prompts, **options)
    np.testing.assert_allclose(found, wanted[key].astype(np.float32), atol=1e-3, err_msg=key)
