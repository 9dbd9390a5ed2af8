"""DreamBooth: a generator learns one subject from a few photos, and keeps what it knows of the subject's class.

Ruiz et al., "DreamBooth" (2208.12242). With photos x of the subject and their prompt c = "a [V] [class]", images x_pr
of the class, drawn by the frozen generator, and their prompt c_pr = "a [class]", each stage of a cascade is tuned by

    loss = E w_t ||network(x_t, c) - target||^2 + lambda E w_t' ||network(x_pr_t', c_pr) - target_pr||^2           (1)

(eq. 2 of the paper). A batch holds rows of both kinds; what tells them apart is their prompt and their weight. Photos
may have more wordings of c, and captions, "a [V] dog on the beach", in a share of the rows: the more there are, the
less is the subject bound to one prompt, and what is said of the place need not be learned with it. Where the prior is
"frozen", the rows of the class are the subject's photos with the prompt c_pr, and the target is what the frozen network
says of them: no images need be drawn. The stages of super-resolution are tuned as well (supplement,
"super-resolution"), on the photos and what they look like when they are small, and with less noise on the small ones
than in the training before, so that fine detail is not blurred: levels of 1e-5 instead of 1e-3.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import tqdm

from dreamjax.data import identifiers, priors
from dreamjax.data.latents import Latents
from dreamjax.data.photos import Batch, Photos
from dreamjax.data.photos import read_photos as read_photos
from dreamjax.diffusion.resolution import downsample
from dreamjax.generators.cascade import AUTOENCODER, Cascade, Sampling, Stage
from dreamjax.generators.generator import TEXT, with_compute
from dreamjax.generators.sampling import batches
from dreamjax.methods.denoising import Recipe, stage_loss
from dreamjax.methods.workdirs import bind
from dreamjax.parallel import processes
from dreamjax.parallel.sharding import batch_shards, check_batch_size, make_mesh, shard_batch, shard_params, use_mesh
from dreamjax.theta import Base, Card, Embeddings, Full, LoRA, Personalisation, Theta
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
  """How one stage is tuned.

  steps: updates; rows: photos in each; prior_batch_size: images of the class in each; kind: "full", "lora", or "none" where
  only the text encoder is tuned; rank, alpha and pattern: of the low-rank updates, and which layers have any (a regular
  expression); levels: least and greatest
  noise on the small images, for stages of super-resolution; crop: "center", or "random" for any square along a
  photo's longer side; flip: whether every second photo is mirrored; optimizer: see `train.optimizer`.
  """
  optimizer = default_optimizer()
  optimizer.update({"learning_rate": 1e-5, "warmup": 0, "decay": "constant", "ema": 0.0})
  return ml_collections.ConfigDict({
    "steps": 1000, "batch_size": 4, "prior_batch_size": 4, "kind": "full", "rank": 4, "alpha": 4.0, "pattern": "", "min_snr": 0.0,
    "augmentation_levels": (1e-5, 1e-5), "crop": "center", "flip": False, "accumulation_steps": 1, "log_every": 25, "save_every": 250,
    "optimizer": optimizer,
  })  # fmt: skip


def default_config(stages: Sequence[str] = ("base", "sr")) -> ml_collections.ConfigDict:
  """The paper's recipe.

  seed: of all randomness; identifier: what [V] stands for, "" to choose a rare word; rare: where in the vocabulary rare
  words are looked for; wordings: the prompts that photos have, one of which each row draws, with {noun} for the class
  noun; captions: the share of rows of photos whose prompt is the photo's caption instead, see `data.photos.read`;
  train_text: what the base stage's training does to the text encoder: nothing ("frozen"), what it does to the network
  ("tuned"), or it learns what the identifier's tokens stand for and nothing else ("embeddings": textual inversion, Gal
  et al., 2208.01618), at the learning rate's multiple `text_rate`; prior: "kind" is one of `PRIORS`, "weight" is
  lambda, "count" how many images are drawn, by "sampling", each stage's; patience: 0, or after how many checkpoints
  without a smaller loss on a photo that is held out a stage's training ends; show: prompts that are drawn at each
  checkpoint, into the folder `samples` beside the log; dtype, remat and scan: see `generators.computing`; stages: by
  name, each as `default_stage` has it.
  """
  return ml_collections.ConfigDict({
    "seed": 0, "identifier": "", "rare": identifiers.RARE, "wordings": (WORDING,), "captions": 0.0,
    "train_text": "frozen", "text_rate": 0.2, "early_stopping": 0, "sample_prompts": (),
    "dtype": "float32", "remat": "none", "scan": False,
    "prior": {
      "kind": "images", "weight": 1.0, "count": 200, "batch_size": 8,
      "sampling": {name: {"sampler": "ancestral"} for name in stages},
    },
    "stages": {name: default_stage() for name in stages},
  })  # fmt: skip


def dreambooth(
  generator: Cascade,
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
    generator: a cascade.
    params: its parameters.
    images: a folder of photos of the subject.
    class_noun: what the subject is, such as "dog"; "" for the paper's ablation without one.
    workdir: for logs, checkpoints, and `theta.safetensors` in the end.
    config: see `default_config`; by default that.
    cache: of prior sets; by default the folder "priors" in the workdir.
    mesh: of devices, see `parallel.sharding`; by default the first device alone.

  Raises:
    OSError, ValueError: if photos or config are not what they should be, batches cannot be divided over the mesh, or
      the workdir holds a training on other photos or by another recipe; it stays as it was.
  """
  workdir = pathlib.Path(workdir)
  mesh = make_mesh((1, 1, 1)) if mesh is None else mesh
  config = config or default_config([stage.name for stage in generator.stages])
  _check(generator, config, mesh)
  generator = with_compute(generator, config.dtype, config.remat, config.scan)
  photos = read_photos(pathlib.Path(images), generator.resolution, class_noun, with_captions=config.captions > 0)
  class_prompt = f"a {class_noun}".strip()
  wordings = tuple(" ".join(wording.replace("{noun}", class_noun).split()) for wording in config.wordings)
  identifier = (
    identifiers.normalize(generator.tokenizer, config.identifier)
    if config.identifier
    else identifiers.choose(
      generator.tokenizer, config.seed, rare=tuple(config.rare), common=[class_prompt, *wordings, *photos.prompts]
    )[0]
  )
  base = generator.base(params)
  processes.on_main_process(lambda: bind(workdir, base, photos, config.to_dict(), _FREE, class_noun=class_noun))
  params = shard_params(params, mesh)
  drawn = None
  if config.prior.kind == "images" and any(stage.prior_batch_size for stage in config.stages.values()):
    drawn = _prior_set(generator, params, base, class_prompt, config, cache or workdir / "priors", mesh)
  subject = Subject(photos, identifier, wordings, class_prompt, drawn)
  thetas: dict[str, Theta] = {}
  for name, settings in config.stages.items():
    if settings.steps:
      folder = workdir / name
      thetas |= tune_stage(generator, params, generator.stage(name), subject, config, settings, folder, thetas, mesh)
  tuned = [generator.stage(name) for name in thetas if name != TEXT]
  recipe = {
    "method": "dreambooth",
    "prompt": photos.prompts[0],
    "config": config.to_dict(),
    "sampling": {stage.name: _sampling(stage, config.stages[stage.name]) for stage in tuned},
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
    prior: such images, [n, h, w, 3] bytes, or None.
  """

  photos: Photos
  identifier: str
  wordings: tuple[str, ...]
  class_prompt: str
  prior: np.ndarray | None

  def prompts(self) -> list[str]:
    """The photos' own, one each, then the wordings, and in the end that of images of the class."""
    own = [identifiers.fill(prompt, self.identifier) for prompt in (*self.photos.prompts, *self.wordings)]
    return [*own, self.class_prompt]


def tune_stage(
  generator: Cascade,
  params: Any,
  stage: Stage,
  subject: Subject,
  config: ml_collections.ConfigDict,
  settings: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  before: Mapping[str, Theta],
  mesh: jax.sharding.Mesh,
) -> dict[str, Theta]:
  """Tunes one stage, and the text encoder with the base stage if that is asked for; see `dreambooth`.

  What was tuned `before` is drawn with, where images are to be shown.
  """
  tokens = identifiers.tokens(generator.tokenizer, subject.identifier)
  theta = first_theta(generator, params, stage, config, tokens)
  frozen = {name: params[name] for name in {stage.name, *theta}}
  loss, tx = objective(generator, stage, config, theta)
  texts = subject.prompts()
  read: Any = (
    generator.tokenizer(texts) if TEXT in theta else processes.fetch(generator.encode(params, texts, mesh=mesh))
  )
  held_out = 1 if config.early_stopping and len(subject.photos) > 1 else 0
  rows = RowSource(subject, _seen_by(generator, params, stage), read, config, settings, held_out)
  watch = EarlyStopping(jax.jit(loss), rows.held_out(), config, mesh) if held_out else None
  shown = [identifiers.fill(prompt, subject.identifier) for prompt in config.sample_prompts]
  upto = generator.stages.index(stage) + 1

  def inspect(state: TrainState) -> dict[str, Any]:
    found: dict[str, Any] = {} if watch is None else watch(state)
    if shown:
      samplings = [drawn.sampling for drawn in generator.stages[:upto]]
      options = {"samplings": samplings, "seed": config.seed, "batch_size": min(8, len(shown)), "mesh": mesh}
      drawn = batches(generator, params, shown, thetas=[{**before, **averaged(state)}], **options)
      found["samples"] = Sheet(np.concatenate([images[-1] for images in drawn]), config.sample_prompts)
    return found

  state = fit(
    make_step(loss, tx, config.seed, settings.accumulation_steps),
    TrainState.create(theta, tx, frozen, mesh),
    rows,
    steps=settings.steps,
    workdir=workdir,
    log_every=settings.log_every,
    save_every=settings.save_every,
    inspect=inspect,
    enough=(lambda: False) if watch is None else watch.enough,
    mesh=mesh,
  )
  return processes.fetch(averaged(state) if watch is None or watch.best is None else watch.best)


def first_theta(
  generator: Cascade, params: Any, stage: Stage, config: ml_collections.ConfigDict, tokens: Sequence[int]
) -> dict[str, Theta]:
  """What is tuned with a stage, by the names of parts, as it is before it has learned anything.

  Args:
    generator: the cascade.
    params: its parameters.
    stage: which.
    config: see `default_config`.
    tokens: of the identifier, whose embeddings may be what is tuned.
  """
  settings = config.stages[stage.name]
  theta: dict[str, Theta] = {}
  if settings.kind != "none":
    theta[stage.name] = _start(params[stage.name], settings, config.seed)
  if stage is generator.stages[0] and config.train_text == "tuned":
    theta[TEXT] = _start(params[TEXT], settings, config.seed)
  elif stage is generator.stages[0] and config.train_text == "embeddings":
    theta[TEXT] = Embeddings.init(params[TEXT], tokens)
  return theta


def objective(
  generator: Cascade, stage: Stage, config: ml_collections.ConfigDict, theta: Any
) -> tuple[Loss, optax.GradientTransformation]:
  """The loss (1) of a stage and the optimizer that makes it small, for a theta of `first_theta`, or its shapes."""
  settings, tunes_text = config.stages[stage.name], TEXT in theta
  small = generator.stages[generator.stages.index(stage) - 1].image if stage.is_super_resolution else 0
  recipe = Recipe(augmentation_levels=tuple(settings.augmentation_levels), small=small, min_snr=settings.min_snr)
  optimizer = ml_collections.ConfigDict(settings.optimizer)
  if tunes_text:
    optimizer.multipliers = (*optimizer.multipliers, (f"^{TEXT}/", config.text_rate))
  loss = stage_loss(stage, recipe, generator.text_encoder if tunes_text else None)
  return loss, make_optimizer(optimizer, theta, settings.steps)


#: Images, in [-1, 1], to what a stage is to draw: smaller images, or latents, whose noise the generator draws.
See = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _seen_by(generator: Cascade, params: Any, stage: Stage) -> See:
  if generator.autoencoder is not None:
    return Latents(generator.autoencoder, params[AUTOENCODER])
  return lambda images, _: np.asarray(downsample(jnp.asarray(images), stage.image))


class RowSource:
  """batch(i) of a stage's training: rows of the subject, then rows of the class."""

  def __init__(
    self,
    subject: Subject,
    see: See,
    texts: Any,
    config: ml_collections.ConfigDict,
    settings: ml_collections.ConfigDict,
    held_out: int = 0,
  ) -> None:
    photos = subject.photos
    kept = len(photos) - held_out
    self._held_out = Photos(photos.names[kept:], photos.prompts[kept:], photos.originals[kept:])
    self._photos = Photos(photos.names[:kept], photos.prompts[:kept], photos.originals[:kept])
    self._see, self._texts, self._seed, self._settings = see, texts, config.seed, settings
    self._prior, self._wordings = subject.prior, len(photos) + np.arange(len(subject.wordings))
    self._kind, self._weight, self._captions = config.prior.kind, config.prior.weight, config.captions
    self._prior_batch_size = 0 if self._kind == "none" else settings.prior_batch_size

  def __call__(self, i: int) -> Batch:
    """The rows of update i."""
    count, others = self._settings.batch_size, self._prior_batch_size
    places, images = self._photos.batch(i, count, seed=self._seed, crop=self._settings.crop)
    draw = np.random.default_rng((self._seed, 2, i))
    if self._settings.flip:
      mirrored = draw.random(count) < 0.5
      images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    captioned = draw.random(count) < self._captions
    told = np.where(captioned, places, draw.choice(self._wordings, count))  # of `Subject.prompts`
    images = [images]
    if others and self._kind == "frozen":
      images.append(self._photos.batch(i, others, seed=self._seed + 1, crop=self._settings.crop)[1])
    elif others:
      chosen = draw.choice(len(self._prior), others, replace=len(self._prior) < others)
      images.append(self._prior[chosen].astype(np.float32) / np.float32(127.5) - np.float32(1))
    return self._rows(np.concatenate(images), told, others, draw)

  def held_out(self) -> Batch:
    """The photos that are not trained on, each several times, for as many times and noises."""
    places = np.arange(8) % max(1, len(self._held_out))
    images = self._held_out.images()[places]
    return self._rows(images, len(self._photos) + places, 0, np.random.default_rng((self._seed, 3)))

  def _rows(self, images: np.ndarray, told: np.ndarray, others: int, draw: np.random.Generator) -> Batch:
    """Rows of which the last `others` are of the class; losses.py says why these weights."""
    total, count = len(images), len(images) - others
    is_prior = np.arange(total) >= count
    which = np.append(told, np.full(others, -1))  # the class's prompt is the last one
    weights = np.where(is_prior, self._weight * total / max(others, 1), total / count).astype(np.float32)
    conditioning = {"prior": is_prior}
    if self._kind == "frozen":
      conditioning["frozen"] = is_prior
    prompt = jax.tree.map(lambda x: x[which], self._texts)
    return Batch(self._see(images, draw), prompt, weights, conditioning)


class EarlyStopping:
  """Watches the loss on held-out photos, always with the same noise and times, and keeps the best theta.

  There are as many rows on any mesh, for the loss is to be the same: where they do not divide, each device has all.
  """

  def __init__(
    self, loss: Callable[..., Any], rows: Batch, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
  ) -> None:
    self._loss, self._config, self._mesh = loss, config, mesh
    self._rows = rows if len(rows.weight) % batch_shards(mesh) else shard_batch(rows, mesh)
    self._least, self._since = float("inf"), 0
    self.best: Any = None

  def __call__(self, state: TrainState) -> dict[str, float]:
    theta = averaged(state)
    with use_mesh(self._mesh):
      value = float(self._loss(theta, state.frozen, self._rows, jax.random.key(self._config.seed))[0])
    self._since += 1
    if value < self._least:
      self._least, self._since, self.best = value, 0, processes.fetch(theta)
    return {"held_out": value}

  def enough(self) -> bool:
    """Whether the loss has not fallen for so long."""
    return self._since >= self._config.early_stopping


def _start(params: Any, settings: ml_collections.ConfigDict, seed: int) -> Theta:
  if settings.kind == "full":
    return Full.init(params, settings.pattern)
  return LoRA.init(jax.random.key(seed), params, settings.rank, alpha=settings.alpha, pattern=settings.pattern)


def prior_samplings(generator: Cascade, config: ml_collections.ConfigDict) -> tuple[Sampling, ...]:
  """How each stage is sampled for the images of the class."""
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
  """Images of the class, drawn by the frozen generator or found in the cache."""
  prior = config.prior
  samplings = prior_samplings(generator, config)

  def draw(first: int, count: int) -> Any:
    for images in batches(
      generator,
      params,
      [prompt] * count,
      samplings=samplings,
      seed=config.seed,
      first=first,
      batch_size=prior.batch_size,
      mesh=mesh,
    ):
      yield from images[-1]

  recipe = {
    "model": base.hash,
    "prompt": prompt,
    "seed": config.seed,
    "sampling": [dataclasses.asdict(sampling) for sampling in samplings],
    **({} if config.dtype == "float32" else {"dtype": config.dtype}),
  }
  with tqdm.tqdm(total=prior.count, unit=" images", desc=f"{prompt!r}", disable=processes.disable_progress()) as bar:
    return priors.read_or_draw(cache, recipe, prior.count, draw, lambda there: bar.update(there - bar.n))


# What may change between two calls for one workdir: how long it goes on, and what is looked at.
_FREE = ("steps", "log_every", "save_every", "early_stopping", "sample_prompts", "remat", "scan")


def _sampling(stage: Stage, settings: ml_collections.ConfigDict) -> dict[str, Any]:
  """How the sampling of a stage changes when it was tuned.

  The small images are noised as little as they were. And a learned variance, of which the loss says nothing, no
  longer belongs to the rest of what the network says.
  """
  level = {"augmentation_level": settings.augmentation_levels[1]} if stage.is_super_resolution else {}
  return level | ({"variance": 0.0} if stage.sampling.variance == "learned" else {})


def _check(generator: Cascade, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> None:
  """Raises ValueError for what a config cannot ask for, on these devices."""
  if config.prior.kind not in PRIORS:
    raise ValueError(f"prior.kind is one of {', '.join(PRIORS)}, not {config.prior.kind!r}")
  if not 0 <= config.captions <= 1:
    raise ValueError(f"captions is a share from 0 to 1, not {config.captions}")
  if not config.wordings or any(identifiers.PLACEHOLDER not in wording for wording in config.wordings):
    raise ValueError(f"wordings are prompts with {identifiers.PLACEHOLDER} in them, not {config.wordings}")
  if config.train_text not in TEXTS:
    raise ValueError(f"train_text is one of {', '.join(TEXTS)}, not {config.train_text!r}")
  for name, settings in config.stages.items():
    stage = generator.stage(name)
    if settings.kind not in KINDS:
      raise ValueError(f"stages.{name}.kind is one of {', '.join(KINDS)}, not {settings.kind!r}")
    if settings.kind == "none" and not (config.train_text == "embeddings" and stage is generator.stages[0]):
      raise ValueError(
        f"stages.{name}.kind is none, which leaves nothing to tune: that is for the first stage, where train_text is "
        "embeddings; for a stage that is not to be tuned at all, set its steps to 0"
      )
    if settings.batch_size < 1 or settings.prior_batch_size < 0 or settings.steps < 0:
      raise ValueError(f"stages.{name}: rows is at least 1, prior_batch_size and steps at least 0")
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
