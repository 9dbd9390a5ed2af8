"""Attention ("Attention Is All You Need", Vaswani et al., 2017, eq. 1) with the softmax in float32 for any dtype.

Between many tokens it is computed block by block (Dao et al., "FlashAttention", 2205.14135), so that the logits of all
pairs of tokens are never in memory, neither in the forward nor in the backward pass: on TPUs by JAX's splash attention
kernel, on NVIDIA's GPUs by cuDNN's kernel, which takes half precision alone, on CPUs by a loop whose blocks stay in the
caches. None of these takes the logits' bias as [n, m], but one that depends on the key alone is a few more channels of
the heads: for k' = [k, bias] and q' = [q, 1] the product q' k'^T is q k^T + bias.
"""

import functools
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dreamjax.parallel.sharding import batch_axes, divides_over

LONG = 1024  # queries from which on attention is computed block by block
#: The log-weight of a key of weight 0: e^-10000 is 0 in float32, and half precision holds twice the number.
LOG_ZERO = -1e4
_BLOCK = 512  # tokens in a block of the TPUs' kernel
_QUERIES = 128  # queries in a block on CPUs
_PARTS = 3  # channels of a key's bias
#: The name, for `jax.checkpoint_policies`, of the outputs of block-wise attention.
ATTENDED = "attended"


def log_weights(weights: Float[Array, "*b m"] | Bool[Array, "*b m"]) -> Float[Array, "*b m"]:
  """Returns the logarithms of non-negative weights in float32, the `key_bias` of `attend`; that of 0 is `LOG_ZERO`."""
  weights = weights.astype(jnp.float32)
  positive = weights > 0
  return jnp.where(positive, jnp.log(jnp.where(positive, weights, 1.0)), LOG_ZERO)


def attend(
  query: Float[Array, "b n k d"],
  key: Float[Array, "b m k d"],
  value: Float[Array, "b m k e"],
  *,
  scale: float | None = None,
  bias: Float[Array, "#b #k n m"] | None = None,
  mask: Bool[Array, "#b #k #n m"] | None = None,
  key_bias: Float[Array, "#b m"] | None = None,
) -> Float[Array, "b n k e"]:
  """Computes softmax(scale query key^T + bias + key_bias) value for each head.

  Many queries are computed block by block if `bias` is None and `mask` is the same for all queries and heads; on TPUs
  only within a mesh (`jax.set_mesh`), whose axes say how the inputs are sharded: the batch over all but "tensor", the
  heads over "tensor".

  Args:
    query: queries.
    key: keys.
    value: values, of the same dtype as query and key.
    scale: of the logits; by default 1 / sqrt(d).
    bias: added to the logits.
    mask: true where a query may attend to a key. One that may attend to no key attends to all.
    key_bias: added to the logits of all queries and heads, the logarithm of a weight of each key: see `log_weights`.
      Less than `LOG_ZERO` counts as that.

  Returns:
    A weighted mean of the values for each query, in their dtype.
  """
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  (b, n, _, width), m = query.shape, key.shape[1]
  if mask is not None and mask.shape[1] == mask.shape[2] == 1:
    allowed = log_weights(mask[:, 0, 0])
    key_bias, mask = allowed if key_bias is None else allowed + key_bias.astype(jnp.float32), None
  if key_bias is not None:
    key_bias = jnp.broadcast_to(jnp.maximum(key_bias.astype(jnp.float32), LOG_ZERO), (b, m))
  implementations = {"default": functools.partial(_dense, scale=scale, bias=bias, mask=mask, key_bias=key_bias)}
  if n >= LONG and bias is None and mask is None:
    if n % _QUERIES == 0:
      implementations["cpu"] = functools.partial(_chunked, scale=scale, key_bias=key_bias)
    if m >= LONG and not jax.sharding.get_abstract_mesh().empty:
      implementations["tpu"] = functools.partial(_sharded_splash, scale=scale, key_bias=key_bias)
    width = width if key_bias is None else width + _channels(width)
    if query.dtype.itemsize == 2 and value.shape[-1] <= width <= 128 and width % 8 == 0 and _has_cudnn():
      implementations["cuda"] = functools.partial(_cudnn, scale=scale, key_bias=key_bias)
  return jax.lax.platform_dependent(query, key, value, **implementations)


def _has_cudnn() -> bool:
  """Returns whether the devices are GPUs for which cuDNN has block-wise attention: NVIDIA's, from Ampere on."""
  device = jax.devices()[0]
  if device.platform != "gpu" or "cuda" not in device.client.platform_version:
    return False
  return tuple(map(int, device.compute_capability.split("."))) >= (8, 0)


def _channels(width: int) -> int:
  """Returns how many channels a bias adds to heads of a width, so that their number is a multiple of 8."""
  return _PARTS + -(width + _PARTS) % 8


def _fold(query: Array, key: Array, key_bias: Array | None, scale: float) -> tuple[Array, Array]:
  """Returns queries and keys whose product is scale query key^T + key_bias.

  The bias is the sum of three channels with 8 significant bits each, together those of a float32, because bfloat16
  holds no more and matrix units round even float32 to as many. Its gradient is that of the first of them.
  """
  if key_bias is None:
    return scale * query, key
  rest = jax.lax.stop_gradient(key_bias)
  parts = []
  for _ in range(_PARTS):
    parts.append(jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7))
    rest = rest - parts[-1]
  parts[0] = parts[0] + (key_bias - jax.lax.stop_gradient(key_bias))
  channels = _channels(key.shape[-1])
  bias = jnp.pad(jnp.stack(parts, axis=-1), ((0, 0), (0, 0), (0, channels - _PARTS))).astype(key.dtype)
  bias = jnp.broadcast_to(bias[:, :, None], (*key.shape[:3], channels))
  ones = jnp.ones((*query.shape[:3], channels), query.dtype)
  return jnp.concatenate([scale * query, ones], axis=-1), jnp.concatenate([key, bias], axis=-1)


def _dense(
  query: Array,
  key: Array,
  value: Array,
  *,
  scale: float,
  bias: Array | None = None,
  mask: Array | None = None,
  key_bias: Array | None = None,
) -> Array:
  """Computes `attend` from the logits of all pairs."""
  query, key, value = (x.swapaxes(1, 2) for x in (scale * query, key, value))
  logits = _logits(query, key)
  for more in (bias, None if key_bias is None else key_bias[:, None, None]):
    logits = logits if more is None else logits + more
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  return _mean(logits, value)[0].astype(value.dtype).swapaxes(1, 2)


def _logits(query: Array, key: Array) -> Array:
  return jnp.einsum("bknd,bkmd->bknm", query, key, preferred_element_type=jnp.float32)


def _mean(logits: Array, value: Array) -> tuple[Array, Array, Array]:
  """Returns the mean of the values, each query's greatest logit, and the sum of its weights relative to that one's."""
  greatest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
  weights = jnp.exp(logits - greatest)
  total = weights.sum(axis=-1, keepdims=True)
  mixed = jnp.einsum("bknm,bkme->bkne", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
  return mixed / total, greatest, total  # the results are divided, for they are fewer than the weights


def _chunked(query: Array, key: Array, value: Array, *, scale: float, key_bias: Array | None) -> Array:
  """Computes `attend` a block of queries after the other, in float32, to which CPUs convert smaller types anyway."""
  heads_first = [x.swapaxes(1, 2).astype(jnp.float32) for x in (*_fold(query, key, key_bias, scale), value)]
  return _loop(*heads_first).astype(value.dtype).swapaxes(1, 2)


@jax.custom_vjp
def _loop(query: Array, key: Array, value: Array) -> Array:
  """Computes `_mean`, whose results are kept for the backward pass; the weights are not."""
  return _loop_forward(query, key, value)[0]


def _loop_forward(query: Array, key: Array, value: Array) -> tuple[Array, Any]:
  blocks = jax.lax.map(lambda some: _mean(_logits(some, key), value), _cut(query))
  mixed, greatest, total = (checkpoint_name(_joined(x), ATTENDED) for x in blocks)
  return mixed, (query, key, value, mixed, greatest, total)


def _loop_backward(kept: Any, upstream: Array) -> tuple[Array, Array, Array]:
  query, key, value, mixed, greatest, total = kept
  upstream = upstream / total
  constant = jnp.sum(upstream * mixed, axis=-1, keepdims=True)

  def backward(sums: tuple[Array, Array], block: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
    query, greatest, upstream, constant = block
    weights = jnp.exp(_logits(query, key) - greatest)
    logits = weights * (jnp.einsum("bkne,bkme->bknm", upstream, value) - constant)
    # With channels before tokens: the product the other way round takes a CPU five times as long.
    keys = sums[0] + jnp.einsum("bknd,bknm->bkdm", query, logits)
    values = sums[1] + jnp.einsum("bkne,bknm->bkem", upstream, weights)
    return (keys, values), jnp.einsum("bknm,bkmd->bknd", logits, key)

  zeros = [jnp.zeros_like(x.swapaxes(2, 3)) for x in (key, value)]
  blocks = tuple(map(_cut, (query, greatest, upstream, constant)))
  (keys, values), queries = jax.lax.scan(backward, tuple(zeros), blocks)
  return _joined(queries), keys.swapaxes(2, 3), values.swapaxes(2, 3)


_loop.defvjp(_loop_forward, _loop_backward)


def _cut(x: Float[Array, "b k n d"]) -> Float[Array, "i b k j d"]:
  return jnp.moveaxis(x.reshape(*x.shape[:2], -1, _QUERIES, x.shape[3]), 2, 0)


def _joined(blocks: Float[Array, "i b k j d"]) -> Float[Array, "b k n d"]:
  return jnp.moveaxis(blocks, 0, 2).reshape(*blocks.shape[1:3], -1, blocks.shape[4])


def _cudnn(query: Array, key: Array, value: Array, *, scale: float, key_bias: Array | None) -> Array:
  """Computes `attend` by cuDNN's kernel, for which queries, keys and values are of the same width."""
  if key_bias is not None:
    query, key = _fold(query, key, key_bias, scale)
    scale = 1.0
  wide = _pad(value, 3, query.shape[-1])
  mixed = jax.nn.dot_product_attention(query, key, wide, scale=scale, implementation="cudnn")
  return mixed[..., : value.shape[-1]]


def _pad(x: Array, axis: int, size: int, constant: float = 0.0) -> Array:
  """Returns an array with as many constants at an axis's end as make it so long."""
  missing = size - x.shape[axis]
  return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)], constant_values=constant)


def _sharded_splash(query: Array, key: Array, value: Array, *, scale: float, key_bias: Array | None) -> Array:
  """Computes `splash` on each device for its examples and heads, because the compiler cannot divide a kernel alone."""
  mesh = jax.sharding.get_abstract_mesh()
  divides = "tensor" in mesh.axis_names and query.shape[2] % mesh.shape["tensor"] == 0
  batch = batch_axes(mesh) if divides_over(query, mesh) else None
  heads = jax.P(batch, None, "tensor" if divides else None)
  own = functools.partial(splash, scale=scale)
  if key_bias is None:
    return jax.shard_map(own, mesh=mesh, in_specs=(heads,) * 3, out_specs=heads, check_vma=False)(query, key, value)
  specs = (heads,) * 3 + (jax.P(batch, None),)
  return jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)(query, key, value, key_bias)


def splash(
  query: Float[Array, "b n k d"],
  key: Float[Array, "b m k d"],
  value: Float[Array, "b m k e"],
  key_bias: Float[Array, "b m"] | None = None,
  *,
  scale: float,
  interpret: bool = False,
) -> Float[Array, "b n k e"]:
  """Computes `attend` without bias and mask by the TPUs' kernel.

  That takes multiples of 512 tokens. Missing queries are zeros, which are cut off again; missing keys are zeros of a
  bias so low that no query attends to them, not even one for which all other keys have a weight of zero.

  Args:
    query: queries.
    key: keys.
    value: values.
    key_bias: as `attend` takes it, not less than `LOG_ZERO`.
    scale: of the logits.
    interpret: whether to compute, slowly, what the kernel would, where there is no TPU.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

  n, m = query.shape[1], key.shape[1]
  n_padded, m_padded = (-(-length // _BLOCK) * _BLOCK for length in (n, m))
  if m_padded > m:
    key_bias = jnp.zeros(key.shape[:2], jnp.float32) if key_bias is None else key_bias
    key_bias = _pad(key_bias, 1, m_padded, 2 * LOG_ZERO)
  query, key, value = _pad(query, 1, n_padded), _pad(key, 1, m_padded), _pad(value, 1, m_padded)
  query, key = _fold(query, key, key_bias, scale)
  heads, width = query.shape[2], max(query.shape[-1], value.shape[-1])
  block = _BLOCK if width <= 256 else _BLOCK // 2
  # One pass of the backward kernel computes all three gradients, that of the queries as a sum over blocks of keys,
  # which is in memory block by block: so these are as long as surely fits on the chip. With one of 4,096 keys in
  # bfloat16 a kernel alone takes 10 of its 16 MiB, but in an update of Stable Diffusion it took 32 KiB too many.
  most = 6144 // query.dtype.itemsize if width <= 128 else block
  keys = max(size for size in range(block, most + 1, block) if m_padded % size == 0)
  sizes = splash_attention_kernel.BlockSizes(
    block_q=block, block_kv=block, block_kv_compute=block,
    block_q_dkv=block, block_kv_dkv=keys, block_kv_dkv_compute=block, use_fused_bwd_kernel=True,
  )  # fmt: skip
  everywhere = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((n_padded, m_padded))] * heads)
  kernel = splash_attention_kernel.make_splash_mha(
    everywhere, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret, residual_checkpoint_name=ATTENDED
  )
  return jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (query, key, value))).swapaxes(1, 2)[:, :n]
