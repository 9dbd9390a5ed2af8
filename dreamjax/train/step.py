"""The one update step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

from dreamjax.train.state import TrainState

#: loss(theta, frozen, batch, key) -> (scalar, named scalars to log).
Loss = Callable[[Any, Any, Any, jax.Array], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Float[Array, ""]]]]


def make_step(loss: Loss, tx: optax.GradientTransformation, seed: int) -> Step:
  """Builds the pure update step of a training.

  Gradients run over `state.theta` only. The randomness of a step depends on the seed and on `state.step` alone, so a
  resumed run goes on as if it had not been cut off.

  Args:
    loss: what to make small.
    tx: how, see `optimizer.make_optimizer`.
    seed: of all randomness in the loss.

  Returns:
    step(state, batch) -> (state, metrics). The metrics are the loss, what it names, and the global norms of the
    gradient and of the update.
  """

  def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    (value, named), gradient = jax.value_and_grad(loss, has_aux=True)(state.theta, state.frozen, batch, key)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax mixes them
      update, opt_state = tx.update(gradient, state.opt_state, state.theta)
      theta = optax.apply_updates(state.theta, update)
    metrics = {"loss": value, **named, "gradient_norm": optax.tree.norm(gradient)}
    metrics["update_norm"] = optax.tree.norm(update)
    return state.replace(step=state.step + jnp.ones((), jnp.int32), theta=theta, opt_state=opt_state), metrics

  return step
