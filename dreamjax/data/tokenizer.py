"""Tokenizers: map texts to token ids of a fixed length, as text encoders take them."""

from collections.abc import Iterable, Sequence
import json
import os
import pathlib
import warnings

from etils import epy
import numpy as np
import tokenizers

# transformers warns at its import that there is no PyTorch, which tokenizers do not need. The import takes seconds, and
# waits until a tokenizer is read.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
with epy.lazy_imports():
  import transformers

#: The first pieces of a vocabulary that `train` makes, as in T5's: padding, end of the text, unknown.
SPECIAL = ("<pad>", "</s>", "<unk>")


class Tokenizer:
  """A tokenizer that pads and truncates to a fixed length.

  Attributes:
    length: number of tokens of each encoded text, including special tokens.
    inner: the `transformers` tokenizer.
    lowers: whether texts are lower-cased and stripped first, as for DeepFloyd IF.
    all: the tokenizers of all text towers: this one alone, except in `Tokenizers`.
  """

  def __init__(self, inner: "transformers.PreTrainedTokenizerBase", length: int, lowers: bool = False) -> None:
    self.inner = inner
    self.length = length
    self.lowers = lowers
    self.all: tuple[Tokenizer, ...] = (self,)

  @classmethod
  def load(cls, folder: pathlib.Path | str, length: int, lowers: bool = False) -> "Tokenizer":
    """Loads the tokenizer of a folder (or hub id) in the Hugging Face layout.

    Raises:
      OSError, ValueError: if there is none.
    """
    return cls(transformers.AutoTokenizer.from_pretrained(str(folder)), length, lowers)

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Encodes texts.

    Returns:
      ids [n, length], int32, and mask [n, length], true where there is a token. A text that is too long is truncated
      before its end token, as the text encoders' authors do, with a warning.
    """
    normalized = [self.normalize(text) for text in texts]
    encoded = self.inner(
      normalized, padding="max_length", truncation=True, max_length=self.length, return_attention_mask=True
    )
    ids, mask = np.asarray(encoded["input_ids"], np.int32), np.asarray(encoded["attention_mask"], bool)
    for i in np.flatnonzero(mask.all(axis=-1)):
      count = len(self.inner(normalized[i], truncation=False, verbose=False)["input_ids"])
      if count > self.length:
        warnings.warn(
          f"a text of {count} tokens is truncated to {self.length}, the rest has no effect: {texts[i]!r}", stacklevel=2
        )
    return ids, mask

  def normalize(self, text: str) -> str:
    """Returns the text as it is passed to `inner`: in lower case and stripped, if `lowers`."""
    return text.lower().strip() if self.lowers else text


class Tokenizers(Tokenizer):
  """The tokenizers of the towers of a prompt encoder; `inner`, `length` and `lowers` are those of the first."""

  def __init__(self, tokenizers: Sequence[Tokenizer]) -> None:
    super().__init__(tokenizers[0].inner, tokenizers[0].length, tokenizers[0].lowers)
    self.all = tuple(tokenizers)

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Encodes texts: ids [n, k, length] for each of the k towers, and the first one's mask [n, length]."""
    encoded = [tokenizer(texts) for tokenizer in self.all]
    return np.stack([ids for ids, _ in encoded], axis=1), encoded[0][1]


def train(lines: Iterable[str], size: int) -> "transformers.PreTrainedTokenizerFast":
  """Trains a vocabulary of word pieces by byte pair encoding (Sennrich et al., 2016).

  Characters outside the vocabulary are encoded as their UTF-8 bytes, so that any text can be encoded and decoded.

  Args:
    lines: the corpus.
    size: number of pieces, including the special ones and the 256 bytes.
  """
  bytes_ = [f"<0x{i:02X}>" for i in range(256)]
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.normalizer = tokenizers.normalizers.NFC()
  model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=size - len(bytes_), special_tokens=list(SPECIAL), limit_alphabet=200, show_progress=False
  )
  model.train_from_iterator(lines, trainer)
  found = json.loads(model.to_str())["model"]
  pieces = found["vocab"] | {byte: len(found["vocab"]) + i for i, byte in enumerate(bytes_)}
  merges = [tuple(pair) for pair in found["merges"]]
  model.model = tokenizers.models.BPE(pieces, merges, byte_fallback=True, unk_token=SPECIAL[2])
  decoders = tokenizers.decoders
  model.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
  )
  model.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"$A {SPECIAL[1]}", special_tokens=[(SPECIAL[1], 1)]
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=model, pad_token=SPECIAL[0], eos_token=SPECIAL[1], unk_token=SPECIAL[2]
  )
