"""Tests of the captions: `parse` returns the labels that `caption` describes."""

import dataclasses
import random
import re

import numpy as np
import pytest

from dreamjax.toybox import captions, vocabulary
from dreamjax.toybox.labels import Labels

ALWAYS_SAID = ("cls", "prop", "accessory", "style", "other_cls")


def tables(cls: str) -> dict[str, tuple[str, ...]]:
  """The names that each label's indices stand for."""
  toy = {"cls": vocabulary.CLASSES, "colour": vocabulary.COLOURS, "marking": vocabulary.MARKINGS}
  return {
    **toy,
    "prop": vocabulary.PROPERTIES,
    "state": vocabulary.STATES[cls],
    "context": vocabulary.CONTEXTS,
    "accessory": vocabulary.ACCESSORIES,
    "style": vocabulary.STYLES,
    **{f"other_{name}": table for name, table in toy.items()},
  }


def make(cls: str = "dog", paraphrase: int = 0, **named: str) -> Labels:
  """Labels by name; those not named are the first of their table, and there is no second toy."""
  indices = {name: table.index(named[name]) if name in named else 0 for name, table in tables(cls).items()}
  indices |= {"cls": vocabulary.CLASSES.index(cls)} | ({} if "other_cls" in named else {"other_cls": -1})
  return Labels(subject=0, other_subject=0, paraphrase=paraphrase, **indices)


def random_labels(draw: random.Random) -> Labels:
  cls, other_cls = draw.choices(vocabulary.CLASSES, k=2)
  named = {name: draw.choice(table) for name, table in tables(cls).items()} | {"cls": cls, "other_cls": other_cls}
  for name, toy in (("marking", cls), ("other_marking", other_cls)):
    named[name] = draw.choice(("plain", "freckled") if toy == "face" else vocabulary.MARKINGS[:-1])
  if draw.random() < 0.3:
    del named["other_cls"]
  return make(paraphrase=draw.randrange(2**31), **named)


@pytest.fixture(scope="module")
def samples() -> list[Labels]:
  draw = random.Random(0)
  return [random_labels(draw) for _ in range(3000)]


def names(text: str) -> dict[str, str]:
  """The labels that a caption mentions, by name."""
  parsed = captions.parse(text)
  said = {}
  for name, table in tables(vocabulary.CLASSES[parsed.cls]).items():
    index = getattr(parsed, name)
    if index not in (None, -1) and table[index] not in ("none", "photo"):
      said[name] = table[index]
  return said


def test_round_trip(samples):
  for labels in samples:
    text = captions.caption(labels)
    parsed = captions.parse(text)
    assert captions.matches(parsed, labels), (text, parsed, labels)
    assert all(getattr(parsed, name) is not None for name in ALWAYS_SAID), text
    assert parsed.context is not None or vocabulary.CONTEXTS[labels.context] == "studio", text


def test_every_label_is_mentioned_sometimes_and_colour_marking_and_state_are_omitted_sometimes(samples):
  parsed = [captions.parse(captions.caption(labels)) for labels in samples]
  for name, table in (("colour", "COLOURS"), ("marking", "MARKINGS"), ("context", "CONTEXTS"), ("style", "STYLES")):
    said = {getattr(p, name) for p in parsed} - {None}
    assert said == set(range(len(getattr(vocabulary, table)))), name
  for name in ("colour", "marking", "state", "other_colour", "other_marking"):
    unsaid = np.mean([getattr(p, name) is None for p in parsed if p.other_cls >= 0])
    assert 0.1 < unsaid < 0.7, name


def test_articles_and_spaces(samples):
  for labels in samples:
    text = captions.caption(labels)
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |^ | $", text), text


def test_the_state_of_a_floating_subject_is_not_mentioned_before_the_context():
  texts = {captions.caption(make(state="running", context="water", paraphrase=seed)) for seed in range(200)}
  assert any("running" in text for text in texts)
  assert not any("running floating" in text for text in texts)


@pytest.mark.parametrize(
  "labels",
  [make(), make(cls="mushroom", context="studio", style="sticker"), make(cls="face", state="sad", style="mosaic")],
)
def test_paraphrases(labels):
  texts = {captions.caption(labels.replace(paraphrase=seed)) for seed in range(200)}
  assert len(texts) >= 8
  assert captions.caption(labels) == captions.caption(labels)


def test_labels_may_be_arrays():
  labels = make(other_cls="car", style="mosaic", paraphrase=7)
  arrays = Labels(**{field.name: np.array(getattr(labels, field.name)) for field in dataclasses.fields(Labels)})
  assert captions.caption(arrays) == captions.caption(labels)
  assert captions.matches(captions.parse(captions.caption(arrays)), arrays)


def test_colour_and_style_can_be_omitted(samples):
  for labels in samples:
    assert captions.parse(captions.caption(labels, colour=False)).colour is None
    text = captions.caption(labels, style=False)
    assert not any(style in text for style in vocabulary.STYLES), text
    assert dataclasses.replace(captions.parse(captions.caption(labels)), style=0) == captions.parse(text), text


def test_held_out_styles_are_mentioned_only_if_they_are_the_label(samples):
  for labels in samples:
    text = captions.caption(labels)
    named = {style for style in vocabulary.HELD_OUT_STYLES if style in text}
    assert named == {vocabulary.STYLES[labels.style]} & set(vocabulary.HELD_OUT_STYLES), text


def test_split(samples):
  for labels in samples:
    content, style = captions.split(labels)
    assert content == captions.caption(labels, style=False)
    assert style == (f"in {vocabulary.STYLES[labels.style]} style" if labels.style else "")
    assert captions.matches(captions.parse(f"{content} {style}"), labels), (content, style)


@pytest.mark.parametrize("subject, extra", [("a [V] dog", {}), ("a red sks dog", {"colour": "red"}), ("a dog", {})])
@pytest.mark.parametrize(
  "prompt, context",
  [
    ("in the jungle", "jungle"),
    ("in the snow", "snow"),
    ("on the beach", "beach"),
    ("on a cobblestone street", "cobblestone street"),
    ("on top of pink fabric", "pink fabric"),
    ("on top of a wooden floor", "wooden floor"),
    ("with a city in the background", "city"),
    ("with a mountain in the background", "mountain"),
    ("with a blue house in the background", "blue house"),
    ("on top of a purple rug in a forest", "purple rug in a forest"),
    ("with a wheat field in the background", "wheat field"),
    ("with a tree and autumn leaves in the background", "autumn trees"),
    ("with the Eiffel Tower in the background", "tower"),
    ("floating on top of water", "water"),
    ("floating in an ocean of milk", "milk"),
    ("on top of green grass with sunflowers around it", "sunflowers"),
    ("on top of a mirror", "mirror"),
    ("on top of a dirt road", "dirt road"),
    ("on top of a white rug", "white rug"),
    ("on top of the sidewalk in a crowded street", None),
  ],
)
def test_dreambooth_contexts(subject, extra, prompt, context):
  expected = {"cls": "dog"} | extra | ({"context": context} if context else {})
  assert names(f"{subject} {prompt}") == expected


@pytest.mark.parametrize(
  "prompt, expected",
  [
    ("a [V] dog wearing a red hat", {"accessory": "red hat"}),
    ("a [V] dog wearing a santa hat", {"accessory": "santa hat"}),
    ("a [V] dog wearing a rainbow scarf", {"accessory": "rainbow scarf"}),
    ("a [V] dog wearing a black top hat and a monocle", {"accessory": "top hat"}),
    ("a [V] dog wearing pink glasses", {"accessory": "pink glasses"}),
    ("a [V] dog wearing a yellow shirt", {}),
    ("a [V] dog in a purple wizard outfit", {}),
    ("a red [V] dog", {"colour": "red"}),
    ("a purple [V] dog", {"colour": "purple"}),
    ("a shiny [V] dog", {"prop": "shiny"}),
    ("a wet [V] dog", {}),
    ("a cube shaped [V] dog", {"prop": "cube shaped"}),
  ],
)
def test_dreambooth_accessories_and_properties(prompt, expected):
  assert names(prompt) == {"cls": "dog"} | expected


@pytest.mark.parametrize(
  "text, expected",
  [
    (
      "a dog beside a red car with a blue house in the background",
      {"cls": "dog", "other_cls": "car", "other_colour": "red", "context": "blue house"},
    ),
    ("orange cat in glowing neon style", {"cls": "cat", "colour": "orange", "style": "glowing neon"}),
    ("a dog in the style of a robot comic", {"cls": "dog"}),
    ("a dog in running red ink style", {"cls": "dog"}),
    ("a cat in melting golden 3d rendering style", {"cls": "cat", "style": "melting golden 3d rendering"}),
    ("Viking face with beard in wooden sculpture", {"cls": "face", "style": "wooden sculpture"}),
    ("a vintage sepia photograph of a boat", {"cls": "boat", "style": "vintage sepia photograph"}),
    ("a photograph of a boat", {"cls": "boat"}),
    ("a photo of a gray rabbit", {"cls": "rabbit", "colour": "grey"}),
    ("a GREY  Bunny   On Snow. ", {"cls": "rabbit", "colour": "grey", "context": "snow"}),
    ("a face with red hair and freckles", {"cls": "face", "colour": "red", "marking": "freckled"}),
    (
      "a smiling red haired face wearing pink glasses",
      {"cls": "face", "colour": "red", "state": "smiling", "accessory": "pink glasses"},
    ),
    (
      "a cat with stripes jumping next to a robot with spots at night",
      {
        "cls": "cat",
        "marking": "striped",
        "state": "jumping",
        "other_cls": "robot",
        "other_marking": "spotted",
        "context": "night",
      },
    ),
    ("a dog beside a running robot", {"cls": "dog", "other_cls": "robot"}),
    ("a boat floating on top of water", {"cls": "boat", "context": "water"}),
    ("a dog on a plain background", {"cls": "dog", "context": "studio"}),
    ("a yellow caterpillar bird", {"cls": "bird", "colour": "yellow"}),
    ("a dog and a cat", {"cls": "dog"}),
    ("a dog in red robot costume", {"cls": "dog"}),
    ("a robot dog on car roof", {"cls": "dog"}),
  ],
)
def test_tricky_captions(text, expected):
  assert names(text) == expected


@pytest.mark.parametrize("text", ["", "a red [V]", "a caterpillar", "a house beside a dog", "a red [V] in robot style"])
def test_a_caption_without_a_class_is_an_error(text):
  with pytest.raises(ValueError, match=re.escape(repr(text))) as error:
    captions.parse(text)
  assert "\n" not in str(error.value)


def test_matches_finds_every_disagreement():
  labels = make(
    marking="striped", state="running", context="snow", accessory="cape", prop="shiny", style="mosaic", other_cls="car"
  )
  text = "a mosaic of a shiny running red striped dog wearing a cape beside a red plain car in the snow"
  parsed = captions.parse(text)
  assert captions.matches(parsed, labels)
  for name, index in dataclasses.asdict(parsed).items():
    assert not captions.matches(dataclasses.replace(parsed, **{name: index + 1}), labels), name


def test_the_wording_of_a_context_is_parsed():
  for i, name in enumerate(vocabulary.CONTEXTS):
    assert captions.parse(f"a [V] dog {captions.where(i)}").context == i, name
