"""Parallel decoding compared with diffusers' scheduler step by step, and properties that hold for any network."""

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


def predict(tokens, progress=None):
  """Returns logits that depend on all tokens; the best token leads by a margin that differs between positions."""
  unmasked = jnp.where(tokens == MASK, 3, tokens).astype(jnp.int32)
  position = jnp.arange(N)[None]
  best = (jnp.sum(unmasked * (position + 1), axis=1, keepdims=True) + position * 5) % V
  margin = jnp.broadcast_to(9 + 4 * (position * 7 % N).astype(jnp.float32) / N, best.shape)
  return jax.nn.one_hot(best, V) * margin[..., None]


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_each_step_equals_diffusers(steps):
  torch = pytest.importorskip("torch")
  scheduler = pytest.importorskip("diffusers").AmusedScheduler(mask_token_id=MASK)
  scheduler.set_timesteps(steps, temperature=(0, 0))
  theirs = torch.full((3, N), MASK, dtype=torch.int64)
  generator = torch.Generator().manual_seed(0)
  their_tokens = []
  for t in scheduler.timesteps:
    logits = torch.tensor(np.asarray(predict(jnp.asarray(theirs.numpy(), jnp.int32))))
    theirs = scheduler.step(logits, t, theirs, generator=generator).prev_sample
    their_tokens.append(theirs.numpy())
  inputs = []

  def recording(tokens, progress):
    jax.debug.callback(lambda x: inputs.append(np.asarray(x)), tokens, ordered=True)
    return predict(tokens)

  ours = jax.jit(functools.partial(decode, recording, mask_id=MASK, steps=steps, temperature=0.0))(
    NOTHING, EVERYWHERE, KEYS
  )
  jax.effects_barrier()
  np.testing.assert_array_equal(np.asarray(ours), their_tokens[-1])
  for before, after in zip(their_tokens, inputs[1:], strict=False):
    np.testing.assert_array_equal(before, after)


def token_history(steps, unknown, temperature=4.5, tokens=NOTHING):
  """Returns the tokens before each step and after the last."""
  inputs = []

  def recording(tokens, progress):
    jax.debug.callback(lambda x: inputs.append(np.asarray(x)), tokens, ordered=True)
    return jnp.sin(jnp.arange(V, dtype=jnp.float32)[None, None] * (1.0 + tokens[..., None].astype(jnp.float32)))

  options = {"mask_id": MASK, "steps": steps, "temperature": temperature}
  last = decode(recording, tokens, unknown, KEYS, **options)
  jax.effects_barrier()
  return [*inputs, np.asarray(last)]


def test_each_token_is_unmasked_once_and_kept():
  tokens = np.stack(token_history(9, EVERYWHERE))
  masked = tokens == MASK
  assert masked[0].all() and not masked[-1].any()
  unmasked = (masked[:-1] & ~masked[1:]).sum(0)
  np.testing.assert_array_equal(unmasked, 1)
  for before, after in zip(tokens, tokens[1:], strict=False):
    np.testing.assert_array_equal(after[before != MASK], before[before != MASK])


def test_inpainting_keeps_known_tokens():
  known = jnp.asarray(np.random.default_rng(1).integers(0, V, (3, N)), jnp.int32)
  unknown = jnp.arange(N)[None] < jnp.array([[0], [5], [N]])
  decoded = token_history(6, unknown, tokens=known)[-1]
  assert (decoded[~np.asarray(unknown)] == np.asarray(known)[~np.asarray(unknown)]).all() and (decoded < MASK).all()


def test_images_do_not_depend_on_their_batch():
  jitted = jax.jit(functools.partial(decode, predict, mask_id=MASK, steps=5))
  batch = jitted(NOTHING, EVERYWHERE, KEYS)
  alone = jitted(NOTHING[1:2], EVERYWHERE[1:2], KEYS[1:2])
  np.testing.assert_array_equal(np.asarray(batch)[1:2], np.asarray(alone))
  assert len({tuple(row) for row in np.asarray(token_history(5, EVERYWHERE)[-1])}) == 3


def test_tokens_are_sampled_from_the_predicted_distribution():
  logits = jnp.log(jnp.array([0.1, 0.2, 0.7]))
  constant = lambda tokens, progress: jnp.broadcast_to(logits, (*tokens.shape, 3))  # noqa: E731
  keys = jax.random.split(jax.random.key(3), 256)
  shape = (256, N)
  sampled = decode(constant, jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), keys, mask_id=3, steps=1)
  frequencies = np.bincount(np.asarray(sampled).ravel(), minlength=3) / sampled.size
  np.testing.assert_allclose(frequencies, [0.1, 0.2, 0.7], atol=5 * 0.5 / np.sqrt(sampled.size))


def test_progress_goes_from_0_to_1():
  progresses = []

  def recording(tokens, progress):
    jax.debug.callback(lambda x: progresses.append(float(x)), progress, ordered=True)
    return predict(tokens)

  decode(recording, NOTHING, EVERYWHERE, KEYS, mask_id=MASK, steps=5)
  jax.effects_barrier()
  assert progresses == [0, 0.25, 0.5, 0.75, 1]


def test_no_steps_and_a_negative_temperature_are_refused():
  with pytest.raises(ValueError, match="one step or more, not 0"):
    decode(predict, NOTHING, EVERYWHERE, KEYS, mask_id=MASK, steps=0)
  with pytest.raises(ValueError, match="at least 0, not -1"):
    decode(predict, NOTHING, EVERYWHERE, KEYS, mask_id=MASK, steps=2, temperature=-1.0)
