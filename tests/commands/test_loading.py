"""How commands load a generator: where and in which dtype its parameters are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import generators, theta
from dreamjax.commands import devices
from dreamjax.parallel.sharding import make_mesh


@pytest.mark.parametrize("name", ["toybox-cascade", "toybox-muse"])
def test_in_bfloat16_kernels_take_half_and_are_hashed_as_they_were_read(name):
  hasher = theta.Hasher()
  generator, half = devices.load(name, make_mesh((1, 1, 1)), dtype="bfloat16", hasher=hasher)
  _, params = generators.load(name)
  assert hasher.hashes() == generator.base(params).hashes != generator.base(half).hashes
  for found, read in zip(jax.tree.leaves(half), jax.tree.leaves(params), strict=True):
    assert found.dtype == (jnp.bfloat16 if read.ndim > 1 else jnp.float32)
    np.testing.assert_allclose(np.asarray(found, np.float32), read, rtol=2**-8)
  sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (half, params)]
  assert sizes[0] < 0.51 * sizes[1]
