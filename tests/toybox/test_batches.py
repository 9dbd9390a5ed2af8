import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.toybox import batches


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("size", [1, 3, batches._AT_ONCE + 1])
def test_each_result_is_the_function_of_its_element(monkeypatch, backend, size):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  x = jnp.linspace(-1.0, 1.0, size * 4).reshape(size, 4)
  made = batches.one_by_one(lambda row: {"sum": row.sum(), "sine": jnp.sin(row)}, x)
  np.testing.assert_allclose(made["sum"], np.asarray(x).sum(axis=1), atol=1e-6)
  np.testing.assert_allclose(made["sine"], np.sin(x), atol=1e-6)
