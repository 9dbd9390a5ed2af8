"""Stable Diffusion's autoencoder compared with diffusers' `AutoencoderKL`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models.autoencoder import Autoencoder


def test_latents_reconstructions_and_gradients_equal_the_original(twin, assert_same):
  torch = pytest.importorskip("torch")
  import diffusers

  original = diffusers.AutoencoderKL(
    block_out_channels=(8, 12),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    latent_channels=3,
    norm_num_groups=4,
    scaling_factor=0.4,
    shift_factor=0.1,
  )
  pair = twin(original)
  module = Autoencoder(widths=(8, 12), blocks=1, latent=3, scale=0.4, shift=0.1, groups=4)
  assert pair.module == module
  rng = np.random.default_rng(0)
  images, weights = rng.standard_normal((2, 2, 8, 4, 3), np.float32)
  eps = rng.standard_normal((2, 4, 2, 3), np.float32)

  def loss(params, images):
    z = module.apply({"params": params}, images, jnp.asarray(eps), method="encode")
    reconstructions = module.apply({"params": params}, z, method="decode")
    return jnp.sum(reconstructions * weights), (z, reconstructions)

  (_, ours), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(pair.params, images)
  pixels = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
  gaussian = original.encode(pixels).latent_dist
  z = (gaussian.mean + gaussian.std * torch.tensor(eps.transpose(0, 3, 1, 2)) - 0.1) * 0.4
  reconstructions = original.decode(z / 0.4 + 0.1).sample
  expected = pair.gradients((reconstructions * torch.tensor(weights.transpose(0, 3, 1, 2))).sum())
  theirs = [x.detach().numpy().transpose(0, 2, 3, 1) for x in (z, reconstructions)]
  assert_same(ours, tuple(theirs))
  assert_same(gradients, (expected, pixels.grad.numpy().transpose(0, 2, 3, 1)), 1e-3)


def test_images_that_cannot_be_downsampled():
  module = Autoencoder(widths=(4, 4), blocks=1, latent=3, groups=4)
  with pytest.raises(ValueError, match="height and width of 8x9 images are not divisible by 2"):
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 9, 3)))
