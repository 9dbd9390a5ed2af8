"""StyleDrop: a masked-token generator learns a style from one image, and improves by feedback on images of its own.

Sohn et al., "StyleDrop" (2306.00983). A caption has two halves, what the image shows and its style: "a cat", "in
watercolor painting style". Adapters theta are trained on the image's tokens z and its caption t, stage by stage,

    loss = E_m sum_(n in m) CE( network_theta(z masked by m, t)_n, z_n )                                           (1)

(eq. 3 of the paper). As there is only one image, the theta also learns what it shows. Hence the second round: the
generator with the first theta samples a pool, 30 prompts in the style with 64 images each; a few of them are chosen, by
CLIP the one of each prompt that matches it best, by a person up to ten, or at random one of each; and another theta is
trained on these. The same with photos of a subject and "a [V] [class]" is DreamBooth on the same
generator, whose theta is mixed with that of a style at sampling (eqs. 5 and 6, `generators.masked`).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import math
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import tqdm

from dreamjax import renamed
from dreamjax.data import identifiers, image_folder, priors
from dreamjax.data.augment import Augment
from dreamjax.data.image_folder import METADATA
from dreamjax.data.photos import in_rounds, read_photos
from dreamjax.errors import UserError
from dreamjax.eval import metrics, protocols
from dreamjax.eval.encoders import Encoders
from dreamjax.generators.conditioning import Text
from dreamjax.generators.generator import TEXT, Generator, with_compute
from dreamjax.generators.masked import Masked, TokenStage
from dreamjax.generators.sampling import batches
from dreamjax.methods.masking import Recipe, TokenBatch, stage_loss
from dreamjax.methods.programs import Planner, Program, placed
from dreamjax.methods.workdirs import bind, place_parts
from dreamjax.parallel import processes
from dreamjax.parallel.batches import batch_indices
from dreamjax.parallel.sharding import check_batch_size, make_mesh, round_up_batch_size, shard_batch, use_mesh
from dreamjax.theta import Adapters, Card, Full, LoRA, Personalisation, SoftPrompt, Theta, content_hash
from dreamjax.train.loop import fit
from dreamjax.train.optimizer import averaged, make_optimizer
from dreamjax.train.optimizer import default_config as default_optimizer
from dreamjax.train.state import TrainState
from dreamjax.train.step import Loss, make_step

FEEDBACK = ("none", "clip", "human", "random")
KINDS = ("adapters", "lora", "prompt", "full")
POOL, SELECTION = "pool", "selection.json"
SAMPLED_WITH = "sampled_with.json"  # in the pool: of which theta it is

#: Of a caption, what comes before the style, and the style.
_HALVES = re.compile(
  r"(?P<content>.*\S)\s+(?P<style>in (?:the style of .+|(?:(?!in\b)\S+ )*(?:style|design)))\W*$", re.I
)
# What may change between two calls for one workdir: how long it goes on, and what is logged.
_FREE = (
  *(f"{round_}.*.{field}" for round_ in ("first", "second") for field in ("steps", "log_every", "save_every")),
  "pool.batch_size", "remat", "scan",
)  # fmt: skip


class Undecided(Exception):
  """Raised when there is a pool, and nobody has chosen from it yet."""


def default_stage(channels: int, shared: bool, learning_rate: float) -> ml_collections.ConfigDict:
  """Returns how one stage is tuned.

  The optimizer is Adam (appendix B.1), of whose constants the paper says only the learning rate: the others are those
  of Kingma and Ba (1412.6980).
  """
  optimizer = default_optimizer()
  optimizer.update({"learning_rate": learning_rate, "warmup": 0, "decay": "constant", "ema": 0.0})
  optimizer.update({"b2": 0.999, "weight_decay": 0.0})
  return ml_collections.ConfigDict({
    "steps": 1000,  # updates; 0 leaves the stage as it is, in the second round as the first has tuned it
    "batch_size": 8,  # images in a batch
    "kind": "adapters",  # of the theta, of `KINDS`
    "channels": channels,  # of "adapters", see `theta.Adapters`
    "shared": shared,  # of "adapters", see `theta.Adapters`
    "rank": 4,  # of "lora"
    "alpha": 4.0,  # of "lora", whose updates are scaled by alpha / rank
    "pattern": "",  # of "lora" and "full": regular expression of the paths of the layers that are tuned; "" for all
    "tokens": 4,  # of "prompt"
    "min_mask_ratio": 0.0,  # smallest share of the tokens that is masked, see `methods.masking`
    "smoothing": 0.0,  # of the labels
    "log_every": 25,  # updates
    "save_every": 250,  # updates between checkpoints
    "optimizer": optimizer,  # see `train.optimizer`
  })  # fmt: skip


def default_config(stages: Sequence[str] = ("base", "sr")) -> ml_collections.ConfigDict:
  """Returns the paper's recipe (table S3), for a generator with stages of these names."""
  base, *larger = stages

  def settings(channels: int, shared: bool) -> dict[str, Any]:
    return {
      base: default_stage(channels, shared, 3e-5),
      **{name: default_stage(32, False, 1e-4) for name in larger},
    }

  published = protocols.published("styledrop").prompts["style"]
  prompts = tuple(" ".join(prompt.text.format(identifier="").split()) for prompt in published)
  return ml_collections.ConfigDict({
    "seed": 0,  # of all randomness
    "identifier": "",  # of a subject: what [V] stands for; "" to choose a rare word
    "rare": identifiers.RARE,  # between which shares of the vocabulary rare words are looked for
    "captions": False,  # of a subject: whether the photos' captions are the prompts of half of the examples
    "views": 1,  # images that are learned from at least: random crops fill them up, half of which are mirrored
    "smallest": 0.7,  # side of the smallest crop, as a share of the image's
    "dtype": "float32",  # see `generators.with_compute`
    "remat": "none",  # see `generators.with_compute`
    "scan": False,  # see `generators.with_compute`
    "first": settings(4, True),  # of the first round, by the names of stages
    "second": settings(32, False),  # of the second round
    "pool": {
      "prompts": prompts,  # without their style
      "images_per_prompt": 64,  # images of a prompt
      "batch_size": 8,  # images that are sampled at once
      "max_chosen": 10,  # images that a person may choose
    },
  })  # fmt: skip


def halves(caption: str, style: str = "") -> tuple[str, str]:
  """Splits a caption into its halves for the content and for the style.

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
    raise UserError(f"the caption {caption!r} does not end in {style!r}, with something before it")
  if match := _HALVES.fullmatch(caption.strip()):
    return match["content"], match["style"]
  raise UserError(f'the caption {caption!r} has no half for the style: it must end like "in watercolor painting style"')


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
    params: its parameters, on devices or in the host's memory; of these, only what a stage needs is on devices at once.
    images: a folder of one image, or a few of one size and in one style, with captions: see `data.photos.read_photos`.
    workdir: for `reference`, `round_1`, the pool, `round_2_clip` or whoever chose, and `theta.safetensors` in the end.
    style: the half of the captions for the style; by default found there, see `halves`.
    feedback: by whom the second round's images are chosen, of `FEEDBACK`; "none" for one round only.
    config: see `default_config`; by default that.
    encoders: loads the CLIP that scores the pool; for "clip", and to show a person the scores.
    mesh: of devices, see `parallel.sharding`; by default the first device alone.

  Raises:
    OSError, ValueError: if images, captions, a selection or the config are not what they should be, batches cannot be
      divided over the mesh, or the workdir holds a training on other images or by another recipe, or a pool of another
      theta; it stays as it was.
    Undecided: if a person should choose, and has not. What was made is kept: choose, and call again.
  """
  workdir = pathlib.Path(workdir)
  mesh = make_mesh((1, 1, 1)) if mesh is None else mesh
  config = config or default_config([stage.name for stage in generator.stages])
  if feedback not in FEEDBACK:
    raise UserError(f"feedback is one of {', '.join(FEEDBACK)}, not {feedback!r}")
  if feedback == "clip" and encoders is None:
    raise UserError("feedback by CLIP takes encoders")
  _check(generator, config, mesh, ("first",) if feedback == "none" else ("first", "second"))
  generator = with_compute(generator, config.dtype, config.remat, config.scan)
  photos = read_photos(pathlib.Path(images), generator.resolution, "", with_captions=True, one_size=True)
  if len(styles := {halves(prompt, style)[1] for prompt in photos.prompts}) > 1:
    raise UserError(f"all images must have one style, not {' and '.join(map(repr, sorted(styles)))}")
  (style,) = styles
  base = generator.base(params)
  processes.on_main_process(lambda: bind(workdir, base, photos, config.to_dict(), _FREE, style=style))

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


def _bind_pool(folder: pathlib.Path, thetas: Mapping[str, Theta]) -> None:
  """Writes a hash of the theta that a pool is sampled with; ValueError if there is a pool of another one."""
  path, own = folder / SAMPLED_WITH, {"theta": content_hash({part: theta.weights for part, theta in thetas.items()})}
  if path.is_file() and json.loads(path.read_text()) != own:
    raise UserError(f"{folder} was sampled with another theta of the first round: delete it to sample it anew")
  folder.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(own) + "\n")


def _bind_choice(folder: pathlib.Path, names: list[str]) -> None:
  """Writes down which images a second round is trained on; ValueError if it was trained on others."""
  path = folder / "chosen.json"
  if path.is_file() and json.loads(path.read_text()) != names:
    raise UserError(f"{folder} was trained on other images than are chosen now: delete it to begin anew")
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
  identifier = identifiers.resolve(generator.tokenizer, config.identifier, config.seed, tuple(config.rare), common)
  base = generator.base(params)
  processes.on_main_process(lambda: bind(workdir, base, photos, config.to_dict(), _FREE, class_noun=class_noun))
  frames = np.concatenate([photos.images()] * (len(prompts) // len(photos)))
  filled = [identifiers.fill(prompt, identifier) for prompt in prompts]
  thetas = _tune(generator, params, *_views(frames, filled, config), config.first, config.seed, workdir, mesh)
  recipe = {"method": "dreambooth on masked tokens", "prompt": photos.prompts[0], "config": config.to_dict()}
  made = Personalisation(thetas, Card(base, identifier, class_noun, recipe))
  processes.on_main_process(lambda: made.save(workdir / "theta.safetensors"))
  return made


@dataclasses.dataclass(frozen=True)
class Pool:
  """Images that were sampled with the first round's theta.

  Attributes:
    images: [n, h, w, 3] uint8.
    prompts: of each image.
    scores: cosines of the embeddings of image and prompt by CLIP, [n], or None.
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
  """Samples the pool, or goes on with it, and writes the prompt of each image and its score to `metadata.jsonl`.

  Raises:
    ValueError: if the folder holds images that were sampled with another theta.
  """
  processes.on_main_process(lambda: _bind_pool(folder, theta.thetas))
  each = config.pool.images_per_prompt
  prompts = tuple(f"{prompt} {style}" for prompt in config.pool.prompts for _ in range(each))

  def sample(first: int, count: int) -> Any:
    options = {"seed": config.seed, "first": first, "batch_size": config.pool.batch_size, "mesh": mesh}
    own = params if mesh is None else place_parts(params, params, mesh)
    for images in batches(generator, own, prompts[first : first + count], thetas=[theta.thetas], **options):
      yield from images[-1]

  with tqdm.tqdm(total=len(prompts), unit=" images", desc="pool", disable=processes.disable_progress()) as bar:
    frames = priors.complete(folder, len(prompts), sample, lambda there: bar.update(there - bar.n))
  scores = None if encoders is None else text_scores(encoders(), frames, prompts)
  lines: list[dict[str, Any]] = [
    {"file_name": priors.file(folder, i).name, "text": prompt} for i, prompt in enumerate(prompts)
  ]
  if scores is not None:
    lines = [{**line, "score": round(float(score), 4)} for line, score in zip(lines, scores, strict=True)]
  processes.on_main_process(lambda: (folder / METADATA).write_text("".join(json.dumps(line) + "\n" for line in lines)))
  return Pool(frames, prompts, scores)


def text_scores(encoders: Encoders, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
  """Returns the cosine of each image's embedding and its prompt's, by CLIP."""
  distinct = list(dict.fromkeys(prompts))
  texts = np.asarray(encoders.clip_text(distinct))[[distinct.index(prompt) for prompt in prompts]]
  return np.asarray(metrics.text_similarity(jnp.asarray(encoders.clip_image(list(images))), jnp.asarray(texts)))


def choose(pool: Pool, folder: pathlib.Path, feedback: str, config: ml_collections.ConfigDict) -> list[int]:
  """Returns the numbers of the images for the second round; see `styledrop`."""
  if feedback == "human":
    return read_selection(folder, config.pool.max_chosen)
  each = config.pool.images_per_prompt
  starts = range(0, len(pool.prompts), each)
  if feedback == "clip":
    return [start + int(np.argmax(pool.scores[start : start + each])) for start in starts]
  draw = np.random.default_rng((config.seed, 3))
  return [start + int(draw.integers(each)) for start in starts]


def read_selection(folder: pathlib.Path, most: int) -> list[int]:
  """Reads which images a person chose with `dreamjax feedback`.

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
    raise UserError(f"{path} is no selection of `dreamjax feedback`: {error}") from error
  known = [priors.file(folder, i) for i in numbers]
  if missing := [n for n, there in zip(names, known, strict=True) if there != folder / n or not there.is_file()]:
    raise UserError(f"{path} names {', '.join(missing)}, which the pool lacks")
  if len(set(numbers)) < len(numbers) or not 1 <= len(numbers) <= most:
    raise UserError(f"{path} must name from 1 to {most} images, each once, not {len(numbers)}")
  return numbers


def _views(
  images: np.ndarray, prompts: Sequence[str], config: ml_collections.ConfigDict
) -> tuple[np.ndarray, list[str]]:
  """Adds crops of images in [-1, 1], as many of each as the config says, and returns all with their prompts.

  The layout of an image is then harder to memorise, and its style no harder.
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
  tokens = {stage.name: _tokens(stage, _part(params, stage, "vqgan", mesh), images, mesh) for stage in generator.stages}
  text = processes.fetch(generator.encode(place_parts(params, (TEXT,), mesh), list(prompts), mesh=mesh))
  thetas, before = {}, None
  for stage in generator.stages:
    low = None if before is None else tokens[before.name]
    before = stage
    settings = rounds.get(stage.name)
    if settings is None or not settings.steps:
      continue
    own = _part(params, stage, "transformer", mesh)
    frozen = {stage.name: own}
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


def _part(params: Any, stage: TokenStage, part: str, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """The parameters of a stage's transformer or VQGAN, on the mesh."""
  return place_parts(params[stage.name], (part,), mesh)


def _tokens(stage: TokenStage, params: Any, images: np.ndarray, mesh: jax.sharding.Mesh) -> np.ndarray:
  """The tokens of images, [n, t]; each device encodes one image at a time, for the VQGAN takes much memory."""
  encode, found = jax.jit(stage.encode), []
  for count, places in batch_indices(len(images), 1, mesh):
    with use_mesh(mesh):
      found.append(processes.fetch(encode(params, shard_batch(images[places], mesh)))[:count])
  return np.concatenate(found)


class _Rows:
  """batch(i) of a stage's training: images in rounds, so that all are trained on equally often."""

  def __init__(self, tokens: np.ndarray, low: np.ndarray | None, text: Any, count: int, seed: int) -> None:
    self._tokens, self._low, self._text, self._count, self._seed = tokens, low, text, count, seed

  def __call__(self, i: int) -> TokenBatch:
    """Returns the batch of update i."""
    which = in_rounds(i, self._count, len(self._tokens), self._seed)
    low = None if self._low is None else self._low[which]
    prompt = jax.tree.map(lambda x: x[which], self._text)
    return TokenBatch(self._tokens[which], prompt, np.ones(self._count, np.float32), low)


def objective(
  stage: TokenStage, settings: ml_collections.ConfigDict, theta: Any
) -> tuple[Loss, optax.GradientTransformation]:
  """Builds the loss (1) of a stage and its optimizer, for a theta of `first_theta`, or its shapes."""
  loss = stage_loss(stage, Recipe(settings.min_mask_ratio, settings.smoothing))
  return loss, make_optimizer(settings.optimizer, theta, settings.steps)


def first_theta(stage: TokenStage, params: Any, text: Text, settings: ml_collections.ConfigDict, seed: int) -> Theta:
  """Returns the theta of a stage before the first update.

  Args:
    stage: which.
    params: its transformer's.
    text: the encoded prompts.
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


def programs(
  generator: Masked, params: Any, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> list[Program]:
  """Lists the programs of a run: the updates of both rounds, the pool between them and the sampling of the result.

  Those that take next to no time are left out: texts and images are encoded once.

  Args:
    generator: its description.
    params: the shapes of its parameters.
    config: of `default_config`.
    mesh: of devices, which need not be there.

  Raises:
    ValueError: if the config is for another method, or a batch cannot be divided over the devices.
  """
  if "first" not in config:
    raise UserError(f"the config is none of StyleDrop, by which {generator.name} is personalised")
  planner = Planner(with_compute(generator, config.dtype, config.remat, config.scan), placed(params, mesh), mesh)
  found, thetas = [], {}  # the second round's replace the first's
  for number, round_ in enumerate(("first", "second"), 1):
    before = None
    for stage in planner.generator.stages:
      settings = config[round_].get(stage.name)
      if settings is not None and settings.steps:
        name, field = f"round {number}, {stage.name}: update", f"{round_}.{stage.name}.batch_size"
        program, theta = _update_program(planner, name, field, stage, before, settings, config)
        found.append(program)
        thetas |= theta
      before = stage
    if number == 1:
      total, size = len(config.pool.prompts) * config.pool.images_per_prompt, config.pool.batch_size
      runs = math.ceil(total / round_up_batch_size(size, mesh))
      found.append(planner.sampling("pool", runs, {"pool.batch_size": size}, thetas))
  return [*found, planner.sampling("sample", 1, {}, thetas)]


def _update_program(
  planner: Planner,
  name: str,
  field: str,
  stage: TokenStage,
  before: TokenStage | None,
  settings: ml_collections.ConfigDict,
  config: ml_collections.ConfigDict,
) -> tuple[Program, Any]:
  """The update of a stage, and the shapes of what is tuned."""
  own = planner.params[stage.name]["transformer"]

  def first(params: Any, text: Any) -> Any:
    text = text._replace(mask=jnp.ones(text.mask.shape, jnp.bool)) if settings.kind == "prompt" else text
    return {stage.name: first_theta(stage, params, text, settings, config.seed)}

  theta = planner.shapes(first, own, planner.text(1))
  count = planner.check(name, {field: settings.batch_size})
  ids = lambda one: jax.ShapeDtypeStruct((count, one.transformer.side**2), jnp.int32)  # noqa: E731
  low = None if before is None else ids(before)
  rows = TokenBatch(ids(stage), planner.text(count), jax.ShapeDtypeStruct((count,), jnp.float32), low)
  once, _ = objective(with_compute(planner.generator, config.dtype, remat="none").stage(stage.name), settings, theta)
  made, frozen = objective(stage, settings, theta), {stage.name: {"transformer": own}}
  return planner.update(name, settings.steps, {field: settings.batch_size}, made, once, theta, frozen, rows), theta


def _check(
  generator: Generator, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, rounds: Sequence[str]
) -> None:
  """Raises UserError for a config that cannot be run, or not on these devices in these rounds."""
  if not isinstance(generator, Masked):
    raise UserError(f"StyleDrop is for generators of masked tokens, and {generator.name} is none")
  renamed.check(config.to_dict())
  if config.views < 1 or not 0 < config.smallest <= 1:
    raise UserError("there is one view of an image or more, and the smallest is a share of its side")
  if config.pool.images_per_prompt < 1 or config.pool.batch_size < 1 or not config.pool.prompts:
    raise UserError("the pool has one prompt or more, and one image of each or more")
  for round_ in ("first", "second"):
    for name, settings in config[round_].items():
      generator.stage(name)
      if settings.kind not in KINDS:
        raise UserError(f"{round_}.{name}.kind is one of {', '.join(KINDS)}, not {settings.kind!r}")
      if settings.batch_size < 1 or settings.steps < 0:
        raise UserError(f"{round_}.{name}: batch_size is at least 1, steps at least 0")
      if settings.steps and round_ in rounds:
        check_batch_size(f"{round_}.{name}.batch_size", settings.batch_size, mesh)
