"""CLIP: a vision and a text transformer that embed images and captions in one space.

"Learning Transferable Visual Models From Natural Language Supervision" (Radford et al., 2021), sections 2.3 to 2.5.
Both towers are made of the blocks of `dreamjax.models.transformer`:

  (1) image_embedding = norm(class token of the vision tower) W_image
  (2) text_embedding = norm(end-of-text token of the text tower) W_text
  (3) logits = exp(logit_scale) cosine(image_embedding, text_embedding)

Eq. 3 is left to who uses it: embeddings come unnormalised. Weights start as in OpenAI's code.
"""

import math
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dreamjax.models.transformer import Block, PatchTokens, Spread, layer_norm

normal = nn.initializers.normal

TEMPERATURE = 0.07  # the softmax's at the start (section 2.5)


def spread(width: int, depth: int) -> Spread:
  """How OpenAI's code starts a tower: what enters the residual stream shrinks with the number of its sources."""
  return Spread(project=width**-0.5, expand=(2 * width) ** -0.5, leave=width**-0.5 * (2 * depth) ** -0.5)


class VisionTower(nn.Module):
  """Images to tokens and to one vector each.

  Attributes:
    image: side of the images; position embeddings are not interpolated to any other.
    patch: side of a patch.
    width: channels of a token.
    depth: blocks.
    heads: attention heads per block.
    mlp: width of the mlp's hidden layer.
    projection: width of the embedding (eq. 1); None leaves it out.
    activation: the mlp's, "quick_gelu" or "gelu".
    eps: of the layer norms.
    dtype: in which matrix products are computed; the rest is float32.
  """

  image: int
  patch: int
  width: int
  depth: int
  heads: int
  mlp: int
  projection: int | None = None
  activation: str = "quick_gelu"
  eps: float = 1e-5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, "b h w 3"], kept: Int[Array, "b k"] | None = None
  ) -> tuple[Float[Array, "b n d"], dict[str, Any]]:
    """Encodes images.

    Args:
      images: normalised as the weights expect it.
      kept: the numbers of the patches that are looked at, counted row by row; None for all.

    Returns:
      The last block's tokens (no layer norm behind them), the class token first, and intermediates: "hidden", a tuple
      of what enters the first block and of what each block returns; "pooled", the class token after a layer norm; and,
      with a `projection`, the "embedding".

    Raises:
      ValueError: if the images are of another size than `image`.
    """
    embed = PatchTokens(
      self.image, self.patch, self.width, use_bias=False, std=self.width**-0.5, dtype=self.dtype, name="embed"
    )
    hidden = [layer_norm(self.eps, "embed_norm")(embed(images, kept))]
    for i in range(self.depth):
      block = Block(
        self.heads,
        self.mlp,
        self.eps,
        self.activation,
        spread=spread(self.width, self.depth),
        dtype=self.dtype,
        name=f"block_{i}",
      )
      hidden.append(block(hidden[-1]))
    pooled = layer_norm(self.eps, "norm")(hidden[-1][:, 0])
    return hidden[-1], {"hidden": tuple(hidden), **_embed(pooled, self.projection)}


class TextTower(nn.Module):
  """Token ids to tokens and to one vector per text.

  Attributes:
    vocab: token ids there are.
    length: tokens that a text may have at most.
    width: channels of a token.
    depth: blocks.
    heads: attention heads per block.
    mlp: width of the mlp's hidden layer.
    projection: width of the embedding (eq. 2); None leaves it out.
    eos: id of the end-of-text token. Each text needs one; its first is what "pooled" takes.
    activation: the mlp's, "quick_gelu" or "gelu".
    eps: of the layer norms.
    dtype: in which matrix products are computed; the rest is float32.
  """

  vocab: int
  length: int
  width: int
  depth: int
  heads: int
  mlp: int
  projection: int | None = None
  eos: int = 49407
  activation: str = "quick_gelu"
  eps: float = 1e-5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, ids: Int[Array, "b n"]) -> tuple[Float[Array, "b n d"], dict[str, Any]]:
    """Encodes texts; no token sees those behind it.

    Args:
      ids: token ids, padded behind the end-of-text token with whatever the weights expect.

    Returns:
      The tokens after the last layer norm, and intermediates: "hidden", a tuple of what enters the first block and of
      what each block returns; "pooled", the token of the first end of text; and, with a `projection`, the "embedding".

    Raises:
      ValueError: if the texts are longer than `length`.
    """
    if ids.shape[1] > self.length:
      raise ValueError(f"this model reads texts of {self.length} tokens at most, not {ids.shape[1]}: cut them first")
    tokens = nn.Embed(self.vocab, self.width, embedding_init=normal(0.02), name="tokens")(ids)
    positions = self.param("positions", normal(0.01), (self.length, self.width))
    hidden = [tokens + positions[None, : ids.shape[1]]]
    for i in range(self.depth):
      block = Block(
        self.heads,
        self.mlp,
        self.eps,
        self.activation,
        causal=True,
        spread=spread(self.width, self.depth),
        dtype=self.dtype,
        name=f"block_{i}",
      )
      hidden.append(block(hidden[-1]))
    tokens = layer_norm(self.eps, "norm")(hidden[-1])
    end = jnp.argmax(ids == self.eos, axis=1)
    pooled = jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]
    return tokens, {"hidden": tuple(hidden), **_embed(pooled, self.projection)}


def _embed(pooled: Float[Array, "b d"], projection: int | None) -> dict[str, Array]:
  """Eq. 1 and 2, as part of the tower that is being called."""
  if projection is None:
    return {"pooled": pooled}
  matrix = nn.Dense(projection, use_bias=False, kernel_init=normal(pooled.shape[-1] ** -0.5), name="projection")
  return {"pooled": pooled, "embedding": matrix(pooled)}


class PromptEncoder(nn.Module):
  """The text towers of Stable Diffusion: a text to the tokens that a U-Net sees (SDXL: Podell et al., 2307.01952, 2.1).

  Attributes:
    towers: each reads the text by itself; what they say of a token stands side by side.
    penultimate: whether tokens are those that enter the towers' last block, instead of those behind the last norm.
    empty_is_zero: whether an empty text is zeros, whatever the towers say of it.
  """

  towers: tuple[TextTower, ...]
  penultimate: bool = False
  empty_is_zero: bool = False

  @nn.compact
  def __call__(
    self, ids: Int[Array, "b k n"], mask: Bool[Array, "b n"]
  ) -> tuple[Float[Array, "b n d"], dict[str, Any]]:
    """Encodes texts.

    Args:
      ids: token ids for each tower.
      mask: true where there is a token. The towers see padding too; only an empty text, which has no tokens but the
        first and the last, is told by it.

    Returns:
      The tokens, and intermediates: "pooled", the last tower's embedding, if it has a projection.
    """
    said = [tower(ids[:, i]) for i, tower in enumerate(self.towers)]
    tokens = jnp.concatenate([more["hidden"][-2] if self.penultimate else last for last, more in said], axis=-1)
    pooled = {"pooled": said[-1][1]["embedding"]} if self.towers[-1].projection else {}
    if self.empty_is_zero:
      spoken = jnp.sum(mask, axis=1) > 2
      tokens = jnp.where(spoken[:, None, None], tokens, 0.0)
      pooled = {name: jnp.where(spoken[:, None], x, 0.0) for name, x in pooled.items()}
    return tokens, pooled


class CLIP(nn.Module):
  """Both towers, which need projections of the same width, and the scale of their logits."""

  vision: VisionTower
  text: TextTower

  def setup(self):
    """Adds the one parameter that is in neither tower."""
    self.logit_scale = self.param("logit_scale", nn.initializers.constant(-math.log(TEMPERATURE)), ())

  def encode_image(self, images: Float[Array, "b h w 3"], kept: Int[Array, "b k"] | None = None) -> Float[Array, "b p"]:
    """The embeddings of normalised images (eq. 1), of whose patches only some may be looked at."""
    return self.vision(images, kept)[1]["embedding"]

  def encode_text(self, ids: Int[Array, "b n"]) -> Float[Array, "b p"]:
    """The embeddings of texts (eq. 2)."""
    return self.text(ids)[1]["embedding"]

  def __call__(
    self, images: Float[Array, "i h w 3"], ids: Int[Array, "t n"], kept: Int[Array, "i k"] | None = None
  ) -> tuple[Float[Array, "i p"], Float[Array, "t p"], Float[Array, ""]]:
    """The embeddings of images and of texts, and the logarithm of the logits' scale (eq. 3)."""
    return self.encode_image(images, kept), self.encode_text(ids), self.logit_scale


# Table 20.
B_32 = CLIP(
  VisionTower(image=224, patch=32, width=768, depth=12, heads=12, mlp=3072, projection=512),
  TextTower(vocab=49408, length=77, width=512, depth=12, heads=8, mlp=2048, projection=512),
)
L_14 = CLIP(
  VisionTower(image=224, patch=14, width=1024, depth=24, heads=16, mlp=4096, projection=768),
  TextTower(vocab=49408, length=77, width=768, depth=12, heads=12, mlp=3072, projection=768),
)

# LAION's, "Reproducible scaling laws for contrastive language-image learning" (Cherti et al., 2022).
H_14 = CLIP(
  VisionTower(image=224, patch=14, width=1280, depth=32, heads=16, mlp=5120, projection=1024, activation="gelu"),
  TextTower(vocab=49408, length=77, width=1024, depth=24, heads=16, mlp=4096, projection=1024, activation="gelu"),
)
# The text towers of OpenCLIP's ViT-bigG/14, SDXL's second one, and of its ViT-H/14 but for the last block, that of
# Stable Diffusion 2.
BIG_G_TEXT = TextTower(
  vocab=49408, length=77, width=1280, depth=32, heads=20, mlp=5120, projection=1280, activation="gelu"
)
SD_2_TEXT = H_14.text.clone(depth=23, projection=None)
