"""CLIP compared with transformers' `CLIPModel`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models.clip import CLIP, TextTower, VisionTower

SMALL = CLIP(
  VisionTower(image=16, patch=8, width=24, depth=2, heads=3, mlp=40, projection=20),
  TextTower(vocab=50, length=9, width=16, depth=3, heads=2, mlp=28, projection=20, eos=49),
)
# The first end-of-text token is at 4, at the end, and at 1 with padding that is a token too.
IDS = jnp.array([[48, 3, 4, 5, 49, 49, 49], [48, 9, 8, 7, 6, 5, 49], [48, 49, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize(("activation", "eos"), [("quick_gelu", 49), ("gelu", 2)])
def test_outputs_hidden_states_and_gradients_equal_the_original(twin, assert_same, activation, eos):
  torch = pytest.importorskip("torch")
  import transformers

  vision = {"image_size": 16, "patch_size": 8, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}
  text = {"vocab_size": 50, "max_position_embeddings": 9, "hidden_size": 16, "num_attention_heads": 2}
  config = transformers.CLIPConfig(
    vision_config={**vision, "num_hidden_layers": 2, "hidden_act": activation, "layer_norm_eps": 0.1},
    text_config={
      **text,
      "intermediate_size": 28,
      "num_hidden_layers": 3,
      "hidden_act": activation,
      "layer_norm_eps": 0.2,
      "bos_token_id": 48,
      "eos_token_id": eos,
    },
    projection_dim=20,
  )
  pair = twin(transformers.CLIPModel(config))
  assert pair.module.text.eos == 49 and pair.module.vision.activation == pair.module.text.activation == activation
  rng = np.random.default_rng(0)
  images = rng.standard_normal((2, 16, 16, 3), np.float32)
  weights = {"image": rng.standard_normal((2, 20), np.float32), "text": rng.standard_normal((3, 20), np.float32)}

  def loss(params, images):
    image, text, logit_scale = pair.module.apply({"params": params}, images, IDS)
    return jnp.sum(image * weights["image"]) + jnp.sum(text * weights["text"]) + logit_scale, (image, text)

  (ours, gradients) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(pair.params, images)
  vision_tokens, vision_out = jax.jit(pair.module.vision.apply)({"params": pair.params["vision"]}, images)
  text_tokens, text_out = jax.jit(pair.module.text.apply)({"params": pair.params["text"]}, IDS)

  pixels = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
  their_vision = pair.original.vision_model(pixels, output_hidden_states=True)
  their_text = pair.original.text_model(torch.tensor(np.asarray(IDS)), output_hidden_states=True)
  for tokens, out, theirs in ((vision_tokens, vision_out, their_vision), (text_tokens, text_out, their_text)):
    hidden = tuple(state.detach().numpy() for state in theirs.hidden_states)
    expected = (theirs.last_hidden_state.detach().numpy(), theirs.pooler_output.detach().numpy(), hidden)
    assert_same((tokens, out["pooled"], out["hidden"]), expected)
  image = pair.original.visual_projection(their_vision.pooler_output)
  text = pair.original.text_projection(their_text.pooler_output)
  assert_same(ours[1], (image.detach().numpy(), text.detach().numpy()))
  total = (image * torch.tensor(weights["image"])).sum() + (text * torch.tensor(weights["text"])).sum()
  expected = pair.gradients(total + pair.original.logit_scale)
  assert_same(gradients, (expected, pixels.grad.numpy().transpose(0, 2, 3, 1)))


def test_the_first_end_of_text_is_pooled(draw):
  variables = draw(SMALL.text, IDS)
  for eos, ends in ((49, [4, 6, 1]), (48, [0, 0, 0])):
    tokens, out = SMALL.text.clone(eos=eos).apply(variables, IDS)  # jitted, XLA may normalise the pooled token apart
    np.testing.assert_array_equal(out["pooled"], np.asarray(tokens)[np.arange(3), np.array(ends)])


def test_attention_is_causal(draw):
  variables, encode = draw(SMALL.text, IDS), jax.jit(SMALL.text.apply)
  tokens, changed = (encode(variables, ids)[0] for ids in (IDS, jnp.where(jnp.arange(7)[None] < 4, IDS, 11)))
  np.testing.assert_array_equal(changed[:, :4], tokens[:, :4])
  assert jnp.max(jnp.abs(changed - tokens)) > 1e-2


def test_a_tower_without_projection_has_no_embedding():
  images = jnp.zeros((1, 16, 16, 3))
  for tower, x in ((SMALL.vision, images), (SMALL.text, IDS)):
    (_, out), variables = jax.eval_shape(tower.init_with_output, jax.random.key(0), x)
    assert out["embedding"].shape == (len(x), 20) and variables["params"]["projection"]
    (_, out), variables = jax.eval_shape(tower.clone(projection=None).init_with_output, jax.random.key(0), x)
    assert set(out) == {"hidden", "pooled"} and "projection" not in variables["params"]


def test_each_tower_can_be_applied_alone(draw):
  images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
  variables, apply = draw(SMALL, images, IDS), jax.jit(SMALL.apply, static_argnames="method")
  image, text, _ = apply(variables, images, IDS)
  np.testing.assert_allclose(apply(variables, images, method="encode_image"), image, atol=1e-5)
  np.testing.assert_allclose(apply(variables, IDS, method="encode_text"), text, atol=1e-5)


def test_initialisation_is_that_of_openai():
  tower = TextTower(vocab=500, length=60, width=128, depth=1, heads=2, mlp=256, projection=64)
  towers = CLIP(VisionTower(16, 8, 32, 1, 2, 64, projection=64), tower)
  init = jax.jit(towers.init)
  params = init(jax.random.key(0, impl="rbg"), jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 3), int))["params"]
  stds = jax.tree.map(np.std, params["text"])
  attention, mlp = stds["block_0"]["attention"], stds["block_0"]["mlp"]
  expected = [
    (stds["tokens"]["embedding"], 0.02),
    (stds["positions"], 0.01),
    *((attention[name]["kernel"], 128**-0.5) for name in ("query", "key", "value")),
    (attention["out"]["kernel"], 256**-0.5),
    (mlp["hidden"]["kernel"], 256**-0.5),
    (mlp["out"]["kernel"], 256**-0.5),
    (stds["projection"]["kernel"], 128**-0.5),
  ]
  for std, target in expected:
    np.testing.assert_allclose(std, target, rtol=0.04)
  np.testing.assert_allclose(np.exp(params["logit_scale"]), 1 / 0.07, rtol=1e-5)


def test_images_of_another_size_and_texts_that_are_too_long():
  with pytest.raises(ValueError, match="16x16, not 8x8"):
    SMALL.vision.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  with pytest.raises(ValueError, match="texts of 10 tokens exceed this model's maximum of 9"):
    SMALL.text.init(jax.random.key(0), jnp.zeros((1, 10), int))


def test_bfloat16_stays_close_and_norms_stay_in_float32(draw):
  images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
  variables = draw(SMALL, images, IDS)
  float32 = jax.jit(SMALL.apply)(variables, images, IDS)
  bfloat16 = CLIP(SMALL.vision.clone(dtype=jnp.bfloat16), SMALL.text.clone(dtype=jnp.bfloat16))
  for found, expected in zip(jax.jit(bfloat16.apply)(variables, images, IDS)[:2], float32[:2], strict=True):
    assert found.dtype == jnp.float32
    assert 1e-5 < jnp.max(jnp.abs(found - expected)) < 0.05 * jnp.max(jnp.abs(expected))


def test_patches_that_are_not_kept_have_no_effect():
  tower = VisionTower(image=16, patch=4, width=24, depth=1, heads=3, mlp=40)
  images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
  variables = tower.init(jax.random.key(1), images)
  kept = jnp.array([[0, 5, 7], [15, 2, 3]])
  apply = jax.jit(tower.apply)
  tokens, _ = apply(variables, images, kept)
  assert tokens.shape == (2, 4, 24)
  changed = images.at[0, 4:8, 4:8].add(1.0).at[1, :4, :4].add(1.0)  # patch 5 of the first, patch 0 of the second
  difference = jnp.abs(apply(variables, changed, kept)[0] - tokens).max((1, 2))
  assert difference[0] > 1e-3 and difference[1] == 0
  order = jnp.broadcast_to(jnp.arange(16), (2, 16))
  np.testing.assert_allclose(apply(variables, images, order)[0], apply(variables, images)[0], atol=1e-6)
