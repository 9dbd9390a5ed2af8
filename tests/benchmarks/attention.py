"""Times attention with two references, which have a log-weight for each key, and the same from the logits of all pairs.

python tests/benchmarks/attention.py
python tests/benchmarks/attention.py --topology v5e:2x2    # memory there, by libtpu (the extra `plan`)

One image in float32, three times as many keys as queries. On this CPU ours and `jax.nn.dot_product_attention`
with the weights as its bias are timed interleaved, so that other programs slow down both. Memory is what the compiled
program allocates for temporaries (`memory_analysis`). For the topology ours is compared with itself outside of a mesh,
where it does not use the kernel, in bfloat16.
"""

import argparse
import contextlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from dreamjax import cli
from dreamjax.models.attention import attend, log_weights
from dreamjax.parallel.sharding import make_mesh
from dreamjax.train import topologies


def ours(query: jax.Array, key: jax.Array, value: jax.Array, weights: jax.Array) -> jax.Array:
  """Block by block."""
  return attend(query, key, value, key_bias=log_weights(weights))


def dense(query: jax.Array, key: jax.Array, value: jax.Array, weights: jax.Array) -> jax.Array:
  """From the logits of all pairs."""
  return jax.nn.dot_product_attention(query, key, value, log_weights(weights)[:, None, None])


def programs(function: Any) -> dict[str, Any]:
  """The forward pass, and the forward and backward pass with the gradients of all inputs."""
  loss = lambda *inputs: jnp.square(function(*inputs).astype(jnp.float32)).sum()  # noqa: E731
  return {"forward": jax.jit(function), "forward and backward": jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))}


def inputs_of(tokens: int, heads: int, width: int, dtype: Any) -> list[jax.Array]:
  """Query, key, value, and weights: 1 of the image's own tokens, 2 and 0.5 of the references', a quarter of them 0."""
  shapes = [(1, count, heads, width) for count in (tokens, 3 * tokens, 3 * tokens)]
  keys = jax.random.split(jax.random.key(0), 3)
  drawn = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]
  weights = jnp.repeat(jnp.array([[1.0, 2.0, 0.5]]), tokens, axis=1)
  return [*drawn, jnp.where(jnp.arange(3 * tokens) % 4 < 3, weights, 0.0)]


def on_this_cpu(tokens: int, heads: int, width: int, repeats: int) -> None:
  """Prints a row of the table for each pass: ours / dense."""
  inputs = inputs_of(tokens, heads, width, jnp.float32)
  for name in ("forward", "forward and backward"):
    compiled = [programs(function)[name].lower(*inputs).compile() for function in (ours, dense)]
    found, wanted = (jax.tree.leaves(program(*inputs)) for program in compiled)
    error = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(found, wanted, strict=True))
    seconds: list[list[float]] = [[], []]
    for _ in range(repeats):
      for times, program in zip(seconds, compiled, strict=True):
        began = time.perf_counter()
        jax.block_until_ready(program(*inputs))
        times.append(time.perf_counter() - began)
    cells = [f"{tokens} x {3 * tokens}, {heads} x {width}", name]
    cells += [f"{statistics.median(times):.3f} s ({min(times):.3f} to {max(times):.3f})" for times in seconds]
    cells += [f"{program.memory_analysis().temp_size_in_bytes / 2**20:.0f} MiB" for program in compiled]
    print(f"| {' | '.join([*cells, f'{error:.0e}'])} |", flush=True)


def on_a_topology(tokens: int, heads: int, width: int, topology: str) -> None:
  """Prints a row of the table for each pass: with the kernel / without."""
  mesh = make_mesh((1, 1, 1), topologies.devices(topology)[:1])
  place = jax.NamedSharding(mesh, jax.P())
  shapes = jax.eval_shape(lambda: inputs_of(tokens, heads, width, jnp.bfloat16))
  inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in shapes]
  for name, program in programs(ours).items():
    sizes = []
    for context in (jax.set_mesh(mesh), contextlib.nullcontext()):
      with context:
        sizes.append(program.lower(*inputs).compile().memory_analysis().temp_size_in_bytes)
    cells = [f"{tokens} x {3 * tokens}, {heads} x {width}", name, *(f"{size / 2**20:.0f} MiB" for size in sizes)]
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096], help="of the image (%(default)s)")
  parser.add_argument("--heads", type=int, default=8, help="of attention; dense takes 0.8 GB for each at 4,096 tokens")
  parser.add_argument("--width", type=int, default=40, help="channels of a head (%(default)s)")
  parser.add_argument("--repeats", type=int, default=7, help="runs, of which the median counts (%(default)s)")
  parser.add_argument("--topology", help="of TPUs, such as v5e:2x2; nothing is run")
  args = parser.parse_args()
  if args.topology:
    print("| queries x keys, heads | pass | with the kernel | without |")
    for tokens in args.tokens:
      on_a_topology(tokens, args.heads, args.width, args.topology)
    return
  cli.prepare_xla()
  print("| queries x keys, heads | pass | ours | dense | memory, ours | memory, dense | greatest difference |")
  for tokens in args.tokens:
    on_this_cpu(tokens, args.heads, args.width, args.repeats)


if __name__ == "__main__":
  main()
