"""DreamBooth: a generator learns one subject from a few photos, and keeps what it knows of the subject's class.

Ruiz et al., "DreamBooth" (2208.12242). With photos x of the subject and their prompt c = "a [V] [class]", images x_pr
of the class, sampled from the frozen generator, and their prompt c_pr = "a [class]", each stage of a cascade is tuned
by

    loss = E w_t ||network(x_t, c) - target||^2 + lambda E w_t' ||network(x_pr_t', c_pr) - target_pr||^2           (1)

(eq. 2 of the paper). A batch holds examples of both kinds, which differ in their prompt and their weight. Photos may
have several wordings of c, and in a share of the examples captions, "a [V] dog on the beach": the more there are, the
less is the subject bound to one prompt, and what captions say of the place need not be learned with it. Where the prior
is "frozen", the examples of the class are the subject's photos with the prompt c_pr, and the target is the frozen
network's prediction: no images need be sampled. The super-resolution stages are tuned as well (supplement,
"super-resolution"), on the photos and their low-resolution versions, and with less noise on these than in the
pretraining, so that fine detail is not blurred: augmentation levels of 1e-5 instead of 1e-3.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import tqdm

from dreamjax import renamed
from dreamjax.data import identifiers, priors
from dreamjax.data.latents import Latents
from dreamjax.data.photos import Batch, Photos
from dreamjax.data.photos import read_photos as read_photos
from dreamjax.diffusion.resolution import downsample
from dreamjax.errors import UserError
from dreamjax.generators.cascade import AUTOENCODER, Cascade, Sampling, Stage
from dreamjax.generators.generator import TEXT, with_compute
from dreamjax.generators.masked import Masked
from dreamjax.generators.sampling import batches
from dreamjax.methods import styledrop
from dreamjax.methods.denoising import Recipe, stage_loss
from dreamjax.methods.programs import Planner, Program, placed
from dreamjax.methods.workdirs import bind, place_parts
from dreamjax.parallel import processes
from dreamjax.parallel.sharding import (
  batch_shards,
  check_batch_size,
  make_mesh,
  round_up_batch_size,
  shard_batch,
  use_mesh,
)
from dreamjax.theta import Base, Card, Embeddings, Full, LoRA, Personalisation, Theta
from dreamjax.train.early_stopping import EarlyStopping
from dreamjax.train.logs import Sheet
from dreamjax.train.loop import fit
from dreamjax.train.optimizer import averaged, make_optimizer
from dreamjax.train.optimizer import default_config as default_optimizer
from dreamjax.train.state import TrainState
from dreamjax.train.step import Loss, make_step

PRIORS = ("images", "frozen", "none")
KINDS = ("full", "lora", "none")
TEXTS = ("frozen", "tuned", "embeddings")
WORDING = "a [V] {noun}"  # the paper's


def default_stage() -> ml_collections.ConfigDict:
  """Returns how one stage is tuned."""
  optimizer = default_optimizer()
  optimizer.update({"learning_rate": 1e-5, "warmup": 0, "decay": "constant", "ema": 0.0})
  return ml_collections.ConfigDict({
    "steps": 1000,  # updates; 0 leaves the stage as it is
    "batch_size": 4,  # photos in a batch
    "prior_batch_size": 4,  # images of the class in a batch
    "kind": "full",  # of the theta: "full", "lora", or "none" where only the text encoder is tuned
    "rank": 4,  # of "lora"
    "alpha": 4.0,  # of "lora", whose updates are scaled by alpha / rank
    "pattern": "",  # regular expression of the paths of the layers that are tuned; "" for all
    "min_snr": 0.0,  # gamma of the loss's weights, see `diffusion.losses.min_snr`; 0 for none
    "augmentation_levels": (1e-5, 1e-5),  # range of the noise on the low-resolution image, for super-resolution
    "crop": "center",  # of photos: "center", or "random" for any square along the longer side
    "flip": False,  # whether photos are mirrored at random
    "accumulation_steps": 1,  # gradient accumulation: microbatches of a batch
    "log_every": 25,  # updates
    "save_every": 250,  # updates between checkpoints
    "optimizer": optimizer,  # see `train.optimizer`
  })  # fmt: skip


def default_config(stages: Sequence[str] = ("base", "sr")) -> ml_collections.ConfigDict:
  """Returns the paper's recipe, for a cascade with stages of these names."""
  return ml_collections.ConfigDict({
    "seed": 0,  # of all randomness
    "identifier": "",  # what [V] stands for; "" to choose a rare word
    "rare": identifiers.RARE,  # between which shares of the vocabulary rare words are looked for
    "wordings": (WORDING,),  # prompts of photos, drawn at random for each example; {noun} is the class noun
    "captions": 0.0,  # share of the photos' examples whose prompt is the photo's caption, see `data.photos.read_photos`
    "train_text": "frozen",  # with the base stage: "frozen", "tuned" as the network is, or "embeddings": only those of
    # the identifier's tokens are learned, which is textual inversion (Gal et al., 2208.01618)
    "text_rate": 0.2,  # learning rate of the text encoder, as a multiple of the base stage's
    "early_stopping": 0,  # a stage's training ends after so many checkpoints without a smaller loss on a photo that is
    # held out, and the best theta counts; 0 for never
    "sample_prompts": (),  # prompts of images that are sampled at each checkpoint, into `samples` next to the log
    "dtype": "float32",  # see `generators.with_compute`
    "remat": "none",  # see `generators.with_compute`
    "scan": False,  # see `generators.with_compute`
    "prior": {
      "kind": "images",  # of `PRIORS`
      "weight": 1.0,  # lambda of equation (1)
      "count": 200,  # images that are sampled, for "images"
      "batch_size": 8,  # how many at once
      "sampling": {name: {"sampler": "ancestral"} for name in stages},  # changes to each stage's `Sampling`
    },
    "stages": {name: default_stage() for name in stages},
  })  # fmt: skip


def dreambooth(
  generator: Cascade | Masked,
  params: Any,
  images: pathlib.Path | str,
  class_noun: str,
  *,
  workdir: pathlib.Path | str,
  config: ml_collections.ConfigDict | None = None,
  cache: pathlib.Path | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Personalisation:
  """Learns a subject, or goes on where an earlier call was cut off.

  Args:
    generator: of either family; with masked tokens this is `styledrop.subject`.
    params: its parameters, on devices or in the host's memory; of these, only what a stage needs is on devices at once.
    images: a folder of photos of the subject.
    class_noun: what the subject is, such as "dog"; "" for the paper's ablation without one.
    workdir: for logs, checkpoints, and `theta.safetensors` in the end.
    config: see `default_config`; by default that. For masked tokens see `styledrop.default_config`.
    cache: of prior sets, which masked tokens have none of; by default the folder "priors" in the workdir.
    mesh: of devices, see `parallel.sharding`; by default the first device alone.

  Raises:
    OSError, ValueError: if photos or config are not what they should be, batches cannot be divided over the mesh, or
      the workdir holds a training on other photos or by another recipe; it stays as it was.
  """
  if isinstance(generator, Masked):
    return styledrop.subject(generator, params, images, class_noun, workdir=workdir, config=config, mesh=mesh)
  workdir = pathlib.Path(workdir)
  mesh = make_mesh((1, 1, 1)) if mesh is None else mesh
  config = config or default_config([stage.name for stage in generator.stages])
  _check(generator, config, mesh)
  generator = with_compute(generator, config.dtype, config.remat, config.scan)
  photos = read_photos(pathlib.Path(images), generator.resolution, class_noun, with_captions=config.captions > 0)
  class_prompt = f"a {class_noun}".strip()
  wordings = tuple(" ".join(wording.replace("{noun}", class_noun).split()) for wording in config.wordings)
  common = [class_prompt, *wordings, *photos.prompts]
  identifier = identifiers.resolve(generator.tokenizer, config.identifier, config.seed, tuple(config.rare), common)
  base = generator.base(params)
  processes.on_main_process(lambda: bind(workdir, base, photos, config.to_dict(), _FREE, class_noun=class_noun))
  prior = None
  if config.prior.kind == "images" and any(stage.prior_batch_size for stage in config.stages.values()):
    prior = _prior_set(generator, params, base, class_prompt, config, cache or workdir / "priors", mesh)
  subject = Subject(photos, identifier, wordings, class_prompt, prior)
  thetas: dict[str, Theta] = {}
  tuned = [stage for stage in generator.stages if stage.name in config.stages and config.stages[stage.name].steps]
  for stage in tuned:
    thetas |= Tuning(generator, params, stage, subject, config, workdir / stage.name, dict(thetas), mesh).run()
  recipe = {
    "method": "dreambooth",
    "prompt": photos.prompts[0],
    "config": config.to_dict(),
    "sampling": {stage.name: _sampling(stage, config.stages[stage.name]) for stage in tuned if stage.name in thetas},
  }
  made = Personalisation(thetas, Card(base, identifier, class_noun, recipe))
  processes.on_main_process(lambda: made.save(workdir / "theta.safetensors"))
  return made


@dataclasses.dataclass(frozen=True)
class Subject:
  """What a stage is tuned to.

  Attributes:
    photos: of the subject.
    identifier: what [V] in prompts stands for.
    wordings: prompts that any of the photos may have.
    class_prompt: the prompt of images of the class.
    prior: such images, [n, h, w, 3] uint8, or None.
  """

  photos: Photos
  identifier: str
  wordings: tuple[str, ...]
  class_prompt: str
  prior: np.ndarray | None

  def prompts(self) -> list[str]:
    """Returns the photos' own prompts, one each, then the wordings, and in the end that of images of the class."""
    own = [identifiers.fill(prompt, self.identifier) for prompt in (*self.photos.prompts, *self.wordings)]
    return [*own, self.class_prompt]


@dataclasses.dataclass(frozen=True)
class Tuning:
  """The training of one stage, and of the text encoder with the base stage if the config says so; see `dreambooth`.

  Attributes:
    generator: the cascade, as it computes in this training.
    params: its parameters.
    stage: which is tuned.
    subject: to what.
    config: see `default_config`.
    workdir: of this stage.
    before: thetas of the parts that are tuned already. The text encoder's encodes the texts of later stages.
    mesh: of devices.
  """

  generator: Cascade
  params: Any
  stage: Stage
  subject: Subject
  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  before: Mapping[str, Theta]
  mesh: jax.sharding.Mesh

  def run(self) -> dict[str, Theta]:
    """Trains, or goes on with it, and returns the thetas by the names of parts, in the host's memory."""
    config, settings = self.config, self.config.stages[self.stage.name]
    texts = self._texts()  # the first, so that the text encoder has left the devices before the stage comes there
    tokens = identifiers.tokens(self.generator.tokenizer, self.subject.identifier)
    frozen = self._placed(*tuned_parts(self.generator, self.stage, config))
    theta = first_theta(self.generator, frozen, self.stage, config, tokens)
    loss, tx = objective(self.generator, self.stage, config, theta)
    held_out = 1 if config.early_stopping and len(self.subject.photos) > 1 else 0
    rows = RowSource(self.subject, self._targets(), texts, config, settings, held_out)
    stopping = None
    if held_out:
      evaluate = HeldOutLoss(loss, rows.held_out(), config.seed, self.mesh)
      stopping = EarlyStopping(evaluate, config.early_stopping, self.workdir / "best.safetensors")
    state = fit(
      make_step(loss, tx, config.seed, settings.accumulation_steps),
      TrainState.create(theta, tx, frozen, self.mesh),
      rows,
      steps=settings.steps,
      workdir=self.workdir,
      log_every=settings.log_every,
      save_every=settings.save_every,
      inspect=self._samples if config.sample_prompts else None,
      early_stopping=stopping,
      mesh=self.mesh,
    )
    return processes.fetch(averaged(state)) if stopping is None or stopping.best is None else stopping.best

  def _texts(self) -> Any:
    """The subject's prompts: their token ids where the text encoder is tuned with the stage, else `Text`."""
    prompts = self.subject.prompts()
    if TEXT in tuned_parts(self.generator, self.stage, self.config):
      return self.generator.tokenizer(prompts)
    return processes.fetch(self.generator.encode(self._placed(TEXT), prompts, self.before.get(TEXT), mesh=self.mesh))

  def _targets(self) -> "Targets":
    if self.generator.autoencoder is not None:
      return Latents(self.generator.autoencoder, self._placed(AUTOENCODER)[AUTOENCODER])
    return lambda images, _: np.asarray(downsample(jnp.asarray(images), self.stage.image))

  def _samples(self, state: TrainState) -> dict[str, Any]:
    """Images of the prompts in `config.sample_prompts`, by what is tuned so far."""
    stages = self.generator.stages[: self.generator.stages.index(self.stage) + 1]
    params = self._placed(TEXT, *(stage.name for stage in stages), AUTOENCODER)
    prompts = [identifiers.fill(prompt, self.subject.identifier) for prompt in self.config.sample_prompts]
    samplings = [stage.sampling for stage in stages]
    options = {"samplings": samplings, "seed": self.config.seed, "batch_size": min(8, len(prompts)), "mesh": self.mesh}
    found = batches(self.generator, params, prompts, thetas=[{**self.before, **averaged(state)}], **options)
    return {"samples": Sheet(np.concatenate([images[-1] for images in found]), self.config.sample_prompts)}

  def _placed(self, *parts: str) -> dict[str, Any]:
    return place_parts(self.params, parts, self.mesh)


def tuned_parts(generator: Cascade, stage: Stage, config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Returns the parts of the parameters that the update of a stage reads: its own, and a tuned text encoder's."""
  is_first = stage.name == generator.stages[0].name
  return (stage.name, TEXT) if is_first and config.train_text != "frozen" else (stage.name,)


def first_theta(
  generator: Cascade, params: Any, stage: Stage, config: ml_collections.ConfigDict, tokens: Sequence[int]
) -> dict[str, Theta]:
  """Returns what is tuned with a stage, by the names of parts, before the first update.

  Args:
    generator: the cascade.
    params: its parameters, those of `tuned_parts`.
    stage: which.
    config: see `default_config`.
    tokens: of the identifier, whose embeddings may be what is tuned.
  """
  settings = config.stages[stage.name]
  theta: dict[str, Theta] = {}
  if settings.kind != "none":
    theta[stage.name] = _start(params[stage.name], settings, config.seed)
  if TEXT in tuned_parts(generator, stage, config):
    is_tuned = config.train_text == "tuned"
    theta[TEXT] = _start(params[TEXT], settings, config.seed) if is_tuned else Embeddings.init(params[TEXT], tokens)
  return theta


def objective(
  generator: Cascade, stage: Stage, config: ml_collections.ConfigDict, theta: Any
) -> tuple[Loss, optax.GradientTransformation]:
  """Builds the loss (1) of a stage and its optimizer, for a theta of `first_theta`, or its shapes."""
  settings, tunes_text = config.stages[stage.name], TEXT in theta
  small = generator.stages[generator.stages.index(stage) - 1].image if stage.is_super_resolution else 0
  recipe = Recipe(augmentation_levels=tuple(settings.augmentation_levels), low_res_size=small, min_snr=settings.min_snr)
  optimizer = ml_collections.ConfigDict(settings.optimizer)
  if tunes_text:
    optimizer.multipliers = (*optimizer.multipliers, (f"^{TEXT}/", config.text_rate))
  loss = stage_loss(stage, recipe, generator.text_encoder if tunes_text else None)
  return loss, make_optimizer(optimizer, theta, settings.steps)


#: Images in [-1, 1] to what a stage learns to sample: smaller images, or latents, whose noise the generator draws.
Targets = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class RowSource:
  """batch(i) of a stage's training: examples of the subject, then examples of the class."""

  def __init__(
    self,
    subject: Subject,
    targets: Targets,
    texts: Any,
    config: ml_collections.ConfigDict,
    settings: ml_collections.ConfigDict,
    held_out: int = 0,
  ) -> None:
    photos = subject.photos
    kept = len(photos) - held_out
    self._held_out = Photos(photos.names[kept:], photos.prompts[kept:], photos.originals[kept:])
    self._photos = Photos(photos.names[:kept], photos.prompts[:kept], photos.originals[:kept])
    self._targets, self._texts, self._seed, self._settings = targets, texts, config.seed, settings
    self._prior, self._wordings = subject.prior, len(photos) + np.arange(len(subject.wordings))
    self._kind, self._weight, self._captions = config.prior.kind, config.prior.weight, config.captions
    self._prior_count = 0 if self._kind == "none" else settings.prior_batch_size

  def __call__(self, i: int) -> Batch:
    """Returns the batch of update i."""
    count, prior_count = self._settings.batch_size, self._prior_count
    indices, images = self._photos.batch(i, count, seed=self._seed, crop=self._settings.crop)
    draw = np.random.default_rng((self._seed, 2, i))
    if self._settings.flip:
      mirrored = draw.random(count) < 0.5
      images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    captioned = draw.random(count) < self._captions
    prompts = np.where(captioned, indices, draw.choice(self._wordings, count))  # of `Subject.prompts`
    images = [images]
    if prior_count and self._kind == "frozen":
      images.append(self._photos.batch(i, prior_count, seed=self._seed + 1, crop=self._settings.crop)[1])
    elif prior_count:
      chosen = draw.choice(len(self._prior), prior_count, replace=len(self._prior) < prior_count)
      images.append(self._prior[chosen].astype(np.float32) / np.float32(127.5) - np.float32(1))
    return self._rows(np.concatenate(images), prompts, prior_count, draw)

  def held_out(self) -> Batch:
    """Returns the photos that are not trained on, each several times, for as many times and noises."""
    indices = np.arange(8) % max(1, len(self._held_out))
    images = self._held_out.images()[indices]
    return self._rows(images, len(self._photos) + indices, 0, np.random.default_rng((self._seed, 3)))

  def _rows(self, images: np.ndarray, prompts: np.ndarray, prior_count: int, draw: np.random.Generator) -> Batch:
    """A batch whose last `prior_count` examples are of the class; losses.py says why these weights."""
    total, count = len(images), len(images) - prior_count
    is_prior = np.arange(total) >= count
    which = np.append(prompts, np.full(prior_count, -1))  # the class's prompt is the last one
    weights = np.where(is_prior, self._weight * total / max(prior_count, 1), total / count).astype(np.float32)
    conditioning = {"prior": is_prior}
    if self._kind == "frozen":
      conditioning["frozen"] = is_prior
    prompt = jax.tree.map(lambda x: x[which], self._texts)
    return Batch(self._targets(images, draw), prompt, weights, conditioning)


class HeldOutLoss:
  """The loss of a state's averaged theta on held-out photos, always with the same noise and times.

  There are as many examples on any mesh, for the loss must be the same: if they cannot be divided evenly, each device
  computes all.
  """

  def __init__(self, loss: Loss, rows: Batch, seed: int, mesh: jax.sharding.Mesh) -> None:
    """Takes the loss of the training, and the held-out examples."""
    self._loss, self._seed, self._mesh = jax.jit(loss), seed, mesh
    self._rows = rows if len(rows.weight) % batch_shards(mesh) else shard_batch(rows, mesh)

  def __call__(self, state: TrainState) -> float:
    """Evaluates a state."""
    with use_mesh(self._mesh):
      return float(self._loss(averaged(state), state.frozen, self._rows, jax.random.key(self._seed))[0])


def programs(
  generator: Cascade, params: Any, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> list[Program]:
  """Lists the programs of a run: the updates, the prior set and the sampling of the result.

  Those that take next to no time are left out: texts and images are encoded once.

  Args:
    generator: its description.
    params: the shapes of its parameters.
    config: of `default_config`.
    mesh: of devices, which need not be there.

  Raises:
    ValueError: if the config is for another method, or a batch cannot be divided over the devices.
  """
  if "stages" not in config:
    raise UserError(f"the config is none of DreamBooth, by which {generator.name} is personalised")
  planner = Planner(with_compute(generator, config.dtype, config.remat, config.scan), placed(params, mesh), mesh)
  found, thetas = [], {}
  for stage in planner.generator.stages:
    if stage.name in config.stages and config.stages[stage.name].steps:
      program, theta = _update_program(planner, stage, config)
      found.append(program)
      thetas |= {part: x for part, x in theta.items() if part != TEXT}
  prior = config.prior
  if prior.kind == "images" and any(stage.prior_batch_size for stage in config.stages.values()):
    runs = math.ceil(prior.count / round_up_batch_size(prior.batch_size, mesh))
    samplings = prior_samplings(planner.generator, config)
    found.append(planner.sampling("prior", runs, {"prior.batch_size": prior.batch_size}, samplings=samplings))
  return [*found, planner.sampling("sample", 1, {}, thetas)]


def _update_program(planner: Planner, stage: Stage, config: ml_collections.ConfigDict) -> tuple[Program, Any]:
  """The update of a stage, and the shapes of what is tuned."""
  generator, settings = planner.generator, config.stages[stage.name]
  frozen = {part: planner.params[part] for part in tuned_parts(generator, stage, config)}
  tokens = (0,)  # an identifier of one token
  theta = planner.shapes(lambda params: first_theta(generator, params, stage, config, tokens), frozen)
  name, fields = f"{stage.name}: update", {f"stages.{stage.name}.batch_size": settings.batch_size}
  if config.prior.kind != "none" and settings.prior_batch_size:
    fields[f"stages.{stage.name}.prior_batch_size"] = settings.prior_batch_size
  count = planner.check(name, fields)
  flags = {"prior": jax.ShapeDtypeStruct((count,), jnp.bool)}
  if config.prior.kind == "frozen":
    flags["frozen"] = flags["prior"]
  image = jax.ShapeDtypeStruct((count, stage.image, stage.image, stage.channels), jnp.float32)
  prompt = planner.ids(count) if TEXT in theta else planner.text(count)
  rows = Batch(image, prompt, jax.ShapeDtypeStruct((count,), jnp.float32), flags)
  plain = with_compute(generator, config.dtype, remat="none")
  once, _ = objective(plain, plain.stage(stage.name), config, theta)
  made = objective(generator, stage, config, theta)
  resident = planner.params.get(AUTOENCODER)  # which makes latents of random crops as they come
  program = planner.update(
    name, settings.steps, fields, made, once, theta, frozen, rows, settings.accumulation_steps, resident
  )
  return program, theta


def _start(params: Any, settings: ml_collections.ConfigDict, seed: int) -> Theta:
  if settings.kind == "full":
    return Full.init(params, settings.pattern)
  return LoRA.init(jax.random.key(seed), params, settings.rank, alpha=settings.alpha, pattern=settings.pattern)


def prior_samplings(generator: Cascade, config: ml_collections.ConfigDict) -> tuple[Sampling, ...]:
  """Returns how each stage is sampled for the images of the class."""
  changes = config.prior.sampling
  return tuple(dataclasses.replace(stage.sampling, **changes.get(stage.name, {})) for stage in generator.stages)


def _prior_set(
  generator: Cascade,
  params: Any,
  base: Base,
  prompt: str,
  config: ml_collections.ConfigDict,
  cache: pathlib.Path,
  mesh: jax.sharding.Mesh,
) -> np.ndarray:
  """Images of the class, [n, h, w, 3] uint8, sampled from the frozen generator or found in the cache."""
  prior = config.prior
  samplings = prior_samplings(generator, config)

  def sample(first: int, count: int) -> Any:
    options = {"samplings": samplings, "seed": config.seed, "first": first, "mesh": mesh}
    options["batch_size"] = prior.batch_size
    for images in batches(generator, place_parts(params, params, mesh), [prompt] * count, **options):
      yield from images[-1]

  recipe = {
    "model": base.hash,
    "prompt": prompt,
    "seed": config.seed,
    "sampling": [dataclasses.asdict(sampling) for sampling in samplings],
    **({} if config.dtype == "float32" else {"dtype": config.dtype}),
  }
  with tqdm.tqdm(total=prior.count, unit=" images", desc=f"{prompt!r}", disable=processes.disable_progress()) as bar:
    return priors.read_or_draw(cache, recipe, prior.count, sample, lambda there: bar.update(there - bar.n))


# What may change between two calls for one workdir: how long it goes on, and what is logged.
_FREE = (
  "stages.*.steps",
  "stages.*.log_every",
  "stages.*.save_every",
  "early_stopping",
  "sample_prompts",
  "remat",
  "scan",
)


def _sampling(stage: Stage, settings: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns how the sampling of a stage changes when it was tuned.

  The low-resolution images are noised as little as in training. And a learned variance, which the loss does not train,
  no longer belongs to the rest of the prediction.
  """
  level = {"augmentation_level": settings.augmentation_levels[1]} if stage.is_super_resolution else {}
  return level | ({"variance": 0.0} if stage.sampling.variance == "learned" else {})


def _check(generator: Cascade, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> None:
  """Raises UserError for a config that cannot be run, or not on these devices."""
  renamed.check(config.to_dict())
  if config.prior.kind not in PRIORS:
    raise UserError(f"prior.kind is one of {', '.join(PRIORS)}, not {config.prior.kind!r}")
  if not 0 <= config.captions <= 1:
    raise UserError(f"captions is a share from 0 to 1, not {config.captions}")
  if not config.wordings or any(identifiers.PLACEHOLDER not in wording for wording in config.wordings):
    raise UserError(f"wordings are prompts with {identifiers.PLACEHOLDER} in them, not {config.wordings}")
  if config.train_text not in TEXTS:
    raise UserError(f"train_text is one of {', '.join(TEXTS)}, not {config.train_text!r}")
  for name, settings in config.stages.items():
    stage = generator.stage(name)
    if settings.kind not in KINDS:
      raise UserError(f"stages.{name}.kind is one of {', '.join(KINDS)}, not {settings.kind!r}")
    if settings.kind == "none" and not (config.train_text == "embeddings" and stage is generator.stages[0]):
      raise UserError(
        f"stages.{name}.kind is none, which leaves nothing to tune: that is for the first stage, where train_text is "
        "embeddings; for a stage that should not be tuned at all, set its steps to 0"
      )
    if settings.batch_size < 1 or settings.prior_batch_size < 0 or settings.steps < 0:
      raise UserError(f"stages.{name}: batch_size is at least 1, prior_batch_size and steps at least 0")
    if settings.steps:
      check_batch_size(
        f"stages.{name}.batch_size",
        settings.batch_size,
        mesh,
        settings.prior_batch_size if config.prior.kind != "none" else 0,
      )
  for name in config.prior.sampling:
    generator.stage(name)
    Sampling(**config.prior.sampling[name])
