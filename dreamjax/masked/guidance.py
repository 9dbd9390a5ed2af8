"""Guidance of logits: weighted sums of predictions with and without thetas, for several prompts.

With G(t) the logits of the generator given a prompt t, G_s those with the theta s applied, and n the negative or the
empty prompt:

    G(t) + lambda (G(t) - G(n))                                                                                    (1)
    l(s, t) = G_s(t) + lambda_A (G_s(t) - G(t)) + lambda_B (G(t) - G(n))                                           (2)
    (1 - gamma) l(s, t) + gamma l(c, p)                                                                            (3)

StyleDrop (Sohn et al., 2306.00983), eqs. 1, 4 and 5-6: s is a style and t a prompt with the words of the style, c a
subject and p the same prompt without these words. All are affine combinations of branches; the functions below return
the weights of the branches, whose sum is 1, and `mix` applies them. In Muse lambda rises linearly over the steps
(2301.00704, section 2.7): `rising`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np


def plain(weight: float) -> Float[np.ndarray, "2"]:
  """Returns the weights of G(n) and G(t) in (1), with lambda = `weight`."""
  return np.array([-weight, 1 + weight], np.float32)


def adapted(lambda_a: float, lambda_b: float) -> Float[np.ndarray, "3"]:
  """Returns the weights of G(n), G(t) and G_s(t) in (2)."""
  return np.array([-lambda_b, lambda_b - lambda_a, 1 + lambda_a], np.float32)


def two_thetas(gamma: float, lambda_a: float, lambda_b: float) -> Float[np.ndarray, "5"]:
  """Returns the weights of G(n), G(t), G_s(t), G(p) and G_c(p) in (3).

  Raises:
    ValueError: if gamma is not from 0 to 1.
  """
  if not 0 <= gamma <= 1:
    raise ValueError(f"gamma is from 0, only the style, to 1, only the subject, not {gamma}")
  negative, base, tuned = adapted(lambda_a, lambda_b)
  style, subject = 1 - gamma, gamma
  return np.array([negative, style * base, style * tuned, subject * base, subject * tuned], np.float32)


def rising(
  first: Float[Array | np.ndarray, " k"], last: Float[Array | np.ndarray, " k"], progress: Float[Array, ""]
) -> Float[Array, " k"]:
  """Interpolates weights linearly from `first`, at progress 0, to `last`, at progress 1.

  To start without guidance, let `first` be what the functions above return for lambdas of 0.
  """
  start = jnp.asarray(first)
  return start + progress * (jnp.asarray(last) - start)


def mix(logits: Float[Array, "k b n v"], weights: Float[Array | np.ndarray, " k"]) -> Float[Array, "b n v"]:
  """Computes the weighted sum of the branches, in float32."""
  return jnp.einsum("kbnv,k->bnv", logits.astype(jnp.float32), jnp.asarray(weights, jnp.float32))
