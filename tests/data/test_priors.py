"""Prior sets: drawn once, gone on with, and never mixed up."""

import os
import signal

import numpy as np
import pytest

from dreamjax.data import priors
from dreamjax.parallel import processes

RECIPE = {"model": "abc", "prompt": "a dog", "seed": 0}


class Drawer:
  """Draws grey images, image i as light as i; dies before image `last`."""

  def __init__(self, last=1000):
    self.asked, self.last = [], last

  def __call__(self, first, count):
    self.asked.append((first, count))
    for i in range(first, first + count):
      if i == self.last:
        raise KeyboardInterrupt
      yield np.full((4, 4, 3), i / 50 - 1, np.float32)


def test_a_set_is_drawn_once_and_grows(tmp_path):
  draw, seen = Drawer(), []
  first = priors.read_or_draw(tmp_path, RECIPE, 3, draw, seen.append)
  again = priors.read_or_draw(tmp_path, RECIPE, 5, draw)
  assert draw.asked == [(0, 3), (3, 2)] and seen == [0, 1, 2, 3]
  np.testing.assert_array_equal(again[:3], first)
  np.testing.assert_array_equal(again[:, 0, 0, 0], np.round(np.arange(5) / 50 * 127.5))
  priors.read_or_draw(tmp_path, RECIPE, 2, draw)
  assert len(draw.asked) == 2


def test_a_program_that_is_told_to_end_keeps_what_it_drew(tmp_path):
  def told(there):
    if there == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(processes.Preempted):
    priors.complete(tmp_path, 6, Drawer(), told)
  draw = Drawer()
  priors.complete(tmp_path, 6, draw)
  assert draw.asked == [(3, 3)]


def test_a_call_that_was_cut_off_is_gone_on_with(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    priors.read_or_draw(tmp_path, RECIPE, 6, Drawer(last=4))
  draw = Drawer()
  found = priors.read_or_draw(tmp_path, RECIPE, 6, draw)
  assert draw.asked == [(4, 2)]
  np.testing.assert_array_equal(found, priors.read_or_draw(tmp_path / "other", RECIPE, 6, Drawer()))
  assert not list(tmp_path.rglob("*.unfinished"))


@pytest.mark.parametrize("change", [{"model": "abd"}, {"prompt": "a cat"}, {"seed": 1}, {"sampling": [1]}])
def test_another_recipe_is_another_set(change):
  assert priors.name(RECIPE | change) != priors.name(RECIPE) == priors.name(dict(reversed(RECIPE.items())))


def test_bad_input_is_named(tmp_path):
  with pytest.raises(ValueError, match="one image or more, not 0"):
    priors.read_or_draw(tmp_path, RECIPE, 0, Drawer())
  priors.read_or_draw(tmp_path, RECIPE, 2, Drawer())
  broken = tmp_path / priors.name(RECIPE) / "00001.png"
  broken.write_bytes(b"no image")
  with pytest.raises(ValueError, match=r"00001\.png cannot be read: delete it"):
    priors.read_or_draw(tmp_path, RECIPE, 2, Drawer())
