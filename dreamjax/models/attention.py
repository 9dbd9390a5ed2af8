"""Attention ("Attention Is All You Need", Vaswani et al., 2017, eq. 1), its softmax in float32 whatever goes in.

Between many places it is computed block by block (Dao et al., "FlashAttention", 2205.14135), so that the logits of all
pairs never lie in memory, neither on the way forth nor on the way back: on TPUs by the kernel that JAX brings, on
NVIDIA's GPUs by cuDNN's, which is for half precision alone, on CPUs by a loop whose blocks stay in the caches.
"""

import functools
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dreamjax.parallel.sharding import batch_axes, divides_over

LONG = 1024  # places from which on attention is computed block by block
_BLOCK = 512  # places in a block of the TPUs' kernel
_QUERIES = 128  # places that look at once on CPUs
#: By `jax.checkpoint_policies`, the name of what comes of attention block by block.
ATTENDED = "attended"


def attend(
  query: Float[Array, "b n k d"],
  key: Float[Array, "b m k d"],
  value: Float[Array, "b m k e"],
  *,
  scale: float | None = None,
  bias: Float[Array, "#b #k n m"] | None = None,
  mask: Bool[Array, "#b #k #n m"] | None = None,
) -> Float[Array, "b n k e"]:
  """softmax(scale query key^T + bias) value, head by head.

  On TPUs block by block only where a mesh is set (`jax.set_mesh`), whose axes say how rows and heads are spread: rows
  over all but "tensor", heads over that.

  Args:
    query: what looks.
    key: what it compares itself with.
    value: what it takes over; of the same dtype as query and key.
    scale: of the logits; by default 1 / sqrt(d).
    bias: added to the logits.
    mask: true where a query may look. One that may look nowhere looks everywhere.

  Returns:
    For each query a mean of the values, in their dtype.
  """
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  n, m = query.shape[1], key.shape[1]
  ways = {"default": functools.partial(_at_once, scale=scale, bias=bias, mask=mask)}
  if n >= LONG and n % _QUERIES == 0 and bias is None and (mask is None or mask.shape[2] == 1):
    ways["cpu"] = functools.partial(_in_turns, scale=scale, mask=mask)
  whole = min(n, m) >= LONG and n % _BLOCK == m % _BLOCK == 0 and query.shape[-1] == value.shape[-1]
  if whole and bias is None and mask is None and not jax.sharding.get_abstract_mesh().empty:
    ways["tpu"] = functools.partial(_spread, scale=scale)
  width = query.shape[-1]
  fits = query.dtype.itemsize == 2 and width == value.shape[-1] and width <= 128 and width % 8 == 0
  if n >= LONG and bias is None and mask is None and fits and _has_cudnn():
    ways["cuda"] = functools.partial(jax.nn.dot_product_attention, scale=scale, implementation="cudnn")
  return jax.lax.platform_dependent(query, key, value, **ways)


def _has_cudnn() -> bool:
  """Whether the devices are GPUs for which cuDNN has attention block by block: NVIDIA's, from Ampere on."""
  device = jax.devices()[0]
  if device.platform != "gpu" or "cuda" not in device.client.platform_version:
    return False
  return tuple(map(int, device.compute_capability.split("."))) >= (8, 0)


def _at_once(
  query: Array, key: Array, value: Array, *, scale: float, bias: Array | None = None, mask: Array | None = None
) -> Array:
  query, key, value = (x.swapaxes(1, 2) for x in (scale * query, key, value))
  mixed, _, _ = _look(query, key, value, bias, mask)
  return mixed.astype(value.dtype).swapaxes(1, 2)


def _logits(query: Array, key: Array, bias: Array | None, mask: Array | None) -> Array:
  logits = jnp.einsum("bknd,bkmd->bknm", query, key, preferred_element_type=jnp.float32)
  if bias is not None:
    logits = logits + bias
  return logits if mask is None else jnp.where(mask, logits, jnp.finfo(jnp.float32).min)


def _look(query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> tuple[Array, Array, Array]:
  """What is mixed, the greatest logit of each query, and the sum of the weights, of which that one's is 1."""
  logits = _logits(query, key, bias, mask)
  most = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
  weights = jnp.exp(logits - most)
  total = weights.sum(axis=-1, keepdims=True)
  mixed = jnp.einsum("bknm,bkme->bkne", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
  return mixed / total, most, total  # few results are divided, not many weights


def _in_turns(query: Array, key: Array, value: Array, *, scale: float, mask: Array | None) -> Array:
  """In float32, whatever goes in, for CPUs convert what is smaller."""
  heads_first = [x.swapaxes(1, 2).astype(jnp.float32) for x in (scale * query, key, value)]
  return _turns(*heads_first, mask).astype(value.dtype).swapaxes(1, 2)


@jax.custom_vjp
def _turns(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
  """`_look`, a block of queries after the other. What it returns is kept for the way back, the weights are not."""
  return _turns_forth(query, key, value, mask)[0]


def _turns_forth(query: Array, key: Array, value: Array, mask: Array | None) -> tuple[Array, Any]:
  blocks = jax.lax.map(lambda some: _look(some, key, value, None, mask), _cut(query))
  mixed, most, total = (checkpoint_name(_joined(x), ATTENDED) for x in blocks)
  return mixed, (query, key, value, mask, mixed, most, total)


def _turns_back(kept: Any, upstream: Array) -> tuple[Array, Array, Array, None]:
  query, key, value, mask, mixed, most, total = kept
  upstream = upstream / total
  constant = jnp.sum(upstream * mixed, axis=-1, keepdims=True)

  def back(sums: tuple[Array, Array], block: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
    query, most, upstream, constant = block
    weights = jnp.exp(_logits(query, key, None, mask) - most)
    logits = weights * (jnp.einsum("bkne,bkme->bknm", upstream, value) - constant)
    logits = logits if mask is None else jnp.where(mask, logits, 0.0)
    # With channels before places: the product the other way round takes a CPU five times as long.
    keys = sums[0] + jnp.einsum("bknd,bknm->bkdm", query, logits)
    values = sums[1] + jnp.einsum("bkne,bknm->bkem", upstream, weights)
    return (keys, values), jnp.einsum("bknm,bkmd->bknd", logits, key)

  zeros = [jnp.zeros_like(x.swapaxes(2, 3)) for x in (key, value)]
  (keys, values), queries = jax.lax.scan(back, tuple(zeros), tuple(map(_cut, (query, most, upstream, constant))))
  return _joined(queries), keys.swapaxes(2, 3), values.swapaxes(2, 3), None


_turns.defvjp(_turns_forth, _turns_back)


def _cut(x: Float[Array, "b k n d"]) -> Float[Array, "i b k j d"]:
  return jnp.moveaxis(x.reshape(*x.shape[:2], -1, _QUERIES, x.shape[3]), 2, 0)


def _joined(blocks: Float[Array, "i b k j d"]) -> Float[Array, "b k n d"]:
  return jnp.moveaxis(blocks, 0, 2).reshape(*blocks.shape[1:3], -1, blocks.shape[4])


def _spread(query: Array, key: Array, value: Array, *, scale: float) -> Array:
  """`in_blocks` on each device of the mesh, of its rows and heads: the compiler cannot divide a kernel by itself."""
  mesh = jax.sharding.get_abstract_mesh()
  divides = "tensor" in mesh.axis_names and query.shape[2] % mesh.shape["tensor"] == 0
  place = jax.P(batch_axes(mesh) if divides_over(query, mesh) else None, None, "tensor" if divides else None)
  own = functools.partial(in_blocks, scale=scale)
  return jax.shard_map(own, mesh=mesh, in_specs=(place,) * 3, out_specs=place, check_vma=False)(query, key, value)


def in_blocks(
  query: Float[Array, "b n k d"],
  key: Float[Array, "b m k d"],
  value: Float[Array, "b m k d"],
  *,
  scale: float,
  interpret: bool = False,
) -> Float[Array, "b n k d"]:
  """`attend` without bias and mask, by the kernel. Both lengths are multiples of 512.

  Args:
    query: what looks.
    key: what it compares itself with.
    value: what it takes over.
    scale: of the logits.
    interpret: whether to compute, slowly, what the kernel would, where there is no TPU.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

  (_, n, k, width), m = query.shape, key.shape[1]
  block = _BLOCK if width <= 256 else _BLOCK // 2
  # On the way back one pass computes all three gradients, that of queries as a sum over blocks of keys, which lies in
  # memory block by block: so these are as long as there is surely room for on the chip. With one of 4,096 keys in
  # bfloat16 a kernel by itself takes 10 of its 16 MiB, but in an update of Stable Diffusion it took 32 KiB too many.
  most = 6144 // query.dtype.itemsize if width <= 128 else block
  keys = max(size for size in range(block, most + 1, block) if m % size == 0)
  sizes = splash_attention_kernel.BlockSizes(
    block_q=block, block_kv=block, block_kv_compute=block,
    block_q_dkv=block, block_kv_dkv=keys, block_kv_dkv_compute=block, use_fused_bwd_kernel=True,
  )  # fmt: skip
  everywhere = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((n, m))] * k)
  kernel = splash_attention_kernel.make_splash_mha(
    everywhere, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret, residual_checkpoint_name=ATTENDED
  )
  heads_first = [x.swapaxes(1, 2) for x in (scale * query, key, value)]
  return jax.vmap(kernel)(*heads_first).swapaxes(1, 2)
