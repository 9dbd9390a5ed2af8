"""Measures the encoders that come with dreamjax on toys of which they saw none: python tests/benchmarks/encoders.py."""

import importlib.resources
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import dreamjax
from dreamjax.commands import pretrain
from dreamjax.data.image_folder import to_uint8
from dreamjax.eval import encoders, metrics
from dreamjax.toybox import album, source, vocabulary

SUBJECTS, PHOTOS = 33, 5  # a subject and its 32 distractors; the photo that is asked about, and four to know it by


def draw(count, split="subjects", **variety):
  """Images, captions and labels of held-out toys."""
  frame, labels = source.Stream(seed=1, split=split, variety=source.Variety(**variety)).draw(range(count))
  images = to_uint8(np.asarray(frame.rgb))
  drawn = album.Album(images, jax.device_get(labels))
  return list(images), drawn.captions(range(count)), pretrain.examples(drawn).labels


def right(scores, labels):
  return float(np.mean(np.argmax(scores, 1) == labels))


def retrieval(dino):
  """Share of photos that are nearest to the mean of the right subject's other photos, and its interval by class."""
  hits = []
  for cls in vocabulary.CLASSES:
    photos = [source.photos(cls, source.TRAIN_SUBJECTS + i, PHOTOS, resolution=64)[0].rgb for i in range(SUBJECTS)]
    seen = jnp.asarray(dino(list(to_uint8(np.concatenate(photos))))).reshape(SUBJECTS, PHOTOS, -1)
    known = jnp.stack([metrics.prototype(photos[1:]) for photos in seen])
    hits.append(metrics.retrieval(seen[:, 0], known, jnp.arange(SUBJECTS)))
    print(f"  {cls}: {float(hits[-1].mean()):.2f}")
  return float(jnp.mean(jnp.stack(hits)))


def main():
  dreamjax.prepare_xla()
  loaded = encoders.load(pathlib.Path(str(importlib.resources.files("dreamjax.toybox") / "weights")))
  # One toy in each image: of two, nothing says which is the subject.
  frames, _, labels = draw(1024, style_share=0.0, other_share=0.0)
  scores = loaded.probe(frames)
  for head in ("class", "context", "colour", "accessory", "state", "marking", "property"):
    print(f"probe, {head}, 1024 photos: {right(scores[head], labels[head]):.3f}")
  styled = [draw(512, style_share=1.0), draw(512, "styles")]
  hits = [right(loaded.probe(p)["style"], known["style"]) for p, _, known in styled]
  hits.append(right(scores["style"], labels["style"]))
  print(f"probe, style: {hits[0]:.3f} of 14 styles, {hits[1]:.3f} of the 4 held-out ones, {hits[2]:.3f} of photos")
  frames, captions, _ = draw(1024)
  images, texts = loaded.clip_image(frames), loaded.clip_text(captions)
  groups = [
    metrics.retrieval(jnp.asarray(images[i : i + 64]), jnp.asarray(texts[i : i + 64]), jnp.arange(64))
    for i in range(0, 1024, 64)
  ]
  print(f"clip, 64-way image to text, 1024 images: {float(jnp.mean(jnp.stack(groups))):.3f}")
  print(
    f"dino, retrieval@1 among {SUBJECTS}, {SUBJECTS * len(vocabulary.CLASSES)} subjects: {retrieval(loaded.dino):.3f}"
  )
  began = time.perf_counter()
  for encoder in (loaded.clip_image, loaded.dino, loaded.probe):
    encoder(frames[:1000])
  print(f"1000 images by all three: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
  main()
