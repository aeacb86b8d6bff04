"""Photos as files: read anything, keep what was there, replace safely.

Axes: H height, W width, C channels. What arrays can do is `image`'s business.
"""

import contextlib
import dataclasses
import functools
import io
import logging
import os
import pathlib
import secrets
import stat
import threading
import warnings

import cv2
import numpy as np
from PIL import Image

from coltran_jax import icc, image, png_tiff

MAX_PIXELS = 200_000_000
EXTENSIONS = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.tif', '.tiff'),
  *('.bmp', '.dib', '.heic', '.heif', '.avif'),
)
_PLAUSIBLE_PIXELS = 1 << 24  # In however small a file: blank pictures.
_MAX_BYTES = 2 << 30  # More than that many pixels of 16-bit RGBA.
_PNG = b'\x89PNG\r\n\x1a\n'
_BIG_TIFF = (b'II+\0', b'MM\0+')  # Pillow cannot read their tags apart.
_TIFF = (b'II*\0', b'MM\0*', *_BIG_TIFF)
_HEIF = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'hevm', b'hevs')
_EITHER = (b'mif1', b'msf1')  # HEIF or AVIF: compatible brands tell.
_ORIENTATION = 274
_LONGEST_JPEG_EXIF = 65533
# Names that Pillow or people use -> the name of the format here.
_FORMATS = {
  'JPEG': 'JPEG',
  'JPG': 'JPEG',
  'MPO': 'JPEG',
  'PNG': 'PNG',
  'WEBP': 'WEBP',
  'TIFF': 'TIFF',
  'TIF': 'TIFF',
  'BMP': 'BMP',
  'DIB': 'BMP',
  'HEIF': 'HEIF',
  'HEIC': 'HEIF',
  'AVIF': 'AVIF',
}
_BECOME_PNG = ('HEIF', 'AVIF', 'BMP')
_LOCK = threading.Lock()


class PhotoError(ValueError):
  """A photo cannot be read or written; one line that says why."""


@dataclasses.dataclass(frozen=True)
class Photo:
  """A decoded photo, upright, with what its file should keep.

  Attributes:
    pixels: uint8 or uint16 [H, W, C]; C = 1 (stored gray) or 3 (RGB, sRGB).
    alpha: [H, W] of the same dtype, or None.
    exif: EXIF block, orientation 1 and without thumbnail (it would show the
      old picture), or None.
    icc_profile: profile to embed in RGB output, or None.
    format: 'JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP', 'HEIF' or 'AVIF'.
    kind: 'gray', 'sepia' (toned monochrome) or 'color', judged by the pixels.
    notes: one-line remarks worth logging.
  """

  pixels: np.ndarray
  alpha: np.ndarray | None
  exif: bytes | None
  icc_profile: bytes | None
  format: str
  kind: str
  notes: tuple[str, ...]


def read(source):
  """Photo from a file, bytes, a PIL image or an array.

  Reads JPEG, PNG, WebP, TIFF, BMP, AVIF and, with pillow-heif, HEIC: 8 bit in any
  colour mode, 16 bit gray or RGB with or without alpha. EXIF orientation is
  applied; of several pages the first is read.

  Colour: 8-bit pixels with a profile other than sRGB are converted to sRGB.
  An RGB profile is remembered and `encode` converts back; after a gray or CMYK
  profile the output is tagged sRGB. 16-bit numbers are left alone, and an RGB
  profile is carried along.

  Args:
    source: str or Path; bytes; PIL image; or uint8 or uint16 array [H, W] or
      [H, W, C] of C = 1 gray, 2 gray + alpha, 3 RGB, 4 RGB + alpha.

  Raises:
    PhotoError: whatever is wrong with source, more than MAX_PIXELS included.
  """
  name = str(source) if isinstance(source, (str, os.PathLike)) else 'picture'
  try:
    with _quiet():
      return _read(source)
  # Decoders raise anything when given anything: EOFError, struct.error, ...
  except Exception as error:
    raise PhotoError(f'{name}: {_reason(error)}') from error


def _reason(error):
  """One line of what an exception says."""
  text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
  return ' '.join(text.split())


@contextlib.contextmanager
def _quiet():
  """Silences the decoders and lifts Pillow's pixel limit, below ours.

  Those are settings of the process, hence the lock: one photo at a time.
  """
  log = logging.getLogger('tifffile')
  with _LOCK, warnings.catch_warnings():
    warnings.simplefilter('ignore')
    muted, log.disabled = log.disabled, True
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
    try:
      yield
    finally:
      log.disabled = muted
      Image.MAX_IMAGE_PIXELS = limit


def _read(source):
  if isinstance(source, np.ndarray):
    return _photo(source, 'PNG')
  if isinstance(source, Image.Image):
    return _from_pillow(source)
  if isinstance(source, (str, os.PathLike)):
    source = _file_bytes(source)
  if not isinstance(source, (bytes, bytearray, memoryview)):
    raise PhotoError(f'a {type(source).__name__} is not a photo')
  data = bytes(source)
  if not data:
    raise PhotoError('is empty')
  if data[:4] in _TIFF:
    check_size = functools.partial(_check_size, stored=len(data))
    deep = png_tiff.read_tiff(data, check_size)
    if deep:
      return _from_deep_tiff(data, *deep)
  try:
    picture = Image.open(io.BytesIO(data), formats=_openers(data))
  except Image.UnidentifiedImageError:
    raise PhotoError(
      'is broken, or not a JPEG, PNG, WebP, TIFF, BMP, AVIF or HEIC picture'
    ) from None
  return _from_pillow(picture, data)


def _file_bytes(path):
  status = os.stat(path)
  if stat.S_ISDIR(status.st_mode):
    raise PhotoError('is a directory')
  # A pipe that nobody writes to would hang.
  if not stat.S_ISREG(status.st_mode):
    raise PhotoError('is not a file')
  if status.st_size > _MAX_BYTES:
    raise PhotoError(f'is too large for a photo: {status.st_size} bytes')
  return pathlib.Path(path).read_bytes()


def _openers(data):
  """Names of the Pillow plugins that may open data."""
  brand, others = data[8:12], data[16 : int.from_bytes(data[:4])][:64]
  heif = brand in _HEIF or (brand in _EITHER and b'avif' not in others)
  if data[4:8] == b'ftyp' and heif:  # Films begin with ftyp, too.
    _need_heif()
    return ['HEIF']
  return ['JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP', 'AVIF']


def _need_heif():
  if not _has_heif():
    raise PhotoError("HEIC needs a plugin: pip install 'coltran-jax[heic]'")


@functools.cache
def _has_heif():
  try:
    import pillow_heif
  except ImportError:
    return False
  pillow_heif.register_heif_opener()
  return True


def _check_size(height, width, stored=None):
  """Raises PhotoError if a header claims too much, before memory is taken.

  stored is the length of the file in bytes. No photo comes near the ratio
  allowed to it; what claims more is damaged or means harm.
  """
  pixels = height * width
  if pixels < 1:
    raise PhotoError(f'has no pixels ({width}x{height})')
  if pixels > MAX_PIXELS:
    raise PhotoError(
      f'{width}x{height} pixels are more than {MAX_PIXELS // 10**6} million'
    )
  if stored and pixels > max(_PLAUSIBLE_PIXELS, 20_000 * stored):
    raise PhotoError(f'claims {width}x{height} pixels in {stored} bytes')


def _photo(array, format, exif=None, profile=None, notes=(), orientation=1):
  """Photo of an array [H, W] or [H, W, 1..4], checked and turned upright."""
  if array.dtype not in (np.uint8, np.uint16):
    raise PhotoError(f'stores {array.dtype} numbers, not 8 or 16 bit')
  if array.ndim == 2:
    array = array[..., None]
  if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
    raise PhotoError(f'an array of shape {array.shape} is not a picture')
  _check_size(*array.shape[:2])
  array = _upright(array, orientation)
  channels = 1 if array.shape[2] < 3 else 3
  pixels = np.ascontiguousarray(array[..., :channels])
  alpha = None
  if array.shape[2] > channels:
    alpha = np.ascontiguousarray(array[..., channels])
  return Photo(
    pixels, alpha, exif, profile, format, _kind(pixels), tuple(notes)
  )


def _upright(array, orientation):
  """Array [H, W, C] turned as EXIF orientation 1..8 asks."""
  if orientation in (5, 6, 7, 8):
    array = array.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    array = array[::-1]
  if orientation in (2, 3, 6, 7):
    array = array[:, ::-1]
  return array


def _kind(pixels):
  """'gray', 'sepia' or 'color' of uint8 or uint16 [H, W, C].

  Judged on 64 pixels a side in Lab: gray has next to no chroma; in a toned
  monochrome a* and b* follow from L* by a smooth curve, up to what JPEG does
  to the chroma of edges; anything else has colours. Tuned on 495 photographs
  and on toned copies of them.
  """
  if pixels.shape[2] == 1:
    return 'gray'
  step = max(1, max(pixels.shape[:2]) // 256)
  small = pixels[::step, ::step] / np.float32(np.iinfo(pixels.dtype).max)
  scale = min(1, 64 / max(small.shape[:2]))
  height, width = (max(1, round(side * scale)) for side in small.shape[:2])
  small = cv2.resize(small, (width, height), interpolation=cv2.INTER_AREA)
  lab = cv2.cvtColor(small, cv2.COLOR_RGB2Lab).reshape(-1, 3)
  light, ab = lab[:, 0] / 100, lab[:, 1:]
  chroma = np.hypot(ab[:, 0], ab[:, 1])
  strength = np.sqrt(np.mean(chroma**2))
  if strength < 1 and np.percentile(chroma, 99) < 3.5:
    return 'gray'
  # No curve can be told from few pixels or from one level of light.
  if strength > 30 or len(lab) < 64 or light.std() < 0.02:
    return 'color'
  powers = light[:, None] ** np.arange(5)
  rest = ab - powers @ np.linalg.lstsq(powers, ab, rcond=None)[0]
  toned = np.sqrt(np.mean(np.sum(rest**2, axis=1))) < 1.2 + 0.15 * strength
  return 'sepia' if toned else 'color'


def _from_deep_tiff(data, array, orientation, profile, pages):
  notes = [f'first of {pages} pages'] if pages > 1 else []
  exif = _exif(None, data, notes)
  profile = icc.rgb_only(profile)
  return _photo(array, 'TIFF', exif, profile, notes, orientation)


def _from_pillow(picture, data=b''):
  """Photo of a PIL image; data is its file, for what Pillow would lose."""
  _check_size(picture.height, picture.width, len(data))
  format = _FORMATS.get(picture.format, 'PNG')
  pages, notes = _pages(picture), []
  if pages > 1:
    notes.append(f'first of {pages} pages')
  picture.load()
  # After load(): of a TIFF Pillow turns the picture then, and drops the tag.
  orientation = _orientation(picture)
  profile = picture.info.get('icc_profile')
  exif = _exif(picture.info.get('exif'), data, notes)
  if data.startswith(_PNG) and png_tiff.is_deep_png(data):
    array = png_tiff.read_png(data)  # Pillow has found the file whole.
  elif picture.mode.startswith('I;16'):
    array = np.asarray(picture, np.uint16)[..., None]
  else:
    picture, profile, remarks = icc.to_srgb(_plain(picture, notes), profile)
    notes += remarks
    array = np.asarray(picture)
  if array.dtype == np.uint16:
    profile = icc.rgb_only(profile)
    clear = picture.info.get('transparency')
    if clear is not None and array.shape[2] in (1, 3):
      alpha = (array != clear).any(axis=-1, keepdims=True)
      array = np.concatenate([array, alpha * np.uint16(65535)], axis=-1)
  return _photo(array, format, exif, profile, notes, orientation)


def _pages(picture):
  """Number of pictures in the file of a PIL image, 1 if they are broken."""
  try:
    return getattr(picture, 'n_frames', 1)
  # Whatever a broken second page makes Pillow raise, the first may be sound.
  except Exception:
    picture.seek(0)
    return 1


def _orientation(picture):
  try:
    return picture.getexif().get(_ORIENTATION, 1)
  # Broken EXIF, of any kind; `_exif` notes it.
  except Exception:
    return 1


def _plain(picture, notes):
  """The image as L, LA, RGB, RGBA or CMYK."""
  mode = picture.mode
  if mode in ('I', 'F', 'LAB'):
    raise PhotoError(f'stores {mode} pixels, not 8 or 16 bit gray or RGB')
  if mode == 'CMYK':
    notes.append('converted from CMYK')
    return picture
  target = 'L' if mode in ('1', 'L', 'LA', 'La') else 'RGB'
  if 'transparency' in picture.info or mode in (
    'LA',
    'La',
    'PA',
    'RGBA',
    'RGBa',
  ):
    target += 'A'
  return picture if mode == target else picture.convert(target)


def _exif(block, data, notes):
  """What to keep of a file's EXIF block; of a TIFF, of the file itself."""
  if data[:4] in _BIG_TIFF:
    notes.append('EXIF of a BigTIFF is left behind')
    return None
  try:
    if data[:4] in _TIFF:
      return png_tiff.exif_of_tiff(data)
    return b'Exif\0\0' + png_tiff.upright_exif(block) if block else None
  # Pillow raises anything when it packs what a broken file told it.
  except Exception:
    notes.append('broken EXIF dropped')
    return None


def becomes_png(format):
  """True if what is made of a photo of this format is PNG, unless asked for."""
  return _FORMATS[format.upper()] in _BECOME_PNG


def _target(like, format):
  """The format to write: as asked, else the photo's own or PNG."""
  if format is None:
    return 'PNG' if becomes_png(like.format) else like.format
  if format.upper() not in _FORMATS:
    raise PhotoError(f'cannot write {format}')
  return _FORMATS[format.upper()]


def dropped(like, format=None):
  """What a file of this format cannot hold of the photo: one-line strings."""
  format = _target(like, format)
  notes = []
  if like.alpha is not None and format in ('JPEG', 'BMP'):
    notes.append(f'{format} holds no transparency')
  if like.pixels.dtype == np.uint16 and format not in ('PNG', 'TIFF'):
    notes.append(f'{format} holds 8 bit only')
  if like.exif and not _exif_for(like, format):
    notes.append(f'{format} holds no such EXIF')
  return tuple(notes)


def _exif_for(like, format):
  too_long = format == 'JPEG' and len(like.exif or b'') > _LONGEST_JPEG_EXIF
  return None if format == 'BMP' or too_long else like.exif


def eight_bit(array):
  """uint8 of a uint8 or uint16 array, 65535 becoming 255, rounded."""
  if array.dtype == np.uint8:
    return array
  # A table needs no copy of a large photo in wider numbers.
  return ((np.arange(65536) + 128) // 257).astype(np.uint8)[array]


def _sixteen_bit(array):
  return array * np.uint16(257) if array.dtype == np.uint8 else array


def at_size(read, size):
  """Returns the Photo that a result of that size takes alpha and such from.

  size: 'original', or the side of the central square in pixels.
  """
  if size == 'original':
    return read
  alpha = read.alpha
  if alpha is not None:
    alpha = image.square(eight_bit(alpha), size)
  # 16-bit numbers never left their profile, so nothing leads back to it.
  deep = read.pixels.dtype == np.uint16
  return dataclasses.replace(
    read,
    pixels=image.square(eight_bit(read.pixels), size),
    alpha=alpha,
    icc_profile=None if deep else read.icc_profile,
  )


def encode(pixels, like, format=None, quality=95):
  """The bytes of a file of pixels, with what `like` brought along.

  Alpha, EXIF and ICC profile go where the format holds them, 16 bit into PNG
  and TIFF; `dropped` says what does not fit. 8-bit pixels are converted to the
  profile; 16-bit ones are only if the photo was read as 16 bit (see `read`).

  Args:
    pixels: uint8 or uint16 [H, W, 3]: sRGB, or 16 bit as `read` gave them.
    like: the Photo they belong to, of the same height and width.
    format: 'JPEG' (4:4:4), 'PNG', 'WEBP', 'TIFF', 'BMP', 'HEIF' or 'AVIF'; by
      default the photo's own, or PNG for the last three.
    quality: 1..100 for JPEG, WebP, HEIF and AVIF.

  Raises:
    PhotoError: unknown format, too large for it, or pixels do not fit `like`.
  """
  format = _target(like, format)
  if format == 'HEIF':
    _need_heif()
  if pixels.dtype not in (np.uint8, np.uint16) or pixels.shape != (
    *like.pixels.shape[:2],
    3,
  ):
    raise PhotoError(
      f'pixels {pixels.dtype} {pixels.shape} do not fit a photo of '
      f'{like.pixels.shape}'
    )
  deep = pixels.dtype == np.uint16 and format in ('PNG', 'TIFF')
  profile = like.icc_profile if format != 'BMP' else None
  if profile and like.pixels.dtype == np.uint8:
    if pixels.dtype == np.uint8:
      pixels = icc.from_srgb(pixels, profile)
    else:
      profile = icc.srgb()
  depth = _sixteen_bit if deep else eight_bit
  array = np.ascontiguousarray(depth(pixels))
  if like.alpha is not None and format not in ('JPEG', 'BMP'):
    alpha = depth(like.alpha)[..., None]
    array = np.concatenate([array, alpha], axis=-1)
  exif = _exif_for(like, format)
  try:
    if format == 'PNG':
      return png_tiff.write_png(array, exif, profile)
    if format == 'TIFF':
      with _quiet():
        return png_tiff.write_tiff(array, exif, profile)
    return _by_pillow(array, exif, profile, format, quality)
  # A side too long for the format, mostly; every encoder has its own error.
  except Exception as error:
    raise PhotoError(f'cannot be written as {format}: {_reason(error)}') from (
      error
    )


def _by_pillow(array, exif, profile, format, quality):
  options = {'quality': quality}
  if format == 'JPEG':
    options['subsampling'] = '4:4:4'
  if exif:
    options['exif'] = exif
  if profile:
    options['icc_profile'] = profile
  file = io.BytesIO()
  Image.fromarray(array).save(file, format, **options)
  return file.getvalue()


def write(path, data):
  """None; writes bytes to a file, whole or not at all.

  The data goes to a new file beside it, which then takes its place. Missing
  folders are not made.

  Raises:
    PhotoError: path and reason: no such folder, not allowed, disk full, ...
  """
  path = pathlib.Path(path)
  beside = path.parent / f'.{secrets.token_hex(8)}.tmp'
  try:
    with open(beside, 'xb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(beside, path)
  except (OSError, ValueError) as error:
    raise PhotoError(f'{path}: {_reason(error)}') from error
  finally:
    # Still there only if something went wrong, Ctrl-C included.
    with contextlib.suppress(OSError, ValueError):
      beside.unlink(missing_ok=True)
