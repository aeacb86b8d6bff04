"""The spatial upsampler: blurry 256x256 -> sharp 256x256 (section 4.3).

Axes: B batch, H height, W width, D features.
"""

import flax.linen as nn
import jax.numpy as jnp

from coltran_jax.models import axial, layers


class SpatialUpsampler(nn.Module):
  """Predicts all levels of one channel in parallel, given its blurry ones.

  Defaults are the paper's. `chunk` bounds memory, see `axial.AxialEncoder`;
  `remat` that of training, see `axial.block_class`; `seq_axis` splits pictures
  over devices, see `sharding.SplitRows`.
  """

  resolution: tuple[int, int] = (256, 256)
  hidden_size: int = 512
  mlp_size: int = 512
  num_heads: int = 4
  num_layers: int = 3
  dropout: float = 0.0
  chunk: int | None = None
  remat: bool = False
  seq_axis: str | None = None
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, gray, symbols, channel, train=False):
    """Returns (logits float32 [B, H, W, 256], {}).

    gray: int [B, H, W], 0..255. symbols: int [B, H, W], 0..255, of the channel
    that `channel` int [B], 0..2 (red, green, blue) says.
    """
    x = layers.ChannelInput(256, self.hidden_size, self.dtype, name='inputs')(
      gray, symbols, channel
    )
    x = axial.AxialEncoder(
      features=self.hidden_size,
      mlp_features=self.mlp_size,
      num_heads=self.num_heads,
      num_layers=self.num_layers,
      resolution=self.resolution,
      dropout=self.dropout,
      chunk=self.chunk,
      remat=self.remat,
      seq_axis=self.seq_axis,
      dtype=self.dtype,
      name='encoder',
    )(x, train=train)
    logits = layers.dense(256, name='final_logits')(x.astype(jnp.float32))
    return logits, {}
