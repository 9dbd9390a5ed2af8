"""The command line, run in this process as a user would call it."""

import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
from PIL import Image
import pytest

import dreamjax
from dreamjax import cli
from dreamjax.commands import demo, devices, export, plan, sample, styledrop
from dreamjax.commands import toybox as toybox_command
from dreamjax.errors import UserError, user_errors
from dreamjax.generators import branches, cascade, generator, interop, published
from dreamjax.methods import styledrop as styledrop_method
from dreamjax.parallel import sharding
from dreamjax.toybox import captions, source, vocabulary

COMMANDS = ("demo", "dreambooth", "styledrop", "feedback", "sample", "export", "evaluate", "plan", "pretrain", "toybox")


def read(folder):
  return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_toybox_writes_an_image_folder_and_a_sheet(tmp_path, run):
  out = tmp_path / "images"
  status, printed = run("toybox", "--out", out, "--n", 3, "--resolution", 32, "--seed", 5)
  assert status == 0 and "3 images" in printed.out
  lines = read(out)
  assert [line["file_name"] for line in lines] == ["00000.png", "00001.png", "00002.png"]
  stream = source.Stream(seed=5, resolution=32)
  frame, _ = stream.draw(range(3))
  for line, rgb in zip(lines, np.asarray(frame.rgb), strict=True):
    with Image.open(out / line["file_name"]) as image:
      assert image.size == (32, 32) and image.mode == "RGB"
      assert np.abs(np.asarray(image) / 255 - rgb).max() <= 1.01 / 255
    parsed = captions.parse(line["text"])
    assert vocabulary.CLASSES[parsed.cls] == line["class"] and vocabulary.STYLES[parsed.style] == line["style"]
  with Image.open(out / "sheet.png") as sheet:
    assert sheet.width > 64


def test_toybox_renders_one_subject_in_a_held_out_style(tmp_path, run):
  name = "stained glass window"
  arguments = ("--class", "cat", "--subject", 7, "--n", 2, "--style", name, "--resolution", 32)
  assert run("toybox", "--out", tmp_path, *arguments)[0] == 0
  for line in read(tmp_path):
    assert (line["class"], line["subject"], line["style"]) == ("cat", 7, name)


def test_existing_images_are_kept_without_overwrite(tmp_path, run):
  (tmp_path / "metadata.jsonl").write_text("mine\n")
  arguments = ("toybox", "--out", tmp_path, "--n", 3, "--resolution", 32, "--seed", 5)
  status, printed = run(*arguments)
  assert status == 2 and "--overwrite" in printed.err
  assert (tmp_path / "metadata.jsonl").read_text() == "mine\n" and len(list(tmp_path.iterdir())) == 1
  assert run(*arguments, "--overwrite")[0] == 0
  assert len(read(tmp_path)) == 3


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--class", "dgo"), "did you mean 'dog'"),
    (("--class", "dog", "--context", "moon"), "moon"),
    (("--style", "cubism"), "cubism"),
    (("--resolution", 0), "--resolution must be at least 1"),
    (("--n", 0), "--n and"),
    (("--subject", 3), "--class"),
    (("--class", "dog", "--subject", -1), "subject must be at least 0"),
    (("--split", "validation"), "unknown split"),
  ],
)
def test_bad_input_is_one_clear_line(tmp_path, run, arguments, message):
  status, printed = run("toybox", "--out", tmp_path / "out", *arguments)
  assert status == 2 and message in printed.err
  assert len(printed.err.strip().splitlines()) == 1 and "Traceback" not in printed.err
  assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, run):
  (tmp_path / "file").write_text("")
  status, printed = run("toybox", "--out", tmp_path / "file" / "out")
  assert status == 2 and str(tmp_path / "file") in printed.err
  assert len(printed.err.strip().splitlines()) == 1


def raises(error):
  """A command's run that raises an error."""

  def run(args):
    raise error

  return run


@pytest.mark.parametrize("kind", [UserError, FileNotFoundError, PermissionError, FloatingPointError])
def test_what_a_user_can_mend_shows_its_traceback_only_if_asked(kind, run, monkeypatch):
  monkeypatch.setattr(export, "run", raises(kind("no")))
  command = ("export", "--theta", "a", "--model", "b", "--out", "c")
  status, printed = run(*command)
  assert status == 2 and printed.err == "dreamjax export: no\n"
  for arguments in (("--traceback", *command), (*command, "--traceback")):
    status, printed = run(*arguments)
    assert status == 2 and "Traceback" in printed.err and f"{kind.__name__}: no" in printed.err


@pytest.mark.parametrize("error", [ValueError("a bug"), TypeError("a bug"), KeyError("a bug")])
def test_other_errors_keep_their_traceback(error, run, monkeypatch):
  monkeypatch.setattr(export, "run", raises(error))
  with pytest.raises(type(error), match="a bug"):
    run("export", "--theta", "a", "--model", "b", "--out", "c")


def test_value_errors_of_a_check_become_user_errors():
  with pytest.raises(UserError, match=r"^a\.json: no dog$") as caught, user_errors("a.json"):
    raise ValueError("no dog")
  assert isinstance(caught.value.__cause__, ValueError)
  with pytest.raises(UserError, match="^no dog$"), user_errors("a.json"):
    raise UserError("no dog")
  with pytest.raises(TypeError), user_errors():
    raise TypeError("a bug")


def in_a_new_process(code):
  """What a program prints whose `loaded()` are those of the large packages that it has imported."""
  head = "import sys\nloaded = lambda: sorted({'jax', 'flax', 'numpy', 'transformers', 'PIL'} & set(sys.modules))\n"
  environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
  ended = subprocess.run(
    [sys.executable, "-c", head + code], capture_output=True, text=True, check=True, env=environment
  )
  return ended.stdout.splitlines()[-1]


def test_help_and_mistyped_flags_wait_for_no_large_package():
  calls = [[], *([command] for command in COMMANDS)]
  calls = [[*call, "--help"] for call in calls] + [["sample", "--promt", "x", "--out", "y"], ["sample", "--steps", "x"]]
  code = f"""
from dreamjax import cli
for call in {calls}:
  try:
    cli.main(call)
  except SystemExit:
    print(call, loaded())
    if loaded():
      break
"""
  assert in_a_new_process(code) == f"{calls[-1]} []"


def test_dreamjax_is_imported_piece_by_piece():
  light = "from dreamjax import UserError, prepare_xla\nfrom dreamjax.toybox import vocabulary\nprint(loaded())"
  assert in_a_new_process(light) == "[]"
  heavy = "from dreamjax import dreambooth, sample, styledrop\nprint(loaded())"
  assert "transformers" not in in_a_new_process(heavy)
  assert set(dreamjax.__all__) <= set(dir(dreamjax))
  for name in dreamjax.__all__:
    assert not isinstance(getattr(dreamjax, name), types.ModuleType), name
  with pytest.raises(AttributeError, match="hyperdream"):
    _ = dreamjax.hyperdream
  with pytest.raises(ImportError):
    from dreamjax import hyperdream  # noqa: F401


def test_arguments_have_the_choices_and_defaults_of_the_packages():
  assert demo.SUBJECT == source.TRAIN_SUBJECTS + 7
  assert devices.AXES == sharding.AXES
  assert export.FORMATS == interop.FORMATS
  assert plan.PUBLISHED == tuple(published.PUBLISHED)
  assert (sample.SAMPLERS, sample.DTYPES, sample.GAMMA) == (cascade.SAMPLERS, generator.DTYPES, branches.GAMMA)
  assert styledrop.FEEDBACK == styledrop_method.FEEDBACK
  assert toybox_command.SPLITS == source.SPLITS


def test_an_unknown_flag_shows_the_usage_of_its_command(capsys):
  with pytest.raises(SystemExit) as left:
    cli.main(["sample", "--promt", "a dog", "--out", "x"])
  printed = capsys.readouterr().err
  assert left.value.code == 2 and "unrecognized arguments: --promt a dog" in printed
  assert "usage: dreamjax sample" in printed and "--prompt" in printed


def test_python_users_set_up_xla_as_the_command_does(tmp_path):
  code = """
import os
os.environ.pop("XLA_FLAGS", None)
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
os.environ["XDG_CACHE_HOME"] = "OUT"
import dreamjax
dreamjax.prepare_xla()
import jax
print(jax.config.jax_compilation_cache_dir, os.environ.get("XLA_FLAGS"))
os.environ["XLA_FLAGS"] = "--xla_cpu_experimental_ynn_fusion_type=reduce"
dreamjax.prepare_xla()
assert os.environ["XLA_FLAGS"] == "--xla_cpu_experimental_ynn_fusion_type=reduce"
""".replace("OUT", str(tmp_path))
  assert in_a_new_process(code).startswith(f"{tmp_path}/dreamjax/xla ")
