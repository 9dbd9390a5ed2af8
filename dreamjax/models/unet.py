"""The U-Net of Imagen and DeepFloyd IF, which predicts from a noisy image, a timestep and a text.

"Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding" (Saharia et al., 2022), section 2 and
appendices B and F, on the residual U-Net of "Diffusion Models Beat GANs on Image Synthesis" (Dhariwal & Nichol, 2021):

  (1) e = act(mlp(sinusoid(t)) + pool(text) + mlp(sinusoid(noise level)))
  (2) block(x) = (shortcut(x) + conv(act((1 + scale) norm(conv(act(norm(x)))) + shift))) / rescale, [scale; shift] = e W
  (3) attention(x) = x + softmax(q [text_k; k]^T / sqrt(d)) [text_v; v] W, where q, k and v are projections of norm(x),
      and text_k and text_v of norm(text W)

Each level of the U-Net consists of blocks, followed by attention where the level has attention, and of a step to the
next level, which halves height and width on the down path and doubles them on the up path. On the up path a level has
one block more, and each block takes a skip connection from a block or a step of the down path. Imagen's Efficient
U-Net, which downsamples before the blocks of a level and upsamples after them (appendix B.1), is this one with
convolutions as steps, a `rescale` of sqrt(2), and most of the `blocks` at low resolution.

Matrix products and convolutions run in `dtype`; the residual stream, the norms and the softmax stay in float32, as do
the parameters.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float
import numpy as np

from dreamjax.models.attention import attend
from dreamjax.models.layers import with_remat
from dreamjax.models.normalization import GroupNorm

zeros = nn.initializers.zeros


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """Computes the exact gelu from erf, which takes half the time of the erfc of `nn.gelu` on a CPU."""
  y = x.astype(jnp.float32)
  return (y * (1 + jax.lax.erf(y * np.float32(0.5**0.5))) / 2).astype(x.dtype)


ACTIVATIONS = {"gelu": gelu, "silu": nn.silu}
EPS = 1e-5  # of the norms
TEXT_GROUPS = 32  # of the group norm of the text in eq. 3


class Condition(NamedTuple):
  """The conditioning of every block: the embedding e of eq. 1, the text W of eq. 3, and the mask of its tokens."""

  embedding: Float[Array, "b e"]
  text: Float[Array, "b n d"]
  mask: Bool[Array, "b n"]


def sinusoid(t: Float[Array, "b"], width: int) -> Float[Array, "b {width}"]:
  """Embeds timesteps as cosines and sines of t at frequencies from 1 towards 1 / 10,000."""
  frequencies = (1e-4 ** np.linspace(0, 1, width // 2, endpoint=False)).astype(np.float32)
  angles = t[:, None] * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """Downsamples by averaging 2x2 pixels."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """Upsamples by repeating each pixel as 2x2."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def space_to_depth(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 d"]:
  """Moves patches of pixels into the channels (space to depth)."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 d"]:
  """Moves channels into patches of pixels (depth to space), the inverse of `fold`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * patch, w * patch, -1)


class MLP(nn.Module):
  """The mlp of eq. 1, of two layers."""

  width: int
  activation: str
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
    """Applies the mlp; returns float32."""
    hidden = ACTIVATIONS[self.activation](nn.Dense(self.width, dtype=self.dtype, name="hidden")(x))
    return nn.Dense(self.width, dtype=self.dtype, name="out")(hidden).astype(jnp.float32)


class TextPool(nn.Module):
  """Pools a text into one vector (eq. 1): its mean token attends to itself and to all tokens."""

  width: int
  heads: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, text: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b e"]:
    """Pools the tokens where `mask` is true; returns float32."""
    d = text.shape[-1]
    text = layer_norm("text_norm")(text)
    position = self.param("position", nn.initializers.normal(d**-0.5), (d,))
    mean = text.mean(axis=1, keepdims=True, where=mask[..., None]) + position[None, None]
    tokens = jnp.concatenate([mean, text], axis=1)
    query, key, value = (
      nn.Dense(d, dtype=self.dtype, name=name)(x).reshape(*x.shape[:2], self.heads, -1)
      for name, x in (("query", mean), ("key", tokens), ("value", tokens))
    )
    mask = jnp.concatenate([jnp.ones_like(mask[:, :1]), mask], axis=1)
    pooled = attend(query, key, value, mask=mask[:, None, None]).reshape(-1, d)
    return layer_norm("norm")(nn.Dense(self.width, dtype=self.dtype, name="out")(pooled).astype(jnp.float32))


class Attention(nn.Module):
  """Eq. 3: each pixel attends to the text and, with `self_attention`, to all pixels."""

  head_width: int
  self_attention: bool
  groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], text: Float[Array, "b n d"], mask: Bool[Array, "b n"]
  ) -> Float[Array, "b h w c"]:
    """Attends from each pixel to the text where `mask` is true and to the pixels; returns the sum with x."""
    c = x.shape[-1]
    pixels = group_norm(self.groups, "norm")(x).reshape(x.shape[0], -1, c)
    text = group_norm(TEXT_GROUPS, "text_norm")(text, mask)

    def heads(name: str, tokens: Float[Array, "b m _"]) -> Float[Array, "b m k d"]:
      return nn.Dense(c, dtype=self.dtype, name=name)(tokens).reshape(*tokens.shape[:2], -1, self.head_width)

    query, key, value = heads("query", pixels), heads("text_key", text), heads("text_value", text)
    if self.self_attention:
      key = jnp.concatenate([key, heads("key", pixels)], axis=1)
      value = jnp.concatenate([value, heads("value", pixels)], axis=1)
      mask = jnp.concatenate([mask, jnp.ones(pixels.shape[:2], bool)], axis=1)
    attended = attend(query, key, value, mask=mask[:, None, None]).reshape(pixels.shape)
    attended = nn.Dense(c, kernel_init=zeros, dtype=self.dtype, name="out")(attended)
    return x + attended.astype(jnp.float32).reshape(x.shape)


class Block(nn.Module):
  """The residual block of eq. 2, optionally followed by attention (eq. 3); it may resize its input.

  Attributes:
    width: channels of the output.
    activation: "gelu" or "silu".
    rescale: the divisor of the sum of shortcut and residual.
    groups: of the group norms.
    dtype: of matrix products and convolutions.
    make_attention: builds the attention; None for a block without.
    resize: `halve` or `double`, applied before the first convolution and in the shortcut; None for no resizing.
  """

  width: int
  activation: str
  rescale: float
  groups: int
  dtype: DTypeLike
  make_attention: Callable[..., Attention] | None = None
  resize: Callable[[Array], Array] | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], condition: Condition) -> Float[Array, "b h2 w2 d"]:
    """Applies the block to the hidden states; returns float32."""
    act = ACTIVATIONS[self.activation]
    conv = functools.partial(nn.Conv, self.width, dtype=self.dtype)
    y = act(group_norm(self.groups, "norm_1")(x))
    if self.resize is not None:
      x, y = self.resize(x), self.resize(y)
    y = conv((3, 3), name="conv_1")(y).astype(jnp.float32)
    film = nn.Dense(2 * self.width, dtype=self.dtype, name="film")(condition.embedding).astype(jnp.float32)
    scale, shift = jnp.split(film[:, None, None], 2, axis=-1)
    y = act(group_norm(self.groups, "norm_2")(y) * (1 + scale) + shift)
    y = conv((3, 3), kernel_init=zeros, name="conv_2")(y).astype(jnp.float32)
    if x.shape[-1] != self.width:
      x = conv((1, 1), name="around")(x).astype(jnp.float32)
    x = (x + y) / self.rescale
    if self.make_attention is None:
      return x
    return self.make_attention(name="attention")(x, condition.text, condition.mask)


class Step(nn.Module):
  """Resizes between levels with one convolution: `halve` is its stride, `double` is applied before it."""

  width: int
  resize: Callable[[Array], Array]
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], condition: Condition) -> Float[Array, "b h2 w2 d"]:
    """Resizes the hidden states; returns float32."""
    del condition  # for the same signature as Block
    conv = functools.partial(nn.Conv, self.width, (3, 3), dtype=self.dtype, name="conv")
    return (conv(strides=2)(x) if self.resize is halve else conv()(upsample_nearest(x))).astype(jnp.float32)


class Down(nn.Module):
  """A level of the down path, with the step to the next level if there is one."""

  width: int
  blocks: int
  make_block: Callable[..., nn.Module]
  make_step: Callable[..., nn.Module] | None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], condition: Condition
  ) -> tuple[Float[Array, "b h2 w2 d"], list[Float[Array, "b _ _ _"]]]:
    """Returns the hidden states, and the outputs of all blocks and of the step as skip connections."""
    skips = []
    for i in range(self.blocks):
      x = self.make_block(self.width, name=f"block_{i}")(x, condition)
      skips.append(x)
    if self.make_step is not None:
      x = self.make_step(name="downsample")(x, condition)
      skips.append(x)
    return x, skips


class Up(nn.Module):
  """A level of the up path, with the step to the next level if there is one."""

  width: int
  make_block: Callable[..., nn.Module]
  make_step: Callable[..., nn.Module] | None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], skips: list[Float[Array, "b h w _"]], condition: Condition
  ) -> Float[Array, "b h2 w2 d"]:
    """Applies one block for each skip connection, the last one first, and the step."""
    for i, skip in enumerate(reversed(skips)):
      x = self.make_block(self.width, name=f"block_{i}")(jnp.concatenate([x, skip], axis=-1), condition)
    return x if self.make_step is None else self.make_step(name="upsample")(x, condition)


class UNet(nn.Module):
  """The network of one stage of the cascade.

  Attributes:
    image: height and width of the images of the stage. Other sizes work if they can be halved as often.
    widths: channels of each level; each level has half the height and width of the previous one.
    blocks: of each level of the down path; the up path has one more.
    attention: whether the blocks of each level have attention. The first of the two middle blocks always has it.
    head_width: channels of an attention head.
    text_width: channels of the tokens of the text encoder.
    cross_width: channels to which the tokens are projected for eq. 3; a multiple of 32.
    pool_heads: attention heads of the pooling of the text.
    time_width: channels of the embedding e.
    out_channels: of the prediction; 6 with a learned variance.
    low_res: whether the stage is a super-resolution stage, with a low-resolution image as second input.
    self_attention: whether pixels attend to pixels too, or to the text only.
    patch: side of the patches of pixels that are one position of the first level; more than 1 is cheaper.
    around: whether the input images are also added to the prediction, each times a factor that is predicted from e: the
      skip connection of Karras et al. (2206.00364, eq. 7), learned. Large patches need it, since they have more values
      than the first level has channels.
    step: between levels, "block" for a block that resizes, as in IF, or "conv" for one convolution, which is cheaper.
    activation: "gelu" or "silu".
    rescale: the divisor of the sum at the end of a block; Imagen's scaled skip connections are sqrt(2).
    groups: of the group norms of pixels.
    remat: what the backward pass recomputes inside of each block, one of `layers.REMATS`.
    dtype: of matrix products and convolutions; everything else is computed in float32.
  """

  image: int
  widths: tuple[int, ...]
  blocks: tuple[int, ...]
  attention: tuple[bool, ...]
  head_width: int
  text_width: int
  cross_width: int
  pool_heads: int
  time_width: int
  out_channels: int = 3
  low_res: bool = False
  self_attention: bool = True
  patch: int = 1
  around: bool = False
  step: str = "block"
  activation: str = "silu"
  rescale: float = 1.0
  groups: int = 32
  remat: str = "none"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    t: Float[Array, "b"],
    text: Float[Array, "b n d"],
    mask: Bool[Array, "b n"] | None = None,
    low_res: Float[Array, "b _ _ _"] | None = None,
    noise_level: Float[Array, "b"] | None = None,
  ) -> Float[Array, "b h w {self.out_channels}"]:
    """Predicts noise, image or v, as the network was trained to.

    Args:
      x: noisy images.
      t: the timestep of each image (`Schedule.timestep`), which need not be whole.
      text: tokens of the text encoder.
      mask: true where there is a token, false where there is padding; no text may be all padding. None attends to
        padding as to tokens, as IF was trained.
      low_res: for super-resolution stages, low-resolution images, upsampled to the size of x and then noised.
      noise_level: the timestep to which they were noised.

    Returns:
      The prediction, followed by the learned variance if there is one.

    Raises:
      ValueError: if an input is missing, superfluous or of a wrong shape.
    """
    self._check(x, text, low_res, noise_level)
    mask = jnp.ones(text.shape[:2], bool) if mask is None else mask
    condition = self._condition(t, text, mask, noise_level)
    attention = functools.partial(Attention, self.head_width, self.self_attention, self.groups, self.dtype)
    make_plain = functools.partial(
      with_remat(Block, self.remat),
      activation=self.activation,
      rescale=self.rescale,
      groups=self.groups,
      dtype=self.dtype,
    )
    make_attending = functools.partial(make_plain, make_attention=attention)
    levels = [
      (width, blocks, make_attending if attends else make_plain)
      for width, blocks, attends in zip(self.widths, self.blocks, self.attention, strict=True)
    ]
    last = len(levels) - 1

    def make_step(resize, source, destination):
      if destination not in range(len(levels)):
        return None
      makers = {
        "block": functools.partial(make_plain, self.widths[source], resize=resize),
        "conv": functools.partial(Step, self.widths[destination], resize, self.dtype),
      }
      return makers[self.step]

    inputs = (x,) if low_res is None else (x, low_res)
    x = space_to_depth(jnp.concatenate(inputs, axis=-1), self.patch)
    x = nn.Conv(self.widths[0], (3, 3), dtype=self.dtype, name="conv_in")(x).astype(jnp.float32)
    skips = [x]
    for i, (width, blocks, make_block) in enumerate(levels):
      x, level_skips = Down(width, blocks, make_block, make_step(halve, i, i + 1), name=f"down_{i}")(x, condition)
      skips += level_skips
    x = make_attending(self.widths[last], name="middle_0")(x, condition)
    x = make_plain(self.widths[last], name="middle_1")(x, condition)
    for i, (width, blocks, make_block) in reversed(list(enumerate(levels))):
      skips, level_skips = skips[: -blocks - 1], skips[-blocks - 1 :]
      x = Up(width, make_block, make_step(upsample_nearest, i, i - 1), name=f"up_{last - i}")(x, level_skips, condition)
    x = ACTIVATIONS[self.activation](group_norm(self.groups, "norm")(x))
    channels = self.out_channels * self.patch**2
    x = nn.Conv(channels, (3, 3), kernel_init=zeros, dtype=self.dtype, name="conv_out")(x)
    x = depth_to_space(x.astype(jnp.float32), self.patch)
    if self.around:
      factors = nn.Dense(len(inputs), kernel_init=zeros, name="around")(condition.embedding)
      skip = sum(factor[:, None, None, None] * image for factor, image in zip(factors.T, inputs, strict=True))
      x = x.at[..., :3].add(skip)
    return x

  def _condition(
    self,
    t: Float[Array, "b"],
    text: Float[Array, "b n d"],
    mask: Bool[Array, "b n"],
    noise_level: Float[Array, "b"] | None,
  ) -> Condition:
    """Computes eq. 1, and projects the text for eq. 3."""
    mlp = functools.partial(MLP, self.time_width, self.activation, self.dtype)
    embedding = mlp(name="time")(sinusoid(t, self.widths[0]))
    embedding += TextPool(self.time_width, self.pool_heads, self.dtype, name="pool")(text, mask)
    if self.low_res:
      embedding += mlp(name="noise_level")(sinusoid(noise_level, self.widths[0]))
    text = nn.Dense(self.cross_width, dtype=self.dtype, name="text")(text).astype(jnp.float32)
    return Condition(ACTIVATIONS[self.activation](embedding), text, mask)

  def _check(self, x: Array, text: Array, low_res: Array | None, noise_level: Array | None) -> None:
    """Raises the errors of `__call__`."""
    (_, height, width, channels), halvings = x.shape, len(self.widths) - 1
    if height % self.patch or width % self.patch:
      raise ValueError(f"the height and width of {height}x{width} images are not divisible by the patch, {self.patch}")
    height, width = height // self.patch, width // self.patch
    if channels != 3:
      raise ValueError(f"images have 3 channels, not {channels}; pass a low-resolution image as low_res")
    if height % 2**halvings or width % 2**halvings:
      raise ValueError(f"{height}x{width} positions cannot be halved {halvings} times, as this model does")
    if text.shape[-1] != self.text_width:
      raise ValueError(f"this model takes tokens of {self.text_width} channels, not {text.shape[-1]}")
    arguments = {"low_res": low_res, "noise_level": noise_level}
    given = " and ".join(name for name, value in arguments.items() if value is not None) or "neither"
    expected = "low_res and noise_level" if self.low_res else "neither"
    if given != expected:
      raise ValueError(f"of low_res and noise_level this model takes {expected}, but was given {given}")
    if low_res is not None and low_res.shape != x.shape:
      raise ValueError(f"low_res has shape {low_res.shape} and x {x.shape}: upsample low_res first")


def layer_norm(name: str) -> nn.LayerNorm:
  """Builds the layer norm of the text."""
  return nn.LayerNorm(epsilon=EPS, use_fast_variance=False, name=name)


def group_norm(groups: int, name: str) -> GroupNorm:
  """Builds a group norm over the pixels of an image or the tokens of a text."""
  return GroupNorm(groups, EPS, name=name)


# DeepFloyd's largest base stage and its super-resolution stage; the others are described by the config.json of their
# weights.
IF_I_XL = UNet(
  image=64,
  widths=(704, 1408, 2112, 2816),
  blocks=(3, 3, 3, 3),
  attention=(False, True, True, True),
  head_width=64,
  text_width=4096,
  cross_width=2816,
  pool_heads=64,
  time_width=2816,
  out_channels=6,
  activation="gelu",
)
IF_II_L = UNet(
  image=256,
  widths=(160, 320, 640, 1280),
  blocks=(2, 4, 8, 8),
  attention=(False, False, False, True),
  head_width=64,
  text_width=4096,
  cross_width=1280,
  pool_heads=64,
  time_width=1280,
  out_channels=6,
  low_res=True,
  self_attention=False,
  activation="gelu",
  rescale=1 / 0.7071,
)
