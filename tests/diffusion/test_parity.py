"""Samplers compared with diffusers' schedulers: every x_t that enters the network, and the final image.

diffusers computes 1 - alpha_bar in float32, which leaves few digits of sigma^2 near the clean end: its schedulers are
some 1e-5 off. Here they are given the same table in float64, and agree to 3e-6.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion import process, samplers, thresholding
from dreamjax.diffusion.schedules import BetaTable, spaced_times

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

SHAPE = (2, 5, 4, 3)
STEPS = 10
NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
COSINE = BetaTable("squaredcos_cap_v2")
LINEAR = BetaTable("linear")
SCALED_LINEAR = BetaTable("scaled_linear", start=0.00085, end=0.012)


def network(x_t, time, lib):
  """Computes an arbitrary function, the same in both libraries: a prediction and a variance."""
  return lib.tanh(1.3 * x_t + time), lib.sin(3 * x_t - 2 * time)


def x_start():
  return np.random.default_rng(0).standard_normal(SHAPE, np.float32)


def run(sampler, table, times, doubled, monkeypatch, **kwargs):
  """Returns every x_t of a sampler, and the noise of its steps."""
  inputs = []

  def predict(x_t, t):
    jax.debug.callback(lambda x: inputs.append(np.asarray(x)), x_t, ordered=True)
    prediction, values = network(x_t, process.per_example(t), jnp)
    return jnp.concatenate([prediction, values], axis=-1) if doubled else prediction

  noise = np.random.default_rng(1).standard_normal((STEPS, *SHAPE), np.float32)
  monkeypatch.setattr(samplers, "_noise_of_step", lambda keys, n, shape: jnp.asarray(noise)[n])
  if sampler is not samplers.dpm_solver:
    kwargs["keys"] = jax.random.split(jax.random.key(0), len(x_start()))
  end = sampler(predict, jnp.asarray(x_start()), times, table, **kwargs)
  jax.effects_barrier()
  return [*inputs, np.asarray(end)], noise


def to_torch(x):
  return torch.from_numpy(np.array(x, np.float64)).permute(0, 3, 1, 2)


def their_run(scheduler, table, timesteps, noise, doubled, monkeypatch, **kwargs):
  """Returns every x_t of diffusers' scheduler with the same noise."""
  module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
  if noise is not None:
    noises = iter(noise)  # the last step samples none
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: to_torch(next(noises)))
  x = to_torch(x_start())
  xs = [x]
  for k in timesteps.tolist():
    prediction, values = network(x, (k + 1) / table.steps, torch)
    output = torch.cat([prediction, values], dim=1) if doubled else prediction
    x = scheduler.step(output, k, x, **kwargs).prev_sample
    xs.append(x)
  return [x.permute(0, 2, 3, 1).numpy() for x in xs]


def scheduler_of(cls, table, kind, **config):
  scheduler = cls(table.steps, table.start, table.end, table.name, prediction_type=NAMES[kind], **config)
  scheduler.betas = torch.from_numpy(table.betas())
  scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas, dim=0)
  scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
  return scheduler


def agree(ours, theirs):
  """Asserts equality to 3e-6 of the maximum of each step."""
  assert len(ours) == len(theirs) == STEPS + 1
  for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
    np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * max(1, np.abs(b).max()), err_msg=f"before step {step}")


IF = partial(thresholding.dynamic_threshold, percentile=0.95, max_threshold=1.5)
IF_CONFIG = {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5}


@pytest.mark.parametrize(
  ("table", "kind", "spacing", "gamma", "threshold", "config"),
  [
    (COSINE, "eps", "linspace", "learned", IF, {"variance_type": "learned_range", **IF_CONFIG}),
    (LINEAR, "v", "leading", 1.0, None, {"variance_type": "fixed_large", "clip_sample": False}),
    (SCALED_LINEAR, "x0", "trailing", 0.0, thresholding.static_threshold, {"variance_type": "fixed_small"}),
  ],
)
def test_ancestral(table, kind, spacing, gamma, threshold, config, monkeypatch):
  doubled = gamma == "learned"
  times = spaced_times(table, STEPS, spacing)
  ours, noise = run(samplers.ancestral, table, times, doubled, monkeypatch, kind=kind, gamma=gamma, threshold=threshold)
  scheduler = scheduler_of(diffusers.DDPMScheduler, table, kind, timestep_spacing=spacing, **config)
  scheduler.set_timesteps(STEPS)
  agree(ours, their_run(scheduler, table, scheduler.timesteps, noise, doubled, monkeypatch))


@pytest.mark.parametrize(
  ("table", "kind", "spacing", "eta", "threshold", "config"),
  [
    (COSINE, "v", "leading", 0.0, None, {"clip_sample": False}),
    (LINEAR, "eps", "trailing", 1.0, IF, IF_CONFIG),
  ],
)
def test_ddim(table, kind, spacing, eta, threshold, config, monkeypatch):
  times = spaced_times(table, STEPS, spacing)
  ours, noise = run(samplers.ddim, table, times, False, monkeypatch, kind=kind, eta=eta, threshold=threshold)
  scheduler = scheduler_of(diffusers.DDIMScheduler, table, kind, timestep_spacing=spacing, **config)
  scheduler.set_timesteps(STEPS)
  options = {"eta": eta, "use_clipped_model_output": threshold is not None}
  agree(ours, their_run(scheduler, table, scheduler.timesteps, noise, False, monkeypatch, **options))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # how diffusers makes numpy arrays
@pytest.mark.parametrize(
  ("table", "kind", "threshold", "config"),
  [(COSINE, "eps", IF, {"variance_type": "learned_range", **IF_CONFIG}), (SCALED_LINEAR, "v", None, {})],
)
def test_dpm_solver(table, kind, threshold, config, monkeypatch):
  times = spaced_times(table, STEPS, "leading", offset=1)
  doubled = "variance_type" in config
  ours, _ = run(samplers.dpm_solver, table, times, doubled, monkeypatch, kind=kind, threshold=threshold)
  scheduler = scheduler_of(diffusers.DPMSolverMultistepScheduler, table, kind, **config)
  timesteps = table.timestep(jnp.asarray(times[:-1], jnp.float32))
  scheduler.set_timesteps(timesteps=np.asarray(timesteps, int).tolist())
  agree(ours, their_run(scheduler, table, scheduler.timesteps, None, doubled, monkeypatch))
