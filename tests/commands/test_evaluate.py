"""`dreamjax evaluate`, with small random encoders and with those that come with dreamjax."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import safetensors.numpy

from dreamjax import cli
from dreamjax.convert import pretrained
from dreamjax.data import tokenizer as tokenizers
from dreamjax.data.preprocessing import whole
from dreamjax.eval import encoders
from dreamjax.models.clip import CLIP, TextTower, VisionTower
from dreamjax.models.vit import ViT

SMALL = {"width": 16, "depth": 1, "heads": 2, "mlp": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Random encoders: clip and dino, which sees other sizes than clip."""
  folder = tmp_path_factory.mktemp("encoders")
  tokenizer = tokenizers.train(["a red dog on the beach", "a cat"], 300)
  clip = CLIP(
    VisionTower(image=16, patch=8, projection=8, **SMALL),
    TextTower(vocab=len(tokenizer), length=12, projection=8, eos=1, **SMALL),
  )
  vit = ViT(image=24, patch=8, **SMALL)
  for name, model, inputs in (
    ("clip", clip, (jnp.zeros((1, 16, 16, 3)), jnp.ones((1, 12), jnp.int32))),
    ("dino", vit, (jnp.zeros((1, 24, 24, 3)),)),
  ):
    pretrained.save(folder / name, model, model.init(jax.random.key(0), *inputs)["params"], np.float32)
    whole(inputs[0].shape[1]).save(folder / name)
  tokenizer.save_pretrained(folder / "clip")
  return folder


@pytest.fixture
def images(tmp_path):
  """Two subjects with two generated and two real images each."""
  draw = np.random.default_rng(0)
  for kind in ("made", "real"):
    for subject in ("dog1", "dog2"):
      (tmp_path / kind / subject).mkdir(parents=True)
      for i in range(2):
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / kind / subject / f"{i}.png")
        if kind == "made":
          (tmp_path / kind / subject / f"{i}.txt").write_text(f"a red [V] dog on beach {i}")
  return tmp_path


def run(images, *more):
  arguments = ["--generated", images / "made", "--reference", images / "real", "--out", images / "out", *more]
  return cli.main(["evaluate", *map(str, arguments)])


def test_scores_a_table_and_a_sheet(folder, images, capsys):
  assert run(images, "--encoders", folder, "--identifier", "[V]") == 0
  result = json.loads((images / "out/scores.json").read_text())
  assert result["settings"]["encoders"] == folder.name and "[V]" in result["settings"]["identifier"]
  assert {"dino", "clip_i", "clip_t", "retrieval", "copies"} <= set(result["scores"])
  assert len(result["images"]) == 4
  assert "DINO" in capsys.readouterr().out
  assert (images / "out/sheet.html").read_text().count("<img") >= 4


def test_the_encoders_are_the_models_in_the_folder(folder):
  loaded = encoders.load(folder)
  image = np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)
  vit, params = pretrained.load(folder / "dino")
  expected = vit.apply({"params": jax.device_put(params)}, jnp.asarray(image / 127.5 - 1, jnp.float32)[None])[0][:, 0]
  np.testing.assert_allclose(loaded.dino([image]), expected, atol=1e-5)
  many = loaded.dino([image] * 40)
  assert many.shape == (40, 16)
  np.testing.assert_allclose(many, np.broadcast_to(expected, many.shape), atol=1e-5)
  assert loaded.clip_text(["a dog", "a cat"]).shape == (2, 8) and loaded.probe is None and loaded.words == {}


def test_on_a_mesh_the_scores_are_the_same(folder, images, monkeypatch):
  lying, put = [], encoders.processes.put
  monkeypatch.setattr(encoders.processes, "put", lambda *args: lying.append(put(*args)) or lying[-1])
  prompted = "--encoders", folder, "--identifier", "[V]"
  assert run(images, *prompted) == 0
  one = json.loads((images / "out/scores.json").read_text())
  assert {len(x.devices()) for x in lying} == {1}
  lying.clear()
  assert run(images, *prompted, "--mesh", "data=2,fsdp=4") == 0
  assert {len(x.devices()) for x in lying} == {8}
  rows = [x.addressable_shards[0].data.shape[0] for x in lying if not x.is_fully_replicated]
  assert rows and set(rows) == {32 // 8}
  many = json.loads((images / "out/scores.json").read_text())
  assert numbers(many) == pytest.approx(numbers(one), abs=1e-5)


def numbers(tree):
  """The numbers of a result, by their paths."""
  leaves = jax.tree_util.tree_leaves_with_path({key: tree[key] for key in ("scores", "images")})
  return {jax.tree_util.keystr(path): x for path, x in leaves if isinstance(x, float)}


def test_lpips_is_used_where_its_weights_are(folder, tmp_path):
  draw, channels = np.random.default_rng(0), (3, 64, 192, 384, 256, 256)
  kernels = dict(zip((0, 3, 6, 8, 10), (11, 5, 3, 3, 3), strict=True))
  tensors = {}
  for i, (place, side) in enumerate(kernels.items()):
    shape = (channels[i + 1], channels[i], side, side)
    tensors[f"features.{place}.weight"] = draw.normal(0, (channels[i] * side**2) ** -0.5, shape).astype(np.float32)
    tensors[f"features.{place}.bias"] = np.zeros(channels[i + 1], np.float32)
    tensors[f"lin{i}.model.1.weight"] = draw.random((1, channels[i + 1], 1, 1)).astype(np.float32)
  for part in ("clip", "dino"):
    (tmp_path / part).symlink_to(folder / part)
  safetensors.numpy.save_file(tensors, tmp_path / "lpips.safetensors")
  compare = encoders.load(tmp_path).lpips
  one, other = draw.integers(0, 256, (2, 64, 64, 3), np.uint8)
  near = np.clip(one.astype(int) + draw.integers(-9, 10, one.shape), 0, 255).astype(np.uint8)
  same, close, far = compare([(one, one), (one, near), (one, other)])
  assert same < 1e-6 < close < far
  with pytest.raises(ValueError, match="one size"):
    compare([(one, other[:32])])


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda p, f: (p / "made/dog1/0.png").write_text("no image"), "0.png cannot be read"),
    (lambda p, f: [x.unlink() for x in (p / "real").rglob("*.png")], "no images"),
    (lambda p, f: (p / "real/dog2").rename(p / "real/cat"), "no real images of dog2"),
  ],
)
def test_bad_images_are_refused_in_one_line(folder, images, capsys, spoil, message):
  spoil(images, folder)
  assert run(images, "--encoders", folder) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith("dreamjax evaluate: ") and message in error


def test_prompts_of_the_wrong_number_are_refused(folder, images, capsys):
  (images / "prompts.txt").write_text("a dog\n")
  assert run(images, "--encoders", folder, "--prompts", images / "prompts.txt") == 2
  assert "has 1 prompts, and there are 4 generated images" in capsys.readouterr().err


def test_folders_without_the_right_encoders_are_refused(folder, images, tmp_path, capsys):
  assert run(images, "--encoders", tmp_path / "nowhere") == 2
  assert "there is no folder" in capsys.readouterr().err
  (tmp_path / "half/clip").mkdir(parents=True)
  assert run(images, "--encoders", tmp_path / "half") == 2
  assert "holds no sub-folder dino" in capsys.readouterr().err
  wrong = tmp_path / "wrong"
  wrong.mkdir()
  (wrong / "clip").symlink_to(folder / "dino")
  (wrong / "dino").symlink_to(folder / "dino")
  assert run(images, "--encoders", wrong) == 2
  assert "holds a ViT, but a CLIP is wanted" in capsys.readouterr().err
