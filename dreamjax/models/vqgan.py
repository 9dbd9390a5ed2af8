"""The VQGAN: encodes images as tokens of a codebook, and decodes tokens to images.

"Taming Transformers for High-Resolution Image Synthesis" (Esser et al., 2012.09841), section 3.1, without attention, as
Muse has it (2301.00704, section 2.2) and aMUSEd after it:

  (1) z = encoder(x),  token = argmin_k |z - e_k|^2 at each position,  x' = decoder(e_token)

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
  """The VQGAN of eq. 1.

  Attributes:
    widths: channels of each level; each level has half the height and width of the previous one.
    blocks: residual blocks of each level of the encoder; the levels of the decoder have one more.
    latent: output channels of the encoder and input channels of the decoder, before and after 1x1 convolutions.
    embedding: channels of z and of the vectors of the codebook.
    codebook: number of tokens.
    patch: side of the patches of pixels that are one position of the first level; more than 1 is cheaper.
    groups: of the group norms.
    dtype: of matrix products and convolutions; everything else is computed in float32.
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
    """The factor by which height and width are downsampled."""
    return self.patch * 2 ** (len(self.widths) - 1)

  def setup(self) -> None:
    """Builds the submodules; the attributes name their parameters."""
    shared = {"attention": False, "patch": self.patch, "groups": self.groups, "dtype": self.dtype}
    self.encoder = Encoder(self.widths, self.blocks, self.latent, **shared)
    self.decoder = Decoder(self.widths, self.blocks, **shared)
    self.before = nn.Conv(self.embedding, (1, 1), dtype=self.dtype)
    self.after = nn.Conv(self.latent, (1, 1), dtype=self.dtype)
    positive = nn.initializers.uniform(2 / self.codebook)
    centred = lambda *args: positive(*args) - 1 / self.codebook  # noqa: E731
    self._vectors = jnp.asarray(self.param("codebook", centred, (self.codebook, self.embedding)))

  def __call__(
    self, images: Float[Array, "b h w 3"]
  ) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h2 w2 e"], Int[Array, "b n"]]:
    """Returns reconstructions, z and tokens; gradients pass straight through the codebook to z (section 3.1)."""
    z = self.encode(images)
    tokens = self.quantise(z)
    nearest = self._vectors[tokens].reshape(z.shape)
    return self._decode_vectors(jax.lax.stop_gradient(nearest - z) + z), z, tokens

  def around(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Reconstructs images from z, without quantisation."""
    return self._decode_vectors(self.encode(images))

  def encode(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 e"]:
    """Encodes images in [-1, 1] as z.

    Raises:
      ValueError: if the height or width is not divisible by `factor`.
    """
    _, height, width, _ = images.shape
    if height % self.factor or width % self.factor:
      raise ValueError(f"the height and width of {height}x{width} images are not divisible by {self.factor}")
    return self.before(self.encoder(images)).astype(jnp.float32)

  def quantise(self, z: Float[Array, "b h w e"]) -> Int[Array, "b n"]:
    """Returns the token whose vector is nearest to z at each position, in row-major order."""
    flat = z.reshape(len(z), -1, self.embedding)
    inner = jnp.einsum("bne,ke->bnk", flat, self._vectors, precision="highest")
    return jnp.argmin(jnp.sum(jnp.square(self._vectors), axis=-1)[None, None] - 2 * inner, axis=-1).astype(jnp.int32)

  def tokens(self, images: Float[Array, "b h w 3"]) -> Int[Array, "b n"]:
    """Encodes images as tokens, in row-major order."""
    return self.quantise(self.encode(images))

  def decode(self, tokens: Int[Array, "b n"]) -> Float[Array, "b h w 3"]:
    """Decodes tokens, in row-major order, to square images.

    Raises:
      ValueError: if the number of tokens is not a square.
    """
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
      raise ValueError(f"the number of tokens, {tokens.shape[1]}, is not a square")
    return self._decode_vectors(self._vectors[tokens].reshape(len(tokens), side, side, self.embedding))

  def _decode_vectors(self, z: Float[Array, "b h w e"]) -> Float[Array, "b h2 w2 3"]:
    """Decodes vectors, of the codebook or not, to images."""
    return self.decoder(self.after(z).astype(jnp.float32))


class Discriminator(nn.Module):
  """A PatchGAN discriminator of images and reconstructions (Isola et al., 1611.07004, section 3.2.2).

  Attributes:
    widths: channels of the convolutions, each of which halves height and width.
    groups: of the group norms.
  """

  widths: tuple[int, ...]
  groups: int = 32

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2"]:
    """Returns the logit of each patch, above 0 where it is classified as part of an image."""
    x = images
    for i, width in enumerate(self.widths):
      x = nn.Conv(width, (4, 4), 2, padding=1, name=f"conv_{i}")(x)
      x = nn.leaky_relu(GroupNorm(self.groups, EPS, name=f"norm_{i}")(x) if i else x, 0.2)
    return nn.Conv(1, (4, 4), padding=1, name="conv_out")(x)[..., 0]
