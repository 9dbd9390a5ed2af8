"""The state of a training: what it changes, and what it only reads."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import optax

from dreamjax.parallel.sharding import param_shardings, shard_params


@struct.dataclass
class TrainState:
  """The state of a training.

  Attributes:
    step: how many updates were made.
    theta: the trainable parameters; nothing else is differentiated.
    frozen: what the loss reads besides theta, such as a pretrained generator's parameters; None if there is nothing.
    opt_state: the optimizer's, with the moving average of theta in it.
  """

  step: Int[Array, ""]
  theta: Any
  frozen: Any
  opt_state: Any

  @classmethod
  def create(
    cls, theta: Any, tx: optax.GradientTransformation, frozen: Any = None, mesh: jax.sharding.Mesh | None = None
  ) -> "TrainState":
    """Returns the state before the first update.

    Args:
      theta: what is trained.
      tx: the optimizer, whose state is initialised sharded, as a device may be too small to hold all of it.
      frozen: what is only read.
      mesh: of devices, see `sharding`; None for the first device alone.
    """
    step = jnp.zeros((), jnp.int32)
    if mesh is None:
      return cls(step=step, theta=theta, frozen=frozen, opt_state=tx.init(theta))
    step, theta, frozen = shard_params((step, theta, frozen), mesh)
    places = param_shardings(jax.eval_shape(tx.init, theta), mesh)
    return cls(step=step, theta=theta, frozen=frozen, opt_state=jax.jit(tx.init, out_shardings=places)(theta))
