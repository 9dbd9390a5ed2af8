"""Personalisations as files: they come back, and are refused where they are damaged, foreign or for another base."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from dreamjax import theta as thetas
from dreamjax.theta import (
  ALL_PARTS,
  Adapters,
  Base,
  Card,
  Embeddings,
  Full,
  LoRA,
  SoftPrompt,
  content_hash,
)

FIRST_FORMAT = pathlib.Path(__file__).parent / "data" / "format_1"

BASE = Base("toybox-cascade", {"text": "0123456789abcdef" * 4, "base": "a" * 64, "sr": "b" * 64})
CARD = Card(BASE, "pdb", "dog", {"steps": 200, "seed": 0, "images": ["a.jpg", "ü.png"]})


@pytest.fixture(scope="module")
def parts(make, moved):
  _, params, _ = make("convnet")
  low = LoRA.init(jax.random.key(0), params, 2, alpha=0.3)
  return {"base": moved(low), "sr": moved(Full.init(params, "out|norm"))}


def numbers(*shape):
  return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 64 - 0.25


def close(a, b, **tolerance):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_a_personalisation_comes_back_with_its_card(tmp_path, parts):
  path = tmp_path / "a" / "b" / "theta.safetensors"
  thetas.save(path, parts, CARD, np.float32)
  loaded, card = thetas.load(path, BASE)
  close(loaded, parts, rtol=0, atol=0)
  assert card == CARD == thetas.read_card(path)
  assert [file.name for file in path.parent.iterdir()] == ["theta.safetensors"]


def test_low_rank_updates_are_stored_in_halves_and_full_weights_are_not(tmp_path, parts):
  thetas.save(tmp_path / "theta", parts, CARD)
  stored = safetensors.numpy.load_file(tmp_path / "theta")
  assert {key: x.dtype for key, x in stored.items()} == {
    key: np.dtype(np.float16 if key.startswith("base/") else np.float32) for key in stored
  }
  loaded, _ = thetas.load(tmp_path / "theta", BASE)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
  close(loaded["sr"], parts["sr"], rtol=0, atol=0)
  close(loaded["base"], parts["base"], rtol=1e-3, atol=1e-6)


def test_the_dtype_can_be_chosen(tmp_path, parts):
  thetas.save(tmp_path / "theta", parts, CARD, jnp.bfloat16)
  close(thetas.load(tmp_path / "theta", BASE)[0], parts, rtol=1e-2, atol=0)


def test_any_program_can_read_what_a_file_is(tmp_path, parts):
  thetas.save(tmp_path / "theta", parts, CARD)
  with safetensors.safe_open(tmp_path / "theta", "np") as file:
    metadata = file.metadata()
  assert json.loads(metadata["kind"]) == {"base": {"kind": "lora", "scale": 0.15}, "sr": {"kind": "full"}}
  assert json.loads(metadata["recipe"]) == CARD.recipe
  assert (metadata["base_model"], json.loads(metadata["base_hashes"])) == BASE
  assert (metadata["identifier"], metadata["class_noun"]) == ("pdb", "dog")


def test_a_loaded_theta_does_what_the_saved_one_did(tmp_path, make, parts):
  module, params, x = make("convnet")
  thetas.save(tmp_path / "theta", parts, CARD)
  loaded, _ = thetas.load(tmp_path / "theta", BASE)
  run = jax.jit(lambda params, theta: thetas.apply(module, params, theta, x))
  for part, theta in parts.items():
    wanted = run(params, theta)
    np.testing.assert_allclose(run(params, loaded[part]), wanted, rtol=0, atol=2e-2)
    np.testing.assert_allclose(thetas.apply(module, params, loaded[part], x), wanted, rtol=0, atol=2e-2)
    np.testing.assert_allclose(run(loaded[part].merge(params), None), wanted, rtol=0, atol=2e-2)


class TestBases:
  @pytest.fixture
  def path(self, tmp_path, parts):
    thetas.save(tmp_path / "theta", {"base": parts["base"]}, CARD)
    return tmp_path / "theta"

  def test_parts_that_it_does_not_need_may_be_missing_or_others(self, path, parts):
    for change in ({}, {"sr": "f" * 64}, {"another": "f" * 64}):
      loaded, card = thetas.load(path, Base("a copy", {**BASE.hashes, **change}))
      close(loaded["base"], parts["base"], rtol=1e-3, atol=1e-6)
      assert card == CARD
    assert thetas.parts_needed(path) == ("text", "base")
    thetas.load(path, Base("the first stage alone", {part: BASE.hashes[part] for part in ("text", "base")}))

  @pytest.mark.parametrize("part", ["text", "base"])
  def test_other_weights_of_a_part_that_it_needs_are_refused(self, path, part):
    message = rf"with toybox-cascade and does not fit other, whose part '{part}' has the hash ffffffffffff, not"
    with pytest.raises(ValueError, match=message):
      thetas.load(path, Base("other", {**BASE.hashes, part: "f" * 64}))
    with pytest.raises(ValueError, match=f"whose part '{part}' is missing: a theta works only with the weights"):
      thetas.load(path, Base("other", {name: x for name, x in BASE.hashes.items() if name != part}))

  def test_an_autoencoder_is_needed_where_there_is_one(self, path, tmp_path, parts):
    base = Base("latent", {**BASE.hashes, "autoencoder": "c" * 64})
    thetas.save(path, {"base": parts["base"]}, Card(base, "", "", {}))
    with pytest.raises(ValueError, match="whose part 'autoencoder' is missing"):
      thetas.load(path, BASE)
    thetas.load(path, base)

  def test_a_card_has_the_hashes_of_all_parts_that_are_tuned(self, tmp_path, parts):
    card = Card(Base("tiny", {"text": "a" * 64, "base": "b" * 64}), "", "", {})
    with pytest.raises(ValueError, match="the card's base tiny has no hash of sr"):
      thetas.save(tmp_path / "theta", parts, card)

  def test_one_hash_identifies_all_parts_in_any_order(self):
    assert Base("copy", dict(reversed(BASE.hashes.items()))).hash == BASE.hash
    changed = [Base("other", {**BASE.hashes, part: "f" * 64}).hash for part in BASE.hashes]
    swapped = Base("swapped", {**BASE.hashes, "base": BASE.hashes["sr"], "sr": BASE.hashes["base"]}).hash
    assert len({BASE.hash, swapped, *changed}) == 5


class TestFirstFormat:
  """Files of "dreamjax theta 1", written by the code that had that format: their card has one hash, of all parts."""

  PARAMS = {
    "text": {"tokens": {"embedding": numbers(9, 4)}},
    "base": {"layer_0": {"mlp": {"hidden": {"kernel": numbers(4, 6)}, "out": {"kernel": numbers(6, 4)}}}},
    "sr": {"conv": {"kernel": numbers(3, 3, 2, 4), "bias": numbers(4)}},
  }
  TABLES = {"down": numbers(4, 3), "up": numbers(3, 4), "own_down": numbers(1, 3), "own_up": numbers(1, 4)}
  THETAS = {
    "full": ("sr", Full({"conv": {"bias": numbers(4) + 1}})),
    "embeddings": ("text", Embeddings({"tokens": {"embedding": numbers(2, 4) + 1}}, (3, 8))),
    "lora": ("base", LoRA({"layer_0": {"mlp": {"out": {"down": numbers(6, 2), "up": numbers(2, 4)}}}}, 0.5)),
    "adapters": ("base", Adapters({"row_0": TABLES}, (("layer_0/mlp",),))),
    "prompt": ("base", SoftPrompt({"tokens": numbers(2, 4)})),
  }

  @pytest.mark.parametrize("kind", THETAS)
  def test_they_load(self, kind, tmp_path):
    path, (part, theta) = FIRST_FORMAT / f"{kind}.safetensors", self.THETAS[kind]
    assert thetas.parts_needed(path) == (ALL_PARTS,)
    base = Base("tiny", {ALL_PARTS: content_hash(self.PARAMS)})
    made = thetas.load(path, base)
    close(made.thetas, {part: theta}, rtol=0, atol=0)
    assert made.card == Card(base, "qx", "dog", {"steps": 3, "kind": kind})
    made.save(tmp_path / "again")
    close(thetas.load(tmp_path / "again", base).thetas, made.thetas, rtol=0, atol=0)

  def test_other_weights_of_any_part_are_refused(self):
    other = {**self.PARAMS, "sr": {"conv": {**self.PARAMS["sr"]["conv"], "bias": numbers(4) + 1}}}
    base = Base("other", {ALL_PARTS: content_hash(other)})
    with pytest.raises(ValueError, match="with tiny and does not fit other, whose set of parameters has the hash"):
      thetas.load(FIRST_FORMAT / "lora.safetensors", base)


class TestBadFiles:
  def test_a_missing_one(self, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
      thetas.load(tmp_path / "nowhere", BASE)

  @pytest.mark.parametrize("content", [b"", b"no tensors at all", b"\xff" * 64])
  def test_one_that_is_no_safetensors_file(self, tmp_path, content):
    (tmp_path / "theta").write_bytes(content)
    with pytest.raises(ValueError, match=r"theta is no safetensors file, or a damaged one"):
      thetas.read_card(tmp_path / "theta")

  def test_one_that_was_cut_off(self, tmp_path, parts):
    thetas.save(tmp_path / "theta", parts, CARD)
    content = (tmp_path / "theta").read_bytes()
    (tmp_path / "theta").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="damaged"):
      thetas.load(tmp_path / "theta", BASE)

  def test_one_with_a_flipped_bit(self, tmp_path, parts):
    thetas.save(tmp_path / "theta", parts, CARD)
    content = bytearray((tmp_path / "theta").read_bytes())
    content[-50] ^= 1
    (tmp_path / "theta").write_bytes(content)
    with pytest.raises(ValueError, match="theta is damaged: its weights are not those that were written"):
      thetas.load(tmp_path / "theta", BASE)

  @pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "dreamjax theta 99"}])
  def test_one_of_another_program(self, tmp_path, metadata):
    safetensors.numpy.save_file({"lora.up": np.zeros(2, np.float32)}, tmp_path / "theta", metadata=metadata)
    with pytest.raises(ValueError, match="a safetensors file, but not of a theta"):
      thetas.load(tmp_path / "theta", BASE)

  @pytest.mark.parametrize(("value", "dtype"), [(np.nan, None), (1e6, None), (np.inf, np.float32)])
  def test_numbers_that_cannot_be_stored_are_not_and_what_was_there_stays(self, tmp_path, parts, value, dtype):
    thetas.save(tmp_path / "theta", parts, CARD)
    before = (tmp_path / "theta").read_bytes()
    bad = LoRA({"out": {"down": np.full((2, 1), value, np.float32), "up": np.zeros((1, 2), np.float32)}}, 1.0)
    with pytest.raises(ValueError, match="base/out/down holds numbers that are not finite in float"):
      thetas.save(tmp_path / "theta", {"base": bad}, CARD, dtype)
    assert (tmp_path / "theta").read_bytes() == before


class TestContentHash:
  PARAMS = {"b": {"w": np.arange(12, dtype=np.float32).reshape(3, 4) / 3}, "a": {"w": np.ones(3, np.float32)}}

  def test_it_is_the_same_on_every_machine(self):
    assert content_hash(self.PARAMS) == "5eddb1f52399849d9a68bc0410b8a468c39042948d7770fb7771a4637dd6f948"

  def test_storage_in_halves_does_not_change_it(self):
    halves = jax.tree.map(lambda x: x.astype(np.float16), self.PARAMS)
    again = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), halves)
    assert content_hash(self.PARAMS) == content_hash(halves) == content_hash(again)

  def test_the_order_of_a_tree_does_not_change_it(self):
    assert content_hash(dict(sorted(self.PARAMS.items()))) == content_hash(self.PARAMS)

  def test_each_value_name_and_shape_does(self):
    value = jax.tree.map(np.array, self.PARAMS)
    value["b"]["w"][1, 2] *= 1.001
    shape = self.PARAMS | {"b": {"w": self.PARAMS["b"]["w"].reshape(4, 3)}}
    name = {"a": self.PARAMS["a"], "b": {"v": self.PARAMS["b"]["w"]}}
    assert len({content_hash(params) for params in (self.PARAMS, value, shape, name)}) == 4
