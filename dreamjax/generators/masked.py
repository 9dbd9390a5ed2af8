"""Masked-token generation: a base transformer draws an image's tokens from a text, a second one those of a larger one.

Muse (Chang et al., 2301.00704), and with one stage and a transformer of its own aMUSEd (Patil et al., 2401.01808). Each
stage is a transformer and a VQGAN whose tokens it predicts, decoded in parallel.
Guidance mixes what the network says of several branches, each a theta (or none) and a text, as eqs. 1 to 6 of StyleDrop
(Sohn et al., 2306.00983) do; the branches are drawn side by side, in one program, over the same frozen parameters.

In the parameters a stage's entry holds "transformer" and "vqgan".
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from dreamjax.data.identifiers import PLACEHOLDER, fill
from dreamjax.diffusion.process import fold_in
from dreamjax.diffusion.resolution import downsample
from dreamjax.generators.generator import Generator, Text, image_keys, in_batches, merge_full_weights, over, spread
from dreamjax.masked import guidance
from dreamjax.masked.decoding import decode
from dreamjax.models.muse import Muse
from dreamjax.models.uvit import UViT
from dreamjax.models.vqgan import VQGAN
from dreamjax.parallel import processes
from dreamjax.theta import Full, Personalisation, StackedThetas, Theta
from dreamjax.theta import apply as apply_theta

GAMMA = 0.6  # how much of the second of two thetas there is; the paper's are 0.5 to 0.7


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How a stage's tokens are decoded.

  Attributes:
    steps: how often the network is asked.
    temperature: of the choice of tokens that are kept.
    lambda_a: guidance from the frozen generator to the one with a theta; of no meaning without one.
    lambda_b: guidance from the negative prompt to the prompt; 0 for none.
    rises: whether guidance begins at none and rises linearly over the steps, as in Muse.
  """

  steps: int = 36
  temperature: float = 4.5
  lambda_a: float = 2.0
  lambda_b: float = 5.0
  rises: bool = False

  def __post_init__(self) -> None:
    """Raises ValueError for what cannot be."""
    if self.steps < 1:
      raise ValueError(f"decoding takes one step or more, not {self.steps}")
    if self.temperature < 0:
      raise ValueError(f"the temperature of the choice is at least 0, not {self.temperature}")


@dataclasses.dataclass(frozen=True)
class TokenStage:
  """One stage.

  Attributes:
    name: of the stage, and of its part of the parameters.
    transformer: the network that predicts tokens, which also says whether it sees those of a smaller image.
    vqgan: whose tokens they are.
    decoding: how they are decoded unless it is told otherwise.
    numbers: what aMUSEd's transformer is told about every image, see `UViT`; none for Muse's.
    positive: whether the pixels that the VQGAN sees and makes are from 0 to 1, as aMUSEd's are, and not from -1 to 1.
  """

  name: str
  transformer: Muse | UViT
  vqgan: VQGAN
  decoding: Decoding = Decoding()
  numbers: tuple[float, ...] = ()
  positive: bool = False

  def __post_init__(self) -> None:
    """Raises ValueError for networks that do not go together."""
    if self.transformer.codebook != self.vqgan.codebook:
      known = f"{self.transformer.codebook} tokens, its VQGAN {self.vqgan.codebook}"
      raise ValueError(f"stage {self.name}: the transformer knows {known}")
    wanted = self.transformer.numbers if isinstance(self.transformer, UViT) else 0
    if len(self.numbers) != wanted:
      told = f"{wanted} numbers about an image, not {len(self.numbers)}"
      raise ValueError(f"stage {self.name}: the transformer is told {told}")

  @property
  def image(self) -> int:
    """Side of the stage's images."""
    return self.transformer.side * self.vqgan.factor

  def predict(
    self,
    params: Any,
    theta: Theta | StackedThetas | None,
    tokens: Int[Array, "b n"],
    text: Text,
    low: Int[Array, "b l"] | None = None,
  ) -> Float[Array, "b n v"]:
    """The logits of tokens, some of which are masked; see `Muse` and `UViT`."""
    if isinstance(self.transformer, UViT):
      numbers = jnp.broadcast_to(jnp.float32(self.numbers), (len(tokens), len(self.numbers)))
      seen = text.tokens, None, text.pooled, numbers
      return apply_theta(self.transformer, params["transformer"], theta, tokens, *seen)
    return apply_theta(self.transformer, params["transformer"], theta, tokens, text.tokens, text.mask, low)

  def encode(self, params: Any, images: Float[Array, "b h w 3"]) -> Int[Array, "b n"]:
    """The tokens of images in [-1, 1], made smaller first where they are too large."""
    own = downsample(images, self.image)
    seen = own / 2 + 0.5 if self.positive else own
    return apply_theta(self.vqgan, params["vqgan"], None, seen, method="tokens")

  def decode(self, params: Any, tokens: Int[Array, "b n"]) -> Float[Array, "b h w 3"]:
    """The images of tokens, in [-1, 1]."""
    images = apply_theta(self.vqgan, params["vqgan"], None, tokens, method="decode")
    return jnp.clip(2 * images - 1 if self.positive else images, -1, 1)


@dataclasses.dataclass(frozen=True)
class Masked(Generator[TokenStage]):
  """A text encoder and stages of masked tokens."""

  def __post_init__(self) -> None:
    """Raises ValueError for stages that do not go together."""
    for small, large in zip(self.stages, self.stages[1:], strict=False):
      if not isinstance(large.transformer, Muse):
        raise ValueError(f"stage {large.name} sees no smaller image, so none can come before it")
      wanted = (small.transformer.side, small.transformer.codebook)
      if (found := (large.transformer.low_side, large.transformer.low_codebook)) != wanted:
        raise ValueError(f"stage {large.name} sees {found} tokens and words, but {small.name} draws {wanted}")

  @property
  def resolution(self) -> int:
    """Side of the finished images."""
    return self.stages[-1].image


def draw_tokens(
  stage: TokenStage,
  decoding: Decoding,
  params: Any,
  branches: StackedThetas,
  texts: Text,
  weights: Float[Array, "2 k"],
  keys: Key[Array, " b"],
  low: Int[Array, "b l"] | None = None,
) -> Int[Array, "b n"]:
  """Decodes one stage. Jittable, with the first two arguments static.

  Args:
    stage: which.
    decoding: how; its lambdas have no meaning here, for they are in the weights.
    params: the stage's.
    branches: k thetas side by side.
    texts: of each branch, [k, b, n, d].
    weights: of the branches, in the first step and in the last; their sums are 1.
    keys: one an image, on which alone its noise depends.
    low: tokens of the stage before.
  """
  count, length = keys.shape[0], stage.transformer.side**2

  def predict(tokens: Array, progress: Array) -> Array:
    one = lambda branch, text: stage.predict(params, branch, tokens, text, low)  # noqa: E731
    logits = jax.vmap(one)(branches, texts)
    return guidance.mix(logits, guidance.rising(*weights, progress))

  nothing = jnp.zeros((count, length), jnp.int32)
  unknown = jnp.ones((count, length), bool)
  options = {"mask_id": stage.transformer.mask_id, "steps": decoding.steps, "temperature": decoding.temperature}
  return decode(predict, nothing, unknown, keys, **options)


def draw(
  stages: tuple[TokenStage, ...],
  decodings: tuple[Decoding, ...],
  params: Any,
  branches: Mapping[str, StackedThetas],
  texts: tuple[Text, ...],
  weights: tuple[Float[Array, "2 _"], ...],
  keys: Key[Array, " b"],
) -> tuple[Float[Array, "b _ _ 3"], ...]:
  """Decodes stage after stage, and their images, in one program. Jittable, with the first two arguments static.

  Args:
    stages: the base stage first.
    decodings: one for each.
    params: by the names of stages.
    branches: by the names of stages, thetas side by side.
    texts: of each branch, for each stage.
    weights: of the branches, in the first step and in the last, for each stage.
    keys: one an image.

  Returns:
    The images of each stage, in [-1, 1].
  """
  drawn, low = [], None
  for number, (stage, decoding, text, own) in enumerate(zip(stages, decodings, texts, weights, strict=True)):
    folded = fold_in(keys, number)
    mine = params[stage.name]
    low = draw_tokens(stage, decoding, mine, branches[stage.name], text, own, folded, low)
    drawn.append(stage.decode(mine, low))
  return tuple(drawn)


#: `draw`, as `batches` calls it.
jit_draw = jax.jit(draw, static_argnums=(0, 1))


@dataclasses.dataclass(frozen=True)
class Wish:
  """What is to be drawn, branch by branch.

  Attributes:
    prompts: of each branch but the first, which has the negative one; [V] already replaced.
    thetas: of each branch but the first, by the names of stages; None for the frozen generator.
    gamma: where there are two thetas, how much of the second there is.
  """

  prompts: tuple[str, ...]
  thetas: tuple[Mapping[str, Theta] | None, ...]
  gamma: float = 0.0


def plain(prompt: str) -> Wish:
  """The frozen generator (eq. 1)."""
  return Wish((prompt,), (None,))


def styled(prompt: str, theta: Mapping[str, Theta]) -> Wish:
  """One theta (eq. 4)."""
  return Wish((prompt, prompt), (None, theta))


def mixed(
  style_prompt: str, style: Mapping[str, Theta], subject_prompt: str, subject: Mapping[str, Theta], gamma: float
) -> Wish:
  """Two thetas (eqs. 5 and 6)."""
  prompts = (style_prompt, style_prompt, subject_prompt, subject_prompt)
  return Wish(prompts, (None, style, None, subject), gamma)


def wish(prompt: str, thetas: Sequence[Personalisation] = (), gamma: float = 0.0) -> Wish:
  """What a prompt asks of some personalisations: of none, of one, or of two, mixed by gamma.

  Each is asked in its own words. That of a style is told the prompt with the style behind it, unless it is there
  already, and without [V]; that of a subject has its word in the place of [V], and is not told the other's style.

  Raises:
    ValueError: if there are more than two, or there is [V] in the prompt and no subject that it stands for.
  """
  if len(thetas) > 2:
    raise ValueError(f"one personalisation or two can be drawn with, not {len(thetas)}")
  if PLACEHOLDER in prompt.upper() and not any(theta.card.identifier for theta in thetas):
    raise ValueError(f"{PLACEHOLDER} stands for a subject, and there is no theta of one: {prompt!r}")
  styles = [style_of(theta) for theta in thetas]
  content = prompt
  for style in filter(None, styles):
    content = content.replace(style, "")
  told = []
  for theta, style in zip(thetas, styles, strict=True):
    words = fill(content, theta.card.identifier or "")
    told.append(" ".join(f"{words} {style}".split()))
  own = [theta.thetas for theta in thetas]
  match len(thetas):
    case 0:
      return plain(prompt)
    case 1:
      return styled(told[0], own[0])
    case _:
      return mixed(told[0], own[0], told[1], own[1], gamma)


def style_of(theta: Personalisation) -> str:
  """How prompts say the style that a theta has learned; "" for a theta of a subject."""
  return theta.card.recipe.get("style", "")


def settled(params: Any, wishes: Sequence[Wish]) -> tuple[Any, Sequence[Wish]]:
  """Wishes whose thetas can be drawn side by side: full weights cannot, and take the place of the parameters instead.

  The generator without them is then not at hand, so that of guidance only lambda_b counts, as in eq. 1.

  Args:
    params: the generator's.
    wishes: all with the same thetas.

  Raises:
    ValueError: if there are other thetas beside full weights.
  """
  thetas = [theta for theta in wishes[0].thetas if theta]
  if not any(isinstance(kind, Full) for theta in thetas for kind in theta.values()):
    return params, wishes
  if len(thetas) > 1 or not all(isinstance(kind, Full) for kind in thetas[0].values()):
    raise ValueError("full weights are drawn with alone, not beside another theta, nor beside one of another kind")
  merged = dict(params)
  for name, theta in thetas[0].items():
    merged[name] = {**params[name], "transformer": merge_full_weights(params[name]["transformer"], theta)[0]}
  return merged, [plain(wish.prompts[-1]) for wish in wishes]


def branch_weights(wish: Wish, decoding: Decoding) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, "2 k"]]:
  """Which of a wish's branches count, 0 being the negative one, and their weights in the first step and in the last."""

  def weights(lambda_a: float, lambda_b: float) -> np.ndarray:
    match len(wish.prompts):
      case 1:
        return guidance.plain(lambda_b)
      case 2:
        return guidance.adapted(lambda_a, lambda_b)
      case _:
        return guidance.two_thetas(wish.gamma, lambda_a, lambda_b)

  last = weights(decoding.lambda_a, decoding.lambda_b)
  both = np.stack([weights(0.0, 0.0) if decoding.rises else last, last])
  asked = np.flatnonzero(both.any(axis=0))  # no network is asked what does not count
  return asked, both[:, asked]


def batches(
  generator: Masked,
  params: Any,
  wishes: Sequence[Wish],
  *,
  decodings: Sequence[Decoding] | None = None,
  negative: str = "",
  seed: int = 0,
  first: int = 0,
  size: int = 8,
  mesh: jax.sharding.Mesh | None = None,
) -> Iterator[tuple[Float[np.ndarray, "b _ _ 3"], ...]]:
  """Images of all stages, `size` at a time, as they are drawn.

  Args:
    generator: which.
    params: its parameters.
    wishes: one an image; all with the same thetas and gamma.
    decodings: one for each stage; by default each stage's own. Fewer draw fewer stages.
    negative: what guidance leads away from.
    seed: of all noise.
    first: the number of the first image: image i of a seed is the same whatever is drawn beside it.
    size: how many are drawn at once; on a mesh, as many more as make it divide.
    mesh: of devices, over which the images of a batch are spread; None for one device.

  Raises:
    ValueError: if the wishes differ in their thetas.
  """
  decodings = tuple(decodings or (stage.decoding for stage in generator.stages))
  stages = generator.stages[: len(decodings)]
  thetas = wishes[0].thetas
  if any(wish.thetas is not thetas and wish.thetas != thetas or wish.gamma != wishes[0].gamma for wish in wishes):
    raise ValueError("images that are drawn together have the same thetas")
  params, wishes = settled(params, wishes)
  thetas = wishes[0].thetas
  asked, weights = zip(*(branch_weights(wishes[0], decoding) for decoding in decodings), strict=True)
  branches = {}
  for stage, some in zip(stages, asked, strict=True):
    own = [None, *(None if x is None else x.get(stage.name) for x in thetas)]
    branches[stage.name] = StackedThetas.of(params[stage.name]["transformer"], [own[i] for i in some])
  distinct = list(dict.fromkeys(prompt for wish in wishes for prompt in wish.prompts))
  read = generator.encode(params, [negative, *distinct], mesh=mesh)
  rows = np.array([[0, *(1 + distinct.index(prompt) for prompt in wish.prompts)] for wish in wishes])
  used = {stage.name: params[stage.name] for stage in stages}
  for count, places in in_batches(len(wishes), size, mesh):
    texts = tuple(jax.tree.map(lambda x, own=rows[places][:, some].T: x[own], read) for some in asked)
    texts, keys = spread(texts, mesh, axis=1), spread(image_keys(seed, first + places), mesh)
    with over(mesh):
      drawn = jit_draw(stages, decodings, used, branches, texts, weights, keys)
    yield tuple(image[:count] for image in processes.fetch(drawn))


def sample(
  generator: Masked,
  params: Any,
  prompts: Sequence[str],
  *,
  theta: Personalisation | Sequence[Personalisation] | None = None,
  gamma: float = GAMMA,
  n: int = 1,
  decodings: Sequence[Decoding] | None = None,
  negative: str = "",
  seed: int = 0,
  size: int = 8,
  mesh: jax.sharding.Mesh | None = None,
) -> Float[np.ndarray, "n s s 3"]:
  """Draws images of prompts.

  Args:
    generator: which.
    params: its parameters.
    prompts: see `wish` for how they are said to each theta.
    theta: a style, a subject, or a style and a subject.
    gamma: where there are two, how much of the second there is, from 0 to 1; the paper's are 0.5 to 0.7.
    n: how many images of each prompt; they stand together.
    decodings: one for each stage; by default each stage's own.
    negative: what guidance leads away from.
    seed: of all noise. Image i of a seed does not depend on what is drawn beside it, nor on `size`.
    size: how many are drawn at once; on a mesh, as many more as make it divide.
    mesh: of devices, over which the images of a batch are spread; None for one device.

  Returns:
    The last stage's images, in [-1, 1].

  Raises:
    ValueError: if there are no prompts, gamma is not from 0 to 1, or a prompt is none that the thetas can be asked.
  """
  thetas = [] if theta is None else [theta] if isinstance(theta, Personalisation) else list(theta)
  wishes = [wish(prompt, thetas, gamma) for prompt in prompts for _ in range(n)]
  if not wishes:
    raise ValueError("there is no prompt to draw")
  options = {"decodings": decodings, "negative": negative, "seed": seed, "size": size, "mesh": mesh}
  return np.concatenate([images[-1] for images in batches(generator, params, wishes, **options)])
