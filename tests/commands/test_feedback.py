"""The page on which a person chooses from a pool: what it answers, and in a real browser how it is used."""

import io
import json
import shutil
import threading

import numpy as np
from PIL import Image
import pytest

from dreamjax import cli
from dreamjax.commands import feedback
from dreamjax.data import image_folder
from dreamjax.methods import styledrop

flask = pytest.importorskip("flask")


@pytest.fixture
def pool(tmp_path):
  """Twelve images of three prompts, next to the image of a style."""
  draw = np.random.default_rng(0)
  image_folder.write(tmp_path / "reference", [(draw.random((8, 8, 3)), {"text": "a cat in ink style"})])
  lines = [
    {"text": f"a {noun} in ink style", "score": round(0.1 + 0.01 * ((5 * i) % 12), 4)}
    for i, noun in enumerate(n for n in ("dog", "cat", "boat") for _ in range(4))
  ]
  image_folder.write(tmp_path / "pool", [(draw.random((8, 8, 3)), line) for line in lines])
  return tmp_path / "pool"


@pytest.fixture
def client(pool):
  return feedback.make_app(pool, pool.parent / "reference", 3).test_client()


OWN = {"base_url": "http://127.0.0.1:7860"}


def test_the_page_shows_the_pool_and_nothing_else(client, pool):
  (pool.parent / "secret.png").write_bytes((pool / "00000.png").read_bytes())
  page = client.get("/", **OWN)
  assert page.status_code == 200 and b"a boat in ink style" in page.data and b"/reference/00000.png" in page.data
  image = client.get("/images/00003.png", **OWN)
  assert image.mimetype == "image/png" and image.data[:4] == b"\x89PNG"
  assert client.get("/reference/00000.png", **OWN).status_code == 200
  for path in (
    "/images/../secret.png", "/images/..%2fsecret.png", "/images/%2e%2e%2fsecret.png", "/images/metadata.jsonl",
    "/images/00099.png", "/reference/..%2fsecret.png", "/reference/metadata.jsonl", "/etc/passwd",
  ):  # fmt: skip
    assert client.get(path, **OWN).status_code == 404, path


@pytest.mark.parametrize(
  ("host", "origin"),
  [
    ("http://evil.example:7860", None),
    ("http://127.0.0.1:7860", "http://evil.example"),
    ("http://127.0.0.1:7860", "http://127.0.0.1:9999"),
    ("http://127.0.0.1:7860", "null"),
  ],
)
def test_other_hosts_and_origins_are_refused(client, pool, host, origin):
  headers = {} if origin is None else {"Origin": origin}
  assert client.get("/", base_url=host, headers=headers).status_code == 403
  sent = client.post("/save", base_url=host, headers=headers, json={"chosen": ["00001.png"]})
  assert sent.status_code == 403 and not (pool / "selection.json").exists()


def test_what_is_saved_is_of_the_pool_and_not_too_much(client, pool):
  for chosen in (["../secret.png"], ["00000.png"] * 2, [f"0000{i}.png" for i in range(4)], [], "00000.png", None, [1]):
    assert client.post("/save", json={"chosen": chosen}, **OWN).status_code == 400, chosen
  assert client.put("/draft", json={"chosen": ["00001.png"], "history": [["x"]]}, **OWN).status_code == 400
  assert client.put("/draft", json=[], **OWN).status_code == 400
  assert client.post("/save", data="{", content_type="application/json", **OWN).status_code == 400
  assert client.post("/save", data='{"chosen": ["00001.png"]}', content_type="text/plain", **OWN).status_code == 415
  assert not (pool / "selection.json").exists() and not (pool / "draft.json").exists()
  assert client.post("/save", json={"chosen": ["00007.png", "00001.png"]}, **OWN).status_code == 200
  assert styledrop.read_selection(pool, 3) == [7, 1]


def test_a_folder_that_is_no_pool_is_refused(tmp_path, pool, capsys):
  assert cli.main(["feedback", "--pool", str(tmp_path / "none")]) == 2
  assert "holds no metadata.jsonl, so it is no pool" in capsys.readouterr().err
  assert cli.main(["feedback", "--pool", str(pool), "--port", "70000"]) == 2
  assert "--port must be from 0 to 65535, not 70000" in capsys.readouterr().err
  with pytest.raises(ValueError, match="--most must be at least 1, not 0"):
    feedback.make_app(pool, tmp_path, 0)
  lines = (pool / "metadata.jsonl").read_text().splitlines()
  for line, message in (
    ('{"text": "a dog"}', "13 is not what"),
    ('{"file_name": "../reference/00000.png", "text": "a dog"}', "no file of this folder"),
    ('{"file_name": "00044.png", "text": "a dog"}', "00044.png, which is missing"),
  ):
    (pool / "metadata.jsonl").write_text("\n".join([*lines, line]))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      feedback.make_app(pool, tmp_path, 3)


@pytest.fixture
def browser():
  webdriver = pytest.importorskip("selenium.webdriver")
  chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
  if not chromium or not driver:
    pytest.skip("NOTE: no chromium and chromedriver, so nobody tries the page in a browser")
  options = webdriver.ChromeOptions()
  options.binary_location = chromium
  for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
    options.add_argument(flag)
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
  yield found
  found.quit()


@pytest.fixture
def serve(pool):
  """serve() starts the page anew, as a restart does, and returns where it is."""
  from werkzeug.serving import make_server

  servers = []

  def start():
    while servers:
      servers.pop().shutdown()
    servers.append(make_server("127.0.0.1", 0, feedback.make_app(pool, pool.parent / "reference", 3), threaded=True))
    threading.Thread(target=servers[0].serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{servers[0].server_port}/"

  yield start
  servers.pop().shutdown()


def test_a_person_chooses_undoes_reloads_restarts_and_saves(browser, serve, pool):
  from selenium.webdriver.common.by import By
  from selenium.webdriver.common.keys import Keys
  from selenium.webdriver.support.ui import WebDriverWait

  def cards():
    return browser.find_elements(By.CLASS_NAME, "card")

  def chosen():
    return [card.get_attribute("data-name") for card in cards() if card.get_attribute("aria-pressed") == "true"]

  def press(key):
    browser.switch_to.active_element.send_keys(key)

  def drafted(names):
    path = pool / "draft.json"
    WebDriverWait(browser, 10).until(lambda _: path.exists() and json.loads(path.read_text())["chosen"] == names)

  browser.get(serve())
  assert len(cards()) == 12 and "0.150" in cards()[1].text  # the score under the image
  WebDriverWait(browser, 10).until(
    lambda _: browser.execute_script("return document.querySelector('.card img').naturalWidth") == 8
  )
  cards()[2].click()
  press(Keys.ARROW_RIGHT)  # from the third to the fourth of the first prompt
  press(Keys.ENTER)
  assert chosen() == ["00002.png", "00003.png"]
  press(Keys.ARROW_DOWN)  # below it is the fourth of the second prompt
  press(Keys.SPACE)
  assert chosen() == ["00002.png", "00003.png", "00007.png"]
  cards()[0].click()  # one too many
  assert "No more than 3" in browser.find_element(By.ID, "status").text and len(chosen()) == 3
  browser.find_element(By.ID, "undo").click()
  assert chosen() == ["00002.png", "00003.png"]
  cards()[11].click()
  drafted(["00002.png", "00003.png", "00011.png"])

  browser.refresh()
  assert chosen() == ["00002.png", "00003.png", "00011.png"]
  assert not (pool / "selection.json").exists()
  browser.get(serve())  # another process, as good as
  assert chosen() == ["00002.png", "00003.png", "00011.png"]
  press("u")
  assert chosen() == ["00002.png", "00003.png"]  # what was before is known after a restart, too
  cards()[7].click()
  browser.find_element(By.ID, "by-score").click()
  assert chosen() == ["00007.png", "00002.png", "00003.png"] and cards()[0].get_attribute("data-name") == "00007.png"
  browser.find_element(By.ID, "save").click()
  WebDriverWait(browser, 10).until(lambda _: (pool / "selection.json").exists())
  assert styledrop.read_selection(pool, 3) == [2, 3, 7]
  assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_a_pool_of_1920_images_is_usable(browser, serve, pool):
  from selenium.webdriver.common.by import By

  image = (pool / "00000.png").read_bytes()
  lines = []
  for i in range(1920):
    (pool / f"{i:05d}.png").write_bytes(image)
    lines.append(json.dumps({"file_name": f"{i:05d}.png", "text": f"prompt {i // 64}", "score": 0.5}))
  (pool / "metadata.jsonl").write_text("\n".join(lines))
  browser.get(serve())
  assert len(browser.find_elements(By.CLASS_NAME, "card")) == 1920
  loaded = "return [...document.querySelectorAll('.card img')].filter((image) => image.naturalWidth).length"
  assert browser.execute_script(loaded) < 400  # only what is near the window
  click = "document.querySelectorAll('.card')[1000].click()"
  took = browser.execute_script(f"const start = performance.now(); {click}; return performance.now() - start")
  assert took < 1000
  assert browser.find_element(By.ID, "count").text == "1"


def test_images_are_made_smaller(pool):
  Image.new("RGB", (900, 600)).save(pool / "00001.png")
  sent = feedback.make_app(pool, pool.parent / "reference", 3).test_client().get("/images/00001.png", **OWN)
  with Image.open(io.BytesIO(sent.data)) as small:
    assert small.size == (256, 171)


def test_another_pool_at_the_same_address_shows_its_own_images(client, pool, tmp_path):
  sent = client.get("/images/00000.png", **OWN)
  assert sent.headers["Cache-Control"] == "no-cache"  # so that a browser asks whether its copy is still the same
  copy = {"If-None-Match": sent.headers["ETag"]}
  assert client.get("/images/00000.png", headers=copy, **OWN).status_code == 304
  other = tmp_path / "other"
  image_folder.write(other / "pool", [(np.zeros((8, 8, 3)), {"text": "a dog in clay style", "score": 0.1})])
  anew = feedback.make_app(other / "pool", other / "reference", 3).test_client()
  changed = anew.get("/images/00000.png", headers=copy, **OWN)
  assert changed.status_code == 200 and changed.data != sent.data
