"""`dreamjax feedback`: a page in the browser on which a person selects images from StyleDrop's pool."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
import dataclasses
import importlib.util
import io
import json
import logging
import os
import pathlib
from typing import Any

from etils import epy

from dreamjax.errors import UserError

with epy.lazy_imports():
  import flask
  from PIL import Image
  import werkzeug.serving

  from dreamjax.data import image_folder
  from dreamjax.methods import styledrop

DRAFT = "draft.json"
HOST, PORT = "127.0.0.1", 7860
_TEMPLATE = pathlib.Path(__file__).with_name("feedback.html")
_THUMBNAIL = 256  # pixels of the longer side


@dataclasses.dataclass(frozen=True)
class Shown:
  """An image of the pool.

  Attributes:
    name: of its file.
    text: its prompt.
    score: CLIP's, or None.
  """

  name: str
  text: str
  score: float | None


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("feedback", help="select images for StyleDrop's second round, in a browser")
  parser.add_argument(
    "--pool", type=pathlib.Path, required=True, metavar="DIR", help="as `dreamjax styledrop` wrote it"
  )
  parser.add_argument(
    "--reference",
    type=pathlib.Path,
    metavar="DIR",
    help="images of the style (default: the folder reference next to the pool)",
  )
  parser.add_argument("--most", type=int, default=10, help="images that may be selected (%(default)s)")
  parser.add_argument("--port", type=int, default=PORT, help="of the page's address (%(default)s)")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command, until it is interrupted."""
  if not 0 <= args.port < 2**16:
    raise UserError(f"--port must be from 0 to 65535, not {args.port}")
  app = make_app(args.pool, args.reference or args.pool.parent / "reference", args.most)
  logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for each request
  server = werkzeug.serving.make_server(HOST, args.port, app, threaded=True)
  print(f"select up to {args.most} images at http://{HOST}:{server.server_port}/ and save; Ctrl-C ends", flush=True)
  try:
    server.serve_forever()
  except KeyboardInterrupt:
    selection = args.pool / styledrop.SELECTION
    print(f"the selection is in {selection}" if selection.exists() else "nothing was saved")


def make_app(pool: pathlib.Path, reference: pathlib.Path, most: int) -> Any:
  """Makes the Flask app of the page, which shows the pool and writes the selection.

  It answers requests to its own host from its own pages only, and serves no files but the images of the two folders.

  Args:
    pool: a folder of images with `metadata.jsonl`.
    reference: a folder of images of the style; it need not exist.
    most: how many may be selected.

  Raises:
    FileNotFoundError: if there is no pool.
    UserError: if its metadata cannot be read, `most` is below 1, or Flask is not installed.
  """
  if importlib.util.find_spec("flask") is None:
    raise UserError("the page needs Flask: pip install 'dreamjax[feedback]'")
  if most < 1:
    raise UserError(f"--most must be at least 1, not {most}")
  shown = read_pool(pool)
  known = {image.name: pool / image.name for image in shown}
  style = sorted(path for path in reference.glob("*.png")) if reference.is_dir() else []
  app = flask.Flask(__name__, static_folder=None)

  @app.before_request
  def refuse_others() -> None:
    host = flask.request.host.rpartition(":")[0] or flask.request.host
    origin = flask.request.headers.get("Origin")
    if host not in (HOST, "localhost"):
      flask.abort(403, "this page is for the machine that it runs on")
    if origin is not None and origin != flask.request.host_url.rstrip("/"):
      flask.abort(403, "this page answers its own requests only")

  @app.after_request
  def protect(response: Any) -> Any:
    response.headers["Content-Security-Policy"] = (
      "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'unsafe-inline'; "
      "script-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response

  @app.get("/")
  def page() -> str:
    state = {
      "images": [dataclasses.asdict(image) for image in shown],
      "most": most,
      "draft": _read(pool / DRAFT) or {"chosen": [], "history": []},
      "saved": (_read(pool / styledrop.SELECTION) or {}).get("chosen"),
    }
    return flask.render_template_string(_TEMPLATE.read_text(), state=state, style=[path.name for path in style])

  @app.get("/images/<name>")
  def pool_image(name: str) -> Any:
    return _thumbnail(known[name]) if name in known else flask.abort(404)

  @app.get("/reference/<name>")
  def reference_image(name: str) -> Any:
    return _thumbnail(reference / name) if reference / name in style else flask.abort(404)

  def _thumbnail(path: pathlib.Path) -> Any:
    with Image.open(path) as opened:
      small = opened.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    small.save(data, "PNG")
    # Another pool has images of the same names: the browser asks each time whether its copy is still the same.
    response = flask.Response(data.getvalue(), mimetype="image/png", headers={"Cache-Control": "no-cache"})
    response.add_etag()
    return response.make_conditional(flask.request)

  def chosen(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) and name in known for name in names):
      flask.abort(400, "a selection names images of the pool")
    if len(set(names)) < len(names) or len(names) > most:
      flask.abort(400, f"a selection names up to {most} images, each once")
    return names

  @app.put("/draft")
  def draft() -> Any:
    sent = flask.request.get_json()
    if not isinstance(sent, dict) or not isinstance(sent.get("history"), list):
      flask.abort(400, "a draft holds the images that are selected, and earlier selections")
    _write(pool / DRAFT, {"chosen": chosen(sent.get("chosen")), "history": [chosen(past) for past in sent["history"]]})
    return {"ok": True}

  @app.post("/save")
  def save() -> Any:
    sent = flask.request.get_json()
    names = chosen(sent.get("chosen") if isinstance(sent, dict) else None)
    if not names:
      flask.abort(400, "select an image first")
    _write(pool / styledrop.SELECTION, {"chosen": names})
    return {"ok": True, "path": str(pool / styledrop.SELECTION)}

  return app


def read_pool(pool: pathlib.Path) -> list[Shown]:
  """Reads the metadata of a pool: its images, in order.

  Raises:
    FileNotFoundError: if there is no such folder, or no metadata in it, or an image is missing.
    UserError: if the metadata cannot be read, or names a file outside the folder.
  """
  path = pool / image_folder.METADATA
  if not path.is_file():
    raise FileNotFoundError(f"{pool} holds no {image_folder.METADATA}, so it is no pool of `dreamjax styledrop`")
  shown = []
  for number, line in enumerate(path.read_text().splitlines(), start=1):
    try:
      entry = json.loads(line)
      image = Shown(str(entry["file_name"]), str(entry["text"]), entry.get("score"))
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path}:{number} is not what `dreamjax styledrop` writes: {error}") from error
    if pathlib.PurePath(image.name).name != image.name:
      raise UserError(f"{path}:{number} names {image.name!r}, which is no file of this folder")
    if not (pool / image.name).is_file():
      raise FileNotFoundError(f"{path}:{number} names {image.name}, which is missing")
    shown.append(image)
  return shown


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Reads JSON; None if there is no such file."""
  return json.loads(path.read_text()) if path.is_file() else None


def _write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes JSON, complete or not at all."""
  unfinished = path.with_name(f"{path.name}.unfinished")
  unfinished.write_text(json.dumps(content) + "\n")
  os.replace(unfinished, path)
