"""Evaluation protocols as data: subjects, prompts, the number of images of each, and metrics.

A protocol is a JSON file:

    {
      "name": "dreambooth",
      "source": "the paper, and which parts are not published",
      "references": 4,                          number of photos of a subject for the method; null for all
      "images_per_prompt": 4,
      "metrics": ["dino", "clip_t"],            names of `dreamjax.eval.metrics`
      "subjects": [{"name": "dog6", "class": "dog", "kind": "live"}],
      "prompts": {"live": [{"text": "a {identifier} {class} in the jungle"}]}
    }

Each kind of subject has its own list of prompts. `{class}` stands for the subject's class noun and `{identifier}` for
the word that the method has learned for it, unless the subject has words of its own: in StyleDrop a subject is a style,
and its `"identifier"` the descriptor that names it. Subjects and prompts may have `"labels"` for accuracies: what the
image should show, by the name of a probe's head. A prompt's labels override its subject's, and a null removes one.
`"number"` is a subject's number in a numbered data set.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import pathlib
import re
import string
from typing import Any, NamedTuple

from dreamjax.errors import UserError
from dreamjax.eval import metrics

_FOLDER = pathlib.Path(__file__).parent / "published"

#: The protocols of the papers, for `published`.
PUBLISHED = ("dreambooth", "styledrop", "hyperdreambooth", "dreamtuner")

_PLACEHOLDERS = {"identifier", "class"}
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclasses.dataclass(frozen=True)
class Subject:
  """A subject to personalise: a thing, a face, a style.

  Attributes:
    name: safe as a file's name.
    cls: its class noun.
    kind: key of its list of prompts.
    identifier: replaces `{identifier}` in its prompts, unless the method chooses one.
    number: its number in the data set, if that has numbers.
    labels: what its images should show, unless the prompt overrides it.
  """

  name: str
  cls: str
  kind: str
  identifier: str | None = None
  number: int | None = None
  labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A template with placeholders, and labels for its images, which override the subject's; None removes one."""

  text: str
  labels: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A protocol, as in its file.

  Attributes:
    name: its name.
    source: the paper, and which parts are not published.
    references: number of photos of a subject for the method; None for all.
    images_per_prompt: images of each subject and prompt.
    metrics: names of `dreamjax.eval.metrics`.
    subjects: the subjects, in order.
    prompts: each kind's prompts, in order.
  """

  name: str
  source: str
  references: int | None
  images_per_prompt: int
  metrics: tuple[str, ...]
  subjects: tuple[Subject, ...]
  prompts: Mapping[str, tuple[Prompt, ...]]


class Row(NamedTuple):
  """One image to generate.

  Attributes:
    subject: of the image.
    prompt: the text, with all placeholders filled.
    key: safe as a file name, and in the order of the protocol: the file is `<subject's name>/<key>.png`.
    labels: what the image should show, by the name of a probe's head.
  """

  subject: Subject
  prompt: str
  key: str
  labels: dict[str, str]


def published(name: str) -> Protocol:
  """Loads the protocol of a paper, one of `PUBLISHED`."""
  if name not in PUBLISHED:
    raise UserError(f"no protocol {name!r} is published; there are: {', '.join(PUBLISHED)}")
  return load(_FOLDER / f"{name}.json")


def load(path: pathlib.Path) -> Protocol:
  """Reads and checks a protocol's file.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is not as described in this module's docstring; the message names the field.
  """
  try:
    entry = json.loads(path.read_text())
    return _protocol(entry)
  except ValueError as error:
    raise UserError(f"{path}: {error}") from error


def rows(protocol: Protocol, identifier: str) -> Iterator[Row]:
  """Yields all images of a protocol: subject by subject, prompt by prompt.

  Args:
    protocol: the protocol.
    identifier: replaces `{identifier}`, such as "sks" or "[V]", unless the subject has one of its own.
  """
  for subject in protocol.subjects:
    prompts = protocol.prompts[subject.kind]
    digits, more = len(str(len(prompts) - 1)), len(str(protocol.images_per_prompt - 1))
    for p, prompt in enumerate(prompts):
      words = {"identifier": subject.identifier or identifier, "class": subject.cls}
      text = prompt.text.format_map(words)
      labels = {head: word for head, word in {**subject.labels, **prompt.labels}.items() if word is not None}
      slug = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:80]
      for i in range(protocol.images_per_prompt):
        yield Row(subject, text, f"{p:0{digits}}-{slug}-{i:0{more}}", labels)


def _protocol(entry: Any) -> Protocol:
  """Checks and parses the content of a file."""
  fields = _fields(
    entry,
    "the protocol",
    {"name": str, "source": str, "references": int | None, "images_per_prompt": int, "metrics": list, "subjects": list,
     "prompts": dict},
  )  # fmt: skip
  for key in ("references", "images_per_prompt"):
    if fields[key] is not None and fields[key] < 1:
      raise UserError(f"{key} is {fields[key]}, but must be at least 1")
  for name in fields["metrics"]:
    metrics.metric(name)
  subjects = tuple(_subject(subject, f"subjects[{i}]") for i, subject in enumerate(fields["subjects"]))
  names = [subject.name for subject in subjects]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise UserError(f"more than one subject is named {', '.join(twice)}")
  prompts = {}
  for kind, entries in fields["prompts"].items():
    _expect(entries, list, f"prompts of kind {kind!r}")
    prompts[kind] = tuple(_prompt(entry, f"prompts of kind {kind!r}[{i}]") for i, entry in enumerate(entries))
  kinds = {subject.kind for subject in subjects}
  if odd := kinds ^ {kind for kind, texts in prompts.items() if texts}:
    raise UserError(
      f"there are subjects without prompts, or prompts without subjects, of kind {', '.join(sorted(odd))}"
    )
  return Protocol(**{**fields, "metrics": tuple(fields["metrics"]), "subjects": subjects, "prompts": prompts})


def _subject(entry: Any, where: str) -> Subject:
  need = {"name": str, "class": str, "kind": str}
  fields = _fields(entry, where, need, {"identifier": str, "number": int, "labels": dict})
  if not _NAME.fullmatch(fields["name"]):
    raise UserError(f"{where}: a name is of letters, digits, - and _, not {fields['name']!r}")
  for head, word in fields.get("labels", {}).items():
    _expect(word, str, f"{where}: the label {head}")
  return Subject(cls=fields.pop("class"), **fields)


def _prompt(entry: Any, where: str) -> Prompt:
  fields = _fields(entry, where, {"text": str}, {"labels": dict})
  for head, word in fields.get("labels", {}).items():
    _expect(word, str | None, f"{where}: the label {head}")
  parts = list(string.Formatter().parse(fields["text"]))
  if odd := [part for part in parts if part[1] is not None and (part[1] not in _PLACEHOLDERS or part[2] or part[3])]:
    raise UserError(f"{where}: a placeholder is {{identifier}} or {{class}}, not {{{odd[0][1]}}}")
  return Prompt(**fields)


def _fields(entry: Any, where: str, need: dict[str, Any], may: dict[str, Any] | None = None) -> dict[str, Any]:
  """Returns a JSON object after checking its keys, required and optional, and the types of its values."""
  known = need | (may or {})
  _expect(entry, dict, where)
  if missing := [key for key in need if key not in entry]:
    raise UserError(f"{where} lacks {', '.join(missing)}")
  if odd := [key for key in entry if key not in known]:
    raise UserError(f"{where} has the unknown keys {', '.join(odd)}; known are: {', '.join(known)}")
  for key, value in entry.items():
    _expect(value, known[key], f"{where}: {key}")
  return dict(entry)


def _expect(value: Any, kind: Any, where: str) -> None:
  if not isinstance(value, kind) or isinstance(value, bool):
    names = {str: "text", int: "a whole number", list: "a list", dict: "an object"}
    wanted = names.get(kind) or f"{names[kind.__args__[0]]} or null"
    raise UserError(f"{where} is {value!r:.60}, but must be {wanted}")
