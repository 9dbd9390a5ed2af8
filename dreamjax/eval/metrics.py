"""The metrics of papers on personalised generation, as pure functions of embeddings.

With u(x) = x / |x| and the cosine similarity of two embeddings

    cos(a, b) = u(a) . u(b)                                                                                        (1)

the metrics are, for generated images x_i of one subject and its real images r_j, j = 1..m:

    similarity          s_i = 1/m sum_j cos(x_i, r_j)                                                              (2)
    similarity to text  s_i = cos(x_i, t_i)                                                                        (3)
    to the others       s_i = 1/(n-1) sum_{k != i} cos(x_i, x_k)                                                   (4)

CLIP-I, DINO and PRES (Ruiz et al., DreamBooth, 2208.12242, section 4.1 and table 3), the face recognition score (Ruiz
et al., HyperDreamBooth, 2307.06949) and StyleDrop's style score (Sohn et al., 2306.00983) are all (2), with other
embeddings or other images; CLIP-T and StyleDrop's text score are (3); the real-vs-real ceiling is (4) of the real
images; DIV is the mean distance to the others of one subject and prompt, 1 - (4) unless the distance is LPIPS's.
`METRICS` lists them. DreamTuner (Hua et al., 2312.13691) reports CLIP-T and CLIP-I.

Each function returns one value for each image. A table's score is their mean over all images, which is the mean over
all pairs if every subject has the same number of real images; its interval is that of `bootstrap`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dreamjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Metric:
  """The name of a score, and how to read it.

  Attributes:
    label: its name in tables.
    better: 1 if higher is better, -1 if lower is, 0 if it is a reference for others.
    source: its equation above, the embedding, and the paper.
  """

  label: str
  better: int
  source: str


#: The metrics by their names in results and protocols. `metric` adds the accuracy of every head of a probe.
METRICS = {
  "dino": Metric("DINO", 1, "(2), DINO ViT-S/16; DreamBooth section 4.1, HyperDreamBooth"),
  "dino_real": Metric("DINO, real-vs-real", 0, "(4) of the real images, DINO; DreamBooth table 1, 'real images'"),
  "clip_i": Metric("CLIP-I", 1, "(2), CLIP's image tower; DreamBooth section 4.1, DreamTuner; StyleDrop's 'Style'"),
  "clip_i_real": Metric("CLIP-I, real-vs-real", 0, "(4) of the real images, CLIP; DreamBooth table 1"),
  "clip_t": Metric("CLIP-T", 1, "(3), CLIP; DreamBooth section 4.1, HyperDreamBooth, DreamTuner; StyleDrop's 'Text'"),
  "face": Metric("face identity", 1, "(2), a face recognition network; HyperDreamBooth's 'Face Rec.'"),
  "face_real": Metric("face identity, real-vs-real", 0, "(4) of the real images, a face recognition network"),
  "pres": Metric("PRES", -1, "(2) of generated members of the class, DINO; DreamBooth table 3"),
  "div_lpips": Metric("DIV (LPIPS)", 1, "mean LPIPS to the others of a prompt; DreamBooth table 3"),
  "div_dino": Metric("DIV (1 - DINO)", 1, "1 - (4) of one prompt's images, DINO, where LPIPS has no weights"),
  "copies": Metric("copy rate", -1, "(6), DINO"),
  "retrieval": Metric("subject retrieval@1", 1, "(7), DINO"),
}


def metric(name: str) -> Metric:
  """Returns the metric of this name; `accuracy_<head>` is the accuracy (8) of a probe's head. ValueError if unknown."""
  if name.startswith("accuracy_"):
    return Metric(f"{name.removeprefix('accuracy_')} accuracy", 1, "(8), a probe that was trained on ground truth")
  if name not in METRICS:
    raise UserError(f"unknown metric {name!r}; there are: {', '.join(METRICS)}, accuracy_<head of the probe>")
  return METRICS[name]


def unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
  """Scales embeddings to length 1."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def cosines(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
  """Computes equation (1) for all pairs."""
  return unit(a) @ unit(b).T


def similarity(generated: Float[Array, "n d"], real: Float[Array, "m d"]) -> Float[Array, " n"]:
  """Equation (2): mean similarity of each generated image to the real ones.

  Args:
    generated: embeddings of a subject's generated images; for PRES, of generated members of its class.
    real: embeddings of the subject's real images; for StyleDrop's style score, of the style's.
  """
  return jnp.mean(cosines(generated, real), axis=1)


def text_similarity(generated: Float[Array, "n d"], texts: Float[Array, "n d"]) -> Float[Array, " n"]:
  """Equation (3): similarity of each image to its own prompt."""
  return jnp.sum(unit(generated) * unit(texts), axis=1)


def similarity_to_others(x: Float[Array, "n d"]) -> Float[Array, " n"]:
  """Equation (4): mean similarity of each image to the others, never to itself. Needs two images."""
  return mean_of_others(cosines(x, x))


def mean_of_others(pairs: Float[Array, "n n"]) -> Float[Array, " n"]:
  """Means of the rows of a table of pairs, without the diagonal. Needs two images."""
  n = len(pairs)
  return jnp.sum(jnp.where(jnp.eye(n, dtype=bool), 0.0, pairs), axis=1) / (n - 1)


def nearest(generated: Float[Array, "n d"], real: Float[Array, "m d"]) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
  """Returns the index of the real image most similar to each generated one, and the similarity."""
  table = cosines(generated, real)
  return jnp.argmax(table, axis=1), jnp.max(table, axis=1)


def copy_threshold(real: Float[Array, "m d"]) -> Float[Array, ""]:
  """Returns the similarity to a real image above which a generated one is its copy. Needs two real images.

    tau = 1 - 1/4 median_i min_{j != i} (1 - cos(r_i, r_j))                                                        (5)

  It is computed from the real images, because typical similarities differ between subjects and between encoders. The
  obvious threshold, the largest real-vs-real similarity, is too low: if a generated image is as good as one more
  photo, it is by symmetry part of the most similar of the now (m+1)m/2 pairs with probability 2/(m+1), so that with
  five photos a third of such images would count as copies. A copy is an image that is *much* nearer than photos are to
  each other: its Euclidean distance to the nearest photo, between unit embeddings, |u(a) - u(b)|^2 = 2 (1 - cos), is
  less than half the typical one between nearest photos. The median makes (5) robust to near-duplicates among the
  photos, as in the DreamBooth data set (`cat/03`, `dog5/03`).
  """
  table = cosines(real, real)
  distances = 1 - jnp.max(jnp.where(jnp.eye(len(real), dtype=bool), -jnp.inf, table), axis=1)
  return 1 - jnp.median(distances) / 4


def copies(similarities: Float[Array, " n"], threshold: Float[Array, ""]) -> Float[Array, " n"]:
  """Returns 1 for images that are near-duplicates of a real one, else 0; the mean is the copy rate.

    c_i = [max_j cos(x_i, r_j) > tau]                                                                              (6)

  Args:
    similarities: to the `nearest` real image.
    threshold: tau, `copy_threshold` of the real images.
  """
  return (similarities > threshold).astype(jnp.float32)


def prototype(real: Float[Array, "m d"]) -> Float[Array, " d"]:
  """Returns a candidate for `retrieval`: the mean of the unit embeddings of a subject's real images."""
  return jnp.mean(unit(real), axis=0)


def retrieval(
  generated: Float[Array, "n d"], candidates: Float[Array, "k d"], own: Int[Array, " n"]
) -> Float[Array, " n"]:
  """Returns 1 for images whose nearest candidate is their own subject, else 0; the mean is retrieval@1.

    h_i = [argmax_k cos(x_i, p_k) = own_i],  p_k = 1/m sum_j u(r_kj)                                               (7)

  Args:
    generated: embeddings of generated images.
    candidates: the `prototype` of each candidate subject.
    own: the candidate that each image should show.
  """
  return (jnp.argmax(cosines(generated, candidates), axis=1) == own).astype(jnp.float32)


def accuracy(scores: Float[Array, "n c"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
  """Returns 1 where a probe's head predicts the label, else 0: a_i = [argmax_c scores_ic = labels_i]  (8)."""
  return (jnp.argmax(scores, axis=1) == labels).astype(jnp.float32)


def bootstrap(
  key: Key[Array, ""],
  values: Float[Array, " n"],
  clusters: Int[Array, " n"],
  count: int,
  *,
  resamples: int = 1000,
  level: float = 0.95,
) -> Float[Array, "2"]:
  """Percentile bootstrap interval of a mean, resampling whole clusters with replacement (Efron and Tibshirani, 1993).

  Scores of images of one subject are correlated, so that resampling images would make intervals too narrow: if there
  are several subjects, they are the clusters. A resample's value is the mean of its images.

  Args:
    key: of the resampling; the same key gives the same interval.
    values: one for each image.
    clusters: the cluster of each, 0 to `count` - 1, none of them empty.
    count: how many clusters there are.
    resamples: number of resampled means.
    level: share of them inside the interval.

  Returns:
    The lower and the upper end of the interval.
  """
  sums = jax.ops.segment_sum(values, clusters, count)
  sizes = jax.ops.segment_sum(jnp.ones_like(values), clusters, count)
  drawn = jax.random.randint(key, (resamples, count), 0, count)
  means = jnp.sum(sums[drawn], axis=1) / jnp.sum(sizes[drawn], axis=1)
  return jnp.quantile(means, jnp.array([(1 - level) / 2, (1 + level) / 2]))
