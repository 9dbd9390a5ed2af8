"""`dreamjax sample`: draws pictures of prompts, and keeps the recipe by which they can be drawn again."""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np
import tqdm

from dreamjax import generators
from dreamjax.data import image_folder
from dreamjax.data.contact_sheet import contact_sheet
from dreamjax.generators import cascade as cascades
from dreamjax.generators.cascade import SAMPLERS, Cascade, Sampling
from dreamjax.theta import Personalisation

RECIPE = "sample.json"


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("sample", help="draw pictures of prompts")
  parser.add_argument("--model", default="toybox-cascade", metavar="NAME|DIR", help="the generator (%(default)s)")
  parser.add_argument("--prompt", action="append", default=[], help="may be given several times; [V]: the subject")
  parser.add_argument(
    "--theta", type=pathlib.Path, metavar="FILE", help="the subject, as `dreamjax dreambooth` saved it"
  )
  parser.add_argument("--n", type=int, default=4, help="pictures of each prompt (%(default)s)")
  parser.add_argument("--seed", type=int, default=0, help="other seeds draw other pictures (%(default)s)")
  parser.add_argument("--negative", default="", help="what guidance leads away from (default: nothing)")
  base = parser.add_argument_group("the base stage (default: as the model says)")
  base.add_argument("--guidance", type=float, help="weight w of u + w (c - u); 1 is no guidance")
  base.add_argument(
    "--interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="guide only at these times, of 0 to 1"
  )
  base.add_argument("--sampler", choices=SAMPLERS)
  base.add_argument("--steps", type=int)
  sr = parser.add_argument_group("stages of super-resolution (default: as the model says)")
  sr.add_argument("--sr-guidance", type=float)
  sr.add_argument("--sr-sampler", choices=SAMPLERS)
  sr.add_argument("--sr-steps", type=int)
  sr.add_argument("--level", type=float, help="noise on the small picture, 0 to 1")
  parser.add_argument("--batch", type=int, default=8, help="pictures drawn at once (%(default)s)")
  parser.add_argument("--recipe", type=pathlib.Path, metavar="FILE", help=f"draw what a {RECIPE} says once more")
  parser.add_argument("--out", type=pathlib.Path, required=True, help=f"for PNGs, grid.png and {RECIPE}")
  parser.add_argument("--overwrite", action="store_true", help="replace pictures that --out holds already")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  recipe = _read(args.recipe) if args.recipe else _recipe(args)
  generator, params = generators.load(recipe["model"])
  params = jax.device_put(params)
  theta = generators.load_theta(recipe["theta"], generator, params) if recipe["theta"] else None
  if "samplings" in recipe:
    samplings = [Sampling(**entry) for entry in recipe["samplings"]]
  else:
    samplings = _samplings(args, generator, theta)
  recipe["samplings"] = [dataclasses.asdict(sampling) for sampling in samplings]
  prompts = [prompt for prompt in recipe["prompts"] for _ in range(recipe["n"])]
  texts = cascades.filled(prompts, theta)
  if args.out.exists() and (args.out / image_folder.METADATA).exists() and not args.overwrite:
    raise FileExistsError(f"{args.out} holds pictures already: choose another folder, or say --overwrite")
  drawn: list[np.ndarray] = []

  def pictures():
    stages = cascades.batches(
      generator,
      params,
      texts,
      thetas=theta.thetas if theta else {},
      samplings=samplings,
      negative=recipe["negative"],
      seed=recipe["seed"],
      size=min(args.batch, len(texts)),
    )
    with tqdm.tqdm(total=len(texts), unit=" pictures", desc="drawing", disable=None) as bar:
      for batch in stages:
        for picture in batch[-1]:
          drawn.append(picture / 2 + 0.5)
          bar.update()
          yield drawn[-1], {"text": prompts[len(drawn) - 1]}

  lines = image_folder.write(args.out, pictures(), overwrite=args.overwrite)
  contact_sheet(drawn, [line["text"] for line in lines], columns=min(recipe["n"], 8)).save(args.out / "grid.png")
  (args.out / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n")
  print(f"{len(lines)} pictures, grid.png and {RECIPE} are in {args.out}")


def _recipe(args: argparse.Namespace) -> dict[str, Any]:
  if not args.prompt:
    raise ValueError("say what to draw: --prompt, or --recipe of pictures that were drawn before")
  if args.n < 1 or args.batch < 1:
    raise ValueError(f"--n and --batch must be at least 1, not {args.n} and {args.batch}")
  return {
    "model": args.model,
    "theta": str(args.theta) if args.theta else None,
    "prompts": args.prompt,
    "n": args.n,
    "seed": args.seed,
    "negative": args.negative,
  }


def _read(path: pathlib.Path) -> dict[str, Any]:
  """A recipe; ValueError if it is none."""
  try:
    recipe = json.loads(path.read_text())
    if missing := {"model", "theta", "prompts", "n", "seed", "negative", "samplings"} - set(recipe):
      raise ValueError(f"it lacks {', '.join(sorted(missing))}")
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path} is no recipe of `dreamjax sample`: {error}") from error
  return recipe


def _samplings(args: argparse.Namespace, generator: Cascade, theta: Personalisation | None) -> list[Sampling]:
  """Each stage's own sampling, changed where the command line says so."""
  base = {"guidance": args.guidance, "interval": args.interval, "sampler": args.sampler, "steps": args.steps}
  larger = {"guidance": args.sr_guidance, "sampler": args.sr_sampler, "steps": args.sr_steps, "level": args.level}
  asked = [{key: value for key, value in fields.items() if value is not None} for fields in (base, larger)]
  own = zip(generator.stages, cascades.own_samplings(generator, theta), strict=True)
  return [dataclasses.replace(sampling, **asked[stage.unet.low_res]) for stage, sampling in own]
