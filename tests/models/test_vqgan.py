"""The VQGAN compared with diffusers' `VQModel`, and the definition of its tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models.vqgan import VQGAN

SMALL = VQGAN(widths=(8, 12), blocks=1, latent=4, embedding=3, codebook=20, groups=4)


def test_latents_tokens_reconstructions_and_gradients_equal_the_original(twin, assert_same):
  torch = pytest.importorskip("torch")
  import diffusers

  original = diffusers.VQModel(
    block_out_channels=(8, 12),
    layers_per_block=1,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    latent_channels=4,
    vq_embed_dim=3,
    num_vq_embeddings=20,
    norm_num_groups=4,
    mid_block_add_attention=False,
  )
  pair = twin(original)
  assert pair.module == SMALL
  rng = np.random.default_rng(0)
  images = rng.standard_normal((2, 8, 8, 3), np.float32)
  weights = rng.standard_normal((2, 8, 8, 3), np.float32)

  def loss(params, images):
    reconstructions, z, tokens = SMALL.apply({"params": params}, images)
    nearest = params["codebook"][tokens].reshape(z.shape)
    return jnp.sum(reconstructions * weights) + jnp.sum(jnp.square(nearest)), (reconstructions, z, tokens)

  (ours, gradients) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(pair.params, images)
  pixels = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
  z = original.encode(pixels).latents
  nearest, _, (_, _, tokens) = original.quantize(z)
  reconstructions = original.decode(z).sample
  vectors = original.quantize.embedding(tokens)
  expected = pair.gradients(
    (reconstructions * torch.tensor(weights.transpose(0, 3, 1, 2))).sum() + vectors.square().sum()
  )
  assert len(set(tokens.tolist())) > 3
  np.testing.assert_array_equal(ours[1][2].ravel(), tokens.numpy())
  theirs = [x.detach().numpy().transpose(0, 2, 3, 1) for x in (reconstructions, z)]
  assert_same(ours[1][:2], tuple(theirs))
  assert_same(gradients, (expected, pixels.grad.numpy().transpose(0, 2, 3, 1)))


def test_tokens_are_the_nearest_vectors_and_decode_to_the_reconstructions(draw):
  module = SMALL.clone(patch=2)
  images = jnp.asarray(np.random.default_rng(1).standard_normal((3, 16, 16, 3), np.float32))
  variables = draw(module, images)
  reconstructions, z, tokens = module.apply(variables, images)
  assert tokens.shape == (3, 16) and module.factor == 4
  np.testing.assert_array_equal(module.apply(variables, images, method="tokens"), tokens)
  np.testing.assert_allclose(module.apply(variables, tokens, method="decode"), reconstructions, atol=1e-4)
  flat = np.asarray(z).reshape(3, 16, 1, 3)
  distances = np.square(flat - variables["params"]["codebook"]).sum(-1)
  minimum = np.take_along_axis(distances, np.asarray(tokens)[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(minimum, distances.min(-1), rtol=1e-4)


def test_images_and_tokens_of_a_wrong_size(draw):
  with pytest.raises(ValueError, match="height and width of 8x9 images are not divisible by 2"):
    jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, 8, 9, 3)))
  variables = draw(SMALL, jnp.zeros((1, 2, 2, 3)))
  with pytest.raises(ValueError, match="the number of tokens, 12, is not a square"):
    SMALL.apply(variables, jnp.zeros((1, 12), jnp.int32), method="decode")
