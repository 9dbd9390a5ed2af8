"""Muse's transformers: a layer against torch's, attention along two axes against masks, the sizes of the paper."""

import math

from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models import muse
from dreamjax.models.attention import attend

BASE = muse.Muse(side=4, codebook=12, width=16, heads=2, mlp=24, depth=2, text_width=6)
LARGER = BASE.clone(side=8, low_side=4, low_depth=1, low_codebook=10, block=4)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 13, (2, 16)), jnp.int32)
MANY = jnp.asarray(np.random.default_rng(1).integers(0, 13, (2, 64)), jnp.int32)
TEXT = jnp.asarray(np.random.default_rng(2).standard_normal((2, 5, 6), np.float32))
MASK = jnp.arange(5)[None] < jnp.array([[5], [2]])


def test_a_layer_is_torchs(draw, assert_same):
  torch = pytest.importorskip("torch")
  layer = muse.Layer(heads=2, mlp=24, block=0, dtype=jnp.float32)
  rng = np.random.default_rng(3)
  x, context = (rng.standard_normal((2, n, 16), np.float32) for n in (7, 5))
  variables = draw(layer, x, context, MASK)
  theirs = torch.nn.TransformerDecoderLayer(
    16, 2, 24, dropout=0.0, layer_norm_eps=muse.EPS, activation=torch.nn.GELU("tanh"), batch_first=True, norm_first=True
  )
  ours = flatten_dict(variables["params"], sep="/")
  state = {}
  for name, attention in (("self_attn", "self_attention"), ("multihead_attn", "cross_attention")):
    kernels = [ours[f"{attention}/{part}/kernel"].T for part in ("query", "key", "value")]
    state[f"{name}.in_proj_weight"] = np.concatenate(kernels)
    state[f"{name}.in_proj_bias"], state[f"{name}.out_proj.bias"] = np.zeros(48), np.zeros(16)
    state[f"{name}.out_proj.weight"] = ours[f"{attention}/out/kernel"].T
  for name, module in (("norm1", "self_attention"), ("norm2", "cross_attention"), ("norm3", "mlp")):
    state[f"{name}.weight"], state[f"{name}.bias"] = ours[f"{module}/norm/scale"], ours[f"{module}/norm/bias"]
  for name, part in (("linear1", "hidden"), ("linear2", "out")):
    state[f"{name}.weight"], state[f"{name}.bias"] = ours[f"mlp/{part}/kernel"].T, ours[f"mlp/{part}/bias"]
  theirs.load_state_dict({key: torch.tensor(np.array(value, np.float32)) for key, value in state.items()})
  inputs = [torch.tensor(y, requires_grad=True) for y in (x, context)]
  out = theirs(*inputs, memory_key_padding_mask=torch.tensor(~np.asarray(MASK)))
  weights = rng.standard_normal(out.shape).astype(np.float32)
  (out * torch.tensor(weights)).sum().backward()

  def loss(x, context):
    y = layer.apply(variables, x, context, MASK)
    return jnp.sum(y * weights), y

  gradients, found = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, context)
  assert_same((found, gradients), (out.detach().numpy(), tuple(y.grad.numpy() for y in inputs)))


def test_attention_along_two_axes_is_masked_attention():
  rng = np.random.default_rng(4)
  parts = [jnp.asarray(rng.standard_normal((2, 64, 4, 3), np.float32)) for _ in range(3)]
  rows, columns = np.divmod(np.arange(64), 8)
  block = rows // 4 * 2 + columns // 4
  position = rows % 4 * 4 + columns % 4
  within, across = (jnp.asarray(x[:, None] == x[None])[None, None] for x in (block, position))
  wanted = [
    attend(*(x[:, :, heads] for x in parts), mask=mask)
    for heads, mask in ((slice(0, 2), within), (slice(2, 4), across))
  ]
  found = muse.attend_along_axes(*parts, 4)
  np.testing.assert_allclose(found, jnp.concatenate(wanted, axis=2), atol=1e-5)
  np.testing.assert_array_equal(muse.from_blocks(muse.blocks_of(parts[0], 4), 4), parts[0])


def test_padding_of_the_text_changes_nothing_and_each_token_of_a_low_resolution_image_something(draw):
  variables = draw(LARGER, MANY, TEXT, MASK, TOKENS % 10)
  run = jax.jit(lambda text, low: LARGER.apply(variables, MANY, text, MASK, low))
  plain = run(TEXT, TOKENS % 10)
  assert plain.shape == (2, 64, 12) and plain.dtype == jnp.float32
  padded = run(TEXT.at[1, 2:].set(7.0), TOKENS % 10)
  np.testing.assert_array_equal(padded, plain)
  for i in range(16):
    other = run(TEXT, (TOKENS % 10).at[:, i].set((TOKENS[:, i] + 1) % 10))
    assert np.abs(other - plain).max(axis=(1, 2)).min() > 1e-4


def test_a_position_is_known_by_its_row_and_its_column(draw):
  variables = draw(BASE, TOKENS, TEXT, MASK)
  masked = jnp.full((2, 16), BASE.mask_id)
  logits = np.asarray(BASE.apply(variables, masked, TEXT, MASK))
  distances = np.abs(logits[:, :, None] - logits[:, None]).max(-1) + np.eye(16)[None]
  assert distances.min() > 1e-3


def test_the_paper_has_as_many_parameters():
  text, mask = jnp.zeros((1, 4, 4096)), jnp.ones((1, 4), bool)
  small, large = jnp.zeros((1, 256), jnp.int32), jnp.zeros((1, 4096), jnp.int32)
  sizes = []
  for module, inputs in ((muse.MUSE_3B, (small, text, mask)), (muse.MUSE_SR, (large, text, mask, small))):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    sizes.append(sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)))
  # 48 layers of 8 D^2 for both attentions and 2 D 4D for the mlp, D = 2048; "3B" in the paper.
  assert sizes[0] / (48 * 16 * 2048**2) == pytest.approx(1, abs=0.02) and 3.0e9 < sizes[0] < 3.4e9
  assert sizes[1] / ((32 * 16 + 16 * 12) * 1024**2) == pytest.approx(1, abs=0.05)


def test_rematerialised_layers_have_the_same_gradient(draw):
  variables = draw(BASE, TOKENS, TEXT, MASK)

  def gradient(module):
    return jax.jit(jax.grad(lambda v: jnp.sum(jnp.sin(module.apply(v, TOKENS, TEXT, MASK)))))(variables)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient(BASE), gradient(BASE.clone(remat="all"))
  )


@pytest.mark.parametrize(
  ("module", "inputs", "message"),
  [
    (BASE, (MANY, TEXT, MASK), "takes 4x4 tokens of an image, not 64"),
    (BASE, (TOKENS, TEXT, MASK, TOKENS), "a base transformer takes no tokens of a low-resolution image"),
    (LARGER, (MANY, TEXT, MASK), "the super-resolution transformer takes tokens of a low-resolution image"),
    (LARGER, (MANY, TEXT, MASK, MANY), "takes 4x4 tokens of a low-resolution image, not 64"),
    (BASE, (TOKENS, TEXT[..., :4], MASK), "reads tokens of 6 channels, not 4"),
    (LARGER.clone(block=3), (MANY, TEXT, MASK, TOKENS), "blocks of a side that divides 8, not 3"),
  ],
)
def test_inputs_that_do_not_fit_are_refused(module, inputs, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(module.init, jax.random.key(0), *inputs)
