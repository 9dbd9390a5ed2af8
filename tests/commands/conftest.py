"""What the tests of personalisation share: a folder of photos."""

import numpy as np
from PIL import Image
import pytest


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
  """A folder of three photos, with captions that end in a style."""
  folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
  for i in range(3):
    Image.fromarray(draw.integers(0, 255, (18, 24, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    (folder / f"{i}.txt").write_text("a dog in red clay style")
  return folder
