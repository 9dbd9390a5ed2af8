"""Measures toybox-muse and StyleDrop on it, with the toybox's encoders, in the four styles that no network was shown.

python tests/benchmarks/cascade.py captions --model toybox-muse    # 500 captions: does the image show what they say
python tests/benchmarks/styledrop.py vqgan         # images from their tokens
python tests/benchmarks/styledrop.py style         # both rounds, the untuned generator, DreamBooth-LoRA on the cascade
python tests/benchmarks/styledrop.py gamma         # a style and a subject in one image; draws a plot
python tests/benchmarks/styledrop.py speed         # of round 1 and of the step with two thetas

What was trained, drawn and seen is kept in --out: a command goes on where it was cut off, and with another --style in
a second process. Intervals are of 95 %, over styles.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
import statistics
import time
from typing import Any

from cascade import CLASSES, Bench, say  # beside this file
import jax
import jax.numpy as jnp
import numpy as np

import dreamjax
from dreamjax import generators
from dreamjax.commands import configs, truth
from dreamjax.data import image_folder
from dreamjax.data.contact_sheet import contact_sheet
from dreamjax.data.image_folder import to_uint8
from dreamjax.diffusion.resolution import downsample
from dreamjax.eval import metrics, protocols
from dreamjax.generators import masked
from dreamjax.methods import dreambooth, styledrop
from dreamjax.methods.pretraining.vqgan import psnr
from dreamjax.theta import Personalisation
from dreamjax.toybox import source, vocabulary
from dreamjax.toybox.captions import where

PROTOCOL = protocols.load(pathlib.Path(str(source.__file__)).parent / "protocols" / "styledrop.json")
PROMPTS = 24
SUBJECTS = CLASSES[:5]
RECIPE = "configs/styledrop.py:toybox"
GAMMAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MIXING = {"lambda_a": 2.0, "lambda_b": 1.0}  # of the base stage: the frozen generator knows neither style nor subject


class Styles(Bench):
  """The generator, what judges it, and the styles' references and thetas."""

  def __init__(self, out: pathlib.Path, model: str, names: Sequence[str], each: int) -> None:
    super().__init__(out, model, 0, "")
    self.styles = [style for style in PROTOCOL.subjects if not names or style.name in names]
    self.each = each

  def draw(
    self, texts: Sequence[str], theta: Any = None, n: int = 1, seed: int = 0, **options: Any
  ) -> list[np.ndarray]:
    """Images, as bytes."""
    drawn = generators.sample(self.generator, self.params, texts, theta=theta, n=n, seed=seed, **options)
    return [to_uint8(x / 2 + 0.5) for x in drawn]

  def kept(
    self, style: protocols.Subject, name: str, texts: Sequence[str], measure: Callable[[], tuple[Any, Any]]
  ) -> dict[str, np.ndarray]:
    """What `measure` says of images of the texts, beside which it returns them; kept, with a sheet of them."""
    path = self.out / style.name / "scores" / f"{name}.json"
    if not path.exists():
      images, scores = measure()
      path.parent.mkdir(parents=True, exist_ok=True)
      contact_sheet([image / 255 for image in images], texts, 6).save(path.with_suffix(".png"))
      path.write_text(json.dumps({head: np.asarray(values).tolist() for head, values in scores.items()}))
    return {head: np.asarray(values) for head, values in json.loads(path.read_text()).items()}

  def scores(
    self, style: protocols.Subject, way: str, texts: Sequence[str], draw: Callable[[int], list[np.ndarray]]
  ) -> dict[str, np.ndarray]:
    """What `judged` says of images of the texts, one of each for every seed."""

    def measure(seed: int) -> tuple[Any, Any]:
      images = draw(seed)
      return images, self.judged(images, texts, style)

    found = [self.kept(style, f"{way} {seed}", texts, lambda seed=seed: measure(seed)) for seed in range(self.each)]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

  def reference(self, style: protocols.Subject) -> pathlib.Path:
    """The folder of the one image that shows a style, with its caption."""
    folder, caption = self.out / style.name / "reference", f"a {style.cls} {style.identifier}"
    image_folder.write(folder, [(photo_of(style), {"text": caption})], overwrite=True)
    return folder

  def theta(self, style: protocols.Subject, feedback: str = "none") -> Personalisation:
    """What is learned of a style, in one round or in two."""
    workdir = self.out / style.name / "styledrop"
    path = workdir / ("round_1" if feedback == "none" else f"round_2_{feedback}") / "theta.safetensors"
    if path.exists():
      return generators.load_theta(path, self.generator, self.params)
    return styledrop.styledrop(
      self.generator, self.params, self.reference(style), workdir=workdir, feedback=feedback,
      config=configs.load(RECIPE), encoders=lambda: self.judge,
    )  # fmt: skip

  def subject(self, cls: str) -> Personalisation:
    """What is learned of a toy."""
    workdir = self.out / cls
    path = workdir / "theta.safetensors"
    if path.exists():
      return generators.load_theta(path, self.generator, self.params)
    photos = self.captioned(cls, cls, workdir / "photos")
    config = configs.load(RECIPE, ["--config.captions=True"])
    return styledrop.subject(self.generator, self.params, photos, cls, workdir=workdir, config=config)

  def judged(
    self, images: Sequence[np.ndarray], texts: Sequence[str], style: protocols.Subject
  ) -> dict[str, np.ndarray]:
    """Of each image: whether the probe sees what its text says, and CLIP's cosines.

    "style", "class" and "context" (where the text names one) are of the probe; "leakage" is whether it sees the
    reference's class where another was asked for; "likeness" is CLIP's cosine to the reference, "text" that to the
    text, style and all, for what CLIP says of the content alone falls with any style: real images show how far.
    """
    seen = self.judge.probe(images)
    scores = {}
    for head, wanted in truth.promised(texts).items():
      if head == "colour":  # no prompt says one
        continue
      known = wanted >= 0
      scores[head] = np.asarray(metrics.accuracy(jnp.asarray(seen[head][known]), jnp.asarray(wanted[known])))
      if head == "class":
        own = vocabulary.CLASSES.index(style.cls)
        scores["leakage"] = (seen[head].argmax(1) == own)[wanted != own].astype(np.float32)
    embedded, reference = (jnp.asarray(self.judge.clip_image(some)) for some in (images, [to_uint8(photo_of(style))]))
    content = [text.removesuffix(f" {style.identifier}") for text in texts]
    for name, told in (("text", texts), ("content", content)):
      scores[name] = np.asarray(metrics.text_similarity(embedded, jnp.asarray(self.judge.clip_text(told))))
    scores["likeness"] = np.asarray(metrics.similarity(embedded, reference))
    return scores


def photo_of(style: protocols.Subject) -> np.ndarray:
  """The one image that shows a style."""
  (image,) = source.photos(style.cls, style.number, 1, style=style.labels["style"])[0].rgb
  return np.asarray(image)


def prompts(style: protocols.Subject) -> list[str]:
  """What is drawn in a style, once each; some ask for a place."""
  return [prompt.text.format(identifier=style.identifier) for prompt in PROTOCOL.prompts["style"][:PROMPTS]]


def gather(found: dict[str, list[np.ndarray]], way: str, scores: Mapping[str, np.ndarray]) -> None:
  """Puts a style's scores to those of the styles before."""
  for name, values in scores.items():
    found.setdefault(f"{way}, {name}", []).append(np.asarray(values))
  print(f"  {way}: " + ", ".join(f"{name} {np.mean(values):.3f}" for name, values in scores.items()), flush=True)


def vqgan(bench: Styles, count: int = 256) -> None:
  """How near held-out images are to what is made from their tokens, and how many of the codebook's are in use."""
  frame, _ = source.Stream(seed=1, split="subjects", resolution=bench.generator.resolution).draw(range(count))
  images = 2 * jnp.asarray(frame.rgb) - 1
  for stage in bench.generator.stages:
    own, true = {"params": bench.params[stage.name]["vqgan"]}, downsample(images, stage.image)
    again = jax.jit(lambda x, own=own, net=stage.vqgan: net.apply(own, x))
    decibels, tokens = [], []
    for start in range(0, count, 16):
      made, _, used = again(true[start : start + 16])
      decibels.append(psnr(true[start : start + 16], jnp.clip(made, -1, 1)))
      tokens.append(used)
    share = len(np.unique(np.concatenate(tokens))) / stage.vqgan.codebook
    print(f"{stage.name}: PSNR {float(jnp.concatenate(decibels).mean()):.1f} dB, {share:.0%} of the codebook")


def style(bench: Styles) -> None:
  """Both rounds of StyleDrop beside the untuned generator, DreamBooth-LoRA on the cascade, and real images."""
  cascade = Bench(bench.out / "cascade", "toybox-cascade", 0, "configs/dreambooth.py:toybox")
  found: dict[str, list[np.ndarray]] = {}
  for one in bench.styles:
    print(one.name, flush=True)
    texts = prompts(one)
    own = [text.replace(one.identifier, "in [V] style") for text in texts]
    ways: dict[str, Callable[[int], list[np.ndarray]]] = {
      "untuned": lambda seed, texts=texts: bench.draw(texts, seed=seed),
      "round 1": lambda seed, texts=texts, one=one: bench.draw(texts, bench.theta(one), seed=seed),
      "DreamBooth-LoRA": lambda seed, own=own, one=one: cascade.draw(own, baseline(cascade, one), 1, seed=seed),
      "by CLIP": lambda seed, texts=texts, one=one: bench.draw(texts, bench.theta(one, "clip"), seed=seed),
      "at random": lambda seed, texts=texts, one=one: bench.draw(texts, bench.theta(one, "random"), seed=seed),
    }
    for way, draw in ways.items():
      gather(found, way, bench.scores(one, way, texts, draw))
    gather(found, "real", bench.judged(*real(one), one))
  for name, values in found.items():
    say(name, values)


def baseline(cascade: Bench, style: protocols.Subject) -> Personalisation:
  """What DreamBooth learns of a style's image with low-rank updates of both stages, and without a prior set."""
  folder = cascade.out / style.name
  if (path := folder / "theta.safetensors").exists():
    return generators.load_theta(path, cascade.generator, cascade.params)
  stages = (f"--config.stages.{stage}.kind=lora" for stage in ("base", "sr"))
  config = configs.load("configs/dreambooth.py:toybox", [*stages, "--config.captions=1.0"])
  config.prior.kind = "none"
  image_folder.write(folder / "photos", [(photo_of(style), {"text": f"a {style.cls} in [V] style"})], overwrite=True)
  return dreambooth.dreambooth(
    cascade.generator, cascade.params, folder / "photos", style.cls, workdir=folder, config=config
  )


def real(style: protocols.Subject, count: int = 64) -> tuple[list[np.ndarray], list[str]]:
  """Images of unseen toys in a style as the toybox renders them, and their captions."""
  plainly = dict.fromkeys(("accessory_share", "other_share", "property_share", "state_share"), 0.0)
  variety = source.Variety(styles=(style.labels["style"],), **plainly)
  frame, labels = source.Stream(seed=1, split="styles", variety=variety, resolution=128).draw(range(count))
  names = [vocabulary.CLASSES[i] for i in np.asarray(labels.cls)]
  places = [where(int(i)) for i in np.asarray(labels.context)]
  texts = [" ".join(f"a {name} {place} {style.identifier}".split()) for name, place in zip(names, places, strict=True)]
  return [to_uint8(np.asarray(image)) for image in frame.rgb], texts


def gamma(bench: Styles) -> None:
  """Subjects in styles, from the style's theta alone to the subject's alone, and that one asked for the style."""
  found: dict[str, list[np.ndarray]] = {}
  for cls in SUBJECTS:
    subject, candidates = bench.subject(cls), bench.candidates(cls)
    for one in bench.styles:
      print(cls, one.name, flush=True)
      both = (bench.theta(one), subject)
      ways = {f"gamma {value:g}": (f"a [V] {cls}", both, value) for value in GAMMAS}
      ways["subject alone"] = (f"a [V] {cls} {one.identifier}", subject, 0.0)
      texts = [f"a {cls} {one.identifier}"] * bench.each
      for way, asked in ways.items():
        scores = bench.kept(
          one, f"{way}, {cls}", texts, functools.partial(blend, bench, one, texts, candidates, *asked)
        )
        gather(found, way, {name: scores[name] for name in ("retrieval", "style", "likeness")})
  for name, values in found.items():
    say(name, values)
  plot(found, bench.out / "gamma.svg")


def blend(
  bench: Styles, style: protocols.Subject, texts: Sequence[str], candidates: jax.Array, prompt: str, theta: Any,
  value: float,
) -> tuple[list[np.ndarray], dict[str, Any]]:  # fmt: skip
  """Images of a prompt, which are to show what the texts say, and their scores, retrieval besides."""
  base, larger = (stage.decoding for stage in bench.generator.stages)
  decodings = (dataclasses.replace(base, **MIXING), larger)
  images = bench.draw([prompt], theta, len(texts), gamma=value, decodings=decodings, size=len(texts))
  nearest = metrics.retrieval(bench.dino(images), candidates, jnp.zeros(len(images), jnp.int32))
  return images, {**bench.judged(images, texts, style), "retrieval": nearest}


def plot(found: Mapping[str, list[np.ndarray]], path: pathlib.Path) -> None:
  """Both scores over gamma, and those of either theta alone."""
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
  lines = (("retrieval", "C0", "gamma 0", "style alone"), ("style", "C1", "subject alone", "subject alone"))
  for score, colour, alone, label in lines:
    mean = lambda way, score=score: np.concatenate(found[f"{way}, {score}"]).mean()  # noqa: E731
    axes.plot(GAMMAS, [mean(f"gamma {value:g}") for value in GAMMAS], "o-", color=colour, label=score)
    axes.axhline(mean(alone), color=colour, linestyle=":", label=f"{score}, {label}")
  axes.set(xlabel="gamma", ylabel="share of images", ylim=(0, 1))
  axes.legend(fontsize="small")
  figure.savefig(path)
  print(path)


def speed(bench: Styles, repeats: int = 5) -> None:
  """Seconds of round 1, and a step with two thetas beside its branches one by one."""
  one = PROTOCOL.subjects[0]
  folder = bench.reference(one)
  for name in ("cold", "warm"):
    began = time.perf_counter()
    workdir = bench.out / f"speed {time.time():.0f}"
    made = styledrop.styledrop(bench.generator, bench.params, folder, workdir=workdir, config=configs.load(RECIPE))
    print(f"round 1, {name}: {time.perf_counter() - began:.0f} s", flush=True)
  sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (made.thetas, bench.params)]
  print(f"trained parameters: {sizes[0]:,} of {sizes[1]:,}, {sizes[0] / sizes[1]:.2%}")
  style, other = made.thetas, bench.subject(SUBJECTS[0]).thetas
  both = [masked.mixed("a dog", style, "a dog", other, 0.6)]
  plain = masked.plain("a dog")
  apart = [plain, plain, masked.styled("a dog", style), plain, masked.styled("a dog", other)]
  usual = bench.generator.stages[0].decoding
  unguided = {"lambda_a": 0.0, "lambda_b": 0.0}  # so that of each wish one network is asked

  def seconds(count: int, wishes: Sequence[masked.Wish], **changes: float) -> float:
    """Of a step for so many images: the difference of many and of few."""
    times = []
    for steps in (2, 34):
      decoding = masked.Decoding(**{**vars(usual), **changes, "steps": steps})
      began = time.perf_counter()
      for wish in wishes:
        list(masked.batches(bench.generator, bench.params, [wish] * count, decodings=(decoding,), size=count))
      times.append(time.perf_counter() - began)
    return (times[1] - times[0]) / 32

  for count in (1, 8):
    rounds = [(seconds(count, both), seconds(count, apart, **unguided)) for _ in range(repeats + 1)][1:]
    ratio = statistics.median(together / separate for together, separate in rounds)
    together, separate = (statistics.median(times) for times in zip(*rounds, strict=True))
    said = f"{together:.3f} s, its branches one by one {separate:.3f} s, {ratio:.2f} of it"
    print(f"a step with two thetas, images at once {count}: {said}", flush=True)


COMMANDS = {"vqgan": vqgan, "style": style, "gamma": gamma, "speed": speed}


def main() -> None:
  """Runs one command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=COMMANDS)
  parser.add_argument("--model", default="toybox-muse", help="a name or a folder (%(default)s)")
  names = [style.name for style in PROTOCOL.subjects]
  parser.add_argument("--style", action="append", choices=names, help="this style only; may be said again")
  parser.add_argument("--each", type=int, default=8, help="images of each prompt (%(default)s)")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/benchmark_muse"), help="(%(default)s)")
  args = parser.parse_args()
  dreamjax.prepare_xla()
  COMMANDS[args.what](Styles(args.out, args.model, args.style or (), args.each))


if __name__ == "__main__":
  main()
