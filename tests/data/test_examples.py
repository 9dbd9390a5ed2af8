import numpy as np
import pytest

from dreamjax.data.examples import Examples, epochs, on_device


def make(first, n):
  return Examples(
    images=(np.arange(first, first + n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8),),
    captions=lambda indices: [f"image {first + i}" for i in indices],
    labels={"class": np.arange(first, first + n)},
    words={"class": tuple(map(str, range(20)))},
    subjects=np.arange(n) // 2,
  )


def test_joined_examples_stay_themselves():
  joined = Examples.join([make(0, 4), make(4, 6)])
  order = np.array([9, 0, 4, 3])
  assert len(joined) == 10
  np.testing.assert_array_equal(joined.load_images(order)[:, 0, 0, 0], order)
  assert joined.captions(order) == [f"image {i}" for i in order]
  np.testing.assert_array_equal(joined.labels["class"], np.arange(10))
  np.testing.assert_array_equal(joined.subjects, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])


def test_an_epoch_sees_everything_once_and_the_next_in_another_order():
  batch = epochs(12, 4, seed=0)
  first, second = (np.concatenate([batch(3 * e + i) for i in range(3)]) for e in range(2))
  assert sorted(first) == sorted(second) == list(range(12)) and (first != second).any()
  np.testing.assert_array_equal(epochs(12, 4, seed=0)(4), batch(4))
  assert (epochs(12, 4, seed=1)(0) != batch(0)).any()


def test_a_batch_larger_than_the_data_is_refused():
  with pytest.raises(ValueError, match="batch of 5 cannot be drawn from 4"):
    epochs(4, 5, seed=0)


def test_rows_taken_from_the_device_are_those_that_were_made():
  examples = make(0, 9)
  rows = lambda i: {"images": examples.load_images(i), "more": (examples.labels["class"][i], None)}  # noqa: E731
  order = np.array([8, 0, 4, 4])
  taken, made = on_device(rows, 9)(order), rows(order)
  np.testing.assert_array_equal(taken["images"], made["images"])
  np.testing.assert_array_equal(taken["more"][0], made["more"][0])
  assert taken["more"][1] is None
