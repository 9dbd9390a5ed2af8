"""Schedules and time grids, compared with their definitions in float64 and with diffusers' tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion.schedules import BetaTable, Cosine, spaced_times, uniform_times

TABLES = [BetaTable("squaredcos_cap_v2"), BetaTable("linear"), BetaTable("scaled_linear", start=0.00085, end=0.012)]
SHIFTED = Cosine(-16, 14, shift=-1.25)
SCHEDULES = [Cosine(), SHIFTED, *TABLES]


def alpha_bars(table):
  return np.cumprod(1 - table.betas())


@functools.cache
def program(schedule):
  return jax.jit(lambda t: (schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)))


def values(schedule, t):
  """Returns alpha, sigma and log SNR at 1,000 times: one shape, so that each schedule is compiled once."""
  assert len(t) == 1000
  return [np.asarray(value) for value in program(schedule)(np.asarray(t, np.float32))]


def times_of(table):
  return np.arange(1, table.steps + 1, dtype=np.float32) / np.float32(table.steps)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tables_equal_those_of_diffusers(table):
  diffusers = pytest.importorskip("diffusers")
  theirs = diffusers.DDPMScheduler(table.steps, table.start, table.end, table.name)
  np.testing.assert_allclose(table.betas(), theirs.betas.numpy(), rtol=1e-5, atol=1e-7)  # theirs are float32
  alpha, _, _ = values(table, times_of(table))
  np.testing.assert_allclose(np.float64(alpha) ** 2, theirs.alphas_cumprod.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tables_are_exact_at_their_timesteps(table):
  timesteps = jnp.arange(table.steps)
  t = table.time(timesteps)
  np.testing.assert_allclose(t, times_of(table), rtol=2e-7)
  np.testing.assert_array_equal(table.timestep(t), timesteps)
  alpha, sigma, _ = values(table, t)
  np.testing.assert_allclose(alpha, np.sqrt(alpha_bars(table)), rtol=3e-6)
  np.testing.assert_allclose(sigma, np.sqrt(1 - alpha_bars(table)), rtol=3e-6)


def test_if_noise_at_published_timesteps():
  _, sigma, _ = values(TABLES[0], times_of(TABLES[0]))
  np.testing.assert_allclose(sigma[[0, 13, 100, 250]] ** 2, [4.128e-5, 1.020e-3, 2.842e-2, 0.1541], rtol=5e-4)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_is_clean_at_time_0_and_continuous_between_timesteps(table):
  alpha, sigma, log_snr = values(table, np.arange(1000) / 2000)
  assert (alpha[0], sigma[0], log_snr[0]) == (1, 0, np.inf)
  assert table.timestep(jnp.zeros(())) == -1
  expected = np.sqrt(np.append(1, alpha_bars(table)[:499]) * alpha_bars(table)[:500])
  np.testing.assert_allclose(np.float64(alpha[1::2]) ** 2, expected, rtol=1e-5)


def test_cosine_equals_its_definition_up_to_both_ends():
  t = np.float64(np.sin(np.linspace(0, np.pi / 2, 1000, dtype=np.float32)) ** 2)  # close together at both ends
  low, high = np.arctan(np.exp(-7.0)), np.arctan(np.exp(8.0))
  expected = -2 * np.log(np.tan(low + t * (high - low))) - 1.25
  np.testing.assert_allclose(values(SHIFTED, t)[2], expected, atol=3e-5)
  alpha, _, log_snr = values(Cosine(), t)
  np.testing.assert_allclose(alpha, np.cos(np.pi / 2 * t), atol=1e-4)  # but for the ends
  np.testing.assert_allclose([log_snr[0], log_snr[-1]], [20, -20], atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedules_preserve_variance_and_fall(schedule):
  alpha, sigma, log_snr = values(schedule, np.linspace(0.001, 1, 1000))
  assert alpha.dtype == sigma.dtype == log_snr.dtype == jnp.float32
  alpha, sigma, log_snr = (np.float64(value) for value in (alpha, sigma, log_snr))
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
  np.testing.assert_allclose(log_snr, 2 * np.log(alpha / sigma), atol=1e-4)
  assert np.all(np.diff(log_snr) < 0)


@pytest.mark.parametrize("schedule", SCHEDULES[1:3], ids=str)
def test_drawn_times_are_uniform(schedule):
  t = np.asarray(schedule.draw(jax.random.key(0), 10_000))
  np.testing.assert_allclose(np.histogram(t, 10, (0, 1.001))[0], 1000, atol=150)
  if isinstance(schedule, BetaTable):
    assert len(np.unique(t)) > 990
    np.testing.assert_allclose(t * 1000, np.round(t * 1000), rtol=3e-7)
    assert t.max() == 1


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_spacings_equal_those_of_diffusers(spacing, steps):
  diffusers = pytest.importorskip("diffusers")
  table, offset = TABLES[0], 1 if steps in (7, 50) else 0
  times = spaced_times(table, steps, spacing, offset)
  for scheduler in (diffusers.DDPMScheduler, diffusers.DDIMScheduler):
    theirs = scheduler(timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(steps)
    np.testing.assert_allclose(times * table.steps - 1, [*theirs.timesteps.tolist(), -1], atol=1e-9)


@pytest.mark.parametrize("steps", [50, 1000, 4000])
def test_every_timestep_of_a_table_is_whole(steps):
  table = BetaTable("linear", steps)
  np.testing.assert_array_equal(table.timestep(table.time(jnp.arange(steps))), np.arange(steps))
  np.testing.assert_array_equal(table.timestep(jnp.array([table.min_time, 0.5, 1.0])), [0, steps // 2 - 1, steps - 1])
  np.testing.assert_allclose(table.timestep(jnp.float32(0.5 + 0.3 / steps)), steps / 2 - 0.7, rtol=1e-4)


def test_continuous_time_counts_1000_timesteps():
  np.testing.assert_allclose(Cosine().timestep(jnp.array([Cosine().min_time, 0.25, 1.0])), [-1, 249, 999])


def test_uniform_times():
  np.testing.assert_allclose(uniform_times(4), [1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: BetaTable("cosine"), "unknown table 'cosine'; there are: linear"),
    (lambda: BetaTable("linear", steps=0), "one timestep or more"),
    (lambda: BetaTable("linear", start=0.1, end=0.02), "rise from start to end"),
    (lambda: Cosine(5, -5), "log_snr_min < log_snr_max"),
    (lambda: uniform_times(0), "one step or more"),
    (lambda: spaced_times(TABLES[0], 0, "leading"), "1 to 1000 steps"),
    (lambda: spaced_times(TABLES[0], 1001, "leading"), "1 to 1000 steps"),
    (lambda: spaced_times(TABLES[0], 10, "even"), "unknown spacing 'even'"),
    (lambda: spaced_times(TABLES[0], 1000, "leading", offset=1), "exceeds the table's last timestep, 999"),
  ],
)
def test_bad_inputs(call, message):
  with pytest.raises(ValueError, match=message):
    call()
