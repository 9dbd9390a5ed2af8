"""The labels of toybox images: what an image shows, as a pytree of integers, which may be on a device."""

from flax import struct
from jaxtyping import Array, Int

from dreamjax.toybox import vocabulary


@struct.dataclass
class Labels:
  """What one image shows (or several, with a leading batch axis). Indices are into `vocabulary`'s tuples.

  Attributes:
    cls: the class of the subject.
    subject: the identity's number; with `cls` it fixes the subject's proportions, colours and markings.
    colour: the subject's main colour as rendered: the identity's own or another that captions name ("a red [V] dog").
    marking: the subject's marking as rendered.
    prop: the property word, 0 for none.
    state: index into `STATES[class]`.
    context: where the subject is.
    accessory: what the subject wears, 0 for nothing.
    style: the style of the image, 0 for the plain rendering.
    other_cls: class of the second toy, next to the subject, -1 for none.
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
  """Converts the labels of one image to words; numbers of identities stay numbers, and absent things are None."""
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
