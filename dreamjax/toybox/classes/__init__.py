"""The object classes: one rig each. A class's builder defines what its toys share, `identity` how they differ."""

import functools

from dreamjax.toybox import vocabulary
from dreamjax.toybox.classes import creatures, faces, machines, things
from dreamjax.toybox.rig import Rig, Tables, make_tables

#: The anchors of accessories; every class has all of them.
ANCHORS = ("hat", "eyes", "neck", "back")

RIGS: dict[str, Rig] = {**creatures.RIGS, **machines.RIGS, **things.RIGS, **faces.RIGS}


@functools.cache
def tables() -> Tables:
  """Returns the blend-shape tables of the classes, in the order of `vocabulary.CLASSES`."""
  for name in vocabulary.CLASSES:
    assert RIGS[name].variants == vocabulary.STATES[name], name
  return make_tables([RIGS[name] for name in vocabulary.CLASSES], ANCHORS)
