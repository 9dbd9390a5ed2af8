"""Small modules to personalise, and thetas that change something."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest


class ConvNet(nn.Module):
  """A Conv of each sort and a Dense. That one is called "down" must not confuse anybody."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(6, (3, 3), padding=1, dtype=self.dtype, name="conv_in")(x)
    x = nn.GroupNorm(2, name="norm")(nn.gelu(x).astype(jnp.float32))
    x = nn.Conv(8, (3, 3), (2, 2), padding=((0, 1), (0, 1)), dtype=self.dtype, name="down")(x)
    x = nn.Conv(8, (1, 1), use_bias=False, dtype=self.dtype, name="point")(x)
    x = nn.Conv(8, (3, 1), kernel_dilation=2, dtype=self.dtype, name="dilated")(x)
    return nn.Dense(5, dtype=self.dtype, name="out")(x)


class Block(nn.Module):
  """A layer of `Scanned`, that may be rematerialised."""

  @nn.compact
  def __call__(self, x, _):
    h = nn.Conv(x.shape[-1], (3, 3), name="conv")(x)
    return x + nn.Dense(x.shape[-1], name="dense")(nn.gelu(h)), None


class Scanned(nn.Module):
  """Three equal blocks in one `nn.scan`."""

  is_remat: bool = False
  collections: tuple = (True,)

  @nn.compact
  def __call__(self, x):
    block = nn.remat(Block) if self.is_remat else Block
    axes = dict.fromkeys(self.collections, 0)
    scan = nn.scan(block, variable_axes=axes, split_rngs={"params": True}, length=3)
    return scan(name="blocks")(x, None)[0]


@pytest.fixture(scope="session")
def make():
  """Turns a module class and its fields into a module, its parameters and an input."""

  def make(kind, **fields):
    module = {"convnet": ConvNet, "scanned": Scanned}[kind](**fields)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    return module, params, jnp.asarray(x)

  return make


@pytest.fixture(scope="session")
def moved():
  """A theta, moved from where it began."""

  def moved(theta, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape, np.float32), theta)

  return moved
