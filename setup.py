"""Installs dreamjax. What the tools need (ruff, pytest) is set up in `pyproject.toml`."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "dreamjax/__init__.py").read_text(), re.MULTILINE)[1]

setuptools.setup(
  name="dreamjax",
  version=VERSION,
  description="Personalised image generation in JAX",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=[*setuptools.find_packages(include=["dreamjax", "dreamjax.*"]), "dreamjax.configs"],
  package_dir={"dreamjax.configs": "configs"},
  package_data={
    "dreamjax.commands": ["*.html"],
    "dreamjax.eval": ["*.html", "published/*.json"],
    "dreamjax.toybox": ["photos/*/*", "protocols/*.json", "weights/**/*.json", "weights/**/*.safetensors"],
  },
  entry_points={"console_scripts": ["dreamjax = dreamjax.cli:main"]},
  install_requires=[
    "absl-py>=2.1",
    "clu>=0.0.12",
    "etils[epy]>=1.12",  # lazy imports
    "flax>=0.12",
    "huggingface_hub>=1.0",
    "jax>=0.10",
    "jaxtyping>=0.3",
    "jinja2>=3.1",
    "ml_collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.11",
    "pillow>=11",
    "rich>=13.9",
    "safetensors>=0.5",
    "scipy>=1.15",
    "sentencepiece>=0.2",  # T5's vocabulary, as DeepFloyd IF has it
    "tensorflow-datasets>=4.9.10",  # brings array_record, so data sets are read without TensorFlow
    "tqdm>=4.66",
    "transformers>=5",  # tokenizers and config files only
  ],
  extras_require={
    # Accelerators. Without one of these, JAX runs on the CPU.
    "cuda12": ["jax[cuda12]>=0.10"],
    "cuda13": ["jax[cuda13]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
    # The TPU compiler, for `dreamjax plan` on a machine without a TPU.
    "plan": ["libtpu"],
    # TensorBoard's event files in addition to the JSON lines.
    "tensorboard": ["tensorboard", "tensorflow"],
    # The page of `dreamjax feedback`.
    "feedback": ["flask>=3.1"],
    # HEIC photos, the format of iPhones.
    "heic": ["pillow-heif>=1.0"],
    # The plots of tests/benchmarks.
    "plots": ["matplotlib>=3.9"],
    # The tools of launch/test.sh; and the PyTorch originals that the models are compared with.
    "test": [
      *("beartype>=0.20", "flask>=3.1", "hypothesis>=6.100", "pytest>=8.3", "pytest-xdist>=3.6", "ruff>=0.15"),
      "selenium>=4.30",
    ],
    "parity": ["accelerate>=1.10", "diffusers>=0.35", "peft>=0.17", "torch>=2.6"],
  },
)
