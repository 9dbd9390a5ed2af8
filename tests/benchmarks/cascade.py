"""Measures toybox-cascade and DreamBooth on it, with the toybox's encoders, on toys that none of them saw.

python tests/benchmarks/cascade.py captions            # 500 captions: does the image show what they say
python tests/benchmarks/cascade.py speed               # seconds an image
python tests/benchmarks/cascade.py dreambooth          # 10 subjects, 10 prompts, 4 images each
python tests/benchmarks/cascade.py prior               # with and without the class-prior loss
python tests/benchmarks/cascade.py noun                # with the right class noun, a wrong one, none
python tests/benchmarks/cascade.py sr                  # the stage of super-resolution, tuned and not

--recipe configs/dreambooth.py:toybox learns from photos without captions, which they have by default. Thetas are kept
in --out, so that a command goes on where it was cut off. Intervals are of 95 %, over subjects.
"""

import argparse
from collections.abc import Callable
import functools
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dreamjax
from dreamjax import generators
from dreamjax.commands import configs, truth
from dreamjax.data import image_folder
from dreamjax.data.image_folder import to_uint8
from dreamjax.diffusion.resolution import downsample
from dreamjax.eval import metrics, protocols
from dreamjax.generators import cascade as cascades
from dreamjax.methods import dreambooth
from dreamjax.toybox import album, source, vocabulary
from dreamjax.toybox.captions import where

PHOTOS, CANDIDATES = 4, 32
CLASSES = ("dog", "cat", "rabbit", "bird", "fish", "car", "boat", "robot", "teapot", "backpack")
WRONG = {"dog": "teapot", "cat": "car", "rabbit": "boat", "bird": "chair", "fish": "robot", "car": "cat",
         "boat": "dog", "robot": "fish", "teapot": "dog", "backpack": "bird"}  # fmt: skip


@functools.cache
def photographed(cls: str) -> Any:
  """Photos of a class's subject and what they show: those that teach it, and as many unseen ones."""
  return source.photos(cls, source.TRAIN_SUBJECTS, 2 * PHOTOS)


class Bench:
  """The generator, what judges it, and the subjects' photos and thetas."""

  def __init__(self, out: pathlib.Path, model: str, subjects: int, recipe: str) -> None:
    self.out, self.classes, self.recipe = out, CLASSES[:subjects], recipe
    self.generator, params = generators.load(model)
    self.params = jax.device_put(params)
    self.judge = truth.toybox_encoders()

  def photos(self, cls: str) -> list[np.ndarray]:
    """Photos 1 to 4 teach the subject; those behind them are unseen."""
    return list(photographed(cls)[0].rgb)

  def contexts(self, cls: str) -> np.ndarray:
    """Where the photos that teach the subject were taken."""
    return np.asarray(photographed(cls)[1].context[:PHOTOS])

  def captioned(self, cls: str, noun: str, folder: pathlib.Path) -> pathlib.Path:
    """The folder, with the photos that teach the subject, and captions that say where they were taken."""
    said = [" ".join(f"a [V] {noun} {where(int(context))}".split()) for context in self.contexts(cls)]
    known = ({"text": text} for text in said)
    image_folder.write(folder, zip(self.photos(cls)[:PHOTOS], known, strict=True), overwrite=True)
    return folder

  def learn(self, cls: str, name: str, noun: str | None = None, **changes: Any) -> Any:
    """The theta of a subject, by the toybox's recipe with some changes."""
    noun = cls if noun is None else noun
    config = configs.load(self.recipe, [f"--config.{key}={value}" for key, value in changes.items()])
    folder = self.out / cls / name
    path = folder / "theta.safetensors"
    if path.exists():
      return generators.load_theta(path, self.generator, self.params)
    photos = self.captioned(cls, noun, self.out / cls / f"photos-{name}")
    return dreambooth.dreambooth(
      self.generator, self.params, photos, noun, workdir=folder, config=config, cache=self.out / "priors"
    )

  def draw(self, prompts: list[str], theta: Any = None, n: int = 4, seed: int = 0) -> list[np.ndarray]:
    """Images, as bytes."""
    drawn = generators.sample(self.generator, self.params, prompts, theta=theta, n=n, seed=seed)
    return [to_uint8(x / 2 + 0.5) for x in drawn]

  def dino(self, images: list[np.ndarray]) -> jax.Array:
    """Embeddings."""
    return jnp.asarray(self.judge.dino(images))

  def candidates(self, cls: str) -> jax.Array:
    """Prototypes for `metrics.retrieval` of subjects of a class, the one that is learned first."""
    real = [
      to_uint8(np.asarray(source.photos(cls, source.TRAIN_SUBJECTS + i, PHOTOS)[0].rgb)) for i in range(CANDIDATES)
    ]
    seen = self.dino([image for images in real for image in images]).reshape(CANDIDATES, PHOTOS, -1)
    return jnp.stack([metrics.prototype(images) for images in seen])


def say(name: str, values: list[np.ndarray]) -> None:
  """Prints the mean of what was measured, one array a subject, and its interval."""
  clusters = np.repeat(np.arange(len(values)), [len(x) for x in values])
  flat = jnp.asarray(np.concatenate(values), jnp.float32)
  low, high = metrics.bootstrap(jax.random.key(0), flat, jnp.asarray(clusters), len(values))
  print(f"{name}: {float(flat.mean()):.4f} ({float(low):.4f} to {float(high):.4f})", flush=True)


def captions(bench: Bench, count: int = 500) -> None:
  """Probe accuracy on held-out captions, beside the same of real images."""
  frame, labels = source.Stream(seed=1, split="subjects", resolution=bench.generator.resolution).draw(range(count))
  texts = album.Album(np.empty((count, 0)), jax.device_get(labels)).captions(range(count))
  drawn = generators.sample(bench.generator, bench.params, texts)
  small = downsample(2 * jnp.asarray(frame.rgb) - 1, bench.generator.stages[0].image)
  for name, images in (("drawn", drawn), ("real", 2 * np.asarray(frame.rgb) - 1), ("real, small", np.asarray(small))):
    found = truth.accuracy(list(images), texts, bench.judge.probe)
    print(f"{name}: " + ", ".join(f"{head} {value:.3f}" for head, value in found.items()), flush=True)


def speed(bench: Bench, repeats: int = 5) -> None:
  """Seconds an image, eight at a time, after a first batch."""
  seconds = []
  for i in range(repeats + 1):
    began = time.perf_counter()
    generators.sample(bench.generator, bench.params, ["a dog on the beach"] * 8, seed=i)
    seconds.append((time.perf_counter() - began) / 8)
  print(f"seconds an image: {statistics.median(seconds[1:]):.2f} ({min(seconds[1:]):.2f} to {max(seconds[1:]):.2f})")


def places() -> list[protocols.Prompt]:
  """Ten prompts that ask for the subject in a place."""
  protocol = protocols.load(pathlib.Path(str(source.__file__)).parent / "protocols" / "dreambooth.json")
  return [prompt for prompt in protocol.prompts["object"] if "context" in prompt.labels][:10]


def write(prompts: list[protocols.Prompt], word: str, noun: str) -> list[str]:
  """Their texts, about a subject of this word and noun."""
  return [" ".join(prompt.text.format_map({"identifier": word, "class": noun}).split()) for prompt in prompts]


def subjects(bench: Bench) -> None:
  """Retrieval among subjects of the class and context accuracy, of tuned, untuned and real images."""
  prompts = places()
  known = [vocabulary.CONTEXTS.index(prompt.labels["context"]) for prompt in prompts]
  wanted = jnp.asarray(np.repeat(known, 4))
  found: dict[str, list[np.ndarray]] = {}
  for cls in bench.classes:
    candidates = bench.candidates(cls)

    def retrieval(images: list[np.ndarray], candidates: jax.Array = candidates) -> np.ndarray:
      return np.asarray(metrics.retrieval(bench.dino(images), candidates, jnp.zeros(len(images), jnp.int32)))

    images = {
      "tuned": bench.draw(write(prompts, "[V]", cls), bench.learn(cls, "right")),
      "untuned": bench.draw(write(prompts, "", cls)),
      "real": [to_uint8(np.asarray(x)) for x in bench.photos(cls)[PHOTOS:]],
    }
    elsewhere = ~np.isin(np.asarray(wanted), bench.contexts(cls))
    for name, some in images.items():
      right = retrieval(some)
      found.setdefault(f"retrieval, {name}", []).append(right)
      if name == "tuned":
        found.setdefault("retrieval, tuned, where no photo was taken", []).append(right[elsewhere])
      if name != "real":
        scores = jnp.asarray(bench.judge.probe(some)["context"])
        found.setdefault(f"context, {name}", []).append(np.asarray(metrics.accuracy(scores, wanted)))
    print(cls, {name: round(float(values[-1].mean()), 2) for name, values in found.items()}, flush=True)
  for name, values in found.items():
    say(name, values)


def likeness(bench: Bench, thetas: dict[str, dict[str, Any]], ask: Callable[[str], list[str]]) -> None:
  """DINO of the subject as `ask` has prompts for its noun, PRES of its class and DIV, for several ways to learn it."""
  for way in thetas:
    scores: dict[str, list[np.ndarray]] = {"dino": [], "PRES": [], "DIV": []}
    for cls in bench.classes:
      noun = thetas[way].get("noun", {}).get(cls, cls)
      changes = {key: value for key, value in thetas[way].items() if key != "noun"}
      theta = bench.learn(cls, way, noun, **changes)
      real = bench.dino([to_uint8(np.asarray(x)) for x in bench.photos(cls)[PHOTOS:]])
      own = bench.dino(bench.draw(ask(noun), theta, 1))
      others = bench.dino(bench.draw([f"a {cls}"], theta, 8))
      scores["dino"].append(np.asarray(metrics.similarity(own, real)))
      scores["PRES"].append(np.asarray(metrics.similarity(others, real)))
      scores["DIV"].append(np.asarray(1 - metrics.similarity_to_others(own)))
    for name, values in scores.items():
      say(f"{way}, {name}", values)


def prior(bench: Bench) -> None:
  """Table 3 of the paper: without the class-prior loss PRES is higher, and DIV lower."""
  likeness(bench, {"right": {}, "without prior": {"prior.kind": "none"}}, lambda noun: [f"a [V] {noun}"] * 8)


def noun(bench: Bench) -> None:
  """Table 4 of the paper: in ten places, subjects are most like themselves if learned with the right class noun."""
  ways: dict[str, dict[str, Any]] = {
    "right": {},
    "wrong": {"noun": WRONG},
    "none": {"noun": dict.fromkeys(CLASSES, "")},
  }
  likeness(bench, ways, lambda noun: write(places(), "[V]", noun))


def sr(bench: Bench) -> None:
  """Unseen photos of the subject, made small and large again by the stage of super-resolution."""
  stage = bench.generator.stages[-1]
  small_side = bench.generator.stages[0].image
  usual = stage.sampling.level
  low = configs.load(bench.recipe).stages[stage.name].augmentation_levels[1]
  scores: dict[str, list[np.ndarray]] = {}
  enlarge = jax.jit(cascades.draw_stage, static_argnums=(0, 1))
  for cls in bench.classes:
    real = 2 * jnp.asarray(np.stack(bench.photos(cls)[PHOTOS:])) - 1
    small = downsample(real, small_side)
    tuned = {
      "untuned": None,
      "tuned": bench.learn(cls, "right"),
      "tuned at all levels": bench.learn(
        cls, "all levels", **{"stages.base.steps": 0, "stages.sr.augmentation_levels": "(0.0,1.0)"}
      ),
    }
    for name, theta in tuned.items():
      word = "" if theta is None else f"{theta.card.identifier} "
      text, null = (bench.generator.encode(bench.params, [words]) for words in (f"a {word}{cls}", ""))
      text = jax.tree.map(lambda x: jnp.repeat(x, PHOTOS, axis=0), text)
      for level in (low, usual):
        sampling = generators.Sampling(**{**vars(stage.sampling), "level": level})
        own = None if theta is None else theta.thetas[stage.name]
        keys = cascades.image_keys(0, np.arange(len(real)))
        made = enlarge(stage, sampling, bench.params[stage.name], own, text, null, keys, small)
        error = jnp.mean(jnp.square(made - real), axis=(1, 2, 3))
        pairs = [bench.dino([to_uint8(np.asarray(x) / 2 + 0.5) for x in some]) for some in (made, real)]
        scores.setdefault(f"{name}, level {level:g}, PSNR", []).append(np.asarray(10 * jnp.log10(4 / error)))
        scores.setdefault(f"{name}, level {level:g}, distance", []).append(
          np.asarray(1 - metrics.text_similarity(*pairs))
        )
  for name, values in scores.items():
    say(name, values)
    if not name.startswith("untuned"):
      before = scores[f"untuned, {name.partition(', ')[2]}"]
      say(f"{name}, less that of untuned", [own - other for own, other in zip(values, before, strict=True)])


COMMANDS = {"captions": captions, "speed": speed, "dreambooth": subjects, "prior": prior, "noun": noun, "sr": sr}


def main() -> None:
  """Runs one command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=COMMANDS)
  parser.add_argument("--model", default="toybox-cascade", help="a name or a folder (%(default)s)")
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("runs/benchmark"), help="for thetas (%(default)s)"
  )
  parser.add_argument("--subjects", type=int, default=len(CLASSES), help="of the ten (%(default)s)")
  parser.add_argument("--recipe", default="configs/dreambooth.py:captioned", help="for subjects (%(default)s)")
  args = parser.parse_args()
  dreamjax.prepare_xla()
  COMMANDS[args.what](Bench(args.out, args.model, args.subjects, args.recipe))


if __name__ == "__main__":
  main()
