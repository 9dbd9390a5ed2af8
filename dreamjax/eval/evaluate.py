"""Scores folders of generated images against folders of real ones.

Where papers leave a choice open, the choice is recorded in the result: which encoders, whether CLIP-T sees the
identifier, what DIV's distance is, and the similarity above which an image counts as a copy.
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

from dreamjax.data.image_folder import METADATA
from dreamjax.data.photos import SUFFIXES, read_image
from dreamjax.eval import metrics
from dreamjax.eval.encoders import Encoders

_CHUNK = 64  # images or texts embedded at once, so that no more images are ever held in memory
_RESAMPLES, _LEVEL, _SEED = 1000, 0.95, 0


@dataclasses.dataclass
class _Images:
  """Images of several subjects, in order, and one value of each, NaN where undefined, for every score.

  Attributes:
    paths: where they are.
    owners: the subject that each should show.
    known: what is known of each: the keys of its metadata.
    scores: by the name of the metric; [n].
    nearest: for each, the most similar real image of its subject, and how similar it is.
  """

  paths: list[pathlib.Path]
  owners: np.ndarray
  known: list[dict[str, Any]]
  scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  nearest: dict[int, tuple[pathlib.Path, float]] = dataclasses.field(default_factory=dict)

  def of(self, subject: str) -> np.ndarray:
    """The places of a subject's images."""
    return np.flatnonzero(self.owners == subject)

  def put(self, score: str, places: np.ndarray, values: Any) -> None:
    """Sets some images' values of a score."""
    self.scores.setdefault(score, np.full(len(self.paths), np.nan, np.float32))[places] = np.asarray(values)


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

  Images of one subject lie in a folder, those of several in one sub-folder a subject. A folder with `metadata.jsonl`
  has the images that it lists; one without has all that it holds. Prompts are the `text` of the metadata, or the
  content of a .txt file beside each image, or the lines of `prompts`. Keys of the metadata that are heads of the
  probe ("class", "context") say what the image should show.

  Args:
    generated: the images to be scored.
    reference: the real images. Sub-folders are matched by name; those of further subjects are distractors for
      retrieval, so for the strictest retrieval they are subjects of the same class.
    encoders: what looks at the images.
    prompts: a file with one line an image, in the order of subjects and of file names; goes before other prompts.
    identifier: stripped from the prompts before CLIP reads them, as Textual Inversion's evaluation does; kept if not
      given.
    prior: images generated from the class's prompt ("a dog") by each personalised model, for PRES; laid out as
      `generated`.

  Returns:
    What `json` can write: "scores", each with its interval or a note why it is undefined; "subjects" and "images"
    with theirs; "settings", all choices that were made.

  Raises:
    OSError: if a folder or file is missing.
    ValueError: if a folder is empty, an image cannot be read, or names, prompts or labels do not fit.
  """
  made, real = _matched(generated, reference)
  subjects = sorted(set(made.owners.tolist()))
  _read_prompts(made, prompts)
  texts = _texts(made, identifier)

  image_encoders = {"dino": encoders.dino, "clip_i": encoders.clip_image, "face": encoders.face}
  image_encoders = {name: encoder for name, encoder in image_encoders.items() if encoder is not None}
  probe = {"probe": encoders.probe} if encoders.probe is not None else {}
  seen = _embed(made.paths, image_encoders | probe, "generated")
  known = _embed(real.paths, image_encoders, "real")

  for name in image_encoders:
    _score_likeness(name, made, real, seen[name], known[name], subjects)
  thresholds = _score_copies(made, real, seen["dino"], known["dino"], subjects)
  _score_retrieval(made, real, seen["dino"], known["dino"])
  _score_diversity(made, seen["dino"], encoders)
  if texts is not None:
    made.put("clip_t", np.arange(len(texts)), metrics.text_similarity(seen["clip_i"], _embed_texts(texts, encoders)))
  if probe:
    _score_probe(made, seen["probe"], encoders.words)
  tables = [made, real]
  if prior is not None:
    tables.append(_score_prior(prior, subjects, encoders, real, known["dino"]))

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


def _listed(folder: pathlib.Path) -> list[tuple[pathlib.Path, dict[str, Any]]]:
  """The images in a folder, by name, and what is known of them: those of its metadata, or all that there are."""
  if not (folder / METADATA).exists():
    return [(path, {}) for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
  entries = []
  for number, line in enumerate((folder / METADATA).read_text().splitlines(), start=1):
    try:
      known = json.loads(line)
      entries.append((folder / known.pop("file_name"), known))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(f"{folder / METADATA}:{number} is no JSON object with a file_name") from error
  return sorted(entries, key=lambda entry: entry[0].name)


def _folders(root: pathlib.Path) -> dict[str, list[tuple[pathlib.Path, dict[str, Any]]]]:
  """The images in a folder, under the name "", and in its sub-folders; ValueError if there are none."""
  if not root.is_dir():
    raise FileNotFoundError(f"there is no folder {root}")
  found = {"": _listed(root)} | {path.name: _listed(path) for path in sorted(root.iterdir()) if path.is_dir()}
  if not any(found.values()):
    raise ValueError(f"there are no images in {root}")
  return {name: images for name, images in found.items() if images}


def _matched(generated: pathlib.Path, reference: pathlib.Path) -> tuple[_Images, _Images]:
  """Generated and real images by subject; the real ones of further subjects, too."""
  made, real = _folders(generated), _folders(reference)
  if "" in made and len(made) > 1:
    raise ValueError(f"{generated} holds images both itself and in sub-folders: which are the subject's?")
  if "" in made:
    name = generated.resolve().name
    made = {name: made.pop("")}
    if "" in real:
      real.pop(name, None)
      real = {name: real.pop(""), **real}
  else:
    real.pop("", None)
  if missing := [name for name in made if name not in real]:
    raise ValueError(
      f"{reference} has no real images of {', '.join(missing)}, only of {', '.join(real) or 'nobody by name'}"
    )
  return _images(made), _images(real)


def _images(folders: dict[str, list[tuple[pathlib.Path, dict[str, Any]]]]) -> _Images:
  rows = [(subject, *entry) for subject in sorted(folders) for entry in folders[subject]]
  owners, paths, known = (list(column) for column in zip(*rows, strict=True))
  return _Images(paths, np.array(owners), known)


def _read_prompts(made: _Images, prompts: pathlib.Path | None) -> None:
  """Puts every image's prompt under "text", where it has one."""
  if prompts is not None:
    lines = prompts.read_text().splitlines()
    if len(lines) != len(made.paths):
      raise ValueError(f"{prompts} has {len(lines)} prompts, and there are {len(made.paths)} generated images")
    for known, line in zip(made.known, lines, strict=True):
      known["text"] = line
  for path, known in zip(made.paths, made.known, strict=True):
    if "text" not in known and (beside := path.with_suffix(".txt")).exists():
      known["text"] = beside.read_text().strip()
    if not isinstance(known.get("text", ""), str):
      raise ValueError(f"{path}: its prompt is {known['text']!r}, and must be text")
  without = [path for path, known in zip(made.paths, made.known, strict=True) if "text" not in known]
  if without and len(without) < len(made.paths):
    raise ValueError(f"{len(without)} of {len(made.paths)} images have no prompt, {without[0]} for one")


def _texts(made: _Images, identifier: str | None) -> list[str] | None:
  """The prompts as CLIP reads them; None if there are none."""
  if "text" not in made.known[0]:
    return None
  texts = [known["text"] for known in made.known]
  if identifier is None:
    return texts
  word = re.compile(rf"(?<!\w){re.escape(identifier)}(?!\w)")
  if not any(word.search(text) for text in texts):
    raise ValueError(f"the identifier {identifier!r} is in none of the prompts, such as {texts[0]!r}")
  return [" ".join(word.sub(" ", text).split()) for text in texts]


def _embed(paths: Sequence[pathlib.Path], encoders: dict[str, Callable], what: str) -> dict[str, Any]:
  """What each encoder makes of the images, read a chunk at a time: arrays, or dicts of arrays."""
  parts: dict[str, list] = {name: [] for name in encoders}
  with tqdm.tqdm(total=len(paths), unit=" images", desc=f"looking at {what} images", disable=None) as bar:
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
  """CLIP's embedding of each text; each different text is embedded once."""
  different = sorted(set(texts))
  rows = [np.asarray(encoders.clip_text(chunk), np.float32) for chunk in _chunks(different)]
  embedded = np.concatenate(rows)
  _check_finite(embedded, different, "clip_text")
  return jnp.asarray(embedded[[different.index(text) for text in texts]])


def _chunks(items: Sequence) -> Iterator[Sequence]:
  yield from (items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK))


def _check_finite(embedded: np.ndarray, of: Sequence[Any], name: str) -> None:
  for x, what in zip(embedded, of, strict=True):
    if not np.isfinite(x).all():
      raise ValueError(f"the encoder {name} makes no finite numbers of {what}")


def _score_likeness(name: str, made: _Images, real: _Images, seen, known, subjects: Iterable[str]) -> None:
  """DINO, CLIP-I or face identity, with the real-vs-real ceiling of those subjects that have two real images."""
  for subject in subjects:
    own, photos = made.of(subject), real.of(subject)
    made.put(name, own, metrics.similarity(seen[own], known[photos]))
    if len(photos) > 1:
      real.put(f"{name}_real", photos, metrics.similarity_to_others(known[photos]))


def _score_copies(made: _Images, real: _Images, seen, known, subjects: Iterable[str]) -> dict[str, float | None]:
  """Each image's nearest real one, and whether it is a copy; returns each subject's threshold, if it has one."""
  thresholds: dict[str, float | None] = {}
  for subject in subjects:
    own, photos = made.of(subject), real.of(subject)
    places, cosines = jax.device_get(metrics.nearest(seen[own], known[photos]))
    for i, place, cosine in zip(own, places, cosines, strict=True):
      made.nearest[int(i)] = (real.paths[photos[place]], float(cosine))
    thresholds[subject] = None
    if len(photos) > 1:
      threshold = metrics.copy_threshold(known[photos])
      thresholds[subject] = float(threshold)
      made.put("copies", own, metrics.copies(jnp.asarray(cosines), threshold))
  return thresholds


def _score_retrieval(made: _Images, real: _Images, seen, known) -> None:
  """Whether each image is nearest to its own subject, if there are others."""
  candidates = sorted(set(real.owners))
  if len(candidates) > 1:
    prototypes = jnp.stack([metrics.prototype(known[real.of(subject)]) for subject in candidates])
    own = jnp.asarray(np.searchsorted(candidates, made.owners))
    made.put("retrieval", np.arange(len(made.paths)), metrics.retrieval(seen, prototypes, own))


def _score_diversity(made: _Images, seen, encoders: Encoders) -> None:
  """DIV: mean distance to the other images of the same subject and prompt, where there are others."""
  groups: dict[tuple[str, str], list[int]] = {}
  for i, (subject, known) in enumerate(zip(made.owners, made.known, strict=True)):
    if "text" in known:
      groups.setdefault((subject, known["text"]), []).append(i)
  for places in map(np.array, groups.values()):
    if len(places) < 2:
      continue
    if encoders.lpips is None:
      made.put("div_dino", places, 1 - metrics.similarity_to_others(seen[places]))
      continue
    table = np.zeros((len(places), len(places)), np.float32)
    images = [read_image(made.paths[i]) for i in places]
    upper = np.triu_indices(len(places), 1)
    table[upper] = np.asarray(encoders.lpips([(images[i], images[j]) for i, j in zip(*upper, strict=True)]))
    made.put("div_lpips", places, metrics.mean_of_others(jnp.asarray(table + table.T)))


def _score_probe(made: _Images, seen: dict[str, Any], words: Mapping[str, tuple[str, ...]]) -> None:
  """Accuracy of each head of the probe over the images that have its label."""
  for head, scores in seen.items():
    places = np.array([i for i, known in enumerate(made.known) if known.get(head) is not None], int)
    if not len(places):
      continue
    for i in places:
      if made.known[i][head] not in words[head]:
        raise ValueError(
          f"{made.paths[i]}: the probe knows no {head} {made.known[i][head]!r}, only {', '.join(words[head])}"
        )
    labels = jnp.asarray([words[head].index(made.known[i][head]) for i in places])
    made.put(f"accuracy_{head}", places, metrics.accuracy(scores[places], labels))


def _score_prior(prior: pathlib.Path, subjects: Sequence[str], encoders: Encoders, real: _Images, known) -> _Images:
  """PRES, of a table of its own: images of the class, each compared with the subject whose model drew it."""
  folders = _folders(prior)
  if list(folders) == [""] and len(subjects) == 1:
    folders = {subjects[0]: folders[""]}
  if sorted(folders) != list(subjects):
    names = ", ".join(filter(None, folders)) or "nobody by name"
    raise ValueError(f"{prior} has images for {names}, and the subjects are {', '.join(subjects)}")
  members = _images(folders)
  seen = _embed(members.paths, {"dino": encoders.dino}, "class")["dino"]
  for subject in subjects:
    own = members.of(subject)
    members.put("pres", own, metrics.similarity(seen[own], known[real.of(subject)]))
  return members


def _clusters_are(subjects: Sequence[str]) -> str:
  return "subjects" if len(subjects) > 1 else "images"


def _summaries(tables: Iterable[_Images], subjects: Sequence[str], encoders: Encoders) -> dict[str, dict[str, Any]]:
  """Every score with its interval, and a note on each that is undefined."""
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


# Why a score can be missing.
_UNDEFINED = {
  "dino_real": "one real image only has no other to be compared with",
  "clip_i_real": "one real image only has no other to be compared with",
  "face_real": "one real image only has no other to be compared with",
  "clip_t": "there are no prompts",
  "pres": "there are no images of the class's prompt",
  "div_lpips": "no two images are of the same prompt",
  "div_dino": "no two images are of the same prompt",
  "copies": "one real image only does not tell how alike real images are",
  "retrieval": "there is but one subject to choose from",
}


def _summary(name: str, values: np.ndarray, owners: np.ndarray, subjects: Sequence[str]) -> dict[str, Any]:
  """Mean and interval of a score over all images that have it, and which subjects have none that do."""
  there = np.isfinite(values)
  values, owners = values[there], owners[there]
  metric = metrics.metric(name)
  line = {**dataclasses.asdict(metric), "mean": None, "low": None, "high": None, "n": len(values)}
  if not len(values):
    return line | {"note": f"undefined: {_UNDEFINED[name]}"}
  line["mean"] = float(values.mean(dtype=np.float64))
  clusters = owners if _clusters_are(subjects) == "subjects" else np.arange(len(values))
  different, places = np.unique(clusters, return_inverse=True)
  if len(different) > 1:
    ends = metrics.bootstrap(
      jax.random.key(_SEED),
      jnp.asarray(values),
      jnp.asarray(places),
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
    "prompt": made.known[i].get("text"),
    "nearest": {"file": nearest.relative_to(reference).as_posix(), "cosine": cosine},
    "scores": {name: _mean(values[i : i + 1]) for name, values in made.scores.items()},
  }


def _versions() -> dict[str, str]:
  """The versions of what computed the scores, as far as it is installed."""
  versions = {}
  for name in ("dreamjax", "jax", "numpy", "pillow"):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return versions
