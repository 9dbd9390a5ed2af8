"""Protocols: what the papers publish, the toybox's counterparts, and files that are none."""

import collections
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from dreamjax import toybox
from dreamjax.eval import metrics, protocols
from dreamjax.toybox import captions, identity, source, vocabulary

TOYBOX = sorted((pathlib.Path(toybox.__file__).parent / "protocols").glob("*.json"))
ALL = [*(protocols.published(name) for name in protocols.PUBLISHED), *map(protocols.load, TOYBOX)]


class TestDreamBooth:
  protocol = protocols.published("dreambooth")
  rows = list(protocols.rows(protocol, "[V]"))

  def test_it_has_30_subjects_25_prompts_and_3000_images(self):
    assert len(self.protocol.subjects) == 30 and self.protocol.images_per_prompt == 4 and len(self.rows) == 3000
    assert {kind: len(prompts) for kind, prompts in self.protocol.prompts.items()} == {"object": 25, "live": 25}
    assert len({prompt.text for prompts in self.protocol.prompts.values() for prompt in prompts}) == 35
    assert len({subject.cls for subject in self.protocol.subjects}) == 15

  def test_nine_subjects_are_alive(self):
    live = [subject.name for subject in self.protocol.subjects if subject.kind == "live"]
    assert live == ["cat", "cat2", "dog", "dog2", "dog3", "dog5", "dog6", "dog7", "dog8"]

  def test_prompts_are_exact(self):
    texts = {kind: [prompt.text for prompt in prompts] for kind, prompts in self.protocol.prompts.items()}
    first, last = "a {identifier} {class} in the jungle", "a cube shaped {identifier} {class}"
    assert all((prompts[0], prompts[-1]) == (first, last) for prompts in texts.values())
    assert texts["live"][:10] == texts["object"][:10] and texts["live"][20:] == texts["object"][20:]
    assert texts["object"][17] == "a {identifier} {class} on top of the sidewalk in a crowded street"
    assert texts["live"][13] == "a {identifier} {class} wearing a black top hat and a monocle"

  def test_rows_go_subject_by_subject_and_prompt_by_prompt(self):
    first, fifth, last = self.rows[0], self.rows[4], self.rows[-1]
    assert (first.subject.name, first.prompt) == ("backpack", "a [V] backpack in the jungle")
    assert (fifth.subject.name, fifth.prompt) == ("backpack", "a [V] backpack in the snow")
    assert (last.subject.name, last.prompt) == ("wolf_plushie", "a cube shaped [V] stuffed animal")
    assert [row.key for row in self.rows[:2]] == ["00-a-v-backpack-in-the-jungle-0", "00-a-v-backpack-in-the-jungle-1"]


def test_styledrop_has_the_30_prompts_of_round_2():
  protocol = protocols.published("styledrop")
  texts = [prompt.text for prompt in protocol.prompts["style"]]
  assert len(set(texts)) == 30 and protocol.images_per_prompt == 64 and len(protocol.subjects) == 18
  assert texts[0] == "A chihuahua {identifier}" and texts[-1] == "A cabin on the beach {identifier}"
  assert "A portrait of human face {identifier}" in texts and "An apple on the dish {identifier}" in texts
  rows = list(protocols.rows(protocol, "unused"))
  assert rows[0].prompt == "A chihuahua in watercolor painting style"
  assert rows[-1].prompt == "A cabin on the beach in wooden sculpture"


def test_hyperdreambooth_and_dreamtuner():
  faces, single = protocols.published("hyperdreambooth"), protocols.published("dreamtuner")
  assert len(faces.subjects) == 100 and faces.references == single.references == 1
  assert next(protocols.rows(faces, "[V]")).prompt == "An Instagram selfie of a [V] face"
  assert single.subjects == protocols.published("dreambooth").subjects
  assert "A dog [S*] in the jungle" in [row.prompt for row in protocols.rows(single, "[S*]")]


@pytest.mark.parametrize("protocol", ALL, ids=lambda protocol: protocol.name)
class TestEvery:
  def test_keys_are_safe_different_and_in_the_order_of_rows(self, protocol):
    keys = collections.defaultdict(list)
    for row in protocols.rows(protocol, "[V]/../*"):
      keys[row.subject.name].append(row.key)
    assert list(keys) == [subject.name for subject in protocol.subjects]
    for name, of_subject in keys.items():
      assert re.fullmatch("[A-Za-z0-9_-]+", name) and all(re.fullmatch("[a-z0-9-]{1,90}", key) for key in of_subject)
      assert of_subject == sorted(set(of_subject))

  def test_placeholders_are_filled_and_metrics_are_known(self, protocol):
    for row in protocols.rows(protocol, "[V]"):
      assert "{" not in row.prompt and (row.subject.identifier or "[V]") in row.prompt
    assert all(metrics.metric(name) for name in protocol.metrics) and protocol.source


@pytest.mark.parametrize("protocol", ALL[len(protocols.PUBLISHED) :], ids=lambda protocol: protocol.name)
class TestToybox:
  def test_labels_are_what_captions_read_in_the_prompts(self, protocol):
    for row in {row.prompt: row for row in protocols.rows(protocol, "[V]")}.values():
      said = captions.parse(row.prompt)
      states = vocabulary.STATES[vocabulary.CLASSES[said.cls]]
      expected = {
        "class": vocabulary.CLASSES[said.cls],
        "context": None if said.context is None else vocabulary.CONTEXTS[said.context],
        "accessory": vocabulary.ACCESSORIES[said.accessory],
        "state": None if said.state is None else states[said.state],
        "style": vocabulary.STYLES[said.style],
      }
      assert {head: word for head, word in row.labels.items() if head != "colour"} == {
        head: word for head, word in expected.items() if word is not None
      }
      if said.colour is not None:
        assert row.labels["colour"] == vocabulary.COLOURS[said.colour]

  def test_prompts_say_nothing_that_cannot_be_drawn(self, protocol):
    # Captions pass over what they do not read, so a prompt that says more than its toy says something that they do.
    for row in {row.prompt: row for row in protocols.rows(protocol, "[V]")}.values():
      said = captions.parse(row.prompt)
      more = (said.context, said.colour, said.state, said.accessory or None, said.prop or None, said.style or None)
      assert row.prompt == f"a [V] {row.subject.cls}" or any(word is not None for word in more), row.prompt

  def test_subjects_are_held_out(self, protocol):
    numbers = [subject.number for subject in protocol.subjects]
    assert all(source.TRAIN_SUBJECTS <= n < source.TRAIN_SUBJECTS + source.HELD_OUT_SUBJECTS for n in numbers)
    assert all(subject.cls in vocabulary.CLASSES for subject in protocol.subjects)


def test_toys_are_labelled_with_their_own_colours():
  toys = [subject for protocol in ALL for subject in protocol.subjects if "colour" in subject.labels]
  assert len(toys) == 30 + 100 + 30
  classes = jnp.asarray([vocabulary.CLASSES.index(subject.cls) for subject in toys])
  drawn = jax.jit(jax.vmap(identity.identity))(classes, jnp.asarray([subject.number for subject in toys])).colour
  assert [vocabulary.COLOURS[i] for i in drawn] == [subject.labels["colour"] for subject in toys]


def test_the_toybox_has_a_counterpart_of_every_protocol():
  assert {path.stem for path in TOYBOX} == set(protocols.PUBLISHED)
  toys = {protocol.name: protocol for protocol in ALL}
  assert len(list(protocols.rows(toys["toybox-dreambooth"], "[V]"))) == 3000
  assert {s.labels["style"] for s in toys["toybox-styledrop"].subjects} == set(vocabulary.HELD_OUT_STYLES)
  assert len(toys["toybox-styledrop"].prompts["style"]) == len(toys["toybox-hyperdreambooth"].prompts["face"]) == 30


GOOD = {
  "name": "small",
  "source": "a test",
  "references": None,
  "images_per_prompt": 2,
  "metrics": ["dino", "accuracy_colour"],
  "subjects": [{"name": "rex", "class": "dog", "kind": "live", "labels": {"colour": "brown"}}],
  "prompts": {"live": [{"text": "a {identifier} {class}"}, {"text": "{class}!", "labels": {"colour": None}}]},
}


def written(tmp_path, entry):
  path = tmp_path / "small.json"
  path.write_text(entry if isinstance(entry, str) else json.dumps(entry))
  return path


def test_a_null_label_voids_the_subjects(tmp_path):
  rows = list(protocols.rows(protocols.load(written(tmp_path, GOOD)), "sks"))
  assert [row.labels for row in rows] == [{"colour": "brown"}] * 2 + [{}] * 2
  assert [row.prompt for row in rows] == ["a sks dog"] * 2 + ["dog!"] * 2


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"name": None}, "the protocol: name is None, but must be text"),
    ({"extra": 1}, "the protocol has the unknown keys extra"),
    ({"images_per_prompt": 0}, "images_per_prompt is 0, but must be at least 1"),
    ({"images_per_prompt": True}, "images_per_prompt is True, but must be a whole number"),
    ({"references": "1"}, "references is '1', but must be a whole number or null"),
    ({"metrics": ["fid"]}, "unknown metric 'fid'"),
    ({"subjects": GOOD["subjects"] * 2}, "more than one subject is named rex"),
    ({"subjects": [{"name": "rex", "kind": "live"}]}, r"subjects\[0\] lacks class"),
    ({"subjects": [{"name": "a/b", "class": "dog", "kind": "live"}]}, r"subjects\[0\]: a name is of letters"),
    ({"subjects": [{**GOOD["subjects"][0], "kind": "toy"}]}, "of kind live, toy"),
    ({"subjects": [{**GOOD["subjects"][0], "labels": {"colour": 3}}]}, r"subjects\[0\]: the label colour is 3"),
    ({"prompts": {"live": []}}, "subjects without prompts, or prompts without subjects, of kind live"),
    ({"prompts": {"live": ["a dog"]}}, r"prompts of kind 'live'\[0\] is 'a dog', but must be an object"),
    ({"prompts": {"live": [{"text": "a {token} dog"}]}}, r"is \{identifier\} or \{class\}, not \{token\}"),
    ({"prompts": {"live": [{"text": "a {class!r}"}]}}, r"is \{identifier\} or \{class\}, not \{class\}"),
  ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path, change, message):
  path = written(tmp_path, GOOD | change)
  with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*{message}"):
    protocols.load(path)


def test_files_that_are_no_json_and_names_that_are_no_protocol(tmp_path):
  with pytest.raises(ValueError, match="small.json: Expecting value: line 2"):
    protocols.load(written(tmp_path, '{"name":\n}'))
  with pytest.raises(ValueError, match="the protocol is "):
    protocols.load(written(tmp_path, "[]"))
  with pytest.raises(ValueError, match="no protocol 'dreamboth' is published; there are: dreambooth, "):
    protocols.published("dreamboth")
