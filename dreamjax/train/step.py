"""The one update step."""

from collections.abc import Callable
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

from dreamjax.errors import UserError
from dreamjax.train.state import TrainState


@struct.dataclass
class Mean:
  """A metric that is a mean over what a batch, or a microbatch, may hold more or less of, or nothing.

  Totals and counts are added up over microbatches and updates before they are divided, so that the logged value is the
  mean over all that was counted.
  """

  total: Float[Array, "*n"]
  count: Float[Array, "*n"]


#: loss(theta, frozen, batch, key) -> (scalar, metrics by name, scalars or `Mean`).
Loss = Callable[[Any, Any, Any, jax.Array], tuple[Float[Array, ""], dict[str, Any]]]
#: step(state, batch) -> (state, metrics by name).
Step = Callable[..., tuple[TrainState, dict[str, Any]]]


def make_step(
  loss: Loss, tx: optax.GradientTransformation, seed: int, accumulation_steps: int = 1, unroll: bool | None = None
) -> Step:
  """Builds the pure update step of a training.

  Gradients run over `state.theta` only. The randomness of a step depends on the seed and on `state.step` alone, so a
  resumed run goes on as if it had not been cut off.

  Args:
    loss: what is minimised.
    tx: the optimizer, see `optimizer.make_optimizer`.
    seed: of all randomness in the loss.
    accumulation_steps: the number of equal microbatches of a batch, whose gradients are computed one after
      another and averaged. It saves memory, and on a CPU, whose caches are small, time. For a loss that is a mean over
      examples only.
    unroll: whether the microbatches are computed outside of a loop; by default where JAX computes on a CPU, whose XLA
      makes a convolution's gradient many times slower inside of one (jax 0.10).

  Returns:
    step(state, batch, seed=seed) -> (state, metrics). The metrics are the loss, what it names, and the global norms of
    the gradient and of the update.
  """
  differentiate = accumulate(jax.value_and_grad(loss, has_aux=True), accumulation_steps, unroll)

  def step(state: TrainState, batch: Any, seed: Any = seed) -> tuple[TrainState, dict[str, Any]]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    (value, named), gradient = differentiate(state.theta, state.frozen, batch, key)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax mixes them
      update, opt_state = tx.update(gradient, state.opt_state, state.theta)
      theta = optax.apply_updates(state.theta, update)
    metrics = {"loss": value, **named, "gradient_norm": optax.tree.norm(gradient)}
    metrics["update_norm"] = optax.tree.norm(update)
    return state.replace(step=state.step + jnp.ones((), jnp.int32), theta=theta, opt_state=opt_state), metrics

  return step


def accumulate(function: Callable[..., Any], accumulation_steps: int, unroll: bool | None = None) -> Callable[..., Any]:
  """Builds the mean of function(theta, frozen, microbatch, key) over equal parts of a batch, each with its own key.

  Microbatch j holds the examples j, j + n, j + 2 n and so on, n being the number of microbatches. Examples that are
  sharded over devices so stay where they are, and every device works on every microbatch; neighbouring examples would
  lie on few of them. A `Mean` stays right: total and count are divided alike.

  Raises:
    ValueError: when called, if the batch cannot be divided so.
  """
  if accumulation_steps == 1:
    return function

  def mean(theta: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
    def divide(x: Array) -> Array:
      if x.shape[0] % accumulation_steps:
        raise UserError(
          f"a batch of {x.shape[0]} examples cannot be divided into {accumulation_steps} equal microbatches"
        )
      return x.reshape(-1, accumulation_steps, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, microbatch: Any) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, total, function(theta, frozen, *microbatch)), None

    batches = jax.tree.map(divide, batch), jax.random.split(key, accumulation_steps)
    shapes = jax.eval_shape(function, theta, frozen, *jax.tree.map(lambda x: x[0], batches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    unrolls = jax.default_backend() == "cpu" if unroll is None else unroll
    total, _ = jax.lax.scan(add, zeros, batches, unroll=unrolls)
    return jax.tree.map(lambda x: x / accumulation_steps, total)

  return mean
