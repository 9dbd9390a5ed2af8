"""`dreamjax demo`: teaches the toybox's cascade a toy that it was not trained on, and generates images of that toy."""

from __future__ import annotations

import argparse
import importlib.resources
import json
import pathlib
import shutil
import time
from typing import Any

from etils import epy

from dreamjax.commands import configs
from dreamjax.errors import UserError, user_errors

with epy.lazy_imports():
  import jax
  import numpy as np
  from PIL import Image
  import rich

  from dreamjax import generators
  from dreamjax.commands import truth
  from dreamjax.data import contact_sheet, image_folder
  from dreamjax.eval import evaluate, report
  from dreamjax.methods import dreambooth
  from dreamjax.toybox import captions, source, vocabulary

CLASS, SUBJECT, PHOTOS = "dog", 2**20 + 7, 4  # the first 2^20 subjects are for training
#: The prompts, with the labels that their images should have: six contexts, two styles, an accessory, another colour.
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
  parser = commands.add_parser("demo", help="from four photos of a toy to new images of it: every step, in minutes")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for everything that is written")
  parser.add_argument("--class", dest="cls", default=CLASS, help="the toy's class (%(default)s)")
  parser.add_argument("--subject", type=int, default=SUBJECT, help="the toy's number (%(default)s)")
  parser.add_argument("--n", type=int, default=2, help="images of each prompt (%(default)s)")
  parser.add_argument(
    "--config", default="configs/dreambooth.py:captioned", metavar="FILE[:VARIANT]", help="the recipe (%(default)s)"
  )
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command, or resumes a run that was interrupted."""
  began = time.perf_counter()
  with user_errors():
    vocabulary.index(vocabulary.CLASSES, args.cls, "class")
  if args.n < 1:
    raise UserError(f"--n must be at least 1, not {args.n}")
  config = configs.load(args.config, args.overrides)
  name = f"{args.cls}-{args.subject}"
  photos = args.out / "photos" / name
  photograph(args.cls, args.subject, photos)
  photo_lines = [json.loads(line) for line in (photos / image_folder.METADATA).read_text().splitlines()]

  generator, params = generators.load("toybox-cascade", put=generators.to_device)
  theta = dreambooth.dreambooth(generator, params, photos, args.cls, workdir=args.out / "run", config=config)
  prompts = {prompt.replace("dog", args.cls): labels for prompt, labels in PROMPTS.items()}
  plain = [f"a {args.cls}"] * PHOTOS
  prior_set = sorted((args.out / "run" / "priors").glob("*/0*.png"))  # the base model's images of the same prompt
  before = [np.asarray(Image.open(path)) / 255 for path in prior_set[:PHOTOS]]
  if not before:  # the recipe has no prior set
    before = list(generators.sample(generator, params, plain, seed=config.seed) / 2 + 0.5)
  after = generators.sample(generator, params, list(prompts), theta=theta, n=args.n, seed=config.seed) / 2 + 0.5

  lines = [{"text": prompt, "class": args.cls, **labels} for prompt, labels in prompts.items() for _ in range(args.n)]
  image_folder.write(args.out / "images" / name, zip(after, lines, strict=True), overwrite=True)
  result = evaluate.evaluate(args.out / "images", args.out / "photos", truth.toybox_encoders(), identifier="[V]")
  report.write(result, args.out)
  originals = [np.asarray(Image.open(photos / line["file_name"])) / 255 for line in photo_lines]
  images = [np.asarray(image) for image in (*originals, *before, *after)]
  texts = [
    *[f"photo {i + 1}: {line['text']}" for i, line in enumerate(photo_lines)],
    *[f"{prompt} (before)" for prompt in plain[: len(before)]],
    *[line["text"] for line in lines],
  ]
  contact_sheet.contact_sheet(images, texts, columns=2 * PHOTOS).save(args.out / "sheet.png")
  minutes = (time.perf_counter() - began) / 60
  rich.print(report.table(result))
  print(f"sheet.png, sheet.html and scores.json are in {args.out}; it took {minutes:.1f} minutes")


def photograph(cls: str, subject: int, folder: pathlib.Path) -> None:
  """Writes photos of a toy with captions into a folder: copies those installed with dreamjax, or else renders them.

  Raises:
    UserError: if there is no such toy.
  """
  installed = pathlib.Path(str(importlib.resources.files("dreamjax.toybox") / "photos")) / f"{cls}-{subject}"
  if installed.is_dir():
    shutil.copytree(installed, folder, dirs_exist_ok=True)
    return
  with user_errors():
    frame, labels = source.photos(cls, subject, PHOTOS)
  texts = [f"a [V] {cls} {captions.where(int(context))}" for context in labels.context]
  lines = ({"text": text, "class": cls} for text in texts)
  image_folder.write(folder, zip(jax.device_get(frame.rgb), lines, strict=True), overwrite=True)
