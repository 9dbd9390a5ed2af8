"""The cascade: how it is sampled, and what does not change its images."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from dreamjax import generators, theta
from dreamjax.convert import pretrained
from dreamjax.generators import branches, pipelines
from dreamjax.generators import cascade as cascades
from dreamjax.generators import generator as generator_lib
from dreamjax.generators.cascade import Sampling, Stage
from dreamjax.generators.conditioning import Conditioning
from dreamjax.parallel import sharding
from dreamjax.parallel.sharding import make_mesh
from dreamjax.theta import Base, Card, Full, LoRA, Personalisation

PROMPTS = ["a dog on the beach", "a red cat", "a dog on the beach"]


@pytest.fixture(scope="module")
def drawn(tiny_cascade):
  """All stages' images of the prompts, drawn two at a time."""
  generator, params = tiny_cascade
  return [
    np.concatenate(stage) for stage in zip(*generators.batches(generator, params, PROMPTS, batch_size=2), strict=True)
  ]


def test_each_stage_draws_at_its_size(drawn):
  assert [stage.shape for stage in drawn] == [(3, 8, 8, 3), (3, 16, 16, 3)]
  assert all(np.isfinite(stage).all() and np.abs(stage).max() <= 1 for stage in drawn)


def test_an_image_depends_on_its_prompt_and_its_number(drawn):
  for stage in drawn:
    assert np.abs(stage[0] - stage[2]).max() > 0.05  # the same prompt, other noise


def test_batches_of_another_size_draw_the_same_images(tiny_cascade, drawn):
  generator, params = tiny_cascade
  whole = generators.sample(generator, params, PROMPTS, batch_size=8)
  np.testing.assert_allclose(whole, drawn[-1], atol=2 / 255)
  (later,) = generators.batches(generator, params, PROMPTS[1:], first=1, batch_size=2)
  np.testing.assert_allclose(later[-1], drawn[-1][1:], atol=2 / 255)


def test_images_spread_over_devices_are_the_same(tiny_cascade, drawn):
  generator, params = tiny_cascade
  spread = generators.sample(generator, params, PROMPTS, batch_size=8, mesh=make_mesh())
  np.testing.assert_allclose(spread, drawn[-1], atol=2 / 255)
  uneven = list(generators.batches(generator, params, PROMPTS, batch_size=3, mesh=make_mesh()))
  assert [len(stage) for batch in uneven for stage in batch] == [3, 3]
  np.testing.assert_array_equal(uneven[0][-1], spread)


@pytest.mark.parametrize("comes_from", ["a file", "a training"])
def test_full_weights_lie_on_a_mesh_as_what_they_replace(tiny_cascade, monkeypatch, comes_from):
  monkeypatch.setattr(sharding, "_MIN_SHARDED", 1)
  cascade, params = tiny_cascade
  mesh = make_mesh((1, 8, 1))
  placed = sharding.shard_params(params, mesh)
  tuned = {name: Full(jax.tree.map(lambda x: x + np.float32(1), params[name])) for name in ("base", "text")}
  tuned = tuned if comes_from == "a file" else sharding.shard_params(tuned, mesh)
  seen, encode = {}, generator_lib._encode

  def encoded(encoder, own, theta, ids, mask):
    seen["text"] = own, theta
    assert {x.addressable_shards[0].data.shape[0] for x in (ids, mask)} == {1}  # of three texts on eight devices
    return encode(encoder, own, theta, ids, mask)

  def sample(stages, samplings, groups, weights, autoencoder_params, keys, control, *, autoencoder):
    ((group,),) = groups
    seen["base"] = group.params, group.thetas
    np.testing.assert_array_equal(group.text.mask[0, :3], np.asarray(group.text.mask[0])[[0, 1, 0]])
    return (np.zeros((8, 8, 8, 3)),)

  monkeypatch.setattr(generator_lib, "_encode", encoded)
  monkeypatch.setattr(cascades, "sample_stages", sample)
  list(generators.batches(cascade, placed, PROMPTS, thetas=[tuned], samplings=[Sampling()], mesh=mesh))
  for name, (merged, left) in seen.items():
    assert left is None
    jax.tree.map(lambda x, own: np.testing.assert_array_equal(x, own + np.float32(1)), merged, params[name])
    assert jax.tree.map(lambda x: x.sharding, merged) == jax.tree.map(lambda x: x.sharding, placed[name])
    parts = [(x.size, x.addressable_shards[0].data.size) for x in jax.tree.leaves(merged)]
    assert sum(part for _, part in parts) < 0.2 * sum(size for size, _ in parts)


def test_a_stage_is_the_sampler_of_its_guided_predictions(tiny_cascade, drawn):
  """One step of DDIM from pure noise, written out."""
  generator, params = tiny_cascade
  (stage, _), once = generator.stages, Sampling(steps=1, guidance=3.0, threshold_percentile=0.0)
  text, null = (generator.encode(params, texts) for texts in (PROMPTS[:1], [""]))
  keys = generator_lib.image_keys(5, [0])

  def sample(sampling):
    guidance = sampling.branches(0, 0.0)
    groups = branches.base_model_group(guidance, params["base"], null, text)
    return jax.jit(cascades.sample_stage, static_argnums=(0, 1))(stage, sampling, groups, guidance.weights, keys)

  found = sample(once)
  noise = jax.random.normal(keys[0], (1, 8, 8, 3))[0][None]
  say = jax.jit(lambda text: stage.predict(params["base"], None, noise, jnp.ones(1), Conditioning(text)))
  c, u = say(text), say(null)
  alpha, sigma = float(stage.schedule.alpha(jnp.ones(()))), float(stage.schedule.sigma(jnp.ones(())))
  x0 = alpha * noise - sigma * (u + 3.0 * (c - u))
  np.testing.assert_allclose(found, np.clip(x0, -1, 1), atol=1e-3)
  later = sample(dataclasses.replace(once, interval=[0, 0.5]))
  np.testing.assert_allclose(later, np.clip(alpha * noise - sigma * c, -1, 1), atol=1e-3)  # at time 1 no guidance


def test_the_second_stage_sees_the_first_ones_image(tiny_cascade, drawn):
  generator, params = tiny_cascade
  stage = generator.stages[1]
  text, null = (generator.encode(params, texts) for texts in (PROMPTS[:1], [""]))
  keys = generator_lib.image_keys(0, [0])
  guidance = stage.sampling.branches(0, 0.0)
  groups = branches.base_model_group(guidance, params["sr"], null, text)
  draw = jax.jit(lambda x: cascades.sample_stage(stage, stage.sampling, groups, guidance.weights, keys, x))
  low_res = jnp.asarray(drawn[0][:1])
  assert np.abs(draw(low_res) - draw(-low_res)).max() > 0.05


def test_a_theta_changes_what_is_drawn_and_v_stands_for_its_subject(tiny_cascade):
  generator, params = tiny_cascade
  tuned = LoRA.init(jax.random.key(0), params["base"], 2)
  tuned = jax.tree.map(lambda x: x + 0.05, tuned)
  card = Card(generator.base(params), "qx", "dog", {})
  made = Personalisation({"base": tuned}, card)
  found = generators.sample(generator, params, ["a [V] dog"], theta=made, batch_size=2)
  merged = params | {"base": tuned.merge(params["base"])}
  np.testing.assert_allclose(found, generators.sample(generator, merged, ["a qx dog"], batch_size=2), atol=2 / 255)
  assert np.abs(found - generators.sample(generator, params, ["a qx dog"], batch_size=2)).max() > 0.05
  with pytest.raises(ValueError, match=r"\[V\] stands for a subject, and there is no theta"):
    generators.sample(generator, params, ["a [V] dog"])


@pytest.mark.parametrize("sampler", ["ancestral", "dpm"])
def test_other_samplers_draw_too(tiny_cascade, sampler):
  generator, params = tiny_cascade
  samplings = [Sampling(sampler, 2, 1.0)]
  (images,) = generators.batches(generator, params, PROMPTS, samplings=samplings, batch_size=3)
  assert len(images) == 1 and np.isfinite(images[0]).all()


def test_what_cannot_be_sampled_is_refused(tiny_cascade):
  generator, params = tiny_cascade
  with pytest.raises(ValueError, match="unknown sampler 'ddmi'"):
    Sampling("ddmi")
  with pytest.raises(ValueError, match="one step or more, not 0"):
    Sampling(steps=0)
  with pytest.raises(ValueError, match="augmentation_level is from 0 to 1, not 1.5"):
    Sampling(augmentation_level=1.5)
  with pytest.raises(ValueError, match=r"an interval of times within 0 and 1, not \(0.8, 0.2\)"):
    Sampling(interval=(0.8, 0.2))
  with pytest.raises(ValueError, match="no prompt"):
    generators.sample(generator, params, [])
  with pytest.raises(ValueError, match="no stage 'huge'; there are: base, sr"):
    generator.stage("huge")
  with pytest.raises(ValueError, match="if and only if"):
    Stage("base", generator.stages[1].unet, generator.stages[0].schedule)


def test_a_folder_holds_all_of_a_generator(tiny_cascade, tmp_path):
  generator, params = tiny_cascade
  generators.save(tmp_path / "whole", generator, params, dtype=np.float32)
  found, loaded = generators.load(tmp_path / "whole")
  assert found.stages == generator.stages and found.name == "tiny" and found.text_encoder == generator.text_encoder
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  np.testing.assert_array_equal(found.tokenizer(PROMPTS)[0], generator.tokenizer(PROMPTS)[0])
  assert found.base(loaded) == generator.base(params)
  generators.save(tmp_path / "part", generator, {"base": params["base"]}, text_encoder="../whole/text_encoder")
  with pytest.raises(FileNotFoundError, match="part/sr, which the generator needs"):
    generators.load(tmp_path / "part")


def test_a_theta_is_bound_to_its_generator(tiny_cascade, tmp_path):
  generator, params = tiny_cascade
  made = Personalisation(
    {"base": LoRA.init(jax.random.key(0), params["base"], 1)}, Card(generator.base(params), "qx", "dog", {})
  )
  made.save(tmp_path / "dog.safetensors")
  found = generators.load_theta(tmp_path / "dog.safetensors", generator, params)
  assert found.card == made.card and set(found.thetas) == {"base"}
  other = dataclasses.replace(generator, name="other")
  with pytest.raises(ValueError, match="was trained with tiny and does not fit other, whose part 'text' has the hash"):
    theta.load(tmp_path / "dog.safetensors", Base(other.name, {**made.card.base.hashes, "text": "0" * 64}))


def test_a_theta_of_one_stage_loads_with_other_stages_and_without(tiny_cascade, tmp_path, monkeypatch):
  both, params = tiny_cascade
  one = dataclasses.replace(both, stages=both.stages[:1])
  first, other = {"text": params["text"], "base": params["base"]}, {**params, "sr": params["base"]}
  low = LoRA.init(jax.random.key(0), params["base"], 1)
  for trained, own, others in ((both, params, [(one, first), (both, other)]), (one, first, [(both, params)])):
    Personalisation({"base": low}, Card(trained.base(own), "qx", "dog", {})).save(tmp_path / "theta")
    for another, its in others:
      assert set(generators.load_theta(tmp_path / "theta", another, its).thetas) == {"base"}
  Personalisation({"base": low, "sr": low}, Card(both.base(params), "qx", "dog", {})).save(tmp_path / "theta")
  with pytest.raises(ValueError, match="whose part 'sr' is missing"):
    generators.load_theta(tmp_path / "theta", one, first)
  base = both.base(params)
  monkeypatch.setattr(generator_lib, "content_hash", lambda *_: pytest.fail("the hashes are known"))
  generators.load_theta(tmp_path / "theta", both, params, base)


def test_a_file_of_the_first_format_is_bound_to_all_parameters(tiny_cascade, tmp_path):
  generator, params = tiny_cascade
  low = LoRA.init(jax.random.key(0), params["base"], 1)
  Personalisation({"base": low}, Card(generator.base(params), "qx", "dog", {})).save(tmp_path / "new")
  with safetensors.safe_open(tmp_path / "new", "np") as file:
    metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
  del metadata["base_hashes"]
  metadata |= {"format": "dreamjax theta 1", "base_hash": theta.content_hash(params)}
  safetensors.numpy.save_file(tensors, tmp_path / "old", metadata)
  for base in (None, generator.base(params)):
    assert set(generators.load_theta(tmp_path / "old", generator, params, base).thetas) == {"base"}
  with pytest.raises(ValueError, match="whose set of parameters has the hash"):
    generators.load_theta(tmp_path / "old", generator, {**params, "sr": params["base"]})


@pytest.mark.parametrize(
  ("index", "message"),
  [
    ("{", "no index of a generator"),
    ('{"_class_name": "DreamjaxCascade"}', "no index of a generator: it lacks length, name, stages, text_encoder"),
    ('{"_class_name": "Other", "name": "", "text_encoder": "", "length": 1, "stages": []}', "describes a Other"),
  ],
)
def test_a_folder_that_is_no_generator_is_refused(tmp_path, index, message):
  with pytest.raises(FileNotFoundError, match="so it is no generator"):
    generators.load(tmp_path)
  (tmp_path / "model_index.json").write_text(index)
  with pytest.raises(ValueError, match=message):
    generators.load(tmp_path)


@pytest.mark.parametrize("name", ["../base", "/base", "a/b", "..", "", 3])
def test_a_stage_is_no_path_out_of_the_folder(tmp_path, name):
  index = {"_class_name": "DreamjaxCascade", "name": "", "text_encoder": "", "length": 1, "stages": [{"name": name}]}
  (tmp_path / "model_index.json").write_text(json.dumps(index))
  with pytest.raises(ValueError, match="no index of a generator: "):
    generators.load(tmp_path)


def test_a_repository_of_the_hub_may_be_pinned_to_a_revision(tiny_cascade, tiny_folder, monkeypatch):
  asked = []
  monkeypatch.setattr(pretrained, "locate", lambda name, parts=False: asked.append(name) or tiny_folder)
  monkeypatch.setattr(pipelines, "KNOWN", ("DreamjaxCascade",))
  monkeypatch.setattr(pipelines, "load", lambda folders, *_: tiny_cascade)
  generators.load("someone/model@v1.0+someone/model-II@refs/pr/3")
  assert asked == ["someone/model@v1.0", "someone/model-II@refs/pr/3"]
  for name in ("someone/model@", "someone@v1/model"):
    with pytest.raises(FileNotFoundError, match="nor a generator of that name"):
      generators.load(name)


def test_an_unknown_name_is_refused():
  with pytest.raises(FileNotFoundError, match="there are: toybox-cascade"):
    generators.load("no-such-generator")


def test_a_folder_of_an_earlier_version_loads(tiny_cascade, tmp_path):
  generator, params = tiny_cascade
  sampling = Sampling(steps=2, threshold_percentile=0.9, threshold_max=1.5, augmentation_level=0.1)
  stages = tuple(dataclasses.replace(stage, sampling=sampling) for stage in generator.stages)
  generators.save(tmp_path, dataclasses.replace(generator, stages=stages), params)
  path = tmp_path / "model_index.json"
  index = json.loads(path.read_text())
  old = {"threshold_percentile": "ratio", "threshold_max": "maximum", "augmentation_level": "level"}
  for entry in index["stages"]:
    fields = {old.get(name, name): value for name, value in entry["sampling"].items() if name != "lambda_a"}
    assert {"ratio", "maximum", "level"} < set(fields)
    entry["sampling"] = fields
  path.write_text(json.dumps(index))
  assert generators.load(tmp_path)[0].stages == stages
