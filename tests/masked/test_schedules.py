"""Mask schedules: the density of the ratios, exact counts, and the number of masked tokens step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dreamjax.masked import schedules


def test_ratios_have_the_truncated_arccos_density():
  ratios = np.asarray(schedules.draw_ratios(jax.random.key(0), 20000))
  # The cumulative distribution of p(r) = 2 / pi (1 - r^2)^(-1/2) is 2 / pi arcsin(r).
  assert stats.kstest(ratios, lambda r: 2 / np.pi * np.arcsin(np.clip(r, 0, 1))).pvalue > 0.01
  assert ratios.mean() == pytest.approx(2 / np.pi, abs=0.01)


def test_a_minimum_ratio_truncates_the_density():
  ratios = np.asarray(schedules.draw_ratios(jax.random.key(1), 20000, low=0.5))
  angle = np.arcsin(0.5)
  assert ratios.min() >= 0.5 - 1e-6
  assert stats.kstest(ratios, lambda r: (np.arcsin(np.clip(r, 0, 1)) - angle) / (np.pi / 2 - angle)).pvalue > 0.01
  with pytest.raises(ValueError, match="below 1, not 1"):
    schedules.draw_ratios(jax.random.key(0), 2, low=1.0)


def test_masks_have_the_given_count_and_are_uniform():
  ratios = jnp.tile(jnp.array([0.0, 0.25, 0.5, 1.0]), 500)
  mask = np.asarray(schedules.draw_mask(jax.random.split(jax.random.key(0), 2000), ratios, 16))
  np.testing.assert_array_equal(mask.sum(1).reshape(500, 4), np.tile([1, 4, 8, 16], (500, 1)))
  frequency = mask[1::4].mean(0)
  assert np.abs(frequency - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 500)


@pytest.mark.parametrize(("first", "steps"), [(255, 24), (5, 12), (1, 3), (0, 3), (7, 1)])
def test_the_number_of_masked_tokens_falls_as_in_maskgit(first, steps):
  counts = [jnp.array([first])]
  for k in range(1, steps + 1):
    counts.append(schedules.left_masked(jnp.array(k), steps, counts[0], counts[-1]))
  counts = np.concatenate(counts)
  assert counts[-1] == 0
  for k in range(1, steps):
    # MaskGIT's published code, in Python.
    expected = max(1, min(counts[k - 1] - 1, int(np.floor(np.float32(first * np.cos(np.pi / 2 * k / steps))))))
    assert counts[k] == (expected if counts[k - 1] else 0)
