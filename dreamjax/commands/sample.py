"""`dreamjax sample`: generates images of prompts, and writes the recipe that generates them once more."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import json
import pathlib
from typing import Any

from etils import epy

from dreamjax.commands import devices
from dreamjax.errors import UserError, user_errors

with epy.lazy_imports():
  import jax
  import tqdm

  from dreamjax import generators, theta
  from dreamjax.data import contact_sheet, image_folder
  from dreamjax.generators import cascade as cascades
  from dreamjax.generators import control as controls
  from dreamjax.generators import masked
  from dreamjax.masked import guidance
  from dreamjax.parallel import sharding

RECIPE = "sample.json"
SAMPLERS = ("ancestral", "ddim", "dpm")  # as `generators.cascade.SAMPLERS`
DTYPES = ("float32", "bfloat16")  # as `generators.generator.DTYPES`
GAMMA = 0.6  # as `generators.masked.GAMMA`


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("sample", help="generate images of prompts")
  parser.add_argument("--model", default="toybox-cascade", metavar="NAME|DIR", help="the generator (%(default)s)")
  parser.add_argument("--prompt", action="append", default=[], help="may be repeated; [V] is the subject")
  parser.add_argument(
    "--theta",
    type=pathlib.Path,
    action="append",
    default=[],
    metavar="FILE",
    help="the subject or style, as `dreamjax dreambooth` or `dreamjax styledrop` saved it; masked tokens take two",
  )
  parser.add_argument("--gamma", type=float, help=f"weight of the second of two thetas, 0 to 1 ({GAMMA})")
  group = parser.add_argument_group("a control image, for latent generators")
  group.add_argument("--controlnet", metavar="NAME|DIR", help="the ControlNet, in diffusers' layout")
  group.add_argument("--control", type=pathlib.Path, metavar="FILE", help="its input image: edges, a pose or the like")
  group.add_argument("--control-scale", type=float, help="of the ControlNet's output; 0 turns it off (1)")
  parser.add_argument("--n", type=int, default=4, help="images of each prompt (%(default)s)")
  parser.add_argument("--seed", type=int, default=0, help="of the images' noise (%(default)s)")
  parser.add_argument(
    "--negative", default="", help="the negative prompt, that guidance leads away from (default: empty)"
  )
  for prefix, title in (("", "the base stage"), ("sr-", "the super-resolution stages")):
    group = parser.add_argument_group(f"{title} (default: the model's own)")
    group.add_argument(f"--{prefix}steps", type=int)
    group.add_argument(f"--{prefix}sampler", choices=SAMPLERS, help="of a cascade")
    group.add_argument(f"--{prefix}guidance", type=float, help="of a cascade: weight w of u + w (c - u); 1 is none")
    group.add_argument(
      f"--{prefix}interval",
      type=float,
      nargs=2,
      metavar=("LOW", "HIGH"),
      help="of a cascade: times at which to guide, within 0 and 1",
    )
    group.add_argument(f"--{prefix}temperature", type=float, help="of masked tokens: of the choice of tokens to keep")
    group.add_argument(f"--{prefix}lambda-a", type=float, help="of masked tokens: guidance towards the theta")
    group.add_argument(f"--{prefix}lambda-b", type=float, help="of masked tokens: guidance towards the prompt")
  group.add_argument(
    "--level", type=float, dest="sr_level", help="of a cascade: augmentation level of the low-resolution image, 0 to 1"
  )
  parser.add_argument(
    "--batch", type=int, default=8, help="images generated at once, rounded up to what --mesh divides (%(default)s)"
  )
  parser.add_argument(
    "--dtype", choices=DTYPES, default="float32", help="of matrix products and convolutions (%(default)s)"
  )
  parser.add_argument(
    "--recipe", type=pathlib.Path, metavar="FILE", help=f"generate the images of a {RECIPE} once more"
  )
  parser.add_argument("--out", type=pathlib.Path, required=True, help=f"for PNGs, grid.png and {RECIPE}")
  parser.add_argument("--overwrite", action="store_true", help="replace images that --out holds already")
  devices.add(parser)
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  recipe = _read(args.recipe) if args.recipe else _recipe(args)
  mesh = devices.mesh(args)
  generator, params = devices.load(recipe["model"], mesh)
  thetas = [generators.load_theta(path, generator, params) for path in recipe["thetas"]]
  generator = generators.with_compute(generator, recipe.get("dtype", "float32"), remat="none")
  control = _control(recipe, generator, mesh)
  family: _Cascade | _Masked
  if isinstance(generator, generators.Masked):
    family = _Masked(generator, params, thetas)
  else:
    family = _Cascade(generator, params, thetas, control)
  if "samplings" not in recipe:
    recipe["samplings"] = family.samplings(args)
  prompts = [prompt for prompt in recipe["prompts"] for _ in range(recipe["n"])]
  size = min(args.batch, len(prompts))
  processes.on_main_process(lambda: _check_free(args, recipe, len(prompts)))
  first = processes.broadcast_from_main(
    0 if args.overwrite else len(_lines(args.out))
  )  # what a call that was cut off has drawn
  batches = processes.until_preempted(family.batches(prompts[first:], recipe, first, size, mesh))
  if not processes.is_main_process():
    for _ in batches:  # what the first process writes
      pass
    return
  drawn = [image_folder.read(args.out / line["file_name"]) for line in _lines(args.out)[:first]]

  def images():
    (args.out / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n")
    with tqdm.tqdm(total=len(prompts), initial=first, unit=" images", desc="drawing", disable=None) as bar:
      for batch in batches:
        for image in batch[-1]:
          drawn.append(image / 2 + 0.5)
          bar.update()
          yield drawn[-1], {"text": prompts[len(drawn) - 1]}

  image_folder.write(args.out, images(), overwrite=args.overwrite, first=first)
  contact_sheet.contact_sheet(drawn, prompts, columns=min(recipe["n"], 8)).save(args.out / "grid.png")
  print(f"{len(prompts)} images, grid.png and {RECIPE} are in {args.out}")


def _lines(folder: pathlib.Path) -> list[dict[str, Any]]:
  """What a folder's metadata says of each image."""
  path = folder / image_folder.METADATA
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _check_free(args: argparse.Namespace, recipe: dict[str, Any], count: int) -> None:
  """Raises FileExistsError where there are images already, unless they are the first of this very recipe."""
  if args.overwrite or not (args.out / image_folder.METADATA).exists():
    return
  told = args.out / RECIPE
  if told.exists() and _read(told) == json.loads(json.dumps(recipe)) and len(_lines(args.out)) < count:
    return
  raise FileExistsError(f"{args.out} holds images already: choose another folder, or say --overwrite")


def _recipe(args: argparse.Namespace) -> dict[str, Any]:
  if not args.prompt:
    raise UserError("pass --prompt, or --recipe with the sample.json of earlier images")
  if args.n < 1 or args.batch < 1:
    raise UserError(f"--n and --batch must be at least 1, not {args.n} and {args.batch}")
  control = {}
  if (args.controlnet is None) != (args.control is None):
    raise UserError("--controlnet and --control go together: a ControlNet and its input image")
  if args.control is not None:
    scale = 1.0 if args.control_scale is None else args.control_scale
    control = {"control": {"network": args.controlnet, "image": str(args.control), "scale": scale}}
  elif args.control_scale is not None:
    raise UserError("--control-scale needs --controlnet")
  return {
    "model": args.model,
    "thetas": [str(path) for path in args.theta],
    "gamma": GAMMA if args.gamma is None else args.gamma,
    "prompts": args.prompt,
    "n": args.n,
    "seed": args.seed,
    "negative": args.negative,
    "dtype": args.dtype,
    **control,
  }


def _control(
  recipe: dict[str, Any], generator: generators.Cascade | generators.Masked, mesh: jax.sharding.Mesh
) -> controls.ImageControl | None:
  """What a recipe says that images follow, if it does."""
  if (said := recipe.get("control")) is None:
    return None
  put = sharding.param_putter(mesh)
  return generators.load_control(said["network"], said["image"], generator, scale=said["scale"], put=put)


def _read(path: pathlib.Path) -> dict[str, Any]:
  """Reads a recipe; UserError if the file holds none."""
  try:
    recipe = json.loads(path.read_text())
    if missing := {"model", "thetas", "gamma", "prompts", "n", "seed", "negative", "samplings"} - set(recipe):
      raise ValueError(f"it lacks {', '.join(sorted(missing))}")
  except (ValueError, TypeError) as error:
    raise UserError(f"{path} is no recipe of `dreamjax sample`: {error}") from error
  return recipe


def _entries(kind: type, recipe: dict[str, Any]) -> list[Any]:
  """Returns the samplings of a recipe; UserError where a field is unknown or has no valid value."""
  try:
    with user_errors():
      return [kind(**entry) for entry in recipe["samplings"]]
  except TypeError as error:
    raise UserError(f"the recipe's samplings do not fit this model: {error}") from error


class _Cascade:
  """How a cascade is asked."""

  fields = ("steps", "sampler", "guidance", "interval", "level")

  def __init__(
    self,
    generator: generators.Cascade,
    params: Any,
    thetas: list[theta.Personalisation],
    control: controls.ImageControl | None,
  ) -> None:
    if len(thetas) > 1:
      raise UserError("a cascade takes one theta; only generators of masked tokens take two")
    self._generator, self._params = generator, params
    self._theta, self._control = thetas[0] if thetas else None, control

  def samplings(self, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Each stage's own sampling, changed where the command line says so."""
    own = cascades.default_samplings(self._generator, self._theta)
    larger = [stage.is_super_resolution for stage in self._generator.stages]
    return _changed(args, own, larger, self.fields, _Masked.fields)

  def batches(
    self, prompts: list[str], recipe: dict[str, Any], first: int, size: int, mesh: jax.sharding.Mesh
  ) -> Iterator[Any]:
    """Images from `first` on; ValueError at once for what cannot be drawn."""
    return cascades.batches(
      self._generator,
      self._params,
      cascades.fill_prompts(prompts, self._theta),
      thetas=self._theta.thetas if self._theta else {},
      control=self._control,
      samplings=_entries(cascades.Sampling, recipe),
      negative=recipe["negative"],
      seed=recipe["seed"],
      first=first,
      size=size,
      mesh=mesh,
    )


class _Masked:
  """How a generator of masked tokens is asked."""

  fields = ("steps", "temperature", "lambda_a", "lambda_b")

  def __init__(self, generator: generators.Masked, params: Any, thetas: list[theta.Personalisation]) -> None:
    self._generator, self._params, self._thetas = generator, params, thetas

  def samplings(self, args: argparse.Namespace) -> list[dict[str, Any]]:
    """As of a cascade."""
    own = [stage.decoding for stage in self._generator.stages]
    return _changed(args, own, [i > 0 for i in range(len(own))], self.fields, _Cascade.fields)

  def batches(
    self, prompts: list[str], recipe: dict[str, Any], first: int, size: int, mesh: jax.sharding.Mesh
  ) -> Iterator[Any]:
    """As of a cascade."""
    with user_errors():
      guidance.two_thetas(recipe["gamma"], 0.0, 0.0)  # refuses a gamma outside of 0 to 1
    return masked.batches(
      self._generator,
      self._params,
      [masked.wish(prompt, self._thetas, recipe["gamma"]) for prompt in prompts],
      decodings=_entries(masked.Decoding, recipe),
      negative=recipe["negative"],
      seed=recipe["seed"],
      first=first,
      size=size,
      mesh=mesh,
    )


def _changed(
  args: argparse.Namespace, own: Sequence[Any], larger: Sequence[bool], fields: Sequence[str], others: Sequence[str]
) -> list[dict[str, Any]]:
  """Samplings, changed where the command line says so.

  It may not speak of the other family's fields, nor of super-resolution where there is none.
  """

  def refuse(dest: str, has: str) -> None:
    if getattr(args, dest, None) is not None:
      flag = "level" if dest == "sr_level" else dest.replace("_", "-")
      raise UserError(f"--{flag} has no meaning for this model: it has {has}")

  for name in set(others) - set(fields):
    refuse(name, ", ".join(fields))
    refuse(f"sr_{name}", ", ".join(fields))
  if not any(larger):
    for name in fields:
      refuse(f"sr_{name}", "no stage of super-resolution")
  prefixes = ["sr_" if is_larger else "" for is_larger in larger]
  asked = [{name: getattr(args, prefix + name, None) for name in fields} for prefix in prefixes]
  changes = [{name: value for name, value in some.items() if value is not None} for some in asked]
  with user_errors():
    return [dataclasses.asdict(dataclasses.replace(x, **some)) for x, some in zip(own, changes, strict=True)]
