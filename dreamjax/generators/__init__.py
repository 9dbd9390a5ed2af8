"""Generators: from text to images. A generator is a frozen description apart from its parameters: data, no state.

`cascade.py` holds the diffusion generators, `masked.py` those of masked tokens; `conditioning.py` and `branches.py` are
what both condition their networks on and how guidance mixes networks; `sampling.py` samples from either; `files.py`
finds, loads and saves them. The package stands on models, the maths, and thetas; methods stand on it.
"""

from dreamjax.generators.cascade import Cascade, Sampling, Stage
from dreamjax.generators.conditioning import Conditioning, Text
from dreamjax.generators.files import is_bound_to_all, load, load_control, load_theta, save, to_device
from dreamjax.generators.generator import with_compute
from dreamjax.generators.masked import Decoding, Masked, TokenStage
from dreamjax.generators.sampling import batches, default_samplings, fill_prompt, sample

__all__ = [
  "Cascade", "Conditioning", "Decoding", "Masked", "Sampling", "Stage", "Text", "TokenStage", "batches",
  "default_samplings", "fill_prompt", "is_bound_to_all", "load", "load_control", "load_theta", "sample", "save",
  "to_device", "with_compute",
]  # fmt: skip
