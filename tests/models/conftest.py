"""Helpers that compare our modules with their torch originals."""

import jax
import numpy as np
import pytest

from dreamjax.convert import pretrained


def same(ours, theirs, tolerance=1e-4):
  """Asserts that trees of arrays agree up to `tolerance` times the maximum of each array."""
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
    name = jax.tree_util.keystr(path)
    # The bias of a key adds the same to all logits of a query, so its gradient is zero but for rounding.
    scale = 1.0 if name.endswith("key']['bias']") else np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


class Twin:
  """A torch model with random parameters, and our module with the same parameters."""

  def __init__(self, original, folder):
    import torch

    for parameter in original.parameters():
      parameter.data += 0.1 * torch.randn(parameter.shape)
    self.original, self.folder = original.eval(), folder
    self.module, self.params = self._through_a_checkpoint("weights")

  def _through_a_checkpoint(self, name):
    self.original.save_pretrained(self.folder / name)
    return pretrained.load(self.folder / name)

  def gradients(self, loss):
    """Returns the gradients of a torch loss as a tree of ours, converted as parameters are."""
    loss.backward()
    for parameter in self.original.parameters():
      parameter.data = parameter.grad
    return self._through_a_checkpoint("gradients")[1]


@pytest.fixture
def twin(tmp_path):
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)  # the test builds the original
  return lambda original: Twin(original, tmp_path)


@pytest.fixture
def draw():
  """Samples variables of a module, with numpy, since XLA takes long to compile many samplings."""

  def draw(module, *inputs):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes)

  return draw


@pytest.fixture
def assert_same():
  return same
