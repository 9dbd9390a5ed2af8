"""The command line: `dreamjax <command>`. With `configs/` and `launch/`, the only place that knows flags."""

import argparse
from collections.abc import Iterator, Sequence
import itertools
import os
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import tqdm

from dreamjax.data import image_folder
from dreamjax.eval.contact_sheet import contact_sheet
from dreamjax.toybox import captions, source, vocabulary
from dreamjax.toybox.labels import Labels, names

_BATCH = 16  # pictures drawn at once
_ON_SHEET = 256  # at most so many pictures on a contact sheet


def _toybox_pictures(args: argparse.Namespace) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
  """What `dreamjax toybox` was asked for, drawn as it is read: pairs of a picture and its metadata."""
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

  def pictures() -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    for frame, labels in batches:
      images, known = jax.device_get((frame.rgb, labels))
      for i, image in enumerate(images):
        yield image, _toybox_metadata(jax.tree.map(lambda x, i=i: x[i], known))

  return itertools.islice(pictures(), n)


def _toybox_metadata(labels: Labels) -> dict[str, Any]:
  """Caption and labels of a picture, by name."""
  content, style = captions.split(labels)
  return {"text": captions.caption(labels), "content": content, "style_descriptor": style, **names(labels)}


def _toybox(args: argparse.Namespace) -> None:
  images: list[np.ndarray] = []
  pictures = _toybox_pictures(args)

  def watched() -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    for image, known in tqdm.tqdm(pictures, unit=" pictures", desc="drawing", disable=None):
      if len(images) < _ON_SHEET:
        images.append(image)
      yield image, known

  lines = image_folder.write(args.out, watched(), overwrite=args.overwrite)
  contact_sheet(images, [line["text"] for line in lines[: len(images)]]).save(args.out / "sheet.png")
  print(f"{len(lines)} pictures, {image_folder.METADATA} and sheet.png are in {args.out}")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="dreamjax", description="Personalised image generation in JAX.")
  commands = parser.add_subparsers(dest="command", required=True)

  toybox = commands.add_parser("toybox", help="draw pictures of the toybox, with captions and labels")
  toybox.add_argument("--out", type=pathlib.Path, required=True, help="folder for PNGs, metadata.jsonl and sheet.png")
  toybox.add_argument("--n", type=int, help="how many pictures (default 64; with --subject 5)")
  toybox.add_argument("--seed", type=int, default=0, help="other seeds draw other pictures (default 0)")
  toybox.add_argument("--class", dest="cls", help=f"only this class: {', '.join(vocabulary.CLASSES)}")
  toybox.add_argument("--subject", type=int, help="photos of the toy with this number, of the class --class")
  toybox.add_argument("--context", help=f"only here: {', '.join(vocabulary.CONTEXTS)}")
  toybox.add_argument("--style", help=f"all in this style: {', '.join(vocabulary.STYLES)}")
  toybox.add_argument("--split", default="train", help=f"one of {', '.join(source.SPLITS)} (default train)")
  toybox.add_argument("--resolution", type=int, default=128, help="height and width in pixels (default 128)")
  toybox.add_argument("--overwrite", action="store_true", help="replace pictures that --out holds already")
  toybox.set_defaults(run=_toybox)
  return parser


def _cache_compilations() -> None:
  """Keeps compiled programs between runs, unless JAX was told where to."""
  if jax.config.jax_compilation_cache_dir is None:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "dreamjax" / "xla"))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command and returns the exit status. What a user can mend is one line on standard error, no traceback."""
  args = _parser().parse_args(argv)
  _cache_compilations()
  try:
    args.run(args)
  except (ValueError, OSError) as error:
    print(f"dreamjax {args.command}: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
