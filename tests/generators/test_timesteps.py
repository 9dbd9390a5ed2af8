"""Times of stages whose schedules are tables of other than 1,000 timesteps, and the smallest augmentation level."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import generators
from dreamjax.data.photos import Batch
from dreamjax.diffusion.schedules import BetaTable, Cosine
from dreamjax.errors import UserError
from dreamjax.generators import cascade as cascades
from dreamjax.generators.branches import base_model_group
from dreamjax.generators.cascade import Stage, sample_stage
from dreamjax.generators.conditioning import Conditioning, Text
from dreamjax.methods.denoising import Recipe, stage_loss

TEXT = Text(jnp.zeros((2, 3, 16)), jnp.ones((2, 3), bool))


@pytest.fixture
def sr(tiny_cascade):
  """A super-resolution stage trained at 50 timesteps, whose augmentation has 20."""
  stage = tiny_cascade[0].stages[1]
  return dataclasses.replace(stage, schedule=BetaTable("linear", 50), augmentation=BetaTable("linear", 20))


def test_networks_are_conditioned_on_the_timesteps_of_their_own_tables(sr, monkeypatch):
  received = []

  def apply(unet, params, theta, x_t, *args):
    received.extend(args)
    return x_t

  monkeypatch.setattr(cascades, "apply_theta", apply)
  t, level = sr.schedule.time(jnp.array([0, 49])), sr.augmentation.time(jnp.array([19, 0]))
  x = jnp.zeros((2, 16, 16, 3))
  sr.predict(None, None, x, t, Conditioning(TEXT, x, level))
  np.testing.assert_array_equal(received[0], [0, 49])
  np.testing.assert_array_equal(received[-1], [19, 0])


@pytest.mark.parametrize(("augmentation", "expected"), [(BetaTable("linear", 20), 0.05), (Cosine(), 0.0)], ids=str)
def test_level_0_is_the_first_timestep_of_a_table_in_sampling_and_in_training(sr, monkeypatch, augmentation, expected):
  """As diffusers' IF, whose smallest `noise_level` is timestep 0."""
  levels = []

  def predict(self, params, theta, x_t, t, conditioning):
    levels.append(conditioning.augmentation_level)
    return x_t

  monkeypatch.setattr(Stage, "predict", predict)
  stage = dataclasses.replace(sr, augmentation=augmentation)
  sampling = dataclasses.replace(stage.sampling, augmentation_level=0.0, steps=1)
  keys, low_res = jax.random.split(jax.random.key(0)), jnp.zeros((2, 8, 8, 3))
  guidance = sampling.branches(0, 0.0)
  groups = base_model_group(guidance, None, jax.tree.map(lambda x: x[:1], TEXT), TEXT)
  sample_stage(stage, sampling, groups, guidance.weights, keys, low_res)
  rows = Batch(jnp.zeros((2, 16, 16, 3)), TEXT, jnp.ones(2), {})
  stage_loss(stage, Recipe((0.0, 0.0), low_res_size=8))({}, {"sr": None}, rows, jax.random.key(0))
  assert len(levels) == 2
  np.testing.assert_allclose(np.stack(levels), expected)


def test_more_steps_than_the_table_has_are_refused_before_anything_is_sampled(tiny_cascade, sr):
  generator, params = tiny_cascade
  base = generator.stages[0]
  generator = dataclasses.replace(generator, stages=(base, sr))
  samplings = [base.sampling, dataclasses.replace(sr.sampling, steps=51)]
  with pytest.raises(UserError, match="stage sr has 50 timesteps, too few for 51 steps"):
    generators.batches(generator, params, ["a dog"], samplings=samplings)


@pytest.mark.parametrize("levels", [(0.5, 0.2), (-0.1, 0.2), (0.0, 1.1)])
def test_levels_out_of_range_are_refused(levels):
  with pytest.raises(UserError, match="augmentation_levels are two times from 0 to 1"):
    Recipe(levels)
