"""LoRA weights to and from diffusers, peft and kohya: the same images there and here."""

import json

from flax.traverse_util import flatten_dict
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dreamjax import cli, generators
from dreamjax.data import identifiers
from dreamjax.errors import UserError
from dreamjax.generators import interop
from dreamjax.theta import Card, Embeddings, Full, LoRA, Personalisation

PATTERN = "(self|cross|attention)/(query|key|value|out)$"


def personalised(folder, *, text, pattern=PATTERN):
  """The generator of a folder, its parameters, and random LoRA weights of scale 1.5."""
  generator, params = generators.load(folder)
  rng = np.random.default_rng(0)
  thetas = {}
  for part in ("base", "text") if text else ("base",):
    theta = LoRA.init(jax.random.key(0), params[part], 2, alpha=3.0, pattern=pattern)
    thetas[part] = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), theta)
  return generator, params, Personalisation(thetas, Card(generator.base(params), "qx", "dog", {}))


def fresh(folder):
  import diffusers
  import torch

  pytest.importorskip("peft")
  return diffusers.DiffusionPipeline.from_pretrained(folder).to(dtype=torch.float32)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_images_with_exported_updates_are_those_of_diffusers(pipelines, tmp_path, name, layout):
  folder = pipelines.folder(name)
  pipeline = fresh(folder)
  generator, params, made = personalised(folder, text=True)
  wanted = pipelines.ours(generator, params, made)
  assert np.abs(wanted - pipelines.ours(generator, params)).max() > 0.1
  (file,) = interop.save(tmp_path, layout, generator, params, made)
  pipeline.load_lora_weights(tmp_path, weight_name=file.name)
  np.testing.assert_allclose(pipelines.theirs(pipeline), wanted, atol=1e-3)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_images_with_updates_of_peft_are_those_of_diffusers(pipelines, tmp_path, name):
  peft = pytest.importorskip("peft")
  import torch

  folder = pipelines.folder(name)
  pipeline = fresh(folder)
  torch.manual_seed(1)
  layers = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv_shortcut"]
  settings = peft.LoraConfig(r=3, lora_alpha=6, target_modules=layers, init_lora_weights=False)
  pipeline.unet.add_adapter(settings)
  texts = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "fc1"], init_lora_weights=False)
  tuned = peft.get_peft_model_state_dict(peft.get_peft_model(pipeline.text_encoder, texts))
  pipeline.save_lora_weights(
    tmp_path,
    unet_lora_layers=peft.get_peft_model_state_dict(pipeline.unet),
    text_encoder_lora_layers={key.removeprefix("base_model.model."): x for key, x in tuned.items()},
    unet_lora_adapter_metadata=settings.to_dict(),
    text_encoder_lora_adapter_metadata=texts.to_dict(),
  )
  generator, params = generators.load(folder)
  made = generators.load_theta(tmp_path / interop.WEIGHTS, generator, params)
  images = pipelines.ours(generator, params, made)
  assert np.abs(images - pipelines.ours(generator, params)).max() > 0.1
  np.testing.assert_allclose(images, pipelines.theirs(pipeline), atol=1e-3)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_images_with_folders_of_peft_are_the_same_there_and_here(pipelines, tmp_path, name):
  peft = pytest.importorskip("peft")
  import torch

  folder = pipelines.folder(name)
  pipeline = fresh(folder)
  networks = [x for x in ("unet", "text_encoder", "text_encoder_2") if hasattr(pipeline, x)]
  generator, params, made = personalised(folder, text=True)
  wanted = pipelines.ours(generator, params, made)
  interop.save(tmp_path / "ours", "peft", generator, params, made)
  for network in networks:
    tuned = peft.PeftModel.from_pretrained(getattr(pipeline, network), tmp_path / "ours" / network)
    setattr(pipeline, network, tuned.merge_and_unload())
  np.testing.assert_allclose(pipelines.theirs(pipeline), wanted, atol=1e-3)

  torch.manual_seed(1)
  pipeline = fresh(folder)
  for network in networks:
    layers = ["to_q", "conv1"] if network == "unet" else ["q_proj", "fc1"]
    patterns = {"rank_pattern": {layers[0]: 1}, "alpha_pattern": {layer: 4 + i for i, layer in enumerate(layers)}}
    settings = peft.LoraConfig(r=3, lora_alpha=6, target_modules=layers, init_lora_weights=False, **patterns)
    tuned = peft.get_peft_model(getattr(pipeline, network), settings)
    tuned.save_pretrained(tmp_path / "theirs" / network)
    setattr(pipeline, network, tuned.merge_and_unload())
  made = generators.load_theta(tmp_path / "theirs", generator, params)
  wanted = pipelines.theirs(pipeline)
  np.testing.assert_allclose(pipelines.ours(generator, params, made), wanted, atol=1e-3)
  again = fresh(folder)  # updates of several ranks can be written, too
  interop.save(tmp_path / "again", "diffusers", generator, params, made)
  again.load_lora_weights(tmp_path / "again")
  np.testing.assert_allclose(pipelines.theirs(again), wanted, atol=1e-3)


def test_images_with_a_file_of_kohyas_layout_are_those_of_diffusers(pipelines, tmp_path):
  peft = pytest.importorskip("peft")
  from diffusers.utils import state_dict_utils
  import torch

  torch.manual_seed(1)
  pipeline = fresh(pipelines.folder("sd"))
  pipeline.unet.add_adapter(
    peft.LoraConfig(r=3, lora_alpha=3, target_modules=["to_q", "to_v"], init_lora_weights=False)
  )
  tensors = {f"unet.{key}": x for key, x in peft.get_peft_model_state_dict(pipeline.unet).items()}
  kohya = {key: np.asarray(x) for key, x in state_dict_utils.convert_state_dict_to_kohya(tensors).items()}
  assert all(key.startswith("lora_unet_") for key in kohya) and any(key.endswith(".alpha") for key in kohya)
  save_file(kohya, tmp_path / "kohya.safetensors")
  generator, params = generators.load(pipelines.folder("sd"))
  made = generators.load_theta(tmp_path / "kohya.safetensors", generator, params)
  np.testing.assert_allclose(pipelines.ours(generator, params, made), pipelines.theirs(pipeline), atol=1e-3)


@pytest.mark.parametrize("layout", interop.FORMATS)
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_updates_survive_a_round_trip(pipelines, tmp_path, name, layout):
  generator, params, made = personalised(pipelines.folder(name), text=True)
  files = interop.save(tmp_path, layout, generator, params, made)
  again = generators.load_theta(files[0] if layout == "kohya" else tmp_path, generator, params)
  assert set(again.thetas) == set(made.thetas)
  assert (again.card.identifier, again.card.class_noun) == ("qx", "dog")
  for part, theta in made.thetas.items():
    merged = again.thetas[part].merge(params[part]), theta.merge(params[part])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *merged)


@pytest.mark.parametrize("identifier", ["z", "x y"])
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_images_with_exported_embeddings_are_those_of_diffusers_and_they_load_again(
  pipelines, tmp_path, name, identifier
):
  import torch

  folder = pipelines.folder(name)
  pipeline = fresh(folder)
  generator, params = generators.load(folder)
  theta = Embeddings.init(params["text"], identifiers.tokens(generator.tokenizer, identifier))
  rng = np.random.default_rng(0)
  theta = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), theta)
  made = Personalisation({"text": theta}, Card(generator.base(params), identifier, "dog", {}))
  prompts = ["a red [V] dog", "a dog on the beach"]
  wanted = pipelines.ours(generator, params, made, prompts)
  change = np.abs(
    wanted - pipelines.ours(generator, params, prompts=[prompt.replace("[V]", identifier) for prompt in prompts])
  )
  assert change[0].max() > 0.02 and change[1].max() == 0
  (file,) = interop.save(tmp_path, "diffusers", generator, params, made)
  tensors = load_file(file)
  if name == "sd":
    pipeline.load_textual_inversion(tmp_path)
    (word,) = tensors
  else:
    word, towers = "<mine>", {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}
    for tower, (encoder, tokenizer) in towers.items():
      vectors = {word: torch.tensor(tensors[tower])}
      parts = {"text_encoder": getattr(pipeline, encoder), "tokenizer": getattr(pipeline, tokenizer)}
      pipeline.load_textual_inversion(vectors, **parts)
  images = pipelines.theirs(pipeline, [prompt.replace("[V]", word) for prompt in prompts])
  np.testing.assert_allclose(images, wanted, atol=1e-3)
  again = generators.load_theta(file, generator, params)
  assert len(again.card.identifier.split()) == len(identifier.split())
  np.testing.assert_allclose(pipelines.ours(generator, params, again, prompts), wanted, atol=1e-5)


def test_one_tensor_is_an_embedding_by_any_name_but_that_of_a_layer(pipelines, tmp_path):
  generator, params = generators.load(pipelines.folder("sd"))
  for name in ("<my_dog>", "emb_params"):
    save_file({name: np.ones((1, 8), np.float32)}, tmp_path / "one.safetensors")
    made = generators.load_theta(tmp_path / "one.safetensors", generator, params)
    assert isinstance(made.thetas["text"], Embeddings)
  for name in ("lora_unet_conv_in.hada_w1_a", "unet.conv_in.weight", "base/conv_in/kernel"):
    save_file({name: np.ones((1, 8), np.float32)}, tmp_path / "one.safetensors")
    assert not interop.is_foreign(tmp_path / "one.safetensors")


def test_the_command_writes_what_the_function_does(pipelines, tmp_path, capsys):
  folder = pipelines.folder("sd")
  _, _, made = personalised(folder, text=False)
  made.save(tmp_path / "theta.safetensors")
  asked = ["export", "--model", str(folder), "--theta", str(tmp_path / "theta.safetensors"), "--format", "kohya"]
  assert cli.main([*asked, "--out", str(tmp_path / "made")]) == 0
  assert capsys.readouterr().out.strip() == str(tmp_path / "made/lora.safetensors")
  assert len(load_file(tmp_path / "made/lora.safetensors")) == 3 * len(flatten_dict(made.thetas["base"].weights)) // 2


def test_full_weights_are_a_folder_of_diffusers(pipelines, tmp_path):
  generator, params, made = personalised(pipelines.folder("sd"), text=False)
  theta = Full(made.thetas["base"].merge(params["base"]))
  made = Personalisation({"base": theta}, made.card)
  (written,) = interop.save(tmp_path / "whole", "diffusers", generator, params, made)
  again, whole = generators.load(written)  # in half precision
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), whole["base"], theta.weights)
  np.testing.assert_allclose(pipelines.ours(again, whole), pipelines.ours(generator, params, made), atol=0.05)
  np.testing.assert_allclose(pipelines.theirs(fresh(written)), pipelines.ours(again, whole), atol=1e-3)


def test_what_is_unsupported_is_refused(pipelines, tmp_path, tiny_cascade):
  folder = pipelines.folder("sdxl")
  generator, params, made = personalised(folder, text=False)
  with pytest.raises(UserError, match="unknown format 'onnx'"):
    interop.save(tmp_path, "onnx", generator, params, made)
  with pytest.raises(UserError, match="diffusers has no such generator as tiny"):
    interop.save(tmp_path, "peft", *tiny_cascade, made)
  full = Personalisation({"base": Full.init(params["base"])}, made.card)
  with pytest.raises(UserError, match="of all parts, but this theta has base: Full"):
    interop.save(tmp_path, "kohya", generator, params, full)
  convolutions = personalised(folder, text=False, pattern="conv_1$")[2]
  with pytest.raises(UserError, match="SDXL's transformers only, not for unet.down_blocks.0.resnets.0.conv1"):
    interop.save(tmp_path, "kohya", generator, params, convolutions)
  (file,) = interop.save(tmp_path, "diffusers", generator, params, made)
  tensors = load_file(file)
  key = next(iter(tensors))
  for name, change, problem in (
    ("other", {"unet.nothing.lora_A.weight": tensors[key]}, "which has no unet.nothing"),
    ("half", {"unet.conv_in.lora_A.weight": tensors[key]}, "holds only down of unet.conv_in"),
    ("shape", {key: tensors[key][:, :-1]}, "do not fit sdxl"),
    ("bias", {"unet.conv_in.bias": tensors[key]}, "unet.conv_in.bias, which is no LoRA weight"),
  ):
    save_file({x: np.ascontiguousarray(y) for x, y in (tensors | change).items()}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=problem):
      generators.load_theta(tmp_path / f"{name}.safetensors", generator, params)
  save_file({"<z>": np.ones((1, 7), np.float32)}, tmp_path / "embeddings.safetensors")
  with pytest.raises(UserError, match=r"shapes \[\(1, 7\)\], which do not fit a text encoder of 8 and 12 channels"):
    generators.load_theta(tmp_path / "embeddings.safetensors", generator, params)
  settings = {"lora_adapter_metadata": json.dumps({"unet.use_rslora": True})}
  save_file(tensors, tmp_path / "rs.safetensors", metadata=settings)
  with pytest.raises(UserError, match="use_rslora is True, but only plain LoRA can be read"):
    generators.load_theta(tmp_path / "rs.safetensors", generator, params)
  with pytest.raises(UserError, match="is a folder without any of pytorch_lora_weights.safetensors, adapter_model"):
    generators.load_theta(folder, generator, params)
  (tmp_path / "lora.bin").write_bytes(b"\x80\x04")
  with pytest.raises(ValueError, match=r"lora\.bin can run code when it is read, so it is not"):
    generators.load_theta(tmp_path / "lora.bin", generator, params)
  (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-9])
  with pytest.raises(ValueError, match=r"cut\.safetensors"):
    generators.load_theta(tmp_path / "cut.safetensors", generator, params)
