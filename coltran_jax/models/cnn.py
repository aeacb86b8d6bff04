"""The CNN baseline: lightness -> chroma, of "Image (Re)Colorization v2".

The first half of a ResNet-18 (He et al., 2016) shrinks the picture eightfold,
plain convolutions enlarge it again. Axes: B batch, H height, W width, D
features.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

_STRIDE = 8  # Of the encoder: two layers and a pooling of stride 2.
_EPSILON = 1e-5
_MOMENTUM = 0.1  # How far running averages move in a step.


class CNN(nn.Module):
  """Regresses the a and b of CIE Lab from L.

  Defaults are the study's: 960,994 parameters. Convolutions start as PyTorch's
  do (those of the ResNet normal with variance 2 / fan-out, the others uniform
  with variance 1 / (3 fan-in)), but biases at zero; batch norm as identity.

  Attributes:
    features: of the first layers; the ResNet ends with twice, the decoder with
      half as many.
    num_blocks: residual blocks in each of the two ResNet layers.
    dtype: of the convolutions. Parameters and batch norm are float32.
  """

  features: int = 64
  num_blocks: int = 2
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, lightness, train=False, batch_statistics=False):
    """Returns (ab float32 [B, H, W, 2], {}), in the units of `color.to_lab`.

    Variables are {'params', 'batch_stats'}: parameters, and the running means
    and variances of batch norm.

    Args:
      lightness: float [B, H, W], L in 0..100; H and W multiples of 8.
      train: normalize by the mean and variance of the batch and move the
        running ones a tenth towards them; needs `mutable=['batch_stats']`.
      batch_statistics: normalize so without moving anything. The study's demo
        did, on one picture at a time.

    Raises:
      ValueError: H or W is no multiple of 8.
    """
    height, width = lightness.shape[1:]
    if height % _STRIDE or width % _STRIDE:
      raise ValueError(
        f'height and width must be multiples of {_STRIDE}, not {height} and '
        f'{width}'
      )
    mode = {'train': train, 'batch_statistics': batch_statistics}
    # The study reads Lab pictures whose chroma was set to zero.
    x = jnp.pad(lightness[..., None], [(0, 0)] * 3 + [(0, 2)])  # [B, H, W, 3]

    x = _conv(self.features, 7, 2, self.dtype, 'stem')(x)  # [B, H/2, W/2, D]
    x = nn.relu(BatchNorm(name='stem_norm')(x, **mode))
    x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])  # [B, H/4, W/4, D]
    for layer, (features, stride) in enumerate(
      [(self.features, 1), (2 * self.features, 2)]
    ):
      for index in range(self.num_blocks):
        x = ResidualBlock(
          features,
          stride if index == 0 else 1,
          dtype=self.dtype,
          name=f'layer_{layer}_block_{index}',
        )(x, **mode)  # At the end [B, H/8, W/8, 2 D].

    for index, (features, scale) in enumerate(
      [
        (2 * self.features, 2),
        (self.features, 1),
        (self.features, 2),
        (self.features // 2, 1),
      ]
    ):
      x = _decoder_conv(features, self.dtype, f'decoder_{index}')(x)
      x = nn.relu(BatchNorm(name=f'decoder_norm_{index}')(x, **mode))
      x = _enlarge(x, scale)
    x = _decoder_conv(2, self.dtype, 'ab')(x)  # [B, H/2, W/2, 2]
    return _enlarge(x.astype(jnp.float32), 2), {}


class ResidualBlock(nn.Module):
  """Two convolutions beside a short cut: [B, H, W, D] -> [B, H/s, W/s, D']."""

  features: int
  stride: int = 1
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, **mode):
    y = _conv(self.features, 3, self.stride, self.dtype, 'conv_0')(x)
    y = nn.relu(BatchNorm(name='norm_0')(y, **mode))
    y = _conv(self.features, 3, 1, self.dtype, 'conv_1')(y)
    y = BatchNorm(name='norm_1')(y, **mode)
    if self.stride != 1:
      x = _conv(self.features, 1, self.stride, self.dtype, 'shortcut')(x)
      x = BatchNorm(name='shortcut_norm')(x, **mode)
    return nn.relu(x + y)


class BatchNorm(nn.Module):
  """Normalizes each feature of x [B, H, W, D], then scales and shifts it.

  As PyTorch's, where flax's differs: running averages take the *unbiased*
  variance of a batch, while the batch is divided by the biased one.
  """

  @nn.compact
  def __call__(self, x, train, batch_statistics):
    """Returns x normalized, in its dtype; modes: see `CNN`."""
    shape = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    running = {
      'mean': self.variable('batch_stats', 'mean', jnp.zeros, shape),
      'variance': self.variable('batch_stats', 'variance', jnp.ones, shape),
    }
    y = x.astype(jnp.float32)
    if train or batch_statistics:
      mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
    else:
      mean, variance = running['mean'].value, running['variance'].value
    if train and not self.is_initializing():
      count = y.size // y.shape[-1]
      unbiased = variance * (count / max(count - 1, 1))
      for name, new in [('mean', mean), ('variance', unbiased)]:
        running[name].value += _MOMENTUM * (new - running[name].value)
    mean, factor, bias = (
      jnp.broadcast_to(value, y.shape)
      for value in (mean, scale * jax.lax.rsqrt(variance + _EPSILON), bias)
    )
    return ((y - mean) * factor + bias).astype(x.dtype)


def _conv(features, size, stride, dtype, name):
  """Returns a convolution of the ResNet, without bias."""
  return nn.Conv(
    features,
    (size, size),
    strides=stride,
    padding=size // 2,
    use_bias=False,
    dtype=dtype,
    kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
    name=name,
  )


def _decoder_conv(features, dtype, name):
  return nn.Conv(
    features,
    (3, 3),
    padding=1,
    dtype=dtype,
    kernel_init=nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
    name=name,
  )


def _enlarge(x, scale):
  """Returns x [B, H, W, D] with each pixel repeated: [B, sH, sW, D]."""
  return x.repeat(scale, 1).repeat(scale, 2)
