"""Config fields by the names of earlier versions are refused with the names of today, which exist."""

import dataclasses

from ml_collections import ConfigDict
import pytest

from dreamjax import renamed
from dreamjax.commands import configs
from dreamjax.errors import UserError
from dreamjax.generators import Sampling
from dreamjax.methods import dreambooth, styledrop


def names(config):
  """The names of all fields, at any depth."""
  for key, value in config.items():
    yield key
    if isinstance(value, ConfigDict):
      yield from names(value)


def test_no_config_of_today_has_an_old_name_and_some_config_has_each_new_one():
  pretraining = ("pretrain.py:base", "pretrain.py:sr", "pretrain_muse.py:base", "pretrain_muse.py:vqgan")
  made = [configs.load(f"configs/{name}") for name in pretraining]
  made += [dreambooth.default_config(), styledrop.default_config()]
  found = {field.name for field in dataclasses.fields(Sampling)}
  for config in made:
    renamed.check(config.to_dict())
    found |= set(names(config))
  assert set(renamed.FIELDS.values()) <= found


def test_an_old_name_is_refused_wherever_it_stands(tiny_cascade, tmp_path):
  config = dreambooth.default_config()
  config.stages.sr.rows = 2
  with pytest.raises(UserError, match=r"the config field stages\.sr\.rows is called batch_size now"):
    dreambooth.dreambooth(*tiny_cascade, tmp_path, "dog", workdir=tmp_path / "work", config=config)
