"""Times our networks beside diffusers' in PyTorch: the same weights, on one machine, turn by turn.

python tests/benchmarks/peers.py                   # all of them
python tests/benchmarks/peers.py if-base sd --turns 7
python tests/benchmarks/peers.py --memory          # the most memory that a process of either's takes, instead of times

Networks have an eighth of the width of the published ones, and about an eighth of their attention heads. An update is
of all weights by AdamW, on the squared error of a prediction, or the cross entropy of tokens, of 4 rows; a sampling of
one image takes 10 steps of guidance, so 20 predictions. Of PyTorch there are, besides eager float32: eager bfloat16
(autocast), and torch.compile, where it works. What is told is how many times as long the other one takes: above 1, ours
is faster. It needs torch and diffusers.

Where a machine is slow to give memory out again that was freed, as virtual ones are, what is measured is that, most of
all of ours, which asks for all of a program's memory at once. glibc keeps it, for both, with

MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
"""

import argparse
from collections.abc import Callable
import functools
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dreamjax
from dreamjax.convert import pretrained
from dreamjax.diffusion import samplers
from dreamjax.diffusion.schedules import BetaTable, spaced_times
from dreamjax.models.latent_unet import SD_15
from dreamjax.models.unet import IF_I_XL, IF_II_L
from dreamjax.models.uvit import AMUSED_256

ROWS, STEPS, LENGTH, GUIDANCE = 4, 10, 77, 7.0
_EIGHTH_OF_IF = {"text_width": 512, "pool_heads": 8}
MODELS = {
  "if-base": IF_I_XL.clone(
    widths=(88, 176, 264, 352), head_width=44, cross_width=352, time_width=352, groups=8, **_EIGHTH_OF_IF
  ),
  "if-sr": IF_II_L.clone(
    image=128, widths=(20, 40, 80, 160), head_width=40, cross_width=160, time_width=160, groups=4, **_EIGHTH_OF_IF
  ),
  "sd": SD_15.clone(widths=(40, 80, 160, 160), heads=(1, 1, 1, 1), text_width=96, groups=8),
  "amused": AMUSED_256.clone(
    token_width=96, block_width=96, block_heads=3, width=128, heads=2, mlp=352, text_width=96, pooled_width=96
  ),
}
CLASSES = {"if-base": "UNet2DConditionModel", "if-sr": "UNet2DConditionModel", "sd": "UNet2DConditionModel",
           "amused": "UVit2DModel"}  # fmt: skip
_TABLE = BetaTable("scaled_linear", start=0.00085, end=0.012)


class Side(NamedTuple):
  """One of the two: what it does, each call until it is done."""

  update: Callable[[], Any]
  sample: Callable[[], Any]


def inputs(name: str, rows: int) -> dict[str, np.ndarray]:
  """What a network sees, by our names, channels last."""
  draw, module = np.random.default_rng(0), MODELS[name]
  text = draw.standard_normal((rows, LENGTH, module.text_width), np.float32)
  if name == "amused":
    tokens = draw.integers(0, module.codebook, (rows, module.side**2), np.int32)
    pooled = draw.standard_normal((rows, module.pooled_width), np.float32)
    numbers = np.tile(np.float32([256, 256, 0, 0, 6]), (rows, 1))
    return {"x": tokens, "text": text, "pooled": pooled, "numbers": numbers}
  channels = module.channels if name == "sd" else 3
  x = draw.standard_normal((rows, module.image, module.image, channels), np.float32)
  return {"x": x, "t": np.full(rows, 500.0, np.float32), "text": text}


def make_ours(name: str, folder: pathlib.Path) -> Side:
  """Ours, in float32."""
  module, params = pretrained.load(folder)
  params = jax.device_put(params)

  def predict(params: Any, x: Any, t: Any, text: Any, pooled: Any = None, numbers: Any = None) -> Any:
    if name == "amused":
      return module.apply({"params": params}, x, text, None, pooled, numbers)
    if name == "sd":
      return module.apply({"params": params}, x, t, text)
    low = {"low_res": x, "noise_level": t} if module.low_res else {}
    return module.apply({"params": params}, x, t, text, None, **low)[..., : x.shape[-1]]

  seen = {"t": None, **inputs(name, ROWS)}

  def loss(params: Any, seen: Any) -> Any:
    said = predict(params, **seen)
    if name == "amused":
      return optax.softmax_cross_entropy_with_integer_labels(said, seen["x"]).mean()
    return jnp.mean(jnp.square(said - seen["x"]))

  tx = optax.adamw(1e-5)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params: Any, state: Any, seen: Any) -> Any:
    gradient = jax.grad(loss)(params, seen)
    change, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, change), state

  one = {"t": None, **inputs(name, 1)}
  twice = jax.tree.map(lambda x: np.concatenate([x, x]), {key: x for key, x in one.items() if key != "x"})

  @jax.jit
  def sample(params: Any, x: Any, twice: Any) -> Any:
    def both(x: Any, t: Any) -> Any:
      times = None if t is None else jnp.concatenate([t, t])
      said = predict(params, jnp.concatenate([x, x]), **{**twice, "t": times})
      return said[:1] + GUIDANCE * (said[1:] - said[:1])

    if name == "amused":
      step = lambda tokens, _: (jnp.argmax(both(tokens, None), axis=-1).astype(jnp.int32), None)  # noqa: E731
      return jax.lax.scan(step, x, None, length=STEPS)[0]
    times = spaced_times(_TABLE, STEPS, "leading", 1, clean=False)
    return samplers.ddim(lambda x, t: both(x, 1000 * t - 1), x, times, _TABLE, kind="eps")

  state = [(params, tx.init(params))]

  def run_update() -> None:
    state[0] = update(*state[0], seen)
    jax.block_until_ready(state[0])

  return Side(run_update, lambda: jax.block_until_ready(sample(state[0][0], one["x"], twice)))


def make_theirs(name: str, folder: pathlib.Path, how: str) -> Side:
  """Theirs: "eager", "bfloat16" or "compiled"."""
  import diffusers
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  network = getattr(diffusers, CLASSES[name]).from_pretrained(folder, low_cpu_mem_usage=False)
  called = network
  if how == "compiled":
    torch.compiler.reset()  # another network of the class has left what torch.compile takes for sizes that vary
    called = torch.compile(network, dynamic=False)
  optimizer = torch.optim.AdamW(network.parameters(), 1e-5)

  def tensors(rows: int) -> dict[str, Any]:
    made = {key: torch.tensor(x) for key, x in inputs(name, rows).items()}
    if name == "amused":
      side = MODELS[name].side
      return {**made, "x": made["x"].long().reshape(-1, side, side)}
    return {**made, "x": made["x"].permute(0, 3, 1, 2).contiguous()}

  def predict(x: Any, text: Any, t: Any = None, pooled: Any = None, numbers: Any = None) -> Any:
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "bfloat16"):
      if name == "amused":
        return called(x, text, pooled, numbers).float()
      if name == "if-sr":
        return called(torch.cat([x, x], 1), t, text, class_labels=t).sample[:, :3].float()
      return called(x, t, text).sample[:, : x.shape[1]].float()

  seen, one = tensors(ROWS), tensors(1)

  def update() -> None:
    optimizer.zero_grad()
    said = predict(**seen)
    if name == "amused":
      torch.nn.functional.cross_entropy(said, seen["x"]).backward()
    else:
      torch.mean((said - seen["x"]) ** 2).backward()
    optimizer.step()

  scheduler = diffusers.DDIMScheduler(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
    steps_offset=1,
  )  # fmt: skip

  @torch.no_grad()
  def sample() -> None:
    scheduler.set_timesteps(STEPS)
    x = one["x"]
    rest = {key: torch.cat([value, value]) for key, value in one.items() if key not in ("x", "t")}
    for t in scheduler.timesteps:
      time_ = {} if name == "amused" else {"t": t.float().repeat(2)}
      negative, positive = predict(x=torch.cat([x, x]), **rest, **time_).chunk(2)
      said = negative + GUIDANCE * (positive - negative)
      x = said.argmax(1) if name == "amused" else scheduler.step(said, t, x).prev_sample

  return Side(update, sample)


def timed(function: Callable[[], Any]) -> float:
  """Seconds of a call."""
  began = time.perf_counter()
  function()
  return time.perf_counter() - began


def compare(name: str, folder: pathlib.Path, turns: int, hows: list[str]) -> None:
  """Prints the medians of both sides, and their ratio."""
  sides: dict[str, Side] = {"ours": make_ours(name, folder)}
  for how in hows:
    try:
      side = make_theirs(name, folder, how)
      side.sample(), side.update()
      sides[how] = side
    except Exception as error:
      print(f"{name}, {how}: does not work here ({str(error).splitlines()[0][:100]})", flush=True)
  for what in Side._fields:
    for side in sides.values():
      getattr(side, what)()
    took = {which: [] for which in sides}
    for _ in range(turns):
      for which, side in sides.items():
        took[which].append(timed(getattr(side, what)))
    ours = statistics.median(took["ours"])
    for which, seconds in took.items():
      if which != "ours":
        ratio = statistics.median(theirs / own for theirs, own in zip(seconds, took["ours"], strict=True))
        theirs = statistics.median(seconds)
        print(f"{name}, {what}: ours {1000 * ours:.0f} ms, {which} {1000 * theirs:.0f} ms, {ratio:.2f}", flush=True)


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="*", choices=[*MODELS, []], help="of networks (all)")
  parser.add_argument("--turns", type=int, default=5, help="(%(default)s)")
  parser.add_argument("--against", nargs="*", default=["eager", "bfloat16", "compiled"], help="(%(default)s)")
  parser.add_argument("--memory", action="store_true", help="the most memory that processes take, instead")
  parser.add_argument("--alone", help=argparse.SUPPRESS)
  args = parser.parse_args()
  dreamjax.prepare_xla()
  for name in args.names or MODELS:
    with tempfile.TemporaryDirectory() as made:
      folder = pathlib.Path(made)
      module = MODELS[name]
      draw = np.random.default_rng(0)
      params = jax.tree.map(
        lambda x, draw=draw: 0.02 * draw.standard_normal(x.shape, np.float32), pretrained.shapes(module)
      )
      pretrained.save(folder, module, params, np.float32)
      del params
      if args.alone:
        side = make_ours(name, folder) if args.alone == "ours" else make_theirs(name, folder, args.alone)
        side.update(), side.sample(), side.update()
        print(f"{name}, {args.alone}: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)
      elif args.memory:
        for which in ("ours", *args.against):
          subprocess.run([sys.executable, __file__, name, "--alone", which], check=False)
      else:
        compare(name, folder, args.turns, args.against)


if __name__ == "__main__":
  main()
