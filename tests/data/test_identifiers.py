"""Identifiers: rare single tokens, whatever the tokenizer is."""

import pytest
import tokenizers
import transformers

from dreamjax.data import identifiers
from dreamjax.data import tokenizer as ours
from dreamjax.data.identifiers import candidates, choose, fill, normalize, tokens
from dreamjax.data.tokenizer import Tokenizer, Tokenizers

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
  return transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="?", pad_token="?")


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
    (piece,) = tokenizer.inner.tokenize(word)
    assert RARE[0] * len(vocabulary) - 1 <= vocabulary[piece] <= RARE[1] * len(vocabulary)
    assert piece in tokenizer.inner.tokenize(f"a photo of a {word} dog on the beach")


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


CAPITALS = ["US is a QUX place", "us wug QUX a dog"] * 20


def as_a_prompt_has_it(tokenizer, identifier):
  """The tokens between those of "a" and of "dog", by the tokenizer's own call."""
  rows = [ids[mask].tolist() for ids, mask in zip(*tokenizer([f"a {identifier} dog", "a dog"]), strict=True)]
  return [i for i in rows[0] if i not in rows[1]]


@pytest.mark.parametrize("lowers", [False, True])
def test_a_candidate_survives_what_a_prompt_goes_through(lowers):
  tokenizer = Tokenizer(ours.train(OFTEN + CAPITALS, 420), 12, lowers)
  found = candidates(tokenizer, (0.0, 1.0))
  assert {"us", "wug"} <= set(found) and ("US" in found) == ("QUX" in found) == (not lowers)
  for word in found:
    if word not in ("a", "dog"):
      assert [tokenizer.inner.decode([i]) for i in as_a_prompt_has_it(tokenizer, word)] == [word]


def test_common_texts_are_lower_cased_as_well():
  tokenizer = Tokenizer(ours.train(OFTEN + CAPITALS, 420), 12, lowers=True)
  assert "us" in candidates(tokenizer, (0.0, 1.0))
  assert "us" not in candidates(tokenizer, (0.0, 1.0), common=["a US dog"])


def test_the_tokens_are_those_that_a_prompt_gets():
  lowering = Tokenizer(ours.train(OFTEN + CAPITALS, 420), 20, lowers=True)
  for identifier in ("US", "us", "wug us", "QUX", "sks"):
    assert tokens(lowering, identifier) == as_a_prompt_has_it(lowering, identifier) != []
  assert tokens(lowering, "US") == tokens(lowering, "us")
  assert tokens(Tokenizer(lowering.inner, 20), "US") != tokens(lowering, "US")


def test_a_word_that_a_tokenizer_spells_otherwise_at_the_start_of_a_text_is_that_within_a_prompt():
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.train_from_iterator(OFTEN + SELDOM, tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False))
  tokenizer = Tokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]"), 12)
  assert tokens(tokenizer, "wug") == [tokenizer.inner.convert_tokens_to_ids("Ġwug")]


def test_a_user_s_own_identifier_is_what_the_tokenizer_reads():
  inner = ours.train(OFTEN + CAPITALS, 420)
  assert normalize(Tokenizer(inner, 12, lowers=True), " SKS ") == "sks"
  assert normalize(Tokenizer(inner, 12), " SKS  dog ") == "SKS dog"


def test_an_identifier_that_does_not_survive_is_refused(tokenizer):
  assert normalize(tokenizer, "wug") == "wug"
  for identifier in ("", " ", "<unk>" if tokenizer.inner.unk_token == "<unk>" else "日"):
    with pytest.raises(ValueError, match="the identifier '.*' does not survive in a prompt"):
      normalize(tokenizer, identifier)
  with pytest.warns(UserWarning, match="truncated"), pytest.raises(ValueError, match="'wug .* does not survive"):
    tokens(tokenizer, "wug " * 11)


def test_an_identifier_is_the_same_token_for_every_tower():
  first, second = (ours.train(OFTEN + lines, 420) for lines in (SELDOM, SELDOM[::-1] + CAPITALS))
  alike = Tokenizers([Tokenizer(first, 12), Tokenizer(first, 12)])
  assert candidates(alike, RARE) == candidates(alike.all[0], RARE)
  assert tokens(alike, "wug") == tokens(alike.all[0], "wug")
  mixed = Tokenizers([Tokenizer(first, 12), Tokenizer(second, 12)])
  for word in candidates(mixed, (0.0, 1.0)):
    assert tokens(mixed.all[0], word) == tokens(mixed.all[1], word)
  assert tokens(mixed.all[0], "wug") != tokens(mixed.all[1], "wug") and "wug" not in candidates(mixed, (0.0, 1.0))
  with pytest.raises(ValueError, match="the identifier 'wug' has different tokens for each tower"):
    tokens(mixed, "wug")
  capitals = Tokenizer(second, 12)
  assert "US" in candidates(capitals, (0.0, 1.0))
  lowering = Tokenizers([capitals, Tokenizer(second, 12, lowers=True)])
  assert "us" in candidates(lowering, (0.0, 1.0)) and "US" not in candidates(lowering, (0.0, 1.0))


def test_the_identifier_stands_in_each_place_of_v():
  assert fill("a [V] dog beside another [v] dog", r"s\1ks") == r"a s\1ks dog beside another s\1ks dog"
  assert fill("a dog", "sks") == "a dog"
