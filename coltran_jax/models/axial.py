"""Axial attention, the block around it, and the encoder made of such blocks.

Axes: B batch, H height, W width, D features, N heads, K features a head,
L length attended over. Paper: sections 3 and 4.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from coltran_jax.models import layers

_MASKED = -1e6  # What the reference adds to the logits of masked positions.


class AxialAttention(nn.Module):
  """Attends along rows or columns of x [B, H, W, D], optionally causally.

  Paper sections 3 (axial attention) and 4.2 (conditional attention): queries,
  keys and values are scaled and shifted by projections of a context. A learned
  bias depends on the relative position.
  """

  features: int
  num_heads: int
  axis: str  # 'row' mixes the W pixels of a row, 'column' the H of a column.
  length: int
  causal: bool = False
  conditioning: layers.Conditioning = layers.NO_CONDITIONING
  context_features: int = 0
  dtype: str = 'float32'

  def setup(self):
    if self.features % self.num_heads:
      raise ValueError(
        f'{self.num_heads} heads cannot share {self.features} features'
      )
    size = self.features // self.num_heads
    self.kernels = {
      name: self.param(
        name, layers.glorot, (self.features, self.num_heads, size)
      )
      for name in 'qkv'
    }
    self.output = self.param(
      'output', layers.glorot, (self.num_heads, size, self.features)
    )
    self.relative_bias = self.param(
      'relative_bias', nn.initializers.zeros, (self.num_heads, 2 * self.length)
    )
    factor = 2 if self.conditioning.attention_scale else 1
    shape = (self.context_features, self.num_heads, factor * size)
    self.condition_kernels = {
      name: self.param(f'condition_{name}', layers.glorot, shape)
      for name in 'qkv'
      if name in self.conditioning.attention
    }

  def project(self, x):
    """Returns heads {'q', 'k', 'v'}, each [..., N, K], of x [..., D]."""
    return self._heads(x, self.kernels)

  def condition(self, context):
    """Returns {name: [..., N, 2K or K]} of context [..., D]."""
    return self._heads(context, self.condition_kernels)

  def _heads(self, x, kernels):
    x = x.astype(self.dtype)
    return {
      name: jnp.einsum('...d,dnk->...nk', x, kernel.astype(self.dtype))
      for name, kernel in kernels.items()
    }

  def modulate(self, heads, condition):
    """Returns heads scaled and shifted by `condition`, queries by K^-1/2."""
    act = layers.ACTIVATIONS[self.conditioning.attention_activation]
    heads = dict(heads)
    for name, value in condition.items():
      if self.conditioning.attention_scale:
        scale, shift = jnp.split(value, 2, axis=-1)
        heads[name] = heads[name] * act(scale) + act(shift)
      else:
        heads[name] = heads[name] + value
    heads['q'] = heads['q'] * heads['q'].shape[-1] ** -0.5
    return heads

  def bias(self):
    """Returns float32 [N, L, L]: relative bias, plus the mask if causal."""
    position = jnp.arange(self.length)
    offset = position[None] - position[:, None]  # Key minus query.
    bias = self.relative_bias[:, offset + self.length - 1]
    if self.causal:
      bias = bias + jnp.where(offset > 0, _MASKED, 0)[None]
    return bias

  def merge(self, values):
    """Returns [..., D] of attended values [..., N, K]."""
    # As one matrix: XLA would transpose the kernel of a two-axis contraction.
    kernel = self.output.reshape(-1, self.features).astype(self.dtype)
    return values.reshape(*values.shape[:-2], -1) @ kernel

  def __call__(self, x, condition):
    heads = self.modulate(self.project(x), condition)
    q, k, v = (heads[name] for name in 'qkv')  # [B, H, W, N, K]
    if self.axis == 'row':
      scores, mix = 'bhqnk,bhsnk->bhnqs', 'bhnqs,bhsnk->bhqnk'
    else:
      scores, mix = 'bqwnk,bswnk->bwnqs', 'bwnqs,bswnk->bqwnk'
    logits = jnp.einsum(scores, q, k).astype(jnp.float32)
    weights = jax.nn.softmax(logits + self.bias()[None, None])
    return self.merge(jnp.einsum(mix, weights.astype(self.dtype), v))

  def step(self, heads, cache, index):
    """Returns (values [..., N, K], cache) at `index` of a causal axis.

    heads: that position's modulated heads, each [..., N, K]. cache: (keys,
    values), each [..., N, L, K], which hold the positions before it. (With L
    beside K both products are plain batched ones: 8 times faster on a CPU.)
    """
    keys, values = (
      jax.lax.dynamic_update_index_in_dim(c, heads[name], index, -2)
      for c, name in zip(cache, 'kv', strict=True)
    )
    bias = jax.lax.dynamic_slice_in_dim(
      self.relative_bias, self.length - 1 - index, self.length, axis=1
    )
    bias = bias + jnp.where(jnp.arange(self.length) > index, _MASKED, 0)[None]
    logits = jnp.einsum('...k,...sk->...s', heads['q'], keys)
    logits = logits.astype(jnp.float32)
    weights = jax.nn.softmax(logits + bias[None]).astype(self.dtype)
    attended = jnp.einsum('...s,...sk->...k', weights, values)
    return attended, (keys, values)


class AxialBlock(nn.Module):
  """Attention along one axis, then an MLP; each with residual and norm after."""

  features: int
  mlp_features: int
  num_heads: int
  axis: str
  resolution: tuple[int, int]
  causal: bool = False
  conditioning: layers.Conditioning = layers.NO_CONDITIONING
  context_features: int = 0
  dropout: float = 0.0
  dtype: str = 'float32'

  def setup(self):
    self.attention = AxialAttention(
      features=self.features,
      num_heads=self.num_heads,
      axis=self.axis,
      length=self.resolution[1 if self.axis == 'row' else 0],
      causal=self.causal,
      conditioning=self.conditioning,
      context_features=self.context_features,
      dtype=self.dtype,
    )
    self.mlp_in = layers.dense(self.mlp_features, dtype=self.dtype)
    self.mlp_out = layers.dense(self.features, dtype=self.dtype)
    if self.conditioning.mlp:
      factor = 2 if self.conditioning.mlp == 'affine' else 1
      self.mlp_condition = layers.dense(
        factor * self.features, dtype=self.dtype
      )
    self.attention_norm, self.mlp_norm = self._norm(), self._norm()
    self.drop = nn.Dropout(self.dropout)

  def _norm(self):
    if not self.conditioning.norm:
      return layers.LayerNorm(dtype=self.dtype)
    return layers.ConditionalLayerNorm(
      resolution=self.resolution,
      features=self.features,
      conditioning=self.conditioning,
      dtype=self.dtype,
    )

  def condition(self, context):
    """Returns what context [..., D] says to attention and MLP, pixel by pixel.

    A dict {'attention': {head: [..., N, 2K]}, 'mlp': [..., 2D]}, without the
    parts that are switched off.
    """
    out = {'attention': self.attention.condition(context)}
    if self.conditioning.mlp:
      out['mlp'] = self.mlp_condition(context)
    return out

  def condition_norms(self, context):
    """Returns what context [B, H, W, D] says to the two norms: [B, 1, 1, 2D].

    An empty dict if the norms are not conditional.
    """
    if not self.conditioning.norm:
      return {}
    return {
      'attention': self.attention_norm.condition(context),
      'mlp': self.mlp_norm.condition(context),
    }

  def __call__(self, x, context=None, norm_context=None, train=False):
    """Returns [B, H, W, D] of x [B, H, W, D].

    context [B, H, W, any] conditions attention and MLP pixel by pixel,
    norm_context [B, H, W, D] the norms; None where nothing is conditional.
    """
    condition = {} if context is None else self.condition(context)
    norms = {} if norm_context is None else self.condition_norms(norm_context)
    return self.apply_conditions(x, condition, norms, train)

  def apply_conditions(self, x, condition, norms, train=False):
    """Returns [B, H, W, D] of x, given what the two methods above return."""
    attended = self.attention(x, condition.get('attention', {}))
    return self.finish(x, attended, condition, norms, train)

  def step(self, x, heads, cache, index, condition, norms):
    """Returns (y [..., D], cache) at position `index` of the causal axis.

    x: [..., D], that position alone. heads: its projections (`project`). cache:
    keys and values of the positions before it. condition, norms: of that
    position, broadcasting against x.
    """
    heads = self.attention.modulate(heads, condition['attention'])
    values, cache = self.attention.step(heads, cache, index)
    return self.finish_step(x, values, condition, norms), cache

  def finish_step(self, x, values, condition, norms):
    """Returns `step`'s y of its input and the attended values [..., N, K]."""
    return self.finish(x, self.attention.merge(values), condition, norms)

  def project(self, x):
    """Returns the attention's heads {'q', 'k', 'v'} of x [..., D]."""
    return self.attention.project(x)

  def finish(self, x, attended, condition, norms, train=False):
    """Returns the block's output of its input and what attention gave."""
    x = x + self.drop(attended, deterministic=not train)
    x = self.attention_norm(x, *self._of(norms, 'attention'))
    y = self.mlp_out(nn.relu(self.mlp_in(x)))
    if self.conditioning.mlp == 'shift':
      y = y + condition['mlp']
    elif self.conditioning.mlp == 'affine':
      act = layers.ACTIVATIONS[self.conditioning.mlp_activation]
      shift, scale = jnp.split(condition['mlp'], 2, axis=-1)
      y = y * act(scale) + act(shift)
    x = x + self.drop(y, deterministic=not train)
    return self.mlp_norm(x, *self._of(norms, 'mlp'))

  def _of(self, norms, name):
    return (norms[name],) if self.conditioning.norm else ()


def turn(x, axis, seq_axis):
  """Returns x [B, H, W, D] with all of the lines that attention mixes.

  Within `shard_map` over the mesh axis `seq_axis` a device has some rows of all
  columns before and after a row block ('row'), and some columns of all rows
  around a column block ('column').
  """
  split, join = (2, 1) if axis == 'column' else (1, 2)
  return jax.lax.all_to_all(x, seq_axis, split, join, tiled=True)


def block_class(remat):
  """Returns AxialBlock; with remat, backward recomputes what is inside it.

  Then only a block's inputs are kept: less memory, a third more products.
  """
  if not remat:
    return AxialBlock
  # Argument 0 is self, 4 is train.
  return nn.remat(AxialBlock, static_argnums=(4,), methods=['__call__'])


class AxialEncoder(nn.Module):
  """Position embedding and pairs of row and column blocks: the grayscale
  encoder (section 4.1) and the body of both upsamplers (section 4.3).

  `chunk`: rows (columns) that a row (column) block works on at a time, None
  for all at once. It bounds the memory of inference and keeps a chunk in the
  cache; the numbers stay the same.

  `seq_axis`: the mesh axis that splits rows, within `shard_map`; see `turn`.
  Then x is [B, H / devices, W, D], and so is what is returned.
  """

  features: int
  mlp_features: int
  num_heads: int
  num_layers: int
  resolution: tuple[int, int]
  dropout: float = 0.0
  chunk: int | None = None
  remat: bool = False
  seq_axis: str | None = None
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, train=False):
    """Returns [B, H, W, D] of embeddings x [B, H, W, D]."""
    position = layers.PositionEmbedding(
      self.resolution, self.features, self.seq_axis, name='position'
    )()
    x = x + position[None].astype(x.dtype)
    for layer in range(self.num_layers):
      for axis in ('row', 'column'):
        block = block_class(self.remat)(
          features=self.features,
          mlp_features=self.mlp_features,
          num_heads=self.num_heads,
          axis=axis,
          resolution=self.resolution,
          dropout=self.dropout,
          dtype=self.dtype,
          name=f'{axis}_block_{layer}',
        )
        turned = self.seq_axis and axis == 'column'
        x = turn(x, 'column', self.seq_axis) if turned else x
        if self.chunk is None:
          x = block(x, None, None, train)
        else:
          x = _in_chunks(block, x, 1 if axis == 'row' else 2, self.chunk, train)
        x = turn(x, 'row', self.seq_axis) if turned else x
    return x


def _in_chunks(block, x, axis, chunk, train):
  """Returns block(x), `chunk` lines along `axis` at a time, in x's own memory."""
  length = x.shape[axis]
  chunk = max(c for c in range(1, min(chunk, length) + 1) if length % c == 0)

  def body(block, x, start):
    lines = jax.lax.dynamic_slice_in_dim(x, start, chunk, axis)
    lines = block(lines, None, None, train)
    return jax.lax.dynamic_update_slice_in_dim(x, lines, start, axis), None

  x, _ = nn.scan(
    body,
    variable_broadcast='params',
    split_rngs={'params': False, 'dropout': True},
  )(block, x, jnp.arange(0, length, chunk))
  return x
