"""Stable Diffusion and SDXL as diffusers' folders: read, drawn with, and written so that diffusers draws the same."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest

from dreamjax import generators
from dreamjax.diffusion import process
from dreamjax.generators import cascade as cascades
from dreamjax.generators import files
from dreamjax.generators.cascade import Sampling

PROMPTS = ["a red dog", "a dog on the beach"]
SIDE, STEPS, GUIDANCE = 8, 10, 3.0


def make_tokenizer(pad):
  """CLIP's byte pair encoding with single letters and a few words."""
  import transformers

  letters = [chr(i) for i in range(97, 123)]
  pieces = [*letters, *(f"{letter}</w>" for letter in letters), "do", "dog</w>", "re", "red</w>"]
  vocab = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>", "!"])}
  merges = [("d", "o"), ("do", "g</w>"), ("r", "e"), ("re", "d</w>")]
  return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=12, pad_token=pad)


def make_tower(tokenizer, width, *, projects):
  import transformers

  kind = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
  config = transformers.CLIPTextConfig(
    vocab_size=len(tokenizer),
    hidden_size=width,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=12,
    projection_dim=10,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
    hidden_act="gelu" if projects else "quick_gelu",
  )
  return kind(config)


def make_pipeline(kind):
  """A pipeline of diffusers with random weights."""
  torch = pytest.importorskip("torch")
  import diffusers

  torch.manual_seed(0)
  xl = kind == "sdxl"
  first, second = make_tokenizer("<|endoftext|>"), make_tokenizer("!")
  options = {
    "sample_size": SIDE,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 20 if xl else 8,
    "attention_head_dim": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
  }
  if xl:
    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "use_linear_projection": True}
    options |= more | {"projection_class_embeddings_input_dim": 6 * 4 + 10}
  unet = diffusers.UNet2DConditionModel(**options)
  vae = diffusers.AutoencoderKL(
    block_out_channels=(8, 8),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=4,
    scaling_factor=0.18215,
  )
  scheduler = diffusers.DDIMScheduler(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
    prediction_type="v_prediction" if kind == "sd-v" else "epsilon",
  )
  parts = {"vae": vae, "unet": unet, "scheduler": scheduler, "tokenizer": first}
  parts["text_encoder"] = make_tower(first, 8, projects=False)
  if xl:
    texts = {"text_encoder_2": make_tower(second, 12, projects=True), "tokenizer_2": second}
    return diffusers.StableDiffusionXLPipeline(**parts, **texts, add_watermarker=False)
  absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
  return diffusers.StableDiffusionPipeline(**parts, **absent)


def theirs(pipeline, noise):
  """What diffusers draws of a noise, in [-1, 1]."""
  import torch

  pipeline.set_progress_bar_config(disable=True)
  drawn = pipeline(
    PROMPTS,
    latents=torch.tensor(noise.transpose(0, 3, 1, 2)),
    num_inference_steps=STEPS,
    guidance_scale=GUIDANCE,
    output_type="np",
  )
  return 2 * drawn.images - 1


def ours(folder, seed=3):
  """What we draw, and of which noise."""
  generator, params = generators.load(folder)
  samplings = [Sampling(steps=STEPS, guidance=GUIDANCE)]
  drawn = generators.sample(generator, params, PROMPTS, samplings=samplings, seed=seed, size=2)
  keys = process.fold(cascades.keys_of(seed, [0, 1]), 0)
  return drawn, np.asarray(process.draw_noise(keys, (SIDE, SIDE, 4)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Pipelines by name, each beside the folder that diffusers wrote."""
  made = {}

  def get(name):
    if name not in made:
      pipeline = make_pipeline(name)
      folder = tmp_path_factory.mktemp(name)
      pipeline.save_pretrained(folder)
      made[name] = pipeline, folder
    return made[name]

  return get


@pytest.mark.parametrize("name", ["sd", "sd-v", "sdxl"])
def test_pictures_are_those_that_diffusers_draws(folders, name, tmp_path):
  pipeline, folder = folders(name)
  drawn, noise = ours(folder)
  wanted = theirs(pipeline, noise)
  assert drawn.shape == (2, 2 * SIDE, 2 * SIDE, 3) and wanted.std() > 0.05
  np.testing.assert_allclose(drawn, wanted, atol=1e-3)
  files.save(tmp_path / "ours", *generators.load(folder), dtype=np.float32)
  written = type(pipeline).from_pretrained(tmp_path / "ours")
  np.testing.assert_allclose(theirs(written, noise), wanted, atol=1e-4)
  generator, params = generators.load(folder)
  again, same = generators.load(tmp_path / "ours")
  assert again.stages == generator.stages and again.autoencoder == generator.autoencoder
  jax.tree.map(np.testing.assert_array_equal, same, params)


def test_sdxls_second_tokenizer_pads_as_it_says_and_an_empty_text_is_zeros(folders):
  _, folder = folders("sdxl")
  generator, params = generators.load(folder)
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
    (lambda folder: change(folder / "unet/config.json", cross_attention_dim=9), "attn2.to_k.weight has shape"),
    (lambda folder: change(folder / "model_index.json", _class_name="FluxPipeline"), "describes a FluxPipeline"),
    (lambda folder: truncate(folder / "unet/diffusion_pytorch_model.safetensors"), "unet.*is no complete safetensors"),
  ],
)
def test_a_damaged_folder_is_refused(folders, tmp_path, damage, problem):
  shutil.copytree(folders("sd")[1], tmp_path / "damaged")
  damage(tmp_path / "damaged")
  with pytest.raises((ValueError, FileNotFoundError), match=problem):
    generators.load(tmp_path / "damaged")


def change(path, **settings):
  path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_variants_of_half_precision_are_read(folders, tmp_path, variant):
  torch = pytest.importorskip("torch")
  pipeline, folder = folders("sd")
  shutil.copytree(folder, tmp_path / "half")
  (tmp_path / "half/unet/diffusion_pytorch_model.safetensors").unlink()
  half = {"fp16": torch.float16, "bf16": torch.bfloat16}[variant]
  copy.deepcopy(pipeline.unet).to(half).save_pretrained(tmp_path / "half/unet", variant=variant)
  whole, found = generators.load(folder)[1], generators.load(tmp_path / "half")[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), found, whole)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))


def test_what_does_not_go_together_is_refused(folders):
  generator, _ = generators.load(folders("sd")[1])
  with pytest.raises(ValueError, match="there is an autoencoder if and only if a stage draws latents"):
    cascades.Cascade("x", generator.text_encoder, generator.tokenizer, generator.stages)
  with pytest.raises(ValueError, match="latents are drawn by one stage, not 2"):
    cascades.Cascade("x", generator.text_encoder, generator.tokenizer, generator.stages * 2, generator.autoencoder)
