"""What the tests of personalisation share: a call of the command line, a folder of photos, and the pictures drawn."""

import numpy as np
from PIL import Image
import pytest

from dreamjax import cli


@pytest.fixture
def run(capsys):
  """run(*arguments) -> (status, what was written to out and err)."""

  def run(*arguments):
    status = cli.main([str(a) for a in arguments])
    return status, capsys.readouterr()

  return run


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
  """A folder of three photos, with captions that end in a style."""
  folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
  for i in range(3):
    Image.fromarray(draw.integers(0, 255, (18, 24, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    (folder / f"{i}.txt").write_text("a dog in red clay style")
  return folder


@pytest.fixture(scope="session")
def drawn():
  """drawn(folder) -> the pictures that `dreamjax sample` wrote there."""

  def drawn(folder):
    found = []
    for path in sorted(folder.glob("0*.png")):
      with Image.open(path) as picture:
        found.append(np.asarray(picture).astype(int))
    return np.stack(found)

  return drawn
