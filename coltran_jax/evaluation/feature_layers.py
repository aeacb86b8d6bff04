"""What the networks share that distances of sets are taken with.

Axes: B batch, H height, W width, D features.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

_EPSILON = 1e-3


def check(pictures):
  """Raises ValueError unless pictures are uint8 [B, H, W, 3]."""
  shape, dtype = jnp.shape(pictures), jnp.result_type(pictures)
  if dtype != jnp.uint8:
    raise ValueError(f'pictures must be uint8, not {dtype}')
  if len(shape) != 4 or shape[3] != 3 or 0 in shape:
    raise ValueError(f'pictures must be [B, H, W, 3], not {shape}')


class ConvNorm(nn.Module):
  """Convolution, batch norm by running averages, activation; [B, H, W, D]."""

  features: int
  size: tuple = (1, 1)  # Height and width of the kernel.
  stride: int = 1
  padding: str = 'SAME'
  groups: int = 1
  activation: Callable = nn.relu

  @nn.compact
  def __call__(self, x):
    shape = (self.features,)
    kernel = self.param(
      'kernel',
      nn.initializers.he_normal(),
      (*self.size, x.shape[3] // self.groups, *shape),
    )
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    mean = self.param('mean', nn.initializers.zeros, shape)
    variance = self.param('variance', nn.initializers.ones, shape)
    x = jax.lax.conv_general_dilated(
      x,
      kernel,
      (self.stride, self.stride),
      self.padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=self.groups,
    )
    factor = scale * jax.lax.rsqrt(variance + _EPSILON)
    factor, shift = (
      jnp.broadcast_to(value, x.shape)
      for value in (factor, bias - mean * factor)
    )
    return self.activation(x * factor + shift)
