"""`dreamjax pretrain`: trains the networks that come with dreamjax, on the toybox."""

import argparse
from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
import pathlib
import pydoc_data.topics
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm

from dreamjax.commands import configs, devices, truth
from dreamjax.data import tokenizer as tokenizers
from dreamjax.data.examples import Examples
from dreamjax.methods.pretraining import autoencoder, classifier, contrastive, generator, text, tokens, vqgan
from dreamjax.methods.pretraining.task import Task
from dreamjax.parallel import processes
from dreamjax.toybox import album, source, vocabulary, world
from dreamjax.train.loop import fit
from dreamjax.train.optimizer import averaged, make_optimizer
from dreamjax.train.state import TrainState
from dreamjax.train.step import make_step

_PHOTOS = 4  # of each subject in the albums
_HELD_OUT_SEED = 1  # of the streams that trained networks are evaluated on; those to train on have seed 0

# The names of all states, those of all classes together.
_STATES = tuple(dict.fromkeys(state for states in vocabulary.STATES.values() for state in states))
_STATE_OF = np.full((len(vocabulary.CLASSES), max(map(len, vocabulary.STATES.values()))), -1)
for _i, _name in enumerate(vocabulary.CLASSES):
  _STATE_OF[_i, : len(vocabulary.STATES[_name])] = [_STATES.index(state) for state in vocabulary.STATES[_name]]

# What cannot be told apart where there are two toys, for either might be the subject.
_OF_SUBJECT = ("class", "colour", "marking", "property", "state", "accessory")

#: What the probe names, by the keys of `labels.names`.
WORDS = {
  "class": vocabulary.CLASSES, "colour": vocabulary.COLOURS, "marking": vocabulary.MARKINGS,
  "property": vocabulary.PROPERTIES, "state": _STATES, "context": vocabulary.CONTEXTS,
  "accessory": vocabulary.ACCESSORIES, "style": vocabulary.STYLES,
}  # fmt: skip


def add(commands: Any) -> None:
  """Adds the command to an argparse parser's."""
  parser = commands.add_parser("pretrain", help="train the networks that come with dreamjax")
  parser.add_argument("--config", required=True, metavar="FILE:VARIANT", help="such as configs/pretrain_encoders.py:t5")
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="for logs, checkpoints and the model")
  devices.add(parser)
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
  """Runs the command, or goes on with it where it was cut off."""
  measured = pretrain(configs.load(args.config, args.overrides), args.workdir, devices.mesh(args))
  devices.say(*(f"{name} {value:.3f}" for name, value in measured.items()))
  devices.say(f"the model is in {args.workdir / 'model'}")


def examples(drawn: album.Album) -> Examples:
  """An album of the toybox as examples."""
  known = drawn.labels
  by_name = {
    "class": known.cls, "colour": known.colour, "marking": known.marking, "property": known.prop,
    "state": _STATE_OF[known.cls, known.state], "context": known.context, "accessory": known.accessory,
    "style": known.style,
  }  # fmt: skip
  subjects = np.arange(len(drawn)) // _PHOTOS
  return Examples((drawn.images,), drawn.captions, by_name, WORDS, subjects)


def visible(drawn: album.Album) -> Examples:
  """`examples` whose labels are unknown (-1) where the image does not show what they say."""
  made, known = examples(drawn), drawn.labels
  hidden = dict.fromkeys(_OF_SUBJECT, known.other_cls >= 0)
  hidden["colour"] = hidden["colour"] | truth.COLOURLESS[known.style]
  labels = {name: np.where(hidden[name], -1, x) if name in hidden else x for name, x in made.labels.items()}
  return dataclasses.replace(made, labels=labels)


def draw_albums(
  config: ml_collections.ConfigDict,
  counts: Mapping[str, int],
  see: Callable[[album.Album], Examples] = examples,
  seed: int = 0,
) -> Examples:
  """The examples of some splits and a seed of their stream, rendered now or read from the folder of albums."""
  parts = []
  shares = {"style_share": config.style_share} if "style_share" in config else {}
  variety = source.Variety(view=world.Dial(**config.view), **shares)
  for split, count in counts.items():
    stream = source.Stream(seed=seed, split=split, variety=variety, resolution=config.resolution, photos=_PHOTOS)
    folder = pathlib.Path(config.albums) / (f"{split}_{seed}" if seed else split)
    with tqdm.tqdm(total=count, unit=" images", desc=f"album {split}", disable=processes.disable_progress()) as bar:
      progress = lambda drawn, bar=bar: bar.update(drawn - bar.n)  # noqa: E731
      draw = functools.partial(album.draw, folder, stream, count, progress)
      if processes.is_distributed():
        processes.on_main_process(draw)
      parts.append(see(draw()))  # what is there is read
  return Examples.join(parts)


def train_tokenizer(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
  """A vocabulary of the toybox's captions and of English prose: Python's own manual, which is on every machine."""
  stream = source.Stream(seed=config.seed + 1)
  known = jax.device_get(jax.jit(stream.labels)(np.arange(config.captions)))
  captions = album.Album(np.empty((config.captions, 0)), known).captions(range(config.captions))
  prose = [line.strip() for topic in pydoc_data.topics.topics.values() for line in topic.splitlines() if line.strip()]
  tokenizers.train([*captions, *prose], config.size).save_pretrained(folder)


def make_task(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh | None = None) -> Task:
  """Builds the training that a config describes, its parameters sharded over a mesh."""
  see = visible if config.task == "probe" else examples
  train = draw_albums(config, config.train.to_dict(), see)
  held_out = draw_albums(config, config.held_out.to_dict(), see, seed=_HELD_OUT_SEED)
  if config.task == "probe":
    return classifier.ClassifierTask(config, train, held_out, mesh)
  if config.task == "dino":
    return contrastive.PhotosTask(config, train, held_out, mesh)
  if config.task in ("stage", "tokens"):
    scorer = None
    if config.eval_examples:
      probe = truth.toybox_encoders().probe
      scorer = lambda images, texts: truth.accuracy(images, texts, probe)  # noqa: E731
    kind = generator.StageTask if config.task == "stage" else tokens.TokensTask
    return kind(config, train, held_out, scorer, mesh)
  if config.task in ("vqgan", "autoencoder"):
    kind = vqgan.VQGANTask if config.task == "vqgan" else autoencoder.AutoencoderTask
    return kind(config, train, held_out, mesh)
  tokenizer = tokenizers.Tokenizer.load(config.tokenizer, config.length)
  if config.task == "clip":
    return contrastive.CLIPTask(config, train, held_out, tokenizer, mesh)
  return text.TextTask(config, train, held_out, tokenizer, mesh)


def pretrain(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh | None = None
) -> dict[str, float]:
  """Trains what the config describes, or goes on with it, and saves the model into the folder `model` in the workdir.

  Args:
    config: a task's, with its data, its optimizer and how long it goes on.
    workdir: for logs, checkpoints and the model.
    mesh: of devices, see `parallel.sharding`; by default the first device alone.

  Returns:
    What was measured of the moving average of the parameters, which is what is saved.
  """
  processes.on_main_process(lambda: _begin(config, workdir))
  if config.task in ("tokenizer", "join"):
    return {}
  task = make_task(config, mesh)
  tx = make_optimizer(config.optimizer, task.theta, config.steps)

  latest: list[dict[str, Any]] = []

  def inspect(state: TrainState) -> dict[str, Any]:
    """What the first process saves, measures and shows."""
    theta, found = averaged(state), {}
    theta = processes.fetch(theta) if processes.is_distributed() else theta
    latest[:] = [found]

    def write() -> None:
      task.save(theta, workdir / "model")
      found.update(task.measure(theta))
      (workdir / "measured.json").write_text(json.dumps(found, indent=2))
      if (sheet := task.show(theta)) is not None:
        found["samples"] = sheet

    processes.on_main_process(write)
    return found

  state = fit(
    make_step(task.loss, tx, config.seed, config.accumulation_steps),
    TrainState.create(task.theta, tx, task.frozen, mesh),
    task.batch,
    steps=config.steps,
    workdir=workdir,
    log_every=config.log_every,
    save_every=config.save_every,
    inspect=inspect,
    mesh=mesh,
  )
  if not latest:  # there was nothing left to train
    inspect(state)
  return {name: x for name, x in latest[0].items() if name != "samples"}


def _begin(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Writes the config down, and does what takes no training."""
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "config.json").write_text(config.to_json_best_effort(indent=2))
  if config.task == "tokenizer":
    train_tokenizer(config, workdir / "model")
  elif config.task == "join":
    generator.join(config.stages, config.text_encoder, workdir / "model")
