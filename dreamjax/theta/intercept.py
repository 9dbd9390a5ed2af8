"""Applying a theta: an interceptor reads the collection "theta" wherever it has an entry for a layer.

Modules know nothing of this. Only where one uses `nn.scan` do its `variable_axes` have to hand all collections in, as
{True: 0} does: with {"params": 0} the theta would not reach the layers inside, which is an error here.
"""

from collections.abc import Callable
import inspect
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
from jaxtyping import Float

from dreamjax.parallel.sharding import keep_batch_sharded
from dreamjax.theta.kinds import AnyArray, Path, StackedThetas, Theta


def apply(
  module: nn.Module, params: dict[str, Any], theta: Theta | StackedThetas | None, *args: Any, **kwargs: Any
) -> Any:
  """`module.apply({"params": params}, *args, **kwargs)` of the personalised module.

  On a mesh of devices rows stay spread over it, see `parallel.sharding`.

  Args:
    module: of any sort.
    params: the base model's parameters. Those that are held in half precision are made float32 where they are used, for
      then the module's own `dtype` says in what is computed.
    theta: the personalisation; None for the base model.
    *args: the module's.
    **kwargs: those of `module.apply` (rngs, method, mutable) and the module's.

  Raises:
    ValueError: if the theta is for another module, or changes layers that it cannot change.
  """
  variables = {"params": params} if theta is None else theta.expand(params)
  variables = {**variables, "params": jax.tree.map(_whole, variables["params"])}
  called: set[Path] = set()
  changed: set[Path] = set()
  with nn.intercept_methods(_interceptor(called, changed)), nn.intercept_methods(keep_batch_sharded):
    out = module.apply(variables, *args, **kwargs)
  layers = {path[:-1] for path in flatten_dict(variables.get("theta", {}))}
  if lost := sorted("/".join(layer) for layer in (called - changed) & layers):
    raise ValueError(f"the theta does not reach {', '.join(lost)}: give nn.scan the variable_axes {{True: 0}}")
  return out


def _whole(x: Any) -> Any:
  is_half = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
  return x.astype(jnp.float32) if is_half else x


def _interceptor(called: set[Path], changed: set[Path]) -> Callable[..., Any]:
  """What `nn.intercept_methods` wants; it adds to `called` and `changed` the paths of layers as they come up."""

  def intercept(next_function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
    module = context.module
    if context.method_name != "__call__":
      return next_function(*args, **kwargs)
    called.add(module.path)
    if module.has_variable("theta", "soft_tokens"):
      changed.add(module.path)
      args, kwargs = _with_soft_tokens(module, args, kwargs)
    y = next_function(*args, **kwargs)
    if module.has_variable("theta", "lora_down"):
      changed.add(module.path)
      down, up = (module.get_variable("theta", name) for name in ("lora_down", "lora_up"))
      return y + _low_rank(module, down, up, *args, **kwargs)
    if module.has_variable("theta", "adapter_down"):
      changed.add(module.path)
      down, up = (module.get_variable("theta", name) for name in ("adapter_down", "adapter_up"))
      return y + nn.gelu(y @ down.astype(y.dtype)) @ up.astype(y.dtype)
    return y

  return intercept


def _with_soft_tokens(
  module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
  """The arguments, with more tokens behind those of the text, and more places in its mask."""
  told = inspect.signature(type(module).__call__).bind(module, *args, **kwargs)
  if "text" not in told.arguments or "mask" not in told.arguments:
    raise ValueError(f"a soft prompt is for modules that are told a text and its mask, not for {type(module).__name__}")
  text, mask = told.arguments["text"], told.arguments["mask"]
  tokens, used = (module.get_variable("theta", name) for name in ("soft_tokens", "soft_mask"))
  if tokens.shape[-1] != text.shape[-1]:
    raise ValueError(f"the soft prompt has {tokens.shape[-1]} channels, but the text has {text.shape[-1]}")
  more = jnp.broadcast_to(tokens.astype(text.dtype), (len(text), *tokens.shape))
  told.arguments["text"] = jnp.concatenate([text, more], axis=1)
  if mask is not None:
    places = jnp.broadcast_to(used > 0, (len(mask), len(used)))
    told.arguments["mask"] = jnp.concatenate([mask, places], axis=1)
  return told.args[1:], told.kwargs


def _low_rank(
  module: nn.Module,
  down: Float[AnyArray, "*window d r"],
  up: Float[AnyArray, "*scanned r e"],
  *args: Any,
  **kwargs: Any,
) -> Float[AnyArray, "*b e"]:
  """(x A) B: the layer itself with A for its kernel, so that strides, padding and dtype are its own; then B."""
  groups = getattr(module, "feature_group_count", 1)
  if not isinstance(module, nn.Dense | nn.Conv) or down.ndim == 3 or groups > 1:
    what = f"{'/'.join(module.path)}, a {type(module).__name__} whose A has the shape {down.shape}"
    raise ValueError(f"low-rank updates are for Dense and two-dimensional, ungrouped Conv layers, not for {what}")
  narrow = module.clone(parent=None, name=None, features=down.shape[-1], use_bias=False)
  low = narrow.apply({"params": {"kernel": down}}, *args, **kwargs)
  return low @ up.astype(low.dtype)
