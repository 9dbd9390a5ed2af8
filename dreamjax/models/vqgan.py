"""The VQGAN: images to few tokens of a codebook, and back.

"Taming Transformers for High-Resolution Image Synthesis" (Esser et al., 2012.09841), section 3.1, without attention, as
Muse has it (2301.00704, section 2.2) and aMUSEd after it:

  (1) z = encoder(x),  token = argmin_k |z - e_k|^2 at each place,  x' = decoder(e_token)

Matrix products and convolutions run in `dtype`; norms and distances stay in float32.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dreamjax.models.normalization import GroupNorm
from dreamjax.models.residual import EPS, Decoder, Encoder


class VQGAN(nn.Module):
  """Eq. 1.

  Attributes:
    widths: channels of each level, each half as high and wide as the one before.
    blocks: residual blocks of each level of the encoder; the decoder's have one more.
    latent: channels between encoder or decoder and the 1x1 convolutions beside the codebook.
    embedding: channels of z and of the codebook's vectors.
    codebook: tokens that there are.
    patch: side of the squares of pixels that are one place of the first level; more than 1 is cheaper.
    groups: of the norms.
    dtype: in which matrix products and convolutions are computed; the rest is float32.
  """

  widths: tuple[int, ...]
  blocks: int
  latent: int
  embedding: int
  codebook: int
  patch: int = 1
  groups: int = 32
  dtype: DTypeLike = jnp.float32

  @property
  def factor(self) -> int:
    """Pixels of an image's row for one token."""
    return self.patch * 2 ** (len(self.widths) - 1)

  def setup(self) -> None:
    """The parts, by the names of their parameters."""
    shared = {"attention": False, "patch": self.patch, "groups": self.groups, "dtype": self.dtype}
    self.encoder = Encoder(self.widths, self.blocks, self.latent, **shared)
    self.decoder = Decoder(self.widths, self.blocks, **shared)
    self.before = nn.Conv(self.embedding, (1, 1), dtype=self.dtype)
    self.after = nn.Conv(self.latent, (1, 1), dtype=self.dtype)
    spread = nn.initializers.uniform(2 / self.codebook)
    centred = lambda *args: spread(*args) - 1 / self.codebook  # noqa: E731
    self.vectors = jnp.asarray(self.param("codebook", centred, (self.codebook, self.embedding)))

  def __call__(
    self, images: Float[Array, "b h w 3"]
  ) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h2 w2 e"], Int[Array, "b n"]]:
    """Reconstructions, z, and tokens; gradients of a reconstruction pass the codebook by, to z (section 3.1)."""
    z = self.encode(images)
    tokens = self.quantise(z)
    nearest = self.vectors[tokens].reshape(z.shape)
    return self.decode_vectors(jax.lax.stop_gradient(nearest - z) + z), z, tokens

  def around(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Reconstructions from z itself."""
    return self.decode_vectors(self.encode(images))

  def encode(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 e"]:
    """z of images.

    Raises:
      ValueError: if their height or width cannot be divided by `factor`.
    """
    _, height, width, _ = images.shape
    if height % self.factor or width % self.factor:
      raise ValueError(f"images of {height}x{width} cannot be cut into squares of {self.factor}x{self.factor} pixels")
    return self.before(self.encoder(images)).astype(jnp.float32)

  def quantise(self, z: Float[Array, "b h w e"]) -> Int[Array, "b n"]:
    """The nearest vector of the codebook, at each place, row by row."""
    flat = z.reshape(len(z), -1, self.embedding)
    inner = jnp.einsum("bne,ke->bnk", flat, self.vectors, precision="highest")
    return jnp.argmin(jnp.sum(jnp.square(self.vectors), axis=-1)[None, None] - 2 * inner, axis=-1).astype(jnp.int32)

  def tokens(self, images: Float[Array, "b h w 3"]) -> Int[Array, "b n"]:
    """The tokens of images."""
    return self.quantise(self.encode(images))

  def decode(self, tokens: Int[Array, "b n"]) -> Float[Array, "b h w 3"]:
    """Square images of tokens."""
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
      raise ValueError(f"{tokens.shape[1]} tokens are no square")
    return self.decode_vectors(self.vectors[tokens].reshape(len(tokens), side, side, self.embedding))

  def decode_vectors(self, z: Float[Array, "b h w e"]) -> Float[Array, "b h2 w2 3"]:
    """Images of vectors, be they of the codebook or not."""
    return self.decoder(self.after(z).astype(jnp.float32))


class Discriminator(nn.Module):
  """Tells images from reconstructions, patch by patch (Isola et al., 1611.07004, section 3.2.2).

  Attributes:
    widths: channels of the convolutions, each of which halves height and width.
    groups: of the norms.
  """

  widths: tuple[int, ...]
  groups: int = 32

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2"]:
    """Logits: above 0 where a patch looks like one of an image."""
    x = images
    for i, width in enumerate(self.widths):
      x = nn.Conv(width, (4, 4), 2, padding=1, name=f"conv_{i}")(x)
      x = nn.leaky_relu(GroupNorm(self.groups, EPS, name=f"norm_{i}")(x) if i else x, 0.2)
    return nn.Conv(1, (4, 4), padding=1, name="conv_out")(x)[..., 0]
