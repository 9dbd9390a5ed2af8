"""`dreamjax demo`: teaches the toybox's cascade a toy that it has never seen, and draws that toy everywhere."""

import argparse
import importlib.resources
import json
import pathlib
import shutil
import time
from typing import Any

import jax
import numpy as np
from PIL import Image
import rich

from dreamjax import generators
from dreamjax.commands import configs, truth
from dreamjax.data import image_folder
from dreamjax.data.contact_sheet import contact_sheet
from dreamjax.eval import report
from dreamjax.eval.evaluate import evaluate
from dreamjax.methods import dreambooth
from dreamjax.toybox import source, vocabulary
from dreamjax.toybox.captions import where

CLASS, NUMBER, PHOTOS = "dog", source.TRAIN_SUBJECTS + 7, 4
#: What the toy is drawn as: six contexts, two styles, an accessory, another colour.
PROMPTS = {
  "a [V] dog in the snow": {"context": "snow"},
  "a [V] dog on the beach": {"context": "beach"},
  "a [V] dog in the jungle": {"context": "jungle"},
  "a [V] dog with a city in the background": {"context": "city"},
  "a [V] dog on top of a purple rug in a forest": {"context": "purple rug in a forest"},
  "a [V] dog with the Eiffel Tower in the background": {"context": "tower"},
  "a watercolor painting of a [V] dog": {"style": "watercolor painting"},
  "a pixel art of a [V] dog": {"style": "pixel art"},
  "a [V] dog wearing a santa hat": {"accessory": "santa hat"},
  "a purple [V] dog": {"colour": "purple"},
}


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("demo", help="from four photos of a toy to images of it: every step, in minutes")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for all that is made")
  parser.add_argument("--class", dest="cls", default=CLASS, help="the toy's class (%(default)s)")
  parser.add_argument("--subject", type=int, default=NUMBER, help="the toy's number (%(default)s)")
  parser.add_argument("--n", type=int, default=2, help="images of each prompt (%(default)s)")
  parser.add_argument(
    "--config", default="configs/dreambooth.py:captioned", metavar="FILE[:VARIANT]", help="the recipe (%(default)s)"
  )
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command, or goes on with it where it was cut off."""
  began = time.perf_counter()
  vocabulary.index(vocabulary.CLASSES, args.cls, "class")
  if args.n < 1:
    raise ValueError(f"--n must be at least 1, not {args.n}")
  config = configs.load(args.config, args.overrides)
  name = f"{args.cls}-{args.subject}"
  photos = args.out / "photos" / name
  photograph(args.cls, args.subject, photos)
  seen = [json.loads(line) for line in (photos / image_folder.METADATA).read_text().splitlines()]

  generator, params = generators.load("toybox-cascade", put=generators.to_device)
  theta = dreambooth.dreambooth(generator, params, photos, args.cls, workdir=args.out / "run", config=config)
  prompts = {prompt.replace("dog", args.cls): labels for prompt, labels in PROMPTS.items()}
  plain = [f"a {args.cls}"] * PHOTOS
  prior_set = sorted((args.out / "run" / "priors").glob("*/0*.png"))  # the base model's answers to the same prompt
  before = [np.asarray(Image.open(path)) / 255 for path in prior_set[:PHOTOS]]
  if not before:  # the recipe has no images of the class
    before = list(generators.sample(generator, params, plain, seed=config.seed) / 2 + 0.5)
  drawn = generators.sample(generator, params, list(prompts), theta=theta, n=args.n, seed=config.seed)

  known = [{"text": prompt, "class": args.cls, **labels} for prompt, labels in prompts.items() for _ in range(args.n)]
  image_folder.write(args.out / "images" / name, zip(drawn / 2 + 0.5, known, strict=True), overwrite=True)
  result = evaluate(args.out / "images", args.out / "photos", truth.toybox_encoders(), identifier="[V]")
  report.write(result, args.out)
  originals = [np.asarray(Image.open(photos / photo["file_name"])) / 255 for photo in seen]
  sheet = [*originals, *before, *(drawn / 2 + 0.5)]
  captions = [
    *[f"photo {i + 1}: {photo['text']}" for i, photo in enumerate(seen)],
    *[f"{prompt} (before)" for prompt in plain[: len(before)]],
    *[entry["text"] for entry in known],
  ]
  contact_sheet([np.asarray(image) for image in sheet], captions, columns=2 * PHOTOS).save(args.out / "sheet.png")
  minutes = (time.perf_counter() - began) / 60
  rich.print(report.table(result))
  print(f"sheet.png, sheet.html and scores.json are in {args.out}; it took {minutes:.1f} minutes")


def photograph(cls: str, subject: int, folder: pathlib.Path) -> None:
  """Photos of a toy, with captions, into a folder: copied if dreamjax brings them, or else rendered."""
  brought = pathlib.Path(str(importlib.resources.files("dreamjax.toybox") / "photos")) / f"{cls}-{subject}"
  if brought.is_dir():
    shutil.copytree(brought, folder, dirs_exist_ok=True)
    return
  frame, labels = source.photos(cls, subject, PHOTOS)
  texts = [f"a [V] {cls} {where(int(context))}" for context in labels.context]
  seen = ({"text": text, "class": cls} for text in texts)
  image_folder.write(folder, zip(jax.device_get(frame.rgb), seen, strict=True), overwrite=True)
