"""aMUSEd's transformer against diffusers' `UVit2DModel`, and with the inputs that the original lacks."""

import functools

from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models import uvit
from dreamjax.theta import Adapters, SoftPrompt, StackedThetas, apply

SMALL = uvit.UViT(
  side=4, codebook=11, vocab=14, token_width=10, block_width=12, block_heads=3, blocks=1, width=16, heads=2, mlp=20,
  depth=1, text_width=6, pooled_width=5, numbers=3, number_width=8,
)  # fmt: skip
HALVED = SMALL.clone(halved=True)
ALIKE = SMALL.clone(
  block_width=16, block_heads=4, blocks=2, depth=2
)  # of the same width, so that its blocks take the text as its layers do
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiled quickly, not well
rng = np.random.default_rng(0)
TOKENS = jnp.asarray(rng.integers(0, 14, (2, 16)), jnp.int32)
TEXT, POOLED = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((2, 7, 6), (2, 5)))
NUMBERS = jnp.asarray([[512.0, 512.0, 6.0], [300.0, 7.0, 0.0]])
INPUTS = (TOKENS, TEXT, None, POOLED, NUMBERS)


@pytest.mark.parametrize(("module", "remat"), [(HALVED, "none"), (ALIKE, "all")], ids=["halved", "alike"])
def test_logits_and_gradients_are_those_of_the_original(twin, assert_same, module, remat):
  torch = pytest.importorskip("torch")
  import diffusers

  original = diffusers.UVit2DModel(
    hidden_size=16,
    cond_embed_dim=5,
    micro_cond_encode_dim=8,
    micro_cond_embed_dim=24,
    encoder_hidden_size=6,
    vocab_size=14,
    codebook_size=11,
    in_channels=10,
    block_out_channels=module.block_width,
    num_res_blocks=module.blocks,
    downsample=module.halved,
    upsample=module.halved,
    block_num_heads=module.block_heads,
    num_hidden_layers=module.depth,
    num_attention_heads=2,
    intermediate_size=20,
    sample_size=4,
  )
  pair = twin(original)
  assert pair.module == module
  labels = rng.integers(0, 11, (2, 16))

  def loss(params):
    logits = module.clone(remat=remat).apply({"params": params}, *INPUTS)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)), logits

  (_, logits), gradients = jit(jax.value_and_grad(loss, has_aux=True))(pair.params)
  tokens, text, pooled, numbers = (torch.tensor(np.array(x)) for x in INPUTS if x is not None)
  theirs = original(tokens.reshape(2, 4, 4).long(), text, pooled, numbers).flatten(2)
  assert_same(logits, theirs.detach().numpy().transpose(0, 2, 1))
  wanted = pair.gradients(torch.nn.functional.cross_entropy(theirs, torch.tensor(labels)))
  assert_same(gradients, wanted, 1e-3)


def test_padding_of_the_text_changes_nothing_if_it_is_masked(draw):
  variables = draw(SMALL, *INPUTS)
  run = jit(lambda text, mask: SMALL.apply(variables, TOKENS, text, mask, POOLED, NUMBERS))
  mask = jnp.arange(7)[None] < jnp.array([[7], [3]])
  masked = run(TEXT, mask)
  np.testing.assert_array_equal(run(TEXT.at[1, 3:].set(7.0), mask), masked)
  unmasked = run(TEXT, jnp.ones_like(mask))
  np.testing.assert_array_equal(unmasked, run(TEXT, None))
  np.testing.assert_array_equal(unmasked[0], masked[0])
  assert np.abs(unmasked[1] - masked[1]).max() > 1e-3


def test_logits_of_a_model_in_halves_are_whole(draw):
  logits = jax.eval_shape(HALVED.clone(dtype=jnp.bfloat16).apply, draw(HALVED, *INPUTS), *INPUTS)
  assert logits.shape == (2, 16, 11) and logits.dtype == jnp.float32


def test_the_padding_of_a_soft_prompt_changes_nothing_next_to_branches_that_have_one(draw):
  params = draw(SMALL, *INPUTS)["params"]
  soft = SoftPrompt.init(jax.random.key(0), TEXT[0], 3)
  inputs = (TOKENS, TEXT, jnp.ones(TEXT.shape[:2], bool), POOLED, NUMBERS)
  run = jit(lambda branches: jax.vmap(lambda branch: apply(SMALL, params, branch, *inputs))(branches))
  plain, soft = run(StackedThetas.of(params, [None, soft]))
  np.testing.assert_allclose(plain, jit(SMALL.apply)({"params": params}, *INPUTS), atol=1e-5)
  assert np.abs(soft - plain).max() > 1e-3


def test_a_channel_of_zeros_has_a_gradient():
  module = uvit.Response()
  x = jnp.zeros((1, 2, 2, 3)).at[..., 0].set(1.0)
  variables = {"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}

  def loss(variables, x):
    y = module.apply(variables, x)
    return jnp.sum(y), y

  gradients, y = jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x)
  np.testing.assert_allclose(y[0, 0, 0], [1 + 3, 0, 0], rtol=1e-4)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_adapters_follow_the_modules_that_it_names():
  params = jax.eval_shape(ALIKE.init, jax.random.key(0), *INPUTS)["params"]
  adapters = jax.eval_shape(lambda key: Adapters.init(key, params, 4, ALIKE.adapted), jax.random.key(0))
  assert adapters.weights["row_0"]["own_up"].shape == adapters.weights["row_1"]["own_up"].shape == (2, 16)
  names = {path.split("/out/")[0] for path in flatten_dict(params, sep="/") if path.startswith("layer_")}
  assert set(ALIKE.adapted[0] + ALIKE.adapted[1]) <= names


@pytest.mark.parametrize(
  ("module", "changed", "message"),
  [
    (SMALL, {0: TOKENS[:, :12]}, "12 tokens do not form a square"),
    (HALVED, {0: TOKENS[:, :9]}, "3x3 tokens cannot be halved"),
    (SMALL, {1: TEXT[..., :4]}, "reads tokens of 6 channels, not 4"),
    (SMALL, {3: POOLED[:, :4]}, "reads a pooled text of 5 channels, not 4"),
    (SMALL, {4: NUMBERS[:, :2]}, "takes 3 numbers about an image, not 2"),
  ],
)
def test_inputs_that_do_not_fit_are_refused(module, changed, message):
  inputs = [changed.get(i, x) for i, x in enumerate(INPUTS)]
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(module.init, jax.random.key(0), *inputs)
