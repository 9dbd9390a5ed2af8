"""What evaluation writes: scores.json, the table, and an HTML page that needs nothing and believes nobody."""

import base64
import html.parser
import io
import json
import re

import numpy as np
from PIL import Image
import pytest
import rich.console

from dreamjax.eval import report
from dreamjax.eval.evaluate import evaluate

EVIL = '<script>alert("red")</script> & [bold]toy[/bold]'


class Page(html.parser.HTMLParser):
  """All tags with their attributes, in order; the text; and tags that are opened but not closed."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.text, self.open = [], "", []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ("meta", "img"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data

  def all(self, tag):
    return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def result(folder, paint, encoders):
  known = [{"text": EVIL if i == 1 else "a red toy"} for i in range(3)]
  made = folder("made", [paint(c, i, (300, 200)) for i, c in enumerate(["red", "green", "red"])], known)
  real = folder("real", [paint("red", i, (150, 150)) for i in range(10, 18)])
  return evaluate(made, real, encoders)


def test_the_page_is_self_contained(result):
  text = report.sheet(result)
  page = Page(text)
  assert not page.open and not page.all("script") and not page.all("link")
  assert [attrs["src"].split(",")[0] for attrs in page.all("img")] == ["data:image/jpeg;base64"] * 3
  assert not re.search(r"https?:|//[a-z]|@import|\bon[a-z]+=", re.sub(r"data:[^\"')]*", "", text.replace(EVIL, "")))
  assert "default-src 'none'" in page.all("meta")[2]["content"]


def test_prompts_are_escaped(result):
  text = report.sheet(result)
  assert "<script" not in text and EVIL in Page(text).text


def test_images_are_thumbnails_and_each_photo_is_on_the_page_once(result):
  text = report.sheet(result)
  page = Page(text)
  data = [base64.b64decode(attrs["src"].split(",")[1]) for attrs in page.all("img")]
  assert [Image.open(io.BytesIO(image)).size for image in data] == [(85, 128)] * 3
  assert re.findall(r"^\.(r\d+) ", text, re.MULTILINE) == [f"r{i}" for i in range(text.count("background-image"))]
  shown = [attrs["class"] for attrs in page.all("span")]
  assert len(shown) == 3 * 6 and 6 <= len(set(shown)) == text.count("background-image") <= 8


def test_the_nearest_photo_comes_first(result, tmp_path):
  text = report.sheet(result)
  data = dict(re.findall(r"^\.(r\d+) .*base64,([^)]*)", text, re.MULTILINE))
  first = [attrs["class"] for attrs in Page(text).all("span")][::6]
  for image, name in zip(report.worst_first(result["images"]), first, strict=True):
    shown = Image.open(io.BytesIO(base64.b64decode(data[name])))
    photos = {
      path.name: Image.open(path).resize(shown.size, Image.Resampling.LANCZOS) for path in (tmp_path / "real").iterdir()
    }
    differences = {file: np.abs(np.asarray(photo, float) - np.asarray(shown)).mean() for file, photo in photos.items()}
    assert min(differences, key=differences.get) == image["nearest"]["file"]


def test_the_worst_come_first_and_every_score_is_told(result):
  page = Page(report.sheet(result))
  assert [attrs["alt"] for attrs in page.all("img")][0] == "01.png"  # which is green
  order = report.worst_first(result["images"])
  assert [image["file"] for image in order[1:]] in (["00.png", "02.png"], ["02.png", "00.png"])
  assert "undefined: there is but one subject" in page.text
  for score in result["scores"].values():
    assert score["label"] in page.text


def test_images_without_prompts_and_names_with_markup(folder, paint, encoders):
  made = folder("<b>[red]", [paint("red", 0)])
  text = report.sheet(evaluate(made, folder("real", [paint("red", 1)]), encoders))
  assert "no prompt" in Page(text).text and "<b>" not in text


def test_the_table_tells_scores_intervals_and_notes(result):
  result["settings"]["identifier"] = "'[V]', stripped"
  console = rich.console.Console(width=160, file=io.StringIO())
  console.print(report.table(result))
  text = console.file.getvalue()
  dino = result["scores"]["dino"]
  assert f"{dino['mean']:.3f}" in text and f"{dino['low']:.3f} – {dino['high']:.3f}" in text
  assert "PRES ↓" in text and "CLIP-T ↑" in text and "95% interval" in text
  assert "there is but one subject to choose from" in text and "'[V]', stripped" in text


def test_files_are_written(result, tmp_path):
  report.write(result, tmp_path / "a" / "b")
  assert json.loads((tmp_path / "a" / "b" / "scores.json").read_text()) == result
  assert (tmp_path / "a" / "b" / "sheet.html").read_text() == report.sheet(result)
