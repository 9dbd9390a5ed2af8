"""The VQGAN against diffusers' `VQModel`, and what its tokens are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models.vqgan import VQGAN

SMALL = VQGAN(widths=(8, 12), blocks=1, latent=4, embedding=3, codebook=20, groups=4)


def test_latents_tokens_reconstructions_and_gradients_are_those_of_the_original(twin, assert_same):
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
    made, z, tokens = SMALL.apply({"params": params}, images)
    nearest = params["codebook"][tokens].reshape(z.shape)
    return jnp.sum(made * weights) + jnp.sum(jnp.square(nearest)), (made, z, tokens)

  (ours, gradients) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(pair.params, images)
  pixels = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
  z = original.encode(pixels).latents
  nearest, _, (_, _, tokens) = original.quantize(z)
  made = original.decode(z).sample
  own = original.quantize.embedding(tokens)
  wanted = pair.gradients((made * torch.tensor(weights.transpose(0, 3, 1, 2))).sum() + own.square().sum())
  assert len(set(tokens.tolist())) > 3
  np.testing.assert_array_equal(ours[1][2].ravel(), tokens.numpy())
  turned = [x.detach().numpy().transpose(0, 2, 3, 1) for x in (made, z)]
  assert_same(ours[1][:2], tuple(turned))
  assert_same(gradients, (wanted, pixels.grad.numpy().transpose(0, 2, 3, 1)))


def test_tokens_are_decoded_as_what_they_stand_for(draw):
  module = SMALL.clone(patch=2)
  images = jnp.asarray(np.random.default_rng(1).standard_normal((3, 16, 16, 3), np.float32))
  variables = draw(module, images)
  made, z, tokens = module.apply(variables, images)
  assert tokens.shape == (3, 16) and module.factor == 4
  np.testing.assert_array_equal(module.apply(variables, images, method="tokens"), tokens)
  np.testing.assert_allclose(module.apply(variables, tokens, method="decode"), made, atol=1e-4)
  flat = np.asarray(z).reshape(3, 16, 1, 3)
  distances = np.square(flat - variables["params"]["codebook"]).sum(-1)
  chosen = np.take_along_axis(distances, np.asarray(tokens)[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(chosen, distances.min(-1), rtol=1e-4)


def test_images_and_tokens_that_do_not_fit_are_refused(draw):
  with pytest.raises(ValueError, match="images of 8x9 cannot be cut into squares of 2x2 pixels"):
    jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, 8, 9, 3)))
  variables = draw(SMALL, jnp.zeros((1, 2, 2, 3)))
  with pytest.raises(ValueError, match="12 tokens are no square"):
    SMALL.apply(variables, jnp.zeros((1, 12), jnp.int32), method="decode")
