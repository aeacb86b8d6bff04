"""Encoded pictures to arrays, and the error of all data modules."""

import io

import cv2
import numpy as np
from PIL import Image

# RGB whatever is stored; EXIF is left alone: prepared pictures are upright.
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


class DataError(ValueError):
  """A data set or one of its pictures is unusable; one line that says why."""


def decode(data):
  """Picture uint8 [H, W, 3] of the bytes of a JPEG or PNG file.

  Gray becomes three equal channels.

  Raises:
    DataError: the bytes are no picture, damaged or cut short.
  """
  try:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
    if picture is None:  # OpenCV gives no reason, and up earlier than Pillow.
      with Image.open(io.BytesIO(data), formats=['JPEG', 'PNG']) as image:
        picture = np.asarray(image.convert('RGB'))
    return picture
  # Decoders raise anything when given anything.
  except Exception as error:
    raise DataError(one_line(error)) from error


def one_line(error):
  """One line, not too long, of what an exception says."""
  text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
  return ' '.join(text.split())[:300]
