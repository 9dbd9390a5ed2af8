"""The weights of the branches compared with StyleDrop's equations, written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.masked import guidance

# G(n), G(t), G_s(t), G(p), G_c(p)
BRANCHES = np.random.default_rng(0).normal(size=(5, 2, 3, 4)).astype(np.float32)
NEGATIVE, BASE, STYLE, OTHER_BASE, SUBJECT = BRANCHES


def close(ours, theirs):
  np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-5, atol=1e-5)


def test_one_prompt():
  close(guidance.mix(jnp.asarray(BRANCHES[:2]), guidance.plain(3.0)), BASE + 3 * (BASE - NEGATIVE))


def test_one_theta():
  expected = STYLE + 2 * (STYLE - BASE) + 5 * (BASE - NEGATIVE)
  close(guidance.mix(jnp.asarray(BRANCHES[:3]), guidance.adapted(2.0, 5.0)), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_two_thetas(gamma):
  style = STYLE + 2 * (STYLE - BASE) + 5 * (BASE - NEGATIVE)
  subject = SUBJECT + 2 * (SUBJECT - OTHER_BASE) + 5 * (OTHER_BASE - NEGATIVE)
  weights = guidance.two_thetas(gamma, 2.0, 5.0)
  close(guidance.mix(jnp.asarray(BRANCHES), weights), (1 - gamma) * style + gamma * subject)
  assert weights.sum() == pytest.approx(1, abs=1e-6)


def test_guidance_rises_from_none():
  none, full = guidance.two_thetas(0.3, 0.0, 0.0), guidance.two_thetas(0.3, 2.0, 4.0)
  rising = lambda progress: guidance.rising(none, full, jnp.float32(progress))  # noqa: E731
  close(guidance.mix(jnp.asarray(BRANCHES), rising(0)), 0.7 * STYLE + 0.3 * SUBJECT)
  close(rising(0.5), guidance.two_thetas(0.3, 1.0, 2.0))
  close(rising(1), full)


def test_gamma_out_of_range():
  for gamma in (-0.1, 1.1):
    with pytest.raises(ValueError, match=f"not {gamma}"):
      guidance.two_thetas(gamma, 2.0, 5.0)
