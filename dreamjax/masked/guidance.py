"""Guidance of logits: mixtures of what networks with and without a theta say of several prompts.

With G the generator, G_s the same with the theta s applied, t a prompt and n the negative or the empty one:

    G(t) + lambda (G(t) - G(n))                                                                                    (1)
    l(s, t) = G_s(t) + lambda_A (G_s(t) - G(t)) + lambda_B (G(t) - G(n))                                           (2)
    (1 - gamma) l(s, t) + gamma l(c, p)                                                                            (3)

StyleDrop (Sohn et al., 2306.00983), eqs. 1, 4 and 5-6: s a style and t a prompt with its words, c a subject and p the
same prompt without them. All are affine mixtures of branches; the functions below return the branches' weights, whose
sum is 1, and `mix` applies them. Muse lets lambda rise linearly over the steps (2301.00704, section 2.7): `rising`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np


def plain(weight: float) -> Float[np.ndarray, "2"]:
  """Equation (1): weights of G(n) and G(t), lambda being `weight`."""
  return np.array([-weight, 1 + weight], np.float32)


def adapted(lambda_a: float, lambda_b: float) -> Float[np.ndarray, "3"]:
  """Equation (2): weights of G(n), G(t) and G_s(t)."""
  return np.array([-lambda_b, lambda_b - lambda_a, 1 + lambda_a], np.float32)


def two_thetas(gamma: float, lambda_a: float, lambda_b: float) -> Float[np.ndarray, "5"]:
  """Equation (3): weights of G(n), G(t), G_s(t), G(p) and G_c(p).

  Raises:
    ValueError: if gamma is not from 0 to 1.
  """
  if not 0 <= gamma <= 1:
    raise ValueError(f"gamma is from 0, the style alone, to 1, the subject alone: not {gamma}")
  negative, own, tuned = adapted(lambda_a, lambda_b)
  style, subject = 1 - gamma, gamma
  return np.array([negative, style * own, style * tuned, subject * own, subject * tuned], np.float32)


def rising(
  first: Float[Array | np.ndarray, " k"], last: Float[Array | np.ndarray, " k"], progress: Float[Array, ""]
) -> Float[Array, " k"]:
  """Weights that go linearly from those of the first step to those of the last, as the progress does from 0 to 1.

  The first are of no guidance: those that the functions above return where both lambdas are 0.
  """
  start = jnp.asarray(first)
  return start + progress * (jnp.asarray(last) - start)


def mix(logits: Float[Array, "k b n v"], weights: Float[Array | np.ndarray, " k"]) -> Float[Array, "b n v"]:
  """The weighted sum of the branches, in float32."""
  return jnp.einsum("kbnv,k->bnv", logits.astype(jnp.float32), jnp.asarray(weights, jnp.float32))
