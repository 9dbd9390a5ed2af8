"""DreamBooth's loss on published networks: its gradient is that of diffusers' training scripts, in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import generators
from dreamjax.convert import clip, latent_unet, unet
from dreamjax.convert.table import Header
from dreamjax.data.photos import Batch
from dreamjax.diffusion import process
from dreamjax.diffusion.resolution import downsample, upsample
from dreamjax.generators.generator import TEXT
from dreamjax.methods import dreambooth

PROMPTS, WEIGHT, LEVEL = ["a red dog", "a dog"], 0.7, 0.25  # of a photo and of an image of the class; lambda; a time


def ours(generator, params, stage, image, config):
  """The gradient of the loss with respect to all parameters, and the timesteps and the noise of the loss."""
  settings = config.stages[stage.name]
  settings.batch_size = settings.prior_batch_size = 1
  theta = dreambooth.first_theta(generator, params, stage, config, (0,))
  loss, _ = dreambooth.objective(generator, stage, config, theta)
  prompt = generator.tokenizer(PROMPTS) if TEXT in theta else generator.encode(params, PROMPTS)
  weights = np.float32([2.0, 2.0 * WEIGHT])  # as `dreambooth.RowSource` has them
  rows, key = Batch(image, prompt, weights, {"prior": np.array([False, True])}), jax.random.key(3)
  frozen = {name: params[name] for name in {stage.name, *theta}}
  gradient, _ = jax.jit(jax.grad(loss, has_aux=True))(theta, frozen, rows, key)
  noise_key, time_key, _, _ = jax.random.split(key, 4)  # as the loss splits it
  keys = jax.random.split(noise_key, 2)
  return (
    {name: theta.weights for name, theta in gradient.items()},
    np.asarray(stage.schedule.timestep(stage.schedule.draw(time_key, 2))),
    np.asarray(process.draw_noise(keys, image.shape[1:])),
    np.asarray(process.draw_noise(process.fold_in(keys, process._AUGMENTATION), image.shape[1:])),
  )


def torch_backward(prediction, target):
  """Computes gradients of the mean squared error of the subject plus lambda times that of the class."""
  import torch

  subject, prior = (torch.nn.functional.mse_loss(prediction[i : i + 1], target[i : i + 1]) for i in (0, 1))
  (subject + WEIGHT * prior).backward()


def assert_same(found, table, network, prefix=""):
  """Our gradients equal the network's, but for those that are only rounding errors, such as of a key's bias."""
  tensors = {prefix + name: x.grad.numpy() for name, x in network.named_parameters() if x.grad is not None}
  headers = {key: Header(x.shape, "") for key, x in tensors.items()}
  wanted = table.to_ours(found, headers, tensors.__getitem__, np.float32)
  scale = max(np.abs(x).max() for x in jax.tree.leaves(wanted))
  assert scale > 1e-3

  def compare(path, one, other):
    error = np.abs(one - other).max() / max(np.abs(other).max(), 1e-4 * scale)
    assert error < 1e-3, (jax.tree_util.keystr(path), error)

  jax.tree_util.tree_map_with_path(compare, found, wanted)


@pytest.mark.parametrize("name", ["sd", "sd-v", "sdxl"])
def test_of_stable_diffusion_and_its_text_encoders(pipelines, name):
  torch = pytest.importorskip("torch")

  generator, params = generators.load(pipelines.folder(name))
  (stage,) = generator.stages
  config = dreambooth.default_config(("base",))
  config.train_text = "tuned"
  image = np.random.default_rng(0).standard_normal((2, 8, 8, 4), np.float32)
  found, timesteps, eps, _ = ours(generator, params, stage, image, config)

  pipeline = pipelines.make(name)
  x, noise = (torch.tensor(y.transpose(0, 3, 1, 2)) for y in (image, eps))
  t, more = torch.tensor(timesteps, dtype=torch.long), {}
  ids = [torch.tensor(tokenizer(PROMPTS)[0], dtype=torch.long) for tokenizer in generator.tokenizer.all]
  if name == "sdxl":
    texts = [
      encoder(tokens, output_hidden_states=True)
      for encoder, tokens in zip((pipeline.text_encoder, pipeline.text_encoder_2), ids, strict=True)
    ]
    text = torch.cat([encoded.hidden_states[-2] for encoded in texts], -1)
    sizes = torch.tensor([stage.sizes] * 2, dtype=torch.float32)
    more["added_cond_kwargs"] = {"text_embeds": texts[1].text_embeds, "time_ids": sizes}
  else:
    text = pipeline.text_encoder(ids[0])[0]
  prediction = pipeline.unet(pipeline.scheduler.add_noise(x, noise, t), t, text, **more).sample
  torch_backward(prediction, pipeline.scheduler.get_velocity(x, noise, t) if name == "sd-v" else noise)

  assert_same(found["base"], latent_unet.TABLE, pipeline.unet)
  encoders = [pipeline.text_encoder, *([pipeline.text_encoder_2] if name == "sdxl" else [])]
  for i, encoder in enumerate(encoders):
    own = found[TEXT][f"towers_{i}"]
    if name == "sdxl":  # layers behind the penultimate hidden states have no gradient
      own = {key: x for key, x in own.items() if any(np.any(y) for y in jax.tree.leaves(x))}
    assert_same(own, clip.TEXT_TABLE, encoder, "" if hasattr(encoder, "text_model") else "text_model.")


def test_of_deepfloyd_if_both_stages(deepfloyd):
  torch = pytest.importorskip("torch")

  generator, params = generators.load(deepfloyd.name)
  config = dreambooth.default_config()
  text = torch.tensor(np.asarray(generator.encode(params, PROMPTS).tokens))
  for stage, pipeline in zip(generator.stages, deepfloyd.pipelines, strict=True):
    image = np.random.default_rng(0).uniform(-1, 1, (2, stage.image, stage.image, 3)).astype(np.float32)
    config.stages[stage.name].augmentation_levels = (LEVEL, LEVEL)
    found, timesteps, eps, low_eps = ours(generator, params, stage, image, config)
    x, noise, low_noise = (torch.tensor(y.transpose(0, 3, 1, 2)) for y in (image, eps, low_eps))
    t, more = torch.tensor(timesteps, dtype=torch.long), {}
    x_t = pipeline.scheduler.add_noise(x, noise, t)
    if stage.is_super_resolution:
      low = np.asarray(upsample(downsample(jnp.asarray(image), generator.stages[0].image), stage.image))
      more["class_labels"] = torch.full((2,), round(1000 * LEVEL) - 1)
      low = torch.tensor(low.transpose(0, 3, 1, 2))
      low = pipeline.image_noising_scheduler.add_noise(low, low_noise, more["class_labels"])
      x_t = torch.cat([x_t, low], 1)
    torch_backward(pipeline.unet(x_t, t, text, **more).sample[:, :3], noise)
    assert_same(found[stage.name], unet.TABLE, pipeline.unet)
