"""aMUSEd's transformers in diffusers' layout: the published configs are known, all that differs is refused."""

import inspect

from flax.traverse_util import flatten_dict
import jax
import numpy as np
import pytest

from dreamjax.convert import pretrained, uvit
from dreamjax.models.uvit import AMUSED_256, AMUSED_512, UViT

SMALL = UViT(
  side=4, codebook=11, vocab=14, token_width=10, block_width=12, block_heads=3, blocks=1, width=16, heads=2, mlp=20,
  depth=1, text_width=6, pooled_width=5, numbers=3, number_width=8,
)  # fmt: skip
# What amused/amused-256 and -512 publish of their UVit2DModel, but for diffusers' own defaults, which the rest are.
# Their sides are those of images of 256 and 512 pixels, of which the VQGAN makes a token of 16x16.
AMUSED = {
  "amused-256": (AMUSED_256, {"downsample": False, "upsample": False, "sample_size": 16}, 603.5),
  "amused-512": (AMUSED_512, {"downsample": True, "upsample": True, "sample_size": 32}, 608.3),
}


def shapes(module):
  return jax.eval_shape(module.init, jax.random.key(0), *uvit.inputs(module))["params"]


def draw(module):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes(module))


@pytest.mark.parametrize("module", [SMALL, SMALL.clone(halved=True)], ids=["plain", "halved"])
def test_a_model_comes_back_as_it_was_saved(tmp_path, module):
  params = draw(module)
  pretrained.save(tmp_path, module, params, np.float32)
  loaded, weights = pretrained.load(tmp_path)
  assert loaded == module
  jax.tree.map(np.testing.assert_array_equal, weights, params)


def test_diffusers_reads_what_we_write(tmp_path):
  pytest.importorskip("torch")
  import diffusers

  module = SMALL.clone(halved=True)
  pretrained.save(tmp_path / "ours", module, draw(module), np.float32)
  model, report = diffusers.UVit2DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
  assert not any(report.values())
  model.save_pretrained(tmp_path / "theirs")
  loaded, weights = pretrained.load(tmp_path / "theirs")
  assert loaded == module
  jax.tree.map(np.testing.assert_array_equal, weights, draw(module))


@pytest.mark.parametrize(("module", "config", "millions"), AMUSED.values(), ids=AMUSED)
def test_each_parameter_of_the_published_sizes_has_its_place_and_shape(module, config, millions):
  torch = pytest.importorskip("torch")
  import diffusers

  with torch.device("meta"):
    original = diffusers.UVit2DModel(**config)
  assert uvit.read(dict(original.config)) == uvit.read(config) == module
  state = original.state_dict()
  flat = flatten_dict(shapes(module), sep="/")
  sources = uvit.TABLE.sources(flat, state)
  assert {key for key, _ in sources.values()} == set(state)
  for path, (key, view) in sources.items():
    assert tuple(state[key].shape) == view.theirs_of(flat[path].shape), key
  assert round(sum(leaf.size for leaf in flat.values()) / 1e6, 1) == millions


def test_what_a_config_leaves_out_is_what_diffusers_takes_it_to_be():
  pytest.importorskip("torch")
  import diffusers

  defaults = {name: p.default for name, p in inspect.signature(diffusers.UVit2DModel).parameters.items()}
  assert {s.theirs: s.default for s in uvit.SETTINGS} | uvit.DEFAULTS == defaults


def test_no_row_stands_in_anothers_place():
  rows = uvit.TABLE.rows
  assert len({row.key for row in rows}) == len({row.path for row in rows}) == len(rows)


@pytest.mark.parametrize(
  ("settings", "problem"),
  [
    ({"use_bias": True}, "use_bias is True in config.json, but this model knows only False"),
    ({"hidden_dropout": 0.1}, "hidden_dropout is 0.1"),
    ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
    ({"ln_elementwise_affine": False}, "ln_elementwise_affine is False"),
    (
      {"upsample": True},
      "downsample is False and upsample True in config.json, but this model needs the same for both",
    ),
    ({"micro_cond_embed_dim": 25}, "micro_cond_embed_dim is 25 in config.json, but .* of micro_cond_encode_dim, 8"),
  ],
)
def test_a_config_that_is_not_known_is_refused(settings, problem):
  with pytest.raises(ValueError, match=problem):
    uvit.read(uvit.write(SMALL) | settings)
