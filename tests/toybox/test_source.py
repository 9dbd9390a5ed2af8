"""The stream, and its held-out splits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.toybox import captions, source, vocabulary


def host_labels(split, count=10_000, seed=0, **variety):
  stream = source.Stream(seed=seed, split=split, variety=source.Variety(**variety))
  return jax.device_get(jax.jit(stream.labels)(jnp.arange(count)))


@pytest.fixture(scope="module")
def train():
  return host_labels("train")


def test_training_examples_hold_nothing_that_is_held_out(train):
  held_out_styles = {vocabulary.STYLES.index(name) for name in vocabulary.HELD_OUT_STYLES}
  assert not held_out_styles & set(train.style.tolist())
  assert train.subject.max() < source.TRAIN_SUBJECTS and train.other_subject.max() < source.TRAIN_SUBJECTS
  for cls in (train.cls, train.other_cls):
    shown = zip(cls, train.context, strict=True)
    pairs = {(vocabulary.CLASSES[c], vocabulary.CONTEXTS[k]) for c, k in shown if c >= 0}
    assert not pairs & source.HELD_OUT_COMBINATIONS


def test_training_captions_mention_nothing_that_is_held_out(train):
  held_out_styles = {vocabulary.STYLES.index(name) for name in vocabulary.HELD_OUT_STYLES}
  for i in range(10_000):
    labels = jax.tree.map(lambda x, i=i: int(x[i]), train)
    said = captions.parse(captions.caption(labels))
    assert captions.matches(said, labels)
    assert said.style not in held_out_styles
    context = said.context if said.context is not None else vocabulary.CONTEXTS.index("studio")
    for cls in (said.cls, said.other_cls):
      if cls >= 0:
        assert (vocabulary.CLASSES[cls], vocabulary.CONTEXTS[context]) not in source.HELD_OUT_COMBINATIONS


def test_training_examples_hold_all_the_rest(train):
  for values, words in (
    (train.cls, vocabulary.CLASSES), (train.colour, vocabulary.COLOURS), (train.marking, vocabulary.MARKINGS),
    (train.context, vocabulary.CONTEXTS), (train.accessory, vocabulary.ACCESSORIES),
    (train.prop, vocabulary.PROPERTIES), (train.other_cls[train.other_cls >= 0], vocabulary.CLASSES),
  ):  # fmt: skip
    assert set(values.tolist()) == set(range(len(words)))
  assert len(set(train.style.tolist())) == len(vocabulary.STYLES) - len(vocabulary.HELD_OUT_STYLES)
  states = {(c, s) for c, s in zip(train.cls.tolist(), train.state.tolist(), strict=True)}
  assert len(states) == sum(map(len, vocabulary.STATES.values()))


def test_each_split_holds_what_its_name_says():
  subjects, combinations, styles = (host_labels(split, 500) for split in ("subjects", "combinations", "styles"))
  assert subjects.subject.min() >= source.TRAIN_SUBJECTS
  pairs = {
    (vocabulary.CLASSES[c], vocabulary.CONTEXTS[k])
    for c, k in zip(*(combinations.cls, combinations.context), strict=True)
  }
  assert pairs <= source.HELD_OUT_COMBINATIONS and len(pairs) == len(source.HELD_OUT_COMBINATIONS)
  assert {vocabulary.STYLES[s] for s in styles.style.tolist()} == set(vocabulary.HELD_OUT_STYLES)


def test_stickers_have_no_context(train):
  stickers = train.style == vocabulary.STYLES.index("sticker")
  assert stickers.any() and (train.context[stickers] == vocabulary.CONTEXTS.index("studio")).all()


def test_every_class_and_context_is_held_out_somewhere_and_trained_mostly():
  assert {c for c, _ in source.HELD_OUT_COMBINATIONS} == set(vocabulary.CLASSES)
  assert len(source.HELD_OUT_COMBINATIONS) == 2 * len(vocabulary.CLASSES)


def test_shares_are_kept(train):
  n = len(train.cls)
  for share, observed in (
    (0.3, np.mean(train.style > 0)), (0.25, np.mean(train.accessory > 0)), (0.12, np.mean(train.other_cls >= 0)),
    (0.12, np.mean(train.prop > 0)),
  ):  # fmt: skip
    assert abs(observed - share) < 5 * np.sqrt(share * (1 - share) / n)


def test_a_variety_limits_the_labels():
  labels = host_labels(
    "train", 300, classes=("dog", "cat"), contexts=("snow",), styles=("mosaic",), subjects=3, other_share=0.5
  )
  assert set(labels.cls.tolist()) == {0, 1} and len(set(labels.context.tolist())) == 1
  assert labels.subject.max() < 3 and set(labels.style.tolist()) <= {0, vocabulary.STYLES.index("mosaic")}
  assert set(labels.other_cls.tolist()) <= {-1, 0, 1}


def test_the_stream_is_the_same_for_any_split_into_batches(stream):
  whole = stream.batch(0, 4)
  for i in range(2):
    half = stream.batch(i, 2)
    part = slice(2 * i, 2 * i + 2)
    np.testing.assert_allclose(np.asarray(half["image"]), np.asarray(whole["image"])[part], atol=1 / 255)
    np.testing.assert_allclose(np.asarray(half["depth"]), np.asarray(whole["depth"])[part], rtol=1e-4)
    assert half["caption"] == whole["caption"][part]
    for name, values in half["labels"].items():
      np.testing.assert_array_equal(np.asarray(values), np.asarray(whole["labels"][name])[part])


def test_streams_differ_by_seed_and_split():
  runs = [host_labels("train", 50, seed=0), host_labels("train", 50, seed=1), host_labels("subjects", 50, seed=0)]
  for i in range(3):
    for j in range(i):
      assert (runs[i].paraphrase != runs[j].paraphrase).mean() > 0.9


def test_a_resumed_stream_continues(stream):
  labels = jax.jit(stream.labels)
  first, resumed = (jax.device_get(labels(jnp.arange(start, start + 40))) for start in (0, 20))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[20:], b[:20]), first, resumed)


@pytest.mark.parametrize(
  ("variety", "message"),
  [
    ({"classes": ("dragon",)}, "dragon"), ({"styles": ("mosiac",)}, "mosaic"), ({"classes": ()}, "at least one"),
    ({"style_share": 1.5}, "style_share"),
  ],
)  # fmt: skip
def test_bad_varieties_are_refused(variety, message):
  with pytest.raises(ValueError, match=message):
    source.Variety(**variety)


def test_a_split_that_would_be_empty_is_refused():
  cls, context = sorted(source.HELD_OUT_COMBINATIONS)[0]
  with pytest.raises(ValueError, match="no combination"):
    host_labels("train", 1, classes=(cls,), contexts=(context,))
  with pytest.raises(ValueError, match="none of the styles"):
    host_labels("styles", 1, styles=("mosaic",))
  with pytest.raises(ValueError, match="unknown split"):
    host_labels("test", 1)
