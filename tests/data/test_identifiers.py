"""Identifiers: rare single tokens, whatever the tokenizer is."""

import pytest
import tokenizers
import transformers

from dreamjax.data import identifiers
from dreamjax.data import tokenizer as ours
from dreamjax.data.identifiers import candidates, choose, fill, objection
from dreamjax.data.tokenizer import Tokenizer

OFTEN = ["a red dog on the beach", "a blue cat in the snow", "a red cat wearing a hat"] * 50
SELDOM = ["qux wug zorp vim 42 l'x sprite", "qux wug vim 42 l'x", "wug l'x vim qux 42 zax"] * 4
RARE = (0.1, 0.9)


def clips(lines):
  """A vocabulary whose pieces end, rather than begin, with a mark, as in CLIP's."""
  model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="?", end_of_word_suffix="</w>"))
  model.normalizer = tokenizers.normalizers.Lowercase()
  model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  model.decoder = tokenizers.decoders.BPEDecoder("</w>")
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400, special_tokens=["?"], end_of_word_suffix="</w>", show_progress=False
  )
  model.train_from_iterator(lines, trainer)
  return transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="?")


@pytest.fixture(scope="module", params=["T5's", "CLIP's"])
def tokenizer(request):
  lines = OFTEN + SELDOM
  return Tokenizer(ours.train(lines, 420) if request.param == "T5's" else clips(lines), 12)


def test_candidates_are_short_words_that_come_back_as_one_token(tokenizer):
  found = candidates(tokenizer, RARE)
  assert {"qux", "wug", "vim"} <= set(found)
  vocabulary = tokenizer.inner.get_vocab()
  for word in found:
    assert 1 <= len(word) <= 3 and word.isalpha()
    (piece,) = tokenizer.pieces(word)
    assert RARE[0] * len(vocabulary) - 1 <= vocabulary[piece] <= RARE[1] * len(vocabulary)
    assert piece in tokenizer.pieces(f"a photo of a {word} dog on the beach")


def test_frequent_words_come_first_and_can_be_left_out(tokenizer):
  everything = candidates(tokenizer, (0.0, 1.0))
  assert everything.index("dog") < everything.index("wug")
  assert "dog" not in candidates(tokenizer, (everything.index("wug") / len(everything), 1.0))
  assert set(everything) - set(candidates(tokenizer, (0.0, 1.0), common=["a red dog", "vim"])) == {
    "a", "red", "dog", "vim",
  }  # fmt: skip


def test_a_seed_fixes_the_choice(tokenizer):
  assert choose(tokenizer, 3, 2, RARE) == choose(tokenizer, 3, 2, RARE)
  assert len({choose(tokenizer, seed, 1, RARE)[0] for seed in range(20)}) > 2


def test_several_identifiers_differ(tokenizer):
  found = candidates(tokenizer, RARE)
  assert sorted(choose(tokenizer, 0, len(found), RARE)) == sorted(found)
  with pytest.raises(ValueError, match=rf"{len(found) + 1} identifiers are wanted.* only {len(found)} words"):
    choose(tokenizer, 0, len(found) + 1, RARE)


def test_the_range_of_the_paper():
  assert [round(share * 32128) for share in identifiers.RARE] == [5000, 10000]


def test_what_is_no_single_token_is_objected_to(tokenizer):
  assert objection(tokenizer, "wug") is None
  for identifier in ("xxyst", "wug qux", "a wug", "wug,"):
    assert f"'{identifier}' is not one token but" in objection(tokenizer, identifier)
  assert "not one token but 0" in objection(tokenizer, "")


def test_the_identifier_stands_in_each_place_of_v():
  assert fill("a [V] dog beside another [v] dog", r"s\1ks") == r"a s\1ks dog beside another s\1ks dog"
  assert fill("a dog", "sks") == "a dog"
