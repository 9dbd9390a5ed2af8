"""Writes the results of `evaluate`: a JSON file, a table for the terminal, and a contact sheet in one HTML file."""

import base64
from collections.abc import Mapping
import io
import json
import pathlib
from typing import Any

import jinja2
import numpy as np
from PIL import Image
import rich.markup
import rich.table

from dreamjax.data.photos import read_image

#: The files that `write` writes.
SCORES, SHEET = "scores.json", "sheet.html"

_TEMPLATE = pathlib.Path(__file__).with_name("report.html")
_ORDER_BY = ("dino", "clip_i", "clip_t")
_GENERATED_SIDE, _REFERENCE_SIDE = 128, 96  # pixels of the longer side
_REFERENCES = 6  # largest number of photos of a subject next to each image


def write(result: Mapping[str, Any], out: pathlib.Path) -> None:
  """Writes `SCORES`, and `SHEET`: each image next to photos of its subject, with its prompt and scores, worst first.

  Args:
    result: what `evaluate` returned; the images must still exist.
    out: a folder, created if missing.
  """
  out.mkdir(parents=True, exist_ok=True)
  (out / SCORES).write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
  (out / SHEET).write_text(sheet(result))


def table(result: Mapping[str, Any]) -> rich.table.Table:
  """Formats the scores as a table for `rich`."""
  settings = result["settings"]
  level = settings["interval"]["level"]
  caption = f"identifier in CLIP-T's prompts: {settings['identifier']}"
  lines = rich.table.Table(title=rich.markup.escape(_title(result)), caption=rich.markup.escape(caption))
  for heading, justify in (
    ("", "left"), ("mean", "right"), (f"{level:.0%} interval", "right"), ("n", "right"), ("note", "left")
  ):  # fmt: skip
    lines.add_column(heading, justify=justify)
  for score in result["scores"].values():
    lines.add_row(*(rich.markup.escape(cell) for cell in _cells(score)))
  return lines


def sheet(result: Mapping[str, Any]) -> str:
  """Renders the contact sheet: one HTML page without scripts or external resources, with images as data URIs."""
  settings = result["settings"]
  generated, reference = pathlib.Path(settings["generated"]), pathlib.Path(settings["reference"])
  classes: dict[str, str] = {}  # each photo is on the page once, as the background of a CSS class of its own
  cards = []
  for image in worst_first(result["images"]):
    photos = sorted(result["subjects"][image["subject"]]["references"], key=image["nearest"]["file"].__ne__)
    names = [classes.setdefault(photo, f"r{len(classes)}") for photo in photos[:_REFERENCES]]
    cards.append({**image, "uri": _uri(generated / image["file"], _GENERATED_SIDE), "photos": names})
  environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
  return environment.from_string(_TEMPLATE.read_text()).render(
    result=result,
    title=_title(result),
    yes_or_no=[name for name in result["scores"] if name == "retrieval" or name.startswith("accuracy_")],
    lines=[_cells(score) for score in result["scores"].values()],
    labels={name: score["label"] for name, score in result["scores"].items()},
    photos={name: _uri(reference / photo, _REFERENCE_SIDE) for photo, name in classes.items()},
    cards=cards,
    order_by=[result["scores"][name]["label"] for name in _order_by(result["images"])],
  )


def worst_first(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Sorts images by their mean rank in those of DINO, CLIP-I and CLIP-T that they have, the lowest first."""
  scores = np.array([[image["scores"][name] for name in _order_by(images)] for image in images])
  ranks = np.argsort(np.argsort(scores, axis=0, kind="stable"), axis=0, kind="stable")
  return [images[i] for i in np.argsort(ranks.mean(axis=1), kind="stable")]


def _title(result: Mapping[str, Any]) -> str:
  counts = [(len(result["images"]), "image"), (len(result["subjects"]), "subject")]
  images, subjects = (f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
  return f"{images} of {subjects}, scored by {result['settings']['encoders']}"


def _order_by(images: list[dict[str, Any]]) -> list[str]:
  return [name for name in _ORDER_BY if name in images[0]["scores"]]


def _cells(score: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
  """Formats a score's row of the table: name with the direction in which it is better, mean, interval, n, note."""
  arrow = {1: " ↑", -1: " ↓", 0: ""}[score["better"]]
  mean = "–" if score["mean"] is None else f"{score['mean']:.3f}"
  interval = "" if score["low"] is None else f"{score['low']:.3f} – {score['high']:.3f}"
  return score["label"] + arrow, mean, interval, str(score["n"]), score.get("note", "")


def _uri(path: pathlib.Path, side: int) -> str:
  """Encodes an image as a data URI, scaled down to the size at which it is shown."""
  image = Image.fromarray(read_image(path))
  image.thumbnail((side, side), Image.Resampling.LANCZOS)
  data = io.BytesIO()
  image.save(data, "JPEG", quality=85)
  return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
