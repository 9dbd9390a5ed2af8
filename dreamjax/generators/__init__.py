"""Generators: text to images. A generator is a frozen description beside a tree of parameters: data, no state.

`cascade.py` holds the family of Imagen and DeepFloyd IF, `masked.py` that of Muse, and how they are sampled; `files.py`
finds, loads and saves both. The room stands on the networks and the maths, and on thetas; methods stand on it.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
import numpy as np

from dreamjax.generators import cascade, masked
from dreamjax.generators.cascade import Cascade, Sampling, Stage
from dreamjax.generators.files import load, load_control, load_theta, save, to_device
from dreamjax.generators.generator import with_compute
from dreamjax.generators.masked import Decoding, Masked, TokenStage

__all__ = [
  "Cascade", "Decoding", "Masked", "Sampling", "Stage", "TokenStage", "with_compute", "load", "load_control",
  "load_theta", "sample", "save", "to_device",
]  # fmt: skip


def sample(
  generator: Cascade | Masked, params: Any, prompts: Sequence[str], **options: Any
) -> Float[np.ndarray, "n s s 3"]:
  """Draws images of prompts, in [-1, 1]; see `cascade.sample` and `masked.sample` for what may be said of it."""
  room = masked if isinstance(generator, Masked) else cascade
  return room.sample(generator, params, prompts, **options)
