"""Applies thetas to a module: an interceptor makes the edits that the collection "theta" holds for each layer.

Modules know nothing of this. Only a module that uses `nn.scan` has to hand all collections to the layers inside, by
`variable_axes` {True: 0}: with {"params": 0} a theta would not reach them, which is an error here.
"""

from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamjax.errors import UserError
from dreamjax.parallel.sharding import keep_batch_sharded
from dreamjax.theta.edits import edits_of
from dreamjax.theta.kinds import Path, Thetas, compose

#: A module is a self-attention of the network if, and only if, it has one of these names.
SELF_ATTENTION = ("self", "self_attention")
_FEATURES = "features"  # the collection in which `record` keeps what goes into self-attentions


def apply(module: nn.Module, params: dict[str, Any], thetas: Thetas, *args: Any, **kwargs: Any) -> Any:
  """Computes `module.apply({"params": params}, *args, **kwargs)` of the personalised module.

  On a mesh of devices batches stay sharded over it, see `parallel.sharding`.

  Args:
    module: of any class.
    params: the base model's parameters. Those in half precision are cast to float32 where they are used, as the
      module's own `dtype` decides in what is computed.
    thetas: one, or a sequence of several whose effects add up, see `kinds.compose`; None for the base model.
    *args: the module's.
    **kwargs: those of `module.apply` (rngs, method, mutable) and the module's.

  Raises:
    ValueError: if a theta is for another module, or edits layers that it cannot edit.
  """
  return _run(module, compose(params, thetas), None, *args, **kwargs)


def record(
  module: nn.Module, params: dict[str, Any], thetas: Thetas, *args: Any, **kwargs: Any
) -> tuple[Any, dict[str, Float[Array, "b n c"]]]:
  """Computes what `apply` does, and returns the input of each self-attention as well; differentiable.

  Which modules are self-attentions, `SELF_ATTENTION` says by their names. Layers that `models.layers` would run as a
  loop (a module's field `scan`) are written out, for a loop returns nothing of what is inside.

  Args:
    module: as of `apply`, and so are the others.
    params: the base model's parameters.
    thetas: one, several or None.
    *args: the module's.
    **kwargs: those of `module.apply` but `mutable`, and the module's.

  Returns:
    The module's output, and for each self-attention, by its path such as "down_0/transformer_0/layer_0/self", the
    tokens that it was called with: hidden states after the norm where the norm is outside of the attention module
    (LatentUNet), before it where it is inside (Muse, UViT).

  Raises:
    ValueError: as of `apply`; or if the module has no self-attention, or one inside of `nn.scan`.
  """
  if getattr(module, "scan", False):
    module = module.clone(scan=False)
  called: dict[str, tuple[int, ...]] = {}
  out, state = _run(module, compose(params, thetas), called, *args, **kwargs, mutable=[_FEATURES])
  features = {"/".join(path[:-1]): x for path, x in flatten_dict(state.get(_FEATURES, {})).items()}
  if not called:
    raise UserError(f"{type(module).__name__} has no self-attention: no module named {' or '.join(SELF_ATTENTION)}")
  if lost := sorted(path for path in called if path not in features or features[path].shape != called[path]):
    raise UserError(f"the input of {', '.join(lost)} cannot be recorded inside of a loop over layers: write it out")
  return out, features


def _run(
  module: nn.Module, variables: dict[str, Any], inputs: dict[str, tuple[int, ...]] | None, *args: Any, **kwargs: Any
) -> Any:
  """`module.apply(variables, *args, **kwargs)` with all edits.

  With `inputs` the arguments of self-attentions are kept in the collection of features, and their shapes in `inputs`.
  """
  called: set[Path] = set()
  edited: set[Path] = set()

  def intercept(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
    module = context.module
    if context.method_name != "__call__":
      return call(*args, **kwargs)
    called.add(module.path)
    if inputs is not None and module.name in SELF_ATTENTION:
      inputs["/".join(module.path)] = args[0].shape
      if module.is_mutable_collection(_FEATURES):
        module.put_variable(_FEATURES, "input", args[0])
    edits = edits_of(module)
    if edits:
      edited.add(module.path)
    for edit in edits:
      args, kwargs = edit.before(module, args, kwargs)
    y = call(*args, **kwargs)
    for edit in edits:
      y = edit.after(module, y, args, kwargs)
    return y

  variables = {**variables, "params": jax.tree.map(_as_float32, variables["params"])}
  with nn.intercept_methods(intercept), nn.intercept_methods(keep_batch_sharded):
    out = module.apply(variables, *args, **kwargs)
  layers = {path[:-1] for path in flatten_dict(variables.get("theta", {}))}
  if lost := sorted("/".join(layer) for layer in (called - edited) & layers):
    raise UserError(f"the theta does not reach {', '.join(lost)}: give nn.scan the variable_axes {{True: 0}}")
  return out


def _as_float32(x: Any) -> Any:
  is_half = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
  return x.astype(jnp.float32) if is_half else x
