"""The autoencoder between pictures and latents an eighth their size.

Rombach et al., 2022. Axes: B batch, H, W of pictures, h, w of latents, C their
channels, D features.
"""

import flax.linen as nn
import jax.numpy as jnp

from coltran_jax.diffusion import layers

_EPSILON = 1e-6  # Of all group norms.


class VAE(nn.Module):
  """Encodes and decodes pictures.

  features: one entry a level, from fine to coarse. depth: residual blocks a
  level; one more when decoding. scaling: what the UNet knows are latents times
  it, of variance about 1; here they are without.
  """

  features: tuple[int, ...] = (128, 256, 512, 512)
  depth: int = 2
  channels: int = 4
  groups: int = 32
  scaling: float = 0.18215
  attention: str = 'auto'
  dtype: str = 'float32'

  def setup(self):
    common = {
      'features': self.features,
      'depth': self.depth,
      'groups': self.groups,
      'attention': self.attention,
      'dtype': self.dtype,
    }
    self.encoder = Encoder(**common, channels=2 * self.channels)
    self.decoder = Decoder(**common)
    self.quant_conv = nn.Conv(2 * self.channels, (1, 1), dtype=self.dtype)
    self.post_quant_conv = nn.Conv(self.channels, (1, 1), dtype=self.dtype)

  @property
  def multiple(self):
    """How many pixels, along H and W each, make one of a latent."""
    return 2 ** (len(self.features) - 1)

  def __call__(self, pictures):
    """Returns pictures that went through; so `init` makes all parameters."""
    return self.decode(self.encode(pictures)[0])

  def encode(self, pictures):
    """Returns (mean, log variance) of latents, each float32 [B, h, w, C].

    pictures: [B, H, W, 3] in -1..1; H and W are multiples of `multiple`.
    """
    moments = self.quant_conv(self.encoder(pictures)).astype(jnp.float32)
    return tuple(jnp.split(moments, 2, axis=-1))

  def decode(self, latents):
    """Returns pictures float32 [B, H, W, 3], about -1..1, of latents."""
    return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)


class Encoder(nn.Module):
  """[B, H, W, 3] -> [B, h, w, channels]."""

  features: tuple[int, ...]
  depth: int
  groups: int
  channels: int
  attention: str = 'auto'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    x = layers.conv(self.features[0], 3, 'conv_in', self.dtype)(x)
    for level, features in enumerate(self.features):
      last = level == len(self.features) - 1
      x = Level(
        features,
        self.depth,
        self.groups,
        None if last else 'down',
        self.dtype,
        name=f'down_blocks_{level}',
      )(x)
    x = Middle(self.groups, self.attention, self.dtype, name='mid_block')(x)
    return _out(x, self.channels, self.groups, self.dtype)


class Decoder(nn.Module):
  """[B, h, w, C] -> [B, H, W, 3]."""

  features: tuple[int, ...]
  depth: int
  groups: int
  attention: str = 'auto'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    x = layers.conv(self.features[-1], 3, 'conv_in', self.dtype)(x)
    x = Middle(self.groups, self.attention, self.dtype, name='mid_block')(x)
    for i, features in enumerate(reversed(self.features)):
      last = i == len(self.features) - 1
      x = Level(
        features,
        self.depth + 1,
        self.groups,
        None if last else 'up',
        self.dtype,
        name=f'up_blocks_{i}',
      )(x)
    return _out(x, 3, self.groups, self.dtype)


class Level(nn.Module):
  """Residual blocks, then [B, H, W, D] becomes half or twice as large, or not.

  resize: 'down', 'up' or None.
  """

  features: int
  depth: int
  groups: int
  resize: str | None = None
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    for i in range(self.depth):
      x = layers.Resnet(
        self.features, self.groups, _EPSILON, self.dtype, name=f'resnets_{i}'
      )(x)
    if self.resize == 'down':
      return layers.Downsample(True, self.dtype, name='downsamplers_0')(x)
    if self.resize == 'up':
      return layers.Upsample(self.dtype, name='upsamplers_0')(x)
    return x


class Middle(nn.Module):
  """The coarsest level: [B, h, w, D], the same shape."""

  groups: int
  attention: str = 'auto'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    def resnet(name):
      return layers.Resnet(
        x.shape[-1], self.groups, _EPSILON, self.dtype, name=name
      )

    x = resnet('resnets_0')(x)
    x = PixelAttention(
      self.groups, self.attention, self.dtype, name='attentions_0'
    )(x)
    return resnet('resnets_1')(x)


class PixelAttention(nn.Module):
  """Pixels attend to each other, with one head: [B, h, w, D], the same shape."""

  groups: int
  attention: str = 'auto'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    y = layers.group_norm(self.groups, _EPSILON, 'group_norm', self.dtype)(x)
    y = y.reshape(x.shape[0], -1, x.shape[-1])  # [B, h w, D]
    y = layers.attend(y, y, 1, self.attention, self.dtype, bias=True)
    return x + y.reshape(x.shape)


def _out(x, channels, groups, dtype):
  """Returns [B, H, W, channels]; the layers become the caller's own."""
  x = layers.group_norm(groups, _EPSILON, 'conv_norm_out', dtype)(x)
  return layers.conv(channels, 3, 'conv_out', dtype)(nn.silu(x))
