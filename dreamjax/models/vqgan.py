"""The VQGAN: pictures to few tokens of a codebook, and back.

"Taming Transformers for High-Resolution Image Synthesis" (Esser et al., 2012.09841), section 3.1, without attention, as
Muse has it (2301.00704, section 2.2) and aMUSEd after it:

  (1) z = encoder(x),  token = argmin_k |z - e_k|^2 at each place,  x' = decoder(e_token)

Encoder and decoder are rows of residual blocks; from level to level the encoder halves height and width and the decoder
doubles them. Matrix products and convolutions run in `dtype`; norms and distances stay in float32.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dreamjax.models.normalization import GroupNorm
from dreamjax.models.unet import double, fold, unfold

EPS = 1e-6  # of the norms


class Block(nn.Module):
  """Two 3x3 convolutions, with what goes around."""

  width: int
  groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
    """What goes around, in and out, in float32."""
    conv = functools.partial(nn.Conv, self.width, dtype=self.dtype)
    y = conv((3, 3), name="conv_1")(nn.silu(GroupNorm(self.groups, EPS, name="norm_1")(x)))
    y = conv((3, 3), name="conv_2")(nn.silu(GroupNorm(self.groups, EPS, name="norm_2")(y)))
    around = x if x.shape[-1] == self.width else conv((1, 1), name="around")(x)
    return around.astype(jnp.float32) + y.astype(jnp.float32)


class Halve(nn.Module):
  """A convolution of stride 2, padded on the right and below."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Halves height and width."""
    conv = nn.Conv(x.shape[-1], (3, 3), (2, 2), padding=((0, 1), (0, 1)), dtype=self.dtype, name="conv")
    return conv(x).astype(jnp.float32)


class Double(nn.Module):
  """Each place as 2x2, and a convolution."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Doubles height and width."""
    return nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype, name="conv")(double(x)).astype(jnp.float32)


class Level(nn.Module):
  """A row of blocks and, unless it is the last level, the step to the next one."""

  width: int
  blocks: int
  groups: int
  step: type[nn.Module] | None
  step_name: str
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    """What goes around, in and out."""
    for i in range(self.blocks):
      x = Block(self.width, self.groups, self.dtype, name=f"block_{i}")(x)
    return x if self.step is None else self.step(self.dtype, name=self.step_name)(x)


class Encoder(nn.Module):
  """Pictures to z, but for the last 1x1 convolution; see `VQGAN` for the fields."""

  widths: tuple[int, ...]
  blocks: int
  latent: int
  patch: int
  groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 d"]:
    """Level after level."""
    x = nn.Conv(self.widths[0], (3, 3), dtype=self.dtype, name="conv_in")(fold(images, self.patch)).astype(jnp.float32)
    for i, width in enumerate(self.widths):
      step = Halve if i + 1 < len(self.widths) else None
      x = Level(width, self.blocks, self.groups, step, "downsample", self.dtype, name=f"down_{i}")(x)
    for i in range(2):
      x = Block(self.widths[-1], self.groups, self.dtype, name=f"middle_{i}")(x)
    x = nn.silu(GroupNorm(self.groups, EPS, name="norm")(x))
    return nn.Conv(self.latent, (3, 3), dtype=self.dtype, name="conv_out")(x).astype(jnp.float32)


class Decoder(nn.Module):
  """What is behind the first 1x1 convolution to pictures; see `VQGAN` for the fields."""

  widths: tuple[int, ...]
  blocks: int
  patch: int
  groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, z: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 3"]:
    """Level after level, the smallest first; each has a block more than the encoder's."""
    x = nn.Conv(self.widths[-1], (3, 3), dtype=self.dtype, name="conv_in")(z).astype(jnp.float32)
    for i in range(2):
      x = Block(self.widths[-1], self.groups, self.dtype, name=f"middle_{i}")(x)
    for i, width in enumerate(reversed(self.widths)):
      step = Double if i + 1 < len(self.widths) else None
      x = Level(width, self.blocks + 1, self.groups, step, "upsample", self.dtype, name=f"up_{i}")(x)
    x = nn.silu(GroupNorm(self.groups, EPS, name="norm")(x))
    x = nn.Conv(3 * self.patch**2, (3, 3), dtype=self.dtype, name="conv_out")(x)
    return unfold(x.astype(jnp.float32), self.patch)


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
    """Pixels of a picture's row for one token."""
    return self.patch * 2 ** (len(self.widths) - 1)

  def setup(self) -> None:
    """The parts, by the names of their parameters."""
    shared = {"groups": self.groups, "dtype": self.dtype}
    self.encoder = Encoder(self.widths, self.blocks, self.latent, self.patch, **shared)
    self.decoder = Decoder(self.widths, self.blocks, self.patch, **shared)
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
    """z of pictures.

    Raises:
      ValueError: if their height or width cannot be divided by `factor`.
    """
    _, height, width, _ = images.shape
    if height % self.factor or width % self.factor:
      raise ValueError(f"pictures of {height}x{width} cannot be cut into squares of {self.factor}x{self.factor} pixels")
    return self.before(self.encoder(images)).astype(jnp.float32)

  def quantise(self, z: Float[Array, "b h w e"]) -> Int[Array, "b n"]:
    """The nearest vector of the codebook, at each place, row by row."""
    flat = z.reshape(len(z), -1, self.embedding)
    inner = jnp.einsum("bne,ke->bnk", flat, self.vectors, precision="highest")
    return jnp.argmin(jnp.sum(jnp.square(self.vectors), axis=-1)[None, None] - 2 * inner, axis=-1).astype(jnp.int32)

  def tokens(self, images: Float[Array, "b h w 3"]) -> Int[Array, "b n"]:
    """The tokens of pictures."""
    return self.quantise(self.encode(images))

  def decode(self, tokens: Int[Array, "b n"]) -> Float[Array, "b h w 3"]:
    """Square pictures of tokens."""
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
      raise ValueError(f"{tokens.shape[1]} tokens are no square")
    return self.decode_vectors(self.vectors[tokens].reshape(len(tokens), side, side, self.embedding))

  def decode_vectors(self, z: Float[Array, "b h w e"]) -> Float[Array, "b h2 w2 3"]:
    """Pictures of vectors, be they of the codebook or not."""
    return self.decoder(self.after(z).astype(jnp.float32))


class Discriminator(nn.Module):
  """Tells pictures from reconstructions, patch by patch (Isola et al., 1611.07004, section 3.2.2).

  Attributes:
    widths: channels of the convolutions, each of which halves height and width.
    groups: of the norms.
  """

  widths: tuple[int, ...]
  groups: int = 32

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2"]:
    """Logits: above 0 where a patch looks like one of a picture."""
    x = images
    for i, width in enumerate(self.widths):
      x = nn.Conv(width, (4, 4), 2, padding=1, name=f"conv_{i}")(x)
      x = nn.leaky_relu(GroupNorm(self.groups, EPS, name=f"norm_{i}")(x) if i else x, 0.2)
    return nn.Conv(1, (4, 4), padding=1, name="conv_out")(x)[..., 0]
