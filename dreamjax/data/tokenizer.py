"""Tokenizers: text to rows of token ids of one length, as the text encoders want them."""

from collections.abc import Iterable, Sequence
import json
import os
import pathlib

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
  """A tokenizer and the length of the rows that it makes.

  Attributes:
    length: tokens in a row, the end token counted.
    inner: the `transformers` tokenizer.
    lowers: whether texts are made lower-case first, as they were for DeepFloyd IF.
  """

  def __init__(self, inner: "transformers.PreTrainedTokenizerBase", length: int, lowers: bool = False) -> None:
    self.inner = inner
    self.length = length
    self.lowers = lowers

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
      ids [n, length], int32, and mask [n, length], true where there is a token. A text that is too long is cut before
      its end token, as the text encoders' authors do.
    """
    rows = self.inner(
      [self._read(text) for text in texts],
      padding="max_length",
      truncation=True,
      max_length=self.length,
      return_attention_mask=True,
    )
    return np.asarray(rows["input_ids"], np.int32), np.asarray(rows["attention_mask"], bool)

  def pieces(self, text: str) -> list[str]:
    """The pieces of a text, without special tokens."""
    return self.inner.tokenize(self._read(text))

  def _read(self, text: str) -> str:
    return text.lower().strip() if self.lowers else text


class Tokenizers(Tokenizer):
  """A tokenizer for each tower of a prompt encoder; they differ in padding, and identifiers are the first one's."""

  def __init__(self, tokenizers: Sequence[Tokenizer]) -> None:
    super().__init__(tokenizers[0].inner, tokenizers[0].length)
    self.all = tuple(tokenizers)

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Encodes texts: ids [n, k, length] for each of the k, and the first one's mask [n, length]."""
    rows = [tokenizer(texts) for tokenizer in self.all]
    return np.stack([ids for ids, _ in rows], axis=1), rows[0][1]


def train(lines: Iterable[str], size: int) -> "transformers.PreTrainedTokenizerFast":
  """Trains a vocabulary of word pieces by byte pair encoding (Sennrich et al., 2016).

  Whatever no piece spells is spelled by its bytes, so that any text can be encoded and read back.

  Args:
    lines: the corpus.
    size: number of pieces; the special ones and the 256 bytes count, too.
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
