"""Sampling of images from prompts, with none, one or two personalisations: the same for both families of generators."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from dreamjax.data.identifiers import PLACEHOLDER, fill
from dreamjax.errors import UserError
from dreamjax.generators.branches import GAMMA, Branch, group_branches
from dreamjax.generators.conditioning import Text
from dreamjax.generators.control import ImageControl
from dreamjax.generators.generator import TEXT, Generator, image_keys
from dreamjax.parallel import processes
from dreamjax.parallel.batches import batch_indices
from dreamjax.parallel.sharding import shard_batch, use_mesh
from dreamjax.theta import Personalisation, Theta


def batches(
  generator: Generator,
  params: Any,
  prompts: Sequence[str | Sequence[str]],
  *,
  thetas: Sequence[Mapping[str, Theta]] = (),
  gamma: float = GAMMA,
  samplings: Sequence[Any] | None = None,
  negative: str = "",
  seed: int = 0,
  first: int = 0,
  batch_size: int = 8,
  mesh: jax.sharding.Mesh | None = None,
  control: ImageControl | None = None,
) -> Iterator[tuple[Float[np.ndarray, "b _ _ 3"], ...]]:
  """Samples images, and yields those of all stages, one batch after another; prompts are encoded at once.

  Args:
    generator: of either family.
    params: its parameters.
    prompts: one an image, [V] already replaced; with two personalisations one for each, or one that both get.
    thetas: of each personalisation, its thetas by the names of the generator's parts; () for the base model.
    gamma: the share of the second of two personalisations.
    samplings: of each stage; by default each stage's own. Fewer sample fewer stages.
    negative: the negative prompt.
    seed: of all noise.
    first: the number of the first image: image i of a seed does not depend on the images around it.
    batch_size: how many are sampled at once, rounded up so that the mesh divides it.
    mesh: of devices, over which the images of a batch are sharded; None for one device.
    control: for latent diffusion, a ControlNet and the image that it sees, see `generators.load_control`.

  Raises:
    UserError: at once, for more than two personalisations, a gamma outside [0, 1], or samplings that cannot be.
  """
  samplings = tuple(samplings or (stage.sampling for stage in generator.stages))
  generator.check(samplings)
  if not prompts:
    return iter(())
  stages = generator.stages[: len(samplings)]
  guidances = [sampling.branches(len(thetas), gamma) for sampling in samplings]
  groupings = [
    group_branches(guidance, [own.get(stage.name) for own in thetas], stage, params[stage.name])
    for stage, guidance in zip(stages, guidances, strict=True)
  ]
  branches = {branch for guidance in guidances for branch in guidance.branches}
  table, rows = _encode(generator, params, thetas, prompts, negative, branches, mesh)
  decoder_params = generator.decoder_params(params)
  weights = tuple(grouping.weights for grouping in groupings)

  def run() -> Iterator[tuple[Float[np.ndarray, "b _ _ 3"], ...]]:
    for count, indices in batch_indices(len(prompts), batch_size, mesh):
      groups = []
      for guidance, grouping in zip(guidances, groupings, strict=True):
        own = np.stack([rows[branch][indices] for branch in guidance.branches])
        groups.append(grouping.with_texts(shard_batch(jax.tree.map(lambda x, own=own: x[own], table), mesh, axis=1)))
      keys = shard_batch(image_keys(seed, first + indices), mesh)
      with use_mesh(mesh):
        images = generator.generate(stages, samplings, tuple(groups), weights, decoder_params, keys, control)
      yield tuple(stage_images[:count] for stage_images in processes.fetch(images))

  return run()


def _encode(
  generator: Generator,
  params: Any,
  thetas: Sequence[Mapping[str, Theta]],
  prompts: Sequence[str | Sequence[str]],
  negative: str,
  branches: Iterable[Branch],
  mesh: jax.sharding.Mesh | None,
) -> tuple[Text, dict[Branch, Int[np.ndarray, " n"]]]:
  """Encodes each distinct prompt once with each text encoder, tuned or not, that a branch needs.

  Returns:
    The encoded prompts, and for each branch which of them each of the n images has.
  """
  by_encoder: dict[int | None, dict[Branch, list[str]]] = {}
  for branch in branches:
    tuned = branch.theta is not None and TEXT in thetas[branch.theta]
    if branch.prompt == 0:
      texts = [negative] * len(prompts)
    else:
      texts = [prompt if isinstance(prompt, str) else prompt[branch.prompt - 1] for prompt in prompts]
    by_encoder.setdefault(branch.theta if tuned else None, {})[branch] = texts
  tables, rows, start = [], {}, 0
  for theta, needed in by_encoder.items():
    distinct = {text: None for texts in needed.values() for text in texts}
    index = {text: start + i for i, text in enumerate(distinct)}
    own = None if theta is None else thetas[theta][TEXT]
    tables.append(generator.encode(params, list(distinct), own, mesh))
    rows |= {branch: np.array([index[text] for text in texts]) for branch, texts in needed.items()}
    start += len(distinct)
  return tables[0] if len(tables) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *tables), rows


def sample(
  generator: Generator,
  params: Any,
  prompts: Sequence[str],
  *,
  theta: Personalisation | Sequence[Personalisation] | None = None,
  gamma: float = GAMMA,
  n: int = 1,
  samplings: Sequence[Any] | None = None,
  negative: str = "",
  seed: int = 0,
  batch_size: int = 8,
  mesh: jax.sharding.Mesh | None = None,
  control: ImageControl | None = None,
) -> Float[np.ndarray, "n s s 3"]:
  """Generates images of prompts.

  Args:
    generator: of either family.
    params: its parameters.
    prompts: see `fill_prompt` for the words in which each personalisation gets them; [V] stands for the subject.
    theta: a subject, a style, or two personalisations, such as a style and a subject; None for the base model.
    gamma: the share of the second of two personalisations, from 0 to 1.
    n: the number of images of each prompt, one after another in the result.
    samplings: of each stage, `Sampling` or `Decoding`; by default those of `default_samplings`.
    negative: the negative prompt.
    seed: of all noise. Image i of a seed does not depend on the images around it, nor on `batch_size`.
    batch_size: how many are sampled at once, rounded up so that the mesh divides it.
    mesh: of devices, over which the images of a batch are sharded; None for one device.
    control: for latent diffusion, a ControlNet and the image that it sees, see `generators.load_control`.

  Returns:
    The last stage's images, in [-1, 1].

  Raises:
    UserError: if there are no prompts, gamma is not from 0 to 1, there are more than two personalisations, or [V] is in
      a prompt but no personalisation says what it stands for.
  """
  personalisations = [] if theta is None else [theta] if isinstance(theta, Personalisation) else list(theta)
  filled = [fill_prompt(prompt, personalisations) for prompt in prompts for _ in range(n)]
  if not filled:
    raise UserError("there is no prompt to sample")
  samplings = default_samplings(generator, personalisations) if samplings is None else samplings
  options = {"samplings": samplings, "negative": negative, "seed": seed, "batch_size": batch_size, "mesh": mesh}
  thetas = [personalisation.thetas for personalisation in personalisations]
  found = batches(generator, params, filled, thetas=thetas, gamma=gamma, control=control, **options)
  return np.concatenate([images[-1] for images in found])


def default_samplings(generator: Generator, personalisations: Sequence[Personalisation] = ()) -> tuple[Any, ...]:
  """How each stage is sampled by default: as the generator says, changed as the recipes of personalisations say.

  A super-resolution stage that was tuned with little noise on the low-resolution images must be sampled with as little.
  """
  samplings = []
  for stage in generator.stages:
    changes: dict[str, Any] = {}
    for personalisation in personalisations:
      changes |= personalisation.card.recipe.get("sampling", {}).get(stage.name, {})
    samplings.append(dataclasses.replace(stage.sampling, **type(stage.sampling).current_names(changes)))
  return tuple(samplings)


def fill_prompt(prompt: str, personalisations: Sequence[Personalisation]) -> tuple[str, ...]:
  """A prompt in the words of each personalisation; without any, as it is.

  A style gets the prompt without [V] and with the style at its end, unless it is there already; a subject gets its
  identifier in place of [V], and not the words of the other's style.

  Raises:
    UserError: if [V] is in the prompt and no personalisation is of a subject.
  """
  if PLACEHOLDER in prompt.upper() and not any(one.card.identifier for one in personalisations):
    raise UserError(f"{PLACEHOLDER} stands for a subject, and there is no theta of one: {prompt!r}")
  styles = [style_of(one) for one in personalisations]
  content = prompt
  for style in filter(None, styles):
    content = content.replace(style, "")
  filled = []
  for one, style in zip(personalisations, styles, strict=True):
    words = fill(content, one.card.identifier or "")
    filled.append(" ".join(f"{words} {style}".split()))
  return tuple(filled) or (prompt,)


def style_of(personalisation: Personalisation) -> str:
  """The words of prompts for the style that a personalisation has learned; "" if it is of a subject."""
  return personalisation.card.recipe.get("style", "")
