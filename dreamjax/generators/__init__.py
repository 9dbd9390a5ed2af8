"""Generators: text to pictures. A generator is a frozen description beside a tree of parameters: data, no state.

`cascade.py` holds the family of Imagen and DeepFloyd IF, and how it is sampled; `files.py` finds, loads and saves
generators. The room stands on the networks and the maths, and on thetas; methods stand on it.
"""

from dreamjax.generators.cascade import Cascade, Sampling, Stage, sample
from dreamjax.generators.files import load, load_theta, save

__all__ = ["Cascade", "Sampling", "Stage", "load", "load_theta", "sample", "save"]
