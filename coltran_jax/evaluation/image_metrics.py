"""Distances between a coloring and its truth, and how colorful a picture is.

All take uint8 pictures [B, H, W, 3] in sRGB and return float32 [B]. Axes: B
batch, H height, W width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import color

_SIGMA, _RADIUS = 1.5, 5  # Of SSIM's window: 11 pixels a side.


@jax.jit
def psnr(made, truth):
  """Returns the peak signal-to-noise ratio in dB; infinite for equal ones."""
  error = jnp.square(_unit(made) - _unit(truth)).mean((1, 2, 3))
  return -10 * jnp.log10(error)


@jax.jit
def ssim(made, truth):
  """Returns the structural similarity, -1..1, 1 for equal pictures.

  Wang et al. (2004): a Gaussian window of deviation 1.5, the mean of the three
  channels over all windows that lie inside.

  Raises ValueError for pictures below 11 pixels a side.
  """
  if min(made.shape[1:3]) < 2 * _RADIUS + 1:
    raise ValueError('SSIM needs pictures of 11 pixels or more a side')
  # Centred: in float32 E[x^2] - E[x]^2 would lose digits in bright parts.
  x, y = _unit(made) - 0.5, _unit(truth) - 0.5
  mean_x, mean_y = _window(x), _window(y)
  var_x = _window(x * x) - mean_x**2
  var_y = _window(y * y) - mean_y**2
  covariance = _window(x * y) - mean_x * mean_y
  c1, c2 = 0.01**2, 0.03**2
  mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
  index = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
  index /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
  return index.mean((1, 2, 3))


def _window(x):
  """Returns x [B, H, W, 3] blurred, the pixels whose window lies inside."""
  offsets = np.arange(-_RADIUS, _RADIUS + 1)
  weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
  weights = (weights / weights.sum()).astype(np.float32)
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height, width * channels)  # Long rows: vectors fill up.
  for axis, step in ((1, 1), (2, channels)):
    length = x.shape[axis] - 2 * _RADIUS * step
    x = sum(
      weight * jax.lax.slice_in_dim(x, i * step, i * step + length, axis=axis)
      for i, weight in enumerate(weights)
    )
    # One pass after the other: fused, each pixel would take 121 products.
    x = jax.lax.optimization_barrier(x)
  return x.reshape(batch, x.shape[1], -1, channels)


@jax.jit
def ciede2000(made, truth):
  """Returns the mean CIEDE2000 colour difference of the pixels.

  1 is about what an eye can tell. Formula: Sharma, Wu and Dalal (2005).
  """
  (l1, a1, b1), (l2, a2, b2) = (
    jnp.moveaxis(color.to_lab(_unit(x)), -1, 0) for x in (made, truth)
  )
  mean_c = (jnp.hypot(a1, b1) + jnp.hypot(a2, b2)) / 2
  scale = 1.5 - 0.5 * _saturation(mean_c)  # 1 + G: grays count more.
  a1, a2 = a1 * scale, a2 * scale
  c1, c2 = jnp.hypot(a1, b1), jnp.hypot(a2, b2)
  h1, h2 = (
    jnp.where(c > 0, jnp.arctan2(b, a) % (2 * jnp.pi), 0)
    for a, b, c in ((a1, b1, c1), (a2, b2, c2))
  )
  both = c1 * c2 > 0
  turn = jnp.where(both, h2 - h1, 0)
  turn -= 2 * jnp.pi * jnp.round(turn / (2 * jnp.pi))
  hue = 2 * jnp.sqrt(c1 * c2) * jnp.sin(turn / 2)
  far = jnp.abs(h1 - h2) > jnp.pi
  mean_h = (h1 + h2) / 2 + jnp.where(both & far, jnp.pi, 0)
  mean_h = jnp.where(both, mean_h, h1 + h2)
  mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
  t = (
    1
    - 0.17 * jnp.cos(mean_h - np.radians(30))
    + 0.24 * jnp.cos(2 * mean_h)
    + 0.32 * jnp.cos(3 * mean_h + np.radians(6))
    - 0.20 * jnp.cos(4 * mean_h - np.radians(63))
  )
  bright = jnp.square(mean_l - 50)
  lightness = (l2 - l1) / (1 + 0.015 * bright / jnp.sqrt(20 + bright))
  chroma = (c2 - c1) / (1 + 0.045 * mean_c)
  hue /= 1 + 0.015 * mean_c * t
  degrees = jnp.degrees(mean_h) % 360
  # Blue: chroma and hue turn into each other.
  turn = 2 * np.radians(30) * jnp.exp(-jnp.square((degrees - 275) / 25))
  mixed = -jnp.sin(turn) * 2 * _saturation(mean_c) * chroma * hue
  square = lightness**2 + chroma**2 + hue**2 + mixed
  return jnp.sqrt(jnp.maximum(square, 0)).mean((1, 2))


def _saturation(chroma):
  """Returns sqrt(C^7 / (C^7 + 25^7)), without the seventh power overflowing."""
  power = (chroma / 25) ** 7
  return jnp.sqrt(power / (power + 1))


@jax.jit
def colorfulness(pictures):
  """Returns the colorfulness M3 of Hasler and Suesstrunk (2003).

  0 for gray, 15 slightly, 33 moderately, 59 quite, 109 extremely colorful.
  """
  r, g, b = jnp.moveaxis(pictures.astype(jnp.float32), -1, 0)
  opponents = jnp.stack([r - g, (r + g) / 2 - b])  # [2, B, H, W]
  mean = opponents.mean((2, 3))
  deviation = jnp.square(opponents - mean[..., None, None]).mean((2, 3))
  return jnp.sqrt(deviation.sum(0)) + 0.3 * jnp.hypot(mean[0], mean[1])


def _unit(pictures):
  return pictures.astype(jnp.float32) / 255
