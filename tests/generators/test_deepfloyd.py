"""DeepFloyd IF as diffusers' folders, one for each stage: parity of their images, and a subject that they learn."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from dreamjax import generators
from dreamjax.commands import configs
from dreamjax.commands import dreambooth as commands
from dreamjax.data import image_folder
from dreamjax.diffusion import process
from dreamjax.diffusion.samplers import _STEPS
from dreamjax.errors import UserError
from dreamjax.generators import interop
from dreamjax.generators.generator import image_keys
from dreamjax.methods import dreambooth
from dreamjax.theta import Card, Full, LoRA, Personalisation

PROMPTS = ["A Red dog", "a dog on the beach"]
SEED, STEPS, LEVEL = 3, 10, 250
SIDES = (8, 16)
GUIDANCE = (7.0, 4.0)


def theirs(pipelines, monkeypatch):
  """The images that diffusers samples from our noise, in [-1, 1]."""
  from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
  from diffusers.schedulers import scheduling_ddpm
  import torch

  def noise(stage):
    """Yields a stage's noise in the order in which diffusers uses it: the start's, the augmentation's, the steps'."""
    keys = process.fold_in(image_keys(SEED, [0, 1]), stage)
    shape = (SIDES[stage], SIDES[stage], 3)
    yield process.draw_noise(keys, shape)
    if stage:
      yield process.draw_noise(process.fold_in(keys, process._AUGMENTATION), shape)
    for step in range(STEPS):
      yield process.draw_noise(process.fold_in(process.fold_in(keys, _STEPS), step), shape)

  images = None
  for i, (pipeline, module) in enumerate(zip(pipelines, (pipeline_if, pipeline_if_superresolution), strict=True)):
    own = noise(i)
    give = lambda *_, own=own, **__: torch.tensor(np.asarray(next(own)).transpose(0, 3, 1, 2))  # noqa: E731
    for where in (module, scheduling_ddpm):
      monkeypatch.setattr(where, "randn_tensor", give)
    more = {"image": images, "noise_level": LEVEL} if i else {}
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE[i], "clean_caption": False, **more}
    images = pipeline(PROMPTS, output_type="pt", **options).images
  return images.numpy().transpose(0, 2, 3, 1)


def test_images_are_those_of_diffusers(deepfloyd, monkeypatch, tmp_path):
  generator, params = generators.load(deepfloyd.name)
  assert [stage.sampling.steps for stage in generator.stages] == [100, 50]
  assert [stage.sampling.threshold_max for stage in generator.stages] == [1.5, 1.0]
  assert commands.recipe(generator) == "configs/dreambooth.py:if-xl"
  samplings = [dataclasses.replace(stage.sampling, steps=STEPS) for stage in generator.stages]
  images = generators.sample(generator, params, PROMPTS, samplings=samplings, seed=SEED, batch_size=2)
  wanted = np.clip(theirs(deepfloyd.pipelines, monkeypatch), -1, 1)
  assert images.shape == (2, 16, 16, 3) and wanted.std() > 0.05
  np.testing.assert_allclose(images, wanted, atol=5e-3)

  generators.save(tmp_path / "ours", generator, params, dtype=np.float32)
  again, same = generators.load(tmp_path / "ours")
  assert again.stages == generator.stages and again.tokenizer.lowers
  jax.tree.map(np.testing.assert_array_equal, same, params)


def personalised(generator, params, kind):
  """Thetas of both stages that change much."""
  rng = np.random.default_rng(0)
  pattern = "attention/(query|key|value|text_key|text_value|out)$"
  thetas = {}
  for name in ("base", "sr"):
    if kind is LoRA:
      theta = LoRA.init(jax.random.key(0), params[name], 2, alpha=3.0, pattern=pattern)
      thetas[name] = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), theta)
    else:
      thetas[name] = Full(jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params[name]))
  recipe = {"sampling": {name: {"variance": 0.0} for name in thetas}}
  return Personalisation(thetas, Card(generator.base(params), "qx", "dog", recipe))


@pytest.mark.parametrize("kind", [LoRA, Full])
def test_images_with_an_exported_theta_are_those_of_diffusers(deepfloyd, monkeypatch, tmp_path, kind):
  diffusers = pytest.importorskip("diffusers")
  pytest.importorskip("peft")
  generator, params = generators.load(deepfloyd.name)
  made = personalised(generator, params, kind)
  samplings = [dataclasses.replace(stage.sampling, steps=STEPS, variance=0.0) for stage in generator.stages]
  images, plain = (
    generators.sample(generator, params, PROMPTS, theta=theta, samplings=samplings, seed=SEED, batch_size=2)
    for theta in (made, None)
  )
  assert np.abs(images - plain).max() > 0.1
  written = interop.save(tmp_path, "diffusers", generator, params, made)
  if kind is LoRA:
    assert written == [tmp_path / name / interop.WEIGHTS for name in ("base", "sr")]
    pipelines = [diffusers.DiffusionPipeline.from_pretrained(folder) for folder in deepfloyd.folders]
    for pipeline, file in zip(pipelines, written, strict=True):
      pipeline.load_lora_weights(file.parent, weight_name=file.name)
      scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config, variance_type="fixed_small")
      pipeline.register_modules(scheduler=scheduler)
    back = generators.load_theta(written[1], generator, params)
    assert list(back.thetas) == ["sr"] and back.card.recipe["sampling"] == {"sr": {"variance": 0.0}}
    both = generators.load_theta(tmp_path, generator, params)
    assert [x.variance for x in generators.default_samplings(generator, [both])] == [0.0, 0.0]
    layers = lambda theta: theta.expand(params["sr"])["theta"]  # noqa: E731
    same = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(same, layers(back.thetas["sr"]), layers(made.thetas["sr"]))
    with pytest.raises(UserError, match="kohya's format is for Stable Diffusion and SDXL"):
      interop.save(tmp_path, "kohya", generator, params, made)
  else:
    base = diffusers.DiffusionPipeline.from_pretrained(written[0])
    texts = {"text_encoder": base.text_encoder, "tokenizer": base.tokenizer}
    pipelines = [base, diffusers.DiffusionPipeline.from_pretrained(written[1], **texts)]
    again, halved = generators.load("+".join(map(str, written)))
    merged = {name: made.thetas[name].merge(params[name]) for name in ("base", "sr")}
    same = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)  # they are stored in float16
    jax.tree.map(same, {name: halved[name] for name in merged}, merged)
    images = generators.sample(again, halved, PROMPTS, samplings=samplings, seed=SEED, batch_size=2)
    assert [stage.sampling.variance for stage in again.stages] == [0.0, 0.0]
  for pipeline in pipelines:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(dtype=pipeline.unet.dtype)
  np.testing.assert_allclose(images, np.clip(theirs(pipelines, monkeypatch), -1, 1), atol=1e-2)


def test_texts_are_lower_case(deepfloyd):
  generator, _ = generators.load(deepfloyd.name)
  ids, mask = generator.tokenizer([" A Red DOG", "a red dog"])
  assert ids.shape == (2, 77)
  np.testing.assert_array_equal(ids[0], ids[1])
  np.testing.assert_array_equal(mask[0], mask[1])
  assert generator.tokenizer.normalize(" A Red") == "a red"


def test_the_base_stage_alone_is_a_generator(deepfloyd):
  generator, _ = generators.load(deepfloyd.folders[0])
  assert [stage.name for stage in generator.stages] == ["base"] and generator.resolution == 8


def test_both_stages_learn_a_subject_by_lora(deepfloyd, tmp_path):
  rng = np.random.default_rng(0)
  photos = ((rng.random((20, 20, 3), np.float32), {}) for _ in range(2))
  image_folder.write(tmp_path / "photos", photos)
  few = [f"--config.stages.{stage}.{field}=2" for stage in ("base", "sr") for field in ("steps", "batch_size")]
  config = configs.load("configs/dreambooth.py:if-xl", [*few, "--config.identifier=qx"])
  generator, params = generators.load(deepfloyd.name)
  theta = dreambooth.dreambooth(generator, params, tmp_path / "photos", "dog", workdir=tmp_path / "run", config=config)
  tuned = {"base": {"variance": 0.0}, "sr": {"augmentation_level": 1e-3, "variance": 0.0}}  # untrained
  assert theta.card.recipe["sampling"] == tuned
  assert {name: type(own) for name, own in theta.thetas.items()} == {"base": LoRA, "sr": LoRA}
  samplings = [dataclasses.replace(stage.sampling, steps=2, **tuned[stage.name]) for stage in generator.stages]
  images, plain = (
    generators.sample(generator, params, ["a qx dog"], theta=some, samplings=samplings) for some in (theta, None)
  )
  assert np.isfinite(images).all() and np.abs(images - plain).max() > 1e-5


def test_what_does_not_go_together_is_refused(deepfloyd, tmp_path):
  first, second = map(str, deepfloyd.folders)
  with pytest.raises(UserError, match="is a super-resolution stage: put the folder of an IFPipeline before it"):
    generators.load(second)
  with pytest.raises(UserError, match="holds IFPipeline, which cannot follow"):
    generators.load(f"{first}+{first}")
  with pytest.raises(UserError, match="only stages of DeepFloyd IF can be joined by"):
    generators.load(f"{first}+toybox-cascade")
  with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
    generators.load(f"{first}+{tmp_path}/nowhere")
  shutil.copytree(first, tmp_path / "unbound")
  path = tmp_path / "unbound/scheduler/scheduler_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"thresholding": False, "clip_sample": False}))
  with pytest.raises(UserError, match="neither thresholding nor clip_sample is true"):
    generators.load(tmp_path / "unbound")
