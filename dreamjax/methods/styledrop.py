"""StyleDrop: a masked-token generator learns a style from one image, and gets better by feedback on its own ones.

Sohn et al., "StyleDrop" (2306.00983). A caption has two halves, what the image shows and its style: "a cat", "in
watercolor painting style". Adapters theta are trained on the image's tokens z and its caption t, stage by stage,

    loss = E_m sum_(n in m) CE( network_theta(z masked by m, t)_n, z_n )                                           (1)

(eq. 3 of the paper). As there is only one image, the theta also learns what it shows. Hence the second round: the
generator with the first theta draws a pool, 30 prompts in the style with 64 images each; a few of them are chosen, by
CLIP the one of each prompt that shows best what it asks for, by a person up to ten, or at random one of each; and
another theta is trained on these. The same with photos of a subject and "a [V] [class]" is DreamBooth on the same
generator, whose theta is mixed with that of a style at sampling (eqs. 5 and 6, `generators.masked`).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import tqdm

from dreamjax.data import identifiers, image_folder, priors
from dreamjax.data.augment import Augment
from dreamjax.data.image_folder import METADATA
from dreamjax.data.photos import in_rounds
from dreamjax.data.photos import read_photos as read_photos
from dreamjax.eval import metrics, protocols
from dreamjax.eval.encoders import Encoders
from dreamjax.generators.conditioning import Text
from dreamjax.generators.generator import Generator, with_compute
from dreamjax.generators.masked import Masked, TokenStage
from dreamjax.generators.sampling import batches
from dreamjax.methods.masking import Recipe, TokenBatch, stage_loss
from dreamjax.methods.workdirs import bind
from dreamjax.parallel import processes
from dreamjax.parallel.batches import batch_indices
from dreamjax.parallel.sharding import check_batch_size, make_mesh, shard_batch, shard_params, use_mesh
from dreamjax.theta import Adapters, Card, Full, LoRA, Personalisation, SoftPrompt, Theta
from dreamjax.train.loop import fit
from dreamjax.train.optimizer import averaged, make_optimizer
from dreamjax.train.optimizer import default_config as default_optimizer
from dreamjax.train.state import TrainState
from dreamjax.train.step import Loss, make_step

FEEDBACK = ("none", "clip", "human", "random")
KINDS = ("adapters", "lora", "prompt", "full")
POOL, SELECTION = "pool", "selection.json"

#: Of a caption, what comes before the style, and the style.
_HALVES = re.compile(
  r"(?P<content>.*\S)\s+(?P<style>in (?:the style of .+|(?:(?!in\b)\S+ )*(?:style|design)))\W*$", re.I
)
# What may change between two calls for one workdir: how long it goes on.
_FREE = ("steps", "log_every", "save_every", "batch_size", "remat", "scan")


class Undecided(Exception):
  """There is a pool, and nobody has chosen from it yet."""


def default_stage(channels: int, shared: bool, learning_rate: float) -> ml_collections.ConfigDict:
  """How one stage is tuned.

  steps: updates, and none leaves the stage as it is, in the second round as the first has tuned it; rows: images in
  each; kind: one of `KINDS`; channels and shared: of the adapters, see `theta.Adapters`; rank, alpha and pattern: of
  low-rank updates, the last of full weights as well; tokens: of a soft prompt; least and smoothing: see
  `methods.masking`; optimizer: see `train.optimizer`.
  """
  optimizer = default_optimizer()
  optimizer.update({"learning_rate": learning_rate, "warmup": 0, "decay": "constant", "ema": 0.0})
  return ml_collections.ConfigDict({
    "steps": 1000, "batch_size": 8, "kind": "adapters", "channels": channels, "shared": shared, "rank": 4, "alpha": 4.0,
    "pattern": "", "tokens": 4, "min_mask_ratio": 0.0, "smoothing": 0.0, "log_every": 25, "save_every": 250,
    "optimizer": optimizer,
  })  # fmt: skip


def default_config(stages: Sequence[str] = ("base", "sr")) -> ml_collections.ConfigDict:
  """The paper's recipe (table S3).

  seed: of all randomness; views: how many images are learned from at least: where there are fewer, random crops of
  them are, too, half of them mirrored and none with less than `smallest` of an image's side; 1 for the images alone,
  as in the paper; first, second: of the rounds, each stage's settings by name, as `default_stage` has them; pool: the
  prompts without their style, "each" how many images of one, "batch" how many at once, "most" how many images a
  person may choose; dtype, remat and scan: see `generators.computing`; for subjects, identifier and rare: see
  `dreambooth.default_config`, and captions: whether a photo is told its caption in half of the rows, see
  `data.photos.read`.
  """
  base, *larger = stages

  def settings(channels: int, shared: bool) -> dict[str, Any]:
    return {
      base: default_stage(channels, shared, 3e-5),
      **{name: default_stage(32, False, 1e-4) for name in larger},
    }

  published = protocols.published("styledrop").prompts["style"]
  prompts = tuple(" ".join(prompt.text.format(identifier="").split()) for prompt in published)
  return ml_collections.ConfigDict({
    "seed": 0, "identifier": "", "rare": identifiers.RARE, "captions": False,
    "views": 1, "smallest": 0.7, "dtype": "float32", "remat": "none", "scan": False,
    "first": settings(4, True), "second": settings(32, False),
    "pool": {"prompts": prompts, "images_per_prompt": 64, "batch_size": 8, "max_chosen": 10},
  })  # fmt: skip


def halves(caption: str, style: str = "") -> tuple[str, str]:
  """What a caption says of the content, and of the style.

  Args:
    caption: such as "a cat in watercolor painting style".
    style: the second half, if it is known; else it is found by its last word, "style" or "design", or by its first
      ones, "in the style of".

  Raises:
    ValueError: if the caption has no such half, or nothing before it.
  """
  if style:
    content, found, rest = caption.rpartition(style)
    if found and content.strip() and not rest.strip(" ."):
      return content.strip(), style
    raise ValueError(f"the caption {caption!r} does not end in {style!r}, with something before it")
  if match := _HALVES.fullmatch(caption.strip()):
    return match["content"], match["style"]
  raise ValueError(
    f'the caption {caption!r} has no half for the style: it is to end like "in watercolor painting style"'
  )


def styledrop(
  generator: Generator,
  params: Any,
  images: pathlib.Path | str,
  *,
  workdir: pathlib.Path | str,
  style: str = "",
  feedback: str = "none",
  config: ml_collections.ConfigDict | None = None,
  encoders: Callable[[], Encoders] | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Personalisation:
  """Learns a style, or goes on where an earlier call was cut off.

  Args:
    generator: of masked tokens.
    params: its parameters.
    images: a folder of one image, or a few of one size and in one style, with captions: see `data.photos.read`.
    workdir: for `reference`, `round_1`, the pool, `round_2_clip` or whoever chose, and `theta.safetensors` in the end.
    style: the half of the captions that says it; by default found there, see `halves`.
    feedback: by whom the second round's images are chosen, of `FEEDBACK`; "none" for one round only.
    config: see `default_config`; by default that.
    encoders: loads the CLIP that scores the pool; for "clip", and to show a person the scores.
    mesh: of devices, see `parallel.sharding`; by default the first device alone.

  Raises:
    OSError, ValueError: if images, captions, a selection or the config are not what they should be, batches cannot be
      divided over the mesh, or the workdir holds a training on other images or by another recipe; it stays as it was.
    Undecided: if a person is to choose, and has not. What was made is kept: choose, and call again.
  """
  workdir = pathlib.Path(workdir)
  mesh = make_mesh((1, 1, 1)) if mesh is None else mesh
  config = config or default_config([stage.name for stage in generator.stages])
  if feedback not in FEEDBACK:
    raise ValueError(f"feedback is one of {', '.join(FEEDBACK)}, not {feedback!r}")
  if feedback == "clip" and encoders is None:
    raise ValueError("feedback by CLIP takes encoders")
  _check(generator, config, mesh, ("first",) if feedback == "none" else ("first", "second"))
  generator = with_compute(generator, config.dtype, config.remat, config.scan)
  photos = read_photos(pathlib.Path(images), generator.resolution, "", with_captions=True, one_size=True)
  said = [halves(prompt, style) for prompt in photos.prompts]
  if len(styles := {own for _, own in said}) > 1:
    raise ValueError(f"all images are to have one style, not {' and '.join(map(repr, sorted(styles)))}")
  (style,) = styles
  base = generator.base(params)
  processes.on_main_process(lambda: bind(workdir, base, photos, config.to_dict(), _FREE, style=style))
  params = shard_params(params, mesh)

  def card(round_: int, prompts: Sequence[str]) -> Card:
    recipe = {"method": "styledrop", "style": style, "round": round_, "feedback": feedback if round_ > 1 else "none"}
    return Card(base, "", "", {**recipe, "prompts": list(prompts), "config": config.to_dict()})

  def learn(
    round_: int, folder: pathlib.Path, frames: np.ndarray, prompts: Sequence[str], before: Mapping[str, Theta]
  ) -> Personalisation:
    settings = config.first if round_ == 1 else config.second
    thetas = _tune(generator, params, *_views(frames, prompts, config), settings, config.seed, folder, mesh)
    made = Personalisation({**before, **thetas}, card(round_, prompts))
    processes.on_main_process(lambda: made.save(folder / "theta.safetensors"))
    processes.on_main_process(lambda: made.save(workdir / "theta.safetensors"))
    return made

  reference = zip(photos.images() / 2 + 0.5, ({"text": prompt} for prompt in photos.prompts), strict=True)
  processes.on_main_process(lambda: image_folder.write(workdir / "reference", reference, overwrite=True))
  made = learn(1, workdir / "round_1", photos.images(), photos.prompts, {})
  if feedback == "none":
    return made
  scorers = None if feedback == "random" else encoders
  pool = draw_pool(generator, params, made, style, config, workdir / POOL, scorers, mesh)
  chosen = choose(pool, workdir / POOL, feedback, config)
  folder = workdir / f"round_2_{feedback}"
  names = [priors.file(pathlib.Path(), i).name for i in chosen]
  processes.on_main_process(lambda: _bind_choice(folder, names))
  frames = pool.images[chosen].astype(np.float32) / np.float32(127.5) - np.float32(1)
  return learn(2, folder, frames, [pool.prompts[i] for i in chosen], made.thetas)


def _bind_choice(folder: pathlib.Path, names: list[str]) -> None:
  """Writes down what a second round learns from; ValueError if it has learned from something else."""
  path = folder / "chosen.json"
  if path.is_file() and json.loads(path.read_text()) != names:
    raise ValueError(f"{folder} has learned from other images than are chosen now: delete it to begin anew")
  folder.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(names) + "\n")


def subject(
  generator: Generator,
  params: Any,
  images: pathlib.Path | str,
  class_noun: str,
  *,
  workdir: pathlib.Path | str,
  config: ml_collections.ConfigDict | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Personalisation:
  """Learns a subject from a few photos: DreamBooth on a masked-token generator, as the paper's section 3.4 has it.

  Args:
    generator: of masked tokens.
    params: its parameters.
    images: a folder of photos.
    class_noun: what the subject is, such as "dog".
    workdir: for logs, checkpoints and `theta.safetensors`.
    config: see `default_config`, whose first round is what is trained.
    mesh: of devices, see `parallel.sharding`; by default the first device alone.

  Raises:
    OSError, ValueError: as `styledrop`.
  """
  workdir = pathlib.Path(workdir)
  mesh = make_mesh((1, 1, 1)) if mesh is None else mesh
  config = config or default_config([stage.name for stage in generator.stages])
  _check(generator, config, mesh, ("first",))
  generator = with_compute(generator, config.dtype, config.remat, config.scan)
  photos = read_photos(pathlib.Path(images), generator.resolution, class_noun, with_captions=config.captions)
  plain = f"a [V] {class_noun}".strip()
  prompts = [*photos.prompts, *([plain] * len(photos) if config.captions else [])]
  common = [f"a {class_noun}", *prompts]
  identifier = (
    identifiers.normalize(generator.tokenizer, config.identifier)
    if config.identifier
    else identifiers.choose(generator.tokenizer, config.seed, rare=tuple(config.rare), common=common)[0]
  )
  base = generator.base(params)
  processes.on_main_process(lambda: bind(workdir, base, photos, config.to_dict(), _FREE, class_noun=class_noun))
  params = shard_params(params, mesh)
  frames = np.concatenate([photos.images()] * (len(prompts) // len(photos)))
  told = [identifiers.fill(prompt, identifier) for prompt in prompts]
  thetas = _tune(generator, params, *_views(frames, told, config), config.first, config.seed, workdir, mesh)
  recipe = {"method": "dreambooth on masked tokens", "prompt": photos.prompts[0], "config": config.to_dict()}
  made = Personalisation(thetas, Card(base, identifier, class_noun, recipe))
  processes.on_main_process(lambda: made.save(workdir / "theta.safetensors"))
  return made


@dataclasses.dataclass(frozen=True)
class Pool:
  """Images that the first round's theta drew.

  Attributes:
    images: [n, h, w, 3] bytes.
    prompts: what each was drawn from.
    scores: of image and prompt by CLIP, [n], or None.
  """

  images: np.ndarray
  prompts: tuple[str, ...]
  scores: np.ndarray | None


def draw_pool(
  generator: Masked,
  params: Any,
  theta: Personalisation,
  style: str,
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  encoders: Callable[[], Encoders] | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Pool:
  """Draws the pool, or goes on with it, and writes down what each image shows and how well."""
  each = config.pool.images_per_prompt
  prompts = tuple(f"{prompt} {style}" for prompt in config.pool.prompts for _ in range(each))

  def draw(first: int, count: int) -> Any:
    options = {"seed": config.seed, "first": first, "batch_size": config.pool.batch_size, "mesh": mesh}
    for images in batches(generator, params, prompts[first : first + count], thetas=[theta.thetas], **options):
      yield from images[-1]

  with tqdm.tqdm(total=len(prompts), unit=" images", desc="pool", disable=processes.disable_progress()) as bar:
    images = priors.complete(folder, len(prompts), draw, lambda there: bar.update(there - bar.n))
  scores = None if encoders is None else text_scores(encoders(), images, prompts)
  lines: list[dict[str, Any]] = [
    {"file_name": priors.file(folder, i).name, "text": prompt} for i, prompt in enumerate(prompts)
  ]
  if scores is not None:
    lines = [{**line, "score": round(float(score), 4)} for line, score in zip(lines, scores, strict=True)]
  processes.on_main_process(lambda: (folder / METADATA).write_text("".join(json.dumps(line) + "\n" for line in lines)))
  return Pool(images, prompts, scores)


def text_scores(encoders: Encoders, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
  """The cosine of each image's embedding and of its prompt's, by CLIP."""
  distinct = list(dict.fromkeys(prompts))
  texts = np.asarray(encoders.clip_text(distinct))[[distinct.index(prompt) for prompt in prompts]]
  return np.asarray(metrics.text_similarity(jnp.asarray(encoders.clip_image(list(images))), jnp.asarray(texts)))


def choose(pool: Pool, folder: pathlib.Path, feedback: str, config: ml_collections.ConfigDict) -> list[int]:
  """The numbers of the images for the second round; see `styledrop`."""
  if feedback == "human":
    return read_selection(folder, config.pool.max_chosen)
  each = config.pool.images_per_prompt
  starts = range(0, len(pool.prompts), each)
  if feedback == "clip":
    return [start + int(np.argmax(pool.scores[start : start + each])) for start in starts]
  draw = np.random.default_rng((config.seed, 3))
  return [start + int(draw.integers(each)) for start in starts]


def read_selection(folder: pathlib.Path, most: int) -> list[int]:
  """What a person chose, with `dreamjax feedback`.

  Raises:
    Undecided: if nobody has chosen yet.
    ValueError: if it is no selection, names images that the pool lacks or one twice, or has none or too many.
  """
  path = folder / SELECTION
  if not path.is_file():
    raise Undecided(f"choose up to {most} images: dreamjax feedback --pool {folder}; then run this again")
  try:
    names = json.loads(path.read_text())["chosen"]
    numbers = [int(pathlib.PurePath(name).stem) for name in names]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is no selection of `dreamjax feedback`: {error}") from error
  known = [priors.file(folder, i) for i in numbers]
  if missing := [n for n, there in zip(names, known, strict=True) if there != folder / n or not there.is_file()]:
    raise ValueError(f"{path} names {', '.join(missing)}, which the pool lacks")
  if len(set(numbers)) < len(numbers) or not 1 <= len(numbers) <= most:
    raise ValueError(f"{path} is to name from 1 to {most} images, each once, not {len(numbers)}")
  return numbers


def _views(
  images: np.ndarray, prompts: Sequence[str], config: ml_collections.ConfigDict
) -> tuple[np.ndarray, list[str]]:
  """Images in [-1, 1] and as many crops of each besides as the config asks for, and their prompts.

  The places of what an image shows are then harder to learn by heart, and its style no harder.
  """
  times = -(-config.views // len(images))
  change = jax.jit(Augment((config.smallest, 1.0), blur=1.0, light=0.0, noise=0.0))
  keys = jax.random.split(jax.random.key(config.seed), times)
  views = [images, *(np.asarray(change(key, images)) for key in keys[1:])]
  return np.concatenate(views), [*prompts] * times


def _tune(
  generator: Masked,
  params: Any,
  images: np.ndarray,
  prompts: Sequence[str],
  rounds: ml_collections.ConfigDict,
  seed: int,
  workdir: pathlib.Path,
  mesh: jax.sharding.Mesh,
) -> dict[str, Theta]:
  """Trains the theta of every stage that has steps, on images in [-1, 1] and their prompts."""
  tokens = {stage.name: _tokens(stage, params[stage.name], images, mesh) for stage in generator.stages}
  text = processes.fetch(generator.encode(params, list(prompts), mesh=mesh))
  thetas, before = {}, None
  for stage in generator.stages:
    low = None if before is None else tokens[before.name]
    before = stage
    settings = rounds.get(stage.name)
    if settings is None or not settings.steps:
      continue
    own = params[stage.name]
    frozen = {stage.name: {"transformer": own["transformer"]}}
    theta = {stage.name: first_theta(stage, own["transformer"], text, settings, seed)}
    loss, tx = objective(stage, settings, theta)
    rows = _Rows(tokens[stage.name], low, text, settings.batch_size, seed)
    state = fit(
      make_step(loss, tx, seed),
      TrainState.create(theta, tx, frozen, mesh),
      rows,
      steps=settings.steps,
      workdir=workdir / stage.name,
      log_every=settings.log_every,
      save_every=settings.save_every,
      mesh=mesh,
    )
    thetas |= processes.fetch(averaged(state))
  return thetas


def _tokens(stage: TokenStage, params: Any, images: np.ndarray, mesh: jax.sharding.Mesh) -> np.ndarray:
  """The tokens of images, [n, t]; each device looks at one after the other, for the VQGAN takes much memory."""
  encode, found = jax.jit(stage.encode), []
  for count, places in batch_indices(len(images), 1, mesh):
    with use_mesh(mesh):
      found.append(processes.fetch(encode(params, shard_batch(images[places], mesh)))[:count])
  return np.concatenate(found)


class _Rows:
  """batch(i) of a stage's training: images in rounds, so that all are seen equally often."""

  def __init__(self, tokens: np.ndarray, low: np.ndarray | None, text: Any, count: int, seed: int) -> None:
    self._tokens, self._low, self._text, self._count, self._seed = tokens, low, text, count, seed

  def __call__(self, i: int) -> TokenBatch:
    """The rows of update i."""
    which = in_rounds(i, self._count, len(self._tokens), self._seed)
    low = None if self._low is None else self._low[which]
    prompt = jax.tree.map(lambda x: x[which], self._text)
    return TokenBatch(self._tokens[which], prompt, np.ones(self._count, np.float32), low)


def objective(
  stage: TokenStage, settings: ml_collections.ConfigDict, theta: Any
) -> tuple[Loss, optax.GradientTransformation]:
  """The loss (1) of a stage and the optimizer that makes it small, for a theta of `first_theta`, or its shapes."""
  loss = stage_loss(stage, Recipe(settings.min_mask_ratio, settings.smoothing))
  return loss, make_optimizer(settings.optimizer, theta, settings.steps)


def first_theta(stage: TokenStage, params: Any, text: Text, settings: ml_collections.ConfigDict, seed: int) -> Theta:
  """A theta that is yet to learn.

  Args:
    stage: which.
    params: its transformer's.
    text: what the text encoder says of prompts.
    settings: see `default_stage`.
    seed: of the randomness.
  """
  key = jax.random.key(seed)
  match settings.kind:
    case "adapters":
      return Adapters.init(key, params, settings.channels, stage.transformer.adapted, shared=settings.shared)
    case "lora":
      return LoRA.init(key, params, settings.rank, alpha=settings.alpha, pattern=settings.pattern)
    case "full":
      return Full.init(params, settings.pattern)
    case _:
      return SoftPrompt.init(key, text.tokens[0][text.mask[0]], settings.tokens)


def _check(
  generator: Generator, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, rounds: Sequence[str]
) -> None:
  """Raises ValueError for what a config cannot ask for, or not on these devices in the rounds that are to come."""
  if not isinstance(generator, Masked):
    raise ValueError(f"StyleDrop is for generators of masked tokens, and {generator.name} is none")
  if config.views < 1 or not 0 < config.smallest <= 1:
    raise ValueError("there is one view of an image or more, and the smallest is a share of its side")
  if config.pool.images_per_prompt < 1 or config.pool.batch_size < 1 or not config.pool.prompts:
    raise ValueError("the pool has one prompt or more, and one image of each or more")
  for round_ in ("first", "second"):
    for name, settings in config[round_].items():
      generator.stage(name)
      if settings.kind not in KINDS:
        raise ValueError(f"{round_}.{name}.kind is one of {', '.join(KINDS)}, not {settings.kind!r}")
      if settings.batch_size < 1 or settings.steps < 0:
        raise ValueError(f"{round_}.{name}: rows is at least 1, steps at least 0")
      if settings.steps and round_ in rounds:
        check_batch_size(f"{round_}.{name}.batch_size", settings.batch_size, mesh)
