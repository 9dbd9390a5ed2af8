"""Masked-token generators: branches side by side against the equations one by one, and who depends on what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import generators
from dreamjax import theta as thetas
from dreamjax.generators import masked
from dreamjax.generators.generator import image_keys
from dreamjax.masked.decoding import decode
from dreamjax.parallel.sharding import make_mesh
from dreamjax.theta import Adapters

PROMPTS = ["a dog on the beach", "a red cat in the snow", "a dog in the snow"]


@pytest.fixture(scope="module")
def adapted(tiny_masked):
  """Two thetas of both stages, of different ranks."""
  generator, params = tiny_masked

  def make(seed, channels):
    rng = np.random.default_rng(seed)
    made = {}
    for stage in generator.stages:
      theta = Adapters.init(jax.random.key(0), params[stage.name]["transformer"], channels, stage.transformer.adapted)
      made[stage.name] = jax.tree.map(lambda x: x + 0.4 * rng.standard_normal(x.shape, np.float32), theta)
    return made

  return make(1, 3), make(2, 5)


def drawn(tiny_masked, prompts, thetas=(), **options):
  generator, params = tiny_masked
  options = {"batch_size": 2, "thetas": thetas, **options}
  stages = zip(*generators.batches(generator, params, prompts, **options), strict=True)
  return [np.concatenate(stage) for stage in stages]


def one_by_one(tiny_masked, stage, text, theta, keys, low=None):
  """Equation (4) of StyleDrop, each network evaluated alone."""
  generator, params = tiny_masked
  mine, how = params[stage.name], stage.sampling
  prompt, negative = (generator.encode(params, [words] * len(keys)) for words in (text, ""))

  def predict(tokens, progress):
    inputs = (tokens, prompt.tokens, prompt.mask, low)
    own = thetas.apply(stage.transformer, mine["transformer"], theta, *inputs)
    frozen = stage.transformer.apply({"params": mine["transformer"]}, *inputs)
    other = stage.transformer.apply({"params": mine["transformer"]}, tokens, negative.tokens, negative.mask, low)
    return own + how.lambda_a * (own - frozen) + how.lambda_b * (frozen - other)

  side = stage.transformer.side
  options = {"mask_id": stage.transformer.mask_id, "steps": how.steps, "temperature": how.temperature}
  return decode(
    predict, jnp.zeros((len(keys), side**2), jnp.int32), jnp.ones((len(keys), side**2), bool), keys, **options
  )


def test_both_stages_are_the_equation_one_by_one(tiny_masked, adapted):
  generator, params = tiny_masked
  style, _ = adapted
  found = drawn(tiny_masked, PROMPTS[:1] * 2, [style], seed=3)
  keys, low = image_keys(3, np.arange(2)), None
  for number, stage in enumerate(generator.stages):
    folded = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
    low = one_by_one(tiny_masked, stage, PROMPTS[0], style[stage.name], folded, low)
    wanted = stage.vqgan.apply({"params": params[stage.name]["vqgan"]}, low, method="decode")
    np.testing.assert_allclose(found[number], jnp.clip(wanted, -1, 1), atol=1e-4)
  assert found[0].shape == (2, 4, 4, 3) and found[1].shape == (2, 8, 8, 3)


def test_the_ends_of_a_mixture_are_one_theta_each(tiny_masked, adapted):
  both = [tuple(PROMPTS[:2])] * 2
  for gamma, i in ((0.0, 0), (1.0, 1)):
    found = drawn(tiny_masked, both, adapted, gamma=gamma, seed=5)
    for a, b in zip(found, drawn(tiny_masked, [PROMPTS[i]] * 2, [adapted[i]], seed=5), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-4)
  middle = drawn(tiny_masked, both, adapted, gamma=0.5, seed=5)
  assert np.abs(middle[0] - found[0]).max() > 0.01


def test_images_depend_on_their_seed_and_prompt_and_not_on_the_images_around_them(tiny_masked):
  whole = drawn(tiny_masked, PROMPTS, seed=1)
  alone = drawn(tiny_masked, PROMPTS[2:], seed=1, first=2, batch_size=1)
  for a, b in zip(whole, alone, strict=True):
    np.testing.assert_allclose(a[2:], b, atol=1 / 255)
  other = drawn(tiny_masked, PROMPTS, seed=2)
  assert all(np.abs(a - b).max(axis=(1, 2, 3)).max() > 0.01 for a, b in zip(whole, other, strict=True))


def test_images_sharded_over_devices_are_the_same(tiny_masked, adapted):
  options = {"thetas": adapted[:1], "batch_size": 8}
  whole, over = drawn(tiny_masked, PROMPTS, **options), drawn(tiny_masked, PROMPTS, **options, mesh=make_mesh())
  for a, b in zip(whole, over, strict=True):
    np.testing.assert_allclose(a, b, atol=1 / 255)
  for a, b in zip(drawn(tiny_masked, PROMPTS, adapted[:1], batch_size=3, mesh=make_mesh()), over, strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_folder_holds_all_of_a_generator(tiny_masked, tmp_path):
  generator, params = tiny_masked
  generators.save(tmp_path, generator, params, dtype=np.float32)
  found, loaded = generators.load(tmp_path)
  assert found.stages == generator.stages and found.text_encoder == generator.text_encoder
  jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(params))
  assert found.base(loaded) == generator.base(params)
  index = tmp_path / "model_index.json"
  index.write_text(index.read_text().replace('"temperature": 1.0', '"temperature": -1'))
  with pytest.raises(ValueError, match="the entry of stage 'base' is invalid: the temperature"):
    generators.load(tmp_path)


def test_a_theta_that_changes_nothing_draws_what_the_generator_does(tiny_masked):
  generator, params = tiny_masked
  idle = {
    stage.name: Adapters.init(jax.random.key(0), params[stage.name]["transformer"], 2, stage.transformer.adapted)
    for stage in generator.stages
  }
  for a, b in zip(*(drawn(tiny_masked, PROMPTS[:1] * 2, some) for some in ([idle], [])), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_guidance_that_rises_begins_with_none(tiny_masked):
  generator, _ = tiny_masked
  once = [masked.Decoding(steps=1, lambda_b=4.0, rises=True)]
  none = [masked.Decoding(steps=1, lambda_b=0.0)]
  found, wanted = (drawn(tiny_masked, PROMPTS[:2], samplings=samplings)[0] for samplings in (once, none))
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_does_not_go_together_is_refused(tiny_masked, adapted):
  generator, params = tiny_masked
  base, larger = generator.stages
  with pytest.raises(ValueError, match="stage base: the transformer knows 12 tokens, its VQGAN 16"):
    masked.TokenStage("base", base.transformer, base.vqgan.clone(codebook=16))
  with pytest.raises(ValueError, match=r"stage base takes \(0, 0\) tokens and words, but sr samples \(4, 12\)"):
    masked.Masked("tiny", generator.text_encoder, generator.tokenizer, (larger, base))
  with pytest.raises(ValueError, match="one personalisation or two can be sampled with, not 3"):
    drawn(tiny_masked, PROMPTS[:1], [*adapted, adapted[0]])
  with pytest.raises(ValueError, match=r"gamma is from 0, .*: not 1.5"):
    drawn(tiny_masked, PROMPTS[:1], adapted, gamma=1.5)
  with pytest.raises(ValueError, match="one step or more, not 0"):
    masked.Decoding(steps=0)
  with pytest.raises(ValueError, match="has no stage 'x'; there are: base, sr"):
    generator.stage("x")


def test_the_generator_that_comes_with_dreamjax_is_whole():
  generator, params = generators.load("toybox-muse")
  assert [stage.image for stage in generator.stages] == [64, 128]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
  size = 2 * sum(leaf.size for stage in generator.stages for leaf in jax.tree.leaves(params[stage.name]))
  assert size < 30e6  # bytes in half precision
