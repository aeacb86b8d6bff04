"""Edges of a picture, as OpenCV's: Canny, 1986. Axes: H height, W width."""

import jax
import jax.numpy as jnp

# tan 22.5 degrees in 1 / 2^15, as OpenCV rounds it.
_TANGENT, _BITS = 13573, 15


def canny(picture, low=100, high=200):
  """Returns uint8 [H, W], 255 on edges and 0 elsewhere.

  Each pixel equals that of `cv2.Canny(picture, low, high)`. All is whole
  numbers, so a result is the same on every device.

  Args:
    picture: uint8 [H, W] or [H, W, C]; of several channels, the one with the
      strongest gradient counts at each pixel.
    low, high: of the gradient (sum of both absolute Sobel derivatives). Edges
      have `low` everywhere and more than `high` somewhere.
  """
  x = jnp.atleast_3d(picture).astype(jnp.int32)
  x = jnp.pad(x, [(1, 1), (1, 1), (0, 0)], mode='edge')
  down = x[:-2] + 2 * x[1:-1] + x[2:]  # [H, W + 2, C]
  across = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
  dx = down[:, 2:] - down[:, :-2]  # [H, W, C]
  dy = across[2:] - across[:-2]
  strongest = jnp.argmax(abs(dx) + abs(dy), axis=-1, keepdims=True)
  dx, dy = (
    jnp.take_along_axis(d, strongest, axis=-1)[..., 0] for d in (dx, dy)
  )
  size = abs(dx) + abs(dy)  # [H, W]
  weak = _is_peak(size, dx, dy) & (size > low)
  return jnp.where(_grown(weak & (size > high), weak), 255, 0).astype(jnp.uint8)


def _is_peak(size, dx, dy):
  """Whether the gradient is largest along its own direction."""
  padded = jnp.pad(size, 1)

  def beside(row, column):
    height, width = size.shape
    return padded[1 + row :, 1 + column :][:height, :width]

  def largest(row, column):
    # Of two that are equal, the right and lower counts.
    return (size > beside(-row, -column)) & (size >= beside(row, column))

  def larger(row, column):
    return (size > beside(-row, -column)) & (size > beside(row, column))

  flat = abs(dx) * _TANGENT
  y = abs(dy) << _BITS
  diagonal = jnp.where((dx ^ dy) < 0, larger(1, -1), larger(1, 1))
  steep = flat + (abs(dx) << (_BITS + 1))  # tan 67.5 = tan 22.5 + 2
  return jnp.where(
    y < flat,
    largest(0, 1),
    jnp.where(y > steep, largest(1, 0), diagonal),
  )


def _grown(seeds, weak):
  """Those of `weak` that hang together with seeds, over corners too."""

  def grow(state):
    _, edges = state
    wide = edges
    for axis in (0, 1):
      pad = [(1, 1) if axis == i else (0, 0) for i in (0, 1)]
      p = jnp.pad(wide, pad)
      length = wide.shape[axis]
      wide = wide | jax.lax.slice_in_dim(p, 0, length, axis=axis)
      wide = wide | jax.lax.slice_in_dim(p, 2, length + 2, axis=axis)
    return edges, wide & weak

  def changed(state):
    return jnp.any(state[0] != state[1])

  return jax.lax.while_loop(changed, grow, (~seeds, seeds))[1]
