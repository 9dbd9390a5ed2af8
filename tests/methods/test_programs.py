"""What a run computes, from shapes alone: the same programs as a run's, and their sizes."""

import functools

import jax
import numpy as np
import pytest

from dreamjax.generators import published
from dreamjax.generators.conditioning import Text
from dreamjax.methods import dreambooth, programs, styledrop
from dreamjax.parallel import sharding
from dreamjax.parallel.sharding import make_mesh, shard_params
from dreamjax.train.optimizer import make_optimizer
from dreamjax.train.state import TrainState


def shapes(params):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def sized(tree):
  return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))


def test_a_run_of_dreambooth_is_known_program_by_program(tiny_cascade):
  generator, params = tiny_cascade
  config = dreambooth.default_config()
  mesh = make_mesh((2, 2, 2))
  base, sr, prior, sample = dreambooth.programs(generator, shapes(params), config, mesh)
  assert [p.name for p in (base, sr, prior, sample)] == ["base: update", "sr: update", "prior", "sample"]
  assert [(p.runs, p.batch_size) for p in (base, sr, prior, sample)] == [(1000, 8), (1000, 8), (25, 8), (1, 8)]
  theta = dreambooth.first_theta(generator, params, generator.stages[0], config, ())
  tx = make_optimizer(config.stages.base.optimizer, theta, 1000)
  state = TrainState.create(theta, tx, None, mesh)
  assert base.held["theta"] == sized(state.theta) and base.held["optimizer"] == sized(state.opt_state)
  own = sized(shard_params(params["base"], mesh))
  assert base.held["parameters"] == own < prior.held["parameters"]  # the text encoder is not on the devices
  lowered = base.lower()
  count = lowered.cost_analysis()["flops"]
  assert 0.7 < base.flops() / count < 1.1  # what is not a product is not the model's


def test_what_remat_computes_twice_is_not_the_models(tiny_cascade):
  generator, params = tiny_cascade
  config, remats = dreambooth.default_config(), dreambooth.default_config()
  remats.remat = "all"
  plain, again = (
    dreambooth.programs(generator, shapes(params), changed, make_mesh((1, 1, 1)))[0] for changed in (config, remats)
  )
  assert plain.flops() == again.flops()
  assert again.lower().cost_analysis()["flops"] > 1.1 * plain.lower().cost_analysis()["flops"]


def test_a_run_of_styledrop_is_known_program_by_program(tiny_masked):
  generator, params = tiny_masked
  config = styledrop.default_config()
  found = styledrop.programs(generator, shapes(params), config, make_mesh((1, 1, 1)))
  assert [p.name for p in found] == [
    "round 1, base: update", "round 1, sr: update", "pool", "round 2, base: update", "round 2, sr: update", "sample",
  ]  # fmt: skip
  assert [p.runs for p in found] == [1000, 1000, 30 * 64 // 8, 1000, 1000, 1]
  assert all(p.flops() > 0 for p in found)
  found[0].lower(), found[2].lower()
  config.second.sr.steps = 0  # the first round's stays, and is as large as the second's
  fewer = styledrop.programs(generator, shapes(params), config, make_mesh((1, 1, 1)))
  assert [p.name for p in fewer] == [p.name for p in found if p.name != "round 2, sr: update"]
  assert fewer[-1].held == found[-1].held


@pytest.mark.parametrize(
  ("name", "millions"),
  [("if-xl", 4762.3 + 4304.7 + 1239.4), ("sd15", 123.1 + 859.5 + 83.7), ("sdxl", 123.1 + 694.7 + 2567.5 + 83.7)],
)
def test_published_generators_are_described_in_full_size(name, millions):
  generator, params = published.describe(name)
  count = sum(np.prod(x.shape) for x in jax.tree.leaves(params))
  assert count / 1e6 == pytest.approx(millions, abs=0.2)
  assert generator.name == name


@pytest.mark.parametrize(("name", "adapters"), [("muse-3b", 229_760), ("amused512", None)])
def test_masked_generators_are_described_in_full_size(name, adapters):
  generator, params = published.describe(name)
  stage, settings = generator.stages[0], styledrop.default_stage(4, True, 1e-3)
  text = Text(np.zeros((1, 2, 8), np.float32), np.ones((1, 2), bool))
  first = functools.partial(styledrop.first_theta, stage, text=text, settings=settings, seed=0)
  theta = jax.eval_shape(first, params[stage.name]["transformer"])
  if adapters is not None:  # the paper's number
    assert sum(x.size for x in jax.tree.leaves(theta)) == adapters


def test_what_is_not_published_is_refused():
  with pytest.raises(ValueError, match="nothing is known of the sizes of 'sd3'; there are: if-xl, sd15"):
    published.describe("sd3")


def test_what_cannot_be_planned_is_refused(tiny_cascade):
  generator, params = tiny_cascade
  with pytest.raises(ValueError, match="the config is none of DreamBooth, by which tiny is personalised"):
    dreambooth.programs(generator, shapes(params), styledrop.default_config(), make_mesh((1, 1, 1)))
  config = dreambooth.default_config()
  config.stages.base.batch_size = 3
  told = r"\(--config.stages.base.batch_size=3 \+ --config.stages.base.prior_batch_size=4\)"
  over = r"cannot be divided over the {} devices along data and fsdp, but of {} they can"
  for devices, sizes in ((8, "8"), (4, "4 or 8")):
    with pytest.raises(ValueError, match=f"base: update: batches of 7 examples {told} {over.format(devices, sizes)}$"):
      dreambooth.programs(generator, shapes(params), config, make_mesh((1, devices, 1)))
  config = dreambooth.default_config()
  config.prior.batch_size = 9  # drawings are as many more as can be divided
  assert [x.batch_size for x in dreambooth.programs(generator, shapes(params), config, make_mesh((2, 1, 1)))] == [
    8,
    8,
    10,
    8,
  ]


def test_the_rows_of_styledrop_are_said_by_the_stages_round(tiny_masked):
  generator, params = tiny_masked
  config = styledrop.default_config()
  config.second.sr.batch_size = 6
  with pytest.raises(
    ValueError, match=r"round 2, sr: update: .*\(--config.second.sr.batch_size=6\) .* of 4 or 8 they can"
  ):
    styledrop.programs(generator, shapes(params), config, make_mesh((4, 1, 1)))


def test_what_a_program_is_given_lies_there(tiny_cascade):
  generator, params = tiny_cascade
  for program in dreambooth.programs(generator, shapes(params), dreambooth.default_config(), make_mesh((1, 1, 1))):
    assert program.arguments == sum(
      np.prod(x.shape, dtype=int) * (8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize)
      for x in jax.tree.leaves(program.lower().args_info)
    )


def test_a_mesh_is_found_that_holds_what_another_does_not(tiny_cascade, monkeypatch):
  generator, params = tiny_cascade
  monkeypatch.setattr(sharding, "_MIN_SHARDED", 0)
  made_from, devices = dreambooth.default_config(), jax.devices()
  make = functools.partial(dreambooth.programs, generator, shapes(params))
  whole = make(made_from, make_mesh((8, 1, 1)))[0]
  memory = 0.5 * sum(whole.held.values())
  program, config, mesh = programs.fitting(whole, 0.0, memory, devices, made_from, make)
  assert program.name == whole.name and program.batch_size == whole.batch_size == 8
  assert config.to_dict() == made_from.to_dict() and dict(mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}
  assert sum(program.held.values()) < 0.25 * sum(whole.held.values())
  # No other update can be divided over a mesh which its rows do not fill: it is on fewer devices.
  made_from.stages.sr.batch_size = made_from.stages.sr.prior_batch_size = 1
  assert dict(programs.fitting(whole, 0.0, memory, devices, made_from, make)[2].shape) == {
    "data": 1, "fsdp": 2, "tensor": 4,
  }  # fmt: skip


def test_a_batch_is_halved_until_there_is_room(tiny_cascade):
  generator, params = tiny_cascade
  config = dreambooth.default_config()
  config.stages.base.batch_size, config.stages.base.prior_batch_size, config.stages.base.accumulation_steps = 12, 4, 2
  made_of, mesh = (jax.devices()[:1], config), make_mesh((1, 1, 1))
  make = functools.partial(dreambooth.programs, generator, shapes(params))
  whole = make(config, mesh)[0]
  held = sum(whole.held.values())
  program, changed, _ = programs.fitting(whole, 1600 * held, held + 600 * held, *made_of, make)
  assert program.batch_size == 4 and program.fields == {"stages.base.batch_size": 3, "stages.base.prior_batch_size": 1}
  assert (changed.stages.base.batch_size, changed.stages.base.prior_batch_size) == (
    3,
    1,
  ) and config.stages.base.batch_size == 12
  sample = make(config, mesh)[-1]
  for program, memory in ((whole, held), (whole, held + 100 * held), (sample, held + 600 * held)):
    assert programs.fitting(program, 1600 * held, memory, *made_of, make) is None
