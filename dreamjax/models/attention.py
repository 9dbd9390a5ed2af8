"""Attention ("Attention Is All You Need", Vaswani et al., 2017, eq. 1), its softmax in float32 whatever goes in.

On TPUs, between many places, it is computed block by block (Dao et al., "FlashAttention", 2205.14135), by the kernel
that JAX brings: the logits of all pairs then never lie in memory, neither on the way forth nor on the way back.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LONG = 1024  # places from which on TPUs compute attention block by block
_BLOCK = 512  # places in a block


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

  Block by block only where a mesh is set (`jax.set_mesh`), whose axes say how rows and heads are spread: rows over all
  but "tensor", heads over that.

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
  long = min(n, m) >= LONG and n % _BLOCK == m % _BLOCK == 0 and query.shape[-1] == value.shape[-1]
  if bias is not None or mask is not None or not long or jax.sharding.get_abstract_mesh().empty:
    return _at_once(query, key, value, scale=scale, bias=bias, mask=mask)
  tpu, default = (functools.partial(function, scale=scale) for function in (_spread, _at_once))
  return jax.lax.platform_dependent(query, key, value, tpu=tpu, default=default)


def _at_once(
  query: Array, key: Array, value: Array, *, scale: float, bias: Array | None = None, mask: Array | None = None
) -> Array:
  logits = scale * jnp.einsum("bnkd,bmkd->bknm", query, key, preferred_element_type=jnp.float32)
  if bias is not None:
    logits = logits + bias
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  return jnp.einsum("bknm,bmke->bnke", jax.nn.softmax(logits, axis=-1).astype(value.dtype), value)


def _spread(query: Array, key: Array, value: Array, *, scale: float) -> Array:
  """`in_blocks` on each device of the mesh, of its rows and heads: the compiler cannot divide a kernel by itself."""
  mesh = jax.sharding.get_abstract_mesh()
  rows = tuple(axis for axis in mesh.axis_names if axis != "tensor")
  spreads = query.shape[0] % math.prod(mesh.shape[axis] for axis in rows) == 0
  divides = "tensor" in mesh.axis_names and query.shape[2] % mesh.shape["tensor"] == 0
  place = jax.P(rows if spreads else None, None, "tensor" if divides else None)
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

  n, m, k = query.shape[1], key.shape[1], query.shape[2]
  own = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
  sizes = splash_attention_kernel.BlockSizes(**{f"block_{name}": _BLOCK for name in own})
  everywhere = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((n, m))] * k)
  kernel = splash_attention_kernel.make_splash_mha(
    everywhere, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
  )
  heads_first = [x.swapaxes(1, 2) for x in (scale * query, key, value)]
  return jax.vmap(kernel)(*heads_first).swapaxes(1, 2)
