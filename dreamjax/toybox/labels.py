"""The labels of toybox images: what an image shows, as a pytree of integers, so that it lives on the device."""

from flax import struct
from jaxtyping import Array, Int

from dreamjax.toybox import vocabulary


@struct.dataclass
class Labels:
  """What one image shows (or, with a leading batch axis, many). Indices are into `vocabulary`'s tuples.

  Attributes:
    cls: the class of the subject.
    subject: the identity's number; with `cls` it fixes the subject's proportions, colours and markings for ever.
    colour: the subject's main colour as drawn: the identity's own unless a caption recolours it ("a red [V] dog").
    marking: the subject's marking as drawn.
    prop: the property word, 0 for none.
    state: index into `STATES[class]`.
    context: where.
    accessory: what the subject wears, 0 for nothing.
    style: how it is drawn, 0 for the plain rendering.
    other_cls: class of the second toy that stands beside the subject, -1 for none.
    other_subject: the second toy's identity number.
    other_colour: the second toy's colour.
    other_marking: the second toy's marking.
    paraphrase: the seed from which the caption's wording is chosen.
  """

  cls: Int[Array, "*b"]
  subject: Int[Array, "*b"]
  colour: Int[Array, "*b"]
  marking: Int[Array, "*b"]
  prop: Int[Array, "*b"]
  state: Int[Array, "*b"]
  context: Int[Array, "*b"]
  accessory: Int[Array, "*b"]
  style: Int[Array, "*b"]
  other_cls: Int[Array, "*b"]
  other_subject: Int[Array, "*b"]
  other_colour: Int[Array, "*b"]
  other_marking: Int[Array, "*b"]
  paraphrase: Int[Array, "*b"]


def names(labels: Labels) -> dict[str, str | int | None]:
  """The labels of one image as words; numbers of identities stay numbers, and what is not there is None."""
  other = int(labels.other_cls) >= 0
  cls = vocabulary.CLASSES[int(labels.cls)]
  return {
    "class": cls,
    "subject": int(labels.subject),
    "colour": vocabulary.COLOURS[int(labels.colour)],
    "marking": vocabulary.MARKINGS[int(labels.marking)],
    "property": vocabulary.PROPERTIES[int(labels.prop)],
    "state": vocabulary.STATES[cls][int(labels.state)],
    "context": vocabulary.CONTEXTS[int(labels.context)],
    "accessory": vocabulary.ACCESSORIES[int(labels.accessory)],
    "style": vocabulary.STYLES[int(labels.style)],
    "other_class": vocabulary.CLASSES[int(labels.other_cls)] if other else None,
    "other_subject": int(labels.other_subject) if other else None,
    "other_colour": vocabulary.COLOURS[int(labels.other_colour)] if other else None,
    "other_marking": vocabulary.MARKINGS[int(labels.other_marking)] if other else None,
  }
