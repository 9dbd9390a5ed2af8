"""aMUSEd as a folder of diffusers: parity of its images, what is written back, and a style that it learns."""

import dataclasses
import functools
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import generators
from dreamjax.commands import configs
from dreamjax.commands import dreambooth as commands
from dreamjax.data import image_folder
from dreamjax.diffusion.process import fold_in
from dreamjax.errors import UserError
from dreamjax.generators import interop
from dreamjax.generators.conditioning import Conditioning
from dreamjax.generators.generator import image_keys
from dreamjax.generators.masked import Masked
from dreamjax.masked import decoding
from dreamjax.methods import styledrop
from dreamjax.theta import Adapters, Card, Embeddings, Full, LoRA, Personalisation

PROMPTS = ["a red dog", "a dog on the beach"]
SEED, STEPS, GUIDANCE = 3, 10, 4.0
SIDE, WORDS = 4, 12  # of images in tokens, and of the codebook

TRANSFORMER = {
  "hidden_size": 16, "cond_embed_dim": 10, "micro_cond_encode_dim": 8, "micro_cond_embed_dim": 40,
  "encoder_hidden_size": 8, "vocab_size": 16, "codebook_size": WORDS, "in_channels": 12, "block_out_channels": 12,
  "num_res_blocks": 1, "downsample": True, "upsample": True, "block_num_heads": 2, "num_hidden_layers": 2,
  "num_attention_heads": 2, "intermediate_size": 20, "sample_size": SIDE,
}  # fmt: skip
VQ = {
  "block_out_channels": (8, 12), "down_block_types": ("DownEncoderBlock2D",) * 2,
  "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1, "latent_channels": 6, "norm_num_groups": 4,
  "num_vq_embeddings": WORDS, "mid_block_add_attention": False, "lookup_from_codebook": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def amused(tmp_path_factory, pipelines):
  """A pipeline of diffusers with random weights, and the folder where it wrote them."""
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  torch.manual_seed(0)
  words = pipelines.tokenizer("!")
  parts = {"tokenizer": words, "text_encoder": pipelines.tower(words, 8, projects=True)}
  parts |= {"transformer": diffusers.UVit2DModel(**TRANSFORMER), "vqvae": diffusers.VQModel(**VQ)}
  pipeline = diffusers.AmusedPipeline(**parts, scheduler=diffusers.AmusedScheduler(mask_token_id=15))
  with torch.no_grad():
    for network in (pipeline.transformer, pipeline.vqvae):
      for weights in network.parameters():
        if weights.ndim > 1:
          weights.mul_(3)  # or all would be much alike
    pipeline.vqvae.quantize.embedding.weight.normal_()
  pipeline.set_progress_bar_config(disable=True)
  folder = tmp_path_factory.mktemp("amused")
  pipeline.save_pretrained(folder)
  return types.SimpleNamespace(pipeline=pipeline, folder=folder)


def theirs(pipeline, monkeypatch, steps=STEPS):
  """The images that diffusers samples from our noise, at its own temperature, in [-1, 1]."""
  from diffusers.schedulers import scheduling_amused
  import torch

  keys = fold_in(image_keys(SEED, [0, 1]), 0)
  noise = [[np.asarray(x) for x in decoding._noise(keys, jnp.int32(k), (SIDE**2, WORDS))] for k in range(1, steps + 1)]
  words, positions = (iter(kind) for kind in zip(*noise, strict=True))
  # The greatest of log p + Gumbel noise is a sample of p.
  draw = lambda p, *_, **__: (torch.log(p) + torch.tensor(next(words)).reshape(p.shape)).argmax(-1, keepdim=True)  # noqa: E731
  monkeypatch.setattr(torch, "multinomial", draw)
  monkeypatch.setattr(scheduling_amused, "gumbel_noise", lambda *_, **__: torch.tensor(next(positions)))
  options = {"num_inference_steps": steps, "guidance_scale": GUIDANCE}
  return 2 * pipeline(PROMPTS, output_type="np", **options).images - 1


def ours(generator, params, theta=None, steps=STEPS):
  """The images that we sample, with the temperature and the weights of guidance that diffusers has."""
  (stage,) = generator.stages
  own = dataclasses.replace(stage.sampling, steps=steps, lambda_a=0.0, lambda_b=GUIDANCE - 1)
  return generators.sample(generator, params, PROMPTS, theta=theta, samplings=[own], seed=SEED, batch_size=2)


@pytest.mark.parametrize("steps", [5, 12])
def test_images_are_diffusers_for_any_number_of_steps(amused, monkeypatch, steps):
  generator, params = generators.load(amused.folder)
  wanted = theirs(amused.pipeline, monkeypatch, steps)
  np.testing.assert_allclose(ours(generator, params, steps=steps), wanted, atol=1e-3)


def test_images_are_those_of_diffusers(amused, monkeypatch, tmp_path):
  generator, params = generators.load(amused.folder)
  (stage,) = generator.stages
  assert isinstance(generator, Masked) and generator.resolution == SIDE * 2
  assert commands.recipe(generator) == "configs/styledrop.py:amused512"
  assert stage.sampling.steps == 12 and stage.sampling.lambda_b == 9 and stage.numbers == (8, 8, 0, 0, 6)
  assert stage.sampling.temperature == 2 and stage.sampling.starts_at_temperature
  images, wanted = ours(generator, params), theirs(amused.pipeline, monkeypatch)
  assert wanted.std() > 0.1 and np.abs(wanted[0] - wanted[1]).max() > 0.1
  np.testing.assert_allclose(images, wanted, atol=1e-3)

  generators.save(tmp_path / "ours", generator, params, dtype=np.float32)
  written = type(amused.pipeline).from_pretrained(tmp_path / "ours")
  written.set_progress_bar_config(disable=True)
  np.testing.assert_allclose(theirs(written, monkeypatch), wanted, atol=1e-4)
  again, same = generators.load(tmp_path / "ours")
  assert again.stages == generator.stages
  jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize("kind", [LoRA, Full])
def test_images_with_an_exported_theta_are_those_of_diffusers_and_it_loads_again(amused, monkeypatch, tmp_path, kind):
  pytest.importorskip("peft")
  import torch

  generator, params = generators.load(amused.folder)
  transformer, rng = params["base"]["transformer"], np.random.default_rng(0)
  if kind is LoRA:
    theta = LoRA.init(jax.random.key(0), transformer, 2, alpha=3.0, pattern="(query|key|value)$")
    theta = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), theta)
  else:
    theta = Full(jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), transformer))
  made = Personalisation({"base": theta}, Card(generator.base(params), "qx", "dog", {}))
  images = ours(generator, params, made)
  assert np.abs(images - ours(generator, params)).max() > 0.1
  pipeline = type(amused.pipeline).from_pretrained(amused.folder)
  (file,) = interop.save(tmp_path / "out", "diffusers", generator, params, made)
  if kind is LoRA:
    pipeline.transformer.load_lora_adapter(tmp_path / "out", weight_name=file.name)
    again = generators.load_theta(file, generator, params)
    np.testing.assert_allclose(ours(generator, params, again), images, atol=1e-4)
    params = {**params, "base": {**params["base"], "transformer": theta.merge(transformer)}}  # diffusers' guidance
    for layout, problem in (("kohya", "is for Stable Diffusion and SDXL, not for"), ("onnx", "unknown format")):
      with pytest.raises(UserError, match=problem):
        interop.save(tmp_path / "no", layout, generator, params, made)
  else:
    pipeline = type(amused.pipeline).from_pretrained(file).to(dtype=torch.float32)
    generator, params = generators.load(file)  # in half precision, and one other token would change an image
    found = params["base"]["transformer"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), found, theta.weights)
  pipeline.set_progress_bar_config(disable=True)
  np.testing.assert_allclose(ours(generator, params), theirs(pipeline, monkeypatch), atol=1e-3)


def test_a_style_of_full_weights_mixes_with_another_theta(amused):
  generator, params = generators.load(amused.folder)
  transformer = params["base"]["transformer"]
  full, low = Full.init(transformer), LoRA.init(jax.random.key(0), transformer, 2, pattern="query$")
  card = Card(generator.base(params), "", "", {"style": "in crayon style"})
  made = [Personalisation({"base": theta}, card) for theta in (full, low)]
  same = generators.sample(generator, params, ["a dog"], theta=made[0], seed=SEED)
  plain = generators.sample(generator, params, ["a dog in crayon style"], seed=SEED)
  np.testing.assert_array_equal(same, plain)
  mixed = generators.sample(generator, params, ["a dog"], theta=made, seed=SEED)  # neither changes the base model
  np.testing.assert_allclose(mixed, plain, atol=1e-4)


def test_tuned_weights_and_embeddings_are_a_folder_of_diffusers(amused, tmp_path):
  generator, params = generators.load(amused.folder)
  embeddings = Embeddings.init(params["text"], (3,))
  rng = np.random.default_rng(0)
  thetas = {
    "base": Full(jax.tree.map(lambda x: x + np.float32(0.5), params["base"]["transformer"])),
    "text": jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), embeddings),
  }
  made = Personalisation(thetas, Card(generator.base(params), "qx", "dog", {}))
  (folder,) = interop.save(tmp_path / "out", "diffusers", generator, params, made)
  _, found = generators.load(folder)
  same = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)  # in half precision
  jax.tree.map(same, found["base"]["transformer"], thetas["base"].weights)
  jax.tree.map(same, found["text"], thetas["text"].merge(params["text"]))
  jax.tree.map(same, found["base"]["vqgan"], params["base"]["vqgan"])


def test_tokens_are_those_of_diffusers(amused):
  import torch

  generator, params = generators.load(amused.folder)
  (stage,) = generator.stages
  images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)  # aMUSEd's are from 0 to 1, ours from -1 to 1
  vqvae = amused.pipeline.vqvae
  with torch.no_grad():
    z = vqvae.encode(torch.tensor(images.transpose(0, 3, 1, 2))).latents
    wanted = vqvae.quantize(z)[2][2].reshape(2, -1).numpy()
  found = stage.encode(params["base"], jnp.asarray(2 * images - 1))
  assert len(np.unique(wanted)) > 1
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", ["lora", "adapters", "full"])
def test_a_style_is_learned(amused, tmp_path, kind):
  rng = np.random.default_rng(0)
  image_folder.write(tmp_path / "style", [(rng.random((8, 8, 3), np.float32), {"text": "a dog in crayon style"})])
  pattern = "" if kind == "full" else "(query|key|value)$"
  few = ("steps=3", "optimizer.warmup=0", f"kind={kind}", f"pattern={pattern}")
  few = [f"--config.first.base.{field}" for field in few]
  config = configs.load("configs/styledrop.py:amused512", few)
  generator, params = generators.load(amused.folder)
  theta = styledrop.styledrop(generator, params, tmp_path / "style", workdir=tmp_path / "run", config=config)
  assert isinstance(theta.thetas["base"], {"lora": LoRA, "adapters": Adapters, "full": Full}[kind])
  back = generators.load_theta(tmp_path / "run" / "theta.safetensors", generator, params)
  (stage,) = generator.stages
  text = generator.encode(params, ["a cat in crayon style"])
  masked = jnp.full((1, SIDE**2), stage.transformer.mask_id, jnp.int32)
  plain, styled = (
    stage.predict(params["base"], own, masked, Conditioning(text)) for own in (None, back.thetas["base"])
  )
  assert 1e-5 < np.abs(styled - plain).max() < 1e3
  images = generators.sample(generator, params, ["a cat"], theta=back)
  assert images.shape == (1, 8, 8, 3) and np.isfinite(images).all()


@pytest.mark.parametrize(
  ("path", "changes", "problem"),
  [
    ("scheduler/scheduler_config.json", {"masking_schedule": "linear"}, "masking_schedule is 'linear'"),
    ("scheduler/scheduler_config.json", {"mask_token_id": 12}, "mask_token_id is 12, but the transformer's is 15"),
    ("transformer/config.json", {"codebook_size": 13}, "has shape"),
  ],
)
def test_a_folder_that_does_not_fit_is_refused(amused, tmp_path, path, changes, problem):
  shutil.copytree(amused.folder, tmp_path / "damaged")
  file = tmp_path / "damaged" / path
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))
  with pytest.raises(ValueError, match=problem):
    generators.load(tmp_path / "damaged")


def test_what_does_not_go_together_is_refused(amused):
  generator, _ = generators.load(amused.folder)
  (stage,) = generator.stages
  with pytest.raises(UserError, match="conditioned on 5 numbers about an image, not 0"):
    dataclasses.replace(stage, numbers=())
  with pytest.raises(UserError, match="is not conditioned on smaller images"):
    dataclasses.replace(generator, stages=(stage, stage))
