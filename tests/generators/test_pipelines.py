"""Stable Diffusion and SDXL as diffusers' folders: parity of their images, also after we wrote the folders again."""

import inspect
import json
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest

from dreamjax import generators
from dreamjax.commands import dreambooth
from dreamjax.errors import UserError
from dreamjax.generators import cascade as cascades
from dreamjax.generators.cascade import Spacing


@pytest.mark.parametrize("name", ["sd", "sd-v", "sdxl"])
def test_images_are_those_of_diffusers(pipelines, name, tmp_path):
  pipeline = pipelines.make(name)
  generator, params = generators.load(pipelines.folder(name))
  images, wanted = pipelines.ours(generator, params), pipelines.theirs(pipeline)
  assert images.shape == (2, 16, 16, 3) and wanted.std() > 0.05
  np.testing.assert_allclose(images, wanted, atol=1e-3)
  generators.save(tmp_path / "ours", generator, params, dtype=np.float32)
  written = type(pipeline).from_pretrained(tmp_path / "ours")
  np.testing.assert_allclose(pipelines.theirs(written), wanted, atol=1e-4)
  again, same = generators.load(tmp_path / "ours")
  assert again.stages == generator.stages and again.autoencoder == generator.autoencoder
  jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, in that scheduler
def test_euler_is_what_ddim_computes(pipelines, tmp_path):
  diffusers = pytest.importorskip("diffusers")
  pipeline = pipelines.make("sdxl")
  betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
  pipeline.scheduler = diffusers.EulerDiscreteScheduler(**betas, timestep_spacing="leading", steps_offset=1)
  pipeline.save_pretrained(tmp_path)
  change(tmp_path / "scheduler/scheduler_config.json", set_alpha_to_one=False)  # as SDXL's has inherited it
  generator, params = generators.load(tmp_path)
  assert generator.stages[0].spacing == Spacing("leading", 1, clean=True)
  np.testing.assert_allclose(pipelines.ours(generator, params), pipelines.theirs(pipeline), atol=1e-3)


def test_what_a_schedulers_config_omits_is_its_classes_default(pipelines, tmp_path):
  diffusers = pytest.importorskip("diffusers")
  shutil.copytree(pipelines.folder("sd"), tmp_path / "sd")
  for name in (*generators.pipelines._LEADING, *generators.pipelines._LINSPACE):
    (tmp_path / "sd/scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": name}))
    usual = inspect.signature(getattr(diffusers, name)).parameters
    ends = usual["set_alpha_to_one"].default if "set_alpha_to_one" in usual else True
    found = generators.load(tmp_path / "sd")[0].stages[0]
    spacing = usual["timestep_spacing"].default if "timestep_spacing" in usual else "linspace"
    assert found.spacing == Spacing(spacing, 0, ends), name


def test_parameters_may_be_in_half_precision(pipelines):
  generator, params = generators.load(pipelines.folder("sdxl"))
  same, halves = generators.load(pipelines.folder("sdxl"), dtype=np.float16)
  assert {leaf.dtype for leaf in jax.tree.leaves(halves)} == {np.dtype(np.float16)}
  assert same.base(halves) == generator.base(params)
  np.testing.assert_allclose(pipelines.ours(same, halves), pipelines.ours(generator, params), atol=0.05)


@pytest.mark.parametrize(("name", "recipe"), [("sd", "sd15"), ("sdxl", "sdxl")])
def test_a_generator_has_its_familys_recipe(pipelines, name, recipe):
  generator, _ = generators.load(pipelines.folder(name))
  assert dreambooth.recipe(generator) == f"configs/dreambooth.py:{recipe}"


def test_sdxls_second_tokenizer_pads_as_it_says_and_an_empty_text_is_zeros(pipelines):
  generator, params = generators.load(pipelines.folder("sdxl"))
  ids, mask = generator.tokenizer(["a dog", ""])
  assert ids.shape == (2, 2, 12) and mask.sum(axis=1).tolist() == [4, 2]
  assert ids[0, 0, -1] == generator.tokenizer.inner.eos_token_id != ids[0, 1, -1]
  text = generator.encode(params, ["a dog", ""])
  assert not np.any(text.tokens[1]) and not np.any(text.pooled[1])
  assert np.abs(text.tokens[0]).max() > 0.1 and np.abs(text.pooled[0]).max() > 0.01


@pytest.mark.parametrize(
  ("damage", "problem"),
  [
    (lambda folder: shutil.rmtree(folder / "vae"), "no folder .*vae"),
    (lambda folder: shutil.rmtree(folder / "tokenizer"), "no folder .*tokenizer"),
    (lambda folder: shutil.rmtree(folder / "scheduler"), "holds no scheduler_config.json"),
    (
      lambda folder: change(folder / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
      "zero_snr is True",
    ),
    (lambda folder: change(folder / "scheduler/scheduler_config.json", beta_schedule="cubic"), "unknown table 'cubic'"),
    (lambda folder: change(folder / "scheduler/scheduler_config.json", prediction_type="flow"), "prediction_type is"),
    (
      lambda folder: change(folder / "scheduler/scheduler_config.json", _class_name="Flow"),
      "describes a 'Flow', not one of",
    ),
    (lambda folder: (folder / "scheduler/scheduler_config.json").write_text("{"), "scheduler_config.json is no JSON"),
    (lambda folder: (folder / "model_index.json").write_text("[]"), "model_index.json holds a list"),
    (lambda folder: change(folder / "unet/config.json", cross_attention_dim=9), "attn2.to_k.weight has shape"),
    (
      lambda folder: change(folder / "model_index.json", _class_name="FluxPipeline"),
      "describes a FluxPipeline, not one of",
    ),
    (lambda folder: truncate(folder / "unet/diffusion_pytorch_model.safetensors"), "unet.*is no complete safetensors"),
  ],
)
def test_a_damaged_folder_is_refused(pipelines, tmp_path, damage, problem):
  shutil.copytree(pipelines.folder("sd"), tmp_path / "damaged")
  damage(tmp_path / "damaged")
  with pytest.raises((ValueError, FileNotFoundError), match=problem):
    generators.load(tmp_path / "damaged")


def change(path, **settings):
  path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_variants_of_half_precision_are_read(pipelines, tmp_path, variant):
  import torch

  folder = pipelines.folder("sd")
  shutil.copytree(folder, tmp_path / "half")
  (tmp_path / "half/unet/diffusion_pytorch_model.safetensors").unlink()
  half = {"fp16": torch.float16, "bf16": torch.bfloat16}[variant]
  pipelines.make("sd").unet.to(half).save_pretrained(tmp_path / "half/unet", variant=variant)
  whole, found = generators.load(folder)[1], generators.load(tmp_path / "half")[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), found, whole)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))


def test_a_pipeline_comes_from_the_hub_without_what_is_not_read(pipelines, tmp_path, monkeypatch):
  asked = []

  def download(name, revision, allow_patterns):
    asked.append((name, revision))
    folder = pipelines.folder("sdxl")
    for path in (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()):
      if list(huggingface_hub.utils.filter_repo_objects([path], allow_patterns=allow_patterns)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / path, tmp_path / path)
    others = ["sd_xl_base_1.0.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.onnx"]
    assert not list(huggingface_hub.utils.filter_repo_objects(others, allow_patterns=allow_patterns))
    return tmp_path

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  generator, params = generators.load("someone/sd-xl")
  wanted, same = generators.load(pipelines.folder("sdxl"))
  assert asked == [("someone/sd-xl", None)] and generator.stages == wanted.stages
  jax.tree.map(np.testing.assert_array_equal, params, same)
  with pytest.raises(FileNotFoundError, match="nor a generator of that name"):
    generators.load(tmp_path.name + "/none/such")
  assert len(asked) == 1


def test_what_does_not_go_together_is_refused(pipelines):
  generator, _ = generators.load(pipelines.folder("sd"))
  with pytest.raises(UserError, match="there is an autoencoder if and only if a stage samples latents"):
    cascades.Cascade("x", generator.text_encoder, generator.tokenizer, generator.stages)
  with pytest.raises(UserError, match="latents are sampled by one stage, not 2"):
    cascades.Cascade("x", generator.text_encoder, generator.tokenizer, generator.stages * 2, generator.autoencoder)
