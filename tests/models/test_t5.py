"""T5's encoder compared with transformers' `T5EncoderModel`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models import t5

SMALL = t5.T5Encoder(vocab=30, width=16, head_width=8, heads=3, mlp=40, depth=2, buckets=8, max_distance=16)


def test_outputs_hidden_states_and_gradients_equal_the_original(twin, assert_same):
  torch = pytest.importorskip("torch")
  import transformers

  config = transformers.T5Config(
    vocab_size=30,
    d_model=16,
    d_kv=8,
    num_heads=3,
    d_ff=40,
    num_layers=2,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=16,
    layer_norm_epsilon=0.1,
    feed_forward_proj="gated-gelu",
  )
  pair = twin(transformers.T5EncoderModel(config))
  rng = np.random.default_rng(0)
  ids = rng.integers(30, size=(3, 40))  # longer than the maximum distance
  mask = np.arange(40)[None] < np.array([40, 25, 7])[:, None]
  weights = 0.1 * rng.standard_normal((3, 40, 16), np.float32)

  def loss(params):
    tokens, out = pair.module.apply({"params": params}, jnp.asarray(ids), jnp.asarray(mask))
    return jnp.sum(tokens * weights), (tokens, out["hidden"])

  (ours, gradients) = jax.jit(jax.value_and_grad(loss, has_aux=True))(pair.params)

  theirs = pair.original(torch.tensor(ids), torch.tensor(mask), output_hidden_states=True)
  # Their last hidden state is after the norm, as our first output, not the output of the last block.
  last, hidden = theirs.last_hidden_state, tuple(state.detach().numpy() for state in theirs.hidden_states)
  assert_same((ours[1][0], ours[1][1][:-1]), (last.detach().numpy(), hidden[:-1]))
  assert_same(gradients, pair.gradients((last * torch.tensor(weights)).sum()))


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 16), (6, 20)])
def test_buckets_equal_the_original(buckets, max_distance):
  torch = pytest.importorskip("torch")
  from transformers.models.t5.modeling_t5 import T5Attention

  distance = np.arange(-1000, 1001)
  theirs = T5Attention._relative_position_bucket(torch.tensor(distance), True, buckets, max_distance)
  np.testing.assert_array_equal(t5.bucket(distance, buckets, max_distance), theirs.numpy())


def test_padding_has_no_effect(draw):
  ids = jax.random.randint(jax.random.key(0), (2, 9), 0, 30)
  mask = jnp.broadcast_to(jnp.arange(9)[None] < 6, ids.shape)
  variables = draw(SMALL, ids, mask)
  encode = jax.jit(lambda ids, mask: SMALL.apply(variables, ids, mask)[0])
  short = encode(ids[:, :6], mask[:, :6])
  np.testing.assert_allclose(encode(ids, mask)[:, :6], short, atol=1e-5)
  assert jnp.max(jnp.abs(encode(ids, jnp.ones_like(mask))[:, :6] - short)) > 1e-2


def test_the_encoding_depends_on_the_order_of_tokens(draw):
  ids, mask = jnp.array([[3, 4, 5, 6]]), jnp.ones((1, 4), bool)
  variables = draw(SMALL, ids, mask)
  encode = jax.jit(lambda ids: SMALL.apply(variables, ids, mask)[0])
  assert jnp.max(jnp.abs(encode(ids) - encode(ids[:, ::-1])[:, ::-1])) > 1e-2


def test_initialisation_is_that_of_the_paper():
  ids, mask = jnp.zeros((1, 4), int), jnp.ones((1, 4), bool)
  params = jax.jit(t5.T5Encoder(500, 128, 32, 8, 200, 1).init)(jax.random.key(0, impl="rbg"), ids, mask)["params"]
  stds = jax.tree.map(np.std, params)
  attention, mlp = stds["block_0"]["attention"], stds["block_0"]["mlp"]
  expected = [
    (stds["tokens"]["embedding"], 1.0),
    (attention["query"]["kernel"], (128 * 32) ** -0.5),
    (attention["key"]["kernel"], 128**-0.5),
    (attention["value"]["kernel"], 128**-0.5),
    (attention["out"]["kernel"], (8 * 32) ** -0.5),
    (mlp["gate"]["kernel"], 128**-0.5),
    (mlp["hidden"]["kernel"], 128**-0.5),
    (mlp["out"]["kernel"], 200**-0.5),
  ]
  for std, target in expected:
    np.testing.assert_allclose(std, target, rtol=0.03)
  np.testing.assert_allclose(stds["position_bias"], 128**-0.5, rtol=0.2)


def test_bfloat16_stays_close_and_norms_stay_in_float32(draw):
  ids, mask = jax.random.randint(jax.random.key(0), (2, 9), 0, 30), jnp.ones((2, 9), bool)
  variables = draw(SMALL, ids, mask)
  float32 = jax.jit(SMALL.apply)(variables, ids, mask)[0]
  found, out = jax.jit(SMALL.clone(dtype=jnp.bfloat16).apply)(variables, ids, mask)
  assert found.dtype == jnp.float32 and all(state.dtype == jnp.float32 for state in out["hidden"])
  assert 1e-5 < jnp.max(jnp.abs(found - float32)) < 0.05 * jnp.max(jnp.abs(float32))
