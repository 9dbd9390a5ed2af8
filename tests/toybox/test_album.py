"""Albums: rendered once, kept, resumed."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.toybox import album, captions, source

STREAM = source.Stream(seed=3, resolution=16, photos=2)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  folder = tmp_path_factory.mktemp("album")
  return folder, album.draw(folder, STREAM, 6)


def test_an_album_holds_the_streams_examples(drawn):
  frames, labels = STREAM.draw(range(6))
  np.testing.assert_allclose(drawn[1].images / 255.0, np.clip(frames.rgb, 0, 1), atol=0.502 / 255)
  np.testing.assert_array_equal(drawn[1].labels.context, labels.context)
  assert captions.parse(drawn[1].captions([4])[0]).cls == int(labels.cls[4]) and len(drawn[1]) == 6


def test_consecutive_photos_show_the_same_subject(drawn):
  labels = drawn[1].labels
  for name in ("cls", "subject", "colour", "marking"):
    pairs = getattr(labels, name).reshape(3, 2)
    np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])
  assert len(set(labels.subject.tolist())) == 3
  assert any(a != b for a, b in labels.context.reshape(3, 2))


def test_with_one_photo_each_the_first_photo_of_every_subject_is_the_same(drawn):
  alone = source.Stream(seed=3, resolution=16).labels(jnp.arange(6))
  np.testing.assert_array_equal(alone.subject[::2], drawn[1].labels.subject[::2])
  np.testing.assert_array_equal(alone.context[::2], drawn[1].labels.context[::2])


def test_an_album_is_resumed_where_it_was_interrupted(drawn, tmp_path, monkeypatch):
  monkeypatch.setattr(album, "_CHUNK", 4)

  def cut(n):
    if n == 4:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    album.draw(tmp_path, STREAM, 6, cut)
  assert json.loads((tmp_path / "album.json").read_text())["drawn"] == 4
  seen = []
  again = album.draw(tmp_path, STREAM, 6, seen.append)
  assert seen == [4, 6]
  np.testing.assert_array_equal(again.images, drawn[1].images)


def test_another_album_in_the_folder_is_refused(drawn):
  with pytest.raises(ValueError, match="another album"):
    album.draw(drawn[0], source.Stream(seed=4, resolution=16, photos=2), 6)
  with pytest.raises(ValueError, match="at least one image"):
    album.draw(drawn[0], STREAM, 0)
  with pytest.raises(ValueError, match="photos"):
    source.Stream(photos=0)
