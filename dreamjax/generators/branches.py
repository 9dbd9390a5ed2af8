"""Guidance as a list of weighted branches, for both families of generators.

A branch is one term of guidance: a prompt, and the personalisation (or none) with which the network is evaluated on it.
With G_s the network personalised by s, t its prompt, n the negative prompt and w, lambda_A, lambda_B weights,

    diffusion      l(s, t) = G_s(t) + (w - 1) (G_s(t) - G_s(n)) + lambda_A (G_s(t) - G(t))                         (1)
    masked tokens  l(s, t) = G_s(t) + lambda_A (G_s(t) - G(t)) + lambda_B (G(t) - G(n))                            (2)
    two of them    (1 - gamma) l(s, t) + gamma l(c, p)                                                             (3)

(1) is classifier-free guidance of the personalised network (Ho & Salimans, 2207.12598) with lambda_A's guidance from
the base model to the personalised one; (2) and (3) are eqs. 4 to 6 of StyleDrop (Sohn et al., 2306.00983), s a style
and t a prompt in the style's words, c a subject and p the same prompt in the subject's. All of them are affine: the
weights of the branches sum to 1. Branches without weight are not evaluated; branches that share parameters are
evaluated at once.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from dreamjax.errors import UserError
from dreamjax.generators.conditioning import Text
from dreamjax.theta import Full, StackedThetas, Theta

GAMMA = 0.6  # the share of the second of two personalisations; StyleDrop's are 0.5 to 0.7


class Branch(NamedTuple):
  """One term of guidance.

  Attributes:
    theta: the index of the personalisation that is applied; None for the base model.
    prompt: the index of the prompt: 0 is the negative one, i + 1 the one in the words of personalisation i.
  """

  theta: int | None
  prompt: int


@dataclasses.dataclass(frozen=True)
class Guidance:
  """Branches and their weights.

  Attributes:
    branches: k of them; the last is the personalised network's on its prompt.
    weights: [2, k], the weights without guidance and with all of it.
  """

  branches: tuple[Branch, ...]
  weights: Float[np.ndarray, "2 k"]

  @classmethod
  def of(cls, unguided: Mapping[Branch, float], guided: Mapping[Branch, float]) -> "Guidance":
    """The branches that have a weight in either mapping, in the order of `guided`."""
    kept = tuple(branch for branch in guided if guided[branch] or unguided.get(branch))
    weights = [[weights.get(branch, 0.0) for branch in kept] for weights in (unguided, guided)]
    return cls(kept, np.array(weights, np.float32))


def diffusion_weights(count: int, guidance: float, lambda_a: float, gamma: float) -> dict[Branch, float]:
  """The weight of each branch by equations (1) and (3).

  Args:
    count: the number of personalisations.
    guidance: w; 1 is no guidance to the prompt.
    lambda_a: of the guidance to the personalisation; 0 is none.
    gamma: the share of the second of two.

  Raises:
    UserError: for more than two personalisations, or a gamma outside [0, 1].
  """
  weights: dict[Branch, float] = {}
  for theta, prompt, share in _shares(count, gamma):
    towards = 0.0 if theta is None else lambda_a
    weights[Branch(theta, 0)] = share * (1 - guidance)
    if theta is not None:
      weights[Branch(None, prompt)] = -share * towards
    weights[Branch(theta, prompt)] = share * (guidance + towards)
  return weights


def masked_weights(count: int, lambda_a: float, lambda_b: float, gamma: float) -> dict[Branch, float]:
  """The weight of each branch by equations (2) and (3).

  Args:
    count: the number of personalisations; without any, lambda_A has no meaning.
    lambda_a: of the guidance to the personalisation.
    lambda_b: of the guidance to the prompt.
    gamma: the share of the second of two.

  Raises:
    UserError: for more than two personalisations, or a gamma outside [0, 1].
  """
  weights = {Branch(None, 0): -lambda_b}
  for theta, prompt, share in _shares(count, gamma):
    if theta is None:
      weights[Branch(None, prompt)] = 1 + lambda_b
    else:
      weights[Branch(None, prompt)] = share * (lambda_b - lambda_a)
      weights[Branch(theta, prompt)] = share * (1 + lambda_a)
  return weights


def _shares(count: int, gamma: float) -> list[tuple[int | None, int, float]]:
  """The personalisations, the indices of their prompts, and the share of each."""
  if count > 2:
    raise UserError(f"one personalisation or two can be sampled with, not {count}")
  if not 0 <= gamma <= 1:
    raise UserError(f"gamma is from 0, the first personalisation alone, to 1, the second alone: not {gamma}")
  if count < 2:
    return [(0 if count else None, 1, 1.0)]
  return [(0, 1, 1 - gamma), (1, 2, gamma)]


@struct.dataclass
class BranchGroup:
  """Branches of a stage that share one set of parameters, and are evaluated at once.

  Attributes:
    params: the stage's; where the branches have full weights, with these in their places.
    thetas: the one theta of all these branches, or `StackedThetas`, one for each.
    text: the encoded prompts of each branch, leaves [k, b, ...]; None until they are known.
    stacked: whether `thetas` are stacked.
  """

  params: Any
  thetas: Theta | StackedThetas | None
  text: Text | None = None
  stacked: bool = struct.field(pytree_node=False, default=False)


class Grouping(NamedTuple):
  """The branches of a stage, grouped.

  Attributes:
    groups: in which the texts are missing.
    members: for each group, the indices of its branches; the last branch is the last member of the last group.
    weights: [2, k], in the order of the members of all groups.
  """

  groups: tuple[BranchGroup, ...]
  members: tuple[tuple[int, ...], ...]
  weights: Float[np.ndarray, "2 k"]

  def with_texts(self, texts: Text) -> tuple[BranchGroup, ...]:
    """The groups with their branches' texts, of which `texts` has all, with leaves [k, b, ...]."""
    return tuple(
      group.replace(text=jax.tree.map(lambda x, own=own: x[np.array(own)], texts))
      for group, own in zip(self.groups, self.members, strict=True)
    )


def group_members(guidance: Guidance, thetas: Sequence[Theta | None]) -> tuple[tuple[int, ...], ...]:
  """The indices of the branches that share parameters; the last branch is in the last group. See `group_branches`."""
  by_params: dict[int | None, list[int]] = {}
  for i, branch in enumerate(guidance.branches):
    theta = None if branch.theta is None else thetas[branch.theta]
    by_params.setdefault(id(theta) if isinstance(theta, Full) else None, []).append(i)
  return tuple(map(tuple, sorted(by_params.values(), key=lambda some: some[-1])))


def group_branches(
  guidance: Guidance,
  thetas: Sequence[Theta | None],
  stage: Any,
  params: Any,
) -> Grouping:
  """Groups the branches of a stage by their parameters.

  Args:
    guidance: the branches.
    thetas: of each personalisation, the stage's theta; None where it has none.
    stage: of either family, which knows which of its parameters thetas are for.
    params: the stage's parameters.
  """
  own = [None if branch.theta is None else thetas[branch.theta] for branch in guidance.branches]
  members = group_members(guidance, thetas)
  groups = []
  for some in members:
    first = own[some[0]]
    if isinstance(first, Full):
      groups.append(BranchGroup(stage.merge(params, first), None))
    elif all(own[i] is first for i in some):
      groups.append(BranchGroup(params, first))
    else:
      stacked = StackedThetas.of(stage.network_params(params), [own[i] for i in some])
      groups.append(BranchGroup(params, stacked, stacked=True))
  order = [i for some in members for i in some]
  return Grouping(tuple(groups), members, guidance.weights[:, order])


def base_model_group(guidance: Guidance, params: Any, negative: Text, text: Text) -> tuple[BranchGroup]:
  """The branches of a stage that is sampled without personalisations.

  Args:
    guidance: the branches, see `Sampling.branches`.
    params: the stage's parameters.
    negative: the one negative prompt, encoded.
    text: one encoded prompt for each image.
  """
  negatives = jax.tree.map(lambda one, x: jnp.broadcast_to(one, x.shape), negative, text)
  texts = [text if branch.prompt else negatives for branch in guidance.branches]
  return (BranchGroup(params, None, jax.tree.map(lambda *x: jnp.stack(x), *texts)),)


def evaluate(predict: Callable[..., Array], groups: Sequence[BranchGroup], *inputs: Any) -> Float[Array, "k b ..."]:
  """Evaluates all branches.

  Args:
    predict: predict(params, theta, text, *inputs), with a leading axis of b images in the texts, inputs and outputs.
    groups: the branches, with their texts.
    inputs: those that all branches have in common; None where there is none.
  """
  outputs = []
  for group in groups:
    count = len(jax.tree.leaves(group.text)[0])
    if group.stacked:
      one = lambda theta, text, group=group: predict(group.params, theta, text, *inputs)  # noqa: E731
      outputs.append(jax.vmap(one)(group.thetas, group.text))
    elif count == 1:
      text = jax.tree.map(lambda x: x[0], group.text)
      outputs.append(predict(group.params, group.thetas, text, *inputs)[None])
    else:  # as one larger batch, in which the branches of one image stand together, for images may be sharded
      text = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), group.text)
      repeated = jax.tree.map(lambda x, count=count: jnp.repeat(x, count, axis=0), inputs)
      output = predict(group.params, group.thetas, text, *repeated)
      outputs.append(jnp.swapaxes(output.reshape(-1, count, *output.shape[1:]), 0, 1))
  return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs)


def mix(
  outputs: Float[Array, "k b ..."], weights: Float[Array | np.ndarray, "k *b"], *, learned_variance: bool = False
) -> Float[Array, "b ..."]:
  """The weighted sum of the branches, in float32.

  Args:
    outputs: logits, or predictions of any type (eps, x0 or v).
    weights: of the branches, or of the branches of each image.
    learned_variance: whether the second half of the channels is a learned variance. It is not mixed but taken from the
      last branch, as in DeepFloyd IF.
  """
  outputs, weights = outputs.astype(jnp.float32), jnp.asarray(weights, jnp.float32)
  weights = weights.reshape(weights.shape + (1,) * (outputs.ndim - weights.ndim))
  mixed = outputs[0] if len(outputs) == 1 else jnp.sum(weights * outputs, axis=0)
  if not learned_variance:
    return mixed
  half = outputs.shape[-1] // 2
  return jnp.concatenate([mixed[..., :half], outputs[-1, ..., half:]], axis=-1)
