"""Strict settings for every test: virtual devices, no silent promotion, checked shapes, a cache of compilations."""

import os
import pathlib

import jaxlib.version

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Eight devices; and nothing of LLVM's optimisation, for tests compile more than they compute: a small U-Net's gradient
# in 5 s instead of 14. A third of that comes from writing what is fused in LLVM's language, not in MLIR's: this flag is
# of jaxlib 0.10, and XLA stops at one that it does not know.
FLAGS = {"--xla_force_host_platform_device_count": "8", "--xla_backend_optimization_level": "0"}
if jaxlib.version.__version_info__[:2] == (0, 10):
  FLAGS["--xla_cpu_use_fusion_emitters"] = "false"

# JAX reads these once, when it starts: they come before its import.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for flag, value in FLAGS.items():
  if flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={value}".strip()

import importlib.util

import beartype
import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")

# A size limit makes JAX lock the cache's files, so that tests which run side by side can share them.
jax.config.update("jax_compilation_cache_dir", os.environ.get("DREAMJAX_TEST_CACHE", str(ROOT / ".cache/jax")))
jax.config.update("jax_compilation_cache_max_size", 2**31)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


_CHECK = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def typecheck(function):
  """Checks a function's arguments and result at run time (an int passes for a float), but lets constructors be.

  JAX rebuilds a pytree's dataclass around whatever a transformation puts in the place of its arrays: shapes in
  `eval_shape`, shardings, axes, None. None of them is the array that the field is annotated with.
  """
  return function if function.__name__ == "__init__" else _CHECK(function)


TYPECHECKER = f"{__name__}.typecheck"
jaxtyping.install_import_hook("dreamjax", TYPECHECKER)


def pytest_addoption(parser):
  parser.addoption("--slow", action="store_true", help="also run the tests that are marked slow")


def pytest_configure():
  """XLA computes as it does in the commands. A test of one would set its flags for other processes, but not its own."""
  import dreamjax

  dreamjax.prepare_xla()


def pytest_report_header():
  missing = [name for name in ("diffusers", "torch") if importlib.util.find_spec(name) is None]
  if missing:
    return f"NOTE: no {' and no '.join(missing)}, so tests that compare with it are skipped: pip install '.[parity]'"


def pytest_collection_modifyitems(config, items):
  if config.getoption("--slow") or "slow" in config.getoption("-m"):
    return
  config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
  items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture
def typechecker():
  """The name under which jaxtyping finds `typecheck`."""
  return TYPECHECKER


@pytest.fixture
def run(capsys):
  """run(*arguments) -> (status, what was written to out and err) of the command line."""
  from dreamjax import cli

  def run(*arguments):
    status = cli.main([str(a) for a in arguments])
    return status, capsys.readouterr()

  return run


@pytest.fixture(scope="session")
def drawn():
  """drawn(folder) -> the images that `dreamjax sample` wrote there."""
  import numpy as np
  from PIL import Image

  def drawn(folder):
    found = []
    for path in sorted(folder.glob("0*.png")):
      with Image.open(path) as image:
        found.append(np.asarray(image).astype(int))
    return np.stack(found)

  return drawn


@pytest.fixture(scope="session")
def tiny_cascade():
  """A cascade of two stages, 8 and 16 pixels, with random weights that draw more than noise: (cascade, params)."""
  import jax.numpy as jnp
  import numpy as np

  from dreamjax.data import tokenizer
  from dreamjax.diffusion.schedules import Cosine
  from dreamjax.generators.cascade import Cascade, Sampling, Stage
  from dreamjax.models.t5 import T5Encoder
  from dreamjax.models.unet import UNet

  words = tokenizer.Tokenizer(tokenizer.train(["a dog on the beach", "a red cat in the snow", "qx zv wug"] * 3, 330), 8)
  encoder = T5Encoder(vocab=len(words.inner), width=16, head_width=8, heads=2, mlp=16, depth=1)
  common = {
    "widths": (8, 16), "blocks": (1, 1), "attention": (False, True), "head_width": 8, "text_width": 16,
    "cross_width": 32, "pool_heads": 2, "time_width": 16, "groups": 4, "step": "conv",
  }  # fmt: skip
  base = Stage("base", UNet(image=8, **common), Cosine(), sampling=Sampling(steps=3, guidance=2.0))
  larger = Stage(
    "sr", UNet(image=16, low_res=True, patch=2, **common), Cosine(), augmentation=Cosine(),
    sampling=Sampling(steps=2, guidance=1.0, ratio=0.0, level=0.1),
  )  # fmt: skip
  cascade = Cascade("tiny", encoder, words, (base, larger))

  rng = np.random.default_rng(0)

  def leaf(path, shape):  # what starts at zero would leave most of the network without effect
    noise = 0.1 * rng.standard_normal(shape, np.float32)
    if path[-1].key == "scale":
      return 1 + noise
    fan_in = np.prod(shape[:-1]) if len(shape) > 1 else np.inf
    return noise * np.float32(1 + 10 / np.sqrt(fan_in))

  def weights(module, *inputs):  # drawn by numpy: to compile an `init` takes minutes
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree_util.tree_map_with_path(lambda path, x: leaf(path, x.shape), shapes)

  text, mask, t = jnp.zeros((1, 8, 16)), jnp.ones((1, 8), bool), jnp.zeros(1)
  small, large = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 16, 16, 3))
  return cascade, {
    "text": weights(encoder, jnp.zeros((1, 8), jnp.int32), mask),
    "base": weights(base.unet, small, t, text, mask),
    "sr": weights(larger.unet, large, t, text, mask, large, t),
  }


@pytest.fixture(scope="session")
def tiny_folder(tiny_cascade, tmp_path_factory):
  """The folder of the tiny cascade."""
  import numpy as np

  from dreamjax import generators

  folder = tmp_path_factory.mktemp("tiny")
  generators.save(folder, *tiny_cascade, dtype=np.float32)
  return folder


@pytest.fixture(scope="session")
def tiny_masked():
  """Two stages, of 2x2 and of 4x4 tokens, with random weights: (generator, params)."""
  import jax.numpy as jnp
  import numpy as np

  from dreamjax.data import tokenizer
  from dreamjax.generators import masked
  from dreamjax.models.muse import Muse
  from dreamjax.models.t5 import T5Encoder
  from dreamjax.models.vqgan import VQGAN

  words = tokenizer.Tokenizer(tokenizer.train(["a dog on the beach", "a red cat in the snow", "qx zv wug"] * 3, 330), 8)
  encoder = T5Encoder(vocab=len(words.inner), width=16, head_width=8, heads=2, mlp=16, depth=1)
  vqgan = VQGAN(widths=(8, 8), blocks=1, latent=4, embedding=4, codebook=12, groups=4)
  base = Muse(side=2, codebook=12, width=16, heads=2, mlp=24, depth=1, text_width=16)
  larger = base.clone(side=4, low_side=2, low_depth=1, low_codebook=12)
  decodings = masked.Decoding(3, 1.0, 2.0, 1.5), masked.Decoding(2, 1.0, 1.0, 0.5)
  stages = tuple(
    masked.TokenStage(name, net, vqgan, decoding)
    for name, net, decoding in zip(("base", "sr"), (base, larger), decodings, strict=True)
  )
  rng = np.random.default_rng(0)

  def weights(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape, np.float32), shapes)

  few, many = jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 16), jnp.int32)
  text, mask = jnp.zeros((1, 8, 16)), jnp.ones((1, 8), bool)
  code = weights(vqgan, jnp.zeros((1, 8, 8, 3)))
  params = {
    "text": weights(encoder, jnp.zeros((1, 8), jnp.int32), mask),
    "base": {"transformer": weights(base, few, text, mask), "vqgan": code},
    "sr": {"transformer": weights(larger, many, text, mask, few), "vqgan": code},
  }
  return masked.Masked("tiny", encoder, words, stages), jax.device_put(params)
