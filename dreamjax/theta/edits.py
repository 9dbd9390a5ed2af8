"""Edits: what a theta does to one module each time the module is called.

`theta.expand(params)` returns, besides parameters, a collection "theta" that mirrors the module tree. In it the name of
a module's variable is that of an `Edit`, and its value a tuple of entries, one for each theta that edits the module in
this way; an entry holds the arrays of the edit, by the names of its fields. The interceptor (`theta.intercept`) looks
up the edits of a module with `edits_of`. A new kind of edit is one subclass of `Edit`; nothing else has to know of it.

An entry of zeros must change nothing: `theta.StackedThetas` fills with them what a branch lacks.
"""

import dataclasses
import inspect
from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from dreamjax.errors import UserError

AnyArray = Array | np.ndarray
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
#: The edits, by the names of their variables.
EDITS: dict[str, type["Edit"]] = {}


class Edit:
  """A change of one module, made before the module computes its output, after that, or both.

  A subclass is a dataclass of arrays. It is registered by `class Name(Edit, name="name of its variable")`.
  """

  def __init_subclass__(cls, *, name: str) -> None:
    """Registers the edit; ValueError if there is one of this name."""
    if name in EDITS:
      raise ValueError(f"there are two edits named {name!r}: {EDITS[name].__name__} and {cls.__name__}")
    EDITS[name] = cls

  def before(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """Returns the arguments with which the module is called, from those that it was to be called with."""
    del module
    return args, kwargs

  def after(self, module: nn.Module, y: Any, args: Args, kwargs: Kwargs) -> Any:
    """Returns the edited output, from the output y and the arguments that the module was called with."""
    del module, args, kwargs
    return y


def edits_of(module: nn.Module) -> list[Edit]:
  """The edits of a bound module: kind by kind in the order of `EDITS`, within a kind in the order of the thetas."""
  found = {name: edit for name, edit in EDITS.items() if module.has_variable("theta", name)}
  return [edit(**entry) for name, edit in found.items() for entry in module.get_variable("theta", name)]


@dataclasses.dataclass(frozen=True)
class LowRank(Edit, name="lora"):
  """y + (x A) B, the low-rank update of a Dense or Conv layer (LoRA); B has been multiplied by the scale.

  Attributes:
    down: A, a kernel of the layer's own window.
    up: B.
  """

  down: Float[AnyArray, "*window d r"]
  up: Float[AnyArray, "r e"]

  def after(self, module: nn.Module, y: Any, args: Args, kwargs: Kwargs) -> Any:
    """Adds (x A) B. ValueError for a layer that is neither a Dense nor a two-dimensional, ungrouped Conv.

    x A is computed by the layer itself with A as its kernel, so that strides, padding and dtype are its own.
    """
    groups = getattr(module, "feature_group_count", 1)
    if not isinstance(module, nn.Dense | nn.Conv) or self.down.ndim == 3 or groups > 1:
      what = f"{'/'.join(module.path)}, a {type(module).__name__} whose A has the shape {self.down.shape}"
      raise UserError(f"low-rank updates are for Dense and two-dimensional, ungrouped Conv layers, not for {what}")
    narrow = module.clone(parent=None, name=None, features=self.down.shape[-1], use_bias=False)
    low = narrow.apply({"params": {"kernel": self.down}}, *args, **kwargs)
    return y + low @ self.up.astype(low.dtype)


@dataclasses.dataclass(frozen=True)
class Bottleneck(Edit, name="adapter"):
  """y + gelu(y A) B, an adapter behind a module.

  Attributes:
    down: A.
    up: B.
  """

  down: Float[AnyArray, "d h"]
  up: Float[AnyArray, "h d"]

  def after(self, module: nn.Module, y: Any, args: Args, kwargs: Kwargs) -> Any:
    """Adds gelu(y A) B."""
    del module, args, kwargs
    return y + nn.gelu(y @ self.down.astype(y.dtype)) @ self.up.astype(y.dtype)


@dataclasses.dataclass(frozen=True)
class SoftTokens(Edit, name="soft_prompt"):
  """[c, P], a soft prompt behind the tokens c of the text that a network is conditioned on.

  Attributes:
    tokens: P.
    mask: 1 where there is a token; 0 where there is none, which is where `theta.StackedThetas` pads with zeros.
  """

  tokens: Float[AnyArray, "k d"]
  mask: Float[AnyArray, "k"]

  def before(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """Appends the tokens to the argument `text`, and their mask to the argument `mask`.

    Where the module is called with mask=None, all tokens of the text are unmasked, but those of P are as their own mask
    says: no query ever attends to padding of a soft prompt.

    Raises:
      ValueError: if the module does not take a text and its mask, or takes a text of other channels.
    """
    signature = inspect.signature(type(module).__call__)
    if not {"text", "mask"} <= set(signature.parameters):
      raise UserError(f"a soft prompt is for modules that take a text and its mask, not for {type(module).__name__}")
    bound = signature.bind(module, *args, **kwargs)
    bound.apply_defaults()
    text, mask = bound.arguments["text"], bound.arguments["mask"]
    if self.tokens.shape[-1] != text.shape[-1]:
      raise UserError(f"the soft prompt has {self.tokens.shape[-1]} channels, but the text has {text.shape[-1]}")
    mask = jnp.ones(text.shape[:2], bool) if mask is None else mask
    tokens = jnp.broadcast_to(self.tokens.astype(text.dtype), (len(text), *self.tokens.shape))
    own_mask = jnp.broadcast_to(self.mask > 0, (len(mask), len(self.mask)))
    bound.arguments["text"] = jnp.concatenate([text, tokens], axis=1)
    bound.arguments["mask"] = jnp.concatenate([mask, own_mask], axis=1)
    return bound.args[1:], bound.kwargs
