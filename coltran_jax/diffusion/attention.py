"""Exact attention in four ways: what differs is memory.

Axes: B batch, Q queries, S keys, N heads, K features a head.
"""

import jax
import jax.numpy as jnp

MODES = ('auto', 'full', 'chunked', 'cudnn')
# Of the weights [B, N, queries, S] that exist at a time, in float32.
_CHUNK_BYTES = 1 << 25
_LARGEST_CUDNN_HEAD = 128  # Features; more on Hopper only.


def attend(q, k, v, mode='auto', causal=False):
  """Returns [B, Q, N, K]: for each query the mean of v, weighted by softmax.

  Args:
    q: [B, Q, N, K].
    k, v: [B, S, N, K].
    mode: 'full' holds all weights at once, [B, N, Q, S] in float32. 'chunked'
      takes so many queries at a time that their weights need 32 MiB at most.
      'cudnn' is the fused kernel of NVIDIA's GPUs, for half precision and up
      to 128 features a head; larger heads (the deepest of Stable Diffusion 1
      have 160) are chunked. 'auto' takes 'cudnn' where it can, and else
      'chunked' where it saves something.
    causal: query i sees keys 0 .. i. Always 'full': texts are short.

  Raises:
    ValueError: unknown mode, or 'cudnn' in float32 or without a GPU.
  """
  if mode not in MODES:
    raise ValueError(f'attention must be one of {MODES}, not {mode!r}')
  fused = q.dtype != jnp.float32 and jax.default_backend() == 'gpu'
  if mode == 'cudnn' and not fused:
    raise ValueError("attention 'cudnn' needs an NVIDIA GPU and bfloat16")
  if causal:
    return _full(q, k, v, jnp.tri(q.shape[1], k.shape[1], dtype=bool))
  if mode in ('auto', 'cudnn') and fused and q.shape[-1] <= _LARGEST_CUDNN_HEAD:
    return jax.nn.dot_product_attention(q, k, v, implementation='cudnn')
  row = 4 * q.shape[0] * q.shape[2] * k.shape[1]  # Bytes for one query.
  if mode == 'full' or (mode == 'auto' and row * q.shape[1] <= _CHUNK_BYTES):
    return _full(q, k, v)
  return _chunked(q, k, v, max(1, _CHUNK_BYTES // row))


def _full(q, k, v, mask=None):
  logits = jnp.einsum(
    'bqnk,bsnk->bnqs', q, k, preferred_element_type=jnp.float32
  )
  logits *= q.shape[-1] ** -0.5
  if mask is not None:
    logits = jnp.where(mask[None, None], logits, -jnp.inf)
  weights = jax.nn.softmax(logits).astype(v.dtype)
  return jnp.einsum('bnqs,bsnk->bqnk', weights, v)


def _chunked(q, k, v, queries):
  rows = jax.lax.map(
    lambda row: _full(row[:, None], k, v)[:, 0],
    q.swapaxes(0, 1),  # [Q, B, N, K]
    batch_size=min(queries, q.shape[1]),
  )
  return rows.swapaxes(0, 1)
