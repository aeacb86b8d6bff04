"""What UNet, ControlNet and VAE are built of; submodules named as torch's.

`NAME_0` is `NAME.0` there, so one rule (`weights`) finds every tensor. Axes: B
batch, H height, W width, D features, T positions (pixels or tokens).
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from coltran_jax.diffusion import attention


def conv(features, size, name, dtype, stride=1):
  """Returns a convolution whose padding keeps H and W, over the stride."""
  return nn.Conv(
    features,
    (size, size),
    strides=stride,
    padding=size // 2,
    dtype=dtype,
    name=name,
  )


def group_norm(groups, epsilon, name, dtype):
  """Returns a group norm; its statistics are float32 and exact."""
  return nn.GroupNorm(
    groups, epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name
  )


def layer_norm(name, dtype, epsilon=1e-5):
  """Returns a layer norm over D; its statistics are float32 and exact."""
  return nn.LayerNorm(
    epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name
  )


def attend(x, context, heads, mode, dtype, bias=False):
  """Returns x [B, T, D] attending to context [B, S, D'], of the same shape.

  For use in a compact module: the layers to_q .. to_out_0 become its own.
  """
  features = x.shape[-1]

  def split(name, of):
    y = nn.Dense(features, use_bias=bias, dtype=dtype, name=name)(of)
    return y.reshape(*y.shape[:2], heads, features // heads)

  q, k, v = split('to_q', x), split('to_k', context), split('to_v', context)
  y = attention.attend(q, k, v, mode).reshape(x.shape)
  return nn.Dense(features, dtype=dtype, name='to_out_0')(y)


class Resnet(nn.Module):
  """Two convolutions beside a short cut; [B, H, W, D] -> [B, H, W, features].

  time: [B, D'], added between the two, or None (in the VAE).
  """

  features: int
  groups: int
  epsilon: float
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, time=None):
    y = group_norm(self.groups, self.epsilon, 'norm1', self.dtype)(x)
    y = conv(self.features, 3, 'conv1', self.dtype)(nn.silu(y))
    if time is not None:
      shift = nn.Dense(self.features, dtype=self.dtype, name='time_emb_proj')(
        nn.silu(time)
      )
      y += shift[:, None, None]
    y = group_norm(self.groups, self.epsilon, 'norm2', self.dtype)(y)
    y = conv(self.features, 3, 'conv2', self.dtype)(nn.silu(y))
    if x.shape[-1] != self.features:
      x = conv(self.features, 1, 'conv_shortcut', self.dtype)(x)
    return x + y


class Upsample(nn.Module):
  """Each pixel four times, then a convolution: [B, H, W, D] -> [B, 2H, 2W, D]."""

  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    return conv(x.shape[-1], 3, 'conv', self.dtype)(x)


class Downsample(nn.Module):
  """[B, H, W, D] -> [B, H/2, W/2, D]; the VAE's pads below and right only."""

  one_sided: bool = False
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    padding = (0, 1) if self.one_sided else (1, 1)
    return nn.Conv(
      x.shape[-1],
      (3, 3),
      strides=2,
      padding=[padding] * 2,
      dtype=self.dtype,
      name='conv',
    )(x)


class Transformer(nn.Module):
  """Pixels attend to each other and to a text: [B, H, W, D], the same shape.

  context: [B, S, D'], the encoded text.
  """

  heads: int
  groups: int
  blocks: int = 1
  linear_projection: bool = False
  attention: str = 'auto'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, context):
    def project(name):
      # The same product; in Stable Diffusion 1 it is stored as a convolution.
      if self.linear_projection:
        return nn.Dense(x.shape[-1], dtype=self.dtype, name=name)
      return conv(x.shape[-1], 1, name, self.dtype)

    y = group_norm(self.groups, 1e-6, 'norm', self.dtype)(x)
    y = project('proj_in')(y)
    y = y.reshape(x.shape[0], -1, x.shape[-1])  # [B, H W, D]
    for i in range(self.blocks):
      y = TransformerBlock(
        self.heads, self.attention, self.dtype, name=f'transformer_blocks_{i}'
      )(y, context)
    return project('proj_out')(y.reshape(x.shape)) + x


class TransformerBlock(nn.Module):
  """x [B, T, D] attends to itself, to the context, then each row alone."""

  heads: int
  attention: str = 'auto'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, context):
    common = (self.heads, self.attention, self.dtype)
    y = layer_norm('norm1', self.dtype)(x)
    x += Attention(*common, name='attn1')(y, y)
    y = layer_norm('norm2', self.dtype)(x)
    x += Attention(*common, name='attn2')(y, context)
    y = layer_norm('norm3', self.dtype)(x)
    return x + FeedForward(self.dtype, name='ff')(y)


class Attention(nn.Module):
  """`attend`, with layers of its own."""

  heads: int
  mode: str = 'auto'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, context):
    return attend(x, context, self.heads, self.mode, self.dtype)


class FeedForward(nn.Module):
  """A gated layer four times as wide, and back: [B, T, D], the same shape."""

  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    y = GatedGELU(4 * x.shape[-1], self.dtype, name='net_0')(x)
    return nn.Dense(x.shape[-1], dtype=self.dtype, name='net_2')(y)


class GatedGELU(nn.Module):
  """Half of a projection times the (exact) GELU of the other half."""

  features: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x):
    y = nn.Dense(2 * self.features, dtype=self.dtype, name='proj')(x)
    y, gate = jnp.split(y, 2, axis=-1)
    return y * nn.gelu(gate, approximate=False)


class TimeEmbedding(nn.Module):
  """Two layers on sines and cosines of timesteps [B]: [B, 4 features]."""

  features: int
  cosine_first: bool = True
  shift: int = 0  # Of the slowest wave's number.
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, timesteps):
    half = self.features // 2
    power = jnp.arange(half, dtype=jnp.float32) / (half - self.shift)
    waves = jnp.exp(-math.log(10_000) * power)
    angles = timesteps.astype(jnp.float32)[:, None] * waves[None]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    x = jnp.concatenate(parts[::-1] if self.cosine_first else parts, axis=-1)
    x = nn.Dense(4 * self.features, dtype=self.dtype, name='linear_1')(x)
    return nn.Dense(4 * self.features, dtype=self.dtype, name='linear_2')(
      nn.silu(x)
    )
