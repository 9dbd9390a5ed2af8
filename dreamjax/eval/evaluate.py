"""Scores folders of generated images against folders of real ones.

Where papers leave a choice open, the choice is recorded in the result: the encoders, whether CLIP-T's prompts contain
the identifier, DIV's distance, and the similarity above which an image counts as a copy.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from dreamjax.data.image_folder import METADATA, member
from dreamjax.data.photos import SUFFIXES, read_image
from dreamjax.errors import UserError
from dreamjax.eval import metrics
from dreamjax.eval.encoders import Encoders

_CHUNK = 64  # images or texts embedded at once; no more images are held in memory
_RESAMPLES, _LEVEL, _SEED = 1000, 0.95, 0


@dataclasses.dataclass
class _Images:
  """Images of several subjects, in order, and their scores.

  Attributes:
    paths: of their files.
    owners: [n], the subject that each should show.
    metadata: of each, without its `file_name`.
    scores: by the name of the metric, [n]; NaN where undefined.
    nearest: by index, the most similar real image of its subject, and the similarity.
  """

  paths: list[pathlib.Path]
  owners: np.ndarray
  metadata: list[dict[str, Any]]
  scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  nearest: dict[int, tuple[pathlib.Path, float]] = dataclasses.field(default_factory=dict)

  def of(self, subject: str) -> np.ndarray:
    """Returns the indices of a subject's images."""
    return np.flatnonzero(self.owners == subject)

  def put(self, score: str, indices: np.ndarray, values: Any) -> None:
    """Sets a score of the images with these indices."""
    self.scores.setdefault(score, np.full(len(self.paths), np.nan, np.float32))[indices] = np.asarray(values)


def evaluate(
  generated: pathlib.Path,
  reference: pathlib.Path,
  encoders: Encoders,
  *,
  prompts: pathlib.Path | None = None,
  identifier: str | None = None,
  prior: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Computes all metrics that the given images and encoders allow.

  Images of one subject are in a folder, those of several in a sub-folder for each subject. If a folder has a
  `metadata.jsonl`, the images that it lists are scored, otherwise all. Prompts are the `text` of the metadata, or the
  content of a .txt file next to each image, or the lines of `prompts`. Keys of the metadata that are heads of the probe
  ("class", "context") are labels: what the image should show.

  Args:
    generated: the images to score.
    reference: the real images. Sub-folders are matched by name; those of further subjects are distractors for
      retrieval, which is strictest if they are subjects of the same class.
    encoders: the networks.
    prompts: a file with one line for each image, in the order of subjects and of file names; overrides other prompts.
    identifier: removed from the prompts for CLIP-T, as in Textual Inversion's evaluation; by default it is kept.
    prior: images generated from the class's prompt ("a dog") by each personalised model, for PRES; in folders as
      `generated`.

  Returns:
    A tree for `json`: "scores", each with its interval or a note why it is undefined; those of "subjects" and of
    "images"; and "settings", all choices that were made.

  Raises:
    OSError: if a folder or file is missing.
    ValueError: if a folder is empty, an image cannot be read, a file name of the metadata leads out of its folder, or
      names, prompts or labels do not match.
  """
  made, real = _match(generated, reference)
  subjects = sorted(set(made.owners.tolist()))
  _read_prompts(made, prompts)
  texts = _prompts(made, identifier)

  image_encoders = {"dino": encoders.dino, "clip_i": encoders.clip_image, "face": encoders.face}
  image_encoders = {name: encoder for name, encoder in image_encoders.items() if encoder is not None}
  probe = {"probe": encoders.probe} if encoders.probe is not None else {}
  features = _embed(made.paths, image_encoders | probe, "generated")
  real_features = _embed(real.paths, image_encoders, "real")

  for name in image_encoders:
    _score_likeness(name, made, real, features[name], real_features[name], subjects)
  thresholds = _score_copies(made, real, features["dino"], real_features["dino"], subjects)
  _score_retrieval(made, real, features["dino"], real_features["dino"])
  _score_diversity(made, features["dino"], encoders)
  if texts is not None:
    made.put(
      "clip_t", np.arange(len(texts)), metrics.text_similarity(features["clip_i"], _embed_texts(texts, encoders))
    )
  if probe:
    _score_probe(made, features["probe"], encoders.words)
  tables = [made, real]
  if prior is not None:
    tables.append(_score_prior(prior, subjects, encoders, real, real_features["dino"]))

  return {
    "settings": {
      "generated": str(generated),
      "reference": str(reference),
      "prior": None if prior is None else str(prior),
      "encoders": encoders.name,
      "identifier": "kept" if identifier is None else f"{identifier!r}, stripped",
      "copy_thresholds": thresholds,
      "candidates": len(set(real.owners)),
      "interval": {"level": _LEVEL, "resamples": _RESAMPLES, "seed": _SEED, "of": _clusters_are(subjects)},
      "versions": _versions(),
    },
    "scores": _summaries(tables, subjects, encoders),
    "subjects": {subject: _subject_report(subject, tables, reference) for subject in subjects},
    "images": [_image_report(made, i, generated, reference) for i in range(len(made.paths))],
  }


def _list_images(folder: pathlib.Path) -> list[tuple[pathlib.Path, dict[str, Any]]]:
  """Lists the images in a folder with their metadata, by name: those of its `metadata.jsonl`, or else all."""
  if not (folder / METADATA).exists():
    return [(path, {}) for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
  entries = []
  for number, line in enumerate((folder / METADATA).read_text().splitlines(), start=1):
    try:
      metadata = json.loads(line)
      name = metadata.pop("file_name")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(f"{folder / METADATA}:{number} is no JSON object with a file_name") from error
    try:
      entries.append((member(folder, name), metadata))
    except ValueError as error:
      raise UserError(f"{folder / METADATA}:{number}: {error}") from error
  return sorted(entries, key=lambda entry: entry[0].name)


def _list_folders(root: pathlib.Path) -> dict[str, list[tuple[pathlib.Path, dict[str, Any]]]]:
  """Lists the images in a folder, under the name "", and in its sub-folders; ValueError if there are none."""
  if not root.is_dir():
    raise FileNotFoundError(f"there is no folder {root}")
  found = {"": _list_images(root)} | {path.name: _list_images(path) for path in sorted(root.iterdir()) if path.is_dir()}
  if not any(found.values()):
    raise UserError(f"there are no images in {root}")
  return {name: images for name, images in found.items() if images}


def _match(generated: pathlib.Path, reference: pathlib.Path) -> tuple[_Images, _Images]:
  """Matches generated and real images by subject; real ones of further subjects are kept."""
  made, real = _list_folders(generated), _list_folders(reference)
  if "" in made and len(made) > 1:
    raise UserError(f"{generated} holds images both itself and in sub-folders: which are the subject's?")
  if "" in made:
    name = generated.resolve().name
    made = {name: made.pop("")}
    if "" in real:
      real.pop(name, None)
      real = {name: real.pop(""), **real}
  else:
    real.pop("", None)
  if missing := [name for name in made if name not in real]:
    raise UserError(
      f"{reference} has no real images of {', '.join(missing)}, only of {', '.join(real) or 'none by name'}"
    )
  return _table(made), _table(real)


def _table(folders: dict[str, list[tuple[pathlib.Path, dict[str, Any]]]]) -> _Images:
  entries = [(subject, *entry) for subject in sorted(folders) for entry in folders[subject]]
  owners, paths, metadata = (list(column) for column in zip(*entries, strict=True))
  return _Images(paths, np.array(owners), metadata)


def _read_prompts(made: _Images, prompts: pathlib.Path | None) -> None:
  """Sets `metadata["text"]` to the prompt of each image that has one."""
  if prompts is not None:
    lines = prompts.read_text().splitlines()
    if len(lines) != len(made.paths):
      raise UserError(f"{prompts} has {len(lines)} prompts, and there are {len(made.paths)} generated images")
    for metadata, line in zip(made.metadata, lines, strict=True):
      metadata["text"] = line
  for path, metadata in zip(made.paths, made.metadata, strict=True):
    if "text" not in metadata and (caption := path.with_suffix(".txt")).exists():
      metadata["text"] = caption.read_text().strip()
    if not isinstance(metadata.get("text", ""), str):
      raise UserError(f"{path}: its prompt is {metadata['text']!r}, but must be text")
  without = [path for path, metadata in zip(made.paths, made.metadata, strict=True) if "text" not in metadata]
  if without and len(without) < len(made.paths):
    raise UserError(f"{len(without)} of {len(made.paths)} images have no prompt, {without[0]} for one")


def _prompts(made: _Images, identifier: str | None) -> list[str] | None:
  """Returns the prompts for CLIP-T; None if there are none."""
  if "text" not in made.metadata[0]:
    return None
  texts = [metadata["text"] for metadata in made.metadata]
  if identifier is None:
    return texts
  word = re.compile(rf"(?<!\w){re.escape(identifier)}(?!\w)")
  if not any(word.search(text) for text in texts):
    raise UserError(f"the identifier {identifier!r} is in none of the prompts, such as {texts[0]!r}")
  return [" ".join(word.sub(" ", text).split()) for text in texts]


def _embed(paths: Sequence[pathlib.Path], encoders: dict[str, Callable], what: str) -> dict[str, Any]:
  """Returns the outputs of each encoder, arrays or dicts of arrays, for images that are read a chunk at a time."""
  parts: dict[str, list] = {name: [] for name in encoders}
  with tqdm.tqdm(total=len(paths), unit=" images", desc=f"embedding {what} images", disable=None) as bar:
    for chunk in _chunks(paths):
      images = [read_image(path) for path in chunk]
      for name, encoder in encoders.items():
        embedded = jax.tree.map(lambda x: np.asarray(x, np.float32), encoder(images))
        for x in jax.tree.leaves(embedded):
          _check_finite(x, chunk, name)
        parts[name].append(embedded)
      bar.update(len(chunk))
  return {
    name: jax.tree.map(lambda *chunks: jnp.asarray(np.concatenate(chunks)), *part) for name, part in parts.items()
  }


def _embed_texts(texts: Sequence[str], encoders: Encoders) -> jax.Array:
  """Returns CLIP's embedding of each text; equal texts are embedded once."""
  different = sorted(set(texts))
  chunks = [np.asarray(encoders.clip_text(chunk), np.float32) for chunk in _chunks(different)]
  embedded = np.concatenate(chunks)
  _check_finite(embedded, different, "clip_text")
  return jnp.asarray(embedded[[different.index(text) for text in texts]])


def _chunks(items: Sequence) -> Iterator[Sequence]:
  yield from (items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK))


def _check_finite(embedded: np.ndarray, of: Sequence[Any], name: str) -> None:
  for x, what in zip(embedded, of, strict=True):
    if not np.isfinite(x).all():
      raise UserError(f"the encoder {name} returns numbers that are not finite for {what}")


def _score_likeness(name: str, made: _Images, real: _Images, features, real_features, subjects: Iterable[str]) -> None:
  """Scores DINO, CLIP-I or face identity, with the real-vs-real ceiling of subjects that have two real images."""
  for subject in subjects:
    own, photos = made.of(subject), real.of(subject)
    made.put(name, own, metrics.similarity(features[own], real_features[photos]))
    if len(photos) > 1:
      real.put(f"{name}_real", photos, metrics.similarity_to_others(real_features[photos]))


def _score_copies(
  made: _Images, real: _Images, features, real_features, subjects: Iterable[str]
) -> dict[str, float | None]:
  """Finds each image's nearest real one, and whether it is a copy; returns the threshold of each subject, or None."""
  thresholds: dict[str, float | None] = {}
  for subject in subjects:
    own, photos = made.of(subject), real.of(subject)
    indices, cosines = jax.device_get(metrics.nearest(features[own], real_features[photos]))
    for i, index, cosine in zip(own, indices, cosines, strict=True):
      made.nearest[int(i)] = (real.paths[photos[index]], float(cosine))
    thresholds[subject] = None
    if len(photos) > 1:
      threshold = metrics.copy_threshold(real_features[photos])
      thresholds[subject] = float(threshold)
      made.put("copies", own, metrics.copies(jnp.asarray(cosines), threshold))
  return thresholds


def _score_retrieval(made: _Images, real: _Images, features, real_features) -> None:
  """Scores whether each image is nearest to its own subject, if there are others."""
  candidates = sorted(set(real.owners))
  if len(candidates) > 1:
    prototypes = jnp.stack([metrics.prototype(real_features[real.of(subject)]) for subject in candidates])
    own = jnp.asarray(np.searchsorted(candidates, made.owners))
    made.put("retrieval", np.arange(len(made.paths)), metrics.retrieval(features, prototypes, own))


def _score_diversity(made: _Images, features, encoders: Encoders) -> None:
  """Scores DIV: the mean distance to the other images of the same subject and prompt, where there are others."""
  groups: dict[tuple[str, str], list[int]] = {}
  for i, (subject, metadata) in enumerate(zip(made.owners, made.metadata, strict=True)):
    if "text" in metadata:
      groups.setdefault((subject, metadata["text"]), []).append(i)
  for indices in map(np.array, groups.values()):
    if len(indices) < 2:
      continue
    if encoders.lpips is None:
      made.put("div_dino", indices, 1 - metrics.similarity_to_others(features[indices]))
      continue
    table = np.zeros((len(indices), len(indices)), np.float32)
    images = [read_image(made.paths[i]) for i in indices]
    upper = np.triu_indices(len(indices), 1)
    table[upper] = np.asarray(encoders.lpips([(images[i], images[j]) for i, j in zip(*upper, strict=True)]))
    made.put("div_lpips", indices, metrics.mean_of_others(jnp.asarray(table + table.T)))


def _score_probe(made: _Images, features: dict[str, Any], words: Mapping[str, tuple[str, ...]]) -> None:
  """Scores the accuracy of each head of the probe over the images that have its label."""
  for head, scores in features.items():
    indices = np.array([i for i, metadata in enumerate(made.metadata) if metadata.get(head) is not None], int)
    if not len(indices):
      continue
    for i in indices:
      if made.metadata[i][head] not in words[head]:
        raise UserError(
          f"{made.paths[i]}: the probe has no {head} {made.metadata[i][head]!r}, only {', '.join(words[head])}"
        )
    labels = jnp.asarray([words[head].index(made.metadata[i][head]) for i in indices])
    made.put(f"accuracy_{head}", indices, metrics.accuracy(scores[indices], labels))


def _score_prior(
  prior: pathlib.Path, subjects: Sequence[str], encoders: Encoders, real: _Images, real_features
) -> _Images:
  """Scores PRES, of images of the class: their similarity to the subject whose model generated them."""
  folders = _list_folders(prior)
  if list(folders) == [""] and len(subjects) == 1:
    folders = {subjects[0]: folders[""]}
  if sorted(folders) != list(subjects):
    names = ", ".join(filter(None, folders)) or "none by name"
    raise UserError(f"{prior} has images for {names}, and the subjects are {', '.join(subjects)}")
  members = _table(folders)
  features = _embed(members.paths, {"dino": encoders.dino}, "class")["dino"]
  for subject in subjects:
    own = members.of(subject)
    members.put("pres", own, metrics.similarity(features[own], real_features[real.of(subject)]))
  return members


def _clusters_are(subjects: Sequence[str]) -> str:
  return "subjects" if len(subjects) > 1 else "images"


def _summaries(tables: Iterable[_Images], subjects: Sequence[str], encoders: Encoders) -> dict[str, dict[str, Any]]:
  """Returns every score with its interval, or a note why it is undefined."""
  found = {name: (values, table.owners) for table in tables for name, values in table.scores.items()}
  names = [*metrics.METRICS, *(name for name in found if name not in metrics.METRICS)]
  skipped = {"face", "face_real"} if encoders.face is None else set()
  skipped |= {"div_dino" if encoders.lpips else "div_lpips"}
  summaries = {}
  for name in names:
    if name not in skipped:
      summaries[name] = _summary(name, *found.get(name, (np.empty(0), np.empty(0, str))), subjects)
  for name in ("dino", "clip_i", "face"):
    ceiling = summaries.get(f"{name}_real", {}).get("mean")
    if ceiling is not None and summaries[name]["mean"] > ceiling:
      summaries[name]["note"] = "above the real-vs-real ceiling: look at the copy rate"
  return summaries


# Why a score may be undefined.
_UNDEFINED = {
  "dino_real": "a single real image cannot be compared with others",
  "clip_i_real": "a single real image cannot be compared with others",
  "face_real": "a single real image cannot be compared with others",
  "clip_t": "there are no prompts",
  "pres": "there are no images of the class's prompt",
  "div_lpips": "no two images are of the same prompt",
  "div_dino": "no two images are of the same prompt",
  "copies": "a single real image gives no similarity between real images",
  "retrieval": "there is but one subject to choose from",
}


def _summary(name: str, values: np.ndarray, owners: np.ndarray, subjects: Sequence[str]) -> dict[str, Any]:
  """Returns the mean and interval of a score over all images that have it, and names subjects without such images."""
  there = np.isfinite(values)
  values, owners = values[there], owners[there]
  metric = metrics.metric(name)
  line = {**dataclasses.asdict(metric), "mean": None, "low": None, "high": None, "n": len(values)}
  if not len(values):
    return line | {"note": f"undefined: {_UNDEFINED[name]}"}
  line["mean"] = float(values.mean(dtype=np.float64))
  clusters = owners if _clusters_are(subjects) == "subjects" else np.arange(len(values))
  different, indices = np.unique(clusters, return_inverse=True)
  if len(different) > 1:
    ends = metrics.bootstrap(
      jax.random.key(_SEED),
      jnp.asarray(values),
      jnp.asarray(indices),
      len(different),
      resamples=_RESAMPLES,
      level=_LEVEL,
    )
    line["low"], line["high"] = (float(end) for end in ends)
  if without := [subject for subject in subjects if subject not in owners]:
    line["note"] = f"undefined for {', '.join(without)}" + (f": {_UNDEFINED[name]}" if name in _UNDEFINED else "")
  return line


def _mean(values: np.ndarray) -> float | None:
  there = values[np.isfinite(values)]
  return float(there.mean(dtype=np.float64)) if len(there) else None


def _subject_report(subject: str, tables: Sequence[_Images], reference: pathlib.Path) -> dict[str, Any]:
  made, real = tables[:2]
  return {
    "images": len(made.of(subject)),
    "references": [real.paths[i].relative_to(reference).as_posix() for i in real.of(subject)],
    "scores": {name: _mean(values[table.of(subject)]) for table in tables for name, values in table.scores.items()},
  }


def _image_report(made: _Images, i: int, generated: pathlib.Path, reference: pathlib.Path) -> dict[str, Any]:
  nearest, cosine = made.nearest[i]
  return {
    "file": made.paths[i].relative_to(generated).as_posix(),
    "subject": str(made.owners[i]),
    "prompt": made.metadata[i].get("text"),
    "nearest": {"file": nearest.relative_to(reference).as_posix(), "cosine": cosine},
    "scores": {name: _mean(values[i : i + 1]) for name, values in made.scores.items()},
  }


def _versions() -> dict[str, str]:
  """Returns the versions of the installed packages that computed the scores."""
  versions = {}
  for name in ("dreamjax", "jax", "numpy", "pillow"):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return versions
