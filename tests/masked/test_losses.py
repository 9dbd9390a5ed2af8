"""The masked-token loss compared with torch's cross entropy, and its invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.masked import losses

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(3, 6, 10)), jnp.float32)
TOKENS = jnp.asarray(RNG.integers(0, 10, (3, 6)), jnp.int32)
MASK = jnp.asarray(RNG.random((3, 6)) < 0.5).at[:, 0].set(True)
ONES = jnp.ones(3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_equals_torch_over_the_masked_tokens(smoothing):
  torch = pytest.importorskip("torch")
  ours = losses.masked_token_loss(LOGITS, TOKENS, MASK, ONES, smoothing)
  masked = np.asarray(MASK)
  logits = torch.tensor(np.asarray(LOGITS)[masked])
  tokens = torch.tensor(np.asarray(TOKENS)[masked], dtype=torch.int64)
  theirs = torch.nn.functional.cross_entropy(logits, tokens, label_smoothing=smoothing)
  assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_unmasked_tokens_have_no_gradient():
  gradient = jax.grad(losses.masked_token_loss)(LOGITS, TOKENS, MASK, ONES, 0.1)
  masked = np.asarray(MASK)
  assert (np.asarray(gradient)[~masked] == 0).all()
  assert (np.abs(np.asarray(gradient)[masked]).max(axis=-1) > 0).all()


def test_the_loss_is_linear_in_the_weights():
  each = [losses.masked_token_loss(LOGITS, TOKENS, MASK, jnp.eye(3)[i]) for i in range(3)]
  mixed = losses.masked_token_loss(LOGITS, TOKENS, MASK, jnp.array([2.0, 0.0, 0.5]))
  assert float(mixed) == pytest.approx(2 * float(each[0]) + 0.5 * float(each[2]), rel=1e-6)


def test_the_loss_of_bfloat16_logits_is_computed_in_float32():
  half = losses.masked_token_loss(LOGITS.astype(jnp.bfloat16), TOKENS, MASK, ONES)
  single = losses.masked_token_loss(LOGITS.astype(jnp.bfloat16).astype(jnp.float32), TOKENS, MASK, ONES)
  assert half.dtype == jnp.float32 and float(half) == float(single)


def test_smoothing_out_of_range():
  with pytest.raises(ValueError, match=r"below 1, not 1\.0"):
    losses.masked_token_loss(LOGITS, TOKENS, MASK, ONES, 1.0)
