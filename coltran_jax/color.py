"""Colour on device: gray, 3-bit symbols, the 512 coarse colours, CIE Lab.

Everything here works under `jit`; gray, symbols and codes of numpy arrays are
numpy arrays, made without compiling. Axes: `...` any, C = 3 channels.
"""

import jax.numpy as jnp
import numpy as np

NUM_CODES = 512  # 8 symbols a channel, three channels.

_LUMA = (0.2989, 0.5870, 0.1140)

# sRGB primaries with the D65 white point (IEC 61966-2-1), and that white.
_RGB_TO_XYZ = np.array(
  [
    [0.412453, 0.357580, 0.180423],
    [0.212671, 0.715160, 0.072169],
    [0.019334, 0.119193, 0.950227],
  ]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
# Between linear RGB and XYZ in units of the white, as matrices from the right.
_TO_XYZ = (_RGB_TO_XYZ / _WHITE[:, None]).T.astype(np.float32)
_TO_RGB = np.linalg.inv(_RGB_TO_XYZ / _WHITE[:, None]).T.astype(np.float32)


def to_gray(rgb):
  """Returns int32 [...] gray levels 0..255 of int [..., 3] RGB 0..255.

  This is what the published models were trained on: the reference gives
  *int32* pictures to TensorFlow's `rgb_to_grayscale`, which scales them in
  float32 and truncates (255, 255, 255 -> 254). A uint8 picture would have been
  rounded, which differs in a quarter of all colours.
  """
  unit = rgb.astype(np.float32) * np.float32(1.0 / (2**31 - 1))
  r, g, b = (unit[..., i] * np.float32(_LUMA[i]) for i in range(3))
  luma = r + g + b
  return (luma * np.float32(2**31)).astype(np.int32)


def to_symbols(rgb):
  """Returns int32 [..., 3] 3-bit symbols 0..7 of int [..., 3] RGB 0..255."""
  return rgb.astype(np.int32) >> 5


def from_symbols(symbols):
  """Returns uint8 [...] levels 0, 32, .. 224 of int [...] symbols 0..7."""
  return (symbols << 5).astype(np.uint8)


def to_codes(rgb):
  """Returns int32 [...] codes 0..511 of int [..., 3] RGB 0..255 (section 3)."""
  symbols = to_symbols(rgb)
  return symbols[..., 0] * 64 + symbols[..., 1] * 8 + symbols[..., 2]


def codes_to_symbols(codes):
  """Returns int32 [..., 3] symbols 0..7 of int [...] codes 0..511."""
  codes = codes.astype(np.int32)
  stack = codes.__array_namespace__().stack
  return stack([codes >> 6, (codes >> 3) & 7, codes & 7], axis=-1)


def from_codes(codes):
  """Returns uint8 [..., 3] RGB of int [...] codes: channels 0, 32, .. 224."""
  return from_symbols(codes_to_symbols(codes))


def code_chroma(gray):
  """Returns what codes mean at gray levels: (ab, possible), [..., 512].

  gray: int [...], 0..255. ab: float32 [..., 512, 2], a* and b* of the colour of that
  gray that is in the middle of a code's cube, or nearest to it. possible: bool,
  whether the cube holds such a colour, to two levels.
  """
  low = from_codes(jnp.arange(NUM_CODES)).astype(jnp.int32)
  middle = low + 16

  def at(level):
    shift = level - to_gray(middle)[:, None]
    meant = jnp.clip(middle + shift, low, low + 31)
    return to_lab(meant / 255)[:, 1:], jnp.abs(to_gray(meant) - level) <= 2

  return jnp.vectorize(at, signature='()->(v,c),(v)')(jnp.asarray(gray))


def to_lab(rgb):
  """Returns float32 [..., 3] CIE Lab (L in 0..100) of [..., 3] sRGB in 0..1."""
  rgb = jnp.asarray(rgb, jnp.float32)
  linear = jnp.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
  xyz = jnp.matmul(linear, _TO_XYZ, precision='highest')
  f = jnp.where(xyz > 0.008856, jnp.cbrt(xyz), 7.787 * xyz + 4.0 / 29.0)
  x, y, z = f[..., 0], f[..., 1], f[..., 2]
  return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def from_lab(lab):
  """Returns float32 [..., 3] sRGB, clipped to 0..1, of [..., 3] CIE Lab."""
  lab = jnp.asarray(lab, jnp.float32)
  y = (lab[..., 0] + 16) / 116
  z = jnp.maximum(y - lab[..., 2] / 200, 0)
  f = jnp.stack([lab[..., 1] / 500 + y, y, z], axis=-1)
  xyz = jnp.where(f > 0.2068966, f**3, (f - 4.0 / 29.0) / 7.787)
  linear = jnp.matmul(xyz, _TO_RGB, precision='highest')
  linear = jnp.maximum(linear, 0)
  bright = linear > 0.0031308
  # Where black, the power's slope is infinite, and 0 times that is no number.
  power = jnp.where(bright, linear, 1) ** (1 / 2.4)
  rgb = jnp.where(bright, 1.055 * power - 0.055, 12.92 * linear)
  return jnp.clip(rgb, 0, 1)
