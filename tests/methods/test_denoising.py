"""The loss of a stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.diffusion import process
from dreamjax.diffusion.resolution import downsample, upsample
from dreamjax.generators.conditioning import Conditioning, Text
from dreamjax.generators.generator import with_compute
from dreamjax.methods.denoising import Recipe, stage_loss
from dreamjax.parallel.sharding import make_mesh, shard_batch, shard_params
from dreamjax.theta import LoRA

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def base(tiny_cascade):
  """The base stage, its loss, and what that reads: (stage, loss, theta, frozen)."""
  generator, params = tiny_cascade
  stage = generator.stages[0]
  theta = jax.tree.map(lambda x: x + 0.05, LoRA.init(KEY, params["base"], 1))
  return stage, jax.jit(stage_loss(stage, Recipe())), {"base": theta}, {"base": params["base"]}


def test_rows_with_weights_are_two_losses(base, make_rows):
  """Eq. 2 of DreamBooth: the subject's loss plus lambda times the prior's, whatever the number of rows of each."""
  _, loss, theta, frozen = base
  is_prior = np.array([False, False, True, True])
  rows = make_rows(8, 4, prior=is_prior)
  weights = np.where(is_prior, 0.3 * 4 / 2, 4 / 2).astype(np.float32)
  value, named = loss(theta, frozen, rows.replace(weight=weights), KEY)
  parts = []
  for group in (~is_prior, is_prior):
    alone = rows.replace(weight=np.where(group, 2.0, 0.0).astype(np.float32))
    parts.append(float(loss(theta, frozen, alone, KEY)[0]))
  np.testing.assert_allclose(value, parts[0] + 0.3 * parts[1], rtol=1e-5)
  means = [named[f"error_{name}"].total / named[f"error_{name}"].count for name in ("subject", "prior")]
  np.testing.assert_allclose(means, parts, rtol=1e-5)


def test_a_weight_of_zero_takes_a_row_s_gradient_away(base, make_rows):
  _, loss, theta, frozen = base
  rows = make_rows(8, 4, prior=np.array([False, False, True, True]))
  rows = rows.replace(weight=np.array([2, 2, 0, 0], np.float32))
  other = rows.replace(image=np.concatenate([rows.image[:2], -rows.image[2:]]))
  gradient = jax.jit(jax.grad(lambda theta, rows: loss(theta, frozen, rows, KEY)[0]))
  jax.tree.map(np.testing.assert_array_equal, gradient(theta, rows), gradient(theta, other))


def test_a_frozen_row_is_to_be_what_the_frozen_network_says(base, make_rows):
  stage, loss, theta, frozen = base
  rows = make_rows(8, 4, prior=np.ones(4, bool), frozen=np.ones(4, bool))
  assert float(loss({}, frozen, rows, KEY)[0]) == 0.0  # the base model is what it is
  tuned = float(loss(theta, frozen, rows, KEY)[0])
  noise_key, time_key, *_ = jax.random.split(KEY, 4)
  t = stage.schedule.draw(time_key, 4)
  eps = process.draw_noise(jax.random.split(noise_key, 4), (8, 8, 3))
  x_t = process.diffuse(jnp.asarray(rows.image), eps, t, stage.schedule)
  says = jax.jit(lambda theta: stage.predict(frozen["base"], theta, x_t, t, Conditioning(rows.prompt)))
  np.testing.assert_allclose(tuned, np.mean((says(theta["base"]) - says(None)) ** 2), rtol=1e-4)
  assert tuned > 1e-4


def test_super_resolution_sees_the_same_image_small_and_noised(tiny_cascade, make_rows):
  """The conditioning at training is what it is at sampling: the shrunk image, enlarged, noised, never x_t itself."""
  generator, params = tiny_cascade
  stage, rows, levels = generator.stages[1], make_rows(16, 4), (0.2, 0.4)
  value, _ = jax.jit(stage_loss(stage, Recipe(levels, low_res_size=8)))({}, {"sr": params["sr"]}, rows, KEY)
  noise_key, time_key, level_key, _ = jax.random.split(KEY, 4)
  keys, t = jax.random.split(noise_key, 4), stage.schedule.draw(time_key, 4)
  eps = process.draw_noise(keys, (16, 16, 3))
  level = 0.2 + 0.2 * jax.random.uniform(level_key, (4,))
  low_res = process.augment(upsample(downsample(jnp.asarray(rows.image), 8), 16), level, keys, stage.augmentation)
  x_t = process.diffuse(jnp.asarray(rows.image), eps, t, stage.schedule)
  said = jax.jit(lambda: stage.predict(params["sr"], None, x_t, t, Conditioning(rows.prompt, low_res, level)))()
  wanted = process.target(jnp.asarray(rows.image), eps, t, stage.schedule, "v")
  np.testing.assert_allclose(value, np.mean((said - wanted) ** 2), rtol=1e-4)


def test_dropped_texts_become_the_empty_one(tiny_cascade, make_rows):
  generator, params = tiny_cascade
  stage, rows = generator.stages[0], make_rows(8, 4)
  null = jax.device_get(generator.encode(params, [""]))
  empty = rows.replace(prompt=jax.tree.map(lambda x: np.repeat(x, 4, axis=0), null))
  frozen = {"base": params["base"], "null": null}
  always = jax.jit(stage_loss(stage, Recipe(text_dropout=1.0)))
  np.testing.assert_allclose(always({}, frozen, rows, KEY)[0], always({}, frozen, empty, KEY)[0], rtol=1e-6)
  assert not np.isclose(
    *(jax.jit(stage_loss(stage, Recipe()))({}, frozen, r, KEY)[0] for r in (rows, empty)), rtol=1e-3
  )


def test_a_text_encoder_that_is_tuned_gets_a_gradient(tiny_cascade, make_rows):
  generator, params = tiny_cascade
  stage = generator.stages[0]
  loss = stage_loss(stage, Recipe(), generator.text_encoder)
  rows = make_rows(8, 2).replace(prompt=tuple(map(jnp.asarray, generator.tokenizer(["a qx dog", "a dog"]))))
  thetas = {part: jax.tree.map(lambda x: x + 0.05, LoRA.init(KEY, params[part], 1)) for part in ("base", "text")}
  gradient = jax.jit(jax.grad(lambda thetas: loss(thetas, params, rows, KEY)[0]))(thetas)
  assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(gradient["text"]))


@pytest.mark.parametrize(("dtype", "remat"), [("float32", "all"), ("float32", "cheap"), ("bfloat16", "none")])
def test_a_network_that_computes_otherwise_learns_the_same(tiny_cascade, base, make_rows, dtype, remat):
  generator, params = tiny_cascade
  _, loss, theta, frozen = base
  other = with_compute(generator, dtype, remat)
  stage = other.stages[0]
  assert (stage.unet.dtype, stage.unet.remat) == (getattr(jnp, dtype), remat)
  assert other.text_encoder.dtype == getattr(jnp, dtype) and other.base(params) == generator.base(params)
  rows = make_rows(8, 4)
  one, two = (
    jax.jit(jax.value_and_grad(lambda theta, loss=loss: loss(theta, frozen, rows, KEY)[0]))(theta)
    for loss in (loss, stage_loss(stage, Recipe()))
  )
  exact = {"rtol": 1e-5, "atol": 1e-6} if remat != "none" else {"rtol": 0.05, "atol": 0.02}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **exact), one, two)
  if remat == "none":
    differs = jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one[1], two[1]))
    assert max(differs) > 1e-5  # it did compute in less


def test_a_type_that_nothing_computes_in_is_refused(tiny_cascade):
  with pytest.raises(ValueError, match="dtype is one of float32, bfloat16, not 'float8'"):
    with_compute(tiny_cascade[0], "float8", remat="none")


def stacked(params, count):
  """Low-rank updates of attention, one for each example."""
  theta = LoRA.init(KEY, params, 1, pattern="attention/")
  thetas = [jax.tree.map(lambda x, i=i: x + 0.03 * (i + 1), theta) for i in range(count)]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas)


def twice(theta, frozen, rows):
  return jax.tree.map(lambda x: 2 * x, theta)


@pytest.fixture(scope="module")
def per_example(tiny_cascade, make_rows):
  """Value and gradient of the loss with a theta for each of 8 examples: (loss, theta, frozen, rows, found)."""
  generator, params = tiny_cascade
  loss = stage_loss(generator.stages[0], Recipe(), realise=twice, per_example=True)
  theta = {"base": jax.tree.map(lambda x: x / 2, stacked(params["base"], 8))}
  gradient = jax.jit(jax.value_and_grad(lambda *args: loss(*args, KEY)[0]))
  frozen, rows = {"base": params["base"]}, make_rows(8, 8)
  return gradient, theta, frozen, rows, gradient(theta, frozen, rows)


def test_thetas_for_each_example_are_a_loop_over_examples(tiny_cascade, per_example):
  stage = tiny_cascade[0].stages[0]
  _, theta, frozen, rows, (value, gradient) = per_example
  noise_key, time_key, *_ = jax.random.split(KEY, 4)
  t = stage.schedule.draw(time_key, 8)
  eps = process.draw_noise(jax.random.split(noise_key, 8), (8, 8, 3))
  x_t = process.diffuse(rows.image, eps, t, stage.schedule)
  target = process.target(rows.image, eps, t, stage.schedule, stage.predicts)

  @jax.jit
  @jax.value_and_grad
  def one(theta, *example):
    x_t, t, prompt, target = jax.tree.map(lambda x: x[None], example)
    applied = jax.tree.map(lambda x: 2 * x, theta["base"])
    return jnp.mean((stage.predict(frozen["base"], applied, x_t, t, Conditioning(Text(*prompt))) - target) ** 2) / 8

  pick = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
  alone = [one(pick(theta, i), *pick((x_t, t, rows.prompt, target), i)) for i in range(8)]
  np.testing.assert_allclose(value, sum(found[0] for found in alone), rtol=1e-5)
  for i in range(8):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, pick(gradient, i), alone[i][1])
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient)) > 1e-3


def test_thetas_for_each_example_are_the_same_on_a_mesh(per_example):
  gradient, theta, frozen, rows, (value, wanted) = per_example
  mesh = make_mesh((4, 1, 2))
  with jax.set_mesh(mesh):
    found = gradient(shard_batch(theta, mesh), shard_params(frozen, mesh), shard_batch(rows, mesh))
  np.testing.assert_allclose(found[0], value, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found[1], wanted)
