"""Guidance as weighted branches: the equations, and networks evaluated at once against one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import generators
from dreamjax.diffusion import process
from dreamjax.diffusion.schedules import Cosine
from dreamjax.generators import sampling
from dreamjax.generators.branches import Branch, diffusion_weights, evaluate, group_branches, masked_weights, mix
from dreamjax.generators.cascade import Sampling
from dreamjax.generators.conditioning import Conditioning
from dreamjax.generators.masked import Decoding
from dreamjax.theta import Card, Full, LoRA, Personalisation

BASE, STYLE, SUBJECT = None, 0, 1
NOISE = jnp.asarray(np.random.default_rng(1).standard_normal((1, 8, 8, 3), np.float32))


def test_weights_of_diffusion_are_the_equation():
  assert diffusion_weights(0, 3.0, 9.0, 0.5) == {Branch(BASE, 0): -2.0, Branch(BASE, 1): 3.0}
  one = diffusion_weights(1, 3.0, 0.5, 0.5)  # 3.5 G_s(t) - 2 G_s(n) - 0.5 G(t)
  assert one == {Branch(STYLE, 0): -2.0, Branch(BASE, 1): -0.5, Branch(STYLE, 1): 3.5}


def test_weights_of_masked_tokens_are_the_equation():
  assert masked_weights(0, 9.0, 2.0, 0.5) == {Branch(BASE, 0): -2.0, Branch(BASE, 1): 3.0}
  one = masked_weights(1, 0.5, 2.0, 0.5)  # G_s(t) + 0.5 (G_s(t) - G(t)) + 2 (G(t) - G(n))
  assert one == {Branch(BASE, 0): -2.0, Branch(BASE, 1): 1.5, Branch(STYLE, 1): 1.5}


@pytest.mark.parametrize("weights", [diffusion_weights, masked_weights])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_weights_sum_to_one_and_mix_linearly_in_gamma(weights, count):
  for gamma in (0.0, 0.3, 1.0):
    assert sum(weights(count, 2.0, 0.7, gamma).values()) == pytest.approx(1.0)
  ends, middle = [weights(2, 2.0, 0.7, gamma) for gamma in (0.0, 1.0)], weights(2, 2.0, 0.7, 0.25)
  for branch, weight in middle.items():
    assert weight == pytest.approx(0.75 * ends[0][branch] + 0.25 * ends[1][branch])


def test_branches_without_weight_are_left_out():
  assert [tuple(b) for b in Sampling(guidance=1.0).branches(0, 0.0).branches] == [(BASE, 1)]
  assert [tuple(b) for b in Sampling(guidance=2.0).branches(1, 0.0).branches] == [(STYLE, 0), (STYLE, 1)]
  assert [tuple(b) for b in Decoding(lambda_a=1.0, lambda_b=1.0).branches(1, 0.0).branches] == [(BASE, 0), (STYLE, 1)]
  rising = Decoding(lambda_a=0.0, lambda_b=2.0, rises=True).branches(0, 0.0)
  np.testing.assert_array_equal(rising.weights, [[0, 1], [-2, 3]])


def test_a_learned_variance_is_not_mixed():
  outputs = jnp.arange(8.0).reshape(2, 1, 1, 1, 4)
  mixed = mix(outputs, jnp.array([-1.0, 2.0]), learned_variance=True)
  np.testing.assert_allclose(mixed[0, 0, 0], [8, 9, 6, 7])


def test_guidance_of_v_and_of_x0_are_equal():
  schedule, t, rng = Cosine(), jnp.array([0.2, 0.5, 0.8]), np.random.default_rng(0)
  x_t, outputs = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((3, 4, 4, 2), (2, 3, 4, 4, 2)))
  weights = jnp.array([-2.0, 3.0])
  x0 = jnp.stack([process.convert(output, x_t, t, schedule, "v", "x0") for output in outputs])
  guided = process.convert(mix(outputs, weights), x_t, t, schedule, "v", "x0")
  np.testing.assert_allclose(mix(x0, weights), guided, atol=1e-5)


def test_each_image_may_have_its_own_weights():
  outputs = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 5), np.float32))
  found = mix(outputs, jnp.array([[1.0, 0.0, -6.0], [0.0, 1.0, 7.0]]))
  wanted = [outputs[0, 0], outputs[1, 1], 7 * outputs[1, 2] - 6 * outputs[0, 2]]
  np.testing.assert_allclose(found, np.stack(wanted), atol=1e-5)


@pytest.fixture(scope="module")
def subjects(tiny_cascade):
  """Personalisations of three kinds: low rank, full weights of the base stage, and low rank of the text encoder too."""
  generator, params = tiny_cascade
  rng = np.random.default_rng(0)
  noisy = lambda theta: jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), theta)  # noqa: E731
  lora = lambda part, rank: noisy(LoRA.init(jax.random.key(0), params[part], rank))  # noqa: E731
  card = lambda word, recipe: Card(generator.base(params), word, "dog", recipe)  # noqa: E731
  return (
    Personalisation({"base": lora("base", 2), "text": lora("text", 1)}, card("qx", {})),
    Personalisation({"base": noisy(Full.init(params["base"]))}, card("zv", {})),
    Personalisation({"base": lora("base", 1)}, card("", {"style": "in the snow"})),
  )


def alone(generator, params, personalisation, text):
  """The prediction of one network on one prompt, from pure noise."""
  thetas = {} if personalisation is None else personalisation.thetas
  stage = generator.stages[0]
  conditioning = Conditioning(generator.encode(params, [text], thetas.get("text")))
  return np.asarray(stage.predict(params["base"], thetas.get("base"), NOISE, jnp.ones(1), conditioning))


@pytest.mark.parametrize("which", [(0,), (1,), (2, 0), (2, 1)])
def test_branches_at_once_are_the_networks_one_by_one(tiny_cascade, subjects, which):
  generator, params = tiny_cascade
  stage, chosen = generator.stages[0], [subjects[i] for i in which]
  w, lambda_a, gamma = 2.0, 0.5, 0.3
  prompts = generators.fill_prompt("a [V] dog", chosen)
  guidance = Sampling(guidance=w, lambda_a=lambda_a).branches(len(chosen), gamma)
  thetas = [one.thetas for one in chosen]
  own = [some.get("base") for some in thetas]
  grouping = group_branches(guidance, own, stage, params["base"])
  table, rows = sampling._encode(generator, params, thetas, [prompts], "", guidance.branches, None)
  texts = jax.tree.map(lambda x: x[np.stack([rows[branch] for branch in guidance.branches])], table)

  def network(params, theta, text, x_t, t):
    return stage.predict(params, theta, x_t, t, Conditioning(text))

  found = mix(evaluate(network, grouping.with_texts(texts), NOISE, jnp.ones(1)), grouping.weights[1])
  wanted = 0.0
  for one, prompt, share in zip(chosen, prompts, (1 - gamma, gamma) if len(chosen) == 2 else (1.0,), strict=True):
    tuned, negative = (alone(generator, params, one, text) for text in (prompt, ""))
    frozen = alone(generator, params, None, prompt)
    wanted = wanted + share * (tuned + (w - 1) * (tuned - negative) + lambda_a * (tuned - frozen))
  np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_a_style_and_a_subject_mix_on_a_cascade(tiny_cascade, subjects):
  generator, params = tiny_cascade
  style, subject = subjects[2], subjects[0]
  options = {"seed": 1, "batch_size": 1, "samplings": [Sampling(steps=2, guidance=2.0)]}
  ends = [
    generators.sample(generator, params, ["a [V] dog"], theta=[style, subject], gamma=g, **options) for g in (0, 1)
  ]
  assert np.abs(ends[0] - ends[1]).max() > 0.02
  only = generators.sample(generator, params, ["a [V] dog"], theta=subject, **options)
  np.testing.assert_allclose(ends[1], only, atol=1e-3)
  assert generators.fill_prompt("a [V] dog in the snow", [style, subject]) == ("a dog in the snow", "a qx dog")
