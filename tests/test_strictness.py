"""The settings of conftest.py are in force."""

import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from dreamjax import diffusion

HOOKED = """
from flax import struct
from jaxtyping import Array, Float

@struct.dataclass
class Point:
  x: Float[Array, "b"]

def add(x: Float[Array, "b"], y: Float[Array, "b"]) -> Float[Array, "b"]:
  return x + y
"""


def test_there_are_eight_devices():
  assert len(jax.devices("cpu")) == 8


def test_nothing_is_promoted_silently():
  with pytest.raises(ValueError, match="dtype promotion"):
    jnp.ones(2, jnp.int32) + jnp.ones(2, jnp.float32)
  with pytest.raises(ValueError, match="rank_promotion"):
    jnp.ones((3, 2)) + jnp.ones(2)


def test_keys_are_typed():
  with pytest.raises(ValueError, match="jax.random.key"):
    jax.random.normal(jax.random.PRNGKey(0))


def test_warnings_are_errors():
  with pytest.raises(UserWarning, match="look out"):
    warnings.warn("look out", stacklevel=1)


def test_shapes_are_checked_in_dreamjax():
  assert type(diffusion.__spec__.loader).__module__.startswith("jaxtyping.")


def test_functions_are_checked_and_pytrees_stay_pytrees(tmp_path, monkeypatch, typechecker):
  (tmp_path / "hooked.py").write_text(HOOKED)
  monkeypatch.syspath_prepend(tmp_path)
  with jaxtyping.install_import_hook("hooked", typechecker):
    import hooked

  assert hooked.add(jnp.ones(2), jnp.ones(2)).shape == (2,)
  with pytest.raises(jaxtyping.TypeCheckError):
    hooked.add(jnp.ones(2), jnp.ones(3))

  point = hooked.Point(jnp.ones(2))
  assert jax.eval_shape(lambda p: p, point).x.shape == (2,)
  assert jax.tree.map(lambda x: "data", point).x == "data"
