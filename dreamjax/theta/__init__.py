"""The theta: the small pytree in which a personalisation ends, whatever the method.

`kinds.py` holds its kinds: low-rank updates, adapters, soft prompts, embeddings of tokens and full weights; and
`compose`, by which a network takes several of them. `theta.expand(params)` returns the variables that a module is
applied with: parameters, and a collection "theta" that mirrors the module tree. `intercept.py` applies that collection
while the module runs, so that modules need not know of it; what it does to one module is an edit of `edits.py`.
`files.py` saves a personalisation as one safetensors file, bound to the weights that it was trained with. The package
stands on `dreamjax.models`.
"""

from dreamjax.theta.edits import Edit
from dreamjax.theta.files import (
  ALL_PARTS,
  Base,
  Card,
  Hasher,
  Personalisation,
  content_hash,
  load,
  parts_needed,
  read_card,
  save,
)
from dreamjax.theta.intercept import apply, record
from dreamjax.theta.kinds import (
  Adapters,
  Embeddings,
  Full,
  LoRA,
  SoftPrompt,
  StackedThetas,
  Theta,
  Thetas,
  compose,
  stack,
  unstack,
)

__all__ = [
  "ALL_PARTS", "Adapters", "Base", "Card", "Edit", "Embeddings", "Full", "Hasher", "LoRA", "Personalisation",
  "SoftPrompt", "StackedThetas", "Theta", "Thetas", "apply", "compose", "content_hash", "load", "parts_needed",
  "read_card", "record", "save", "stack", "unstack",
]  # fmt: skip
