"""Reads back from disk what the stream draws, with TensorFlow out of reach."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from dreamjax.toybox import classes, source, tfds_toybox, vocabulary
from dreamjax.toybox.intersect import FAR
from dreamjax.toybox.scene import Frame
from dreamjax.toybox.tfds_toybox import Toybox, ToyboxConfig

# Of every kind of label there is some that training may not see; of all there is enough to be seen in few pictures.
VARIETY = source.Variety(
  classes=("dog", "cat"),
  contexts=("beach", "cobblestone street", "blue house", "studio"),
  styles=("watercolor painting", "glowing neon"),
  style_share=0.5,
  other_share=0.5,
)
SIZE = 32
# Two files and a half of training pictures. No other test draws at 7 px and meets what `draw_noise` leaves in caches.
NOISE = ToyboxConfig(
  "noise", seed=5, variety=VARIETY, resolution=7, counts={"train": 80, "subjects": 32, "combinations": 32, "styles": 32}
)


@pytest.fixture(scope="module", autouse=True)
def no_tensorflow(tmp_path_factory):
  package = tmp_path_factory.mktemp("path") / "tensorflow"
  package.mkdir()
  (package / "__init__.py").write_text("raise ImportError('the test keeps TensorFlow out')")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(package.parent)
    yield
  assert "tensorflow" not in sys.modules


def draw_noise(labels, key, dial, resolution):
  """Stands in for the renderer, which takes long to compile."""
  shape, points = (resolution, resolution), classes.tables().keypoint_part.shape[-1]

  def one(key):
    rgb, depth, sky, mask, keypoints, visible = jax.random.split(key, 6)
    return Frame(
      rgb=jax.random.uniform(rgb, (*shape, 3)),
      depth=jnp.where(jax.random.bernoulli(sky, 0.3, shape), FAR, jax.random.uniform(depth, shape, maxval=2000.0)),
      mask=jnp.round(4 * jax.random.uniform(mask, shape)) / 4,
      normal=jnp.zeros((*shape, 3)),
      keypoints=jax.random.uniform(keypoints, (points, 2)),
      visible=jax.random.bernoulli(visible, 0.5, (points,)),
    )

  return jax.vmap(one)(key)


def build(config, data_dir):
  toys = Toybox(config=config, data_dir=data_dir)
  toys.download_and_prepare()
  return toys


def build_noise(data_dir):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(source, "draw", draw_noise)
    patch.setattr(tfds_toybox, "_BATCHES_PER_FILE", 1)
    toys = build(NOISE, data_dir)
    drawn = {split: draw(NOISE, split) for split in NOISE.counts}
  return toys, drawn


def draw(config, split):
  """The stream's batches, as large as those that are built, so that nothing is compiled twice."""
  stream = source.Stream(config.seed, split, config.variety, config.resolution)
  return [jax.device_get(stream.batch(step, SIZE)) for step in range(-(-config.counts[split] // SIZE))]


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
  return build_noise(tmp_path_factory.mktemp("noise"))


def assert_same(read, batches, index):
  """Compares an example that was read with the one of this index among those drawn."""
  drawn, index = batches[index // SIZE], index % SIZE
  assert read.keys() == drawn.keys()
  assert read["caption"].decode() == drawn["caption"][index]
  assert read["labels"] == {name: values[index] for name, values in drawn["labels"].items()}
  for name in ("image", "mask"):
    assert read[name].dtype == np.uint8
    assert read[name].shape == drawn[name][index].shape
    np.testing.assert_allclose(np.float32(read[name]) / 255, drawn[name][index], rtol=0, atol=0.501 / 255)
  np.testing.assert_allclose(np.float32(read["depth"]), drawn["depth"][index], rtol=2**-11, atol=1e-6)
  np.testing.assert_array_equal(read["depth"] == FAR, drawn["depth"][index] == FAR)
  np.testing.assert_array_equal(read["keypoints"], drawn["keypoints"][index])


@pytest.mark.parametrize("split", source.SPLITS)
def test_every_split_holds_the_streams_examples_in_order(noise, split):
  toys, drawn = noise
  read = toys.as_data_source(split)
  assert len(read) == NOISE.counts[split]
  for index, one in enumerate(read):
    assert_same(one, drawn[split], index)


def test_rendered_pictures_survive(tmp_path):
  config = ToyboxConfig("rendered", variety=VARIETY, resolution=32, counts={"train": 32})
  read, drawn = build(config, tmp_path).as_data_source("train"), draw(config, "train")
  assert np.ptp(drawn[0]["image"]) > 0.5
  assert {0, 1} <= set(np.unique(drawn[0]["mask"]))
  for index, one in enumerate(read):
    assert_same(one, drawn, index)


def test_examples_are_found_by_number_name_and_slice(noise):
  toys, drawn = noise
  read = tfds.data_source("toybox/noise", split="train", data_dir=toys.data_dir_root)
  for index in (70, 0, 33):
    assert_same(read[index], drawn["train"], index)
  for index, one in zip((40, 79, 3), read.__getitems__([40, 79, 3]), strict=True):
    assert_same(one, drawn["train"], index)
  part = tfds.data_source("toybox/noise", split="train[30:36]", data_dir=toys.data_dir_root)
  assert len(part) == 6
  assert_same(part[4], drawn["train"], 34)


def test_the_files_describe_themselves(noise):
  toys, drawn = noise
  alone = tfds.builder_from_directory(toys.data_dir)
  assert not isinstance(alone, Toybox)
  assert_same(alone.as_data_source("styles")[3], drawn["styles"], 3)
  labels = alone.info.features["labels"]
  assert labels["cls"].names == list(vocabulary.CLASSES)
  assert labels["style"].int2str(drawn["styles"][0]["labels"]["style"][3]) == "glowing neon"
  assert alone.info.metadata["recipe"]["variety"]["classes"] == ["dog", "cat"]


def test_only_the_other_splits_show_what_is_held_out(noise):
  toys, _ = noise
  is_held_out = {
    "subjects": lambda one: one["subject"] >= source.TRAIN_SUBJECTS,
    "combinations": lambda one: (
      (vocabulary.CLASSES[one["cls"]], vocabulary.CONTEXTS[one["context"]]) in source.HELD_OUT_COMBINATIONS
    ),
    "styles": lambda one: vocabulary.STYLES[one["style"]] in vocabulary.HELD_OUT_STYLES,
  }
  labels = {split: [one["labels"] for one in toys.as_data_source(split)] for split in source.SPLITS}
  for split, test in is_held_out.items():
    assert all(map(test, labels[split]))
    assert not any(map(test, labels["train"]))
  assert {one["other_cls"] for one in labels["train"]} == {-1, 0, 1}


def test_built_again_it_is_the_same_to_the_byte(noise, tmp_path):
  files = [
    {path.name: path.read_bytes() for path in toys.data_path.iterdir()} for toys in (noise[0], build_noise(tmp_path)[0])
  ]
  assert files[0] == files[1]
  assert sum("toybox-train.array_record" in name for name in files[0]) == 3


def test_another_config_of_the_same_name_is_not_mistaken_for_it(noise):
  data_dir = noise[0].data_dir_root
  Toybox(config=dataclasses.replace(NOISE), data_dir=data_dir)
  for change in ({"seed": 6}, {"variety": source.Variety()}, {"resolution": 8}, {"counts": {"train": 80}}):
    with pytest.raises(ValueError, match="drawn by another config"):
      Toybox(config=dataclasses.replace(NOISE, **change), data_dir=data_dir)


def test_configs_are_found_by_name(tmp_path):
  for name, config in (("toybox", "full"), ("toybox/tiny", "tiny")):
    toys = tfds.builder(name, data_dir=tmp_path)
    assert isinstance(toys, Toybox)
    assert toys.builder_config_name == config
    assert set(toys.builder_config.counts) == set(source.SPLITS)
  assert toys.info.features["image"].shape == (32, 32, 3)


def test_configs_that_draw_nothing_are_refused():
  with pytest.raises(ValueError, match="did you mean 'styles'"):
    ToyboxConfig("wrong", counts={"style": 3})
  with pytest.raises(ValueError, match="at least one picture"):
    ToyboxConfig("wrong", counts={"train": 0})
  with pytest.raises(ValueError, match="nothing to draw"):
    ToyboxConfig("wrong", counts={})
  with pytest.raises(ValueError, match="nothing to draw"):
    ToyboxConfig("wrong", resolution=0)
