"""StyleDrop on a tiny generator, from an image with a caption to a theta of the second round."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
import pytest

from dreamjax import generators, theta
from dreamjax.commands import configs
from dreamjax.eval.encoders import Encoders
from dreamjax.generators.sampling import style_of
from dreamjax.methods import styledrop
from dreamjax.methods.masking import Recipe, TokenBatch, stage_loss
from dreamjax.parallel.sharding import make_mesh, shard_params
from dreamjax.theta import Adapters, LoRA
from dreamjax.train.optimizer import make_optimizer

STYLE = "in red clay style"


def recipe(**changes):
  """A config of few steps; changes are paths with __ for dots."""
  config = styledrop.default_config()
  config.identifier = "qx"
  config.pool.prompts, config.pool.images_per_prompt, config.pool.batch_size, config.pool.max_chosen = (
    ("a dog", "a red cat"),
    3,
    4,
    2,
  )
  for settings in (*config.first.values(), *config.second.values()):
    settings.steps, settings.batch_size, settings.save_every, settings.channels = 3, 2, 2, 3
    settings.optimizer.learning_rate = 1e-2
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return config


def encoders():
  """Of which CLIP likes bright images."""
  bright = lambda images: np.stack([[np.mean(x) / 255, 1.0] for x in images])  # noqa: E731
  return Encoders("bright", bright, lambda texts: np.tile([1.0, 0.0], (len(texts), 1)), bright)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  folder = tmp_path_factory.mktemp("style")
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(folder / "a.png")
  (folder / "a.txt").write_text(f"a dog on the beach {STYLE}")
  return folder


@pytest.fixture(scope="module")
def first(tiny_masked, images, tmp_path_factory):
  """A whole first round: (workdir, what came of it)."""
  workdir = tmp_path_factory.mktemp("first")
  return workdir, styledrop.styledrop(*tiny_masked, images, workdir=workdir, config=recipe())


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  ("caption", "content", "style"),
  [
    ("A cat in watercolor painting style", "A cat", "in watercolor painting style"),
    ("a dog in the snow in golden 3d rendering style.", "a dog in the snow", "in golden 3d rendering style"),
    ("a house in the style of a mosaic", "a house", "in the style of a mosaic"),
    ("A wave in abstract flowing smoke wave design", "A wave", "in abstract flowing smoke wave design"),
  ],
)  # fmt: skip
def test_captions_have_two_halves(caption, content, style):
  assert styledrop.halves(caption) == (content, style)


def test_a_caption_without_a_style_is_refused():
  for caption in ("a dog in the snow", "in oil painting style", ""):
    with pytest.raises(ValueError, match="has no half for the style"):
      styledrop.halves(caption)
  assert styledrop.halves("Viking face with beard in wooden sculpture", "in wooden sculpture")[0].endswith("beard")
  with pytest.raises(ValueError, match="does not end in 'in ink', with something before it"):
    styledrop.halves("a dog in ink on paper", "in ink")


def test_the_loss_sees_masked_tokens_only_and_weighs_rows(tiny_masked):
  generator, params = tiny_masked
  stage = generator.stages[1]
  draw = np.random.default_rng(1)
  text = generator.encode(params, ["a dog", "a red cat"])
  rows = TokenBatch(
    jnp.asarray(draw.integers(0, 12, (2, 16)), jnp.int32), text, jnp.ones(2),
    jnp.asarray(draw.integers(0, 12, (2, 4)), jnp.int32),
  )  # fmt: skip
  loss = jax.jit(stage_loss(stage, Recipe()))
  frozen = {"sr": {"transformer": params["sr"]["transformer"]}}
  run = lambda weights: float(loss({}, frozen, rows.replace(weight=jnp.array(weights)), jax.random.key(0))[0])  # noqa: E731
  both, one, other = run([1.0, 1.0]), run([1.0, 0.0]), run([0.0, 1.0])
  assert both == pytest.approx(one + other, rel=1e-5) and run([2.0, 0.5]) == pytest.approx(
    2 * one + other / 2, rel=1e-5
  )


def test_dropped_texts_are_the_empty_one(tiny_masked):
  generator, params = tiny_masked
  stage = generator.stages[0]
  null = generator.encode(params, [""])
  frozen = {"base": {"transformer": params["base"]["transformer"]}, "null": null}
  tokens = jnp.zeros((3, 4), jnp.int32)
  said = generator.encode(params, ["a dog", "a red cat", "a dog on the beach"])
  nothing = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), null)
  dropped = jax.jit(stage_loss(stage, Recipe(text_dropout=1.0)))
  kept = jax.jit(stage_loss(stage, Recipe()))
  key, rows = jax.random.key(3), TokenBatch(tokens, said, jnp.ones(3))
  wanted = kept({}, frozen, rows.replace(prompt=nothing), key)[0]
  np.testing.assert_allclose(dropped({}, frozen, rows, key)[0], wanted, rtol=1e-5)
  assert abs(float(kept({}, frozen, rows, key)[0] - wanted)) > 1e-3


def test_thetas_for_each_example_are_a_loop_over_examples(tiny_masked):
  generator, params = tiny_masked
  stage = generator.stages[0]
  tokens = jnp.asarray(np.random.default_rng(1).integers(0, 12, (2, 4)), jnp.int32)
  rows = TokenBatch(tokens, generator.encode(params, ["a dog", "a red cat"]), jnp.ones(2))
  theta = LoRA.init(jax.random.key(0), params["base"]["transformer"], 1)
  thetas = [{"base": jax.tree.map(lambda x, i=i: x + 0.1 * (i + 1), theta)} for i in range(2)]
  frozen = {"base": {"transformer": params["base"]["transformer"]}}
  key = jax.random.key(3)

  def run(stacked, theta, weight):
    loss = stage_loss(stage, Recipe(), realise=lambda theta, frozen, rows: theta, per_example=stacked)
    run = jax.jit(jax.value_and_grad(lambda theta, rows: loss(theta, frozen, rows, key)[0]))
    return run(theta, rows.replace(weight=jnp.array(weight)))

  value, gradient = run(True, jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas), [1.0, 1.0])
  alone = [run(False, thetas[i], weight) for i, weight in enumerate(([1.0, 0.0], [0.0, 1.0]))]
  np.testing.assert_allclose(value, alone[0][0] + alone[1][0], rtol=1e-5)
  for i, (_, wanted) in enumerate(alone):
    close = lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, gradient, wanted)


def test_a_first_round_ends_in_a_theta_that_draws_its_style(tiny_masked, first):
  generator, params = tiny_masked
  workdir, made = first
  assert set(made.thetas) == {"base", "sr"} and style_of(made) == STYLE
  assert made.thetas["base"].weights["row_0"].keys() == {"down", "up", "own_down", "own_up"}  # shared, as in table S3
  assert made.thetas["sr"].weights["row_0"].keys() == {"down", "up"}
  loaded = generators.load_theta(workdir / "theta.safetensors", generator, params)
  images = generators.sample(generator, params, ["a red cat"], theta=loaded, batch_size=2)
  plain = generators.sample(generator, params, [f"a red cat {STYLE}"], batch_size=2)
  assert images.shape == (1, 8, 8, 3) and np.abs(images - plain).max() > 1e-3
  with pytest.raises(ValueError, match="does not fit"):
    other = {**params, "text": jax.tree.map(lambda x: x + 1, params["text"])}
    generators.load_theta(workdir / "theta.safetensors", generator, other)


def test_what_is_frozen_stays_and_a_second_call_finds_everything_done(tiny_masked, first, images):
  generator, params = tiny_masked
  before, (workdir, made) = jax.tree.map(np.array, params), first
  log = (workdir / "round_1/base/log.jsonl").read_text()
  again = styledrop.styledrop(generator, params, images, workdir=workdir, config=recipe())
  same(dict(again.thetas), dict(made.thetas))
  assert log == (workdir / "round_1/base/log.jsonl").read_text()
  same(before, jax.device_get(params))


def test_clip_chooses_the_best_of_each_prompt_and_the_second_round_learns_it(tiny_masked, images, first, tmp_path):
  config = recipe()
  made = styledrop.styledrop(
    *tiny_masked, images, workdir=tmp_path, feedback="clip", config=config, encoders=lambda: encoders()
  )
  lines = [json.loads(line) for line in (tmp_path / "pool/metadata.jsonl").read_text().splitlines()]
  assert [line["text"] for line in lines] == [f"a dog {STYLE}"] * 3 + [f"a red cat {STYLE}"] * 3
  mean = [np.asarray(Image.open(tmp_path / "pool" / line["file_name"])).mean() for line in lines]
  best = [lines[start + int(np.argmax(mean[start : start + 3]))]["file_name"] for start in (0, 3)]
  assert json.loads((tmp_path / "round_2_clip/chosen.json").read_text()) == best
  assert made.card.recipe["round"] == 2 and made.card.recipe["prompts"] == [f"a dog {STYLE}", f"a red cat {STYLE}"]
  assert made.thetas["base"].weights["row_0"].keys() == {"down", "up"}
  one = theta.load(tmp_path / "round_1/theta.safetensors", made.card.base)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), dict(one.thetas), dict(first[1].thetas))


def test_nothing_is_scored_where_chance_chooses_and_a_stage_without_updates_stays_as_it_is(
  tiny_masked, images, first, tmp_path
):
  shutil.copytree(first[0], tmp_path, dirs_exist_ok=True)
  options = {"feedback": "random", "config": recipe(second__sr__steps=0), "encoders": pytest.fail}
  made = styledrop.styledrop(*tiny_masked, images, workdir=tmp_path, **options)
  assert made.card.recipe["prompts"] == [f"a dog {STYLE}", f"a red cat {STYLE}"]
  assert "score" not in (tmp_path / "pool/metadata.jsonl").read_text()
  before = first[1].thetas
  same(made.thetas["sr"], before["sr"])
  assert made.thetas["base"].weights["row_0"]["down"].shape != before["base"].weights["row_0"]["down"].shape


def test_a_person_chooses_and_the_second_round_trains_on_exactly_those(tiny_masked, images, tmp_path, monkeypatch):
  seen = []
  tune = styledrop._tune

  def watched(generator, params, frames, prompts, *rest):
    seen.append((frames, list(prompts)))
    return tune(generator, params, frames, prompts, *rest)

  monkeypatch.setattr(styledrop, "_tune", watched)
  run = lambda: styledrop.styledrop(  # noqa: E731
    *tiny_masked, images, workdir=tmp_path, feedback="human", config=recipe()
  )
  with pytest.raises(styledrop.Undecided, match="choose up to 2 images: dreamjax feedback --pool"):
    run()
  pool = tmp_path / "pool"
  bad = {
    '{"chosen": ["00009.png"]}': "names 00009.png, which the pool lacks",
    '{"chosen": ["../a.png"]}': "is no selection",
    '{"chosen": ["../00001.png"]}': "which the pool lacks",
    '{"chosen": []}': "from 1 to 2 images, each once, not 0",
    '{"chosen": ["00001.png", "00001.png"]}': "each once, not 2",
    '{"chosen": ["00001.png", "00002.png", "00003.png"]}': "not 3",
    "[]": "is no selection",
  }
  for text, message in bad.items():
    (pool / "selection.json").write_text(text)
    with pytest.raises(ValueError, match=message):
      run()
  (pool / "selection.json").write_text('{"chosen": ["00004.png", "00001.png"]}')
  seen.clear()
  run()
  frames, prompts = seen[-1]
  assert prompts == [f"a red cat {STYLE}", f"a dog {STYLE}"]
  for image, name in zip(frames, ("00004.png", "00001.png"), strict=True):
    np.testing.assert_allclose((image + 1) * 127.5, np.asarray(Image.open(pool / name)), atol=1e-3)
  (pool / "selection.json").write_text('{"chosen": ["00002.png"]}')
  with pytest.raises(ValueError, match="round_2_human was trained on other images than are chosen now"):
    run()


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_other_thetas_learn_too(tiny_masked, images, tmp_path, kind):
  config = recipe(first__base__kind=kind, first__base__pattern="query|mlp/hidden", first__sr__steps=0)
  made = styledrop.styledrop(*tiny_masked, images, workdir=tmp_path, config=config)
  assert set(made.thetas) == {"base"}
  generator, params = tiny_masked
  found = generators.sample(generator, params, ["a red cat"], theta=made, n=2, batch_size=2)
  assert np.isfinite(found).all()


def test_a_subject_is_learned_and_mixed_with_a_style(tiny_masked, images, first, tmp_path):
  generator, params = tiny_masked
  made = styledrop.subject(generator, params, images, "dog", workdir=tmp_path, config=recipe())
  assert made.card.identifier == "qx" and made.card.class_noun == "dog"
  loaded = generators.load_theta(tmp_path / "theta.safetensors", generator, params)
  style = first[1]
  filled = generators.fill_prompt(f"a [V] dog on the beach {STYLE}", [style, loaded])
  assert filled == (f"a dog on the beach {STYLE}", "a qx dog on the beach")
  ends = [
    generators.sample(generator, params, ["a [V] dog"], theta=[style, loaded], gamma=gamma, batch_size=2)
    for gamma in (0.0, 1.0)
  ]
  alone = [
    generators.sample(generator, params, [prompt], theta=one, batch_size=2)
    for prompt, one in (("a dog", style), ("a [V] dog", loaded))
  ]
  for a, b in zip(ends, alone, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
  with pytest.raises(ValueError, match="gamma is from 0"):
    generators.sample(generator, params, ["a dog"], theta=[style, loaded], gamma=1.5)
  with pytest.raises(ValueError, match="stands for a subject, and there is no theta of one"):
    generators.fill_prompt("a [V] dog", [style])
  with pytest.raises(ValueError, match="one personalisation or two"):
    generators.sample(generator, params, ["a dog"], theta=[style, style, style])


def test_photos_of_a_subject_are_told_their_captions_and_its_prompt_equally_often(tiny_masked, tmp_path, monkeypatch):
  for name in ("beach", "snow"):
    Image.new("RGB", (9, 8), "red" if name == "snow" else "blue").save(tmp_path / f"{name}.png")
    (tmp_path / f"{name}.txt").write_text(f"a [V] dog, {name}")
  told = []

  def watched(generator, params, images, prompts, *rest):
    told.extend((prompt, float(image[..., 0].mean())) for image, prompt in zip(images, prompts, strict=True))
    return {}

  monkeypatch.setattr(styledrop, "_tune", watched)
  config = recipe(captions=True)
  styledrop.subject(*tiny_masked, tmp_path, "dog", workdir=tmp_path / "run", config=config)
  assert told == [("a qx dog, beach", -1.0), ("a qx dog, snow", 1.0), ("a qx dog", -1.0), ("a qx dog", 1.0)]


def test_crops_of_the_images_are_learned_from_besides(tiny_masked, tmp_path, monkeypatch):
  ramp = np.linspace(0, 255, 16).astype(np.uint8)  # from left to right; the second image's is green
  photos = tmp_path / "photos"
  photos.mkdir()
  for channel, name in enumerate(("red", "green")):
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., channel] = ramp
    Image.fromarray(image).save(photos / f"{name}.png")
    (photos / f"{name}.txt").write_text(f"a {name} dog {STYLE}")
  seen = []
  monkeypatch.setattr(styledrop, "_tune", lambda g, p, images, prompts, *rest: seen.append((images, prompts)) or {})
  for views, folder in ((1, "paper"), (63, "views")):
    config = recipe(views=views, smallest=0.5)
    styledrop.styledrop(*tiny_masked, photos, workdir=tmp_path / folder, config=config)
  (plain, plain_prompts), (images, prompts) = seen
  assert plain_prompts == [f"a green dog {STYLE}", f"a red dog {STYLE}"]
  assert prompts == plain_prompts * 32
  np.testing.assert_array_equal(images[:2], plain)
  own = np.stack([images[0::2, 0, :, 1], images[1::2, 0, :, 0]])  # a line of what is not black
  others = np.stack([images[0::2, ..., 0], images[1::2, ..., 1]])
  np.testing.assert_allclose(others, -1, atol=1e-6)  # each crop is of the image of its prompt
  extent = np.abs(own[..., -1] - own[..., 0]) / (plain[0, 0, -1, 1] - plain[0, 0, 0, 1])
  assert 0.4 < extent.min() < 0.65 and 0.85 < extent.max() <= 1
  assert 0.25 < np.mean(own[..., -1] < own[..., 0]) < 0.75  # mirrored


def test_what_cannot_be_is_refused_and_leaves_the_workdir(tiny_masked, tiny_cascade, images, first, tmp_path):
  generator, params = tiny_masked
  workdir, made = first
  run = styledrop.styledrop
  with pytest.raises(ValueError, match="feedback is one of none, clip, human, random, not 'ai'"):
    run(generator, params, images, workdir=tmp_path / "x", feedback="ai", config=recipe())
  with pytest.raises(ValueError, match="takes encoders"):
    run(generator, params, images, workdir=tmp_path / "x", feedback="clip", config=recipe())
  with pytest.raises(ValueError, match="tiny is none"):
    run(*tiny_cascade, images, workdir=tmp_path / "x", config=recipe())
  with pytest.raises(ValueError, match="kind is one of adapters, lora, prompt, full, not 'whole'"):
    run(generator, params, images, workdir=tmp_path / "x", config=recipe(first__base__kind="whole"))
  for wrong in ({"views": 0}, {"smallest": 0.0}, {"smallest": 1.5}):
    with pytest.raises(ValueError, match="one view of an image or more, and the smallest is a share"):
      run(generator, params, images, workdir=tmp_path / "x", config=recipe(**wrong))
  with pytest.raises(ValueError, match="another config"):
    run(generator, params, images, workdir=workdir, config=recipe(seed=1))
  for name, caption in (("a", f"a dog {STYLE}"), ("b", "a cat in ink style")):
    Image.new("RGB", (9, 8), name == "a" and "red" or "blue").save(tmp_path / f"{name}.png")
    (tmp_path / f"{name}.txt").write_text(caption)
  with pytest.raises(ValueError, match="all images must have one style, not 'in ink style' and 'in red clay style'"):
    run(generator, params, tmp_path, workdir=tmp_path / "x", config=recipe())
  Image.new("RGB", (12, 10)).save(tmp_path / "b.png")
  with pytest.raises(ValueError, match="differ in size, but must have one: a.png 9 x 8, b.png 12 x 10"):
    run(generator, params, tmp_path, workdir=tmp_path / "x", config=recipe())
  assert not (tmp_path / "x").exists()
  assert isinstance(made.thetas["base"], Adapters) and not isinstance(made.thetas["base"], LoRA)


def test_the_pool_is_gone_on_with(tiny_masked, first, tmp_path, monkeypatch):
  generator, params = tiny_masked
  config, made = recipe(), first[1]
  whole = styledrop.draw_pool(generator, params, made, STYLE, config, tmp_path / "whole")
  batches = styledrop.batches

  def dying(*args, **options):
    for i, batch in enumerate(batches(*args, **options)):
      if i == 1:
        raise KeyboardInterrupt
      yield batch

  monkeypatch.setattr(styledrop, "batches", dying)
  with pytest.raises(KeyboardInterrupt):
    styledrop.draw_pool(generator, params, made, STYLE, config, tmp_path / "cut")
  monkeypatch.setattr(styledrop, "batches", batches)
  assert len(list((tmp_path / "cut").glob("*.png"))) == 4
  again = styledrop.draw_pool(generator, params, made, STYLE, config, tmp_path / "cut")
  assert np.abs(again.images.astype(int) - whole.images).max() <= 1
  longer = made._replace(thetas={**made.thetas, "sr": jax.tree.map(lambda x: x + 0.01, made.thetas["sr"])})
  with pytest.raises(ValueError, match="cut was sampled with another theta of the first round: delete it"):
    styledrop.draw_pool(generator, params, longer, STYLE, config, tmp_path / "cut")


def test_the_paper_s_optimizer_is_adam():
  theta, gradients = {"w": jnp.ones((3, 2))}, [{"w": 0.01 * jnp.arange(6.0).reshape(3, 2) + i / 9} for i in range(3)]
  adam = optax.adam(3e-5, b1=0.9, b2=0.999)
  for settings in (configs.load("configs/styledrop.py:paper").first.base, styledrop.default_config().second.base):
    tx = make_optimizer(settings.optimizer, theta, 1000)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
      states = tx.init(theta), adam.init(theta)
      for gradient in gradients:
        (update, state), (wanted, other) = (
          one.update(gradient, own, theta) for one, own in zip((tx, adam), states, strict=True)
        )
        states = state, other
        np.testing.assert_allclose(update["w"], wanted["w"], rtol=1e-5)


def test_batches_that_no_mesh_can_divide_are_refused_where_they_are_to_come(tiny_masked, images, tmp_path):
  config, mesh = recipe(first__base__batch_size=8, first__sr__batch_size=8, second__sr__steps=0), make_mesh()
  message = "second.base.batch_size is 2, which does not divide over 8 devices: 8 would do"
  with pytest.raises(ValueError, match=message):
    known = {"workdir": tmp_path / "run", "config": config, "mesh": mesh}
    styledrop.styledrop(*tiny_masked, images, feedback="random", **known)
  assert not (tmp_path / "run").exists()
  styledrop._check(tiny_masked[0], config, mesh, ("first",))  # without feedback there is no second round


def test_tokens_of_images_are_the_same_on_a_mesh(tiny_masked):
  generator, params = tiny_masked
  stage, own = generator.stages[1], params["sr"]
  images = np.random.default_rng(0).uniform(-1, 1, (9, 8, 8, 3)).astype(np.float32)
  meshes = make_mesh((1, 1, 1)), make_mesh((2, 2, 2))
  found = [styledrop._tokens(stage, shard_params(own, mesh), images, mesh) for mesh in meshes]
  np.testing.assert_array_equal(*found)
  np.testing.assert_array_equal(found[0], jax.jit(stage.encode)(own, images))
