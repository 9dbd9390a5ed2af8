"""The programs of a run, described by shapes alone: what `dreamjax plan` compiles before there are devices or weights.

Each method lists its own, by its function `programs`, with the functions that the run itself calls.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from dreamjax.errors import UserError
from dreamjax.generators.branches import group_branches, group_members
from dreamjax.generators.generator import TEXT, Generator, encode_text, image_keys
from dreamjax.models.clip import PromptEncoder
from dreamjax.parallel.sharding import (
  AXES,
  Mesh,
  batch_axes,
  batch_sharding,
  batch_shards,
  make_mesh,
  nearest_batch_sizes,
  param_shardings,
  round_up_batch_size,
)
from dreamjax.train import flops
from dreamjax.train.loop import jit_update
from dreamjax.train.state import TrainState
from dreamjax.train.step import Loss, make_step

# This share of the free memory is counted on: activations are only about in proportion to the batch size, and of a
# program that does not fit, the compiler reports them a tenth too low.
_SURE = 0.85
IMAGES = 8  # that are sampled at once where no config says how many, or so many that each device has one


class Program(NamedTuple):
  """A jitted function of a run.

  Attributes:
    name: for people.
    runs: how often it runs.
    batch_size: of a run.
    fields: of the config, those that add up to `batch_size`, such as {"pool.batch_size": 8}; none where the config
      says nothing.
    parts: over how many devices the batch is sharded.
    accumulation_steps: microbatches of a batch.
    lower: lowers it, to be compiled.
    flops: counts the model's operations on all devices together, without what remat computes twice.
    held: bytes on each device, by name, of what is there while it runs.
    arguments: bytes on each device of those of them that are the program's arguments.
    trees: by the same names, the shapes of what is sharded as `parallel.sharding` says: all but the batch.
  """

  name: str
  runs: int
  batch_size: int
  fields: dict[str, int]
  parts: int
  accumulation_steps: int
  lower: Callable[[], jax.stages.Lowered]
  flops: Callable[[], float]
  held: dict[str, int]
  arguments: int
  trees: dict[str, Any]


def fitting(
  program: Program,
  activations: float,
  memory: float,
  devices: Sequence[Any],
  config: ml_collections.ConfigDict,
  make: Callable[[ml_collections.ConfigDict, jax.sharding.Mesh], list[Program]],
) -> tuple[Program, ml_collections.ConfigDict, jax.sharding.Mesh] | None:
  """Looks for what may fit in place of a program that does not: with as large a batch on another mesh, or with less.

  What is held on a mesh is known. What a program needs in addition is taken to be in proportion to the examples on a
  device, which it is about: the compiler has to say the rest. The batch is halved until it fits.

  Args:
    program: one of `make`.
    activations: bytes on each device that it needs in addition to those that are held.
    memory: of a device, in bytes.
    devices: that there are; the program may be for fewer.
    config: by which the program was made.
    make: make(config, mesh) describes the run's programs.

  Returns:
    The program, and the config and the mesh by which it is made, with the largest batch, then with the smallest
    "tensor" axis, then with the most free memory. None if there are none.
  """
  per_row = (activations + program.held["batch"]) * program.parts / program.batch_size
  found = []
  for shape in _shapes(len(devices)):
    other = jax.sharding.AbstractMesh(shape, AXES)
    parts = batch_shards(other)
    unit = parts * program.accumulation_steps
    free = _SURE * (memory - sum(held(placed(tree, other)) for tree in program.trees.values()))
    most = program.batch_size // unit * unit if program.fields else round_up_batch_size(IMAGES, other)
    size = most
    while size and per_row * size / parts > free:
      size = size // 2 // unit * unit
    if size >= max(len(program.fields), 1) and (program.fields or size == most):
      found.append((size, -other.shape["tensor"], free, shape))
  for size, *_, shape in sorted(found, reverse=True):
    changed = _resized(config, program.fields, size)
    try:
      other = make_mesh(shape, devices)
      made = make(changed, other)
    except (NotImplementedError, ValueError):  # of a topology or of another program's batch that is not so divided
      continue
    return next(one for one in made if one.name == program.name), changed, other
  return None


def _shapes(size: int) -> list[tuple[int, int, int]]:
  """The shapes of all meshes of so many devices."""
  sizes = [i for i in range(1, size + 1) if size % i == 0]
  return [(size // (fsdp * tensor), fsdp, tensor) for fsdp in sizes for tensor in sizes if size % (fsdp * tensor) == 0]


def _resized(config: ml_collections.ConfigDict, fields: dict[str, int], size: int) -> ml_collections.ConfigDict:
  """A config of which these fields, if any, add up to a batch size, in proportion and each at least 1."""
  total, changed = sum(fields.values()), {}
  for others, (field, value) in zip(reversed(range(len(fields))), fields.items(), strict=True):
    changed[field] = min(max(round(size * value / total), 1), size - others)
    size, total = size - changed[field], total - value
  new = config.copy_and_resolve_references()
  new.update_from_flattened_dict(changed)
  return new


def held(tree: Any) -> int:
  """Returns the bytes of a tree of shapes that are on each device."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * _width(leaf.dtype) for leaf in leaves)


def _width(dtype: Any) -> int:
  return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def placed(tree: Any, mesh: Mesh) -> Any:
  """Returns shapes that are sharded as `parallel.sharding` says."""
  return jax.tree.map(_at, tree, param_shardings(tree, mesh))


def _at(shape: Any, sharding: jax.NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


class Planner(NamedTuple):
  """Builds programs on a mesh, whose devices need not be there.

  Attributes:
    generator: as it computes in the run.
    params: the shapes of its parameters, see `placed`.
    mesh: of devices.
  """

  generator: Generator
  params: Any
  mesh: jax.sharding.Mesh

  def update(
    self,
    name: str,
    runs: int,
    fields: dict[str, int],
    objective: tuple[Loss, optax.GradientTransformation],
    plain: Loss,
    theta: Any,
    frozen: Any,
    batch: Any,
    accumulation_steps: int = 1,
    resident: Any = (),
  ) -> Program:
    """Describes the update of a training.

    Args:
      name: for people.
      runs: how many updates there are.
      fields: see `Program`.
      objective: the loss, and the optimizer.
      plain: the loss where nothing is computed twice.
      theta: the shapes of what is trained.
      frozen: those of what the loss reads besides.
      batch: those of a batch.
      accumulation_steps: see `Program`.
      resident: those of other parameters that are on the devices meanwhile.
    """
    loss, tx = objective
    step = self.replicated(jax.ShapeDtypeStruct((), jnp.int32))
    state = TrainState(step, theta, None, placed(jax.eval_shape(tx.init, theta), self.mesh))
    batch = self.sharded(batch)
    function = jit_update(make_step(loss, tx, 0, accumulation_steps, unroll=False), state, self.mesh)
    trees = {"parameters": (frozen, resident), "theta": theta, "optimizer": state.opt_state}
    count = lambda: flops.count(jax.grad(plain, has_aux=True), theta, frozen, batch, jax.random.key(0))  # noqa: E731
    args = state, frozen, batch
    return self._program(
      name, runs, sum(fields.values()), fields, accumulation_steps, function, args, args, batch, trees, count
    )

  def sampling(
    self,
    name: str,
    runs: int,
    fields: dict[str, int],
    thetas: Mapping[str, Any] | None = None,
    samplings: tuple[Any, ...] | None = None,
  ) -> Program:
    """Describes the sampling of a batch of images, with the thetas of one personalisation or without any.

    Args:
      name: for people.
      runs: how many batches there are.
      fields: see `Program`.
      thetas: their shapes, by the names of parts.
      samplings: of each stage; by default each stage's own.
    """
    generator, size = self.generator, self.batch_size(fields)
    samplings = samplings or tuple(stage.sampling for stage in generator.stages)
    stages, text, thetas = generator.stages[: len(samplings)], self.text(size), thetas or {}
    groups, weights = [], []
    for stage, sampling in zip(stages, samplings, strict=True):
      guidance = sampling.branches(1 if thetas else 0, 0.0)

      def group(params: Any, theta: Any, stage: Any = stage, guidance: Any = guidance) -> Any:
        return group_branches(guidance, [theta], stage, params).groups

      own = self.shapes(group, self.params[stage.name], thetas.get(stage.name))
      counts = [len(x) for x in group_members(guidance, [thetas.get(stage.name)])]
      stacked = lambda x, k: jax.ShapeDtypeStruct((k, *x.shape), x.dtype)  # noqa: E731
      texts = [jax.tree.map(functools.partial(stacked, k=k), text) for k in counts]
      groups.append(tuple(g.replace(text=self.sharded(t, axis=1)) for g, t in zip(own, texts, strict=True)))
      weights.append(self.replicated(jax.ShapeDtypeStruct(guidance.weights.shape, jnp.float32)))
    args = tuple(groups), tuple(weights), generator.decoder_params(self.params), self.keys(size)
    function = jax.jit(functools.partial(generator.generate, stages, samplings))
    trees, batch = {"parameters": self.params, "theta": thetas}, ([g.text for own in groups for g in own], args[-1])
    count = lambda: flops.count(function, *args)  # noqa: E731
    return self._program(name, runs, size, fields, 1, function, args, args, batch, trees, count)

  def _program(
    self, name: str, runs: int, size: int, fields: dict[str, int], accumulation_steps: int, function: Any, called: Any,
    args: Any, batch: Any, trees: dict[str, Any], count: Callable[[], float],
  ) -> Program:  # fmt: skip
    def lower() -> jax.stages.Lowered:
      with jax.set_mesh(self.mesh):
        return function.lower(*called)

    sizes = {**{name: held(tree) for name, tree in trees.items()}, "batch": held(batch)}
    parts = batch_shards(self.mesh)
    return Program(name, runs, size, fields, parts, accumulation_steps, lower, count, sizes, held(args), trees)

  def shapes(self, function: Callable[..., Any], *args: Any) -> Any:
    """Returns the shapes of what a function of shapes returns, `placed`."""
    return placed(jax.eval_shape(function, *args), self.mesh)

  def batch_size(self, fields: dict[str, int]) -> int:
    """Returns how many images are sampled at once: as in a run, so many that they can be divided."""
    return round_up_batch_size(sum(fields.values()) or IMAGES, self.mesh)

  def check(self, name: str, fields: dict[str, int]) -> int:
    """Returns the batch size of an update, to which fields of the config add up; ValueError if it cannot be divided."""
    count = sum(fields.values())
    if near := nearest_batch_sizes(count, self.mesh):
      summands = " + ".join(f"--config.{field}={value}" for field, value in fields.items())
      where = f"the {batch_shards(self.mesh)} devices along {' and '.join(batch_axes(self.mesh))}"
      raise UserError(
        f"{name}: batches of {count} examples ({summands}) cannot be divided over {where}, but of {near} they can"
      )
    return count

  def sharded(self, tree: Any, axis: int = 0) -> Any:
    """Returns shapes whose examples, along this axis, are sharded."""
    return jax.tree.map(lambda x: _at(x, batch_sharding(self.mesh, axis)), tree)

  def replicated(self, tree: Any) -> Any:
    """Returns shapes that every device holds whole."""
    return jax.tree.map(lambda x: _at(x, jax.NamedSharding(self.mesh, jax.P())), tree)

  def keys(self, count: int) -> Any:
    """Returns the shape of the keys of so many images."""
    return self.sharded(jax.eval_shape(lambda: image_keys(0, range(count))))

  def ids(self, count: int) -> tuple[Any, Any]:
    """Returns the shapes of so many prompts' token ids and masks."""
    encoder, length = self.generator.text_encoder, self.generator.tokenizer.length
    towers = (len(encoder.towers),) if isinstance(encoder, PromptEncoder) else ()
    return (
      jax.ShapeDtypeStruct((count, *towers, length), jnp.int32),
      jax.ShapeDtypeStruct((count, length), jnp.bool),
    )

  def text(self, count: int) -> Any:
    """Returns the shapes of so many encoded prompts."""
    encode = functools.partial(encode_text, self.generator.text_encoder)
    return jax.eval_shape(encode, self.params[TEXT], None, *self.ids(count))
