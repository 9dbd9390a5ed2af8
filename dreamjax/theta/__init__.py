"""The theta: the small pytree in which a personalisation ends, whatever method found it.

`kinds.py` holds its kinds: low-rank updates, adapters, soft prompts, embeddings of tokens and full weights.
`theta.expand(params)` gives the variables that a module is to be applied with: parameters, and a collection "theta"
that mirrors the module tree. `intercept.py` applies that collection while the module runs, so that no module knows of
it. `files.py` saves a personalisation as one safetensors file, bound to the weights that it was trained beside. The
room stands on `dreamjax.models`.
"""

from dreamjax.theta.files import Base, Card, Personalisation, content_hash, load, read_card, save
from dreamjax.theta.intercept import apply
from dreamjax.theta.kinds import Adapters, Embeddings, Full, LoRA, SoftPrompt, StackedThetas, Theta, stack, unstack

__all__ = [
  "Adapters", "Base", "StackedThetas", "Card", "Embeddings", "Full", "LoRA", "Personalisation", "SoftPrompt", "Theta",
  "apply", "content_hash", "load", "read_card", "save", "stack", "unstack",
]  # fmt: skip
