"""The colorizer: gray picture -> distribution over coarse colours (section 4.1).

Axes: B batch, H height, W width, D features, N heads, K features a head,
V = 512 coarse colours. `z` is the gray encoder's output, `context` what the
outer decoder says about all rows above a pixel.

The pixel at (row, column) is predicted from z, from all rows above (outer
decoder) and from the pixels to its left (inner decoder). Besides the
teacher-forced pass there are the steps that sampling takes: `encode` a picture,
the outer steps and `inner_row` once a row, `inner_step` once a pixel.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from coltran_jax.models import axial, layers

NUM_CODES = 512


class OuterDecoder(nn.Module):
  """Summarizes the rows above each pixel: row attention, causal columns."""

  features: int
  mlp_features: int
  num_heads: int
  num_layers: int
  resolution: tuple[int, int]
  skip: bool
  conditioning: layers.Conditioning
  dropout: float = 0.0
  remat: bool = False
  dtype: str = 'float32'

  def setup(self):
    self.position = layers.PositionEmbedding(self.resolution, self.features)
    self.row_block = [self._make('row') for _ in range(self.num_layers)]
    self.column_block = [self._make('column') for _ in range(self.num_layers)]

  def _make(self, axis):
    return axial.block_class(self.remat)(
      features=self.features,
      mlp_features=self.mlp_features,
      num_heads=self.num_heads,
      axis=axis,
      resolution=self.resolution,
      causal=axis == 'column',
      conditioning=self.conditioning,
      context_features=self.features,
      dropout=self.dropout,
      dtype=self.dtype,
    )

  def _pairs(self):
    return list(zip(self.row_block, self.column_block, strict=True))

  def condition_norms(self, z):
    """Returns for each layer the (row, column) norm conditions of z."""
    return [
      (row.condition_norms(z), column.condition_norms(z))
      for row, column in self._pairs()
    ]

  def __call__(self, embedded, z, train=False):
    """Returns context [B, H, W, D] of embedded codes and z [B, H, W, D]."""
    x = embedded + self.position()[None].astype(self.dtype)
    if self.skip:
      x = x + z
    for row, column in self._pairs():
      for block in (row, column):
        x = block(x, z, z, train)
    return jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]  # Shift down.

  def row_inputs(self, embedded, z, index):
    """Returns the first layer's x [W, D] for row `index` of one picture."""
    x = embedded + self.position()[index].astype(self.dtype)
    return x + z if self.skip else x

  def condition(self, z):
    """Returns for each layer what z [..., D] says to (row, column) block."""
    return [
      (row.condition(z), column.condition(z)) for row, column in self._pairs()
    ]

  def row_step(self, layer, x, conditions, norms):
    """Returns (x [W, D], heads) between a layer's row and column attention.

    x: [W, D], a row of one picture. conditions, norms: of that row and of the
    picture, for the layer's two blocks. heads: the column block's, modulated,
    each [W, N, K].
    """
    condition = jax.tree.map(lambda c: c[None, None], conditions[0])
    block = self.row_block[layer]
    x = block.apply_conditions(x[None, None], condition, norms[0])[0, 0]
    attention = self.column_block[layer].attention
    heads = attention.modulate(attention.project(x), conditions[1]['attention'])
    return x, heads

  def column_step(self, layer, heads, cache, index):
    """Returns (values [W, N, K], cache): a layer's column attention.

    heads: of row `index`. cache: keys and values [W, N, H, K] of the rows
    above.
    """
    return self.column_block[layer].attention.step(heads, cache, index)

  def finish_step(self, layer, x, values, conditions, norms):
    """Returns x [W, D] after a layer, of what the two steps before gave."""
    norms = jax.tree.map(lambda c: c[0, 0], norms[1])  # [1, 2D]
    block = self.column_block[layer]
    return block.finish_step(x, values, conditions[1], norms)


class InnerDecoder(nn.Module):
  """Attends to the pixels on the left, given z and the rows above."""

  features: int
  mlp_features: int
  num_heads: int
  num_layers: int
  resolution: tuple[int, int]
  skip: bool
  conditioning: layers.Conditioning
  dropout: float = 0.0
  remat: bool = False
  dtype: str = 'float32'

  def setup(self):
    self.position = layers.PositionEmbedding(self.resolution, self.features)
    self.block = [
      axial.block_class(self.remat)(
        features=self.features,
        mlp_features=self.mlp_features,
        num_heads=self.num_heads,
        axis='row',
        resolution=self.resolution,
        causal=True,
        conditioning=self.conditioning,
        context_features=2 * self.features,
        dropout=self.dropout,
        dtype=self.dtype,
      )
      for _ in range(self.num_layers)
    ]

  def condition_norms(self, z):
    """Returns for each layer the norm conditions of z [B, H or 1, W, D]."""
    return [block.condition_norms(z) for block in self.block]

  def __call__(self, embedded, context, z, train=False):
    """Returns [B, H, W, D] of embedded codes, context and z [B, H, W, D]."""
    x = jnp.pad(embedded, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
    x = x + self.position()[None].astype(self.dtype)
    if self.skip:
      x = x + z + context
    contexts = jnp.concatenate([z, context], axis=-1)  # [B, H, W, 2D]
    # The norms see z alone: an average of the context would leak the future.
    for block in self.block:
      x = block(x, contexts, z, train)
    return x

  def row(self, context, z, index):
    """Returns all that a row's pixels need besides their left neighbours.

    context, z: [W, D], row `index` of one picture. A dict of 'inputs' [W, D],
    'heads' (the first block's projections of them) and 'conditions' (a block
    each), all with W leading.
    """
    inputs = self.position()[index].astype(self.dtype)
    if self.skip:
      inputs = inputs + z + context
    contexts = jnp.concatenate([z, context], axis=-1)  # [W, 2D]
    return {
      'inputs': inputs,
      'heads': self.block[0].project(inputs),
      'conditions': [block.condition(contexts) for block in self.block],
    }

  def project(self, embedded):
    """Returns the first block's heads of embeddings [..., D]."""
    return self.block[0].project(embedded)

  def step(self, embedded, heads, pixel, norms, caches, index):
    """Returns (x [B, D], caches) for the pixels at column `index` of B rows.

    embedded: [B, D], embeddings of the left neighbours; heads: `project` of
    them. pixel: what `row` gave, at this column. norms: [B, 2D] each. caches:
    for each layer keys and values [B, N, W, K].
    """
    x = embedded + pixel['inputs']
    # Projections are linear, so the first block's are sums of known parts.
    heads = jax.tree.map(jnp.add, heads, pixel['heads'])
    updated = []
    for layer, block in enumerate(self.block):
      if layer > 0:
        heads = block.project(x)
      x, cache = block.step(
        x, heads, caches[layer], index, pixel['conditions'][layer], norms[layer]
      )
      updated.append(cache)
    return x, updated


class Colorizer(nn.Module):
  """Autoregressive model of coarse colours given gray.

  `conditional_attention`: which of queries, keys and values ('qkv') are
  conditioned; `parallel_head`: whether the encoder also predicts all colours
  at once (the auxiliary loss of section 3). `gray_patch`: how much finer the gray
  that the encoder sees is than the codes; the paper's is as fine. `encoder_chunk` bounds memory, see
  `axial.AxialEncoder`; `remat` that of training, see `axial.block_class`. Defaults are the paper's.
  """

  resolution: tuple[int, int] = (64, 64)
  gray_patch: int = 1
  hidden_size: int = 512
  mlp_size: int = 512
  num_heads: int = 4
  num_outer_layers: int = 2
  num_inner_layers: int = 2
  encoder_mlp_size: int = 512
  encoder_num_heads: int = 4
  num_encoder_layers: int = 4
  skip: bool = True
  parallel_head: bool = True
  conditional_norm: bool = True
  conditional_norm_order: str = 'sc'
  conditional_norm_average: str = 'learnable'
  conditional_norm_activation: str = 'identity'
  conditional_mlp: str | None = 'affine'
  conditional_mlp_activation: str = 'identity'
  conditional_attention: str = 'qkv'
  conditional_attention_scale: bool = True
  conditional_attention_activation: str = 'identity'
  dropout: float = 0.0
  encoder_dropout: float = 0.0
  encoder_chunk: int | None = None
  remat: bool = False
  dtype: str = 'float32'

  @property
  def num_codes(self):
    return NUM_CODES

  @property
  def gray_resolution(self):
    """(height, width) of the gray that the encoder sees."""
    return tuple(self.gray_patch * side for side in self.resolution)

  def coarse_gray(self, gray):
    """Returns int [B, H, W], gray of that size as coarse as the codes."""
    return layers.shrink(gray, self.gray_patch)

  def setup(self):
    self.gray_embedding = layers.Embedding(
      256, self.hidden_size, use_bias=True, dtype=self.dtype
    )
    if self.gray_patch > 1:
      self.patch_embedding = layers.PatchEmbedding(
        self.hidden_size, self.gray_patch, dtype=self.dtype
      )
    self.encoder = axial.AxialEncoder(
      features=self.hidden_size,
      mlp_features=self.encoder_mlp_size,
      num_heads=self.encoder_num_heads,
      num_layers=self.num_encoder_layers,
      resolution=self.resolution,
      dropout=self.encoder_dropout,
      chunk=self.encoder_chunk,
      remat=self.remat,
      dtype=self.dtype,
    )
    if self.parallel_head:
      self.parallel_logits = layers.dense(NUM_CODES, use_bias=False)
    self.code_embedding = layers.Embedding(
      NUM_CODES, self.hidden_size, dtype=self.dtype
    )
    decoder = {
      'features': self.hidden_size,
      'mlp_features': self.mlp_size,
      'num_heads': self.num_heads,
      'resolution': self.resolution,
      'skip': self.skip,
      'conditioning': layers.Conditioning(
        norm=self.conditional_norm,
        norm_order=self.conditional_norm_order,
        norm_average=self.conditional_norm_average,
        norm_activation=self.conditional_norm_activation,
        mlp=self.conditional_mlp,
        mlp_activation=self.conditional_mlp_activation,
        attention=self.conditional_attention,
        attention_scale=self.conditional_attention_scale,
        attention_activation=self.conditional_attention_activation,
      ),
      'dropout': self.dropout,
      'remat': self.remat,
      'dtype': self.dtype,
    }
    self.outer_decoder = OuterDecoder(
      num_layers=self.num_outer_layers, **decoder
    )
    self.inner_decoder = InnerDecoder(
      num_layers=self.num_inner_layers, **decoder
    )
    self.final_norm = layers.LayerNorm()
    self.final_logits = layers.dense(NUM_CODES)

  def __call__(self, gray, codes, train=False):
    """Returns (logits float32 [B, H, W, 512], aux), teacher-forced on codes.

    gray: int [B, P H, P W], 0..255, P = `gray_patch`. codes: int [B, H, W],
    0..511. aux holds 'parallel_logits' [B, H, W, 512] where the model has that
    head.
    """
    z = self.encode(gray, train=train)
    aux = {'parallel_logits': self.parallel(z)} if self.parallel_head else {}
    return self.decode(codes, z, train=train), aux

  def encode(self, gray, train=False):
    """Returns z [B, H, W, D] of int gray [B, P H, P W]."""
    x = self.gray_embedding(self.coarse_gray(gray))
    if self.gray_patch > 1:
      x = x + self.patch_embedding(gray)
    return self.encoder(x, train=train)

  def decode(self, codes, z, train=False):
    """Returns float32 logits [B, H, W, 512], teacher-forced on codes."""
    embedded = self.code_embedding(codes)
    context = self.outer_decoder(embedded, z, train=train)
    return self.logits(self.inner_decoder(embedded, context, z, train=train))

  def parallel(self, z):
    """Returns float32 logits [B, H, W, 512] of the encoder's own prediction."""
    return self.parallel_logits(z.astype(jnp.float32))

  def expect(self, gray, train=False):
    """Returns that prediction, float32 [B, H, W, 512], of int gray [B, P H, P W]."""
    return self.parallel(self.encode(gray, train=train))

  def logits(self, x):
    """Returns float32 logits [..., 512] of the inner decoder's output."""
    return self.final_logits(self.final_norm(x))

  def condition_norms(self, z):
    """Returns (outer, inner) norm conditions of z [B, H, W, D]."""
    return (
      self.outer_decoder.condition_norms(z),
      self.inner_decoder.condition_norms(z),
    )

  def outer_inputs(self, codes, z, index):
    """Returns [W, D] of a row's codes; see `OuterDecoder.row_inputs`."""
    embedded = self.code_embedding(codes)
    return self.outer_decoder.row_inputs(embedded, z, index)

  def outer_condition(self, z):
    """Returns what z [..., D] says; see `OuterDecoder.condition`."""
    return self.outer_decoder.condition(z)

  def outer_row_step(self, layer, x, conditions, norms):
    """Returns (x [W, D], heads); see `OuterDecoder.row_step`."""
    return self.outer_decoder.row_step(layer, x, conditions, norms)

  def outer_column_step(self, layer, heads, cache, index):
    """Returns (values, cache); see `OuterDecoder.column_step`."""
    return self.outer_decoder.column_step(layer, heads, cache, index)

  def outer_finish_step(self, layer, x, values, conditions, norms):
    """Returns x [W, D]; the last layer's is the context of the row below."""
    return self.outer_decoder.finish_step(layer, x, values, conditions, norms)

  def inner_norms(self, z):
    """Returns the inner decoder's norm conditions of z [B, H or 1, W, D]."""
    return self.inner_decoder.condition_norms(z)

  def inner_row(self, context, z, index):
    """Returns what a row's pixels need; see `InnerDecoder.row`."""
    return self.inner_decoder.row(context, z, index)

  def symbol_table(self):
    """Returns (embeddings [513, D], their heads [513, N, K]); 512 is 'none'."""
    table = jnp.pad(self.code_embedding.table(), ((0, 1), (0, 0)))
    return table, self.inner_decoder.project(table)

  def inner_step(self, embedded, heads, pixel, norms, caches, index):
    """Returns (logits [B, 512], caches); see `InnerDecoder.step`."""
    x, caches = self.inner_decoder.step(
      embedded, heads, pixel, norms, caches, index
    )
    return self.logits(x), caches
