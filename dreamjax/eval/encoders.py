"""The networks that score images, wrapped as plain functions from images or texts to embeddings."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from flax import linen as nn
import jax
import numpy as np
import safetensors.numpy

from dreamjax.convert import pretrained
from dreamjax.data.preprocessing import Preprocessor
from dreamjax.data.tokenizer import Tokenizer
from dreamjax.errors import UserError
from dreamjax.models.clip import CLIP
from dreamjax.models.lpips import from_torch
from dreamjax.models.resnet import Classifier, ResNet
from dreamjax.models.vit import ViT
from dreamjax.parallel import processes
from dreamjax.parallel.sharding import batch_sharding, round_up_batch_size

_BATCH = 32  # images or texts in one call of a network; on a mesh, rounded up to what it divides

#: Maps n images of any sizes, uint8 [h, w, 3], to embeddings, [n, d], which need not be of unit length.
Embed = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Encoders:
  """The networks of an evaluation.

  Attributes:
    name: of this set of networks; recorded with every score.
    clip_image: CLIP's image tower.
    clip_text: CLIP's text tower: maps n texts to embeddings, [n, d], in the space of `clip_image`.
    dino: a self-supervised embedding, which distinguishes subjects of one class.
    face: a face recognition embedding, if there is one.
    probe: a classifier with several heads, if there is one: maps n images to each head's scores, [n, classes].
    words: the names of each head's classes, in the order of its scores.
    lpips: maps n pairs of images of one size to their perceptual distances, [n], if there is such a network.
  """

  name: str
  clip_image: Embed
  clip_text: Callable[[Sequence[str]], np.ndarray]
  dino: Embed
  face: Embed | None = None
  probe: Callable[[Sequence[np.ndarray]], dict[str, np.ndarray]] | None = None
  words: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  lpips: Callable[[Sequence[tuple[np.ndarray, np.ndarray]]], np.ndarray] | None = None


def load(folder: pathlib.Path, name: str | None = None, mesh: jax.sharding.Mesh | None = None) -> Encoders:
  """Loads encoders from a folder whose sub-folders are models in the Hugging Face layout.

  Args:
    folder: holds `clip/` and `dino/` (a ViT, or an embedding network of dreamjax); optionally also `face/` (as `dino/`,
      but trained to recognise faces), `probe/` (a classifier of dreamjax) and `lpips.safetensors` (see `models.lpips`).
    name: of the encoders in results; by default the folder's name.
    mesh: of devices, over which images and texts are sharded and parameters replicated; None for one device.

  Raises:
    OSError: if the folder, or a required file in it, is missing.
    ValueError: if a sub-folder holds a model of another kind.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f"there is no folder {folder} with encoders")
  for part in ("clip", "dino"):
    if not (folder / part).is_dir():
      raise FileNotFoundError(f"{folder} holds no sub-folder {part}, a model in the Hugging Face layout")
  clip, clip_params = _model(folder / "clip", mesh, CLIP)
  tokenizer = Tokenizer.load(folder / "clip", clip.text.length)
  encode_image = _batched(lambda p, x: clip.apply({"params": p}, x, method=CLIP.encode_image), clip_params, mesh)
  encode_text = _batched(lambda p, x: clip.apply({"params": p}, x, method=CLIP.encode_text), clip_params, mesh)
  clip_preprocess = Preprocessor.load(folder / "clip")
  probe, words = _probe(folder / "probe", mesh) if (folder / "probe").is_dir() else (None, {})
  return Encoders(
    name=name or folder.name,
    clip_image=lambda images: encode_image(clip_preprocess(images)),
    clip_text=lambda texts: encode_text(tokenizer(texts)[0]),
    dino=_embedding(folder / "dino", mesh),
    face=_embedding(folder / "face", mesh) if (folder / "face").is_dir() else None,
    probe=probe,
    words=words,
    lpips=_lpips(folder / "lpips.safetensors", mesh) if (folder / "lpips.safetensors").is_file() else None,
  )


def _model(folder: pathlib.Path, mesh: jax.sharding.Mesh | None, *kinds: type[nn.Module]) -> tuple[nn.Module, Any]:
  """Loads a model of one of these kinds and replicates its parameters on all devices."""
  model, params = pretrained.load(folder, kinds=kinds)
  return model, _replicate(params, mesh)


def _replicate(params: Any, mesh: jax.sharding.Mesh | None) -> Any:
  if mesh is None:
    return jax.device_put(params)
  return jax.tree.map(lambda x: processes.put(x, jax.NamedSharding(mesh, jax.P())), params)


def _embedding(folder: pathlib.Path, mesh: jax.sharding.Mesh | None) -> Embed:
  """Loads an embedding network, or a ViT whose class token is the embedding, as in DINO (Caron et al., section 4.2)."""
  model, params = _model(folder, mesh, ViT, ResNet)

  def apply(params: Any, images: Any) -> Any:
    out = model.apply({"params": params}, images)
    return out[0][:, 0] if isinstance(model, ViT) else out

  encode, preprocess = _batched(apply, params, mesh), Preprocessor.load(folder)
  return lambda images: encode(preprocess(images))


def _probe(
  folder: pathlib.Path, mesh: jax.sharding.Mesh | None
) -> tuple[Callable[[Sequence[np.ndarray]], dict[str, np.ndarray]], dict[str, Any]]:
  """Loads a classifier: a function to its scores, and the names of its classes."""
  probe, params = _model(folder, mesh, Classifier)
  classify, preprocess = _batched(lambda p, x: probe.apply({"params": p}, x), params, mesh), Preprocessor.load(folder)
  return lambda images: classify(preprocess(images)), dict(probe.heads)


def _lpips(
  file: pathlib.Path, mesh: jax.sharding.Mesh | None
) -> Callable[[Sequence[tuple[np.ndarray, np.ndarray]]], np.ndarray]:
  """Loads LPIPS, as a function of pairs of images of one size."""
  model, params = from_torch(safetensors.numpy.load_file(file))
  compare = _batched(lambda p, x: model.apply({"params": p}, x[:, 0], x[:, 1]), _replicate(params, mesh), mesh)

  def distances(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    shapes = {image.shape for pair in pairs for image in pair}
    if len(shapes) > 1:
      raise UserError(f"LPIPS compares images of one size, not {' and '.join(map(str, sorted(shapes)))}")
    return compare(np.asarray(pairs, np.float32) / 127.5 - 1)

  return distances


def _batched(
  apply: Callable[[Any, Any], Any], params: Any, mesh: jax.sharding.Mesh | None
) -> Callable[[np.ndarray], Any]:
  """Jits a function of parameters and a batch; batches of any size are padded and split, so that it compiles once."""
  run, size = jax.jit(apply), round_up_batch_size(_BATCH, mesh)

  def embed(batch: np.ndarray) -> Any:
    outputs = []
    for start in range(0, len(batch), size):
      chunk = batch[start : start + size]
      padded = np.concatenate([chunk, np.zeros((size - len(chunk), *chunk.shape[1:]), chunk.dtype)])
      inputs = padded if mesh is None else processes.put(padded, batch_sharding(mesh))
      outputs.append(jax.tree.map(lambda x, chunk=chunk: x[: len(chunk)], processes.fetch(run(params, inputs))))
    return jax.tree.map(lambda *x: np.concatenate(x), *outputs)

  return embed
