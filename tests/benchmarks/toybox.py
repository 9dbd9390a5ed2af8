"""How fast the toybox draws: python tests/benchmarks/toybox.py."""

import statistics
import time

import jax
import jax.numpy as jnp

from dreamjax.toybox import render, source, vocabulary

BATCH, RUNS = 64, 5


def milliseconds(function, *arguments):
  """Median time per image of several runs, after one to compile."""
  jax.block_until_ready(function(*arguments))
  times = []
  for _ in range(RUNS):
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    times.append(time.perf_counter() - start)
  return statistics.median(times) / BATCH * 1e3


def main():
  """Prints the times of each stage at two resolutions, and of each style at 128 px."""
  for resolution in (64, 128):
    stream = source.Stream(resolution=resolution)
    labels, keys = source._sample(stream, jnp.arange(BATCH))
    dial = stream.variety.view
    scenes = source._scenes(labels, keys, dial)
    build = milliseconds(source._scenes, labels, keys, dial)
    draw = milliseconds(render.render_batch, scenes, resolution)
    frames = render.render_batch(scenes, resolution)
    mixed = milliseconds(source._restyle, frames, labels.style, keys)
    print(
      f"{resolution} px: scene {build:.2f} ms, rendering {draw:.2f} ms ({1e3 / draw:.0f} images/s), "
      f"styles of the stream's mix {mixed:.2f} ms; all {1e3 / (build + draw + mixed):.0f} images/s"
    )
  for number, name in enumerate(vocabulary.STYLES):
    cost = milliseconds(source._restyle, frames, jnp.full(BATCH, number), keys)
    print(f"  {name}: {cost:.1f} ms at {resolution} px")


if __name__ == "__main__":
  main()
