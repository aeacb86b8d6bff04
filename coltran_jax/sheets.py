"""Pictures of pictures: a photo's colorings side by side, photos before and after."""

import cv2
import numpy as np

from coltran_jax import image, photo

MOST_BITS = 6  # White in `uncertainty`; even odds for all 512 codes are 9.
_CELL = 384  # Longest side of a picture in `before_after`, in pixels.


def ranked(colorings):
  """Returns [(number from 1 on, bits/dim)] of colorings, most likely first.

  In their own order, with None, those of a model that knows no likelihood.
  """
  bits = [coloring.bits_per_dim for coloring in colorings]
  order = sorted(range(len(bits)), key=lambda i: bits[i] or 0)
  return [(i + 1, bits[i]) for i in order]


def of_samples(like, colorings):
  """Returns a PNG (bytes) of a `photo.Photo` beside its colorings.

  colorings: `pipeline.Coloring`s; the most likely comes first.
  """
  pictures, labels = [_rgb(like.pixels)], ['photo']
  for number, bits in ranked(colorings):
    pictures.append(photo.eight_bit(colorings[number - 1].pixels))
    labels.append(
      str(number) if bits is None else f'{number}: {bits:.3f} bits/dim'
    )
  columns = min(len(pictures), 5)
  return _encoded(image.contact_sheet(pictures, columns, labels), 'PNG')


def uncertainty(entropy, size):
  """Returns a picture uint8 [H, W, 3] of an entropy float [h, w] in bits.

  size: (H, W). From black (0 bits) over red and yellow to white (`MOST_BITS`).
  """
  share = np.clip(entropy / MOST_BITS, 0, 1).astype(np.float32)
  large = cv2.resize(share, size[::-1], interpolation=cv2.INTER_LINEAR)
  levels = np.rint(large * 255).astype(np.uint8)
  return cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]


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
