"""The vision transformer compared with transformers' `ViTModel`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models import vit

SMALL = vit.ViT(image=16, patch=4, width=24, depth=2, heads=3, mlp=40)


def test_outputs_hidden_states_and_gradients_equal_the_original(twin, assert_same):
  torch = pytest.importorskip("torch")
  import transformers

  config = transformers.ViTConfig(
    image_size=16,
    patch_size=4,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    layer_norm_eps=0.1,
  )
  pair = twin(transformers.ViTModel(config, add_pooling_layer=False))
  rng = np.random.default_rng(0)
  images = rng.standard_normal((2, 16, 16, 3), np.float32)
  weights = rng.standard_normal((2, 17, 24), np.float32)

  def loss(params, images):
    tokens, out = pair.module.apply({"params": params}, images)
    return jnp.sum(tokens * weights), (tokens, out["hidden"])

  (ours, gradients) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(pair.params, images)

  pixels = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
  theirs = pair.original(pixels, output_hidden_states=True)
  hidden = tuple(state.detach().numpy() for state in theirs.hidden_states)
  assert_same(ours[1], (theirs.last_hidden_state.detach().numpy(), hidden))
  expected = pair.gradients((theirs.last_hidden_state * torch.tensor(weights)).sum())
  assert_same(gradients, (expected, pixels.grad.numpy().transpose(0, 2, 3, 1)))


def test_images_of_another_size():
  with pytest.raises(ValueError, match="16x16, not 16x20"):
    SMALL.init(jax.random.key(0), jnp.zeros((1, 16, 20, 3)))


def test_bfloat16_stays_close_and_norms_stay_in_float32(draw):
  images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
  variables = draw(SMALL, images)
  float32 = jax.jit(SMALL.apply)(variables, images)[0]
  bfloat16 = SMALL.clone(dtype=jnp.bfloat16)
  found, out = jax.jit(bfloat16.apply)(variables, images)
  assert all(leaf.dtype == jnp.float32 for leaf in (found, *out["hidden"]))
  assert 1e-5 < jnp.max(jnp.abs(found - float32)) < 0.05 * jnp.max(jnp.abs(float32))
  initial = jax.eval_shape(bfloat16.init, jax.random.key(1), images)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(initial))
