"""A text encoder trained on captions: it fills in what is masked, and its mean token names what the caption says.

Filling in (Devlin et al., "BERT", 2019, section 3.1; T5's own objective needs a decoder) makes each token know its
neighbours, and, where the token to be predicted is not hidden, itself. Naming makes the pooled vector, which
conditions a generator beside the tokens, hold the whole caption. Rare pieces are strewn in where identifiers will stand
later: the encoder learns to let them pass.
"""

import pathlib
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import ml_collections
import numpy as np

from dreamjax.convert import pretrained
from dreamjax.data.examples import Examples, epochs
from dreamjax.data.tokenizer import Tokenizer
from dreamjax.methods.pretraining.classifier import cross_entropy
from dreamjax.methods.pretraining.task import Task, in_pieces, initial
from dreamjax.models.t5 import T5Encoder


class _WithHeads(nn.Module):
  """The encoder, and heads that are thrown away afterwards."""

  encoder: T5Encoder
  heads: dict[str, int]

  @nn.compact
  def __call__(
    self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"], places: Int[Array, "b m"]
  ) -> tuple[Float[Array, "b m v"], dict[str, Float[Array, "b _"]]]:
    """Returns the logits of the tokens in these places, and of each head."""
    tokens, _ = self.encoder(ids, mask)
    weight = jnp.where(mask, 1.0, 0.0)[..., None]
    mean = (tokens * weight).sum(1) / weight.sum(1)
    named = {name: nn.Dense(classes, name=f"head_{name}")(mean) for name, classes in sorted(self.heads.items())}
    chosen = jnp.take_along_axis(tokens, places[..., None], axis=1)
    return nn.Dense(self.encoder.vocab, name="pieces")(chosen), named


def hide(
  key: jax.Array, ids: Int[Array, "b n"], mask: Bool[Array, "b n"], count: int, unknown: int
) -> tuple[Int[Array, "b n"], Int[Array, "b m"]]:
  """Chooses tokens to be predicted, and hides four of five of them behind the unknown piece, as BERT does.

  Returns:
    The ids with what is hidden, and the places that were chosen, `count` a row; a row that is too short has some of its
    padding chosen, too.
  """
  chance, keep = jax.random.split(key)
  scores = jnp.where(mask, jax.random.uniform(chance, ids.shape), -1.0)
  places = jax.lax.top_k(scores, count)[1]
  hidden = jax.random.bernoulli(keep, 0.8, places.shape)
  rows = jnp.arange(ids.shape[0])[:, None]
  return ids.at[rows, places].set(jnp.where(hidden, unknown, ids[rows, places])), places


def rare_pieces(tokenizer: Tokenizer, captions: list[str]) -> np.ndarray:
  """The ids of the pieces that stand in none of the captions, special tokens and bytes left out."""
  used = set(tokenizer(captions)[0].reshape(-1).tolist())
  vocabulary = tokenizer.inner.get_vocab()
  plain = [i for piece, i in vocabulary.items() if not (piece.startswith("<") and piece.endswith(">"))]
  return np.array(sorted(set(plain) - used))


def task(
  config: ml_collections.ConfigDict,
  examples: Examples,
  held_out: Examples,
  tokenizer: Tokenizer,
  mesh: jax.sharding.Mesh | None = None,
) -> Task:
  """Only the examples' captions and labels are used."""
  encoder = T5Encoder(vocab=len(tokenizer.inner), **config.model)
  model = _WithHeads(encoder, {name: len(words) for name, words in examples.words.items()})
  order = epochs(len(examples), config.batch_size, config.seed)
  empty = jnp.zeros((1, config.length), jnp.int32)
  theta = {"params": initial(model, jax.random.key(config.seed), empty, empty == 0, empty, mesh=mesh)}
  rare = rare_pieces(tokenizer, examples.captions(np.arange(min(len(examples), 4096))))
  unknown = tokenizer.inner.unk_token_id

  def loss(theta: Any, frozen: None, batch: Any, key: jax.Array):
    ids, mask = batch["ids"], batch["mask"]
    shown, places = hide(key, ids, mask, config.hidden, unknown)
    pieces, named = model.apply(theta, shown, mask, places)
    truth = jnp.take_along_axis(ids, places, axis=1)
    there = jnp.where(jnp.take_along_axis(mask, places, axis=1), 1.0, 0.0)
    picked = jnp.take_along_axis(jax.nn.log_softmax(pieces), truth[..., None], axis=-1)[..., 0]
    right = jnp.where(jnp.argmax(pieces, axis=-1) == truth, 1.0, 0.0)
    naming, heads = cross_entropy(named, batch["labels"])
    filling = -(there * picked).sum() / there.sum()
    scores = {f"right_{name}": value for name, value in heads.items()}
    return filling + naming, {"filling": filling, "filled_in": (there * right).sum() / there.sum(), **scores}

  def rows(indices: np.ndarray, source: Examples) -> Any:
    ids, mask = tokenizer(source.captions(indices))
    labels = {name: values[indices].astype(np.int32) for name, values in source.labels.items()}
    return {"ids": ids[:, : config.length], "mask": mask[:, : config.length], "labels": labels}

  def batches(i: int) -> Any:
    draw, batch = np.random.default_rng((config.seed, 1, i)), rows(order(i), examples)
    ids, mask = batch["ids"], batch["mask"]
    for row in np.flatnonzero(draw.random(len(ids)) < config.rare):
      place = draw.integers(1, min(4, mask[row].sum()))
      ids[row, place + 1 :], mask[row, place + 1 :] = ids[row, place:-1].copy(), mask[row, place:-1].copy()
      ids[row, place] = draw.choice(rare)
    return batch

  apply = jax.jit(lambda theta, batch: model.apply(theta, batch["ids"], batch["mask"], batch["ids"][:, :1])[1])

  def measure(theta: Any) -> dict[str, float]:
    batch = jax.device_put(rows(np.arange(min(len(held_out), 2048)), held_out))
    right = cross_entropy(in_pieces(lambda batch: apply(theta, batch), batch), batch["labels"])[1]
    return {f"held_out_{name}": float(value) for name, value in right.items()}

  def save(theta: Any, folder: pathlib.Path) -> None:
    pretrained.save(folder, encoder, theta["params"]["encoder"])
    tokenizer.inner.save_pretrained(folder)

  return Task(theta, loss, batches, measure, save)
