"""`dreamjax sample`: draws images of prompts, and keeps the recipe by which they can be drawn again."""

import argparse
from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

import jax
import tqdm

from dreamjax import generators
from dreamjax.commands import devices
from dreamjax.data import image_folder
from dreamjax.data.contact_sheet import contact_sheet
from dreamjax.errors import UserError
from dreamjax.generators.branches import GAMMA
from dreamjax.generators.cascade import SAMPLERS, Cascade, Sampling
from dreamjax.generators.control import ImageControl
from dreamjax.generators.generator import DTYPES, with_compute
from dreamjax.generators.masked import Decoding, Masked
from dreamjax.parallel import processes, sharding
from dreamjax.theta import Personalisation

RECIPE = "sample.json"
# The fields that flags set.
_FIELDS = {
  Sampling: ("steps", "sampler", "guidance", "lambda_a", "interval", "augmentation_level"),
  Decoding: ("steps", "temperature", "lambda_a", "lambda_b"),
}


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("sample", help="draw images of prompts")
  parser.add_argument("--model", default="toybox-cascade", metavar="NAME|DIR", help="the generator (%(default)s)")
  parser.add_argument("--prompt", action="append", default=[], help="may be given several times; [V]: the subject")
  parser.add_argument(
    "--theta",
    type=pathlib.Path,
    action="append",
    default=[],
    metavar="FILE",
    help="the subject or style, as `dreamjax dreambooth` or `dreamjax styledrop` saved it; two are mixed by --gamma",
  )
  parser.add_argument("--gamma", type=float, help=f"of two thetas, the share of the second, 0 to 1 ({GAMMA})")
  group = parser.add_argument_group("an image to follow, of generators that draw latents")
  group.add_argument("--controlnet", metavar="NAME|DIR", help="the ControlNet, in diffusers' layout")
  group.add_argument("--control", type=pathlib.Path, metavar="FILE", help="edges, a pose or what else it takes")
  group.add_argument("--control-scale", type=float, help="of what the ControlNet adds; at 0 it adds nothing (1)")
  parser.add_argument("--n", type=int, default=4, help="images of each prompt (%(default)s)")
  parser.add_argument("--seed", type=int, default=0, help="other seeds draw other images (%(default)s)")
  parser.add_argument("--negative", default="", help="what guidance leads away from (default: nothing)")
  for prefix, title in (("", "the base stage"), ("sr-", "stages of super-resolution")):
    group = parser.add_argument_group(f"{title} (default: as the model says)")
    group.add_argument(f"--{prefix}steps", type=int)
    group.add_argument(f"--{prefix}sampler", choices=SAMPLERS, help="of a cascade")
    group.add_argument(f"--{prefix}guidance", type=float, help="of a cascade: weight w of u + w (c - u); 1 is none")
    group.add_argument(
      f"--{prefix}interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of a cascade: when to guide, of 0 to 1"
    )
    group.add_argument(f"--{prefix}temperature", type=float, help="of masked tokens: of the choice of those to keep")
    group.add_argument(f"--{prefix}lambda-a", type=float, help="guidance from the base model to the theta")
    group.add_argument(f"--{prefix}lambda-b", type=float, help="of masked tokens: guidance to the prompt")
  group.add_argument(
    "--augmentation-level",
    type=float,
    dest="sr_augmentation_level",
    help="of a cascade: noise on the small image, 0 to 1",
  )
  parser.add_argument(
    "--batch", type=int, default=8, help="images drawn at once, or as many more as --mesh divides (%(default)s)"
  )
  parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of products and convolutions (%(default)s)")
  parser.add_argument("--recipe", type=pathlib.Path, metavar="FILE", help=f"draw what a {RECIPE} says once more")
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
  generator = with_compute(generator, recipe.get("dtype", "float32"), remat="none")
  control = _control(recipe, generator, mesh)
  if "samplings" not in recipe:
    recipe["samplings"] = _samplings(args, generator, thetas)
  prompts = [prompt for prompt in recipe["prompts"] for _ in range(recipe["n"])]
  batch_size = min(args.batch, len(prompts))
  processes.on_main_process(lambda: _check_free(args, recipe, len(prompts)))
  first = processes.broadcast_from_main(0 if args.overwrite else len(_lines(args.out)))  # sampled by an earlier call
  read = type(generator.stages[0].sampling).read
  found = generators.batches(
    generator,
    params,
    [generators.fill_prompt(prompt, thetas) for prompt in prompts[first:]],
    thetas=[personalisation.thetas for personalisation in thetas],
    gamma=recipe["gamma"],
    samplings=[read(fields) for fields in recipe["samplings"]],
    negative=recipe["negative"],
    seed=recipe["seed"],
    first=first,
    batch_size=batch_size,
    mesh=mesh,
    control=control,
  )
  batches = processes.until_preempted(found)
  if not processes.is_main_process():
    for _ in batches:  # what the first process writes
      pass
    return
  drawn = [image_folder.read(image_folder.member(args.out, line["file_name"])) for line in _lines(args.out)[:first]]

  def images():
    (args.out / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n")
    with tqdm.tqdm(total=len(prompts), initial=first, unit=" images", desc="drawing", disable=None) as bar:
      for batch in batches:
        for image in batch[-1]:
          drawn.append(image / 2 + 0.5)
          bar.update()
          yield drawn[-1], {"text": prompts[len(drawn) - 1]}

  image_folder.write(args.out, images(), overwrite=args.overwrite, first=first)
  contact_sheet(drawn, prompts, columns=min(recipe["n"], 8)).save(args.out / "grid.png")
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
    raise UserError("say what to draw: --prompt, or --recipe of images that were drawn before")
  if args.n < 1 or args.batch < 1:
    raise UserError(f"--n and --batch must be at least 1, not {args.n} and {args.batch}")
  control = {}
  if (args.controlnet is None) != (args.control is None):
    raise UserError("--controlnet and --control are said together: a ControlNet, and the image that it sees")
  if args.control is not None:
    scale = 1.0 if args.control_scale is None else args.control_scale
    control = {"control": {"network": args.controlnet, "image": str(args.control), "scale": scale}}
  elif args.control_scale is not None:
    raise UserError("--control-scale is of a ControlNet, and there is no --controlnet")
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


def _control(recipe: dict[str, Any], generator: Cascade | Masked, mesh: jax.sharding.Mesh) -> ImageControl | None:
  """What a recipe says that images follow, if it does."""
  if (said := recipe.get("control")) is None:
    return None
  put = sharding.param_putter(mesh)
  return generators.load_control(said["network"], said["image"], generator, scale=said["scale"], put=put)


def _read(path: pathlib.Path) -> dict[str, Any]:
  """A recipe; ValueError if it is none."""
  try:
    recipe = json.loads(path.read_text())
    if missing := {"model", "thetas", "gamma", "prompts", "n", "seed", "negative", "samplings"} - set(recipe):
      raise UserError(f"it lacks {', '.join(sorted(missing))}")
  except (ValueError, TypeError) as error:
    raise UserError(f"{path} is no recipe of `dreamjax sample`: {error}") from error
  return recipe


def _samplings(
  args: argparse.Namespace, generator: Cascade | Masked, personalisations: Sequence[Personalisation]
) -> list[dict[str, Any]]:
  """Each stage's default sampling, changed where the command line says so.

  The command line may not name fields of the other family, nor of super-resolution stages where there are none.
  """
  family, other = (Decoding, Sampling) if isinstance(generator, Masked) else (Sampling, Decoding)
  fields, others = _FIELDS[family], _FIELDS[other]

  def refuse(dest: str, known: str) -> None:
    if getattr(args, dest, None) is not None:
      raise UserError(f"--{dest.replace('_', '-')} has no meaning for this model: it has {known}")

  for name in set(others) - set(fields):
    refuse(name, ", ".join(fields))
    refuse(f"sr_{name}", ", ".join(fields))
  if len(generator.stages) == 1:
    for name in fields:
      refuse(f"sr_{name}", "no super-resolution stage")
  samplings = []
  for i, sampling in enumerate(generators.default_samplings(generator, personalisations)):
    given = {name: getattr(args, f"sr_{name}" if i else name, None) for name in fields}
    changes = {name: value for name, value in given.items() if value is not None}
    samplings.append(dataclasses.asdict(dataclasses.replace(sampling, **changes)))
  return samplings
