"""Folders in transformers' layout: read by us what they wrote, by them what we wrote, and refused what is broken."""

import json
import shutil
import tracemalloc
from unittest import mock

from flax import linen as nn
from flax.traverse_util import flatten_dict
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from dreamjax.convert import pretrained
from dreamjax.models.clip import CLIP, TextTower, VisionTower
from dreamjax.models.t5 import T5Encoder
from dreamjax.models.vit import ViT

VISION = VisionTower(image=8, patch=4, width=16, depth=1, heads=2, mlp=24, projection=12)
TEXT = TextTower(vocab=50, length=9, width=16, depth=1, heads=2, mlp=24, projection=12, eos=49)
MODULES = {
  "CLIPModel": CLIP(VISION, TEXT),
  "CLIPTextModel": TEXT.clone(projection=None, activation="gelu"),
  "CLIPTextModelWithProjection": TEXT,
  "CLIPVisionModel": VISION.clone(projection=None, eps=1e-4),
  "CLIPVisionModelWithProjection": VISION,
  "T5EncoderModel": T5Encoder(vocab=50, width=16, head_width=4, heads=3, mlp=24, depth=2, buckets=8, max_distance=9),
  "ViTModel": ViT(image=8, patch=4, width=16, depth=1, heads=2, mlp=24),
}
MODULE = MODULES["ViTModel"]


def kind_of(module):
  return next(kind for kind in pretrained.KINDS.values() if type(module) is kind.module)


def draw(module):
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *kind_of(module).inputs(module))["params"]
  return jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes)


def change(folder, remove=(), **tensors):
  weights = safetensors.numpy.load_file(folder / "model.safetensors")
  kept = {key: tensor for key, tensor in weights.items() if key not in remove}
  safetensors.numpy.save_file({**kept, **tensors}, folder / "model.safetensors")


def in_shards(folder):
  """Cuts a model's file in two."""
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  files = {key: f"model-0000{1 + 2 * i // len(tensors)}-of-00002.safetensors" for i, key in enumerate(tensors)}
  for name in set(files.values()):
    safetensors.numpy.save_file({key: tensors[key] for key in tensors if files[key] == name}, folder / name)
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


@pytest.fixture
def folder(tmp_path):
  pretrained.save(tmp_path / "model", MODULE, draw(MODULE), np.float32)
  return tmp_path / "model"


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_model_comes_back_as_it_was_saved(tmp_path, module):
  params = draw(module)
  pretrained.save(tmp_path / "a" / "b", module, params, np.float32)
  loaded, weights = pretrained.load(tmp_path / "a" / "b")
  assert loaded == module
  jax.tree.map(np.testing.assert_array_equal, weights, params)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_halves_come_back_rounded(tmp_path, dtype):
  params = draw(MODULE)
  pretrained.save(tmp_path, MODULE, params, dtype)
  rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), params)
  jax.tree.map(np.testing.assert_array_equal, pretrained.load(tmp_path)[1], rounded)
  halves = pretrained.load(str(tmp_path), dtype)[1]
  assert {leaf.dtype for leaf in jax.tree.leaves(halves)} == {np.dtype(dtype)}


@pytest.mark.parametrize(("name", "module"), MODULES.items(), ids=MODULES)
def test_transformers_reads_what_we_write(tmp_path, name, module):
  torch = pytest.importorskip("torch")
  import transformers

  pretrained.save(tmp_path, module, draw(module))  # in half precision, as our own models ship
  extra = {"add_pooling_layer": False} if name == "ViTModel" else {}
  model, report = getattr(transformers, name).from_pretrained(
    tmp_path, dtype=torch.float32, output_loading_info=True, **extra
  )
  assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]

  params = {"params": jax.device_put(pretrained.load(tmp_path)[1])}
  rng = np.random.default_rng(0)
  images = rng.standard_normal((2, 8, 8, 3), np.float32)
  ids = np.array([[3, 4, 49, 0, 0], [5, 6, 7, 8, 49]])
  mask = np.array([[True, True, True, False, False], [True] * 5])
  given = {"pixel_values": torch.tensor(images.transpose(0, 3, 1, 2))}, {"input_ids": torch.tensor(ids)}
  if name == "CLIPModel":
    theirs = model.eval()(**given[0], **given[1])
    image, text, scale = jax.jit(module.apply)(params, images, ids)
    image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    logits = jnp.exp(scale) * image @ text.T
    np.testing.assert_allclose(logits, theirs.logits_per_image.detach().numpy(), atol=1e-4)
    return
  inputs = {ViT: (images,), VisionTower: (images,), TextTower: (ids,), T5Encoder: (ids, mask)}[type(module)]
  given = {"attention_mask": torch.tensor(mask), **given[1]} if name == "T5EncoderModel" else given["CLIPText" in name]
  theirs = model.eval()(**given)
  tokens, out = jax.jit(module.apply)(params, *inputs)
  np.testing.assert_allclose(tokens, theirs.last_hidden_state.detach().numpy(), atol=1e-4)
  if name.endswith("WithProjection"):
    embedding = theirs.image_embeds if type(module) is VisionTower else theirs.text_embeds
    np.testing.assert_allclose(out["embedding"], embedding.detach().numpy(), atol=1e-4)


def test_what_we_have_no_use_for_is_left(tmp_path):
  pytest.importorskip("torch")
  import transformers

  config = transformers.T5Config(
    vocab_size=50, d_model=16, d_kv=4, num_heads=2, d_ff=24, num_layers=1, feed_forward_proj="gated-gelu"
  )
  whole = transformers.T5ForConditionalGeneration(config)
  whole.save_pretrained(tmp_path / "t5")
  np.testing.assert_array_equal(
    pretrained.load(tmp_path / "t5")[1]["tokens"]["embedding"], whole.shared.weight.detach().numpy()
  )
  size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
  pooled = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **size))
  pooled.save_pretrained(tmp_path / "vit")
  assert "pooler.dense.weight" in safetensors.numpy.load_file(tmp_path / "vit" / "model.safetensors")
  pretrained.load(tmp_path / "vit")


def test_a_tied_table_of_tokens_is_found_under_its_other_name(tmp_path):
  module = MODULES["T5EncoderModel"]
  pretrained.save(tmp_path, module, draw(module), np.float32)
  table = draw(module)["tokens"]["embedding"]
  change(tmp_path, **{"encoder.embed_tokens.weight": table + 1})
  np.testing.assert_array_equal(pretrained.load(tmp_path)[1]["tokens"]["embedding"], table)
  change(tmp_path, remove=["shared.weight"])
  np.testing.assert_array_equal(pretrained.load(tmp_path)[1]["tokens"]["embedding"], table + 1)


def test_old_checkpoints_hold_numbers_of_positions(tmp_path):
  pretrained.save(tmp_path, MODULES["CLIPModel"], draw(MODULES["CLIPModel"]))
  change(tmp_path, **{f"{tower}_model.embeddings.position_ids": np.arange(5)[None] for tower in ("text", "vision")})
  pretrained.load(tmp_path)


def test_weights_may_lie_in_several_files(folder):
  whole = pretrained.load(folder)[1]
  in_shards(folder)
  jax.tree.map(np.testing.assert_array_equal, pretrained.load(folder)[1], whole)
  index = folder / "model.safetensors.index.json"
  files = json.loads(index.read_text())["weight_map"]
  index.write_text(json.dumps({"weight_map": {**files, "another": "model-00001-of-00002.safetensors"}}))
  with pytest.raises(ValueError, match="00001-of-00002.safetensors lacks another, which model.safetensors.index.json"):
    pretrained.load(folder)
  for outside in ("../model-00001-of-00002.safetensors", str(folder / "model-00001-of-00002.safetensors"), 3):
    index.write_text(json.dumps({"weight_map": {**files, "another": outside}}))
    with pytest.raises(ValueError, match="index.json names .*, which is no file of its folder"):
      pretrained.load(folder)
  index.write_text("{}")
  with pytest.raises(ValueError, match="index.json has no weight_map"):
    pretrained.load(folder)
  index.write_text(json.dumps({"weight_map": files}))
  second, put = folder / "model-00002-of-00002.safetensors", []
  second.write_bytes(second.read_bytes()[:-4])
  with pytest.raises(ValueError, match="00002-of-00002.safetensors is no complete safetensors file"):
    pretrained.load(folder, put=lambda path, _: put.append(path))
  assert not put
  second.unlink()
  with pytest.raises(FileNotFoundError, match="holds no model-00002-of-00002.safetensors"):
    pretrained.load(folder)


def test_weights_that_are_put_elsewhere_do_not_pile_up_in_memory(tmp_path):
  module = ViT(image=8, patch=4, width=512, depth=4, heads=2, mlp=2048)
  params = draw(module)
  pretrained.save(tmp_path, module, params, np.float32)
  in_shards(tmp_path)
  largest = max(path.stat().st_size for path in tmp_path.glob("*.safetensors"))

  def peak(**options):
    tracemalloc.start()
    try:
      return pretrained.load(tmp_path, **options)[1], tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  shapes, passing = peak(put=lambda path, array: (path, array.shape))
  kept, staying = peak()
  assert passing < 1.2 * largest < 1.5 * largest < staying
  jax.tree.map(np.testing.assert_array_equal, kept, params)
  for path, leaf in flatten_dict(params, sep="/").items():
    assert flatten_dict(shapes, sep="/")[path] == (path, leaf.shape)


def test_the_first_configs_meant_the_highest_id_by_their_end_of_text(tmp_path):
  pretrained.save(tmp_path, TEXT, draw(TEXT))
  config = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": 2}))
  assert pretrained.load(tmp_path)[0] == TEXT
  with pytest.raises(ValueError, match="interprets the end-of-text token 2 as the highest id"):
    pretrained.save(tmp_path, TEXT.clone(eos=2), draw(TEXT))


def test_the_other_description_of_a_tower_counts():
  config = pretrained.KINDS["clip"].write(MODULES["CLIPModel"])
  config["text_config_dict"] = {"hidden_act": "gelu", "projection_dim": 99}
  assert pretrained.KINDS["clip"].read(config) == CLIP(VISION, TEXT.clone(activation="gelu"))


def test_a_checkpoint_that_does_not_fit_is_refused(folder):
  change(folder, remove=["layernorm.bias"], extra=np.zeros(3))
  with pytest.raises(ValueError, match=f"^{folder}: .* missing: layernorm.bias; unknown: extra$"):
    pretrained.load(folder)
  change(folder, remove=["extra"], **{"layernorm.bias": np.zeros(17)})
  with pytest.raises(ValueError, match=r"safetensors: layernorm.bias has shape \(17,\), but in the model \(16,\)"):
    pretrained.load(folder)


@pytest.mark.parametrize(
  ("settings", "problem"),
  [
    ({"model_type": "bert"}, "type 'bert'; the known ones are .*UVit2DModel, VQModel, vit"),
    ({"model_type": None, "_class_name": "UNet2DModel"}, "type 'UNet2DModel'; the known ones are AutoencoderKL, clip"),
    ({"model_type": "t5", "feed_forward_proj": "relu"}, "feed_forward_proj is 'relu' in config.json"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu' in config.json, but this model knows only 'gelu'"),
    ({"qkv_bias": False}, "qkv_bias is False"),
    ({"hidden_size": None}, "config.json: "),
    ({"hidden_size": "16"}, "config.json: "),
    ({"model_type": "clip", "text_config": {"hidden_act": "relu"}}, "knows only 'gelu' and 'quick_gelu'"),
  ],
)
def test_a_config_that_is_not_known_is_refused(folder, settings, problem):
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps({**config, **settings}))
  with pytest.raises(ValueError, match=problem):
    pretrained.load(folder)


@pytest.mark.parametrize(("text", "problem"), [("{", "config.json is no JSON"), ("[]", "config.json holds a list")])
def test_a_config_that_is_none_is_refused(folder, text, problem):
  (folder / "config.json").write_text(text)
  with pytest.raises(ValueError, match=problem):
    pretrained.load(folder)


def test_a_missing_file_is_named(folder):
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
  with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor .* convert it .*save_pretrained"):
    pretrained.load(folder)
  (folder / "config.json").unlink()
  with pytest.raises(FileNotFoundError, match="holds no config.json"):
    pretrained.load(folder)


@pytest.mark.parametrize("name", ["openai/clip", "no such folder", "a/b/c"])
def test_what_is_nowhere_is_said_to_be_nowhere(monkeypatch, tmp_path, name):
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
  with pytest.raises(FileNotFoundError, match=f"there is no folder {name}, nor could a model of that name be had"):
    pretrained.load(name)


def test_from_the_hub_comes_only_what_is_read(monkeypatch, folder):
  asked = []
  monkeypatch.setattr(
    huggingface_hub,
    "snapshot_download",
    lambda name, revision, allow_patterns: asked.append((name, revision, allow_patterns)) or folder,
  )
  assert pretrained.load("someone/model")[0] == MODULE
  ((name, revision, patterns),) = asked
  wanted = ["config.json", "tokenizer.json", "spiece.model", "merges.txt", "model.safetensors"]
  wanted += ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
  wanted += ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-00001-of-00002.safetensors"]
  others = ["model.fp16.safetensors", "diffusion_pytorch_model.fp16.safetensors", "pytorch_model.bin", "tf_model.h5"]
  kept = huggingface_hub.utils.filter_repo_objects([*wanted, *others], allow_patterns=patterns)
  assert name == "someone/model" and revision is None and list(kept) == wanted


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/3", "0123456789abcdef0123456789abcdef01234567"])
def test_a_model_of_the_hub_may_be_pinned_to_a_revision(monkeypatch, folder, revision):
  asked = []
  download = lambda name, revision, allow_patterns: asked.append((name, revision)) or str(folder)  # noqa: E731
  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  assert pretrained.load(f"someone/model@{revision}")[0] == MODULE
  assert asked == [("someone/model", revision)]


def test_a_folder_may_have_an_at_sign(monkeypatch, folder):
  monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
  assert pretrained.locate(folder.rename(folder.with_name("model@home"))) == folder.with_name("model@home")


def test_a_revision_that_is_not_there_is_named(monkeypatch):
  def download(name, revision, allow_patterns):
    raise huggingface_hub.errors.RevisionNotFoundError("404", response=mock.Mock(headers={}))

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  with pytest.raises(FileNotFoundError, match="^someone/model on the Hugging Face hub has no .* or commit 'v9'$"):
    pretrained.locate("someone/model@v9")
  with pytest.raises(FileNotFoundError, match="someone/model@ names no revision after the @"):
    pretrained.locate("someone/model@")


def test_a_pinned_model_comes_from_the_cache_where_there_is_no_network(monkeypatch, tmp_path, folder):
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  commit, model = "0123456789abcdef0123456789abcdef01234567", tmp_path / "cache" / "models--someone--model"
  shutil.copytree(folder, model / "snapshots" / commit)
  (model / "refs").mkdir()
  (model / "refs" / "v1").write_text(commit)
  for revision in ("v1", commit):
    assert pretrained.locate(f"someone/model@{revision}") == model / "snapshots" / commit
  with pytest.raises(FileNotFoundError, match="there is no folder someone/model@v2, nor could a model"):
    pretrained.locate("someone/model@v2")


def test_a_repository_may_have_weights_of_half_precision_alone(monkeypatch, tmp_path):
  there, folder, params = tmp_path / "there", tmp_path / "here", draw(MODULE)
  pretrained.save(there, MODULE, params)
  (there / "model.safetensors").rename(there / "model.bf16.safetensors")
  (there / "pytorch_model.bin").touch()

  def download(name, revision, allow_patterns):
    folder.mkdir(exist_ok=True)
    names = [path.name for path in there.iterdir()]
    for file in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
      shutil.copy(there / file, folder / file)
    return folder

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  _, found = pretrained.load("someone/model")
  jax.tree.map(lambda x, own: np.testing.assert_allclose(x, own, rtol=1e-3), found, params)
  assert {path.name for path in folder.iterdir()} == {"config.json", "model.bf16.safetensors"}


def test_only_what_has_a_layout_is_saved(tmp_path):
  with pytest.raises(ValueError, match="no layout is known for Dense, only for Autoencoder, CLIP, TextTower"):
    pretrained.save(tmp_path, nn.Dense(3), {})
  params = draw(MODULE)
  params["norm"]["scale"] = params["norm"]["scale"][:-1]
  del params["norm"]["bias"]
  with pytest.raises(ValueError, match=r"its own: norm/bias \(16,\), norm/scale \(16,\); given: norm/scale \(15,\)"):
    pretrained.save(tmp_path, MODULE, params)
  clip = CLIP(VISION, TEXT.clone(projection=13))
  with pytest.raises(ValueError, match="different widths, 12 and 13"):
    pretrained.save(tmp_path, clip, {})
  assert not list(tmp_path.iterdir())
