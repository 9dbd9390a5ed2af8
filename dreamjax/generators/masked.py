"""Masked-token generators: a base transformer predicts an image's tokens from a prompt, a second those of a larger one.

Muse (Chang et al., 2301.00704), and with one stage and a transformer of its own aMUSEd (Patil et al., 2401.01808). Each
stage is a transformer and a VQGAN whose tokens it predicts, decoded in parallel.

In the parameters a stage's entry holds "transformer" and "vqgan".
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from dreamjax.diffusion.process import fold_in
from dreamjax.diffusion.resolution import downsample
from dreamjax.errors import UserError
from dreamjax.generators.branches import BranchGroup, Guidance, evaluate, masked_weights, mix
from dreamjax.generators.conditioning import Conditioning, Text
from dreamjax.generators.generator import Generator, merge_full_weights
from dreamjax.masked.decoding import decode
from dreamjax.models.muse import Muse
from dreamjax.models.uvit import UViT
from dreamjax.models.vqgan import VQGAN
from dreamjax.theta import StackedThetas, Theta
from dreamjax.theta import apply as apply_theta


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How a stage's tokens are decoded.

  Attributes:
    steps: how often the network is evaluated.
    temperature: of the choice of tokens to keep, which falls linearly to 0 in the last step.
    lambda_a: the weight of the guidance from the base model to the personalised one, see `branches`.
    lambda_b: the weight of the guidance from the negative prompt to the prompt; 0 for none.
    rises: whether the weights rise linearly over the steps, from no guidance in the first, as in Muse.
    starts_at_temperature: whether the first step of T has the whole temperature, as in aMUSEd, or 1 - 1/T of it, as in
      MaskGIT.
  """

  steps: int = 36
  temperature: float = 4.5
  lambda_a: float = 2.0
  lambda_b: float = 5.0
  rises: bool = False
  starts_at_temperature: bool = False

  def __post_init__(self) -> None:
    """Raises UserError for values out of range."""
    if self.steps < 1:
      raise UserError(f"decoding takes one step or more, not {self.steps}")
    if self.temperature < 0:
      raise UserError(f"the temperature is at least 0, not {self.temperature}")

  @classmethod
  def read(cls, fields: Mapping[str, Any]) -> "Decoding":
    """The decoding that a file describes."""
    return cls(**fields)

  @staticmethod
  def current_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a file by the names that they have today, which are those that they have always had."""
    return dict(fields)

  def branches(self, count: int, gamma: float) -> Guidance:
    """The branches of guidance with `count` personalisations, of which the second has the share gamma."""
    guided = masked_weights(count, self.lambda_a, self.lambda_b, gamma)
    return Guidance.of(masked_weights(count, 0.0, 0.0, gamma) if self.rises else guided, guided)


@dataclasses.dataclass(frozen=True)
class TokenStage:
  """One stage.

  Attributes:
    name: of the stage, and of its part of the parameters.
    transformer: the network that predicts tokens, which also determines whether it is conditioned on those of a smaller
      image.
    vqgan: whose tokens they are.
    sampling: how they are decoded unless the caller says otherwise.
    numbers: the numbers about every image that aMUSEd's transformer is conditioned on, see `UViT`; none for Muse's.
    positive: whether the VQGAN's pixels are from 0 to 1, as aMUSEd's are, and not from -1 to 1.
  """

  name: str
  transformer: Muse | UViT
  vqgan: VQGAN
  sampling: Decoding = Decoding()
  numbers: tuple[float, ...] = ()
  positive: bool = False

  def __post_init__(self) -> None:
    """Raises UserError for networks that do not go together."""
    if self.transformer.codebook != self.vqgan.codebook:
      sizes = f"{self.transformer.codebook} tokens, its VQGAN {self.vqgan.codebook}"
      raise UserError(f"stage {self.name}: the transformer knows {sizes}")
    wanted = self.transformer.numbers if isinstance(self.transformer, UViT) else 0
    if len(self.numbers) != wanted:
      counts = f"{wanted} numbers about an image, not {len(self.numbers)}"
      raise UserError(f"stage {self.name}: the transformer is conditioned on {counts}")

  @property
  def image(self) -> int:
    """Height and width of the stage's images."""
    return self.transformer.side * self.vqgan.factor

  def network_params(self, params: Any) -> Any:
    """The parameters of the network that thetas are for, of the stage's: the transformer's."""
    return params["transformer"]

  def merge(self, params: Any, theta: Theta) -> Any:
    """The stage's parameters with full weights in their places."""
    return {**params, "transformer": merge_full_weights(params["transformer"], theta)[0]}

  def predict(
    self,
    params: Any,
    theta: Theta | StackedThetas | None,
    tokens: Int[Array, "b n"],
    conditioning: Conditioning,
  ) -> Float[Array, "b n v"]:
    """The logits of tokens, some of which are masked; see `Muse` and `UViT`."""
    text = conditioning.text
    if isinstance(self.transformer, UViT):
      numbers = jnp.broadcast_to(jnp.float32(self.numbers), (len(tokens), len(self.numbers)))
      inputs = tokens, text.tokens, None, text.pooled, numbers  # aMUSEd attends to padding, too
    else:
      inputs = tokens, text.tokens, text.mask, conditioning.low_res
    return apply_theta(self.transformer, params["transformer"], theta, *inputs)

  def encode(self, params: Any, images: Float[Array, "b h w 3"]) -> Int[Array, "b n"]:
    """The tokens of images in [-1, 1], which are downsampled first where they are too large."""
    own = downsample(images, self.image)
    return apply_theta(self.vqgan, params["vqgan"], None, own / 2 + 0.5 if self.positive else own, method="tokens")

  def decode(self, params: Any, tokens: Int[Array, "b n"]) -> Float[Array, "b h w 3"]:
    """The images of tokens, in [-1, 1]."""
    images = apply_theta(self.vqgan, params["vqgan"], None, tokens, method="decode")
    return jnp.clip(2 * images - 1 if self.positive else images, -1, 1)


def sample_tokens(
  stage: TokenStage,
  decoding: Decoding,
  groups: tuple[BranchGroup, ...],
  weights: Float[Array | np.ndarray, "2 k"],
  keys: Key[Array, " b"],
  low_res: Int[Array, "b l"] | None = None,
) -> Int[Array, "b n"]:
  """Decodes one stage. Jittable, with the first two arguments static.

  Args:
    stage: the stage.
    decoding: how; its guidance is in the branches and their weights.
    groups: the branches of guidance.
    weights: of the branches, without guidance and with it.
    keys: one an image, on which alone its noise depends.
    low_res: the tokens of the stage before.
  """
  count, length = keys.shape[0], stage.transformer.side**2
  unguided, guided = jnp.asarray(weights)

  def network(params: Any, theta: Any, text: Text, tokens: Array, low_res: Array | None) -> Array:
    return stage.predict(params, theta, tokens, Conditioning(text, low_res))

  def predict(tokens: Array, progress: Array) -> Array:
    return mix(evaluate(network, groups, tokens, low_res), unguided + progress * (guided - unguided))

  nothing = jnp.zeros((count, length), jnp.int32)
  unknown = jnp.ones((count, length), bool)
  temperature = decoding.temperature
  if decoding.starts_at_temperature:
    temperature *= decoding.steps / max(decoding.steps - 1, 1)
  options = {"mask_id": stage.transformer.mask_id, "steps": decoding.steps, "temperature": temperature}
  return decode(predict, nothing, unknown, keys, **options)


@functools.partial(jax.jit, static_argnames=("stages", "decodings"))
def sample_stages(
  stages: tuple[TokenStage, ...],
  decodings: tuple[Decoding, ...],
  groups: tuple[tuple[BranchGroup, ...], ...],
  weights: tuple[Float[Array | np.ndarray, "2 _"], ...],
  vqgans: Mapping[str, Any],
  keys: Key[Array, " b"],
) -> tuple[Float[Array, "b _ _ 3"], ...]:
  """Decodes the tokens of stage after stage, and their images, as one program.

  Args:
    stages: the base stage first.
    decodings: of each stage.
    groups: of each stage, its branches.
    weights: of each stage, those of its branches.
    vqgans: by the names of stages, {"vqgan": parameters}.
    keys: one an image.

  Returns:
    The images of each stage, in [-1, 1].
  """
  images, tokens = [], None
  for number, (stage, decoding, own, own_weights) in enumerate(zip(stages, decodings, groups, weights, strict=True)):
    tokens = sample_tokens(stage, decoding, own, own_weights, fold_in(keys, number), tokens)
    images.append(stage.decode(vqgans[stage.name], tokens))
  return tuple(images)


@dataclasses.dataclass(frozen=True)
class Masked(Generator[TokenStage]):
  """A text encoder and stages of masked tokens."""

  def __post_init__(self) -> None:
    """Raises UserError for stages that do not go together."""
    for small, large in zip(self.stages, self.stages[1:], strict=False):
      if not isinstance(large.transformer, Muse):
        raise UserError(f"stage {large.name} is not conditioned on smaller images, so none can come before it")
      wanted = (small.transformer.side, small.transformer.codebook)
      if (found := (large.transformer.low_side, large.transformer.low_codebook)) != wanted:
        raise UserError(f"stage {large.name} takes {found} tokens and words, but {small.name} samples {wanted}")

  @property
  def resolution(self) -> int:
    """Height and width of the finished images."""
    return self.stages[-1].image

  def generate(self, stages, samplings, groups, weights, params, keys, control=None):
    """Samples a batch of images, see `Generator.generate`; there are no ControlNets for masked tokens."""
    if control is not None:
      raise UserError(f"{self.name} samples no latents, so no ControlNet can be used with it")
    return sample_stages(stages, samplings, groups, weights, params, keys)

  def decoder_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """The VQGANs' parameters."""
    return {stage.name: {"vqgan": params[stage.name]["vqgan"]} for stage in self.stages if stage.name in params}
