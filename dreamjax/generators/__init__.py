"""Generators: text to pictures. A generator is a frozen description beside a tree of parameters: data, no state.

`cascade.py` holds the family of Imagen and DeepFloyd IF, `masked.py` that of Muse, and how they are sampled; `files.py`
finds, loads and saves cascades. The room stands on the networks and the maths, and on thetas; methods stand on it.
"""

from dreamjax.generators.cascade import Cascade, Sampling, Stage, sample
from dreamjax.generators.files import load, load_theta, save

__all__ = ["Cascade", "Sampling", "Stage", "load", "load_theta", "sample", "save"]
