"""PNG and TIFF of 16 bit, which Pillow cuts to 8, and the EXIF they carry.

Axes: H height, W width, C channels: gray, gray + alpha, RGB, RGB + alpha.
Whatever is wrong with a file is a ValueError, or what its decoder raises.
"""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image
import tifffile

_ORIENTATION = 274
_PROFILE = 34675
# The tags of a TIFF that speak of its own pixels, not of the photo.
_LAYOUT = {
    *range(254, 260), *range(262, 267), 273, 274, *range(277, 282), 284,
    *range(288, 294), 301, *range(317, 348), *range(512, 533), 700, 33723,
    34377, 34675, 37724,
}  # fmt: skip
_CAMERA, _GPS, _INTEROP = 0x8769, 0x8825, 0xA005
_STRIP = 1 << 20  # Bytes of a TIFF strip before compression, about.
_LEVEL = 3  # Of zlib: more takes long and saves a few percent.


def _from_bgr(array):
  """RGB(A) from OpenCV's BGR(A), or gray as it is."""
  if array.ndim == 2:
    return array[..., None]
  order = cv2.COLOR_BGR2RGB if array.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
  return cv2.cvtColor(array, order)


def _imdecode(data):
  """What OpenCV makes of a 16-bit file, without its remarks on stderr."""
  log = cv2.utils.logging
  level = log.setLogLevel(log.LOG_LEVEL_SILENT)
  try:
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  finally:
    log.setLogLevel(level)
  if array is None or array.dtype != np.uint16:
    raise ValueError('cannot be decoded')
  return array


def is_deep_png(data):
  """Whether the bytes of a PNG say 16 bit."""
  return data[24:25] == b'\x10'


def read_png(data):
  """uint16 [H, W, C] of a 16-bit PNG, the clear level of a gray one aside."""
  place = 8
  while data[place + 4 : place + 8] != b'IEND':
    # OpenCV takes as much memory as a chunk claims, here or not.
    (length,) = struct.unpack_from('>I', data, place)
    place += 12 + length
    if place > len(data):
      raise ValueError('is truncated')
  array = _imdecode(data)
  if data[25] == 4:  # Gray and alpha: OpenCV spreads them to four channels.
    return array[..., 2:]
  return _from_bgr(array)


def read_tiff(data, check_size):
  """What a TIFF of 16-bit gray or RGB holds, or None if Pillow reads it all.

  Args:
    data: the file.
    check_size: called with (H, W) before anything is decoded.

  Returns:
    (uint16 [H, W, C] as stored, orientation 1..8, ICC profile or None, number
    of pages), or None.

  Raises:
    ValueError: floats, or a kind of LZW that neither decoder knows.
  """
  try:
    file = tifffile.TiffFile(io.BytesIO(data))
    page, pages = file.pages[0], len(file.pages)
  # What tifffile finds broken Pillow may still read, or refuse in turn.
  except Exception:
    return None
  if page.dtype is not None and page.dtype.kind == 'f':
    raise ValueError(f'stores {page.dtype} numbers, not 8 or 16 bit')
  if page.dtype != np.uint16 or page.bitspersample != 16:
    return None
  if page.photometric not in (0, 1, 2) or page.imagedepth != 1:
    return None
  size = page.imagelength, page.imagewidth, page.samplesperpixel
  if not all(isinstance(number, int) for number in size):
    raise ValueError('is broken')  # Lists of numbers, of any length.
  check_size(*size[:2])
  array = _tiff_pixels(page, data)
  if page.photometric == 0:  # White is zero.
    array = 65535 - array
  if page.extrasamples[:1] == (1,):  # Colours are stored multiplied by alpha.
    colors, alpha = array[..., :-1].astype(np.uint32), array[..., -1:]
    colors = np.minimum(colors * 65535 // np.maximum(alpha, 1), 65535)
    array = np.concatenate([colors.astype(np.uint16), alpha], axis=-1)
  orientation = page.tags.valueof(_ORIENTATION, 1)
  return array, orientation, page.tags.valueof(_PROFILE), pages


def _tiff_pixels(page, data):
  """uint16 [H, W, C] of a page: from tifffile, or from OpenCV for LZW."""
  samples = page.samplesperpixel
  channels = min(samples, 4 if page.photometric == 2 else 2)
  stored = (page.imagelength, page.imagewidth, samples)
  if len(page.dataoffsets) < np.prod(page.chunked):
    raise ValueError('is truncated')  # tifffile would fill up with black.
  if page.compression != tifffile.COMPRESSION.LZW:
    array = page.asarray()
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and samples > 1:
      array = np.moveaxis(array, 0, -1)
    return array.reshape(stored)[..., :channels]
  if page.planarconfig != tifffile.PLANARCONFIG.CONTIG or samples == 2:
    raise ValueError('stores 16 bit in an unusual kind of LZW')
  # Some versions of OpenCV turn a TIFF upright and some do not.
  array = _from_bgr(_imdecode(upright_exif(data)))
  if array.shape != stored:
    raise ValueError('cannot be decoded')
  return array


def write_png(array, exif, profile):
  """PNG bytes of uint8 or uint16 [H, W, 3 or 4], EXIF and ICC profile."""
  order = cv2.COLOR_RGB2BGR if array.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
  done, data = cv2.imencode(
    '.png', cv2.cvtColor(array, order), [cv2.IMWRITE_PNG_COMPRESSION, _LEVEL]
  )
  if not done:
    raise ValueError('cannot be written as PNG')
  chunks = b''
  if profile:
    chunks += _chunk(b'iCCP', b'icc\0\0' + zlib.compress(profile))
  if exif:
    chunks += _chunk(b'eXIf', _without_prefix(exif))
  header = 8 + 25  # The signature and IHDR, which is always the first chunk.
  data = memoryview(data)
  return b''.join([data[:header], chunks, data[header:]])


def _without_prefix(exif):
  """The EXIF block from its TIFF header on; some files name it twice."""
  while exif.startswith(b'Exif\0\0'):
    exif = exif[6:]
  return exif


def _chunk(kind, body):
  check = struct.pack('>I', zlib.crc32(kind + body))
  return struct.pack('>I', len(body)) + kind + body + check


def write_tiff(array, exif, profile):
  """TIFF bytes of uint8 or uint16 [H, W, 3 or 4], EXIF and ICC profile.

  An EXIF block is a TIFF without pixels: the pixels are put into the EXIF.
  EXIF too broken for that is left out.
  """
  height, width, channels = array.shape
  tags = _exif_tags(exif)
  depth = array.dtype.newbyteorder(tags.endian)
  rows = max(1, _STRIP // array[0].nbytes)
  strips = []
  for start in range(0, height, rows):
    strip = array[start : start + rows].copy()
    strip[:, 1:] -= array[start : start + rows, :-1]  # Predictor 2.
    strips.append(zlib.compress(strip.astype(depth).tobytes(), _LEVEL))
  sizes = [len(strip) for strip in strips]
  tags[256], tags[257] = width, height
  tags[258] = (8 * array.itemsize,) * channels
  tags[259], tags[262], tags[284], tags[317] = 8, 2, 1, 2  # Deflate, RGB.
  # Offsets from the end of the tags: Pillow adds where that is.
  tags[273] = tuple(int(start) for start in np.cumsum([0, *sizes[:-1]]))
  tags[277], tags[278], tags[279] = channels, rows, tuple(sizes)
  if channels == 4:
    tags[338] = 2  # Alpha, colours not multiplied by it.
  if profile:
    tags[_PROFILE] = profile
  return b''.join([_without_prefix(tags.tobytes()), *strips])


def _exif_tags(exif):
  """The tags of an EXIF block that a TIFF can take over."""
  tags = Image.Exif()
  try:
    tags.load(exif or b'')
    for tag in _LAYOUT & set(tags):
      del tags[tag]
    tags.tobytes()
  # Pillow raises anything when it packs what a broken file told it.
  except Exception:
    tags = Image.Exif()
  tags.endian = tags.endian or '<'
  return tags


def upright_exif(block):
  """EXIF block or TIFF with orientation 1 and no second directory, as a TIFF.

  The second directory of EXIF is a thumbnail: of the picture before. Changed
  in place, so that makers' private notes keep their offsets.

  Raises:
    KeyError, struct.error: block is no EXIF.
  """
  block = bytearray(_without_prefix(block))
  order = {b'II': '<', b'MM': '>'}[bytes(block[:2])]
  (start,) = struct.unpack_from(order + 'I', block, 4)
  (count,) = struct.unpack_from(order + 'H', block, start)
  end = start + 2 + 12 * count
  for entry in range(start + 2, end, 12):
    if struct.unpack_from(order + 'H', block, entry) == (_ORIENTATION,):
      struct.pack_into(order + 'HIHH', block, entry + 2, 3, 1, 1, 0)
  struct.pack_into(order + 'I', block, end, 0)
  return bytes(block)


def exif_of_tiff(data):
  """EXIF block of a TIFF file without what speaks of its pixels, or None."""
  tags = Image.Exif()
  tags.load(data)
  kept = Image.Exif()
  for tag in set(tags) - _LAYOUT:
    kept[tag] = tags[tag]
    if tag in (_CAMERA, _GPS):
      kept[tag] = dict(tags.get_ifd(tag))
      kept[tag].pop(_INTEROP, None)  # A pointer to what stays behind.
  return kept.tobytes() if len(kept) else None
