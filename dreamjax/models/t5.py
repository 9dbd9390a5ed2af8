"""The encoder of T5 v1.1.

"Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (Raffel et al., 2020), section 2.1:
a pre-norm transformer without biases, absolute positions and scaling of attention logits:

  (1) norm(x) = scale x / sqrt(mean(x^2) + eps)
  (2) attention(x) = softmax(q k^T + bias[bucket(key position - query position)]) v, the same bias in all blocks
  (3) mlp(x) = (gelu(x W_gate) * (x W_hidden)) W_out

Version 1.1 adds the gate of eq. 3 ("GLU Variants Improve Transformer", Shazeer, 2020, eq. 6). Matrix products run in
`dtype`; the residual stream, which exceeds the range of float16, the norms and the softmax stay in float32.
"""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from dreamjax.models.attention import attend

normal = nn.initializers.normal


def bucket(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
  """Returns the buckets of relative positions.

  One half of the buckets is for keys before the query, the other half for keys after it. Half of each hold one distance
  each, the rest hold ranges that grow logarithmically up to `max_distance`; the last one also holds all beyond.

  Args:
    distance: position of the key minus position of the query.
    buckets: total number of buckets.
    max_distance: where the last bucket begins to be unbounded.
  """
  half = buckets // 2
  exact = half // 2
  far = np.maximum(np.abs(distance), 1).astype(np.float32)
  growth = np.log(far / np.float32(exact)) / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
  ranges = np.minimum(exact + growth.astype(np.int32), half - 1)
  return np.where(distance > 0, half, 0) + np.where(np.abs(distance) < exact, np.abs(distance), ranges)


class SelfAttention(nn.Module):
  """Self-attention with a relative position bias (eq. 2)."""

  heads: int
  head_width: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], bias: Float[Array, "1 k n n"], mask: Bool[Array, "b 1 1 n"]
  ) -> Float[Array, "b n d"]:
    """Attends from each token to the tokens where `mask` is true."""
    width, inner = x.shape[-1], self.heads * self.head_width
    stds = {"query": (width * self.head_width) ** -0.5, "key": width**-0.5, "value": width**-0.5}
    query, key, value = (
      nn.Dense(inner, use_bias=False, kernel_init=normal(std), dtype=self.dtype, name=name)(x).reshape(
        *x.shape[:2], self.heads, self.head_width
      )
      for name, std in stds.items()
    )
    attended = attend(query, key, value, scale=1.0, bias=bias, mask=mask).reshape(*x.shape[:2], inner)
    return nn.Dense(width, use_bias=False, kernel_init=normal(inner**-0.5), dtype=self.dtype, name="out")(attended)


class GatedMLP(nn.Module):
  """The gated mlp (eq. 3)."""

  hidden: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Applies the mlp to each token."""
    width = x.shape[-1]
    gate, hidden = (
      nn.Dense(self.hidden, use_bias=False, kernel_init=normal(width**-0.5), dtype=self.dtype, name=name)(x)
      for name in ("gate", "hidden")
    )
    gated = nn.gelu(gate, approximate=True) * hidden
    return nn.Dense(width, use_bias=False, kernel_init=normal(self.hidden**-0.5), dtype=self.dtype, name="out")(gated)


class Block(nn.Module):
  """A transformer block: attention and mlp, each pre-norm and residual."""

  heads: int
  head_width: int
  mlp: int
  eps: float
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], bias: Float[Array, "1 k n n"], mask: Bool[Array, "b 1 1 n"]
  ) -> Float[Array, "b n d"]:
    """Applies the block to the residual stream; returns float32."""
    attention = SelfAttention(self.heads, self.head_width, self.dtype, name="attention")
    mlp = GatedMLP(self.mlp, self.dtype, name="mlp")
    x = x + attention(nn.RMSNorm(self.eps, name="attention_norm")(x), bias, mask).astype(jnp.float32)
    return x + mlp(nn.RMSNorm(self.eps, name="mlp_norm")(x)).astype(jnp.float32)


class T5Encoder(nn.Module):
  """Encodes token ids as tokens.

  Attributes:
    vocab: number of token ids.
    width: channels of a token.
    head_width: channels of an attention head; heads * head_width may differ from the width.
    heads: attention heads per block.
    mlp: width of the mlp's hidden layer.
    depth: number of blocks.
    buckets: number of buckets of relative positions.
    max_distance: beyond which relative positions share a bucket.
    eps: of the norms.
    dtype: of matrix products; everything else is computed in float32.
  """

  vocab: int
  width: int
  head_width: int
  heads: int
  mlp: int
  depth: int
  buckets: int = 32
  max_distance: int = 128
  eps: float = 1e-6
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"]) -> tuple[Float[Array, "b n d"], dict[str, Any]]:
    """Encodes texts.

    Args:
      ids: token ids.
      mask: true where there is a token, false where there is padding. The outputs at padding are undefined.

    Returns:
      The tokens after the last norm, and intermediates: "hidden", a tuple of the input of the first block and of the
      output of each block.
    """
    positions = np.arange(ids.shape[1])
    buckets = bucket(positions[None] - positions[:, None], self.buckets, self.max_distance)
    table = self.param("position_bias", normal(self.width**-0.5), (self.buckets, self.heads))
    bias = jnp.moveaxis(table[buckets], -1, 0)[None]
    hidden = [nn.Embed(self.vocab, self.width, embedding_init=normal(1.0), name="tokens")(ids)]
    for i in range(self.depth):
      block = Block(self.heads, self.head_width, self.mlp, self.eps, self.dtype, name=f"block_{i}")
      hidden.append(block(hidden[-1], bias, mask[:, None, None]))
    return nn.RMSNorm(self.eps, name="norm")(hidden[-1]), {"hidden": tuple(hidden)}


# The sizes of the released v1.1 checkpoints; XXL is the text encoder of Imagen, DeepFloyd IF and Muse.
V1_1_SMALL = T5Encoder(vocab=32128, width=512, head_width=64, heads=6, mlp=1024, depth=8)
V1_1_XXL = T5Encoder(vocab=32128, width=4096, head_width=64, heads=64, mlp=10240, depth=24)
