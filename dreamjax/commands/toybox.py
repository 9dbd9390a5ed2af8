"""`dreamjax toybox`: renders images of the toybox."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import itertools
import pathlib
from typing import Any

from etils import epy

from dreamjax.errors import UserError, user_errors
from dreamjax.toybox import vocabulary

with epy.lazy_imports():
  import jax
  import numpy as np
  import tqdm

  from dreamjax.data import contact_sheet, image_folder
  from dreamjax.toybox import captions, labels, source

SPLITS = ("train", "subjects", "combinations", "styles")  # as `source.SPLITS`
_BATCH = 16  # images rendered at once
_ON_SHEET = 256  # images on the contact sheet, at most


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("toybox", help="render images of the toybox, with captions and labels")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for PNGs, metadata.jsonl and sheet.png")
  parser.add_argument("--n", type=int, help="number of images (default 64; with --subject 5)")
  parser.add_argument("--seed", type=int, default=0, help="of the images (default 0)")
  parser.add_argument("--class", dest="cls", help=f"only this class: {', '.join(vocabulary.CLASSES)}")
  parser.add_argument("--subject", type=int, help="photos of the toy with this number, of the class --class")
  parser.add_argument("--context", help=f"only in this context: {', '.join(vocabulary.CONTEXTS)}")
  parser.add_argument("--style", help=f"all in this style: {', '.join(vocabulary.STYLES)}")
  parser.add_argument("--split", default="train", help=f"one of {', '.join(SPLITS)} (default train)")
  parser.add_argument("--resolution", type=int, default=128, help="height and width in pixels (default 128)")
  parser.add_argument("--overwrite", action="store_true", help="replace images that --out holds already")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  on_sheet: list[np.ndarray] = []
  images = _images(args)

  def watched() -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    for image, line in tqdm.tqdm(images, unit=" images", desc="rendering", disable=None):
      if len(on_sheet) < _ON_SHEET:
        on_sheet.append(image)
      yield image, line

  lines = image_folder.write(args.out, watched(), overwrite=args.overwrite)
  sheet = contact_sheet.contact_sheet(on_sheet, [line["text"] for line in lines[: len(on_sheet)]])
  sheet.save(args.out / "sheet.png")
  print(f"{len(lines)} images, {image_folder.METADATA} and sheet.png are in {args.out}")


def _images(args: argparse.Namespace) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
  """Checks the arguments and returns pairs of an image and its metadata, which are rendered as they are read."""
  n = args.n if args.n is not None else (5 if args.subject is not None else 64)
  if n < 1 or args.resolution < 1:
    raise UserError(f"--n and --resolution must be at least 1, not {n} and {args.resolution}")
  if args.subject is not None and args.cls is None:
    raise UserError("--subject is the number of a toy within its class: name the class with --class")
  with user_errors():
    variety = source.Variety(
      classes=(args.cls,) if args.cls else vocabulary.CLASSES,
      contexts=(args.context,) if args.context else vocabulary.CONTEXTS,
      **({"styles": (args.style,), "style_share": 1.0} if args.style else {}),
    )
    if args.subject is not None:
      batches = [source.photos(args.cls, args.subject, n, args.seed, args.resolution, args.style or "photo")]
    else:
      split = "styles" if args.style in vocabulary.HELD_OUT_STYLES else args.split
      stream = source.Stream(args.seed, split, variety, args.resolution)
      size = min(n, _BATCH)  # the last batch may hold more than n: a smaller one would be compiled anew
      batches = (stream.draw(range(i, i + size)) for i in range(0, n, size))

  def images() -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    for frame, batch in batches:
      rgb, known = jax.device_get((frame.rgb, batch))
      for i, image in enumerate(rgb):
        yield image, _metadata(jax.tree.map(lambda x, i=i: x[i], known))

  return itertools.islice(images(), n)


def _metadata(shown: labels.Labels) -> dict[str, Any]:
  """Returns the caption and the labels of an image, by name."""
  content, style = captions.split(shown)
  return {"text": captions.caption(shown), "content": content, "style_descriptor": style, **labels.names(shown)}
