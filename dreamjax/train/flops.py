"""Counts the floating-point operations of a function as it is written, before a compiler changes it."""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
from jax.extend import core

from dreamjax.errors import UserError


def count(function: Callable[..., Any], *args: Any) -> float:
  """Counts the operations of a function's matrix products and convolutions: two for each product of two numbers.

  The body of a `lax.scan` counts as often as it runs; of branches, the most expensive one counts, and of those that
  `lax.platform_dependent` chooses from, the default.

  Args:
    function: traceable by JAX.
    *args: what it is called with, or the shapes.
  """
  return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr: core.Jaxpr) -> float:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> float:
  params = equation.params
  match equation.primitive.name:
    case "dot_general":
      (contracted, _), _ = params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    case "conv_general_dilated":
      return _of_convolution(equation)
    case "scan":
      return params["length"] * _of(params["jaxpr"].jaxpr)
    case "cond" if None in (platforms := params.get("branches_platforms") or ()):
      return _of(params["branches"][platforms.index(None)].jaxpr)
    case "cond":
      return max(_of(branch.jaxpr) for branch in params["branches"])
    case "while":
      raise UserError("how often a while loop runs cannot be known beforehand")
  inner = (getattr(x, "jaxpr", x) for x in params.values())
  return sum(_of(x) for x in inner if isinstance(x, core.Jaxpr))


def _of_convolution(equation: core.JaxprEqn) -> float:
  """Counts a convolution: for each output, the products of numbers that are not padding or holes of a dilation."""
  params, numbers = equation.params, equation.params["dimension_numbers"]
  left, right, out = (x.aval.shape for x in (*equation.invars, equation.outvars[0]))
  channels = right[numbers.rhs_spec[1]]
  products = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * channels
  for i, (low, _) in enumerate(params["padding"]):
    size, window, places = left[numbers.lhs_spec[2 + i]], right[numbers.rhs_spec[2 + i]], out[numbers.out_spec[2 + i]]
    stride, inside, outside = params["window_strides"][i], params["lhs_dilation"][i], params["rhs_dilation"][i]
    products *= taps(size, window, places, stride, low, inside, outside)
  return 2.0 * products


@functools.cache
def taps(size: int, window: int, places: int, stride: int, low: int, inside: int, outside: int) -> int:
  """Counts the products of a convolution along an axis that are not with padding or with holes of a dilation.

  Args:
    size: of the input.
    window: of the kernel.
    places: number of positions of the output.
    stride: between them.
    low: padding before the input's first position.
    inside: dilation of the input.
    outside: dilation of the kernel.
  """
  found = 0
  for tap in range(window):
    for where in range(tap * outside - low, tap * outside - low + places * stride, stride):
      found += where % inside == 0 and 0 <= where < size * inside - inside + 1
  return found
