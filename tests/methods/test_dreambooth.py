"""DreamBooth on a tiny cascade, from a folder of photos to a theta."""

import dataclasses
import gc
import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from dreamjax import generators
from dreamjax.convert import latent_unet
from dreamjax.data import identifiers, tokenizer
from dreamjax.data.latents import Latents
from dreamjax.data.photos import Batch
from dreamjax.diffusion.schedules import BetaTable
from dreamjax.generators.cascade import Cascade, Sampling, Stage
from dreamjax.methods import dreambooth
from dreamjax.models.autoencoder import Autoencoder
from dreamjax.models.clip import PromptEncoder, TextTower
from dreamjax.models.latent_unet import LatentUNet
from dreamjax.parallel import sharding
from dreamjax.parallel.sharding import make_mesh
from dreamjax.train.state import TrainState


def recipe(**changes):
  """A config of few steps; changes are paths with __ for dots."""
  config = dreambooth.default_config()
  config.identifier = "qx"
  config.prior.count = 3
  for stage in config.stages.values():
    stage.steps, stage.batch_size, stage.prior_batch_size, stage.kind, stage.rank = 3, 2, 2, "lora", 2
    stage.optimizer.learning_rate, stage.save_every = 1e-2, 2
  config.prior.sampling = {"base": {"steps": 2}, "sr": {"steps": 2}}
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return config


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
  for i in range(4):
    Image.fromarray(draw.integers(0, 255, (20, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
  return folder


@pytest.fixture(scope="module")
def whole(tiny_cascade, photos, tmp_path_factory):
  """A whole run: (workdir, what came of it)."""
  generator, params = tiny_cascade
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, dreambooth.dreambooth(generator, params, photos, "dog", workdir=workdir, config=recipe())


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_both_stages_end_in_one_file_that_draws(tiny_cascade, whole):
  generator, params = tiny_cascade
  workdir, made = whole
  assert set(made.thetas) == {"base", "sr"} and made.card.identifier == "qx"
  loaded = generators.load_theta(workdir / "theta.safetensors", generator, params)
  assert loaded.card.recipe["method"] == "dreambooth" and loaded.card.recipe["prompt"] == "a [V] dog"
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), dict(loaded.thetas), dict(made.thetas))
  assert all(np.abs(theta.weights["conv_in"]["up"]).max() > 0 for theta in made.thetas.values())
  levels = [sampling.augmentation_level for sampling in generators.default_samplings(generator, [loaded])]
  assert levels == [0.0, 1e-5]  # as the stage was tuned
  images = generators.sample(generator, params, ["a [V] dog on the beach"], theta=loaded, batch_size=2)
  plain = generators.sample(generator, params, ["a qx dog on the beach"], batch_size=2)
  assert np.abs(images - plain).max() > 1e-3


def test_a_second_call_finds_everything_done(tiny_cascade, whole, photos):
  generator, params = tiny_cascade
  workdir, made = whole
  lines = [(workdir / stage / "log.jsonl").read_text() for stage in ("base", "sr")]
  again = dreambooth.dreambooth(generator, params, photos, "dog", workdir=workdir, config=recipe())
  same(dict(again.thetas), dict(made.thetas))
  assert lines == [(workdir / stage / "log.jsonl").read_text() for stage in ("base", "sr")]


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(tiny_cascade, whole, photos, tmp_path, monkeypatch):
  generator, params = tiny_cascade
  drawn, fit, seen = dreambooth.RowSource.__call__, dreambooth.fit, []

  def dying(self, i):
    seen.append(i)
    if len(seen) == 3:
      raise KeyboardInterrupt
    return drawn(self, i)

  monkeypatch.setattr(dreambooth.RowSource, "__call__", dying)
  with pytest.raises(KeyboardInterrupt):
    dreambooth.dreambooth(generator, params, photos, "dog", workdir=tmp_path, config=recipe())
  assert fit is dreambooth.fit
  again = dreambooth.dreambooth(generator, params, photos, "dog", workdir=tmp_path, config=recipe())
  same(dict(again.thetas), dict(whole[1].thetas))


def test_a_prior_of_weight_zero_is_plain_fine_tuning(tiny_cascade, photos, tmp_path):
  """The rows of the class are there, with the same noise for those of the subject, and change nothing."""
  generator, params = tiny_cascade
  runs = []
  for seed_of_prior in (0, 1):
    config = recipe(prior__weight=0.0, stages__sr__steps=0)
    config.prior.sampling.base.guidance = 1.0 + seed_of_prior  # other images of the class
    folder = tmp_path / str(seed_of_prior)
    runs.append(dreambooth.dreambooth(generator, params, photos, "dog", workdir=folder, config=config))
  same(dict(runs[0].thetas), dict(runs[1].thetas))


def test_full_weights_text_encoder_and_frozen_prior(tiny_cascade, photos, tmp_path):
  generator, params = tiny_cascade
  before = jax.tree.map(np.array, params)
  config = recipe(prior__kind="frozen", train_text="tuned", stages__base__kind="full", stages__sr__steps=0)
  config.sample_prompts = ("a [V] dog", "a dog")
  made = dreambooth.dreambooth(generator, params, photos, "dog", workdir=tmp_path, config=config)
  same(before, params)  # what is frozen stays as it was, to the bit
  assert set(made.thetas) == {"base", "text"}
  change = {
    part: max(
      float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (theta.weights, params[part])), strict=True)
    )
    for part, theta in made.thetas.items()
  }
  assert 0 < change["text"] < 0.5 * change["base"]  # its learning rate is a fifth
  assert not (tmp_path / "priors").exists()
  assert sorted(path.name for path in (tmp_path / "base/samples").iterdir()) == ["samples-2.png", "samples-3.png"]
  loaded = generators.load_theta(tmp_path / "theta.safetensors", generator, params)
  assert np.isfinite(generators.sample(generator, params, ["a [V] dog"], theta=loaded, batch_size=2)).all()


@pytest.mark.parametrize("train_text", ["tuned", "embeddings"])
def test_later_stages_are_trained_on_what_the_tuned_text_encoder_makes_of_texts(
  tiny_cascade, photos, tmp_path, monkeypatch, train_text
):
  """As they are sampled: the texts of super-resolution are those of the theta that the base stage's training found."""
  generator, params = tiny_cascade
  batches = {}

  def fit(step, state, rows, *, workdir, **options):
    batches[workdir.name] = rows(0)
    return state.replace(theta=jax.tree.map(lambda x: x + 0.3, state.theta))

  monkeypatch.setattr(dreambooth, "fit", fit)
  config = recipe(prior__kind="none", train_text=train_text, stages__sr__batch_size=4)
  made = dreambooth.dreambooth(generator, params, photos, "dog", workdir=tmp_path, config=config)
  wanted, plain = (generator.encode(params, ["a qx dog"], theta) for theta in (made.thetas["text"], None))
  assert np.abs(wanted.tokens - plain.tokens).max() > 0.01
  for tokens in batches["sr"].prompt.tokens:
    np.testing.assert_allclose(tokens, wanted.tokens[0], atol=1e-5)


def test_only_what_a_stage_needs_is_on_the_devices_while_it_is_trained(tiny_cascade, photos, tmp_path, monkeypatch):
  generator, params = tiny_cascade
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
  alive, fit, before = {}, dreambooth.fit, jax.live_arrays()

  def shapes(part):
    return {x.shape for x in jax.tree.leaves(params[part])}

  def watched(step, state, rows, *, workdir, **options):
    gc.collect()
    alive[workdir.name] = {x.shape for x in jax.live_arrays() if id(x) not in set(map(id, before))}
    return fit(step, state, rows, workdir=workdir, **options)

  monkeypatch.setattr(dreambooth, "fit", watched)
  own = {part: shapes(part).difference(*(shapes(other) for other in params if other != part)) for part in params}
  config = recipe(prior__kind="none", stages__base__steps=1, stages__sr__steps=1)
  config.stages.base.rank = config.stages.sr.rank = 5  # a theta has no shape of the parameters
  dreambooth.dreambooth(generator, params, photos, "dog", workdir=tmp_path, config=config)
  for stage, idle in (("base", ("text", "sr")), ("sr", ("text", "base"))):
    assert own[stage] and own[stage] <= alive[stage]
    for part in idle:
      assert own[part] and not own[part] & alive[stage], (stage, part)


def test_patience_ends_a_training_and_keeps_the_best(tiny_cascade, photos, tmp_path):
  generator, params = tiny_cascade
  config = recipe(
    prior__kind="none", early_stopping=2, stages__base__steps=40, stages__base__save_every=1, stages__sr__steps=0
  )
  config.stages.base.optimizer.learning_rate = 3.0  # it can only get worse
  run = lambda: dreambooth.dreambooth(generator, params, photos, "dog", workdir=tmp_path, config=config)  # noqa: E731
  made, log = run(), (tmp_path / "base/log.jsonl").read_text()
  losses = [found["held_out"] for found in map(json.loads, log.splitlines()) if "held_out" in found]
  assert 3 <= len(losses) < 40
  best = int(np.argmin(losses))
  assert best == len(losses) - 3  # behind it, two checkpoints were no better
  same(dict(run().thetas), dict(made.thetas))  # the same command trains nothing more
  assert (tmp_path / "base/log.jsonl").read_text() == log


@pytest.fixture
def draw_rows(photos):
  """draw_rows(share of captions, updates): rows whose prompts are numbers: four captions, three wordings, the class."""

  def draw(captions, updates):
    config = recipe(captions=captions)
    read = dreambooth.read_photos(photos, 16, "dog")
    prior = np.zeros((5, 16, 16, 3), np.uint8)
    subject = dreambooth.Subject(read, "qx", ("a [V] dog", "one [V] dog", "the [V] dog"), "a dog", prior)
    texts = {"which": np.arange(len(subject.prompts()))}
    rows = dreambooth.RowSource(subject, lambda x, _: x[:, ::2, ::2], texts, config, config.stages.base)
    return [rows(i) for i in range(updates)]

  return draw


def test_rows_hold_each_photo_equally_often_and_the_class_s_prompt_last(draw_rows):
  seen = draw_rows(1.0, 6)
  counts = np.bincount(np.concatenate([r.prompt["which"] for r in seen]))
  np.testing.assert_array_equal(counts, [3, 3, 3, 3, 0, 0, 0, 12])
  for r in seen:
    np.testing.assert_array_equal(r.conditioning["prior"], [False, False, True, True])
    np.testing.assert_array_equal(r.image[2:], np.full((2, 8, 8, 3), -1.0))
    assert r.image.shape == (4, 8, 8, 3)


def test_wordings_and_captions_have_their_shares_of_the_rows(draw_rows):
  told = {share: np.stack([r.prompt["which"] for r in draw_rows(share, 100)])[:, :2] for share in (0.0, 0.3, 1.0)}
  counts = np.bincount(told[0.0].ravel(), minlength=8)
  assert counts[:4].sum() == 0 and (np.abs(counts[4:7] / 200 - 1 / 3) < 5 * (2 / 9 / 200) ** 0.5).all()
  assert abs((told[0.3] < 4).mean() - 0.3) < 5 * (0.3 * 0.7 / 200) ** 0.5
  captioned = told[0.3] < 4
  np.testing.assert_array_equal(told[0.3][captioned], told[1.0][captioned])  # a photo has no other's caption


def test_prompts_are_those_of_the_photos_the_wordings_and_the_class(photos):
  read = dreambooth.read_photos(photos, 16, "dog")
  captioned = dataclasses.replace(read, prompts=("a [V] dog on the beach", *read.prompts[1:]))
  prompts = dreambooth.Subject(captioned, "qx", ("one [V] dog",), "a dog", None).prompts()
  assert prompts == ["a qx dog on the beach", "a qx dog", "a qx dog", "a qx dog", "one qx dog", "a dog"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"wordings": ("a dog",)}, r"wordings are prompts with \[V\] in them"),
    ({"wordings": ()}, r"wordings are prompts with \[V\] in them"),
    ({"captions": 1.5}, "captions is a share from 0 to 1, not 1.5"),
    ({"captions": 0.5}, "captions are asked for, but"),
    ({"prior__kind": "some"}, "prior.kind is one of images, frozen, none, not 'some'"),
    ({"stages__base__kind": "dora"}, "stages.base.kind is one of full, lora, none, not 'dora'"),
    ({"stages__base__kind": "none"}, "stages.base.kind is none, which leaves nothing to tune"),
    ({"train_text": "embeddings", "stages__sr__kind": "none"}, "stages.sr.kind is none, which leaves nothing to tune"),
    ({"train_text": "all"}, "train_text is one of frozen, tuned, embeddings, not 'all'"),
    ({"stages__sr__batch_size": 0}, "batch_size is at least 1"),
    ({"stages__base__pattern": "no_such_layer"}, "'no_such_layer' matches none of"),
    ({"prior__sampling": {"base": {"steps": 0}}}, "one step or more"),
  ],
)
def test_a_config_that_cannot_be_is_refused(tiny_cascade, photos, tmp_path, changes, message):
  generator, params = tiny_cascade
  config = recipe(prior__kind="none") if "prior" not in next(iter(changes)) else recipe()
  for key, value in changes.items():
    with config.ignore_type():
      config.update_from_flattened_dict({key.replace("__", "."): value})
  with pytest.raises(ValueError, match=message):
    dreambooth.dreambooth(generator, params, photos, "dog", workdir=tmp_path, config=config)


def test_batches_that_no_mesh_can_divide_are_refused_before_anything_is_drawn(tiny_cascade, photos, tmp_path):
  config = recipe(stages__base__batch_size=6, stages__sr__batch_size=3)
  message = "stages.sr.batch_size is 3, which with 2 prior examples does not divide over 8 devices: 6 would do"
  with pytest.raises(ValueError, match=message):
    dreambooth.dreambooth(*tiny_cascade, photos, "dog", workdir=tmp_path / "run", config=config, mesh=make_mesh())
  assert not (tmp_path / "run").exists()


def test_what_is_shown_beside_a_training_is_drawn_with_the_theta_where_it_lies(
  tiny_cascade, photos, tmp_path, monkeypatch
):
  monkeypatch.setattr(sharding, "_MIN_SHARDED", 1)
  states, seen = [], []

  def fit(step, state, rows, *, inspect, **options):
    states.append(state)
    inspect(state)
    return state

  def batches(generator, params, prompts, *, thetas, **options):
    seen.append((params, thetas[0]))
    yield (np.zeros((1, 8, 8, 3)),)

  monkeypatch.setattr(dreambooth, "fit", fit)
  monkeypatch.setattr(dreambooth, "batches", batches)
  config = recipe(prior__kind="none", stages__base__kind="full", stages__base__batch_size=8, stages__sr__steps=0)
  config.sample_prompts = ("a [V] dog",)
  mesh = make_mesh((1, 8, 1))
  dreambooth.dreambooth(*tiny_cascade, photos, "dog", workdir=tmp_path, config=config, mesh=mesh)
  ((params, thetas),) = seen
  assert all(a is b for a, b in zip(jax.tree.leaves(thetas), jax.tree.leaves(states[0].theta), strict=True))
  for tree in (params["base"], thetas["base"]):
    leaves = jax.tree.leaves(tree)
    assert sum(x.addressable_shards[0].data.size for x in leaves) < 0.2 * sum(x.size for x in leaves)


@pytest.mark.parametrize(("count", "parts"), [(8, 8), (6, 1)])
def test_the_loss_on_held_out_photos_is_computed_where_rows_lie(count, parts):
  rows = Batch(np.zeros((count, 2, 2, 3), np.float32), np.arange(count), np.ones(count, np.float32), {})
  meshes, mesh = [], make_mesh()

  def loss(theta, frozen, rows, key):
    meshes.append(jax.sharding.get_abstract_mesh().shape)
    return jnp.sum(rows.weight) + theta["w"], {}

  evaluate = dreambooth.HeldOutLoss(loss, rows, 0, mesh)
  own = evaluate._rows.weight
  assert (len(own) // parts,) == (own.addressable_shards[0].data.shape if parts > 1 else own.shape)
  assert evaluate(TrainState(jnp.zeros((), jnp.int32), {"w": jnp.ones(())}, None, ())) == count + 1
  assert meshes == [mesh.shape]


def test_a_folder_without_photos_is_refused(tiny_cascade, tmp_path):
  generator, params = tiny_cascade
  with pytest.raises(FileNotFoundError, match="there is no folder"):
    dreambooth.dreambooth(generator, params, tmp_path / "none", "dog", workdir=tmp_path / "run", config=recipe())
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="there are no images in"):
    dreambooth.dreambooth(generator, params, tmp_path / "empty", "dog", workdir=tmp_path / "run", config=recipe())


def test_a_workdir_of_another_training_is_refused_and_kept(tiny_cascade, whole, photos, tmp_path):
  generator, params = tiny_cascade
  workdir, made = whole
  fewer = tmp_path / "fewer"
  fewer.mkdir()
  for name in ("0.png", "1.png"):
    (fewer / name).write_bytes((photos / name).read_bytes())
  for folder, noun, config, other in (
    (fewer, "dog", recipe(), "photos and prompts"),
    (photos, "cat", recipe(), "prompts and class_noun"),
    (photos, "dog", recipe(stages__base__rank=1), "config"),
    (photos, "dog", recipe(prior__sampling__base__steps=3), "config"),
  ):
    with pytest.raises(ValueError, match=f"holds a training with another {other}: choose another workdir"):
      dreambooth.dreambooth(generator, params, folder, noun, workdir=workdir, config=config)
  longer = recipe(stages__base__steps=4)  # which may be asked for later
  again = dreambooth.dreambooth(generator, params, photos, "dog", workdir=workdir, config=longer)
  assert again.thetas["base"].weights["conv_in"]["up"].shape == made.thetas["base"].weights["conv_in"]["up"].shape
  assert '"step": 4' in (workdir / "base/log.jsonl").read_text()


@pytest.fixture(scope="module")
def tiny_latent():
  """SDXL in small, with random weights: (cascade, params)."""
  words = tokenizer.train(["a dog on the beach", "qx zv wug"] * 3, 320)
  words.bos_token = words.eos_token
  tower = TextTower(vocab=len(words), length=8, width=8, depth=2, heads=2, mlp=8, eos=words.eos_token_id)
  encoder = PromptEncoder((tower, tower.clone(projection=6)), penultimate=True)
  unet = LatentUNet(
    widths=(8, 16), blocks=1, attention=(False, True), depth=(1, 1), heads=(2, 2), text_width=16, channels=3,
    pooled_width=6, size_width=4, groups=4, image=8,
  )  # fmt: skip
  autoencoder = Autoencoder(widths=(4, 4), blocks=1, latent=3, scale=0.5, groups=4)
  stage = Stage("base", unet, BetaTable("scaled_linear", 1000, 0.00085, 0.012), "eps", masks_text=False,
                sampling=Sampling(steps=2, guidance=2.0), sizes=(16, 16, 0, 0, 16, 16))  # fmt: skip
  two = tokenizer.Tokenizers([tokenizer.Tokenizer(words, 8)] * 2)
  rng = np.random.default_rng(0)

  def weights(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), shapes)

  ids, mask = two(["a dog"])
  params = {
    "text": weights(encoder, jnp.asarray(ids), jnp.asarray(mask)),
    "base": weights(unet, *latent_unet.inputs(unet)),
    "autoencoder": weights(autoencoder, jnp.zeros((1, 16, 16, 3))),
  }
  return Cascade("tiny-xl", encoder, two, (stage,), autoencoder), params


def test_textual_inversion_moves_the_identifier_s_rows_and_nothing_else(tiny_cascade, photos, tmp_path):
  generator, params = tiny_cascade
  before = jax.tree.map(np.array, params)
  config = recipe(
    identifier="qx zv", prior__kind="none", train_text="embeddings", text_rate=1.0,
    stages__base__kind="none", stages__sr__steps=0,
  )  # fmt: skip
  made = dreambooth.dreambooth(generator, params, photos, "dog", workdir=tmp_path, config=config)
  same(before, params)
  assert set(made.thetas) == {"text"}
  ids = identifiers.tokens(generator.tokenizer, "qx zv")
  tuned = made.thetas["text"].merge(params["text"])
  table, own = tuned["tokens"].pop("embedding"), params["text"]["tokens"]["embedding"]
  same(tuned, {**params["text"], "tokens": {}})
  moved = np.abs(np.asarray(table) - own).max(axis=1)
  assert (moved[ids] > 1e-3).all() and np.delete(moved, ids).max() == 0
  loaded = generators.load_theta(tmp_path / "theta.safetensors", generator, params)
  same(dict(loaded.thetas), dict(made.thetas))
  drawn = [generators.sample(generator, params, ["a [V] dog"], theta=theta, batch_size=1) for theta in (made, loaded)]
  np.testing.assert_array_equal(*drawn)
  assert np.abs(drawn[0] - generators.sample(generator, params, ["a qx zv dog"], batch_size=1)).max() > 1e-4


def latent_recipe(**changes):
  config = dreambooth.default_config(("base",))
  config.identifier = "qx"
  base = config.stages.base
  base.steps, base.batch_size, base.prior_batch_size, base.optimizer.learning_rate = 3, 2, 2, 1e-2
  config.prior.count, config.prior.batch_size, config.prior.sampling.base.steps = 4, 2, 2
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return config


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {
      "prior__kind": "frozen",
      "stages__base__kind": "lora",
      "stages__base__pattern": "(self|cross|attention)/",
      "train_text": "tuned",
    },
  ],
  ids=["full", "lora"],
)
def test_a_subject_is_learned_on_latents(tiny_latent, photos, tmp_path, changes):
  generator, params = tiny_latent
  before = jax.tree.map(np.copy, params)
  config = latent_recipe(**changes)
  made = dreambooth.dreambooth(generator, params, photos, "dog", workdir=tmp_path, config=config)
  same(before, params)
  assert set(made.thetas) == ({"base", "text"} if config.train_text == "tuned" else {"base"})
  losses = [json.loads(line) for line in (tmp_path / "base/log.jsonl").read_text().splitlines()]
  assert all(np.isfinite(line["loss"]) for line in losses)
  tuned = generators.sample(generator, params, ["a [V] dog"], theta=made, batch_size=1)
  plain = generators.sample(generator, params, ["a qx dog"], batch_size=1)
  assert tuned.shape == (1, 16, 16, 3) and np.abs(tuned - plain).max() > 1e-3


def test_rows_of_latents_are_the_autoencoder_s_gaussians_and_each_image_is_encoded_once(tiny_latent, photos):
  generator, params = tiny_latent
  module, weights = generator.autoencoder, params["autoencoder"]
  encode = Latents(module, weights)
  images = dreambooth.read_photos(photos, 16, "dog").images()
  drawn = np.stack([encode(images, np.random.default_rng(i)) for i in range(200)])
  assert len(encode._cache) == 4
  mean = module.apply({"params": weights}, jnp.asarray(images), method="encode")
  spread = 0.5 * np.exp(0.5 * module.apply({"params": weights}, jnp.asarray(images), method="gaussian").log_variance)
  assert np.abs((drawn.mean(0) - mean) / spread).max() < 5 / np.sqrt(200)
  np.testing.assert_allclose((drawn.std(0) / spread).mean(), 1.0, atol=0.02)
