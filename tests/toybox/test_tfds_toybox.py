"""What is read from disk is what the stream renders, without TensorFlow."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from dreamjax.toybox import source, tfds_toybox, vocabulary
from dreamjax.toybox.intersect import FAR
from dreamjax.toybox.tfds_toybox import Toybox, ToyboxConfig

# Some labels of each kind are held out from training; all that remain are frequent enough to occur in few images.
VARIETY = source.Variety(
  classes=("dog", "cat"),
  contexts=("beach", "cobblestone street", "blue house", "studio"),
  styles=("watercolor painting", "glowing neon"),
  style_share=0.5,
  other_share=0.5,
)
SIZE = 32
# Two and a half files of training images.
CONFIG = ToyboxConfig(
  "test", seed=5, variety=VARIETY, resolution=32, counts={"train": 80, "subjects": 32, "combinations": 32, "styles": 32}
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


def build(data_dir):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tfds_toybox, "_BATCHES_PER_FILE", 1)
    toys = Toybox(config=CONFIG, data_dir=data_dir)
    toys.download_and_prepare()
  return toys


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
  return build(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def drawn():
  """The stream's batches per split, as large as those of the builder, so that nothing is compiled twice."""
  batches = {}
  for split, count in CONFIG.counts.items():
    stream = source.Stream(CONFIG.seed, split, VARIETY, CONFIG.resolution)
    batches[split] = [jax.device_get(stream.batch(step, SIZE)) for step in range(-(-count // SIZE))]
  return batches


def assert_same(read, batches, index):
  """Compares an example that was read with the one of this index in the stream's batches."""
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
def test_every_split_holds_the_streams_examples_in_order(toys, drawn, split):
  read = toys.as_data_source(split)
  assert len(read) == CONFIG.counts[split]
  for index, one in enumerate(read):
    assert_same(one, drawn[split], index)


def test_the_compared_images_are_not_empty(drawn):
  first = drawn["train"][0]
  assert np.ptp(first["image"]) > 0.5
  assert set(np.unique(first["mask"])) == {0, 0.25, 0.5, 0.75, 1}
  assert 0 < np.mean(first["depth"] == FAR) < 1
  assert {-1, 0, 1} == set(first["labels"]["other_cls"].tolist())


def test_examples_are_found_by_number_name_and_slice(toys, drawn):
  read = tfds.data_source("toybox/test", split="train", data_dir=toys.data_dir_root)
  for index in (70, 0, 33):
    assert_same(read[index], drawn["train"], index)
  for index, one in zip((40, 79, 3), read.__getitems__([40, 79, 3]), strict=True):
    assert_same(one, drawn["train"], index)
  part = tfds.data_source("toybox/test", split="train[30:36]", data_dir=toys.data_dir_root)
  assert len(part) == 6
  assert_same(part[4], drawn["train"], 34)


def test_the_files_describe_themselves(toys, drawn):
  alone = tfds.builder_from_directory(toys.data_dir)
  assert not isinstance(alone, Toybox)
  assert_same(alone.as_data_source("styles")[3], drawn["styles"], 3)
  labels = alone.info.features["labels"]
  assert labels["cls"].names == list(vocabulary.CLASSES)
  assert labels["style"].int2str(drawn["styles"][0]["labels"]["style"][3]) == "glowing neon"
  assert alone.info.metadata["recipe"]["variety"]["classes"] == ["dog", "cat"]


def test_only_the_other_splits_show_what_is_held_out(toys):
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


def test_built_again_it_is_the_same_to_the_byte(toys, tmp_path):
  first, second = ({path.name: path.read_bytes() for path in t.data_path.iterdir()} for t in (toys, build(tmp_path)))
  assert first == second
  assert sum("toybox-train.array_record" in name for name in first) == 3


def test_another_config_of_the_same_name_is_not_mistaken_for_it(toys):
  data_dir = toys.data_dir_root
  Toybox(config=dataclasses.replace(CONFIG), data_dir=data_dir)
  for change in ({"seed": 6}, {"variety": source.Variety()}, {"resolution": 8}, {"counts": {"train": 80}}):
    with pytest.raises(ValueError, match="rendered by another config"):
      Toybox(config=dataclasses.replace(CONFIG, **change), data_dir=data_dir)


def test_configs_are_found_by_name(tmp_path):
  for name, config in (("toybox", "full"), ("toybox/tiny", "tiny")):
    toys = tfds.builder(name, data_dir=tmp_path)
    assert isinstance(toys, Toybox)
    assert toys.builder_config_name == config
    assert set(toys.builder_config.counts) == set(source.SPLITS)
  assert toys.info.features["image"].shape == (32, 32, 3)


def test_configs_without_examples_are_refused():
  with pytest.raises(ValueError, match="did you mean 'styles'"):
    ToyboxConfig("wrong", counts={"style": 3})
  with pytest.raises(ValueError, match="at least one image"):
    ToyboxConfig("wrong", counts={"train": 0})
  with pytest.raises(ValueError, match="nothing to render"):
    ToyboxConfig("wrong", counts={})
  with pytest.raises(ValueError, match="nothing to render"):
    ToyboxConfig("wrong", resolution=0)
