"""The U-Net of Imagen and DeepFloyd IF: a noisy image, a time and a text to a prediction.

"Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding" (Saharia et al., 2022), section 2 and
appendices B and F, on the residual U-Net of "Diffusion Models Beat GANs on Image Synthesis" (Dhariwal & Nichol, 2021):

  (1) e = act(mlp(sinusoid(t)) + pool(text) + mlp(sinusoid(noise level)))
  (2) block(x) = (around(x) + conv(act((1 + scale) norm(conv(act(norm(x)))) + shift))) / rescale, [scale; shift] = e W
  (3) attention(x) = x + softmax(q [text_k; k]^T / sqrt(d)) [text_v; v] W, where q, k and v are projections of norm(x),
      and text_k and text_v of norm(text W)

Each level of the U-Net is a row of blocks, each with attention behind it where the level has attention, and a step to
the next level, which halves height and width on the way down and doubles them on the way up. On the way up a level has
one block more, and each takes in what a block or a step left behind on the way down. Imagen's Efficient U-Net, which
downsamples before a level's blocks and upsamples after them (appendix B.1), is this one with convolutions as steps, a
`rescale` of sqrt(2), and most of the `blocks` at low resolution.

Matrix products and convolutions run in `dtype`; what goes around the blocks, the norms and the softmax stay in
float32, as do the parameters.
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
  """x times the normal distribution's integral up to x, by erf; a CPU takes twice as long for the erfc of `nn.gelu`."""
  wide = x.astype(jnp.float32)
  return (wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5))) / 2).astype(x.dtype)


ACTIVATIONS = {"gelu": gelu, "silu": nn.silu}
EPS = 1e-5  # of the norms
TEXT_GROUPS = 32  # of the norm of the text in eq. 3


class Condition(NamedTuple):
  """What every block is told: the embedding e of eq. 1, the text as it enters eq. 3, and where there is text."""

  embedding: Float[Array, "b e"]
  text: Float[Array, "b n d"]
  mask: Bool[Array, "b n"]


def sinusoid(t: Float[Array, "b"], width: int) -> Float[Array, "b {width}"]:
  """Cosines and sines of t at frequencies that fall from 1 towards 1 / 10,000."""
  frequencies = (1e-4 ** np.linspace(0, 1, width // 2, endpoint=False)).astype(np.float32)
  angles = t[:, None] * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """Means of 2x2 pixels."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """Each pixel as 2x2."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def space_to_depth(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 d"]:
  """Squares of pixels as one place with as many more channels."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 d"]:
  """The inverse of `fold`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * patch, w * patch, -1)


class MLP(nn.Module):
  """Two layers, the mlp of eq. 1."""

  width: int
  activation: str
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
    """Applies both layers."""
    hidden = ACTIVATIONS[self.activation](nn.Dense(self.width, dtype=self.dtype, name="hidden")(x))
    return nn.Dense(self.width, dtype=self.dtype, name="out")(hidden).astype(jnp.float32)


class TextPool(nn.Module):
  """One vector for a text, the pool of eq. 1: its mean token, after it has looked at itself and at all tokens."""

  width: int
  heads: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, text: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b e"]:
    """Pools the tokens that `mask` lets through."""
    d = text.shape[-1]
    text = layer_norm("text_norm")(text)
    position = self.param("position", nn.initializers.normal(d**-0.5), (d,))
    mean = text.mean(axis=1, keepdims=True, where=mask[..., None]) + position[None, None]
    tokens = jnp.concatenate([mean, text], axis=1)
    query, key, value = (
      nn.Dense(d, dtype=self.dtype, name=name)(x).reshape(*x.shape[:2], self.heads, -1)
      for name, x in (("query", mean), ("key", tokens), ("value", tokens))
    )
    seen = jnp.concatenate([jnp.ones_like(mask[:, :1]), mask], axis=1)
    pooled = attend(query, key, value, mask=seen[:, None, None]).reshape(-1, d)
    return layer_norm("norm")(nn.Dense(self.width, dtype=self.dtype, name="out")(pooled).astype(jnp.float32))


class Attention(nn.Module):
  """Eq. 3: each pixel looks at the text and, with `self_attention`, at all pixels."""

  head_width: int
  self_attention: bool
  groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], text: Float[Array, "b n d"], mask: Bool[Array, "b n"]
  ) -> Float[Array, "b h w c"]:
    """Mixes the text that `mask` lets through, and the pixels, into each pixel."""
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
    mixed = attend(query, key, value, mask=mask[:, None, None]).reshape(pixels.shape)
    mixed = nn.Dense(c, kernel_init=zeros, dtype=self.dtype, name="out")(mixed)
    return x + mixed.astype(jnp.float32).reshape(x.shape)


class Block(nn.Module):
  """Eq. 2 and, with attention, eq. 3; the input may be resized on its way to the first convolution and around it.

  Attributes:
    width: channels of the output.
    activation: "gelu" or "silu".
    rescale: what the sum is divided by.
    groups: of the norms.
    dtype: in which matrix products and convolutions are computed.
    make_attention: None for a block without.
    resize: `halve` or `double`; None leaves the size as it is.
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
    """What goes around the blocks, in and out."""
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
  """A step between levels in one convolution: down by its stride, or up after doubling."""

  width: int
  resize: Callable[[Array], Array]
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], condition: Condition) -> Float[Array, "b h2 w2 d"]:
    """What goes around the blocks, in and out."""
    del condition  # only a block uses it
    conv = functools.partial(nn.Conv, self.width, (3, 3), dtype=self.dtype, name="conv")
    return (conv(strides=2)(x) if self.resize is halve else conv()(upsample_nearest(x))).astype(jnp.float32)


class Down(nn.Module):
  """A level on the way down, and the step to the next one, if there is one."""

  width: int
  blocks: int
  make_block: Callable[..., nn.Module]
  make_step: Callable[..., nn.Module] | None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], condition: Condition
  ) -> tuple[Float[Array, "b h2 w2 d"], list[Float[Array, "b _ _ _"]]]:
    """What goes around the blocks, in and out, and all that blocks and step leave behind."""
    left = []
    for i in range(self.blocks):
      x = self.make_block(self.width, name=f"block_{i}")(x, condition)
      left.append(x)
    if self.make_step is not None:
      x = self.make_step(name="downsample")(x, condition)
      left.append(x)
    return x, left


class Up(nn.Module):
  """A level on the way up, and the step to the next one, if there is one."""

  width: int
  make_block: Callable[..., nn.Module]
  make_step: Callable[..., nn.Module] | None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], left: list[Float[Array, "b h w _"]], condition: Condition
  ) -> Float[Array, "b h2 w2 d"]:
    """What goes around the blocks, in and out; there is a block for each of `left`, the last one first."""
    for i, other in enumerate(reversed(left)):
      x = self.make_block(self.width, name=f"block_{i}")(jnp.concatenate([x, other], axis=-1), condition)
    return x if self.make_step is None else self.make_step(name="upsample")(x, condition)


class UNet(nn.Module):
  """A stage of the cascade.

  Attributes:
    image: side of the images that the stage makes. Others pass too, if they can be halved as often.
    widths: channels of each level, each half as high and wide as the one before.
    blocks: of each level on the way down; on the way up there is one more.
    attention: whether the blocks of each level have attention. The first of the two in the middle has it in any case.
    head_width: channels of an attention head.
    text_width: channels of the text's tokens.
    cross_width: channels that they have where eq. 3 sees them; a multiple of 32.
    pool_heads: attention heads of the text's pool.
    time_width: channels of the embedding e.
    out_channels: of the prediction; 6 where the variance is predicted as well.
    low_res: whether the stage is one of super-resolution, which sees an image of low resolution beside x.
    self_attention: whether pixels look at pixels too, or at the text only.
    patch: side of the squares of pixels that are one place of the first level; more than 1 is cheaper.
    around: whether the images that go in are also added to the prediction, each times a number that depends on e: the
      skip of Karras et al. (2206.00364, eq. 7), learned. Large patches need it, for their pixels are more numbers than
      the first level has channels.
    step: between levels, "block" for a block that resizes, as in IF, or "conv" for one convolution, which is cheaper.
    activation: "gelu" or "silu".
    rescale: what the sum at the end of a block is divided by; sqrt(2) is what Imagen calls scaled skip connections.
    groups: of the norms of pixels.
    remat: what the way back computes anew of what is inside a layer or block, of `layers.REMATS`.
    dtype: in which matrix products and convolutions are computed; the rest is float32.
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
    """Predicts.

    Args:
      x: noisy images.
      t: the time of each, as a step from 0 to 999 that need not be whole.
      text: tokens of the text encoder.
      mask: true where there is a token, false where there is padding; no text may be all padding. None lets padding
        count as tokens, as IF was trained.
      low_res: for a stage of super-resolution, images of low resolution, enlarged to the size of x, then noised.
      noise_level: how far they were noised, on the scale of t.

    Returns:
      What the network was trained to predict: noise, image or v, and behind it the variance where it has one.

    Raises:
      ValueError: if an input is missing or superfluous or of a shape that does not fit.
    """
    self._check(x, text, low_res, noise_level)
    mask = jnp.ones(text.shape[:2], bool) if mask is None else mask
    condition = self._condition(t, text, mask, noise_level)
    attention = functools.partial(Attention, self.head_width, self.self_attention, self.groups, self.dtype)
    plain = functools.partial(
      with_remat(Block, self.remat),
      activation=self.activation,
      rescale=self.rescale,
      groups=self.groups,
      dtype=self.dtype,
    )
    attending = functools.partial(plain, make_attention=attention)
    levels = [
      (width, blocks, attending if attends else plain)
      for width, blocks, attends in zip(self.widths, self.blocks, self.attention, strict=True)
    ]
    last = len(levels) - 1

    def step(resize, here, there):
      if there not in range(len(levels)):
        return None
      makers = {
        "block": functools.partial(plain, self.widths[here], resize=resize),
        "conv": functools.partial(Step, self.widths[there], resize, self.dtype),
      }
      return makers[self.step]

    seen = (x,) if low_res is None else (x, low_res)
    x = space_to_depth(jnp.concatenate(seen, axis=-1), self.patch)
    x = nn.Conv(self.widths[0], (3, 3), dtype=self.dtype, name="conv_in")(x).astype(jnp.float32)
    left = [x]
    for i, (width, blocks, make_block) in enumerate(levels):
      x, more = Down(width, blocks, make_block, step(halve, i, i + 1), name=f"down_{i}")(x, condition)
      left += more
    x = attending(self.widths[last], name="middle_0")(x, condition)
    x = plain(self.widths[last], name="middle_1")(x, condition)
    for i, (width, blocks, make_block) in reversed(list(enumerate(levels))):
      left, taken = left[: -blocks - 1], left[-blocks - 1 :]
      x = Up(width, make_block, step(upsample_nearest, i, i - 1), name=f"up_{last - i}")(x, taken, condition)
    x = ACTIVATIONS[self.activation](group_norm(self.groups, "norm")(x))
    channels = self.out_channels * self.patch**2
    x = nn.Conv(channels, (3, 3), kernel_init=zeros, dtype=self.dtype, name="conv_out")(x)
    x = depth_to_space(x.astype(jnp.float32), self.patch)
    if self.around:
      shares = nn.Dense(len(seen), kernel_init=zeros, name="around")(condition.embedding)
      skip = sum(share[:, None, None, None] * image for share, image in zip(shares.T, seen, strict=True))
      x = x.at[..., :3].add(skip)
    return x

  def _condition(
    self,
    t: Float[Array, "b"],
    text: Float[Array, "b n d"],
    mask: Bool[Array, "b n"],
    noise_level: Float[Array, "b"] | None,
  ) -> Condition:
    """Eq. 1, and the text as eq. 3 sees it."""
    mlp = functools.partial(MLP, self.time_width, self.activation, self.dtype)
    embedding = mlp(name="time")(sinusoid(t, self.widths[0]))
    embedding += TextPool(self.time_width, self.pool_heads, self.dtype, name="pool")(text, mask)
    if self.low_res:
      embedding += mlp(name="noise_level")(sinusoid(noise_level, self.widths[0]))
    text = nn.Dense(self.cross_width, dtype=self.dtype, name="text")(text).astype(jnp.float32)
    return Condition(ACTIVATIONS[self.activation](embedding), text, mask)

  def _check(self, x: Array, text: Array, low_res: Array | None, noise_level: Array | None) -> None:
    """Raises what `__call__` says."""
    (_, height, width, channels), halvings = x.shape, len(self.widths) - 1
    if height % self.patch or width % self.patch:
      raise ValueError(f"images of {height}x{width} cannot be cut into patches of {self.patch}x{self.patch}")
    height, width = height // self.patch, width // self.patch
    if channels != 3:
      raise ValueError(f"images have 3 channels, not {channels}; an image of low resolution is passed as low_res")
    if height % 2**halvings or width % 2**halvings:
      raise ValueError(f"images of {height}x{width} cannot be halved {halvings} times, as this model does")
    if text.shape[-1] != self.text_width:
      raise ValueError(f"this model reads tokens of {self.text_width} channels, not {text.shape[-1]}")
    given = {"low_res": low_res, "noise_level": noise_level}
    given = " and ".join(name for name, value in given.items() if value is not None) or "neither"
    wanted = "low_res and noise_level" if self.low_res else "neither"
    if given != wanted:
      raise ValueError(f"of low_res and noise_level this model takes {wanted}, but was given {given}")
    if low_res is not None and low_res.shape != x.shape:
      raise ValueError(f"low_res has shape {low_res.shape} and x {x.shape}: enlarge it first")


def layer_norm(name: str) -> nn.LayerNorm:
  """Layer norm of text."""
  return nn.LayerNorm(epsilon=EPS, use_fast_variance=False, name=name)


def group_norm(groups: int, name: str) -> GroupNorm:
  """Group norm of pixels or of text, over all that stand in one image or in one text."""
  return GroupNorm(groups, EPS, name=name)


# The largest of DeepFloyd's base stages, and the stage behind it; what the others are, the config.json beside their
# weights says.
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
