"""Config fields that had other names in earlier versions: those names are refused with the one of today."""

from collections.abc import Mapping
from typing import Any

from dreamjax.errors import UserError

#: Fields of `generators.Sampling`, which files of earlier versions hold by these names.
SAMPLING = {"ratio": "threshold_percentile", "maximum": "threshold_max", "level": "augmentation_level"}
#: All of them, by their old names.
FIELDS = {
  **SAMPLING,
  "batch": "batch_size",
  "drop": "text_dropout",
  "each": "images_per_prompt",
  "judged": "eval_examples",
  "least": "min_mask_ratio",
  "levels": "augmentation_levels",
  "most": "max_chosen",
  "patience": "early_stopping",
  "pieces": "accumulation_steps",
  "prior_rows": "prior_batch_size",
  "rows": "batch_size",
  "show": "sample_prompts",
}


def check(config: Mapping[str, Any], path: str = "") -> None:
  """Raises UserError, with the new name, if a config has a field by an old one, at any depth."""
  for key, value in config.items():
    if key in FIELDS:
      raise UserError(f"the config field {path}{key} is called {FIELDS[key]} now")
    if isinstance(value, Mapping):
      check(value, f"{path}{key}.")
