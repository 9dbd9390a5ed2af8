"""Contact sheets."""

import numpy as np
import pytest

from dreamjax.data.contact_sheet import contact_sheet


def test_every_image_is_on_the_sheet_in_order():
  colours = [(50 + 40 * i, 0, 200) for i in range(5)]
  images = [np.broadcast_to(np.array(colour) / 255, (100, 100, 3)) for colour in colours]
  page = np.asarray(contact_sheet(images, ["a caption"] * 5, columns=3))
  found = [np.argwhere((page == colour).all(-1)) for colour in colours]
  corners = [tuple(places.min(0)) for places in found]
  assert all(len(places) == 10000 for places in found)
  assert corners == sorted(corners) and len({y for y, _ in corners}) == 2


def test_long_captions_are_wrapped_within_the_image():
  short, long = (contact_sheet([np.zeros((64, 64, 3))], [text]) for text in ("a dog", "a very long caption " * 6))
  assert long.width == short.width and long.height > short.height
  margin = np.asarray(long)[110:, -5:]
  assert (margin == 255).all()


def test_small_images_are_magnified_to_make_room_for_captions():
  image = np.random.default_rng(0).integers(0, 255, (8, 16, 3)) / 255
  page = np.asarray(contact_sheet([image], ["a dog"]))
  np.testing.assert_array_equal(page[6 : 6 + 48, 6 : 6 + 96][::6, ::6], np.round(255 * image))


@pytest.mark.parametrize(("images", "captions"), [([], []), ([np.zeros((4, 4, 3))], [])])
def test_images_and_captions_must_match(images, captions):
  with pytest.raises(ValueError, match="as many captions"):
    contact_sheet(images, captions)
