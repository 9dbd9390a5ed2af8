"""`dreamjax feedback`: a page in the browser on which a person chooses images from StyleDrop's pool."""

import argparse
from collections.abc import Mapping
import dataclasses
import io
import json
import logging
import os
import pathlib
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreamjax.data.image_folder import METADATA
from dreamjax.methods.styledrop import SELECTION

if TYPE_CHECKING:
  import flask

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
    score: by CLIP, or None.
  """

  name: str
  text: str
  score: float | None


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("feedback", help="choose images for StyleDrop's second round, in a browser")
  parser.add_argument("--pool", type=pathlib.Path, required=True, metavar="DIR", help="as `dreamjax styledrop` left it")
  parser.add_argument(
    "--reference", type=pathlib.Path, metavar="DIR", help="images of the style (default: the folder beside the pool)"
  )
  parser.add_argument("--most", type=int, default=10, help="images that may be chosen (%(default)s)")
  parser.add_argument("--port", type=int, default=PORT, help="(%(default)s)")
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command, until it is interrupted."""
  import werkzeug.serving

  logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for each request
  app = make_app(args.pool, args.reference or args.pool.parent / "reference", args.most)
  server = werkzeug.serving.make_server(HOST, args.port, app, threaded=True)
  print(f"choose up to {args.most} images at http://{HOST}:{server.server_port}/ and save; Ctrl-C ends", flush=True)
  try:
    server.serve_forever()
  except KeyboardInterrupt:
    print(f"the selection is in {args.pool / SELECTION}" if (args.pool / SELECTION).exists() else "nothing was saved")


def make_app(pool: pathlib.Path, reference: pathlib.Path, most: int) -> "flask.Flask":
  """The page, what it shows and what it writes.

  It answers requests for its own host from its own pages only, and knows no file but the images of the two folders.

  Args:
    pool: a folder of images with `metadata.jsonl`.
    reference: a folder of images of the style; it need not be there.
    most: how many may be chosen.

  Raises:
    FileNotFoundError: if there is no pool.
    ValueError: if its metadata cannot be read, `most` is below 1, or Flask is not installed.
  """
  try:
    import flask
  except ImportError as error:
    raise ValueError("the page takes Flask: pip install '.[feedback]'") from error
  if most < 1:
    raise ValueError(f"at least one image is to be chosen, not {most}")
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
      "saved": (_read(pool / SELECTION) or {}).get("chosen"),
    }
    return flask.render_template_string(_TEMPLATE.read_text(), state=state, style=[path.name for path in style])

  @app.get("/images/<name>")
  def image(name: str) -> Any:
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
    return flask.Response(data.getvalue(), mimetype="image/png", headers={"Cache-Control": "max-age=3600"})

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
      flask.abort(400, "a draft holds what is chosen, and what was before")
    _write(pool / DRAFT, {"chosen": chosen(sent.get("chosen")), "history": [chosen(past) for past in sent["history"]]})
    return {"ok": True}

  @app.post("/save")
  def save() -> Any:
    sent = flask.request.get_json()
    names = chosen(sent.get("chosen") if isinstance(sent, dict) else None)
    if not names:
      flask.abort(400, "choose an image first")
    _write(pool / SELECTION, {"chosen": names})
    return {"ok": True, "path": str(pool / SELECTION)}

  return app


def read_pool(pool: pathlib.Path) -> list[Shown]:
  """The images of a pool, as its metadata has them.

  Raises:
    FileNotFoundError: if there is no such folder, or no metadata in it, or an image is missing.
    ValueError: if the metadata cannot be read, or names a file outside the folder.
  """
  path = pool / METADATA
  if not path.is_file():
    raise FileNotFoundError(f"{pool} holds no {METADATA}, so it is no pool of `dreamjax styledrop`")
  shown = []
  for number, line in enumerate(path.read_text().splitlines(), start=1):
    try:
      entry = json.loads(line)
      image = Shown(str(entry["file_name"]), str(entry["text"]), entry.get("score"))
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f"{path}:{number} is not what `dreamjax styledrop` writes: {error}") from error
    if pathlib.PurePath(image.name).name != image.name:
      raise ValueError(f"{path}:{number} names {image.name!r}, which is no file of this folder")
    if not (pool / image.name).is_file():
      raise FileNotFoundError(f"{path}:{number} names {image.name}, which is missing")
    shown.append(image)
  return shown


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """What was written, or None."""
  return json.loads(path.read_text()) if path.is_file() else None


def _write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes JSON, complete or not at all."""
  unfinished = path.with_name(f"{path.name}.unfinished")
  unfinished.write_text(json.dumps(content) + "\n")
  os.replace(unfinished, path)
