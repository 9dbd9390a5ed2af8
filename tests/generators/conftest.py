"""Pipelines of diffusers with small random networks, and the images that they and we sample with them."""

import types

import numpy as np
import pytest

from dreamjax import generators
from dreamjax.data import tokenizer as tokenizers
from dreamjax.diffusion import process
from dreamjax.generators.cascade import Sampling
from dreamjax.generators.generator import image_keys

PROMPTS = ["a red dog", "a dog on the beach"]
SIDE, STEPS, GUIDANCE, SEED = 8, 10, 3.0, 3


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


def make_control(pipeline):
  """A pipeline of the same parts with a ControlNet of random weights.

  The convolutions that start at zero are random, too: otherwise the images would not depend on the ControlNet.
  """
  import diffusers
  import torch

  network = diffusers.ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(4, 6))
  with torch.no_grad():
    for name, parameter in network.named_parameters():
      if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
        parameter.normal_(std=0.3)
  if "text_encoder_2" in pipeline.components:
    return diffusers.StableDiffusionXLControlNetPipeline(
      **pipeline.components, controlnet=network, add_watermarker=False
    )
  return diffusers.StableDiffusionControlNetPipeline(
    **pipeline.components, controlnet=network, requires_safety_checker=False
  )


def theirs(pipeline, prompts=PROMPTS, **more):
  """The images that diffusers samples from our noise, in [-1, 1]."""
  import torch

  pipeline.set_progress_bar_config(disable=True)
  sampled = pipeline(
    prompts,
    latents=torch.tensor(noise().transpose(0, 3, 1, 2)),
    num_inference_steps=STEPS,
    guidance_scale=GUIDANCE,
    output_type="np",
    **more,
  )
  return 2 * sampled.images - 1


def ours(generator, params, theta=None, prompts=PROMPTS, **more):
  """The images that we sample, in [-1, 1]."""
  options = {"samplings": [Sampling(steps=STEPS, guidance=GUIDANCE)], "seed": SEED, "batch_size": 2, **more}
  return generators.sample(generator, params, prompts, theta=theta, **options)


def noise():
  """The noise from which the images start."""
  keys = process.fold_in(image_keys(SEED, [0, 1]), 0)
  return np.asarray(process.draw_noise(keys, (SIDE, SIDE, 4)))


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
  """Pipelines of diffusers, by name.

  tokenizer, tower: make parts; make(name): a new pipeline; control(pipeline): one with a ControlNet besides;
  folder(name): the folder that diffusers wrote; theirs(pipeline), ours(generator, params): sampled images.
  """
  pytest.importorskip("torch")
  pytest.importorskip("diffusers")
  made = {}

  def folder(name):
    if name not in made:
      made[name] = tmp_path_factory.mktemp(name)
      make_pipeline(name).save_pretrained(made[name])
    return made[name]

  parts = {"tokenizer": make_tokenizer, "tower": make_tower, "control": make_control}
  return types.SimpleNamespace(make=make_pipeline, folder=folder, theirs=theirs, ours=ours, **parts)


IF_STAGE = {
  "out_channels": 6, "norm_num_groups": 4, "encoder_hid_dim": 16, "cross_attention_dim": 64, "attention_head_dim": 4,
  "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "encoder_hid_dim_type": "text_proj",
  "addition_embed_type": "text", "addition_embed_type_num_heads": 2, "cross_attention_norm": "group_norm",
  "resnet_time_scale_shift": "scale_shift", "block_out_channels": (8, 12), "layers_per_block": 1,
  "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
  "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}  # fmt: skip
IF_STAGES = (
  {"sample_size": 8, "in_channels": 3, "act_fn": "gelu"},
  {
    "sample_size": 16, "in_channels": 6, "class_embed_type": "timestep", "only_cross_attention": True, "act_fn": "gelu",
    "time_embedding_act_fn": "gelu", "time_embedding_dim": 64, "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1 / 0.7071, "mid_block_scale_factor": 1 / 0.7071,
  },
)  # fmt: skip


def make_stages():
  """Both pipelines of diffusers, with random weights."""
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  import transformers

  torch.manual_seed(0)
  words = tokenizers.train(["a dog on the beach", "a red cat in the snow", "qx zv wug"] * 3, 330)
  options = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 24, "num_layers": 2, "feed_forward_proj": "gated-gelu"}
  encoder = transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(words), **options)).eval()
  texts = {"tokenizer": words, "text_encoder": encoder}
  absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False, "watermarker": None}
  noise = {"beta_schedule": "squaredcos_cap_v2"}

  def scheduler(maximum):
    thresholds = {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": maximum}
    return diffusers.DDPMScheduler(variance_type="learned_range", **noise, **thresholds)

  nets = [diffusers.UNet2DConditionModel(**IF_STAGE, **own) for own in IF_STAGES]
  more = {"image_noising_scheduler": diffusers.DDPMScheduler(**noise)}
  base = diffusers.IFPipeline(**texts, unet=nets[0], scheduler=scheduler(1.5), **absent)
  larger = diffusers.IFSuperResolutionPipeline(**texts, unet=nets[1], scheduler=scheduler(1.0), **more, **absent)
  return base, larger


@pytest.fixture(scope="session")
def deepfloyd(tmp_path_factory):
  """Both stages of DeepFloyd IF: diffusers' pipelines, their folders, and the name of both together."""
  pipelines = make_stages()
  folders = [tmp_path_factory.mktemp(name) for name in ("I", "II")]
  for pipeline, folder in zip(pipelines, folders, strict=True):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
  return types.SimpleNamespace(pipelines=pipelines, folders=folders, name="+".join(map(str, folders)))
