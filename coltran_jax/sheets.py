"""Pictures of pictures: a photo's colorings side by side, photos before and after."""

import numpy as np

from coltran_jax import image, photo

_CELL = 384  # Longest side of a picture in `before_after`, in pixels.


def of_samples(like, colored):
  """Returns a PNG (bytes) of a `photo.Photo` and its colorings side by side."""
  pictures = [_rgb(like.pixels), *(photo.eight_bit(one) for one in colored)]
  labels = ['photo', *(str(i + 1) for i in range(len(colored)))]
  columns = min(len(pictures), 5)
  return _encoded(image.contact_sheet(pictures, columns, labels), 'PNG')


def before_after(pairs, format):
  """Returns a picture (bytes) of (photo, coloring) pairs of paths.

  Four columns: two photos, each beside its coloring. One pair is in memory at a
  time. Raises PhotoError if a file cannot be read.
  """
  pictures = [
    image.shrink(_rgb(photo.read(path).pixels), _CELL)
    for pair in pairs
    for path in pair
  ]
  return _encoded(image.contact_sheet(pictures, columns=4), format)


def _rgb(pixels):
  pixels = photo.eight_bit(pixels)
  return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _encoded(pixels, format):
  return photo.encode(pixels, photo.read(pixels), format, quality=88)
