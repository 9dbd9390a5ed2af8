"""The identifier: the rare word that replaces [V] in a prompt.

"DreamBooth" (Ruiz et al., 2023), section 3.2, looks rare tokens up in the tokenizer: for Imagen it samples uniformly
among the pieces 5000 to 10000 of T5-XXL's vocabulary that spell three characters or fewer, without spaces. A
vocabulary's pieces are sorted by frequency, so a range of indices is a range of rarity.

What counts is what the text encoder receives, after lower-casing, normalization and truncation: all functions here
tokenize whole prompts, by the same call as training and sampling do.
"""

from collections.abc import Iterable, Sequence
import re

import numpy as np

from dreamjax.data.tokenizer import Tokenizer
from dreamjax.errors import UserError

PLACEHOLDER = "[V]"
#: The paper's range, as shares of T5's vocabulary.
RARE = (5000 / 32128, 10000 / 32128)
_LONGEST = 3


def fill(prompt: str, identifier: str) -> str:
  """Replaces each [V] of the prompt by the identifier."""
  return re.sub(re.escape(PLACEHOLDER), lambda _: identifier, prompt, flags=re.IGNORECASE)


def candidates(tokenizer: Tokenizer, rare: tuple[float, float] = RARE, common: Iterable[str] = ()) -> list[str]:
  """Returns the words that may be identifiers, from the most frequent to the rarest.

  A candidate is a piece of the vocabulary that consists of letters only, since a quotation mark or a digit means
  something to any text encoder, and that a prompt contains as this one token, for every tower of the text encoder.

  Args:
    tokenizer: the text encoder's.
    rare: where in the vocabulary the rare pieces begin and end, as shares of its size.
    common: texts such as class nouns and prompts; no piece of theirs is a candidate.
  """
  size = len(tokenizer.inner)
  common = list(common)
  frequent = {i for tower in tokenizer.all for i in (tower(common)[0].reshape(-1).tolist() if common else ())}
  words = {}
  for i in range(*(round(share * size) for share in rare)):
    word = tokenizer.inner.decode([i], clean_up_tokenization_spaces=False).strip()
    if i not in frequent and len(word) <= _LONGEST and word.isalpha() and tokenizer.normalize(word) == word:
      words[i] = word
  found = [_in_a_prompt(tower, list(words.values())) for tower in tokenizer.all]
  return [word for (i, word), *ids in zip(words.items(), *found, strict=True) if all(own == [i] for own in ids)]


def choose(
  tokenizer: Tokenizer, seed: int, count: int = 1, rare: tuple[float, float] = RARE, common: Iterable[str] = ()
) -> list[str]:
  """Samples identifiers, all different.

  Args:
    tokenizer: the text encoder's.
    seed: of the random choice.
    count: number of identifiers.
    rare: see `candidates`.
    common: see `candidates`.

  Raises:
    ValueError: if the vocabulary holds fewer candidates.
  """
  found = candidates(tokenizer, rare, common)
  if len(found) < count:
    raise UserError(
      f"{count} identifiers are wanted, but the pieces between {rare[0]:.2f} and {rare[1]:.2f} of the vocabulary hold "
      f"only {len(found)} words of {_LONGEST} letters or fewer: choose a wider range, or an identifier of your own"
    )
  return [found[i] for i in np.random.default_rng(seed).choice(len(found), count, replace=False)]


def resolve(
  tokenizer: Tokenizer, identifier: str, seed: int, rare: tuple[float, float] = RARE, common: Iterable[str] = ()
) -> str:
  """Returns the identifier that a user chose, as prompts must have it; if that is "", one chosen at random.

  Raises:
    UserError: see `normalize` and `choose`.
  """
  return normalize(tokenizer, identifier) if identifier else choose(tokenizer, seed, 1, rare, common)[0]


def normalize(tokenizer: Tokenizer, identifier: str) -> str:
  """Returns an identifier that a user chose as prompts and the card must have it: "SKS" is "sks" for DeepFloyd IF.

  Raises:
    ValueError: if it does not survive in a prompt, see `tokens`.
  """
  identifier = " ".join(tokenizer.normalize(identifier).split())
  tokens(tokenizer, identifier)
  return identifier


def tokens(tokenizer: Tokenizer, identifier: str) -> list[int]:
  """Returns the ids of an identifier's tokens, as a prompt that contains it has them.

  Raises:
    ValueError: if a prompt has no such tokens, because the identifier is empty, longer than a prompt may be, unknown to
      the vocabulary, a special token, or merges with the words next to it; or if towers encode it differently.
  """
  found = [_in_a_prompt(tower, [identifier])[0] for tower in tokenizer.all]
  if not identifier.strip() or not all(found):
    raise UserError(
      f"the identifier {identifier!r} does not survive in a prompt: it is empty or too long, unknown to the tokenizer "
      "or one of its special tokens, or it merges with the words next to it: choose another one"
    )
  if any(ids != found[0] for ids in found):
    raise UserError(f"the identifier {identifier!r} has different tokens for each tower of the text encoder: {found}")
  return found[0]


def _in_a_prompt(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
  """Returns the ids of each word in the prompt "a <word> dog"; none for a word that does not survive there."""
  ids, mask = tokenizer(["a", "a dog", *(f"a {word} dog" for word in words)])
  begin, both, *prompts = (row[there].tolist() for row, there in zip(ids, mask, strict=True))
  start = next((i for i, (x, y) in enumerate(zip(begin, both, strict=False)) if x != y), len(begin))
  before, after = both[:start], both[start:]
  void = set(tokenizer.inner.all_special_ids)
  found = []
  for row in prompts:
    own = row[start : len(row) - len(after)]
    found.append(own if row == [*before, *own, *after] and void.isdisjoint(own) else [])
  return found
