"""Sampling with a ControlNet: parity with diffusers, what is refused, and the command."""

import json
import shutil

import jax
import numpy as np
from PIL import Image
import pytest

from dreamjax import generators
from dreamjax.errors import UserError
from dreamjax.parallel import sharding


@pytest.fixture(scope="module")
def controlled(pipelines, tmp_path_factory):
  """controlled(name) -> diffusers' pipeline with a ControlNet, the folder of that, and an image's path."""
  made = {}

  def controlled(name):
    if name not in made:
      folder, pipeline = tmp_path_factory.mktemp(name), pipelines.control(pipelines.make(name))
      pipeline.controlnet.save_pretrained(folder / "network")
      pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
      Image.fromarray(pixels).save(folder / "edges.png")
      made[name] = pipeline, folder / "network", folder / "edges.png"
    return made[name]

  return controlled


@pytest.mark.parametrize(("name", "scale"), [("sd", 1.0), ("sdxl", 0.7)])
def test_images_are_those_of_diffusers(pipelines, controlled, name, scale):
  pipeline, network, path = controlled(name)
  generator, params = generators.load(pipelines.folder(name))
  free = pipelines.ours(generator, params)
  control = generators.load_control(network, path, generator, scale=scale)
  images = pipelines.ours(generator, params, control=control)
  with Image.open(path) as image:
    wanted = pipelines.theirs(pipeline, image=image, controlnet_conditioning_scale=scale)
  np.testing.assert_allclose(images, wanted, atol=1e-3)
  assert np.abs(images - free).max() > 0.05
  np.testing.assert_allclose(pipelines.ours(generator, params, control=control.replace(scale=0.0)), free, atol=1e-5)


def test_images_on_a_mesh_of_devices_are_the_same(pipelines, controlled, monkeypatch):
  monkeypatch.setattr(sharding, "_MIN_SHARDED", 1)
  mesh = sharding.make_mesh((2, 2, 1))
  placed = {"put": sharding.param_putter(mesh)}
  generator, params = generators.load(pipelines.folder("sd"), **placed)
  control = generators.load_control(*controlled("sd")[1:], generator, **placed)
  assert not jax.tree.leaves(control.params)[0].sharding.is_fully_replicated
  images = pipelines.ours(generator, params, control=control, mesh=mesh)
  own = generators.load(pipelines.folder("sd"))[1]
  whole = generators.load_control(*controlled("sd")[1:], generator)
  np.testing.assert_allclose(images, pipelines.ours(generator, own, control=whole), atol=1e-4)


def test_the_central_square_of_the_image_is_used(pipelines, controlled, tmp_path):
  _, network, _ = controlled("sd")
  generator, _ = generators.load(pipelines.folder("sd"))
  wide = np.zeros((32, 64, 4), np.uint8)
  wide[:, 16:48] = (255, 0, 0, 255)
  Image.fromarray(wide).save(tmp_path / "wide.png")
  control = generators.load_control(network, tmp_path / "wide.png", generator)
  np.testing.assert_allclose(control.image[:, 2:-2] - np.float32([1, 0, 0]), 0, atol=0.01)


def test_what_does_not_fit_is_refused(pipelines, controlled, tmp_path):
  pipeline, network, path = controlled("sd")
  generator, _ = generators.load(pipelines.folder("sd"))
  with pytest.raises(UserError, match="text_width 20, pooled_width 10, but the generator's U-Net has text_width 8"):
    generators.load_control(controlled("sdxl")[1], path, generator)
  with pytest.raises(ValueError, match="holds a LatentUNet, but a ControlNet is wanted there"):
    generators.load_control(pipelines.folder("sd") / "unet", path, generator)
  with pytest.raises(ValueError, match="none.png cannot be read"):
    generators.load_control(network, tmp_path / "none.png", generator)
  with pytest.raises(UserError, match="samples no latents"):
    generators.load_control(network, path, generators.load("toybox-cascade")[0])
  type(pipeline.controlnet).from_unet(pipeline.unet).save_pretrained(tmp_path / "larger")
  with pytest.raises(UserError, match="images of 8 times the latents' size, the generator's have 2"):
    generators.load_control(tmp_path / "larger", path, generator)
  shutil.copytree(network, tmp_path / "cut")
  weights = tmp_path / "cut/diffusion_pytorch_model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-1000])
  with pytest.raises(ValueError, match="cut/.* is no complete safetensors"):
    generators.load_control(tmp_path / "cut", path, generator)


def test_the_command_follows_an_image_and_its_recipe_does_so_again(pipelines, controlled, tmp_path, run, drawn):
  _, network, path = controlled("sd")
  model = ("--model", pipelines.folder("sd"))
  steps = ("--steps", 10, "--guidance", 3, "--batch", 2, "--seed", 3)
  asked = (*model, *steps, "--n", 2, "--prompt", "a red dog", "--controlnet", network, "--control", path)
  status, said = run("sample", *asked, "--control-scale", 0.5, "--out", tmp_path / "out")
  assert (status, said.err) == (0, "")
  said = json.loads((tmp_path / "out/sample.json").read_text())["control"]
  assert said == {"network": str(network), "image": str(path), "scale": 0.5}
  status, said = run("sample", "--recipe", tmp_path / "out/sample.json", "--batch", 2, "--out", tmp_path / "again")
  assert (status, said.err) == (0, "")
  np.testing.assert_array_equal(drawn(tmp_path / "again"), drawn(tmp_path / "out"))
  generator, params = generators.load(pipelines.folder("sd"))
  control = generators.load_control(network, path, generator, scale=0.5)
  wanted = pipelines.ours(generator, params, prompts=["a red dog"] * 2, control=control)
  assert np.abs(drawn(tmp_path / "out") - 127.5 * (wanted + 1)).max() < 1
  for arguments, problem in (
    ((*model, "--controlnet", network), "--controlnet and --control go together"),
    ((*model, "--control", path), "--controlnet and --control go together"),
    ((*model, "--control-scale", 2), "--control-scale needs --controlnet"),
    (("--controlnet", network, "--control", path), "samples no latents"),
  ):
    status, said = run("sample", *arguments, "--prompt", "a dog", "--out", tmp_path / "none")
    assert status == 2 and problem in said.err, arguments
