"""Measures toybox-muse and StyleDrop on it, with the toybox's encoders, in the four styles that no network was shown.

python tests/benchmarks/cascade.py captions --model toybox-muse    # 500 captions: does the picture show what they say
python tests/benchmarks/styledrop.py vqgan         # pictures from their tokens
python tests/benchmarks/styledrop.py style         # round 1, the untuned generator and DreamBooth-LoRA on the cascade
python tests/benchmarks/styledrop.py feedback      # round 2, by CLIP and at random, and round 1
python tests/benchmarks/styledrop.py gamma         # a style and a subject in one picture; draws a plot
python tests/benchmarks/styledrop.py speed         # of round 1 and of the step with two thetas

What was trained is kept in --out, so that a command goes on where it was cut off. Intervals are of 95 %, over styles.
"""

import argparse
from collections.abc import Mapping, Sequence
import pathlib
import statistics
import time

from cascade import CLASSES, PHOTOS, Bench, say  # beside this file
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dreamjax import cli, generators
from dreamjax.commands import configs
from dreamjax.data import image_folder
from dreamjax.data.image_folder import to_uint8
from dreamjax.diffusion.resolution import shrink
from dreamjax.eval import metrics, protocols
from dreamjax.generators import masked
from dreamjax.methods import dreambooth, styledrop
from dreamjax.methods.pretraining.vqgan import psnr
from dreamjax.theta import Personalisation
from dreamjax.toybox import source, vocabulary

PROTOCOL = protocols.load(pathlib.Path(str(source.__file__)).parent / "protocols" / "styledrop.json")
PROMPTS, EACH = 24, 8
SUBJECTS = CLASSES[:5]
GAMMAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class Styles(Bench):
  """The generator, what judges it, and the styles' references and thetas."""

  def reference(self, style: protocols.Subject) -> pathlib.Path:
    """The folder of the one picture that shows a style, with its caption."""
    folder, caption = self.out / style.name / "reference", f"a {style.cls} {style.identifier}"
    frame, _ = source.photos(style.cls, style.number, 1, style=style.labels["style"])
    pictures = ((np.asarray(picture), {"text": caption}) for picture in frame.rgb)
    image_folder.write(folder, pictures, overwrite=True)
    return folder

  def theta(self, style: protocols.Subject, feedback: str = "none") -> Personalisation:
    """What is learned of a style, in one round or in two."""
    workdir = self.out / style.name / "styledrop"
    path = workdir / ("round_1" if feedback == "none" else f"round_2_{feedback}") / "theta.safetensors"
    if path.exists():
      return generators.load_theta(path, self.generator, self.params)
    return styledrop.styledrop(
      self.generator, self.params, self.reference(style), workdir=workdir, feedback=feedback, config=recipe(),
      encoders=lambda: self.judge,
    )  # fmt: skip

  def subject(self, cls: str) -> Personalisation:
    """What is learned of a toy."""
    workdir = self.out / cls
    path = workdir / "theta.safetensors"
    if path.exists():
      return generators.load_theta(path, self.generator, self.params)
    image_folder.write(workdir / "photos", ((x, {}) for x in self.photos(cls)[:PHOTOS]), overwrite=True)
    return styledrop.subject(
      self.generator, self.params, workdir / "photos", cls, workdir=workdir, config=recipe()
    )  # fmt: skip

  def judged(self, pictures: Sequence[np.ndarray], texts: Sequence[str], style: str) -> dict[str, np.ndarray]:
    """Of each picture: whether the probe sees the style, and CLIP's score of what the text says besides."""
    seen = jnp.asarray(self.judge.probe(pictures)["style"])
    wanted = jnp.full(len(pictures), vocabulary.STYLES.index(style))
    embedded = jnp.asarray(self.judge.clip_image(pictures)), jnp.asarray(self.judge.clip_text(texts))
    return {
      "style": np.asarray(metrics.accuracy(seen, wanted)),
      "text": np.asarray(metrics.text_similarity(*embedded)),
    }


def recipe() -> ml_collections.ConfigDict:
  """How styles and subjects are learned."""
  return configs.load("configs/styledrop.py:toybox")


def contents() -> list[protocols.Prompt]:
  """The prompts, of which some ask for a place."""
  return list(PROTOCOL.prompts["style"][:PROMPTS])


def write(prompts: Sequence[protocols.Prompt], style: str = "") -> list[str]:
  """Their texts, with a style behind them."""
  return [" ".join(prompt.text.format(identifier=style).split()) for prompt in prompts]


def repeated(texts: Sequence[str]) -> list[str]:
  """One text for each picture of it."""
  return [text for text in texts for _ in range(EACH)]


def gather(found: dict[str, list[np.ndarray]], way: str, scores: Mapping[str, np.ndarray]) -> None:
  """Puts a style's scores to those of the styles before."""
  for name, values in scores.items():
    found.setdefault(f"{way}, {name}", []).append(values)
    print(f"  {way}, {name}: {values.mean():.3f}", flush=True)


def vqgan(bench: Styles, count: int = 256) -> None:
  """How near held-out pictures are to what is made from their tokens, and how many of the codebook's are in use."""
  frame, _ = source.Stream(seed=1, split="subjects", resolution=bench.generator.resolution).draw(range(count))
  pictures = 2 * jnp.asarray(frame.rgb) - 1
  for stage in bench.generator.stages:
    own, true = {"params": bench.params[stage.name]["vqgan"]}, shrink(pictures, stage.image)
    again = jax.jit(lambda x, own=own, net=stage.vqgan: net.apply(own, x))
    decibels, tokens = [], []
    for start in range(0, count, 16):
      made, _, used = again(true[start : start + 16])
      decibels.append(psnr(true[start : start + 16], jnp.clip(made, -1, 1)))
      tokens.append(used)
    share = len(np.unique(np.concatenate(tokens))) / stage.vqgan.codebook
    print(f"{stage.name}: PSNR {float(jnp.concatenate(decibels).mean()):.1f} dB, {share:.0%} of the codebook")


def style(bench: Styles) -> None:
  """StyleDrop's first round, beside the untuned generator and beside DreamBooth-LoRA on the cascade."""
  cascade = Bench(bench.out / "cascade", "toybox-cascade", 0, "configs/dreambooth.py:toybox")
  found: dict[str, list[np.ndarray]] = {}
  for one in PROTOCOL.subjects:
    print(one.name, flush=True)
    name, texts = one.labels["style"], write(contents(), one.identifier)
    plain = repeated(write(contents()))
    gather(found, "untuned", bench.judged(bench.draw(texts, n=EACH), plain, name))
    gather(found, "round 1", bench.judged(bench.draw(texts, bench.theta(one), EACH), plain, name))
    config = configs.load(
      "configs/dreambooth.py:toybox", [f"--config.stages.{stage}.kind=lora" for stage in ("base", "sr")]
    )
    config.prior.kind = "none"
    folder = cascade.out / one.name
    image_folder.write(
      folder / "photos", ((picture, {"text": f"a {one.cls} in [V] style"})
      for picture in source.photos(one.cls, one.number, 1, style=name)[0].rgb), overwrite=True,
    )  # fmt: skip
    config.captions = 1.0
    theta = dreambooth.dreambooth(
      cascade.generator, cascade.params, folder / "photos", one.cls, workdir=folder, config=config
    )
    own = cascade.draw(write(contents(), "in [V] style"), theta, EACH)
    gather(found, "DreamBooth-LoRA", bench.judged(own, plain, name))
  for name, values in found.items():
    say(name, values)


def feedback(bench: Styles) -> None:
  """Text fidelity, and how often the reference's own class is seen where another was asked for."""
  found: dict[str, list[np.ndarray]] = {}
  for one in PROTOCOL.subjects:
    print(one.name, flush=True)
    asked = [prompt for prompt in contents() if prompt.labels["class"] != one.cls]
    texts, plain = write(asked, one.identifier), repeated(write(asked))
    wanted = np.repeat([vocabulary.CLASSES.index(prompt.labels["class"]) for prompt in asked], EACH)
    own = vocabulary.CLASSES.index(one.cls)
    for way in ("none", "random", "clip"):
      pictures = bench.draw(texts, bench.theta(one, way), EACH)
      seen = bench.judge.probe(pictures)["class"].argmax(1)
      shares = {"leakage": (seen == own).astype(np.float32), "class": (seen == wanted).astype(np.float32)}
      gather(found, way, bench.judged(pictures, plain, one.labels["style"]) | shares)
  for name, values in found.items():
    say(name, values)


def gamma(bench: Styles) -> None:
  """Subjects in styles, from the style's theta alone to the subject's alone."""
  found: dict[str, list[np.ndarray]] = {}
  for cls in SUBJECTS:
    candidates = bench.candidates(cls)
    subject = bench.subject(cls)

    def judge(
      way: str, pictures: list[np.ndarray], style: str, candidates: jax.Array = candidates, cls: str = cls
    ) -> None:
      nearest = metrics.retrieval(bench.dino(pictures), candidates, jnp.zeros(len(pictures), jnp.int32))
      scores = bench.judged(pictures, [f"a {cls}"] * len(pictures), style)
      gather(found, way, {"retrieval": np.asarray(nearest), "style": scores["style"]})

    for one in PROTOCOL.subjects:
      print(cls, one.name, flush=True)
      style = bench.theta(one)
      judge("style alone", bench.draw([f"a {cls}"], style, EACH), one.labels["style"])
      judge("subject alone", bench.draw([f"a [V] {cls} {one.identifier}"], subject, EACH), one.labels["style"])
      for value in GAMMAS:
        drawn = generators.sample(
          bench.generator, bench.params, [f"a [V] {cls}"], theta=(style, subject), gamma=value, n=EACH
        )
        judge(f"gamma {value:g}", [to_uint8(x / 2 + 0.5) for x in drawn], one.labels["style"])
  for name, values in found.items():
    say(name, values)
  plot(found, bench.out / "gamma.svg")


def plot(found: Mapping[str, list[np.ndarray]], path: pathlib.Path) -> None:
  """Both scores over gamma, and those of either theta alone."""
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
  for score, colour, alone in (("retrieval", "C0", "style alone"), ("style", "C1", "subject alone")):
    mean = lambda way, score=score: np.concatenate(found[f"{way}, {score}"]).mean()  # noqa: E731
    axes.plot(GAMMAS, [mean(f"gamma {value:g}") for value in GAMMAS], "o-", color=colour, label=score)
    axes.axhline(mean(alone), color=colour, linestyle=":", label=f"{score}, {alone}")
  axes.set(xlabel="gamma", ylabel="share of pictures", ylim=(0, 1))
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
    made = styledrop.styledrop(bench.generator, bench.params, folder, workdir=workdir, config=recipe())
    print(f"round 1, {name}: {time.perf_counter() - began:.0f} s", flush=True)
  sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (made.thetas, bench.params)]
  print(f"trained parameters: {sizes[0]:,} of {sizes[1]:,}, {sizes[0] / sizes[1]:.2%}")
  style, other = made.thetas, bench.subject(SUBJECTS[0]).thetas
  both = [masked.mixed("a dog", style, "a dog", other, 0.6)]
  plain = masked.plain("a dog")
  apart = [plain, plain, masked.styled("a dog", style), plain, masked.styled("a dog", other)]
  usual = bench.generator.stages[0].decoding
  unguided = {"lambda_a": 0.0, "lambda_b": 0.0}  # so that of each wish one network is asked

  def seconds(wishes: Sequence[masked.Wish], **changes: float) -> float:
    """Of a step: the difference of many and of few."""
    times = []
    for steps in (2, 34):
      decoding = masked.Decoding(**{**vars(usual), **changes, "steps": steps})
      began = time.perf_counter()
      for wish in wishes:
        list(masked.batches(bench.generator, bench.params, [wish] * 8, decodings=(decoding,)))
      times.append(time.perf_counter() - began)
    return (times[1] - times[0]) / 32

  rounds = [(seconds(both), seconds(apart, **unguided)) for _ in range(repeats + 1)][1:]
  ratio = statistics.median(together / separate for together, separate in rounds)
  together, separate = (statistics.median(times) for times in zip(*rounds, strict=True))
  print(f"a step with two thetas: {together:.3f} s, its branches one by one {separate:.3f} s, {ratio:.2f} of it")


COMMANDS = {"vqgan": vqgan, "style": style, "feedback": feedback, "gamma": gamma, "speed": speed}


def main() -> None:
  """Runs one command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=COMMANDS)
  parser.add_argument("--model", default="toybox-muse", help="a name or a folder (%(default)s)")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/benchmark_muse"), help="(%(default)s)")
  args = parser.parse_args()
  cli.prepare_xla()
  COMMANDS[args.what](Styles(args.out, args.model, 0, ""))


if __name__ == "__main__":
  main()
