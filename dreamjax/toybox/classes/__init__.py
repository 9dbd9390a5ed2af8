"""The object classes: one rig each. What a toy of a class looks like is in its builder; who it is, in `identity`."""

import functools

from dreamjax.toybox import vocabulary
from dreamjax.toybox.classes import creatures, faces, machines, things
from dreamjax.toybox.rig import Rig, Tables, make_tables

#: Where accessories sit; every class has all of them.
ANCHORS = ("hat", "eyes", "neck", "back")

RIGS: dict[str, Rig] = {**creatures.RIGS, **machines.RIGS, **things.RIGS, **faces.RIGS}


@functools.cache
def tables() -> Tables:
  """The classes' blend-shape tables, in the order of `vocabulary.CLASSES`."""
  for name in vocabulary.CLASSES:
    assert RIGS[name].variants == vocabulary.STATES[name], name
  return make_tables([RIGS[name] for name in vocabulary.CLASSES], ANCHORS)
