"""CLIP: a vision and a text transformer that embed images and texts in one space.

"Learning Transferable Visual Models From Natural Language Supervision" (Radford et al., 2021), sections 2.3 to 2.5.
Both towers consist of the blocks of `dreamjax.models.transformer`:

  (1) image_embedding = norm(class token of the vision tower) W_image
  (2) text_embedding = norm(end-of-text token of the text tower) W_text
  (3) logits = exp(logit_scale) cosine(image_embedding, text_embedding)

Embeddings are returned unnormalised; callers compute eq. 3. Parameters are initialised as in OpenAI's code.
"""

import math
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dreamjax.models.transformer import Block, PatchTokens, Spread, layer_norm

normal = nn.initializers.normal

TEMPERATURE = 0.07  # of the softmax at initialisation (section 2.5)


def spread(width: int, depth: int) -> Spread:
  """Returns the initial standard deviations of OpenAI's code; kernels into the residual stream shrink with depth."""
  return Spread(project=width**-0.5, expand=(2 * width) ** -0.5, leave=width**-0.5 * (2 * depth) ** -0.5)


class VisionTower(nn.Module):
  """Encodes images as tokens and as one vector each.

  Attributes:
    image: height and width of the images; position embeddings are not interpolated.
    patch: height and width of a patch.
    width: channels of a token.
    depth: number of blocks.
    heads: attention heads per block.
    mlp: width of the mlp's hidden layer.
    projection: width of the embedding (eq. 1); None for no embedding.
    activation: of the mlp, "quick_gelu" or "gelu".
    eps: of the layer norms.
    dtype: of matrix products; everything else is computed in float32.
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
      images: normalised as the weights expect.
      kept: indices of the patches to encode, in row-major order; None for all.

    Returns:
      The tokens of the last block (without a final layer norm), the class token first, and intermediates: "hidden", a
      tuple of the input of the first block and the output of each block; "pooled", the class token after a layer norm;
      and, with a `projection`, the "embedding".

    Raises:
      ValueError: if the size of the images is not `image`.
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
  """Encodes token ids as tokens and as one vector for each text.

  Attributes:
    vocab: number of token ids.
    length: maximum number of tokens of a text.
    width: channels of a token.
    depth: number of blocks.
    heads: attention heads per block.
    mlp: width of the mlp's hidden layer.
    projection: width of the embedding (eq. 2); None for no embedding.
    eos: id of the end-of-text token. Each text needs one; "pooled" takes the first.
    activation: of the mlp, "quick_gelu" or "gelu".
    eps: of the layer norms.
    dtype: of matrix products; everything else is computed in float32.
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
    """Encodes texts with causal attention.

    Args:
      ids: token ids, padded after the end-of-text token as the weights expect.

    Returns:
      The tokens after the last layer norm, and intermediates: "hidden", a tuple of the input of the first block and the
      output of each block; "pooled", the token of the first end of text; and, with a `projection`, the "embedding".

    Raises:
      ValueError: if the texts are longer than `length`.
    """
    if ids.shape[1] > self.length:
      raise ValueError(f"texts of {ids.shape[1]} tokens exceed this model's maximum of {self.length}: truncate them")
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
  """Computes eqs. 1 and 2, as part of the tower that calls it."""
  if projection is None:
    return {"pooled": pooled}
  matrix = nn.Dense(projection, use_bias=False, kernel_init=normal(pooled.shape[-1] ** -0.5), name="projection")
  return {"pooled": pooled, "embedding": matrix(pooled)}


class PromptEncoder(nn.Module):
  """Encodes texts with the text towers of Stable Diffusion, for its U-Nets (SDXL: Podell et al., 2307.01952, 2.1).

  Attributes:
    towers: each encodes the text; their outputs for a token are concatenated.
    penultimate: whether the tokens are the inputs of each tower's last block, or else the outputs of its last norm.
    empty_is_zero: whether the encoding of an empty text is zeros.
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
      ids: token ids for each of the k towers.
      mask: true where there is a token. It only detects empty texts, which have two tokens, the first and the last; the
        towers attend to padding too.

    Returns:
      The tokens, and intermediates: "pooled", the last tower's embedding, if it has a projection.
    """
    outputs = [tower(ids[:, i]) for i, tower in enumerate(self.towers)]
    tokens = jnp.concatenate([out["hidden"][-2] if self.penultimate else last for last, out in outputs], axis=-1)
    pooled = {"pooled": outputs[-1][1]["embedding"]} if self.towers[-1].projection else {}
    if self.empty_is_zero:
      nonempty = jnp.sum(mask, axis=1) > 2
      tokens = jnp.where(nonempty[:, None, None], tokens, 0.0)
      pooled = {name: jnp.where(nonempty[:, None], x, 0.0) for name, x in pooled.items()}
    return tokens, pooled


class CLIP(nn.Module):
  """Both towers, with projections of the same width, and the scale of the logits."""

  vision: VisionTower
  text: TextTower

  def setup(self):
    """Adds the scale of the logits, the only parameter outside of the towers."""
    self.logit_scale = self.param("logit_scale", nn.initializers.constant(-math.log(TEMPERATURE)), ())

  def encode_image(self, images: Float[Array, "b h w 3"], kept: Int[Array, "b k"] | None = None) -> Float[Array, "b p"]:
    """Embeds normalised images (eq. 1), or only their patches `kept`."""
    return self.vision(images, kept)[1]["embedding"]

  def encode_text(self, ids: Int[Array, "b n"]) -> Float[Array, "b p"]:
    """Embeds texts (eq. 2)."""
    return self.text(ids)[1]["embedding"]

  def __call__(
    self, images: Float[Array, "i h w 3"], ids: Int[Array, "t n"], kept: Int[Array, "i k"] | None = None
  ) -> tuple[Float[Array, "i p"], Float[Array, "t p"], Float[Array, ""]]:
    """Returns the embeddings of images and of texts, and the log of the scale of the logits (eq. 3)."""
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

# LAION's OpenCLIP, "Reproducible scaling laws for contrastive language-image learning" (Cherti et al., 2022).
H_14 = CLIP(
  VisionTower(image=224, patch=14, width=1280, depth=32, heads=16, mlp=5120, projection=1024, activation="gelu"),
  TextTower(vocab=49408, length=77, width=1024, depth=24, heads=16, mlp=4096, projection=1024, activation="gelu"),
)
# The text tower of OpenCLIP's ViT-bigG/14, the second one of SDXL; and that of ViT-H/14 without its last block, the one
# of Stable Diffusion 2.
BIG_G_TEXT = TextTower(
  vocab=49408, length=77, width=1280, depth=32, heads=20, mlp=5120, projection=1280, activation="gelu"
)
SD_2_TEXT = H_14.text.clone(depth=23, projection=None)
