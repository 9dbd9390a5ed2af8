"""The U-Net of Stable Diffusion, which predicts noise or v from noisy latents, a time and a text.

"High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al., 2112.10752), section 3.3 and appendix
E.2.1, and "SDXL" (Podell et al., 2307.01952), sections 2.1 and 2.2:

  (1) e = mlp(sinusoid(t)) + mlp([pooled text; sinusoid(size)]), the second only in networks that take sizes
  (2) block(x) = shortcut(x) + conv(silu(norm(conv(silu(norm(x))) + silu(e) W)))
  (3) transformer(x) = x + W_out layer(...layer(W_in norm(x))), with each layer
      h + self_attention(norm(h)), h + attention(norm(h), text), h + gated_mlp(norm(h)), one after the other

Levels and skip connections are as in `dreamjax.models.unet`. A ControlNet (`dreamjax.models.controlnet`) adds to the
skip connections.

Matrix products and convolutions run in `dtype`; the residual streams of the blocks and the layers, the norms and the
softmax stay in float32, as do the parameters.
"""

import functools
from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dreamjax.models.attention import attend
from dreamjax.models.layers import apply_layers, with_remat
from dreamjax.models.normalization import GroupNorm
from dreamjax.models.residual import Block, Upsample
from dreamjax.models.taps import Tap
from dreamjax.models.unet import EPS, MLP, group_norm, layer_norm, sinusoid

TRANSFORMER_EPS = 1e-6  # of the norm at a transformer's entrance
MLP_RATIO = 4  # of the width of a layer's mlp to the layer's


class Condition(NamedTuple):
  """What all blocks are conditioned on: silu(e) of eq. 1, and the text's tokens."""

  embedding: Float[Array, "b e"]
  text: Float[Array, "b n d"]


class Control(NamedTuple):
  """What a ControlNet adds to the skip connections of the down path, in their order, and to the middle."""

  skips: tuple[Float[Array, "b _ _ _"], ...]
  middle: Float[Array, "b h w c"]


class Attention(nn.Module):
  """Attention of hidden states to a context, without biases but the last layer's."""

  heads: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b n c"], context: Float[Array, "b m d"]) -> Float[Array, "b n c"]:
    """Returns what is added to x."""
    width = x.shape[-1]

    def project(name: str, tokens: Float[Array, "b k _"]) -> Float[Array, "b k h d"]:
      tokens = nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(tokens)
      return tokens.reshape(*tokens.shape[:2], self.heads, -1)

    mixed = attend(project("query", x), project("key", context), project("value", context))
    return nn.Dense(width, dtype=self.dtype, name="out")(mixed.reshape(x.shape)).astype(jnp.float32)


class Layer(nn.Module):
  """A layer of eq. 3, with a `Tap` between self- and cross-attention."""

  heads: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b n c"], text: Float[Array, "b m d"]) -> Float[Array, "b n c"]:
    """Applies the layer to the hidden states."""
    width = x.shape[-1]
    y = layer_norm("norm_self")(x)
    x = x + Attention(self.heads, self.dtype, name="self")(y, y)
    x = Tap(name="tap")(x)
    x = x + Attention(self.heads, self.dtype, name="cross")(layer_norm("norm_cross")(x), text)
    y = nn.Dense(2 * MLP_RATIO * width, dtype=self.dtype, name="hidden")(layer_norm("norm_mlp")(x))
    hidden, gate = jnp.split(y, 2, axis=-1)
    y = nn.Dense(width, dtype=self.dtype, name="out")(hidden * nn.gelu(gate, approximate=False))
    return x + y.astype(jnp.float32)


class Transformer(nn.Module):
  """Eq. 3; W_in and W_out are 1x1 convolutions, which some checkpoints store as such and some as matrices."""

  depth: int
  heads: int
  linear: bool
  groups: int
  remat: str
  scan: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], text: Float[Array, "b n d"]) -> Float[Array, "b h w c"]:
    """Applies the transformer to the hidden states."""
    width = x.shape[-1]

    def project(name: str, y: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
      if self.linear:
        return nn.Dense(width, dtype=self.dtype, name=name)(y).astype(jnp.float32)
      return nn.Conv(width, (1, 1), dtype=self.dtype, name=f"{name}_conv")(y).astype(jnp.float32)

    make_layer = with_remat(Layer, self.remat)
    y = project("enter", GroupNorm(self.groups, TRANSFORMER_EPS, name="norm")(x)).reshape(len(x), -1, width)
    layers = [make_layer(self.heads, self.dtype, name=f"layer_{i}") for i in range(self.depth)]
    y = apply_layers(layers, y, text, scan=self.scan)
    return x + project("leave", y.reshape(x.shape))


class Downsample(nn.Module):
  """A convolution of stride 2, padded on all sides."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Halves height and width."""
    conv = nn.Conv(x.shape[-1], (3, 3), (2, 2), padding=1, dtype=self.dtype, name="conv")
    return conv(x).astype(jnp.float32)


class Level(nn.Module):
  """The blocks of a level, each followed by a transformer if the level has those; see `Trunk` for the fields."""

  width: int
  depth: int
  heads: int
  linear: bool
  groups: int
  remat: str
  scan: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], skips: tuple[Array | None, ...], condition: Condition, step: str
  ) -> tuple[Float[Array, "b h2 w2 d"], list[Float[Array, "b _ _ _"]]]:
    """Applies as many blocks as there are `skips`, which are concatenated to the blocks' inputs, and then the step.

    Args:
      x: hidden states.
      skips: the skip connections from the down path; None for each block of the down path.
      condition: what the blocks are conditioned on.
      step: to the next level, "downsample", "upsample" or "" for none.

    Returns:
      The hidden states, and the outputs of all blocks and of the step, which are skip connections of the down path.
    """
    make_block = with_remat(Block, self.remat)
    outputs = []
    for i, skip in enumerate(skips):
      x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
      x = make_block(self.width, self.groups, self.dtype, EPS, name=f"block_{i}")(x, condition.embedding)
      if self.depth:
        make = functools.partial(Transformer, self.depth, self.heads, self.linear, self.groups, self.remat, self.scan)
        x = make(self.dtype, name=f"transformer_{i}")(x, condition.text)
      outputs.append(x)
    if step:
      x = (Downsample if step == "downsample" else Upsample)(self.dtype, name=step)(x)
      outputs.append(x)
    return x, outputs


class Trunk(nn.Module):
  """What the U-Net and ControlNets share: the down path and the middle.

  Attributes:
    widths: channels of each level, each half as high and wide as the one before.
    blocks: of each level of the down path; the up path's levels have one more.
    attention: whether the blocks of each level are followed by transformers. The middle has one in any case.
    depth: layers of each level's transformers; the middle's has as many as the last level's.
    heads: attention heads of each level's transformers.
    text_width: channels of the text's tokens.
    channels: of the latents.
    pooled_width: channels of the pooled text that SDXL's networks take with sizes; None for networks that take neither.
    size_width: channels of the embedding of each number of the sizes.
    linear: whether transformers store their first and last matrix as a matrix, not as a 1x1 convolution.
    groups: of the norms.
    remat: what the backward pass of a layer or block recomputes, one of `layers.REMATS`.
    scan: whether the layers of each transformer are a loop, see `layers.apply_layers`.
    dtype: in which matrix products and convolutions are computed; the rest is float32.
  """

  widths: tuple[int, ...]
  blocks: int
  attention: tuple[bool, ...]
  depth: tuple[int, ...]
  heads: tuple[int, ...]
  text_width: int
  channels: int = 4
  pooled_width: int | None = None
  size_width: int = 256
  linear: bool = False
  groups: int = 32
  remat: str = "none"
  scan: bool = False
  dtype: DTypeLike = jnp.float32

  def _condition(
    self,
    t: Float[Array, "b"],
    text: Float[Array, "b n d"],
    pooled: Float[Array, "b p"] | None,
    sizes: Float[Array, "b 6"] | None,
  ) -> Condition:
    """Computes eq. 1."""
    if text.shape[-1] != self.text_width:
      raise ValueError(f"this model reads tokens of {self.text_width} channels, not {text.shape[-1]}")
    if (pooled is None) != (self.pooled_width is None) or (pooled is None) != (sizes is None):
      wanted = "neither" if self.pooled_width is None else "both"
      raise ValueError(f"of a pooled text and sizes this model takes {wanted}")
    mlp = functools.partial(MLP, 4 * self.widths[0], "silu", self.dtype)
    embedding = mlp(name="time")(sinusoid(t, self.widths[0]))
    if pooled is not None:
      if pooled.shape[-1] != self.pooled_width:
        raise ValueError(f"this model takes a pooled text of {self.pooled_width} channels, not {pooled.shape[-1]}")
      waves = sinusoid(sizes.reshape(-1), self.size_width).reshape(len(sizes), -1)
      embedding += mlp(name="size")(jnp.concatenate([pooled, waves], axis=-1))
    return Condition(nn.silu(embedding), text)

  def _level(self, i: int, name: str, *, always: bool = False) -> Level:
    """Returns level i, by its number on the down path."""
    depth = self.depth[i] if self.attention[i] or always else 0
    computing = self.remat, self.scan, self.dtype
    return Level(self.widths[i], depth, self.heads[i], self.linear, self.groups, *computing, name=name)

  def _descend(
    self, x: Float[Array, "b h w c"], condition: Condition
  ) -> tuple[Float[Array, "b h2 w2 d"], list[Float[Array, "b _ _ _"]]]:
    """Applies the down path and the middle, and returns the hidden states and all skip connections."""
    last, skips = len(self.widths) - 1, [x]
    for i in range(len(self.widths)):
      step = "downsample" if i < last else ""
      x, more = self._level(i, f"down_{i}")(x, (None,) * self.blocks, condition, step)
      skips += more
    x, _ = self._level(last, "middle_0", always=True)(x, (None,), condition, "")
    make_block = with_remat(Block, self.remat)
    x = make_block(self.widths[last], self.groups, self.dtype, EPS, name="middle_1")(x, condition.embedding)
    return x, skips

  def _check(self, x: Array) -> None:
    (_, height, width, channels), halvings = x.shape, len(self.widths) - 1
    if channels != self.channels:
      raise ValueError(f"this model takes latents of {self.channels} channels, not {channels}")
    if height % 2**halvings or width % 2**halvings:
      raise ValueError(f"latents of {height}x{width} cannot be halved {halvings} times, as this model does")


class LatentUNet(Trunk):
  """Eq. 1 to 3; see `Trunk` for most fields.

  Attributes:
    image: side of the latents. Others are accepted too, if they can be halved as often.
  """

  image: int = 64

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    t: Float[Array, "b"],
    text: Float[Array, "b n d"],
    pooled: Float[Array, "b p"] | None = None,
    sizes: Float[Array, "b 6"] | None = None,
    control: Control | None = None,
  ) -> Float[Array, "b h w c"]:
    """Predicts noise or v, whichever the network was trained to predict.

    Args:
      x: noisy latents.
      t: the time of each, as a step from 0 to 999 that need not be whole.
      text: tokens of the text encoder, padding and all.
      pooled: for SDXL's networks, one vector of each text.
      sizes: for SDXL's networks, in pixels: original height and width, top and left of the crop, height and width
        that the image shall have.
      control: the output of a ControlNet.

    Returns:
      The prediction.

    Raises:
      ValueError: if an input is missing or superfluous or of a shape that does not fit.
    """
    self._check(x)
    condition = self._condition(t, text, pooled, sizes)
    x = nn.Conv(self.widths[0], (3, 3), dtype=self.dtype, name="conv_in")(x).astype(jnp.float32)
    x, skips = self._descend(x, condition)
    if control is not None:
      skips = [skip + more for skip, more in zip(skips, control.skips, strict=True)]
      x = x + control.middle
    last = len(self.widths) - 1
    for i in reversed(range(len(self.widths))):
      skips, own = skips[: -self.blocks - 1], skips[-self.blocks - 1 :]
      step = "upsample" if i else ""
      x, _ = self._level(i, f"up_{last - i}")(x, tuple(reversed(own)), condition, step)
    x = nn.silu(group_norm(self.groups, "norm")(x))
    return nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_out")(x).astype(jnp.float32)


# Stable Diffusion 1.5, 2.1 and SDXL's base.
SD_15 = LatentUNet(
  image=64,
  widths=(320, 640, 1280, 1280),
  blocks=2,
  attention=(True, True, True, False),
  depth=(1, 1, 1, 1),
  heads=(8, 8, 8, 8),
  text_width=768,
)
SD_21 = SD_15.clone(image=96, heads=(5, 10, 20, 20), text_width=1024, linear=True)
SDXL = LatentUNet(
  image=128,
  widths=(320, 640, 1280),
  blocks=2,
  attention=(False, True, True),
  depth=(1, 2, 10),
  heads=(5, 10, 20),
  text_width=2048,
  pooled_width=1280,
  linear=True,
)
