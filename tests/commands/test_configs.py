import pathlib

import pytest

from dreamjax.commands import configs

ENCODERS = str(pathlib.Path(__file__).parents[2] / "configs/pretrain_encoders.py")


@pytest.mark.parametrize("which", ["tokenizer", "t5", "probe", "clip", "dino"])
def test_every_variant_is_loaded(which):
  assert configs.load(f"{ENCODERS}:{which}").task == which


def test_fields_are_changed_and_keep_their_type():
  config = configs.load(f"{ENCODERS}:probe", ["--config.batch_size=8", "--config.optimizer.learning_rate=1"])
  assert config.batch_size == 8 and config.optimizer.learning_rate == 1.0


def test_an_installed_config_is_found_by_its_name():
  assert configs.load("pretrain_encoders.py:t5").task == "t5"


@pytest.mark.parametrize(
  ("name", "overrides", "message"),
  [
    (f"{ENCODERS}:probe", ["--config.bach=8"], "bach"),
    (f"{ENCODERS}:probe", ["--config.batch_size=many"], "many"),
    (f"{ENCODERS}:propeller", [], "propeller"),
    ("no_such_config.py", [], "no_such_config.py"),
    (f"{ENCODERS}:probe", ["--config.pieces=2"], "the config field pieces is called accumulation_steps now"),
  ],
)
def test_what_cannot_be_is_refused(name, overrides, message):
  with pytest.raises(ValueError, match=message):
    configs.load(name, overrides)
