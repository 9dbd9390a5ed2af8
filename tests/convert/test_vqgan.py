"""VQGANs in diffusers' layout: aMUSEd's config is supported, saving and loading is exact, others are errors."""

import inspect
import math

from flax.traverse_util import flatten_dict
import jax
import numpy as np
import pytest

from dreamjax.convert import pretrained, vqgan
from dreamjax.models.vqgan import VQGAN

SMALL = VQGAN(widths=(8, 12), blocks=1, latent=4, embedding=3, codebook=20, groups=4)
# The VQModel config of amused/amused-256.
AMUSED = {
  "_class_name": "VQModel",
  "act_fn": "silu",
  "block_out_channels": [128, 256, 256, 512, 768],
  "down_block_types": ["DownEncoderBlock2D"] * 5,
  "up_block_types": ["UpDecoderBlock2D"] * 5,
  "in_channels": 3,
  "out_channels": 3,
  "latent_channels": 64,
  "layers_per_block": 2,
  "lookup_from_codebook": True,
  "mid_block_add_attention": False,
  "norm_num_groups": 32,
  "norm_type": "group",
  "num_vq_embeddings": 8192,
  "sample_size": 32,
  "vq_embed_dim": None,
}


def shapes(module):
  return jax.eval_shape(module.init, jax.random.key(0), *vqgan.inputs(module))["params"]


@pytest.mark.parametrize("patch", [1, 2])
def test_saving_and_loading_preserves_the_model(tmp_path, patch):
  rng = np.random.default_rng(0)
  module = SMALL.clone(patch=patch)
  params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes(module))
  pretrained.save(tmp_path, module, params, np.float32)
  loaded, weights = pretrained.load(tmp_path)
  assert loaded == module
  jax.tree.map(np.testing.assert_array_equal, weights, params)


def test_every_parameter_of_amused_s_vqgan_is_mapped():
  torch = pytest.importorskip("torch")
  import diffusers

  module = vqgan.read(AMUSED)
  assert module.factor == 16 and module.embedding == 64
  with torch.device("meta"):
    original = diffusers.VQModel.from_config({key: x for key, x in AMUSED.items() if key != "_class_name"})
  theirs = {key: tuple(x.shape) for key, x in original.state_dict().items()}
  ours = shapes(module)
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(ours)) == sum(map(math.prod, theirs.values()))
  sources = vqgan.TABLE.sources(flatten_dict(ours, sep="/"), theirs)
  assert {key for key, _ in sources.values()} == set(theirs)


def test_defaults_equal_those_of_diffusers():
  pytest.importorskip("torch")
  import diffusers

  defaults = inspect.signature(diffusers.VQModel).parameters
  assert {s.theirs: s.default for s in vqgan.SETTINGS} == {s.theirs: defaults[s.theirs].default for s in vqgan.SETTINGS}


@pytest.mark.parametrize(
  ("settings", "problem"),
  [
    ({"mid_block_add_attention": True}, "mid_block_add_attention is True in config.json, but this model knows only F"),
    ({"norm_type": "spatial"}, "norm_type is 'spatial'"),
    ({"down_block_types": ["DownEncoderBlock2D"]}, "but this model needs 2 DownEncoderBlock2D"),
    ({"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]}, "but this model needs 2 UpDecoderBlock2D"),
  ],
)
def test_unsupported_configs(settings, problem):
  with pytest.raises(ValueError, match=problem):
    vqgan.read(vqgan.write(SMALL) | settings)
