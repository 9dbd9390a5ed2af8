"""Parallel decoding: diffusers' scheduler step by step, and what holds whatever the network says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.masked.decoding import decode

N, V, MASK = 16, 8, 8
KEYS = jax.random.split(jax.random.key(0), 3)
EVERYWHERE = jnp.ones((3, N), bool)
NOTHING = jnp.zeros((3, N), jnp.int32)


def says(tokens, progress=None):
  """Logits that depend on all tokens; the surest one is far ahead, by as much as differs from place to place."""
  seen = jnp.where(tokens == MASK, 3, tokens).astype(jnp.int32)
  place = jnp.arange(N)[None]
  best = (jnp.sum(seen * (place + 1), axis=1, keepdims=True) + place * 5) % V
  margin = jnp.broadcast_to(9 + 4 * (place * 7 % N).astype(jnp.float32) / N, best.shape)
  return jax.nn.one_hot(best, V) * margin[..., None]


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_each_step_is_that_of_diffusers(steps):
  torch = pytest.importorskip("torch")
  scheduler = pytest.importorskip("diffusers").AmusedScheduler(mask_token_id=MASK)
  scheduler.set_timesteps(steps, temperature=(0, 0))
  theirs = torch.full((3, N), MASK, dtype=torch.int64)
  generator = torch.Generator().manual_seed(0)
  seen = []
  for t in scheduler.timesteps:
    logits = torch.tensor(np.asarray(says(jnp.asarray(theirs.numpy(), jnp.int32))))
    theirs = scheduler.step(logits, t, theirs, generator=generator).prev_sample
    seen.append(theirs.numpy())
  asked = []

  def watched(tokens, progress):
    jax.debug.callback(lambda x: asked.append(np.asarray(x)), tokens, ordered=True)
    return says(tokens)

  ours = jax.jit(functools.partial(decode, watched, mask_id=MASK, steps=steps, temperature=0.0))(
    NOTHING, EVERYWHERE, KEYS
  )
  jax.effects_barrier()
  np.testing.assert_array_equal(np.asarray(ours), seen[-1])
  for before, after in zip(seen, asked[1:], strict=False):
    np.testing.assert_array_equal(before, after)


def follow(steps, unknown, temperature=4.5, tokens=NOTHING):
  """Tokens before each step and behind the last."""
  asked = []

  def watched(tokens, progress):
    jax.debug.callback(lambda x: asked.append(np.asarray(x)), tokens, ordered=True)
    return jnp.sin(jnp.arange(V, dtype=jnp.float32)[None, None] * (1.0 + tokens[..., None].astype(jnp.float32)))

  options = {"mask_id": MASK, "steps": steps, "temperature": temperature}
  last = decode(watched, tokens, unknown, KEYS, **options)
  jax.effects_barrier()
  return [*asked, np.asarray(last)]


def test_each_token_is_uncovered_once_and_stays():
  seen = np.stack(follow(9, EVERYWHERE))
  masked = seen == MASK
  assert masked[0].all() and not masked[-1].any()
  uncovered = (masked[:-1] & ~masked[1:]).sum(0)
  np.testing.assert_array_equal(uncovered, 1)
  for before, after in zip(seen, seen[1:], strict=False):
    np.testing.assert_array_equal(after[before != MASK], before[before != MASK])


def test_in_painting_leaves_what_is_known():
  known = jnp.asarray(np.random.default_rng(1).integers(0, V, (3, N)), jnp.int32)
  unknown = jnp.arange(N)[None] < jnp.array([[0], [5], [N]])
  drawn = follow(6, unknown, tokens=known)[-1]
  assert (drawn[~np.asarray(unknown)] == np.asarray(known)[~np.asarray(unknown)]).all() and (drawn < MASK).all()


def test_images_do_not_depend_on_what_is_decoded_beside_them():
  draw = jax.jit(functools.partial(decode, says, mask_id=MASK, steps=5))
  whole = draw(NOTHING, EVERYWHERE, KEYS)
  alone = draw(NOTHING[1:2], EVERYWHERE[1:2], KEYS[1:2])
  np.testing.assert_array_equal(np.asarray(whole)[1:2], np.asarray(alone))
  assert len({tuple(row) for row in np.asarray(follow(5, EVERYWHERE)[-1])}) == 3


def test_tokens_are_drawn_as_often_as_the_network_says():
  logits = jnp.log(jnp.array([0.1, 0.2, 0.7]))
  predict = lambda tokens, progress: jnp.broadcast_to(logits, (*tokens.shape, 3))  # noqa: E731
  keys = jax.random.split(jax.random.key(3), 256)
  shape = (256, N)
  drawn = decode(predict, jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), keys, mask_id=3, steps=1)
  share = np.bincount(np.asarray(drawn).ravel(), minlength=3) / drawn.size
  np.testing.assert_allclose(share, [0.1, 0.2, 0.7], atol=5 * 0.5 / np.sqrt(drawn.size))


def test_progress_goes_from_0_to_1():
  seen = []

  def watched(tokens, progress):
    jax.debug.callback(lambda x: seen.append(float(x)), progress, ordered=True)
    return says(tokens)

  decode(watched, NOTHING, EVERYWHERE, KEYS, mask_id=MASK, steps=5)
  jax.effects_barrier()
  assert seen == [0, 0.25, 0.5, 0.75, 1]


def test_no_steps_and_a_negative_temperature_are_refused():
  with pytest.raises(ValueError, match="one step or more, not 0"):
    decode(says, NOTHING, EVERYWHERE, KEYS, mask_id=MASK, steps=0)
  with pytest.raises(ValueError, match="at least 0, not -1"):
    decode(says, NOTHING, EVERYWHERE, KEYS, mask_id=MASK, steps=2, temperature=-1.0)
