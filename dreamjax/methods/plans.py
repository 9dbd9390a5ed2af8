"""What a run computes, program by program, from shapes alone: for a plan of it before there are devices or weights."""

from collections.abc import Callable, Iterator
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from dreamjax.data.photos import Rows
from dreamjax.generators import cascade as cascades
from dreamjax.generators import masked
from dreamjax.generators.cascade import AUTOENCODER, Cascade, Sampling, Stage
from dreamjax.generators.generator import TEXT, computing, keys_of, read
from dreamjax.generators.masked import Masked, TokenStage
from dreamjax.methods import dreambooth, styledrop
from dreamjax.methods.masking import TokenRows
from dreamjax.models.clip import PromptEncoder
from dreamjax.models.spread import rounded, row_axes, row_parts
from dreamjax.theta import Branches
from dreamjax.train import flops
from dreamjax.train.loop import jit_update
from dreamjax.train.sharding import shardings
from dreamjax.train.state import TrainState
from dreamjax.train.step import Loss, make_step

PICTURES = 8  # that are drawn at once where no config says how many, or so many that each device has one


class Program(NamedTuple):
  """A jitted function of a run.

  Attributes:
    name: for people.
    runs: how often it runs.
    rows: pictures in a batch.
    lower: makes of it what can be compiled.
    flops: counts the operations that it asks for on all devices together, without what remat computes twice.
    held: bytes on each device, by name, of what lies there while it runs, its arguments among them.
  """

  name: str
  runs: int
  rows: int
  lower: Callable[[], jax.stages.Lowered]
  flops: Callable[[], float]
  held: dict[str, int]


def programs(
  generator: Cascade | Masked, params: Any, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> list[Program]:
  """The updates and the drawings of a run of DreamBooth or StyleDrop.

  Not those that take no time beside them: texts and pictures are read once, by the text encoder and what makes latents
  or tokens of pictures. Of StyleDrop there are both rounds and the pool between them.

  Args:
    generator: its description.
    params: the shapes of its parameters.
    config: of `dreambooth.default_config`, for a cascade, or of `styledrop.default_config`.
    mesh: of devices, which need not be there.

  Raises:
    ValueError: if the config is for another sort of generator, or a batch cannot be divided over the devices.
  """
  wanted, method = ("stages", "DreamBooth") if isinstance(generator, Cascade) else ("first", "StyleDrop")
  if wanted not in config:
    raise ValueError(f"the config is none of {method}, by which {generator.name} is personalised")
  generator = computing(generator, config.dtype, config.remat, config.scan)
  plan = _Plan(generator, _placed(params, mesh), config, mesh)
  return list(plan.dreambooth() if isinstance(generator, Cascade) else plan.styledrop())


def held(tree: Any) -> int:
  """The bytes of a tree of shapes that lie on each device."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * _width(leaf.dtype) for leaf in leaves)


def _width(dtype: Any) -> int:
  return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def _placed(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Shapes that lie where `train.sharding` says."""
  return jax.tree.map(_at, tree, shardings(tree, mesh))


def _at(shape: Any, sharding: jax.NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


class _Plan(NamedTuple):
  generator: Any
  params: Any
  config: ml_collections.ConfigDict
  mesh: jax.sharding.Mesh

  def dreambooth(self) -> Iterator[Program]:
    cascade, config, prior = self.generator, self.config, self.config.prior
    tuned, full = {}, {}
    for name, settings in config.stages.items():
      if settings.steps:
        program, theta = self._tuning(cascade.stage(name), settings)
        yield program
        own = {part: x for part, x in theta.items() if part != TEXT}
        (full if settings.kind == "full" else tuned).update(own)
    if prior.kind == "images" and any(stage.prior_rows for stage in config.stages.values()):
      samplings, size = dreambooth.prior_samplings(cascade, config), rounded(prior.batch, self.mesh)
      yield self._drawing("prior", math.ceil(prior.count / size), size, samplings, {}, {})
    samplings = tuple(stage.sampling for stage in cascade.stages)
    yield self._drawing("sample", 1, rounded(PICTURES, self.mesh), samplings, tuned, full)

  def _tuning(self, stage: Stage, settings: ml_collections.ConfigDict) -> tuple[Program, Any]:
    cascade, config = self.generator, self.config
    tokens = (0,)  # an identifier of one token
    theta = self._shaped(lambda params: dreambooth.first_theta(cascade, params, stage, config, tokens), self.params)
    others = 0 if config.prior.kind == "none" else settings.prior_rows
    count = settings.rows + others
    numbers = {"prior": jax.ShapeDtypeStruct((count,), jnp.bool)}
    if config.prior.kind == "frozen":
      numbers["frozen"] = numbers["prior"]
    image = jax.ShapeDtypeStruct((count, stage.image, stage.image, stage.channels), jnp.float32)
    prompt = self._ids(count) if TEXT in theta else self._text(count)
    rows = Rows(image, prompt, jax.ShapeDtypeStruct((count,), jnp.float32), numbers)
    frozen = {name: self.params[name] for name in {stage.name, *theta}}
    plain = computing(cascade, config.dtype, remat="none")
    loss, tx = dreambooth.objective(cascade, stage, config, theta)
    once, _ = dreambooth.objective(plain, plain.stage(stage.name), config, theta)
    name = f"{stage.name}: update"
    return self._update(name, settings, loss, once, tx, theta, frozen, rows, settings.pieces), theta

  def _drawing(
    self, name: str, runs: int, size: int, samplings: tuple[Sampling, ...], tuned: Any, full: Any
  ) -> Program:
    cascade = self.generator
    parts = (*(stage.name for stage in cascade.stages), AUTOENCODER)
    used = {part: self.params[part] for part in parts if part in self.params}
    keys = self._spread(jax.eval_shape(lambda: keys_of(0, range(size))))
    text, null = self._spread(self._text(size)), self._whole(self._text(1))
    args = (cascade.stages, samplings, used, tuned, text, null, keys, cascade.autoencoder)
    sizes = {"parameters": held(self.params), "theta": held((tuned, full)), "batch": held((text, keys))}
    drawn = functools.partial(cascades.draw_cascade, cascade.stages, samplings, autoencoder=cascade.autoencoder)
    count = lambda: flops.count(drawn, used, tuned, text, null, keys)  # noqa: E731
    return Program(name, runs, size, self._lowering(cascades.jit_cascade, *args), count, sizes)

  def styledrop(self) -> Iterator[Program]:
    generator, config = self.generator, self.config
    text = self._text(1)
    thetas = {}  # the second round's take the place of the first's
    for number, round_ in enumerate((config.first, config.second), 1):
      before = None
      for stage in generator.stages:
        settings = round_.get(stage.name)
        if settings is not None and settings.steps:
          program, theta = self._styling(number, stage, before, settings, text)
          thetas |= theta
          yield program
        before = stage
      if number == 1:
        total, size = len(config.pool.prompts) * config.pool.each, rounded(config.pool.batch, self.mesh)
        yield self._decoding("pool", math.ceil(total / size), size, thetas)
    yield self._decoding("sample", 1, rounded(PICTURES, self.mesh), thetas)

  def _styling(
    self, number: int, stage: TokenStage, before: TokenStage | None, settings: ml_collections.ConfigDict, text: Any
  ) -> tuple[Program, Any]:
    own = self.params[stage.name]["transformer"]

    def first(params: Any, text: Any) -> Any:
      text = text._replace(mask=jnp.ones(text.mask.shape, jnp.bool)) if settings.kind == "prompt" else text
      return {stage.name: styledrop.first_theta(stage, params, text, settings, self.config.seed)}

    theta = self._shaped(first, own, text)
    count, ids = settings.rows, lambda one: jax.ShapeDtypeStruct((settings.rows, one.transformer.side**2), jnp.int32)
    low = None if before is None else ids(before)
    rows = TokenRows(ids(stage), self._text(count), jax.ShapeDtypeStruct((count,), jnp.float32), low)
    plain = computing(self.generator, self.config.dtype, remat="none").stage(stage.name)
    loss, tx = styledrop.objective(stage, settings, theta)
    once, _ = styledrop.objective(plain, settings, theta)
    frozen, name = {stage.name: {"transformer": own}}, f"round {number}, {stage.name}: update"
    return self._update(name, settings, loss, once, tx, theta, frozen, rows), theta

  def _decoding(self, name: str, runs: int, size: int, thetas: Any) -> Program:
    stages = self.generator.stages
    decodings = tuple(stage.decoding for stage in stages)
    wish = masked.styled("", thetas)
    asked, weights = zip(*(masked.branch_weights(wish, decoding) for decoding in decodings), strict=True)
    branches, texts = {}, []
    for stage, some in zip(stages, asked, strict=True):
      own = self.params[stage.name]["transformer"]
      of = [(None, None, thetas.get(stage.name))[i] for i in some]
      branches[stage.name] = self._shaped(lambda params, of: Branches.of(params, of), own, of)
      text = self._text(size)
      texts.append(self._spread(jax.tree.map(functools.partial(_wider, len(some)), text), axis=1))
    weights = tuple(self._whole(jax.ShapeDtypeStruct(x.shape, jnp.float32)) for x in weights)
    used = {stage.name: self.params[stage.name] for stage in stages}
    keys = self._spread(jax.eval_shape(lambda: keys_of(0, range(size))))
    args = (used, branches, tuple(texts), weights, keys)
    sizes = {"parameters": held(self.params), "theta": held(branches), "batch": held((texts, keys))}
    count = lambda: flops.count(functools.partial(masked.draw, stages, decodings), *args)  # noqa: E731
    return Program(name, runs, size, self._lowering(masked.jit_draw, stages, decodings, *args), count, sizes)

  def _update(
    self, name: str, settings: Any, loss: Loss, once: Loss, tx: Any, theta: Any, frozen: Any, rows: Any, pieces: int = 1
  ) -> Program:
    """The update of a training; `once` is the loss where nothing is computed twice."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(self._whole(step), theta, None, _placed(jax.eval_shape(tx.init, theta), self.mesh))
    rows = self._spread(rows)
    update = jit_update(make_step(loss, tx, 0, pieces, unroll=False), state, self.mesh)
    sizes = {
      "parameters": held(self.params), "theta": held(theta), "optimizer": held(state.opt_state), "batch": held(rows),
    }  # fmt: skip
    count = lambda: flops.count(jax.grad(once, has_aux=True), theta, frozen, rows, jax.random.key(0))  # noqa: E731
    return Program(
      name, settings.steps, rows.weight.shape[0], self._lowering(update, state, frozen, rows), count, sizes
    )

  def _lowering(self, function: Any, *args: Any) -> Callable[[], jax.stages.Lowered]:
    def lower() -> jax.stages.Lowered:
      with jax.set_mesh(self.mesh):
        return function.lower(*args)

    return lower

  def _shaped(self, function: Callable[..., Any], *args: Any) -> Any:
    return _placed(jax.eval_shape(function, *args), self.mesh)

  def _spread(self, tree: Any, axis: int = 0) -> Any:
    place = jax.NamedSharding(self.mesh, jax.P(*[None] * axis, row_axes(self.mesh)))
    if (count := jax.tree.leaves(tree)[0].shape[axis]) % row_parts(self.mesh):
      over = f"the {row_parts(self.mesh)} devices along {' and '.join(row_axes(self.mesh))}"
      raise ValueError(f"batches of {count} rows cannot be divided over {over}")
    return jax.tree.map(lambda x: _at(x, place), tree)

  def _whole(self, tree: Any) -> Any:
    return jax.tree.map(lambda x: _at(x, jax.NamedSharding(self.mesh, jax.P())), tree)

  def _ids(self, count: int) -> tuple[Any, Any]:
    encoder, length = self.generator.text_encoder, self.generator.tokenizer.length
    towers = (len(encoder.towers),) if isinstance(encoder, PromptEncoder) else ()
    return (
      jax.ShapeDtypeStruct((count, *towers, length), jnp.int32),
      jax.ShapeDtypeStruct((count, length), jnp.bool),
    )

  def _text(self, count: int) -> Any:
    ids, mask = self._ids(count)
    return jax.eval_shape(functools.partial(read, self.generator.text_encoder), self.params[TEXT], None, ids, mask)


def _wider(branches: int, shape: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((branches, *shape.shape), shape.dtype)
