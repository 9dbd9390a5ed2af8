"""Imports go downward only: which package of dreamjax may import which, as the table says."""

import ast
from collections.abc import Iterator
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Each package or module in dreamjax/, with those that it may import besides itself.
GROUND = ("errors", "renamed", "xla", "diffusion", "masked", "parallel", "models")
DATA = ("data", "theta", "convert", *GROUND)
METHODS = ("methods", "generators", "train", "eval", *DATA)
PACKAGES = {
  "errors": (),
  "renamed": ("errors",),
  "xla": (),
  "toybox": (),
  "diffusion": (),
  "masked": (),
  "parallel": ("errors",),
  "models": ("parallel",),
  "theta": ("models", "parallel", "errors"),
  "convert": ("models", "parallel", "errors"),
  "data": DATA,
  "generators": DATA,
  "eval": DATA,
  "train": DATA,
  "methods": METHODS,
  "__init__": METHODS,
  "commands": ("__init__", "toybox", *METHODS),
  "cli": ("commands", "__init__", "toybox", *METHODS),
}


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
  """Yields (line, absolute dotted name) of all that a module of `package` imports, inside its functions too."""
  for node in ast.walk(tree):
    match node:
      case ast.Import(names=names):
        yield from ((node.lineno, alias.name) for alias in names)
      case ast.ImportFrom(module=module, names=names, level=level):
        parents = package.split(".")[: -level + 1 or None] if level else []
        yield from ((node.lineno, ".".join([*parents, *filter(None, [module]), alias.name])) for alias in names)
      case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(target)), *_]):
        if name in ("import_module", "__import__"):
          yield node.lineno, target


def offences(folder: pathlib.Path) -> list[str]:
  """The imports between the packages in `folder` that `PACKAGES` does not allow."""
  found = []
  for path in sorted(folder.rglob("*.py")):
    module = path.relative_to(folder)
    own = module.parts[0].removesuffix(".py")
    for line, name in imported(ast.parse(path.read_text()), ".".join(["dreamjax", *module.parts[:-1]])):
      package, _, target = name.partition(".")
      target = target.partition(".")[0]
      target = target if target in PACKAGES else "__init__"
      if package == "dreamjax" and target != own and target not in PACKAGES[own]:
        found.append(f"{path.relative_to(folder.parent)}:{line} imports {name}, which stands above it or apart from it")
  return found


def files(*suffixes: str) -> list[pathlib.Path]:
  """The project's own files with one of these suffixes."""
  folders = ("dreamjax", "tests", "launch", "configs", "colabs", ".ci")
  found = [path for folder in folders for path in (ROOT / folder).rglob("*")] + list(ROOT.iterdir())
  return sorted(path for path in found if path.is_file() and path.suffix in suffixes)


def test_imports_go_downward():
  assert not offences(ROOT / "dreamjax"), "\n" + "\n".join(offences(ROOT / "dreamjax"))


def test_every_package_is_in_the_table():
  packages = {path.parent.name for path in (ROOT / "dreamjax").glob("*/__init__.py")}
  modules = {path.stem for path in (ROOT / "dreamjax").glob("*.py")}
  assert packages | modules | {"cli"} == set(PACKAGES)


def test_nobody_stands_on_what_stands_on_it():
  for package, below in PACKAGES.items():
    assert all(package == other or package not in PACKAGES[other] for other in below), package


@pytest.mark.parametrize(
  ("module", "line", "name"),
  [
    ("models/unet.py", "import dreamjax.diffusion.schedules", "dreamjax.diffusion.schedules"),
    ("models/unet.py", "import numpy, dreamjax.theta as t", "dreamjax.theta"),
    ("models/unet.py", "def f():\n  from dreamjax import train", "dreamjax.train"),
    ("models/unet.py", "from dreamjax import __version__", "dreamjax.__version__"),
    ("models/unet.py", "import dreamjax", "dreamjax"),
    ("models/deep/er.py", "from ...train import loop", "dreamjax.train.loop"),
    ("masked/__init__.py", "from .. import diffusion", "dreamjax.diffusion"),
    ("theta/lora.py", "from ..convert.table import Table", "dreamjax.convert.table.Table"),
    ("toybox/scene.py", "from dreamjax.models import unet", "dreamjax.models.unet"),
    ("train/loop.py", "from dreamjax.eval import metrics", "dreamjax.eval.metrics"),
    ("methods/dreambooth.py", "from dreamjax.toybox import scene", "dreamjax.toybox.scene"),
    ("methods/dreambooth.py", "importlib.import_module('dreamjax.toybox')", "dreamjax.toybox"),
    ("__init__.py", "from . import cli", "dreamjax.cli"),
    ("__init__.py", "from .toybox import scene", "dreamjax.toybox.scene"),
  ],
)
def test_a_planted_offence_is_found(tmp_path, module, line, name):
  path = tmp_path / "dreamjax" / module
  path.parent.mkdir(parents=True)
  path.write_text(f"import jax\n\n{line}\n")
  (found,) = offences(tmp_path / "dreamjax")
  assert found.startswith(f"dreamjax/{module}:{3 + line.count(chr(10))} imports {name},")


@pytest.mark.parametrize(
  ("module", "line"),
  [
    ("models/unet.py", "from dreamjax.models.layers import Norm\nfrom . import layers\nimport jax.numpy as jnp"),
    ("models/deep/er.py", "from .. import layers\nfrom ..layers import Norm"),
    ("theta/lora.py", "from ..models import layers"),
    ("methods/dreambooth.py", "from dreamjax import data, train\nfrom dreamjax.diffusion import schedules"),
    ("cli.py", "import dreamjax\nfrom dreamjax.toybox import scene"),
  ],
)
def test_a_downward_import_is_no_offence(tmp_path, module, line):
  path = tmp_path / "dreamjax" / module
  path.parent.mkdir(parents=True)
  path.write_text(line)
  assert not offences(tmp_path / "dreamjax")


def test_no_file_names_a_place_outside_the_repository():
  places = re.compile("|".join([r"\.\./" + "shared", *(rf"(?<![\w.~-])/{top}/" for top in ("work", "home", "root"))]))
  for path in files(".py", ".sh", ".toml", ".md", ".json", ".ipynb", ""):
    for number, line in enumerate(path.read_text(errors="ignore").splitlines(), start=1):
      assert not places.search(line), f"{path.relative_to(ROOT)}:{number} names a place outside the repository: {line}"


def test_no_source_file_is_over_600_lines():
  lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files(".py", ".sh")}
  assert not {path: length for path, length in lengths.items() if length > 600}
