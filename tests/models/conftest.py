"""Torch originals beside our modules."""

import jax
import numpy as np
import pytest

from dreamjax.convert import pretrained


def same(ours, theirs, tolerance=1e-4):
  """Asserts that trees of arrays agree up to `tolerance` of each one's greatest number."""
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
    name = jax.tree_util.keystr(path)
    # A key's bias moves all logits of a query alike, so its gradient is zero but for rounding.
    greatest = 1.0 if name.endswith("key']['bias']") else np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * greatest, err_msg=name)


class Twin:
  """A torch model, all its parameters random, and our module with the same ones."""

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
    """Those of a torch loss, as our tree: they go the way of the parameters."""
    loss.backward()
    for parameter in self.original.parameters():
      parameter.data = parameter.grad
    return self._through_a_checkpoint("gradients")[1]


@pytest.fixture
def twin(tmp_path):
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)  # for the original, which the test builds
  return lambda original: Twin(original, tmp_path)


@pytest.fixture
def draw():
  """Variables that a module may be applied with: drawn by numpy, since XLA takes long to compile many draws."""

  def draw(module, *inputs):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes)

  return draw


@pytest.fixture
def assert_same():
  return same
