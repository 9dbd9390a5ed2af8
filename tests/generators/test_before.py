"""Files and images of an earlier version: thetas and recipes still load, and give the images that they gave then.

`data/before` was made at commit 739bbb1: thetas of every kind with fixed random weights, the recipes of two calls of
`dreamjax sample`, and images of both toybox generators, with and without these thetas, in float16.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from dreamjax import cli, generators
from dreamjax.data.image_folder import read as read_image

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


@pytest.mark.parametrize("family", ["cascade", "muse"])
def test_a_recipe_gives_the_image_that_it_gave(family, tmp_path):
  recipe = json.loads((DATA / f"{family}_sample.json").read_text())
  assert recipe["samplings"][0].keys() & {"ratio", "rises"}  # as earlier versions wrote it
  recipe["thetas"] = [str(DATA / name) for name in recipe["thetas"]]
  (tmp_path / "sample.json").write_text(json.dumps(recipe))
  assert cli.main(["sample", "--recipe", str(tmp_path / "sample.json"), "--out", str(tmp_path / "out")]) == 0
  wanted, found = (read_image(path) for path in (DATA / f"{family}_sample.png", tmp_path / "out/00000.png"))
  np.testing.assert_allclose(found, wanted, atol=1 / 255 + 1e-6)


@pytest.mark.parametrize("name", ["cascade_lora", "cascade_embeddings_full", "muse_adapters", "muse_prompt"])
def test_thetas_still_load(name):
  generator, params = generators.load("toybox-cascade" if "cascade" in name else "toybox-muse")
  made = generators.load_theta(DATA / f"{name}.safetensors", generator, params)
  assert made.thetas and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(made.thetas))
