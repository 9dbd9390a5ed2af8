"""Contact sheets."""

import numpy as np
import pytest

from dreamjax.eval.contact_sheet import contact_sheet


def test_every_picture_is_on_the_sheet_in_order():
  greys = np.linspace(0.1, 0.9, 5)
  page = np.asarray(contact_sheet([np.full((40, 40, 3), g) for g in greys], ["a caption"] * 5, columns=3))
  found = [(np.argwhere((page == int(g * 255 + 0.5)).all(-1)), g) for g in greys]
  corners = [tuple(places.min(0)) for places, _ in found]
  assert all(len(places) >= 1600 for places, _ in found)
  assert corners == sorted(corners) and len({y for y, _ in corners}) == 2


def test_long_captions_are_wrapped_within_the_picture():
  short, long = (contact_sheet([np.zeros((64, 64, 3))], [text]) for text in ("a dog", "a very long caption " * 6))
  assert long.width == short.width and long.height > short.height
  margin = np.asarray(long)[70:, -5:]
  assert (margin == 255).all()


@pytest.mark.parametrize(("images", "captions"), [([], []), ([np.zeros((4, 4, 3))], [])])
def test_pictures_and_captions_must_match(images, captions):
  with pytest.raises(ValueError, match="as many captions"):
    contact_sheet(images, captions)
