"""`dreamjax sample`: generates images of prompts, and writes the recipe that generates them once more."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
  from dreamjax.generators import control as controls
  from dreamjax.parallel import processes, sharding

RECIPE = "sample.json"
SAMPLERS = ("ancestral", "ddim", "dpm")  # as `generators.cascade.SAMPLERS`
DTYPES = ("float32", "bfloat16")  # as `generators.generator.DTYPES`
GAMMA = 0.6  # as `generators.branches.GAMMA`
# The fields that flags set, of `generators.Sampling` and of `generators.Decoding`.
_FIELDS = {
  "Sampling": ("steps", "sampler", "guidance", "lambda_a", "interval", "augmentation_level"),
  "Decoding": ("steps", "temperature", "lambda_a", "lambda_b"),
}


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
    help="the subject or style, as `dreamjax dreambooth` or `dreamjax styledrop` saved it; two are mixed",
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
    group.add_argument(f"--{prefix}lambda-a", type=float, help="guidance from the base model towards the theta")
    group.add_argument(f"--{prefix}lambda-b", type=float, help="of masked tokens: guidance towards the prompt")
  group.add_argument(
    "--augmentation-level",
    type=float,
    dest="sr_augmentation_level",
    help="of a cascade: noise on the low-resolution image, 0 to 1",
  )
  group.add_argument("--level", dest="old_level", help=argparse.SUPPRESS)
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
  if args.old_level is not None:
    raise UserError("--level is called --augmentation-level now")
  recipe = _read(args.recipe) if args.recipe else _recipe(args)
  mesh, dtype = devices.mesh(args), recipe.get("dtype", "float32")
  kept = "float32" if any(map(generators.is_bound_to_all, recipe["thetas"])) else dtype
  hasher = theta.Hasher()
  generator, params = devices.load(recipe["model"], mesh, dtype=kept, hasher=hasher)
  base = theta.Base(generator.name, hasher.hashes())
  _check_weights(recipe, base)
  thetas = [generators.load_theta(path, generator, params, base) for path in recipe["thetas"]]
  generator = generators.with_compute(generator, dtype, remat="none")
  control = _control(recipe, generator, mesh)
  if "samplings" not in recipe:
    recipe["samplings"] = _samplings(args, generator, thetas)
  prompts = [prompt for prompt in recipe["prompts"] for _ in range(recipe["n"])]
  processes.on_main_process(lambda: _check_free(args, recipe, len(prompts)))
  first = processes.broadcast_from_main(0 if args.overwrite else len(_lines(args.out)))  # made by an earlier call
  found = generators.batches(
    generator,
    params,
    [generators.fill_prompt(prompt, thetas) for prompt in prompts[first:]],
    thetas=[personalisation.thetas for personalisation in thetas],
    gamma=recipe["gamma"],
    samplings=_read_samplings(generator, recipe),
    negative=recipe["negative"],
    seed=recipe["seed"],
    first=first,
    batch_size=min(args.batch, len(prompts)),
    mesh=mesh,
    control=control,
  )
  batches = processes.until_preempted(found)
  if not processes.is_main_process():
    for _ in batches:  # which the main process writes
      pass
    return
  done = [image_folder.read(image_folder.member(args.out, line["file_name"])) for line in _lines(args.out)[:first]]

  def images():
    (args.out / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n")
    with tqdm.tqdm(total=len(prompts), initial=first, unit=" images", desc="sampling", disable=None) as bar:
      for batch in batches:
        for image in batch[-1]:
          done.append(image / 2 + 0.5)
          bar.update()
          yield done[-1], {"text": prompts[len(done) - 1]}

  image_folder.write(args.out, images(), overwrite=args.overwrite, first=first)
  contact_sheet.contact_sheet(done, prompts, columns=min(recipe["n"], 8)).save(args.out / "grid.png")
  print(f"{len(prompts)} images, grid.png and {RECIPE} are in {args.out}")


def _lines(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a folder's metadata, one for each image."""
  path = folder / image_folder.METADATA
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _check_free(args: argparse.Namespace, recipe: dict[str, Any], count: int) -> None:
  """Raises FileExistsError where there are images already, unless they are the first of this very recipe."""
  if args.overwrite or not (args.out / image_folder.METADATA).exists():
    return
  known = args.out / RECIPE
  if known.exists() and _read(known) == json.loads(json.dumps(recipe)) and len(_lines(args.out)) < count:
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
  """The ControlNet and the image that a recipe names, if it does."""
  if (fields := recipe.get("control")) is None:
    return None
  image, put = fields.get("image", fields.get("picture")), sharding.param_putter(mesh)  # "picture" in earlier versions
  return generators.load_control(fields["network"], image, generator, scale=fields["scale"], put=put)


def _read(path: pathlib.Path) -> dict[str, Any]:
  """Reads a recipe; UserError if the file holds none."""
  try:
    recipe = json.loads(path.read_text())
    if missing := {"model", "thetas", "gamma", "prompts", "n", "seed", "negative", "samplings"} - set(recipe):
      raise UserError(f"it lacks {', '.join(sorted(missing))}")
  except (ValueError, TypeError) as error:
    raise UserError(f"{path} is no recipe of `dreamjax sample`: {error}") from error
  return recipe


def _check_weights(recipe: dict[str, Any], base: theta.Base) -> None:
  """Writes the hashes of the model's weights into a new recipe; UserError if those of an old one are others."""
  wanted = recipe.setdefault("weights", dict(base.hashes))
  if other := [part for part in base.hashes if wanted.get(part) != base.hashes[part]]:
    problem = f"the recipe is of other weights than {recipe['model']} has now: {', '.join(other)} differ"
    raise UserError(f"{problem}; delete its field weights to sample with these")


def _read_samplings(generator: generators.Cascade | generators.Masked, recipe: dict[str, Any]) -> list[Any]:
  """The samplings of a recipe; UserError where a field is unknown or has no valid value."""
  read = type(generator.stages[0].sampling).read
  try:
    with user_errors():
      return [read(fields) for fields in recipe["samplings"]]
  except TypeError as error:
    raise UserError(f"the recipe's samplings do not fit this model: {error}") from error


def _samplings(
  args: argparse.Namespace,
  generator: generators.Cascade | generators.Masked,
  personalisations: Sequence[theta.Personalisation],
) -> list[dict[str, Any]]:
  """Each stage's default sampling, changed where the command line says so.

  The command line may not name fields of the other family, nor of super-resolution stages where there are none.
  """
  samplings = generators.default_samplings(generator, personalisations)
  fields = _FIELDS[type(samplings[0]).__name__]

  def refuse(dest: str, known: str) -> None:
    if getattr(args, dest, None) is not None:
      flag = dest.replace("sr_augmentation", "augmentation").replace("_", "-")
      raise UserError(f"--{flag} has no meaning for this model: it has {known}")

  for name in {name for some in _FIELDS.values() for name in some} - set(fields):
    refuse(name, ", ".join(fields))
    refuse(f"sr_{name}", ", ".join(fields))
  if len(samplings) == 1:
    for name in fields:
      refuse(f"sr_{name}", "no super-resolution stage")
  found = []
  for i, sampling in enumerate(samplings):
    given = {name: getattr(args, f"sr_{name}" if i else name, None) for name in fields}
    with user_errors():
      changed = dataclasses.replace(sampling, **{name: value for name, value in given.items() if value is not None})
    found.append(dataclasses.asdict(changed))
  return found
