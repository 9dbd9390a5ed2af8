"""The identifier: the rare word that [V] in a prompt stands for.

"DreamBooth" (Ruiz et al., 2023), section 3.2, looks rare tokens up in the tokenizer: for Imagen it draws uniformly
among the pieces 5000 to 10000 of T5-XXL's that spell three characters or fewer, without spaces. A vocabulary's pieces
stand in the order of their frequency, so a range of them is a range of rarity.
"""

from collections.abc import Iterable
import re

import numpy as np

from dreamjax.data.tokenizer import Tokenizer

PLACEHOLDER = "[V]"
#: The paper's range, as shares of T5's vocabulary.
RARE = (5000 / 32128, 10000 / 32128)
_LONGEST = 3


def fill(prompt: str, identifier: str) -> str:
  """The prompt with the identifier in each place of [V]."""
  return re.sub(re.escape(PLACEHOLDER), lambda _: identifier, prompt, flags=re.IGNORECASE)


def candidates(tokenizer: Tokenizer, rare: tuple[float, float] = RARE, common: Iterable[str] = ()) -> list[str]:
  """The words that may be identifiers, from the most frequent to the rarest.

  Each is a single piece within a prompt: it is tokenized there again, as the paper does it. And it is of letters only,
  since a quotation mark or a digit means something to any text encoder.

  Args:
    tokenizer: the text encoder's.
    rare: where in the vocabulary the rare pieces begin and end, as shares of its size.
    common: texts such as class nouns and prompts; no piece of theirs is a candidate.
  """
  size = len(tokenizer.inner)
  frequent = set(_ids(tokenizer, common))
  words = {}
  for i in range(*(round(share * size) for share in rare)):
    word = tokenizer.inner.decode([i], clean_up_tokenization_spaces=False).strip()
    if i not in frequent and len(word) <= _LONGEST and word.isalpha():
      words[i] = word
  return [word for i, word in words.items() if _is_single(tokenizer, word, i)]


def choose(
  tokenizer: Tokenizer, seed: int, count: int = 1, rare: tuple[float, float] = RARE, common: Iterable[str] = ()
) -> list[str]:
  """Draws identifiers at random, all different.

  Args:
    tokenizer: the text encoder's.
    seed: of the draw.
    count: one for each subject.
    rare: see `candidates`.
    common: see `candidates`.

  Raises:
    ValueError: if the vocabulary holds fewer candidates.
  """
  found = candidates(tokenizer, rare, common)
  if len(found) < count:
    raise ValueError(
      f"{count} identifiers are wanted, but the pieces between {rare[0]:.2f} and {rare[1]:.2f} of the vocabulary hold "
      f"only {len(found)} words of {_LONGEST} letters or fewer: choose a wider range, or an identifier of your own"
    )
  return [found[i] for i in np.random.default_rng(seed).choice(len(found), count, replace=False)]


def objection(tokenizer: Tokenizer, identifier: str) -> str | None:
  """What speaks against an identifier that a user chose; None if it is a single token."""
  pieces = tokenizer.pieces(identifier)
  if len(pieces) == 1 and _is_single(tokenizer, identifier, *_ids(tokenizer, [identifier])):
    return None
  return (
    f"the identifier {identifier!r} is not one token but {len(pieces)} ({' '.join(pieces)}), which mean something "
    "already: a single rare one binds to the subject better"
  )


def tokens(tokenizer: Tokenizer, identifier: str) -> list[int]:
  """The ids of an identifier's tokens, as they are within a prompt."""
  return _ids(tokenizer, [identifier])


def _ids(tokenizer: Tokenizer, texts: Iterable[str]) -> list[int]:
  return [i for text in texts for i in tokenizer.inner.encode(text, add_special_tokens=False)]


def _is_single(tokenizer: Tokenizer, word: str, i: int) -> bool:
  """Whether the word is piece i within a prompt, and leaves the others as they are."""
  before, after = _ids(tokenizer, ["a"]), _ids(tokenizer, ["dog"])
  return _ids(tokenizer, [f"a {word} dog"]) == [*before, i, *after]
