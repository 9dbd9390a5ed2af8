"""Metrics: against plain numpy, written from the papers' definitions, and against what must be so."""

import itertools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.eval import metrics


def embeddings(seed, n, d=6):
  """Some images' embeddings: of any length, not centred."""
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(n, d)) + 0.7) * rng.uniform(0.1, 30, (n, 1))


def cosine(a, b):
  return sum(x * y for x, y in zip(a, b, strict=True)) / np.sqrt(np.sum(a * a) * np.sum(b * b))


def arrays(*values):
  return [jnp.asarray(value, jnp.float32) for value in values]


def agree(found, expected):
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_similarity_is_the_mean_over_all_pairs():
  x, real = embeddings(0, 7), embeddings(1, 4)
  found = metrics.similarity(*arrays(x, real))
  agree(found, [np.mean([cosine(a, b) for b in real]) for a in x])
  agree(jnp.mean(found), np.mean([cosine(a, b) for a in x for b in real]))


def test_text_similarity_is_of_each_image_and_its_own_prompt():
  x, texts = embeddings(0, 5), embeddings(1, 5)
  agree(metrics.text_similarity(*arrays(x, texts)), [cosine(a, b) for a, b in zip(x, texts, strict=True)])


def test_the_ceiling_is_the_mean_over_pairs_of_different_images():
  real = embeddings(2, 6)
  pairs = [cosine(a, b) for a, b in itertools.combinations(real, 2)]
  found = metrics.similarity_to_others(*arrays(real))
  agree(jnp.mean(found), np.mean(pairs))
  agree(found[2], np.mean([cosine(real[2], real[i]) for i in (0, 1, 3, 4, 5)]))
  assert np.mean(found) < np.mean(metrics.similarity(*arrays(real, real))) - 0.01  # which has the pairs (i, i)


def test_the_mean_of_the_others_is_the_mean_distance_of_all_pairs():
  table = np.random.default_rng(3).random((5, 5))
  table = table + table.T
  agree(jnp.mean(metrics.mean_of_others(*arrays(table))), np.mean([table[i, j] for i in range(5) for j in range(i)]))


def test_nearest_is_the_most_similar_one():
  x, real = embeddings(4, 9), embeddings(5, 4)
  places, cosines = metrics.nearest(*arrays(x, real))
  table = np.array([[cosine(a, b) for b in real] for a in x])
  np.testing.assert_array_equal(places, table.argmax(1))
  agree(cosines, table.max(1))


@pytest.mark.parametrize("m", [2, 5])
def test_the_copy_threshold_is_half_the_usual_distance_to_the_nearest_photo(m):
  real = embeddings(6, m)
  threshold = float(metrics.copy_threshold(*arrays(real)))
  units = real / np.linalg.norm(real, axis=1, keepdims=True)
  squares = [min(np.sum((a - b) ** 2) for j, b in enumerate(units) if j != i) for i, a in enumerate(units)]
  agree(threshold, 1 - np.median(squares) / 2 / 4)
  assert threshold > max(cosine(a, b) for a, b in itertools.combinations(real, 2))


def test_copies_are_found_and_a_near_duplicate_among_the_photos_hides_none():
  real = embeddings(7, 5)
  rng = np.random.default_rng(8)
  copied = real + rng.normal(size=real.shape) * 0.02 * np.linalg.norm(real, axis=1, keepdims=True)
  for photos in (real, np.concatenate([real[:4], 2 * copied[:1]])):
    threshold = metrics.copy_threshold(*arrays(photos))
    for images, expected in ((copied[:4], 1), (embeddings(9, 4), 0)):
      _, cosines = metrics.nearest(*arrays(images, photos))
      np.testing.assert_array_equal(metrics.copies(cosines, threshold), expected)


def test_honest_photos_are_seldom_called_copies():
  # New photos of the same subject: a third of them is more similar to some photo than any two photos are to each other.
  rng = np.random.default_rng(10)
  alike, copied = [], []
  for _ in range(200):
    photos = rng.normal(size=(6, 32)) + 1
    new, real = arrays(photos[:1], photos[1:])
    _, cosines = metrics.nearest(new, real)
    table = metrics.cosines(real, real) - jnp.eye(5)
    alike.append(float(cosines[0]) > float(jnp.max(table)))
    copied.append(float(metrics.copies(cosines, metrics.copy_threshold(real))[0]))
  assert 0.25 < np.mean(alike) < 0.42 and np.mean(copied) == 0


def test_retrieval_finds_the_nearest_mean_of_unit_embeddings():
  subjects = [embeddings(20 + i, 3) + 3 * np.eye(6)[i] for i in range(5)]
  x, own = embeddings(30, 40) + 2 * np.eye(6)[np.arange(40) % 5], np.arange(40) % 5
  prototypes = [np.mean([r / np.sqrt(r @ r) for r in real], axis=0) for real in subjects]
  found = jnp.stack([metrics.prototype(*arrays(real)) for real in subjects])
  agree(found, prototypes)
  hits = [np.argmax([cosine(a, p) for p in prototypes]) == k for a, k in zip(x, own, strict=True)]
  assert 0 < np.mean(hits) < 1
  np.testing.assert_array_equal(metrics.retrieval(*arrays(x), found, jnp.asarray(own)), hits)


def test_accuracy_compares_the_best_class_with_the_label():
  scores = np.random.default_rng(11).normal(size=(30, 4))
  labels = np.random.default_rng(12).integers(0, 4, 30)
  expected = [list(row).index(max(row)) == label for row, label in zip(scores, labels, strict=True)]
  assert 0 < np.mean(expected) < 1
  np.testing.assert_array_equal(metrics.accuracy(*arrays(scores), jnp.asarray(labels)), expected)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(st.permutations(range(5)), st.permutations(range(4)), st.floats(0.01, 100))
def test_neither_order_nor_length_matters(order, other, length):
  x, real = arrays(embeddings(0, 5), embeddings(1, 4))
  shuffled = x[jnp.asarray(order)] * length
  real_too = real[jnp.asarray(other)]
  agree(metrics.similarity(shuffled, real_too), metrics.similarity(x, real)[jnp.asarray(order)])
  agree(metrics.similarity_to_others(shuffled), metrics.similarity_to_others(x)[jnp.asarray(order)])
  agree(metrics.nearest(shuffled, real_too)[1], metrics.nearest(x, real)[1][jnp.asarray(order)])
  agree(metrics.copy_threshold(real_too * length), metrics.copy_threshold(real))


def test_known_values():
  axes = jnp.eye(4)
  agree(metrics.similarity(axes, axes), 1 / 4)
  agree(metrics.similarity_to_others(axes), 0)  # so DIV of orthogonal features is 1
  agree(metrics.similarity_to_others(jnp.ones((3, 5))), 1)  # and of one image, thrice, 0
  agree(metrics.text_similarity(axes, -2 * axes), -1)
  agree(metrics.copy_threshold(axes), 3 / 4)
  agree(metrics.retrieval(axes, axes, jnp.array([0, 1, 2, 0])), [1, 1, 1, 0])


class TestBootstrap:
  def interval(self, values, clusters, count, **options):
    values, clusters = jnp.asarray(values, jnp.float32), jnp.asarray(clusters)
    return np.asarray(metrics.bootstrap(jax.random.key(0), values, clusters, count, **options))

  def test_it_is_a_percentile_interval_of_means_of_whole_clusters(self):
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12), rng.integers(1, 9, 12))
    values = rng.normal(size=12)[clusters] + 0.1 * rng.normal(size=len(clusters))
    means = []
    for _ in range(4000):
      drawn = [values[clusters == c] for c in rng.integers(0, 12, 12)]
      means.append(np.concatenate(drawn).mean())
    found = self.interval(values, clusters, 12, resamples=4000, level=0.9)
    np.testing.assert_allclose(found, np.quantile(means, [0.05, 0.95]), atol=0.05)
    alone = self.interval(values, np.arange(len(values)), len(values), resamples=4000, level=0.9)
    assert np.ptp(found) > 1.5 * np.ptp(alone)  # images of one subject are not independent

  def test_it_covers_the_truth_as_often_as_it_says(self):
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(200, 60))
    ends = np.stack([self.interval(sample, np.arange(60), 60, resamples=400, level=0.8) for sample in samples])
    assert 0.7 < np.mean((ends[:, 0] < 0) & (0 < ends[:, 1])) < 0.87

  def test_it_is_deterministic_and_narrows_to_a_point(self):
    values = np.random.default_rng(2).random(20)
    one, two = (self.interval(values, np.arange(20), 20) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(self.interval(np.full(6, 0.25), [0, 0, 1, 1, 2, 2], 3), 0.25)

  def test_the_order_of_images_does_not_matter(self):
    values, clusters = np.random.default_rng(3).random(12), np.arange(12) % 4
    order = np.random.default_rng(4).permutation(12)
    agree(self.interval(values[order], clusters[order], 4), self.interval(values, clusters, 4))


def test_every_metric_has_a_name_and_a_direction():
  assert metrics.metric("pres").better == metrics.metric("copies").better == -1
  assert metrics.metric("accuracy_context").label == "context accuracy"
  assert all(metrics.metric(name).better == 0 for name in metrics.METRICS if name.endswith("_real"))
  with pytest.raises(ValueError, match="unknown metric 'fid'; there are: dino, "):
    metrics.metric("fid")
