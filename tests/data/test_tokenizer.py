import io
import json
import pathlib

import numpy as np
import pytest
import sentencepiece

from dreamjax.data import tokenizer as tokenizers
from dreamjax.data.tokenizer import Tokenizer, Tokenizers

LINES = ["a red dog on the beach", "a blue cat in the snow", "a red cat wearing a hat", "what is said often"] * 30


@pytest.fixture(scope="module")
def trained():
  return tokenizers.train(LINES, 340)


def test_any_text_is_encoded_and_read_back(trained):
  for text in ("a red dog", "A photo of a zebra, 4k!", "naïve café", "日本語 🙂", "x" * 30, "tabs\tand <unk> signs"):
    ids = trained(text)["input_ids"]
    assert trained.unk_token_id not in ids or "<unk>" in text
    assert trained.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text.replace(
      "<unk>", ""
    )


def test_frequent_words_are_single_pieces_and_others_are_not(trained):
  assert trained.tokenize("a red dog") == ["▁a", "▁red", "▁dog"]
  assert len(trained.tokenize("zebra")) > 1


def test_the_vocabulary_has_the_size_asked_for_and_t5s_special_tokens(trained):
  assert len(trained) <= 340
  assert [trained.convert_tokens_to_ids(piece) for piece in tokenizers.SPECIAL] == [0, 1, 2]


def test_rows_are_padded_and_cut_before_the_end_token(trained):
  with pytest.warns(UserWarning, match="a text of 10 tokens is truncated to 5, the rest has no effect: 'a red dog on"):
    ids, mask = Tokenizer(trained, 5)(["a red dog", "a red dog on the beach in the snow", ""])
  assert ids.shape == mask.shape == (3, 5) and ids.dtype == np.int32
  assert ids[0, 3] == trained.eos_token_id and ids[0, 4] == trained.pad_token_id
  assert ids[1, 4] == trained.eos_token_id
  np.testing.assert_array_equal(mask.sum(1), [4, 5, 1])
  np.testing.assert_array_equal(mask, ids != trained.pad_token_id)


def test_a_saved_tokenizer_is_loaded_again(trained, tmp_path: pathlib.Path):
  trained.save_pretrained(tmp_path)
  again = Tokenizer.load(tmp_path, 20)
  texts = ["a red dog", "naïve café 🙂"]
  np.testing.assert_array_equal(again(texts)[0], Tokenizer(trained, 20)(texts)[0])


def test_a_text_that_just_fits_is_not_warned_about(trained):
  ids, mask = Tokenizer(trained, 4)(["a red dog"])
  assert mask.all() and ids[0, -1] == trained.eos_token_id


def test_several_towers_lower_texts_as_each_of_them_does(trained):
  lowering, plain = Tokenizer(trained, 8, lowers=True), Tokenizer(trained, 8)
  ids, mask = Tokenizers([lowering, plain])(["A Red dog"])
  np.testing.assert_array_equal(ids[:, 0], lowering(["a red dog"])[0])
  np.testing.assert_array_equal(ids[:, 1], plain(["A Red dog"])[0])
  np.testing.assert_array_equal(mask, lowering(["a red dog"])[1])
  assert Tokenizers([lowering, plain]).lowers and Tokenizers([lowering, plain]).all == (lowering, plain)


def test_a_folder_of_deepfloyd_if_holds_pieces_of_sentencepiece_alone(tmp_path: pathlib.Path):
  model, ids = io.BytesIO(), {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
  options = {"vocab_size": 60, "hard_vocab_limit": False, "normalization_rule_name": "nmt_nfkc", "minloglevel": 2}
  sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=model, **ids, **options)
  (tmp_path / "spiece.model").write_bytes(model.getvalue())
  special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
  special["additional_special_tokens"] = [f"<extra_id_{i}>" for i in range(100)]
  settings = {**special, "extra_ids": 100, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}
  (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
  loaded = Tokenizer.load(tmp_path, 40, lowers=True)
  theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  texts = ["a red dog", "  A  Cat, wearing\ta hat?!", "naïve ½ 日本", "", "what is said often on the beach"]
  for text, ids, mask in zip(texts, *loaded(texts), strict=True):
    assert ids[mask].tolist() == [*theirs.encode(text.lower().strip()), 1]
    assert (ids[~mask] == 0).all()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: pathlib.Path):
  with pytest.raises((OSError, ValueError)):
    Tokenizer.load(tmp_path, 8)
