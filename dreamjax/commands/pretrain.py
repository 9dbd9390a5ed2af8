"""`dreamjax pretrain`: trains the networks that come with dreamjax, on the toybox."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
import pathlib
from typing import Any

from etils import epy

from dreamjax.commands import configs, devices
from dreamjax.errors import user_errors
from dreamjax.toybox import vocabulary

with epy.lazy_imports():
  from pydoc_data import topics

  import jax
  import ml_collections
  import numpy as np
  import tqdm

  from dreamjax.commands import truth
  from dreamjax.data import examples as example_sets
  from dreamjax.data import tokenizer as tokenizers
  from dreamjax.methods.pretraining import autoencoder, classifier, contrastive, generator, task, text, tokens, vqgan
  from dreamjax.parallel import processes
  from dreamjax.toybox import album, source, world
  from dreamjax.train import loop, optimizer, step
  from dreamjax.train import state as states

_PHOTOS = 4  # of each subject in the albums
_HELD_OUT_SEED = 1  # of the streams that trained networks are evaluated on; those to train on have seed 0

# The names of all states, those of all classes together.
_STATES = tuple(dict.fromkeys(state for states in vocabulary.STATES.values() for state in states))

# Labels that are unknown where an image shows two toys, for either may be the subject.
_OF_SUBJECT = ("class", "colour", "marking", "property", "state", "accessory")

#: The probe's words, by the keys of `labels.names`.
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
  """Runs the command, or resumes a run that was interrupted."""
  measured = pretrain(configs.load(args.config, args.overrides), args.workdir, devices.mesh(args))
  devices.say(*(f"{name} {value:.3f}" for name, value in measured.items()))
  devices.say(f"the model is in {args.workdir / 'model'}")


def examples(drawn: album.Album) -> example_sets.Examples:
  """Turns an album of the toybox into examples."""
  known = drawn.labels
  states_of = [[_STATES.index(state) for state in vocabulary.STATES[cls]] for cls in vocabulary.CLASSES]
  most = max(map(len, states_of))
  state_of = np.array([row + [-1] * (most - len(row)) for row in states_of])
  by_name = {
    "class": known.cls, "colour": known.colour, "marking": known.marking, "property": known.prop,
    "state": state_of[known.cls, known.state], "context": known.context, "accessory": known.accessory,
    "style": known.style,
  }  # fmt: skip
  subjects = np.arange(len(drawn)) // _PHOTOS
  return example_sets.Examples((drawn.images,), drawn.captions, by_name, WORDS, subjects)


def visible(drawn: album.Album) -> example_sets.Examples:
  """Turns an album into examples as `examples` does, with labels -1 (unknown) where the image does not show them."""
  made, known = examples(drawn), drawn.labels
  hidden = dict.fromkeys(_OF_SUBJECT, known.other_cls >= 0)
  hidden["colour"] = hidden["colour"] | truth.COLOURLESS[known.style]
  labels = {name: np.where(hidden[name], -1, x) if name in hidden else x for name, x in made.labels.items()}
  return dataclasses.replace(made, labels=labels)


def draw_albums(
  config: ml_collections.ConfigDict,
  counts: Mapping[str, int],
  see: Callable[[album.Album], example_sets.Examples] = examples,
  seed: int = 0,
) -> example_sets.Examples:
  """Renders the examples of some splits, or reads them from the folder of albums.

  Args:
    config: with the folder, the resolution and the views.
    counts: images by split.
    see: turns an album into examples.
    seed: of the splits' streams.
  """
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
      parts.append(see(draw()))  # reads what is rendered already
  return example_sets.Examples.join(parts)


def train_tokenizer(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
  """Trains a vocabulary on the toybox's captions and on English prose: Python's own manual, which comes with Python."""
  stream = source.Stream(seed=config.seed + 1)
  known = jax.device_get(jax.jit(stream.labels)(np.arange(config.captions)))
  captions = album.Album(np.empty((config.captions, 0)), known).captions(range(config.captions))
  prose = [line.strip() for topic in topics.topics.values() for line in topic.splitlines() if line.strip()]
  tokenizers.train([*captions, *prose], config.size).save_pretrained(folder)


def make_task(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh | None = None) -> task.Task:
  """Makes the task that a config describes; its parameters are initialised on the mesh."""
  see = visible if config.task == "probe" else examples
  train = draw_albums(config, config.train.to_dict(), see)
  held_out = draw_albums(config, config.held_out.to_dict(), see, seed=_HELD_OUT_SEED)
  if config.task == "probe":
    return classifier.task(config, train, held_out, mesh)
  if config.task == "dino":
    return contrastive.photos_task(config, train, held_out, mesh)
  if config.task in ("stage", "tokens"):
    judge = None
    if config.eval_examples:
      probe = truth.toybox_encoders().probe
      judge = lambda images, texts: truth.accuracy(images, texts, probe)  # noqa: E731
    module = generator if config.task == "stage" else tokens
    return module.task(config, train, held_out, judge, mesh)
  if config.task in ("vqgan", "autoencoder"):
    module = vqgan if config.task == "vqgan" else autoencoder
    return module.task(config, train, held_out, mesh)
  tokenizer = tokenizers.Tokenizer.load(config.tokenizer, config.length)
  if config.task == "clip":
    return contrastive.captions_task(config, train, held_out, tokenizer, mesh)
  return text.task(config, train, held_out, tokenizer, mesh)


def pretrain(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh | None = None
) -> dict[str, float]:
  """Trains what the config describes, or resumes it, and saves the model into the folder `model` in the workdir.

  Args:
    config: of a task, with its data, its optimizer and its number of steps.
    workdir: for logs, checkpoints and the model.
    mesh: of devices, see `parallel.sharding`; by default the first device alone.

  Returns:
    The measures of the moving average of the parameters, which is what is saved.

  Raises:
    UserError: if the config describes no task, or no model that can be built.
  """
  processes.on_main_process(lambda: _begin(config, workdir))
  if config.task in ("tokenizer", "join"):
    return {}
  with user_errors():
    made = make_task(config, mesh)
    tx = optimizer.make_optimizer(config.optimizer, made.theta, config.steps)

  latest: list[dict[str, Any]] = []

  def inspect(state: states.TrainState) -> dict[str, Any]:
    """Saves and measures the moving average, and samples from it, in the first process."""
    theta, found = optimizer.averaged(state), {}
    theta = processes.fetch(theta) if processes.is_distributed() else theta
    latest[:] = [found]

    def write() -> None:
      made.save(theta, workdir / "model")
      found.update(made.measure(theta))
      (workdir / "measured.json").write_text(json.dumps(found, indent=2))
      if made.show is not None:
        found["samples"] = made.show(theta)

    processes.on_main_process(write)
    return found

  state = loop.fit(
    step.make_step(made.loss, tx, config.seed, config.accumulation_steps),
    states.TrainState.create(made.theta, tx, made.frozen, mesh),
    made.batches,
    steps=config.steps,
    workdir=workdir,
    log_every=config.log_every,
    save_every=config.save_every,
    inspect=inspect,
    mesh=mesh,
  )
  if not latest:  # the training was complete already
    inspect(state)
  return {name: x for name, x in latest[0].items() if name != "samples"}


def _begin(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Writes the config into the workdir, and runs the tasks that train nothing."""
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "config.json").write_text(config.to_json_best_effort(indent=2))
  if config.task == "tokenizer":
    train_tokenizer(config, workdir / "model")
  elif config.task == "join":
    generator.join(config.stages, config.text_encoder, workdir / "model")
