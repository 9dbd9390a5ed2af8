"""Training of a text encoder on captions: it predicts masked tokens, and its mean output predicts the caption's labels.

Masked prediction (Devlin et al., "BERT", 2019, section 3.1; T5's own objective needs a decoder) makes each output hold
its neighbours and, where the token to be predicted is not masked, the token itself. Predicting labels makes the pooled
vector, on which a generator is conditioned besides the tokens, hold the whole caption. Rare tokens are inserted at
random where identifiers will be later, so that the encoder learns to ignore them.
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
from dreamjax.methods.pretraining.task import Task, in_batches, init_params
from dreamjax.models.t5 import T5Encoder

_MASK_SHARE = 0.8  # of the chosen tokens, as in BERT; the others are predicted from themselves
_SEARCHED = 4096  # captions, for tokens that stand in none
_MEASURED = 2048  # held-out captions


class _WithHeads(nn.Module):
  """The encoder with heads for tokens and labels, which are not saved."""

  encoder: T5Encoder
  heads: dict[str, int]

  @nn.compact
  def __call__(
    self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"], positions: Int[Array, "b m"]
  ) -> tuple[Float[Array, "b m v"], dict[str, Float[Array, "b _"]]]:
    """Returns the logits of the tokens at these positions, and those of each head."""
    tokens, _ = self.encoder(ids, mask)
    weight = jnp.where(mask, 1.0, 0.0)[..., None]
    mean = (tokens * weight).sum(1) / weight.sum(1)
    labels = {name: nn.Dense(classes, name=f"head_{name}")(mean) for name, classes in sorted(self.heads.items())}
    chosen = jnp.take_along_axis(tokens, positions[..., None], axis=1)
    return nn.Dense(self.encoder.vocab, name="pieces")(chosen), labels


def mask_tokens(
  key: jax.Array, ids: Int[Array, "b n"], mask: Bool[Array, "b n"], count: int, unknown: int
) -> tuple[Int[Array, "b n"], Int[Array, "b m"]]:
  """Chooses tokens to be predicted, and replaces four of five of them by the unknown token, as BERT does.

  Returns:
    The ids after the replacement, and the positions that were chosen, `count` of each text; where a text has fewer
    tokens, some are of its padding.
  """
  position_key, mask_key = jax.random.split(key)
  scores = jnp.where(mask, jax.random.uniform(position_key, ids.shape), -1.0)
  positions = jax.lax.top_k(scores, count)[1]
  replaced = jax.random.bernoulli(mask_key, _MASK_SHARE, positions.shape)
  rows = jnp.arange(ids.shape[0])[:, None]
  return ids.at[rows, positions].set(jnp.where(replaced, unknown, ids[rows, positions])), positions


def rare_tokens(tokenizer: Tokenizer, captions: list[str]) -> np.ndarray:
  """Finds the ids of the tokens that stand in none of the captions, without special tokens and bytes."""
  used = set(tokenizer(captions)[0].reshape(-1).tolist())
  vocabulary = tokenizer.inner.get_vocab()
  plain = [i for token, i in vocabulary.items() if not (token.startswith("<") and token.endswith(">"))]
  return np.array(sorted(set(plain) - used))


class TextTask(Task):
  """The training of a text encoder on the examples' captions and labels; their images are not read."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    examples: Examples,
    held_out: Examples,
    tokenizer: Tokenizer,
    mesh: jax.sharding.Mesh | None = None,
  ) -> None:
    """Initialises the parameters.

    Args:
      config: see `configs/pretrain_encoders.py`, "t5".
      examples: captions and labels to train on.
      held_out: those to evaluate on.
      tokenizer: of the captions.
      mesh: devices over which parameters are sharded; see `parallel.sharding`.
    """
    self.config, self.examples, self.held_out, self.tokenizer = config, examples, held_out, tokenizer
    self.encoder = T5Encoder(vocab=len(tokenizer.inner), **config.model)
    self.model = _WithHeads(self.encoder, {name: len(words) for name, words in examples.words.items()})
    ids = jnp.zeros((1, config.length), jnp.int32)
    self.theta = {"params": init_params(self.model, jax.random.key(config.seed), ids, ids == 0, ids, mesh=mesh)}
    self._order = epochs(len(examples), config.batch_size, config.seed)
    self._rare = rare_tokens(tokenizer, examples.captions(np.arange(min(len(examples), _SEARCHED))))
    self._predict_labels = jax.jit(lambda theta, x: self.model.apply(theta, x["ids"], x["mask"], x["ids"][:, :1])[1])

  def loss(self, theta: Any, frozen: None, batch: Any, key: jax.Array) -> tuple[Array, dict[str, Array]]:
    """Computes the cross entropy of masked tokens plus that of labels; the metrics are accuracies."""
    del frozen
    ids, mask = batch["ids"], batch["mask"]
    masked, positions = mask_tokens(key, ids, mask, self.config.hidden, self.tokenizer.inner.unk_token_id)
    logits, label_logits = self.model.apply(theta, masked, mask, positions)
    target = jnp.take_along_axis(ids, positions, axis=1)
    weight = jnp.where(jnp.take_along_axis(mask, positions, axis=1), 1.0, 0.0)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
    right = jnp.where(jnp.argmax(logits, axis=-1) == target, 1.0, 0.0)
    label_loss, accuracy = cross_entropy(label_logits, batch["labels"])
    token_loss = -(weight * log_p).sum() / weight.sum()
    metrics = {"token_loss": token_loss, "token_accuracy": (weight * right).sum() / weight.sum()}
    return token_loss + label_loss, metrics | {f"accuracy_{name}": value for name, value in accuracy.items()}

  def batch(self, i: int) -> Any:
    """Returns the tokens and labels of update i's captions, a rare token inserted into a share of them."""
    rng, batch = np.random.default_rng((self.config.seed, 1, i)), self._read(self._order(i), self.examples)
    ids, mask = batch["ids"], batch["mask"]
    for row in np.flatnonzero(rng.random(len(ids)) < self.config.rare):
      position = rng.integers(1, min(4, mask[row].sum()))
      for x in (ids[row], mask[row]):
        x[position + 1 :] = x[position:-1].copy()
      ids[row, position] = rng.choice(self._rare)
    return batch

  def measure(self, theta: Any) -> dict[str, float]:
    """Computes the accuracy of each of the held-out captions' labels."""
    batch = jax.device_put(self._read(np.arange(min(len(self.held_out), _MEASURED)), self.held_out))
    logits = in_batches(lambda some: self._predict_labels(theta, some), batch)
    accuracy = cross_entropy(logits, batch["labels"])[1]
    return {f"held_out_{name}": float(value) for name, value in accuracy.items()}

  def save(self, theta: Any, folder: pathlib.Path) -> None:
    """Writes the encoder and its tokenizer."""
    pretrained.save(folder, self.encoder, theta["params"]["encoder"])
    self.tokenizer.inner.save_pretrained(folder)

  def _read(self, indices: np.ndarray, source: Examples) -> Any:
    """Token ids, mask and labels of these captions."""
    ids, mask = self.tokenizer(source.captions(indices))
    labels = {name: values[indices].astype(np.int32) for name, values in source.labels.items()}
    return {"ids": ids[:, : self.config.length], "mask": mask[:, : self.config.length], "labels": labels}
