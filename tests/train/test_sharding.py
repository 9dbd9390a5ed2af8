"""Meshes, and what lies where on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.train.sharding import make_mesh, replicate, shard_rows
from dreamjax.train.step import in_pieces


def test_a_mesh_holds_all_devices_or_the_first():
  assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
  assert dict(make_mesh((2, -1, 2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert make_mesh((1, 1, 1)).devices.ravel().tolist() == jax.devices()[:1]


@pytest.mark.parametrize("shape", [(-1, 1, 3), (16, 1, 1)])
def test_a_mesh_that_the_devices_do_not_fill_is_refused(shape):
  with pytest.raises(ValueError, match="8"):
    make_mesh(shape)


def test_the_state_is_whole_everywhere_and_a_batch_is_spread():
  mesh = make_mesh((2, 2, 2))
  assert {shard.data.shape for shard in replicate(np.ones((8, 3)), mesh).addressable_shards} == {(8, 3)}
  rows = shard_rows({"x": np.arange(8)}, mesh)["x"]
  assert [shard.data.tolist() for shard in rows.addressable_shards[::2]] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("x", [np.ones((6, 2)), np.ones(())])
def test_rows_that_cannot_be_divided_are_refused(x):
  with pytest.raises(ValueError, match="evenly over 4 devices: 'images/x' has the shape"):
    shard_rows({"images": {"x": x}}, make_mesh((2, 2, 2)))


def test_rows_stay_where_they_are_when_a_batch_is_taken_in_pieces():
  mesh = make_mesh()
  gradient = in_pieces(jax.grad(lambda w, frozen, x, key: jnp.mean((x @ w) ** 2)), 4)
  inputs = replicate(np.ones((3, 2), np.float32), mesh), None, shard_rows(np.ones((32, 3), np.float32), mesh)
  compiled = jax.jit(gradient).lower(*inputs, jax.random.key(0)).compile().as_text()
  assert "all-reduce" in compiled  # of the gradient, which is all that need travel
  assert not [name for name in ("all-gather", "all-to-all", "collective-permute") if name in compiled]
