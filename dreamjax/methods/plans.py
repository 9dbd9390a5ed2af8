"""What a run computes, program by program, from shapes alone: for a plan of it before there are devices or weights."""

from collections.abc import Callable, Iterator, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from dreamjax.data.photos import Batch
from dreamjax.generators import cascade as cascades
from dreamjax.generators import masked
from dreamjax.generators.cascade import AUTOENCODER, Cascade, Sampling, Stage
from dreamjax.generators.generator import TEXT, encode_text, image_keys, with_compute
from dreamjax.generators.masked import Masked, TokenStage
from dreamjax.methods import dreambooth, styledrop
from dreamjax.methods.masking import TokenBatch
from dreamjax.models.clip import PromptEncoder
from dreamjax.parallel.sharding import (
  AXES,
  Mesh,
  batch_sharding,
  batch_shards,
  make_mesh,
  nearest_batch_sizes,
  param_shardings,
  round_up_batch_size,
)
from dreamjax.theta import Full, StackedThetas
from dreamjax.train import flops
from dreamjax.train.loop import jit_update
from dreamjax.train.state import TrainState
from dreamjax.train.step import Loss, make_step

# So much of the room is taken: activations are only about in proportion to rows, and of a program for which it has no
# room, the compiler tells them a tenth too low.
_SURE = 0.85
IMAGES = 8  # that are drawn at once where no config says how many, or so many that each device has one


class Program(NamedTuple):
  """A jitted function of a run.

  Attributes:
    name: for people.
    runs: how often it runs.
    rows: images in a batch.
    fields: of the config, those that add up to `rows`, such as {"pool.batch_size": 8}; none where the config says nothing.
    parts: over how many devices they are spread.
    pieces: in how many a batch is taken, one after the other.
    lower: makes of it what can be compiled.
    flops: counts the operations that it asks for on all devices together, without what remat computes twice.
    held: bytes on each device, by name, of what lies there while it runs.
    arguments: bytes on each device of what of that is the program's own.
    trees: by the same names, the shapes of what is spread as `parallel.sharding` says: all but the batch.
  """

  name: str
  runs: int
  rows: int
  fields: dict[str, int]
  parts: int
  pieces: int
  lower: Callable[[], jax.stages.Lowered]
  flops: Callable[[], float]
  held: dict[str, int]
  arguments: int
  trees: dict[str, Any]


def programs(
  generator: Cascade | Masked, params: Any, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> list[Program]:
  """The updates and the drawings of a run of DreamBooth or StyleDrop.

  Not those that take no time beside them: texts and images are read once, by the text encoder and what makes latents
  or tokens of images. Of StyleDrop there are both rounds and the pool between them.

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
  generator = with_compute(generator, config.dtype, config.remat, config.scan)
  plan = _Plan(generator, _placed(params, mesh), config, mesh)
  return list(plan.dreambooth() if isinstance(generator, Cascade) else plan.styledrop())


def fitting(
  program: Program,
  activations: float,
  memory: float,
  devices: Sequence[Any],
  generator: Cascade | Masked,
  params: Any,
  config: ml_collections.ConfigDict,
) -> tuple[Program, ml_collections.ConfigDict, jax.sharding.Mesh] | None:
  """What may fit in place of a program that does not: of as many rows on another mesh of all devices, or of half.

  What is held on a mesh is known. What a program needs besides is taken to be in proportion to the rows on a device,
  which it is about: the compiler has to say the rest. Rows are halved until there is room.

  Args:
    program: one of `programs`.
    activations: bytes on each device that it needs besides those that are held.
    memory: of a device, in bytes.
    devices: that there are; the program may be for fewer.
    generator: as for `programs`, which made the program.
    params: as there.
    config: as there.

  Returns:
    The program, and the config and the mesh which make it, with as many rows as possible, then with as little spread
    along "tensor", then with as much room. None if there are none.
  """
  per_row = (activations + program.held["batch"]) * program.parts / program.batch_size
  found = []
  for shape in _shapes(len(devices)):
    other = jax.sharding.AbstractMesh(shape, AXES)
    parts = batch_shards(other)
    unit = parts * program.accumulation_steps
    room = _SURE * (memory - sum(held(_placed(tree, other)) for tree in program.trees.values()))
    most = program.batch_size // unit * unit if program.fields else round_up_batch_size(IMAGES, other)
    rows = most
    while rows and per_row * rows / parts > room:
      rows = rows // 2 // unit * unit
    if rows >= max(len(program.fields), 1) and (program.fields or rows == most):
      found.append((rows, -other.shape["tensor"], room, shape))
  for rows, *_, shape in sorted(found, reverse=True):
    changed = _resized(config, program.fields, rows)
    try:
      other = make_mesh(shape, devices)
      made = programs(generator, params, changed, other)
    except (NotImplementedError, ValueError):  # of a topology or of another program's batch that is not so divided
      continue
    return next(one for one in made if one.name == program.name), changed, other
  return None


def _shapes(size: int) -> list[tuple[int, int, int]]:
  """Of all meshes of so many devices."""
  sizes = [i for i in range(1, size + 1) if size % i == 0]
  return [(size // (fsdp * tensor), fsdp, tensor) for fsdp in sizes for tensor in sizes if size % (fsdp * tensor) == 0]


def _resized(config: ml_collections.ConfigDict, fields: dict[str, int], rows: int) -> ml_collections.ConfigDict:
  """A config of which these fields, if any, add up to so many rows, in proportion and each at least 1."""
  total, changed = sum(fields.values()), {}
  for others, (field, value) in zip(reversed(range(len(fields))), fields.items(), strict=True):
    changed[field] = min(max(round(rows * value / total), 1), rows - others)
    rows, total = rows - changed[field], total - value
  new = config.copy_and_resolve_references()
  new.update_from_flattened_dict(changed)
  return new


def held(tree: Any) -> int:
  """The bytes of a tree of shapes that lie on each device."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * _width(leaf.dtype) for leaf in leaves)


def _sizes(trees: dict[str, Any], batch: Any) -> dict[str, int]:
  return {**{name: held(tree) for name, tree in trees.items()}, "batch": held(batch)}


def _width(dtype: Any) -> int:
  return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def _placed(tree: Any, mesh: Mesh) -> Any:
  """Shapes that lie where `parallel.sharding` says."""
  return jax.tree.map(_at, tree, param_shardings(tree, mesh))


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
    if prior.kind == "images" and any(stage.prior_batch_size for stage in config.stages.values()):
      samplings, fields = dreambooth.prior_samplings(cascade, config), {"prior.batch_size": prior.batch_size}
      runs = math.ceil(prior.count / round_up_batch_size(prior.batch_size, self.mesh))
      yield self._drawing("prior", runs, fields, samplings, {}, {})
    samplings = tuple(stage.sampling for stage in cascade.stages)
    yield self._drawing("sample", 1, {}, samplings, tuned, full)

  def _tuning(self, stage: Stage, settings: ml_collections.ConfigDict) -> tuple[Program, Any]:
    cascade, config = self.generator, self.config
    tokens = (0,)  # an identifier of one token
    theta = self._shaped(lambda params: dreambooth.first_theta(cascade, params, stage, config, tokens), self.params)
    name, fields = f"{stage.name}: update", {f"stages.{stage.name}.batch_size": settings.batch_size}
    if config.prior.kind != "none" and settings.prior_batch_size:
      fields[f"stages.{stage.name}.prior_batch_size"] = settings.prior_batch_size
    count = self._count(name, fields)
    numbers = {"prior": jax.ShapeDtypeStruct((count,), jnp.bool)}
    if config.prior.kind == "frozen":
      numbers["frozen"] = numbers["prior"]
    image = jax.ShapeDtypeStruct((count, stage.image, stage.image, stage.channels), jnp.float32)
    prompt = self._ids(count) if TEXT in theta else self._text(count)
    rows = Batch(image, prompt, jax.ShapeDtypeStruct((count,), jnp.float32), numbers)
    frozen = {name: self.params[name] for name in {stage.name, *theta}}
    plain = with_compute(cascade, config.dtype, remat="none")
    loss, tx = dreambooth.objective(cascade, stage, config, theta)
    once, _ = dreambooth.objective(plain, plain.stage(stage.name), config, theta)
    return self._update(name, fields, settings, loss, once, tx, theta, frozen, rows, settings.accumulation_steps), theta

  def _drawing(
    self, name: str, runs: int, fields: dict[str, int], samplings: tuple[Sampling, ...], tuned: Any, full: Any
  ) -> Program:
    cascade, size = self.generator, self._drawn(fields)
    parts = (*(stage.name for stage in cascade.stages), AUTOENCODER)
    used = {part: self.params[part] for part in parts if part in self.params}
    keys = self._spread(jax.eval_shape(lambda: image_keys(0, range(size))))
    text, null = self._spread(self._text(size)), self._whole(self._text(1))
    args = (used, tuned, text, null, keys)
    trees = {"parameters": self.params, "theta": (tuned, full)}
    drawn = functools.partial(cascades.draw_cascade, cascade.stages, samplings, autoencoder=cascade.autoencoder)
    count = lambda: flops.count(drawn, *args)  # noqa: E731
    lower = self._lowering(cascades.jit_cascade, cascade.stages, samplings, *args, cascade.autoencoder)
    sizes, parts = _sizes(trees, (text, keys)), batch_shards(self.mesh)
    return Program(name, runs, size, fields, parts, 1, lower, count, sizes, held(args), trees)

  def styledrop(self) -> Iterator[Program]:
    generator, config = self.generator, self.config
    text = self._text(1)
    thetas = {}  # the second round's take the place of the first's
    for number, word in enumerate(("first", "second"), 1):
      before = None
      for stage in generator.stages:
        settings = config[word].get(stage.name)
        if settings is not None and settings.steps:
          name, fields = (
            f"round {number}, {stage.name}: update",
            {f"{word}.{stage.name}.batch_size": settings.batch_size},
          )
          program, theta = self._styling(name, fields, stage, before, settings, text)
          thetas |= theta
          yield program
        before = stage
      if number == 1:
        total, size = len(config.pool.prompts) * config.pool.images_per_prompt, config.pool.batch_size
        yield self._decoding(
          "pool", math.ceil(total / round_up_batch_size(size, self.mesh)), {"pool.batch_size": size}, thetas
        )
    yield self._decoding("sample", 1, {}, thetas)

  def _styling(
    self, name: str, fields: dict[str, int], stage: TokenStage, before: TokenStage | None,
    settings: ml_collections.ConfigDict, text: Any,
  ) -> tuple[Program, Any]:  # fmt: skip
    own = self.params[stage.name]["transformer"]

    def first(params: Any, text: Any) -> Any:
      text = text._replace(mask=jnp.ones(text.mask.shape, jnp.bool)) if settings.kind == "prompt" else text
      return {stage.name: styledrop.first_theta(stage, params, text, settings, self.config.seed)}

    theta = self._shaped(first, own, text)
    count = self._count(name, fields)
    ids = lambda one: jax.ShapeDtypeStruct((count, one.transformer.side**2), jnp.int32)  # noqa: E731
    low = None if before is None else ids(before)
    rows = TokenBatch(ids(stage), self._text(count), jax.ShapeDtypeStruct((count,), jnp.float32), low)
    plain = with_compute(self.generator, self.config.dtype, remat="none").stage(stage.name)
    loss, tx = styledrop.objective(stage, settings, theta)
    once, _ = styledrop.objective(plain, settings, theta)
    frozen = {stage.name: {"transformer": own}}
    return self._update(name, fields, settings, loss, once, tx, theta, frozen, rows), theta

  def _decoding(self, name: str, runs: int, fields: dict[str, int], thetas: Any) -> Program:
    stages, size = self.generator.stages, self._drawn(fields)
    decodings = tuple(stage.decoding for stage in stages)
    if any(isinstance(theta, Full) for theta in thetas.values()):
      thetas = {}  # they take the place of the parameters, and are as large
    wish = masked.styled("", thetas) if thetas else masked.plain("")
    asked, weights = zip(*(masked.branch_weights(wish, decoding) for decoding in decodings), strict=True)
    branches, texts = {}, []
    for stage, some in zip(stages, asked, strict=True):
      own = self.params[stage.name]["transformer"]
      of = [(None, None, thetas.get(stage.name))[i] for i in some]
      branches[stage.name] = self._shaped(lambda params, of: StackedThetas.of(params, of), own, of)
      text = self._text(size)
      texts.append(self._spread(jax.tree.map(functools.partial(_wider, len(some)), text), axis=1))
    weights = tuple(self._whole(jax.ShapeDtypeStruct(x.shape, jnp.float32)) for x in weights)
    used = {stage.name: self.params[stage.name] for stage in stages}
    keys = self._spread(jax.eval_shape(lambda: image_keys(0, range(size))))
    args = (used, branches, tuple(texts), weights, keys)
    trees = {"parameters": self.params, "theta": branches}
    count = lambda: flops.count(functools.partial(masked.draw, stages, decodings), *args)  # noqa: E731
    lower = self._lowering(masked.jit_draw, stages, decodings, *args)
    sizes, parts = _sizes(trees, (texts, keys)), batch_shards(self.mesh)
    return Program(name, runs, size, fields, parts, 1, lower, count, sizes, held(args), trees)

  def _update(
    self, name: str, fields: dict[str, int], settings: Any, loss: Loss, once: Loss, tx: Any, theta: Any, frozen: Any,
    rows: Any, pieces: int = 1,
  ) -> Program:  # fmt: skip
    """The update of a training; `once` is the loss where nothing is computed twice."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(self._whole(step), theta, None, _placed(jax.eval_shape(tx.init, theta), self.mesh))
    rows = self._spread(rows)
    update = jit_update(make_step(loss, tx, 0, pieces, unroll=False), state, self.mesh)
    trees = {"parameters": self.params, "theta": theta, "optimizer": state.opt_state}
    count = lambda: flops.count(jax.grad(once, has_aux=True), theta, frozen, rows, jax.random.key(0))  # noqa: E731
    args, size, parts = (state, frozen, rows), sum(fields.values()), batch_shards(self.mesh)
    lower, sizes = self._lowering(update, *args), _sizes(trees, rows)
    return Program(name, settings.steps, size, fields, parts, pieces, lower, count, sizes, held(args), trees)

  def _lowering(self, function: Any, *args: Any) -> Callable[[], jax.stages.Lowered]:
    def lower() -> jax.stages.Lowered:
      with jax.set_mesh(self.mesh):
        return function.lower(*args)

    return lower

  def _shaped(self, function: Callable[..., Any], *args: Any) -> Any:
    return _placed(jax.eval_shape(function, *args), self.mesh)

  def _drawn(self, fields: dict[str, int]) -> int:
    """The images that are drawn at once: as a run has it, so many that they can be divided."""
    return round_up_batch_size(sum(fields.values()) or IMAGES, self.mesh)

  def _count(self, name: str, fields: dict[str, int]) -> int:
    """The rows of an update: what fields of the config add up to; ValueError if they cannot be divided."""
    count = sum(fields.values())
    if near := nearest_batch_sizes(count, self.mesh):
      said = " + ".join(f"--config.{field}={value}" for field, value in fields.items())
      where = f"the {row_parts(self.mesh)} devices along {' and '.join(row_axes(self.mesh))}"
      raise ValueError(
        f"{name}: batches of {count} rows ({said}) cannot be divided over {where}, but of {near} they can"
      )
    return count

  def _spread(self, tree: Any, axis: int = 0) -> Any:
    return jax.tree.map(lambda x: _at(x, batch_sharding(self.mesh, axis)), tree)

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
    return jax.eval_shape(
      functools.partial(encode_text, self.generator.text_encoder), self.params[TEXT], None, ids, mask
    )


def _wider(branches: int, shape: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((branches, *shape.shape), shape.dtype)
