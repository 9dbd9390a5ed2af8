"""Programs for TPUs that are not there: their operations, their loops and what their devices send each other."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models.attention import attend
from dreamjax.parallel.sharding import make_mesh
from dreamjax.train import flops, topologies


@pytest.fixture(autouse=True)
def flags(monkeypatch):
  """libtpu stops at flags for CPUs that it does not know; JAX has read them by now."""
  jax.devices()
  monkeypatch.delenv("XLA_FLAGS", raising=False)


@pytest.mark.parametrize(
  ("x", "kernel", "options"),
  [
    ((2, 8, 8, 3), (3, 3, 3, 5), {"window_strides": (1, 1), "padding": "SAME"}),
    ((2, 8, 8, 3), (3, 3, 3, 5), {"window_strides": (2, 2), "padding": "VALID"}),
    ((1, 5, 5, 4), (3, 3, 1, 8), {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 4}),
    ((1, 4, 4, 2), (3, 3, 2, 2), {"window_strides": (1, 1), "padding": ((2, 2), (2, 2)), "lhs_dilation": (2, 2)}),
  ],
)
def test_operations_of_convolutions_are_those_that_xla_counts(x, kernel, options):
  numbers = jax.lax.conv_dimension_numbers(x, kernel, ("NHWC", "HWIO", "NHWC"))

  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **options)

  args = jax.ShapeDtypeStruct(x, jnp.float32), jax.ShapeDtypeStruct(kernel, jnp.float32)
  for function in (convolve, jax.value_and_grad(lambda *args: convolve(*args).sum(), argnums=(0, 1))):
    lowered = jax.jit(function).lower(*args)
    theirs = lowered.cost_analysis()["flops"]
    ours = flops.count(function, *args)
    assert ours <= theirs * 1.001 and ours == pytest.approx(theirs, rel=0.05)


def test_operations_in_loops_and_branches_are_counted_as_often_as_they_are_done():
  x = jnp.ones((8, 8))

  def loop(x):
    return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=5)[0]

  def branch(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  def choice(x):
    return jax.lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)

  once = 2 * 8**3
  assert flops.count(loop, x) == 5 * once
  assert flops.count(branch, x) == 2 * once
  assert flops.count(choice, x) == once
  assert flops.count(jax.jit(jax.grad(lambda x: (x @ x).sum())), x) == 3 * once
  assert flops.count(jax.grad(lambda x: jax.checkpoint(loop)(x).sum()), x) == (5 + 5 + 10) * once
  with pytest.raises(ValueError, match="how often a while loop runs"):
    flops.count(lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x), x)


def test_what_is_no_topology_is_refused():
  with pytest.raises(ValueError, match="nothing is known of the chip 'v99' of 'v99:4x4'; there are: v4, v5e, v5p, v6e"):
    topologies.chip("v99:4x4")
  with pytest.raises(ValueError, match="'v5e' is not a chip and a number of chips along each axis, such as v5e:4x4"):
    topologies.devices("v5e")
  if importlib.util.find_spec("libtpu") is None:
    with pytest.raises(ValueError, match=r"pip install 'dreamjax\[plan\]'"):
      topologies.devices("v5e:2x2")


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_a_device_is_a_chip_with_its_memory(name):
  pytest.importorskip("libtpu")
  found = topologies.devices(name)
  assert len(found) == 4
  place = jax.NamedSharding(make_mesh((1, 1, 1), found), jax.P())
  x = jax.ShapeDtypeStruct((2**36,), jnp.float32, sharding=place)  # 256 GiB
  with pytest.raises(jax.errors.JaxRuntimeError) as error:
    topologies.load(jax.jit(lambda x: x * 2).lower(x))
  assert topologies.exceeded(error.value) == 512 * topologies.GIB
  memory = topologies.chip(name).memory / topologies.GIB
  assert f"available HBM ({memory:.2f}G)" in str(error.value)


def test_a_topology_with_more_devices_than_chips_is_refused(monkeypatch):
  pytest.importorskip("libtpu")
  monkeypatch.setattr(topologies, "_OPTIONS", {})
  with pytest.raises(ValueError, match="makes 8 devices of the 4 chips of 'v4:2x2x1'"):
    topologies.devices("v4:2x2x1")


@pytest.mark.parametrize(
  ("problem", "needed"),
  [
    ("Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded by 4.75G.", 20.5 * 2**30),
    ("Ran out of memory in memory space hbm. Used 900.0M of 512.0K hbm.", 900 * 2**20),
    (
      "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries (24.00G) "
      "exceeds available HBM (15.75G). HLO module: jit_step.",
      24 * 2**30,
    ),
    ("the total memory required for HLO temporaries (1.50T) exceeds available HBM (95.73G)", 1.5 * 2**40),
  ],
)
def test_how_much_was_needed_is_read_from_the_compilers_error(problem, needed):
  assert topologies.exceeded(RuntimeError(f"RESOURCE_EXHAUSTED: {problem}")) == needed


def test_what_is_not_for_want_of_room_is_raised_again():
  with pytest.raises(RuntimeError, match="else"):
    topologies.exceeded(RuntimeError("something else"))


def test_a_program_for_a_tpu_is_weighed():
  pytest.importorskip("libtpu")
  mesh = make_mesh((1, 4, 1), topologies.devices("v5e:2x2"))

  def run(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=10)[0]

  rows = jax.ShapeDtypeStruct((512, 1024), jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P("fsdp")))
  kernel = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P("fsdp")))
  load = topologies.load(jax.jit(run).lower(rows, kernel))
  assert load.arguments == 2 * (512 + 1024) * 1024 / 4 and load.results == 2 * 512 * 1024 / 4
  np.testing.assert_allclose(load.flops, flops.count(run, rows, kernel) / 4, rtol=0.01)
  # The kernel is gathered once, or as often as it is used.
  gathered = load.sent["all-gather"] / (0.75 * 2 * 1024**2)
  assert load.sent.keys() == {"all-gather"} and gathered in (1, 10)
  assert load.seconds(topologies.chip("v5e:2x2"))["compute"] == load.flops / 197e12


def test_of_attention_between_many_places_nothing_large_lies_in_memory():
  pytest.importorskip("libtpu")
  mesh = make_mesh((1, 4, 1), topologies.devices("v5e:2x2"))
  x = jax.ShapeDtypeStruct((8, 4096, 8, 40), jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P("fsdp")))
  gradient = jax.grad(lambda *x: attend(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))
  with jax.set_mesh(mesh):
    blocks = topologies.load(jax.jit(gradient).lower(x, x, x))
  whole = topologies.load(jax.jit(gradient).lower(x, x, x))
  assert blocks.temporaries < 0.05 * whole.temporaries and blocks.traffic < 0.2 * whole.traffic
  np.testing.assert_allclose(blocks.flops / flops.count(gradient, x, x, x), 7 / 6 / 4, rtol=0.02)


def test_attentions_kernels_leave_half_of_their_room_on_the_chip():
  """Where its operands lie on the chip already, as in an update of Stable Diffusion, a kernel needs more than alone."""
  pytest.importorskip("libtpu")
  mesh = make_mesh((1, 1, 1), topologies.devices("v5e:2x2"))
  half = {"xla_tpu_scoped_vmem_limit_kib": "8192"}
  for dtype in (jnp.bfloat16, jnp.float32):
    x = jax.ShapeDtypeStruct((2, 4096, 8, 40), dtype, sharding=jax.NamedSharding(mesh, jax.P()))
    gradient = jax.grad(lambda *x: attend(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    with jax.set_mesh(mesh):
      jax.jit(gradient).lower(x, x, x).compile(compiler_options=half)
