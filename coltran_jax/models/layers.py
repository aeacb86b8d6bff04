"""Layers that the ColTran networks share: embeddings, norms, conditioning.

Axes: B batch, H height, W width, D features. Paper: sections 3 and 4.

Every conditional layer is split in two: `condition(context)` maps a context to
the scales and shifts it stands for, the call applies them. Training does both
at once; sampling computes conditions once a picture or once a row.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS = {
  'identity': lambda x: x,
  'relu': nn.relu,
  'sigmoid': nn.sigmoid,
  'tanh': jnp.tanh,
}
glorot = nn.initializers.glorot_uniform()


def dense(features, use_bias=True, dtype='float32', name=None):
  """Returns a linear layer with the reference's (Keras) initialisation."""
  return nn.Dense(
    features, use_bias=use_bias, dtype=dtype, kernel_init=glorot, name=name
  )


def normalize(x):
  """Returns float32 x [..., D] with mean 0, variance 1 over D (Keras eps)."""
  x = x.astype(jnp.float32)
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-3)


class LayerNorm(nn.Module):
  """Normalizes x [..., D] over D, with a learned scale and shift."""

  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    shape = (1,) * (x.ndim - 1) + x.shape[-1:]
    y = normalize(x) * scale.reshape(shape) + bias.reshape(shape)
    return y.astype(self.dtype)


class PositionEmbedding(nn.Module):
  """Holds one embedding a row plus one a column; the call returns [H, W, D].

  seq_axis: a mesh axis that splits rows within `shard_map`; the call returns
  those of the device.
  """

  resolution: tuple[int, int]
  features: int
  seq_axis: str | None = None

  @nn.compact
  def __call__(self):
    height, width = self.resolution
    init = nn.initializers.normal(self.features**-0.5)
    rows = self.param('rows', init, (height, 1, self.features))
    columns = self.param('columns', init, (width, self.features))
    if self.seq_axis:
      count = height // jax.lax.axis_size(self.seq_axis)
      start = count * jax.lax.axis_index(self.seq_axis)
      rows = jax.lax.dynamic_slice_in_dim(rows, start, count)
    return rows + columns[None]


class Embedding(nn.Module):
  """Maps int symbols [...] to [..., D]: the reference's one-hot product."""

  num_symbols: int
  features: int
  use_bias: bool = False
  dtype: str = 'float32'

  def setup(self):
    self.kernel = self.param(
      'kernel', glorot, (self.num_symbols, self.features)
    )
    if self.use_bias:
      self.bias = self.param('bias', nn.initializers.zeros, (self.features,))

  def table(self):
    """Returns the vectors of all symbols [num_symbols, D]."""
    table = self.kernel
    if self.use_bias:
      table = table + self.bias[None]
    return table.astype(self.dtype)

  def __call__(self, symbols):
    return self.table()[symbols]


class PatchEmbedding(nn.Module):
  """Maps what is in each pixel of a coarser grid to [B, H, W, D].

  Not in the paper: gray of a few coarse pixels tells little of grass, water or
  skin. A perceptron of one hidden layer sees the patch of finer ones.
  """

  features: int
  patch: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, gray):
    """Returns [B, H / patch, W / patch, D] of int gray [B, H, W], 0..255."""
    cells = _cells(gray.astype(jnp.float32) / 64 - 2, self.patch)
    cells = cells.swapaxes(2, 3)
    cells = cells.reshape(*cells.shape[:3], self.patch**2)
    mean = cells.mean(-1, keepdims=True)
    # Texture is fainter than light, so it is made stronger.
    x = jnp.concatenate([2 * (cells - mean), mean], axis=-1)
    x = nn.relu(dense(2 * self.features, dtype=self.dtype, name='hidden')(x))
    return dense(
      self.features, use_bias=False, dtype=self.dtype, name='output'
    )(x)


def _cells(x, factor):
  """[B, H / factor, factor, W / factor, factor, ...] of x [B, H, W, ...]."""
  batch, height, width, *rest = x.shape
  shape = (batch, height // factor, factor, width // factor, factor, *rest)
  return x.reshape(shape)


def shrink(x, factor):
  """Returns int32 [B, H / factor, W / factor, ...], means of int [B, H, W, ...].

  What `image.resize` gives, rounding included: the shares of an area resize by
  a whole number are equal.
  """
  mean = _cells(x.astype(np.float32), factor).mean((2, 4))
  return mean.round().astype(np.int32)


class ChannelInput(nn.Module):
  """Joins the embeddings of one channel's symbols and of gray (section 4.3).

  The reference concatenates both and projects them, pixel by pixel. Both are
  one of few vectors, so the projection is done on the tables instead.
  """

  num_symbols: int
  features: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, gray, symbols, channel):
    """Returns [B, H, W, D] of int gray, symbols [B, H, W] and channel [B]."""
    shape = (3 * self.num_symbols, self.features)
    symbol_table = self.param('symbol_embedding', glorot, shape)
    shape = (256, self.features)
    gray_table = self.param('gray_embedding', glorot, shape)
    shape = (2 * self.features, self.features)
    kernel = self.param('kernel', glorot, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    symbol_kernel, gray_kernel = jnp.split(kernel, 2)
    symbol_table = symbol_table @ symbol_kernel + bias[None]
    gray_table = gray_table @ gray_kernel
    symbols = symbols + self.num_symbols * channel[:, None, None]
    x = symbol_table[symbols] + gray_table[gray]
    return x.astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Conditioning:
  """How one network is conditioned on a context (paper section 4.2)."""

  norm: bool = True  # Conditional layer norm instead of a plain one.
  norm_order: str = 'sc'  # 'sc': average space, then project; 'cs': reverse.
  norm_average: str = 'learnable'  # Or 'mean': weights before the average.
  norm_activation: str = 'identity'
  mlp: str | None = 'affine'  # 'affine', 'shift' or None.
  mlp_activation: str = 'identity'
  attention: str = 'qkv'  # Which of queries, keys and values.
  attention_scale: bool = True  # Scale and shift, not shift alone.
  attention_activation: str = 'identity'

  def __post_init__(self):
    allowed = {
      'norm_order': ('sc', 'cs'),
      'norm_average': ('learnable', 'mean'),
      'norm_activation': tuple(ACTIVATIONS),
      'mlp': ('affine', 'shift', None),
      'mlp_activation': tuple(ACTIVATIONS),
      'attention_activation': tuple(ACTIVATIONS),
    }
    for name, values in allowed.items():
      if getattr(self, name) not in values:
        raise ValueError(
          f'{name} must be one of {values}, not {getattr(self, name)!r}'
        )
    letters = set(self.attention)
    if not letters <= set('qkv') or len(letters) < len(self.attention):
      raise ValueError(f"attention: letters of 'qkv', not {self.attention!r}")


NO_CONDITIONING = Conditioning(norm=False, mlp=None, attention='')


class ConditionalLayerNorm(nn.Module):
  """Normalizes x [..., D]; scale and shift come from a context's average."""

  resolution: tuple[int, int]
  features: int
  conditioning: Conditioning
  dtype: str = 'float32'

  def setup(self):
    if self.conditioning.norm_average == 'learnable':
      self.spatial_average = self.param(
        'spatial_average', nn.initializers.ones, (1, *self.resolution, 1)
      )
    self.projection = dense(2 * self.features)

  def condition(self, context):
    """Returns float32 [B, 1, 1, 2D] scale and shift of context [B, H, W, D].

    A context of one row [B, 1, W, D] stands for all rows: what the published
    sampler does (see `sampling`).
    """

    def pool(c):
      if self.conditioning.norm_average == 'learnable':
        c = self.spatial_average * c
      return c.mean(axis=(1, 2), keepdims=True)

    context = context.astype(jnp.float32)
    if self.conditioning.norm_order == 'sc':
      return self.projection(pool(context))
    return pool(self.projection(context))

  def __call__(self, x, condition):
    """Returns x normalized; condition [..., 2D] broadcasts against x."""
    act = ACTIVATIONS[self.conditioning.norm_activation]
    scale, shift = jnp.split(condition, 2, axis=-1)
    return (normalize(x) * act(scale) + act(shift)).astype(self.dtype)
