"""`dreamjax toybox`: draws images of the toybox."""

import argparse
from collections.abc import Iterator
import itertools
import pathlib
from typing import Any

import jax
import numpy as np
import tqdm

from dreamjax.data import image_folder
from dreamjax.data.contact_sheet import contact_sheet
from dreamjax.toybox import captions, source, vocabulary
from dreamjax.toybox.labels import Labels, names

_BATCH = 16  # images drawn at once
_ON_SHEET = 256  # at most so many images on a contact sheet


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("toybox", help="draw images of the toybox, with captions and labels")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for PNGs, metadata.jsonl and sheet.png")
  parser.add_argument("--n", type=int, help="how many images (default 64; with --subject 5)")
  parser.add_argument("--seed", type=int, default=0, help="other seeds draw other images (default 0)")
  parser.add_argument("--class", dest="cls", help=f"only this class: {', '.join(vocabulary.CLASSES)}")
  parser.add_argument("--subject", type=int, help="photos of the toy with this number, of the class --class")
  parser.add_argument("--context", help=f"only here: {', '.join(vocabulary.CONTEXTS)}")
  parser.add_argument("--style", help=f"all in this style: {', '.join(vocabulary.STYLES)}")
  parser.add_argument("--split", default="train", help=f"one of {', '.join(source.SPLITS)} (default train)")
  parser.add_argument("--resolution", type=int, default=128, help="height and width in pixels (default 128)")
  parser.add_argument("--overwrite", action="store_true", help="replace images that --out holds already")
  parser.set_defaults(run=run)


def _images(args: argparse.Namespace) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
  """What `dreamjax toybox` was asked for, drawn as it is read: pairs of an image and its metadata."""
  n = args.n if args.n is not None else (5 if args.subject is not None else 64)
  if n < 1 or args.resolution < 1:
    raise ValueError(f"--n and --resolution must be at least 1, not {n} and {args.resolution}")
  if args.subject is not None and args.cls is None:
    raise ValueError("--subject names one toy of a class: say which class with --class")
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
    size = min(n, _BATCH)  # the last batch may draw more than are asked for: a program of its own would cost more
    batches = (stream.draw(range(i, i + size)) for i in range(0, n, size))

  def frames() -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    for frame, labels in batches:
      images, known = jax.device_get((frame.rgb, labels))
      for i, image in enumerate(images):
        yield image, _metadata(jax.tree.map(lambda x, i=i: x[i], known))

  return itertools.islice(frames(), n)


def _metadata(labels: Labels) -> dict[str, Any]:
  """Caption and labels of an image, by name."""
  content, style = captions.split(labels)
  return {"text": captions.caption(labels), "content": content, "style_descriptor": style, **names(labels)}


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  images: list[np.ndarray] = []
  frames = _images(args)

  def watched() -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    for image, known in tqdm.tqdm(frames, unit=" images", desc="drawing", disable=None):
      if len(images) < _ON_SHEET:
        images.append(image)
      yield image, known

  lines = image_folder.write(args.out, watched(), overwrite=args.overwrite)
  contact_sheet(images, [line["text"] for line in lines[: len(images)]]).save(args.out / "sheet.png")
  print(f"{len(lines)} images, {image_folder.METADATA} and sheet.png are in {args.out}")
