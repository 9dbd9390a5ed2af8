"""Captions of toybox images: a small English grammar that expresses labels, and parses them exactly.

The tables below hold the wordings of every label; `caption` samples from them and `parse` is compiled from them, so
that they always agree. The wordings are those of the DreamBooth prompts (Ruiz et al., 2022) and the style descriptors
of StyleDrop (Sohn et al., 2023), with a few paraphrases of each.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import random
import re

from dreamjax.toybox import vocabulary
from dreamjax.toybox.labels import Labels

# Probability that the usual wording is taken; otherwise any of the wordings is, with equal probability.
_USUAL = 0.6
# Probabilities that optional things are mentioned: a colour, a trait (marking or state), and a trait's default value.
_SAY_COLOUR, _SAY_TRAIT, _SAY_DEFAULT = 0.8, 0.75, 0.15

_FACE = vocabulary.CLASSES.index("face")
_PHOTO = vocabulary.STYLES.index("photo")

# Wordings by name, the usual one first; a name that is not listed is its own only wording.
_NOUN_WORDINGS = {
  "dog": ("dog", "puppy"),
  "cat": ("cat", "kitten"),
  "rabbit": ("rabbit", "bunny"),
  "truck": ("truck", "lorry"),
  "boat": ("boat", "ship"),
  "plane": ("plane", "airplane"),
  "face": ("face", "person's face"),
}
_COLOUR_WORDINGS = {"grey": ("grey", "gray")}
_PROPERTY_WORDINGS = {"none": (), "cube shaped": ("cube shaped", "cube-shaped")}
# What follows "with", where the marking is not expressed as an adjective.
_PATTERN_WORDINGS = {
  "plain": (),
  "striped": ("stripes",),
  "spotted": ("spots",),
  "patched": ("patches",),
  "pale-bellied": ("a pale belly",),
  "starred": ("stars",),
  "freckled": ("freckles",),
}
_CONTEXT_WORDINGS = {
  "jungle": ("in the jungle", "in a jungle"),
  "snow": ("in the snow", "on snow"),
  "beach": ("on the beach", "at the beach"),
  "cobblestone street": ("on a cobblestone street", "on cobblestones"),
  "pink fabric": ("on top of pink fabric", "on pink fabric"),
  "wooden floor": ("on top of a wooden floor", "on a wooden floor"),
  "city": ("with a city in the background", "in front of a city"),
  "mountain": ("with a mountain in the background", "in front of a mountain"),
  "blue house": ("with a blue house in the background", "in front of a blue house"),
  "purple rug in a forest": ("on top of a purple rug in a forest", "on a purple rug in a forest"),
  "wheat field": ("with a wheat field in the background", "in front of a wheat field"),
  "autumn trees": ("with a tree and autumn leaves in the background", "in front of autumn trees"),
  "tower": ("with the Eiffel Tower in the background", "in front of the Eiffel Tower"),
  "water": ("floating on top of water", "floating on water"),
  "milk": ("floating in an ocean of milk", "floating in milk"),
  "sunflowers": ("on top of green grass with sunflowers around it", "on green grass with sunflowers around it"),
  "mirror": ("on top of a mirror", "on a mirror"),
  "dirt road": ("on top of a dirt road", "on a dirt road"),
  "white rug": ("on top of a white rug", "on a white rug"),
  "desert": ("in the desert", "in a desert"),
  "night": ("at night", "under a night sky"),
  "studio": ("in a studio", "on a plain background", ""),
}
_ACCESSORY_WORDINGS = {
  "none": (),
  "red hat": ("wearing a red hat", "in a red hat"),
  "santa hat": ("wearing a santa hat", "in a santa hat"),
  "rainbow scarf": ("wearing a rainbow scarf", "in a rainbow scarf"),
  "pink glasses": ("wearing pink glasses", "in pink glasses"),
  "top hat": ("wearing a top hat", "wearing a black top hat", "in a top hat"),
  "crown": ("wearing a crown", "in a crown"),
  "cape": ("wearing a cape", "in a cape"),
}
# The styles whose name does not simply take an article.
_STYLE_NOUNS = {n: n for n in ("pixel art", "halftone pop art")} | {"glowing neon": "a glowing neon sign"}
_BESIDE = ("beside", "next to")


def _article(phrase: str) -> str:
  return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _alternatives(phrases: Iterable[str]) -> str:
  """A regular expression that matches any of the phrases, the longest possible."""
  return "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))


class _Wordings:
  """The wordings of one label: samples one for an index, and finds them in texts."""

  def __init__(self, names: Iterable[str], wordings: Mapping[str, tuple[str, ...]]):
    self._of_index = [wordings.get(name, (name,)) for name in names]
    self._index = {phrase.lower(): i for i, phrases in enumerate(self._of_index) for phrase in phrases if phrase}
    self.pattern = _alternatives(self._index)
    self._regex = re.compile(rf"(?<!\w)(?:{self.pattern})(?!\w)")

  def sample(self, rng: random.Random, index: int) -> str:
    """Samples a wording of an index."""
    phrases = self._of_index[index] or ("",)
    return phrases[0] if rng.random() < _USUAL else rng.choice(phrases)

  def read(self, text: str) -> int | None:
    """Returns the index of the first wording in the text, None without one."""
    return self.take(text)[0]

  def take(self, text: str) -> tuple[int | None, str]:
    """Returns the index of the first wording in the text (None without one), and the text without it."""
    found = self._regex.search(text)
    return (self._index[found[0]], _without(text, found)) if found else (None, text)


def _without(text: str, found: re.Match[str]) -> str:
  return " ".join((text[: found.start()] + text[found.end() :]).split())


_style_nouns = {name: _STYLE_NOUNS.get(name, _article(name)) for name in vocabulary.STYLES}
_PREFIX_WORDINGS = {name: (f"{noun} of", f"{name} of") for name, noun in _style_nouns.items()}
_PREFIX_WORDINGS["photo"] = ("", "a photo of", "a photograph of")
_SUFFIX_WORDINGS = {name: (f"in {name} style", f"in the style of {noun}") for name, noun in _style_nouns.items()}
_SUFFIX_WORDINGS["photo"] = ()
_SUFFIX_WORDINGS["wooden sculpture"] += ("in wooden sculpture",)

_NOUNS = _Wordings(vocabulary.CLASSES, _NOUN_WORDINGS)
_COLOURS = _Wordings(vocabulary.COLOURS, _COLOUR_WORDINGS)
_MARKINGS = _Wordings(vocabulary.MARKINGS, {})
_PATTERNS = _Wordings(vocabulary.MARKINGS, _PATTERN_WORDINGS)
_PROPERTIES = _Wordings(vocabulary.PROPERTIES, _PROPERTY_WORDINGS)
_STATES = [_Wordings(vocabulary.STATES[name], {}) for name in vocabulary.CLASSES]
_CONTEXTS = _Wordings(vocabulary.CONTEXTS, _CONTEXT_WORDINGS)
_ACCESSORIES = _Wordings(vocabulary.ACCESSORIES, _ACCESSORY_WORDINGS)
_PREFIXES = _Wordings(vocabulary.STYLES, _PREFIX_WORDINGS)
_SUFFIXES = _Wordings(vocabulary.STYLES, _SUFFIX_WORDINGS)

# A toy's noun phrase: adjectives and unknown words (such as an identifier), the noun, and what follows "with".
_STOP_WORDS = "a|an|the|in|on|at|of|to|by|near|under|with|wearing|beside|next"
_TOY_PATTERN = (
  rf"(?<!\S)(?P<before>(?:(?!(?:{_STOP_WORDS})(?!\S))\S+ )*)(?P<noun>{_NOUNS.pattern})(?![\w-])"
  rf"(?P<after>(?: (?:with|and) (?:{_PATTERNS.pattern}|(?:{_COLOURS.pattern}) hair)(?!\w))*)"
)
_TOY = re.compile(_TOY_PATTERN)
_OTHER = re.compile(rf"(?<!\S)(?:{_alternatives(_BESIDE)}) (?:(?:an?|the) )?{_TOY_PATTERN}")
_UNKNOWN_STYLE = re.compile(r"(?<!\S)in (?:the style of .*|(?:(?!in )\S+ )*style)(?!\w)")


@dataclasses.dataclass(frozen=True)
class Parsed:
  """The labels that a caption mentions, as indices into `vocabulary`'s tuples; None where it mentions none.

  Attributes:
    cls: the class of the subject, always mentioned.
    colour: the subject's colour, or None.
    marking: the subject's marking, or None.
    prop: the property word; 0, none, if not mentioned.
    state: index into `STATES[class]`, or None.
    context: where the subject is, or None.
    accessory: what the subject wears; 0, nothing, if not mentioned.
    style: the style of the image; 0, a photo, if none of the vocabulary is mentioned.
    other_cls: class of the second toy, -1 where there is none.
    other_colour: the second toy's colour, or None.
    other_marking: the second toy's marking, or None.
  """

  cls: int
  colour: int | None
  marking: int | None
  prop: int
  state: int | None
  context: int | None
  accessory: int
  style: int
  other_cls: int
  other_colour: int | None
  other_marking: int | None


def caption(labels: Labels, *, colour: bool = True, style: bool = True) -> str:
  """Describes one image by its labels, in the wording that `labels.paraphrase` chooses.

  Colours, markings, states and the studio are sometimes not mentioned; everything else always is.

  Args:
    labels: the labels of one image, ints or arrays without axes.
    colour: whether the subject's colour may be mentioned.
    style: whether the style is mentioned; the rest of the caption's wording does not depend on it.

  Returns:
    The caption, in lower case (but for the Eiffel Tower) and without a full stop.
  """
  rng = random.Random(int(labels.paraphrase))
  content = _content(rng, labels, colour)
  index = int(labels.style)
  if not style:
    return content
  if index == _PHOTO or rng.random() < 0.5:
    return f"{_PREFIXES.sample(rng, index)} {content}".strip()
  return f"{content} {_SUFFIXES.sample(rng, index)}"


def split(labels: Labels) -> tuple[str, str]:
  """Describes one image as StyleDrop does, in two halves that joined by a space are a caption.

  Args:
    labels: the labels of one image, ints or arrays without axes.

  Returns:
    The content, such as "a red dog in the snow", and the style, such as "in watercolor painting style"; the style of a
    photo is the empty string.
  """
  index = int(labels.style)
  return caption(labels, style=False), "" if index == _PHOTO else f"in {vocabulary.STYLES[index]} style"


def where(context: int) -> str:
  """Returns the usual wording of a context, an index into `vocabulary.CONTEXTS`, such as "on the beach"."""
  return _CONTEXT_WORDINGS[vocabulary.CONTEXTS[context]][0]


def parse(text: str) -> Parsed:
  """Parses a caption: one of ours, or a prompt with other words among ours, such as "a red [V] dog in the jungle".

  Args:
    text: the caption, in any case.

  Returns:
    The labels that the caption mentions. Words outside the grammar are ignored.

  Raises:
    ValueError: the caption names no class.
  """
  rest = " ".join(text.lower().split())
  suffix, rest = _SUFFIXES.take(rest)
  prefix, rest = _PREFIXES.take(rest)
  context, rest = _CONTEXTS.take(rest)
  accessory, rest = _ACCESSORIES.take(rest)
  rest = _UNKNOWN_STYLE.sub("", rest)
  other_cls, other_colour, other_marking = -1, None, None
  if other := _OTHER.search(rest):
    other_cls, other_colour, other_marking = _read_toy(other)
    rest = _without(rest, other)
  subject = _TOY.search(rest)
  if subject is None:
    raise ValueError(f"no class of the vocabulary is named in the caption {text!r}")
  cls, colour, marking = _read_toy(subject)
  return Parsed(
    cls=cls,
    colour=colour,
    marking=marking,
    prop=_PROPERTIES.read(subject["before"]) or 0,
    state=_STATES[cls].read(rest[subject.start() :]),
    context=context,
    accessory=accessory or 0,
    style=suffix or prefix or _PHOTO,
    other_cls=other_cls,
    other_colour=other_colour,
    other_marking=other_marking,
  )


def matches(parsed: Parsed, labels: Labels) -> bool:
  """Returns whether every label that a caption mentions is that of one image.

  Args:
    parsed: the caption. If it mentions no property, accessory, style or second toy, there must be none.
    labels: the labels of one image, ints or arrays without axes.
  """
  mentioned = dataclasses.asdict(parsed).items()
  return all(index is None or index == int(getattr(labels, name)) for name, index in mentioned)


def _content(rng: random.Random, labels: Labels, colour: bool) -> str:
  """The caption without its style."""
  cls, state = int(labels.cls), int(labels.state)
  states = vocabulary.STATES[vocabulary.CLASSES[cls]]
  context = _CONTEXTS.sample(rng, int(labels.context))
  doing_first = doing_last = ""
  if len(states) > 1 and rng.random() < (_SAY_TRAIT if state else _SAY_DEFAULT):
    if cls == _FACE or context.startswith("floating") or rng.random() < 0.5:
      doing_first = states[state]
    else:
      doing_last = states[state]
  adjectives = (_PROPERTIES.sample(rng, int(labels.prop)), doing_first)
  parts = [_toy(rng, adjectives, cls, int(labels.colour) if colour else None, int(labels.marking)), doing_last]
  parts.append(_ACCESSORIES.sample(rng, int(labels.accessory)))
  if int(labels.other_cls) >= 0:
    other = _toy(rng, (), int(labels.other_cls), int(labels.other_colour), int(labels.other_marking))
    parts += [rng.choice(_BESIDE), other]
  return " ".join(filter(None, [*parts, context]))


def _toy(rng: random.Random, adjectives: tuple[str, ...], cls: int, colour: int | None, marking: int) -> str:
  """A toy's noun phrase, with its article; a face's colour is that of its hair."""
  before, after = [*adjectives], []
  if colour is not None and rng.random() < _SAY_COLOUR:
    word = _COLOURS.sample(rng, colour)
    if cls != _FACE:
      before.append(word)
    elif rng.random() < 0.5:
      before.append(f"{word} haired")
    else:
      after.append(f"{word} hair")
  plain = vocabulary.MARKINGS[marking] == "plain"
  if not (plain and cls == _FACE) and rng.random() < (_SAY_DEFAULT if plain else _SAY_TRAIT):
    if plain or rng.random() < 0.5:
      before.append(_MARKINGS.sample(rng, marking))
    else:
      after.append(_PATTERNS.sample(rng, marking))
  phrase = _article(" ".join(filter(None, [*before, _NOUNS.sample(rng, cls)])))
  return f"{phrase} with {' and '.join(after)}" if after else phrase


def _read_toy(found: re.Match[str]) -> tuple[int, int | None, int | None]:
  """The class, colour and marking of a toy's noun phrase."""
  marking = _MARKINGS.read(found["before"])
  return (
    _NOUNS.read(found["noun"]),
    _COLOURS.read(found["before"] + found["after"]),
    _PATTERNS.read(found["after"]) if marking is None else marking,
  )
