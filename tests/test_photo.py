"""Reading, encoding and writing photo files."""

from concurrent import futures
import dataclasses
import errno
import io
import os
import random
import struct
import time
import warnings
import zlib

import cv2
import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
from PIL import ExifTags, Image, ImageFile
import pytest
import skimage.data
import tifffile

from coltran_jax import icc, photo

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (23, 37, 4), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (23, 37, 4), dtype=np.uint16)
SMOOTH = cv2.GaussianBlur(NOISE[..., :3], (0, 0), 2)
CORNERS = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40  # No symmetry.
# What a viewer shows of CORNERS stored under each EXIF orientation.
UPRIGHT = {
  1: CORNERS,
  2: np.fliplr(CORNERS),
  3: np.rot90(CORNERS, 2),
  4: np.flipud(CORNERS),
  5: CORNERS.T,
  6: np.rot90(CORNERS, -1),
  7: np.rot90(CORNERS, 2).T,
  8: np.rot90(CORNERS, 1),
}


def saved(picture, format, **options):
  """Bytes of a file that Pillow writes of an array or image."""
  if isinstance(picture, np.ndarray):
    picture = Image.fromarray(picture)
  file = io.BytesIO()
  picture.save(file, format, **options)
  return file.getvalue()


def tiff(array, **options):
  file = io.BytesIO()
  tifffile.imwrite(file, array, **options)
  return file.getvalue()


def opened(data):
  image = Image.open(io.BytesIO(data))
  image.load()
  return image


def exif_block(orientation=1):
  """EXIF with a camera's tags, a position and a maker's private bytes."""
  exif = Image.Exif()
  exif[ExifTags.Base.Make] = 'Maker'
  exif[ExifTags.Base.Orientation] = orientation
  exif[ExifTags.IFD.Exif] = {
    ExifTags.Base.ExposureTime: 0.005,
    ExifTags.Base.MakerNote: b'private \0\1\2',
  }
  exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: 'N'}
  return exif.tobytes()


def assert_exif_kept(data):
  exif = opened(data).getexif()
  assert exif[ExifTags.Base.Make] == 'Maker'
  assert exif.get(ExifTags.Base.Orientation, 1) == 1
  camera = exif.get_ifd(ExifTags.IFD.Exif)
  assert float(camera[ExifTags.Base.ExposureTime]) == pytest.approx(0.005)
  assert camera[ExifTags.Base.MakerNote] == b'private \0\1\2'
  place = exif.get_ifd(ExifTags.IFD.GPSInfo)
  assert place[ExifTags.GPS.GPSLatitudeRef] == 'N'


def png_chunks(*chunks):
  """A PNG of (kind, body) chunks, with the right check sums."""
  data = b'\x89PNG\r\n\x1a\n'
  for kind, body in (*chunks, (b'IEND', b'')):
    check = struct.pack('>I', zlib.crc32(kind + body))
    data += struct.pack('>I', len(body)) + kind + body + check
  return data


def png16(array, color_type, *extra):
  """A 16-bit PNG of uint16 [H, W, C] and extra chunks before the pixels."""
  height, width = array.shape[:2]
  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in array)
  header = struct.pack('>IIBBBBB', width, height, 16, color_type, 0, 0, 0)
  pixels = zlib.compress(rows)
  return png_chunks((b'IHDR', header), *extra, (b'IDAT', pixels))


def xyz(*values):
  return b'XYZ \0\0\0\0' + b''.join(
    struct.pack('>i', round(v * 65536)) for v in values
  )


def gamma(value):
  return b'curv\0\0\0\0' + struct.pack('>IH', 1, round(value * 256)) + b'\0\0'


def profile(space, device, connection, **tags):
  """An ICC profile, version 2, of tags given as bytes."""
  tags = {'wtpt': xyz(0.9642, 1, 0.8249), **tags}
  offset = 128 + 4 + 12 * len(tags)
  table, body = struct.pack('>I', len(tags)), b''
  for name, data in tags.items():
    table += name.encode() + struct.pack('>II', offset + len(body), len(data))
    body += data
  header = struct.pack('>I4sI', offset + len(body), b'test', 0x02400000)
  header += (device + space + connection).encode() + bytes(12) + b'acsp'
  header += bytes(28) + xyz(0.9642, 1, 0.8249)[8:]
  return header.ljust(128, b'\0') + table + body


LINEAR_GRAY = profile('GRAY', 'mntr', 'XYZ ', kTRC=gamma(1))
WIDE_RGB = profile(
  'RGB ',
  'mntr',
  'XYZ ',
  rXYZ=xyz(0.6097, 0.3111, 0.0195),
  gXYZ=xyz(0.2053, 0.6257, 0.0609),
  bXYZ=xyz(0.1492, 0.0632, 0.7446),
  rTRC=gamma(2.2),
  gTRC=gamma(2.2),
  bTRC=gamma(2.2),
)


def press_profile():
  """A CMYK profile: light falls with the ink, and cyan ink looks red."""
  ramp = bytes(range(256))
  nodes = bytearray()
  for node in range(16):
    cyan, magenta, yellow, key = (node >> bit & 1 for bit in (3, 2, 1, 0))
    light = 0 if key else 255 - 80 * (cyan + magenta + yellow)
    red = 60 if cyan and not (magenta or yellow or key) else 0
    nodes += bytes([light, 128 + red, 128 + red])
  matrix = struct.pack('>9i', *[65536 * (i % 4 == 0) for i in range(9)])
  table = b'mft1\0\0\0\0' + bytes([4, 3, 2, 0]) + matrix
  table += ramp * 4 + bytes(nodes) + ramp * 3
  return profile('CMYK', 'prtr', 'Lab ', A2B0=table)


def test_every_kind_of_source_gives_the_same_photo(tmp_path):
  path = tmp_path / 'a.png'
  data = saved(NOISE[..., :3], 'PNG')
  path.write_bytes(data)
  array = NOISE[..., :3]
  for source in (path, str(path), data, bytearray(data), opened(data), array):
    read = photo.read(source)
    np.testing.assert_array_equal(read.pixels, array)
    assert (read.format, read.alpha, read.notes) == ('PNG', None, ())


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('channels', [0, 1, 2, 3, 4])
def test_arrays_are_gray_or_rgb_with_or_without_alpha(dtype, channels):
  array = NOISE.astype(dtype)[..., : max(channels, 1)]
  read = photo.read(array if channels else array[..., 0])
  colors = 3 if channels > 2 else 1
  np.testing.assert_array_equal(read.pixels, array[..., :colors])
  assert read.pixels.dtype == dtype
  if channels in (2, 4):
    np.testing.assert_array_equal(read.alpha, array[..., -1])
  else:
    assert read.alpha is None


@pytest.mark.parametrize(
  ('source', 'reason'),
  [
    (np.zeros((3, 3), np.float32), 'float32'),
    (np.zeros((3, 3, 5), np.uint8), 'shape'),
    (np.zeros((0, 3), np.uint8), 'no pixels'),
    (np.zeros(3, np.uint8), 'shape'),
    (b'', 'empty'),
    (b'not a picture', 'not a JPEG'),
    (saved(NOISE, 'PNG')[:-300], 'truncated'),
    (saved(SMOOTH, 'JPEG')[:-40], 'truncated'),
    (saved(SMOOTH, 'GIF'), 'not a JPEG'),
    (Image.new('F', (3, 3)), 'F pixels'),
    (tiff(np.zeros((9, 9, 3), np.float32), photometric='rgb'), 'float32'),
    (tiff(np.zeros((9, 9), np.float32)), 'float32'),
    (tiff(np.zeros((9, 9), np.int32)), 'I pixels'),
    (7, 'int is not a photo'),
    (None, 'NoneType is not a photo'),
  ],
)
def test_a_bad_source_is_a_photo_error_of_one_line(source, reason):
  with pytest.raises(photo.PhotoError, match=reason) as caught:
    photo.read(source)
  assert '\n' not in str(caught.value)


def test_paths_that_are_no_files_are_photo_errors(tmp_path):
  os.mkfifo(tmp_path / 'pipe')  # Opening it would wait for a writer.
  with open(tmp_path / 'sparse', 'wb') as file:
    file.truncate(3 << 30)
  for name, reason in (
    ('', 'directory'),
    ('nothing.jpg', 'No such file'),
    ('pipe', 'not a file'),
    ('sparse', 'too large'),
    ('a\0b', 'null'),
  ):
    with pytest.raises(photo.PhotoError, match=reason):
      photo.read(str(tmp_path / name))
  with pytest.raises(photo.PhotoError, match=r'nothing\.jpg: '):
    photo.read(tmp_path / 'nothing.jpg')


@pytest.mark.parametrize('side', [30000, 14143])
def test_a_header_that_claims_too_many_pixels_is_refused_at_once(side):
  header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
  bomb = png_chunks((b'IHDR', header), (b'IDAT', zlib.compress(bytes(99))))
  with pytest.raises(photo.PhotoError, match=f'{side}x{side}|exceeds limit'):
    photo.read(bomb)
  deep = tiff(np.zeros((2, 2, 3), np.uint16), photometric='rgb')
  deep = deep.replace(
    struct.pack('<HHII', 256, 4, 1, 2),
    struct.pack('<HHII', 256, 4, 1, 200_000_000),
  )
  with pytest.raises(photo.PhotoError, match='200000000x2'):
    photo.read(deep)


def test_a_small_file_that_claims_a_huge_picture_is_refused_at_once():
  header = struct.pack('>IIBBBBB', 14000, 14000, 8, 2, 0, 0, 0)
  data = png_chunks((b'IHDR', header), (b'IDAT', zlib.compress(bytes(99))))
  with pytest.raises(photo.PhotoError, match='claims 14000x14000 pixels in'):
    photo.read(data)
  blank = saved(Image.new('1', (4000, 4000)), 'PNG')
  assert photo.read(blank).pixels.shape == (4000, 4000, 1)


def test_a_deep_png_with_a_chunk_longer_than_the_file_is_refused():
  data = photo.encode(DEEP[..., :3], photo.read(DEEP[..., :3]), 'PNG')
  place = data.index(b'IDAT')
  data = data[: place - 4] + b'\x7f\xff\xff\xff' + data[place:]
  with pytest.raises(photo.PhotoError, match='truncated'):
    photo.read(data)


def test_a_deep_tiff_that_claims_rows_it_does_not_hold_is_refused():
  data = tiff(DEEP[..., :3], photometric='rgb', rowsperstrip=8)
  rows = struct.pack('<HHII', 257, 4, 1, 23)
  assert data.count(rows) == 1
  claiming = data.replace(rows, struct.pack('<HHII', 257, 4, 1, 5000))
  with pytest.raises(photo.PhotoError, match='truncated'):
    photo.read(claiming)


def test_photos_can_be_read_by_several_threads(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
  data = saved(NOISE[..., :3], 'PNG')
  with futures.ThreadPoolExecutor(8) as pool:
    for read in pool.map(photo.read, [data] * 50):
      np.testing.assert_array_equal(read.pixels, NOISE[..., :3])
  assert Image.MAX_IMAGE_PIXELS == 100


def test_pillow_stays_as_it_was_and_its_warnings_stay_inside(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
  broken = saved(NOISE, 'PNG', exif=b'Exif\0\0II*\0\x08\0\0\0\xff\0')
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    read = photo.read(broken)
  assert read.pixels.shape == (23, 37, 3)
  assert read.notes == ('broken EXIF dropped',)
  assert Image.MAX_IMAGE_PIXELS == 100
  assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('format', ['PNG', 'TIFF', 'WEBP', 'JPEG'])
def test_a_photo_is_read_upright(orientation, format):
  big = CORNERS.repeat(16, axis=0).repeat(16, axis=1)
  options = {'lossless': True} if format == 'WEBP' else {}
  data = saved(big, format, exif=exif_block(orientation), **options)
  read = photo.read(data)
  expected = UPRIGHT[orientation].repeat(16, axis=0).repeat(16, axis=1)
  assert read.pixels.shape[:2] == expected.shape
  assert np.abs(read.pixels[..., 0].astype(int) - expected).max() <= 3
  again = photo.encode(np.repeat(read.pixels[..., :1], 3, axis=2), read)
  assert opened(again).size == expected.shape[::-1]
  assert_exif_kept(again)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('lzw', [False, True])
def test_a_deep_tiff_is_read_upright(orientation, lzw):
  deep = CORNERS * np.uint16(257)
  if lzw:
    tags = {'compression': 'tiff_lzw', 'tiffinfo': {274: orientation}}
    data = saved(deep, 'TIFF', **tags)
  else:
    data = tiff(deep, extratags=[(274, 3, 1, orientation, True)])
  read = photo.read(data)
  assert read.pixels.dtype == np.uint16
  expected = UPRIGHT[orientation] * np.uint16(257)
  np.testing.assert_array_equal(read.pixels[..., 0], expected)


def test_the_exif_block_is_changed_only_where_it_must_be():
  def block(orientation, second):
    tag = struct.pack('<HHIHH', 274, 3, 1, orientation, 0)
    head = b'Exif\0\0II*\0\x08\0\0\0\1\0' + tag
    return head + struct.pack('<I', second) + b'\0\0\0\0\0\0' + b'private'

  for data in (
    saved(SMOOTH, 'JPEG', exif=block(6, 26)),
    saved(SMOOTH, 'WEBP', exif=block(6, 26)),
    saved(SMOOTH, 'PNG', exif=block(6, 26)),
  ):
    assert photo.read(data).exif == block(1, 0)


def test_cmyk_is_read_with_and_without_its_profile():
  inks = np.zeros((16, 16, 4), np.uint8)
  inks[:, 8:] = (255, 0, 0, 0)
  image = Image.fromarray(inks, 'CMYK')
  plain = photo.read(saved(image, 'JPEG', quality=100))
  assert plain.notes == ('converted from CMYK',)
  assert plain.icc_profile is None
  white, cyan = plain.pixels[8, 2].astype(int), plain.pixels[8, 13].astype(int)
  assert white.min() > 250
  assert cyan[0] < 10 and cyan[1:].min() > 245

  data = saved(image, 'JPEG', quality=100, icc_profile=press_profile())
  press = photo.read(data)
  red, green, blue = press.pixels[8, 13].astype(int)
  assert press.pixels[8, 2].min() > 250
  assert red > green + 80 and red > blue + 80  # As its profile says.
  assert press.icc_profile == icc.srgb()


def test_palettes_bits_and_gray_with_alpha_are_read():
  palette = Image.fromarray(NOISE[..., 0] // 64, 'P')
  palette.putpalette([10, 20, 30, 90, 80, 70, 0, 0, 0, 255, 255, 255])
  rgb = np.array([[10, 20, 30], [90, 80, 70], [0, 0, 0], [255, 255, 255]])
  read = photo.read(saved(palette, 'PNG'))
  np.testing.assert_array_equal(read.pixels, rgb[NOISE[..., 0] // 64])
  assert read.alpha is None

  read = photo.read(saved(palette, 'PNG', transparency=b'\xff\x80\0\xff'))
  alpha = np.array([255, 128, 0, 255])[NOISE[..., 0] // 64]
  np.testing.assert_array_equal(read.pixels, rgb[NOISE[..., 0] // 64])
  np.testing.assert_array_equal(read.alpha, alpha)

  read = photo.read(saved(NOISE[..., :2], 'PNG'))
  np.testing.assert_array_equal(read.pixels, NOISE[..., :1])
  np.testing.assert_array_equal(read.alpha, NOISE[..., 1])

  level = int(NOISE[0, 0, 0])
  read = photo.read(saved(NOISE[..., 0], 'PNG', transparency=level))
  np.testing.assert_array_equal(read.alpha == 0, NOISE[..., 0] == level)

  bits = NOISE[..., 0] > 127
  for format in ('PNG', 'TIFF', 'BMP'):
    read = photo.read(saved(Image.fromarray(bits), format))
    np.testing.assert_array_equal(read.pixels[..., 0], bits * 255)


@pytest.mark.parametrize(
  ('channels', 'color_type'), [(1, 0), (2, 4), (3, 2), (4, 6)]
)
def test_a_deep_png_keeps_sixteen_bit(channels, color_type):
  array = DEEP[..., :channels]
  read = photo.read(png16(array, color_type))
  colors = 1 if channels < 3 else 3
  np.testing.assert_array_equal(read.pixels, array[..., :colors])
  assert (read.alpha is None) == (channels in (1, 3))
  if channels in (2, 4):
    np.testing.assert_array_equal(read.alpha, array[..., -1])


def test_one_clear_colour_of_a_deep_png_becomes_alpha():
  for channels, color_type in ((1, 0), (3, 2)):
    array = DEEP[..., :channels]
    clear = (b'tRNS', array[5, 7].astype('>u2').tobytes())
    read = photo.read(png16(array, color_type, clear))
    np.testing.assert_array_equal(read.pixels, array)
    assert np.argwhere(read.alpha == 0).tolist() == [[5, 7]]
    assert np.unique(read.alpha).tolist() == [0, 65535]


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize(
  'options',
  [
    {},
    {'byteorder': '>', 'compression': 'zlib', 'predictor': True},
    {'planarconfig': 'separate'},
    {'bigtiff': True, 'tile': (16, 16)},
  ],
)
def test_a_deep_tiff_keeps_sixteen_bit(channels, options):
  array = DEEP[..., :channels]
  if options.get('planarconfig'):
    array = np.moveaxis(array, -1, 0)
    if channels == 1:
      options = {}
  data = tiff(
    np.ascontiguousarray(array).squeeze(),
    photometric='rgb' if channels > 2 else 'minisblack',
    extrasamples=['unassalpha'] if channels in (2, 4) else None,
    **options,
  )
  read = photo.read(data)
  colors = 1 if channels < 3 else 3
  np.testing.assert_array_equal(read.pixels, DEEP[..., :colors])
  assert (read.alpha is None) == (channels in (1, 3))
  if channels in (2, 4):
    np.testing.assert_array_equal(read.alpha, DEEP[..., channels - 1])


def test_a_deep_tiff_of_lzw_is_read():
  data = cv2.imencode(
    '.tiff', DEEP[..., 2::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5]
  )[1].tobytes()
  with pytest.raises(ValueError, match='imagecodecs'):
    tifffile.imread(io.BytesIO(data))  # What makes this case special.
  np.testing.assert_array_equal(photo.read(data).pixels, DEEP[..., :3])


def test_a_deep_tiff_may_count_from_white_or_multiply_by_alpha():
  read = photo.read(tiff(DEEP[..., 0], photometric='miniswhite'))
  np.testing.assert_array_equal(read.pixels[..., 0], 65535 - DEEP[..., 0])

  alpha = np.maximum(DEEP[..., 3:], 20000).astype(np.float64)
  multiplied = np.rint(DEEP[..., :3] * (alpha / 65535))
  array = np.concatenate([multiplied, alpha], axis=-1).astype(np.uint16)
  read = photo.read(tiff(array, photometric='rgb', extrasamples=['assocalpha']))
  np.testing.assert_array_equal(read.alpha, array[..., 3])
  assert np.abs(read.pixels.astype(int) - DEEP[..., :3]).max() <= 4


def test_of_several_pages_the_first_is_read():
  first = Image.fromarray(SMOOTH)
  others = [Image.fromarray(255 - SMOOTH), Image.fromarray(SMOOTH // 2)]
  for format in ('PNG', 'TIFF', 'WEBP', 'MPO'):
    options = {'lossless': True} if format == 'WEBP' else {}
    data = saved(first, format, save_all=True, append_images=others, **options)
    read = photo.read(data)
    assert read.notes == ('first of 3 pages',)
    assert np.abs(read.pixels.astype(int) - SMOOTH).mean() < 6
  assert read.format == 'JPEG'
  data = tiff(np.stack([DEEP[..., 0]] * 2), photometric='minisblack')
  assert photo.read(data).notes == ('first of 2 pages',)


def test_a_broken_second_page_does_not_spoil_the_first():
  other = Image.fromarray(SMOOTH[:9])
  data = saved(SMOOTH, 'TIFF', save_all=True, append_images=[other])
  photometric = struct.pack('<HHIHH', 262, 3, 1, 2, 0)
  place = data.rindex(photometric)
  assert data.count(photometric) == 2
  broken = data[: place + 8] + b'\x63' + data[place + 9 :]
  read = photo.read(broken)
  np.testing.assert_array_equal(read.pixels, SMOOTH)
  assert read.notes == ()


def test_heic_is_read_or_its_plugin_named(monkeypatch):
  monkeypatch.setattr(photo, '_has_heif', lambda: False)
  data = b'\0\0\0\x18ftypheic' + bytes(16)
  with pytest.raises(
    photo.PhotoError, match=r"pip install 'coltran-jax\[heic]'"
  ):
    photo.read(data)
  with pytest.raises(photo.PhotoError, match='coltran-jax'):
    photo.encode(SMOOTH, photo.read(SMOOTH), 'HEIF')
  monkeypatch.undo()
  pytest.importorskip('pillow_heif')
  with pytest.raises(photo.PhotoError, match='broken'):
    photo.read(data)
  data = photo.encode(SMOOTH, photo.read(SMOOTH), 'HEIC')
  read = photo.read(data)
  assert read.format == 'HEIF'
  assert np.abs(read.pixels.astype(int) - SMOOTH).mean() < 8
  assert opened(photo.encode(read.pixels, read)).format == 'PNG'


def test_avif_is_read_without_a_plugin_and_becomes_png(monkeypatch):
  monkeypatch.setattr(photo, '_has_heif', lambda: False)
  data = saved(SMOOTH, 'AVIF', exif=exif_block(6), icc_profile=WIDE_RGB)
  read = photo.read(data)
  assert (read.format, read.icc_profile) == ('AVIF', WIDE_RGB)
  assert read.pixels.shape[:2] == SMOOTH.shape[1::-1]
  assert opened(photo.encode(read.pixels, read)).format == 'PNG'
  assert photo.read(photo.encode(read.pixels, read, 'AVIF')).format == 'AVIF'


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_of_a_large_tiff_only_the_exif_is_left_behind(dtype):
  read = photo.read(tiff(SMOOTH.astype(dtype), photometric='rgb', bigtiff=True))
  np.testing.assert_array_equal(read.pixels, SMOOTH)
  assert read.notes == ('EXIF of a BigTIFF is left behind',)


def test_a_picture_that_may_be_either_is_what_its_other_brands_say(monkeypatch):
  monkeypatch.setattr(photo, '_has_heif', lambda: False)
  data = saved(SMOOTH, 'AVIF')
  assert photo.read(data[:8] + b'mif1' + data[12:]).format == 'AVIF'
  with pytest.raises(photo.PhotoError, match='HEIC needs a plugin'):
    photo.read(b'\0\0\0\x18ftypmif1\0\0\0\0heicmif1' + bytes(16))


def test_a_film_is_no_picture_of_an_iphone(monkeypatch):
  monkeypatch.setattr(photo, '_has_heif', lambda: False)
  with pytest.raises(photo.PhotoError, match='broken, or not a'):
    photo.read(b'\0\0\0\x18ftypisom' + bytes(16))


def test_gray_under_a_profile_is_converted_to_srgb():
  data = saved(NOISE[..., 0], 'PNG', icc_profile=LINEAR_GRAY)
  read = photo.read(data)
  light = NOISE[..., 0] / 255
  curve = np.where(
    light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
  )
  assert read.pixels.shape == (23, 37, 1)
  assert np.abs(read.pixels[..., 0] - 255 * curve).max() <= 2
  assert read.icc_profile == icc.srgb()
  colored = np.repeat(read.pixels, 3, axis=2)
  assert opened(photo.encode(colored, read)).info['icc_profile'] == icc.srgb()
  both = saved(NOISE[..., :2], 'PNG', icc_profile=LINEAR_GRAY)
  np.testing.assert_array_equal(photo.read(both).pixels, read.pixels)
  np.testing.assert_array_equal(photo.read(both).alpha, NOISE[..., 1])


@pytest.mark.parametrize('channels', [3, 4])
@pytest.mark.parametrize('format', ['PNG', 'TIFF'])
def test_an_rgb_profile_is_undone_on_reading_and_done_on_writing(
  channels, format
):
  stored = SMOOTH // 2 + 60
  stored = np.concatenate([stored, NOISE[..., 3:]], axis=-1)[..., :channels]
  data = saved(stored, format, icc_profile=WIDE_RGB)
  read = photo.read(data)
  assert np.abs(read.pixels.astype(int) - stored[..., :3]).max() > 10
  again = photo.encode(read.pixels, read)
  assert opened(again).info['icc_profile'] == WIDE_RGB
  written = np.asarray(opened(again)).astype(int)
  assert np.abs(written - stored).max() <= 3
  if channels == 4:
    np.testing.assert_array_equal(read.alpha, stored[..., 3])


def test_srgb_is_left_alone_in_every_bit():
  data = saved(NOISE[..., :3], 'PNG', icc_profile=icc.srgb())
  read = photo.read(data)
  np.testing.assert_array_equal(read.pixels, NOISE[..., :3])
  again = photo.encode(read.pixels, read)
  np.testing.assert_array_equal(np.asarray(opened(again)), NOISE[..., :3])
  assert opened(again).info['icc_profile'] == icc.srgb()


def test_a_gray_photo_with_an_rgb_profile_is_written_in_that_profile():
  gray = np.full((9, 9), 100, np.uint8)
  read = photo.read(saved(gray, 'PNG', icc_profile=WIDE_RGB))
  assert read.pixels.shape == (9, 9, 1)
  assert read.icc_profile == WIDE_RGB
  colored = np.repeat(read.pixels, 3, axis=2)
  written = np.asarray(opened(photo.encode(colored, read)))
  assert np.abs(written.astype(int) - 100).max() <= 1


def test_broken_and_foreign_profiles_are_noted_and_ignored():
  for profile_bytes, note in (
    (b'nonsense', 'broken colour profile ignored'),
    (WIDE_RGB[:200], 'broken colour profile ignored'),
    (LINEAR_GRAY, 'colour profile for GRAY ignored'),
    (press_profile(), 'colour profile for CMYK ignored'),
  ):
    read = photo.read(saved(SMOOTH, 'PNG', icc_profile=profile_bytes))
    np.testing.assert_array_equal(read.pixels, SMOOTH)
    assert read.notes == (note,)
    assert read.icc_profile is None


def test_deep_numbers_are_left_alone_and_keep_an_rgb_profile():
  for array, stored, kept in (
    (DEEP[..., :3], WIDE_RGB, WIDE_RGB),
    (DEEP[..., :1], LINEAR_GRAY, None),
    (DEEP[..., :3], b'nonsense', None),
  ):
    body = (b'iCCP', b'x\0\0' + zlib.compress(stored))
    png = png16(array, 2 if array.shape[2] == 3 else 0, body)
    for data in (png, tiff(array, photometric=None, iccprofile=stored)):
      read = photo.read(data)
      np.testing.assert_array_equal(read.pixels, array)
      assert read.icc_profile == kept
  read = photo.read(
    png16(DEEP[..., :3], 2, (b'iCCP', b'x\0\0' + zlib.compress(WIDE_RGB)))
  )
  shallow = opened(photo.encode(read.pixels, read, 'JPEG', quality=100))
  assert shallow.info['icc_profile'] == WIDE_RGB
  off = np.asarray(shallow, int) - DEEP[..., :3] / 257
  assert np.abs(off).mean() < 2  # No conversion on the way out either.


PICTURES = st.tuples(
  st.sampled_from([np.uint8, np.uint16]), st.integers(1, 9), st.integers(1, 9)
).flatmap(lambda kind: hnp.arrays(kind[0], (*kind[1:], 4)))


@hypothesis.given(
  PICTURES, st.booleans(), st.booleans(), st.sampled_from(['PNG', 'TIFF'])
)
def test_png_and_tiff_keep_every_bit_and_what_belongs_to_it(
  array, clear, tagged, format
):
  like = photo.read(array if clear else array[..., :3])
  if tagged:
    like = dataclasses.replace(like, exif=exif_block(), icc_profile=WIDE_RGB)
    if array.dtype == np.uint8:  # Or it would be converted: tested above.
      like = dataclasses.replace(like, icc_profile=icc.srgb())
  data = photo.encode(like.pixels, like, format)
  read = photo.read(data)
  assert read.format == format
  assert read.notes == photo.dropped(like, format) == ()
  assert read.icc_profile == like.icc_profile
  assert (read.exif is not None) == tagged
  if tagged:
    assert_exif_kept(data)
  np.testing.assert_array_equal(read.pixels, like.pixels)
  assert read.pixels.dtype == array.dtype
  assert (read.alpha is not None) == clear
  if clear:
    np.testing.assert_array_equal(read.alpha, array[..., 3])


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('channels', [3, 4])
def test_other_readers_agree_about_a_written_tiff(dtype, channels):
  array = RNG.integers(0, 255, (700, 900, channels)).astype(dtype)
  like = photo.read(array)
  like = dataclasses.replace(like, exif=exif_block())
  data = photo.encode(like.pixels, like, 'TIFF')
  np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), array)
  if dtype == np.uint8:
    np.testing.assert_array_equal(np.asarray(opened(data)), array)
  else:
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), -1)
    order = [2, 1, 0, 3][:channels]
    np.testing.assert_array_equal(by_opencv[..., order], array)


@pytest.mark.parametrize('format', ['JPEG', 'WEBP', 'BMP', 'PNG', 'TIFF'])
def test_what_a_format_cannot_hold_is_told_and_left_out(format):
  like = dataclasses.replace(
    photo.read(DEEP), exif=exif_block(), icc_profile=WIDE_RGB
  )
  read = photo.read(photo.encode(like.pixels, like, format))
  told = ' '.join(photo.dropped(like, format))
  assert ('no transparency' in told) == (read.alpha is None)
  assert ('8 bit only' in told) == (read.pixels.dtype == np.uint8)
  assert ('no such EXIF' in told) == (read.exif is None)
  assert (format == 'BMP') == (read.icc_profile is None)
  assert (told == '') == (format in ('PNG', 'TIFF'))


def test_a_photo_keeps_its_format_unless_nobody_could_hold_it_there():
  for format, expected in (
    ('JPEG', 'JPEG'),
    ('WEBP', 'WEBP'),
    ('TIFF', 'TIFF'),
    ('BMP', 'PNG'),
    ('PNG', 'PNG'),
  ):
    read = photo.read(saved(SMOOTH, format))
    assert read.format == format
    assert opened(photo.encode(SMOOTH, read)).format == expected
  like = photo.read(SMOOTH)
  for name, expected in (('jpg', 'JPEG'), ('tif', 'TIFF'), ('bmp', 'BMP')):
    assert opened(photo.encode(SMOOTH, like, name)).format == expected


def test_jpeg_keeps_chroma_whole_and_obeys_quality():
  like = photo.read(SMOOTH)
  data = photo.encode(SMOOTH, like, 'JPEG')
  components = opened(data).layer
  assert [component[1:3] for component in components] == [(1, 1)] * 3
  assert len(photo.encode(SMOOTH, like, 'JPEG', quality=40)) < len(data)


def test_equal_photos_give_equal_files(monkeypatch):
  like = photo.read(saved(NOISE[..., 0], 'PNG', icc_profile=LINEAR_GRAY))
  first = photo.encode(NOISE[..., :3], like)
  icc.srgb.cache_clear()
  monkeypatch.setattr(time, 'time', lambda: 0)
  assert photo.encode(NOISE[..., :3], like) == first
  assert struct.unpack('>6H', icc.srgb()[24:36]) == (2000, 1, 1, 0, 0, 0)


def test_exif_too_long_for_jpeg_is_left_out():
  like = dataclasses.replace(
    photo.read(SMOOTH), exif=exif_block() + bytes(65500)
  )
  assert photo.dropped(like, 'JPEG') == ('JPEG holds no such EXIF',)
  assert photo.read(photo.encode(SMOOTH, like, 'JPEG')).exif is None
  assert_exif_kept(photo.encode(SMOOTH, like, 'PNG'))


def test_no_exif_can_spoil_a_tiff():
  sound = exif_block()
  make = sound.index(struct.pack('>HH', ExifTags.Base.Make, 2))
  as_float = sound[: make + 3] + b'\x0b' + sound[make + 4 :]
  exif = Image.Exif()
  exif[322] = exif[323] = 16  # Sizes of tiles, of which there are none.
  tiled = exif.tobytes()
  for block in (as_float, tiled, b'Exif\0\0??*\0', b'', b'Exif\0\0MM'):
    like = dataclasses.replace(photo.read(DEEP), exif=block)
    read = photo.read(photo.encode(like.pixels, like, 'TIFF'))
    np.testing.assert_array_equal(read.pixels, like.pixels)
    np.testing.assert_array_equal(read.alpha, like.alpha)


def test_deep_pixels_for_a_shallow_photo_are_tagged_srgb():
  like = photo.read(saved(SMOOTH, 'PNG', icc_profile=WIDE_RGB))
  read = photo.read(photo.encode(DEEP[..., :3], like))
  np.testing.assert_array_equal(read.pixels, DEEP[..., :3])
  assert read.icc_profile == icc.srgb()


@pytest.mark.parametrize(
  ('pixels', 'format', 'reason'),
  [
    (SMOOTH, 'GIF', 'cannot write GIF'),
    (SMOOTH[:5], 'PNG', 'do not fit'),
    (SMOOTH[..., :1], 'PNG', 'do not fit'),
    (SMOOTH.astype(np.float32), 'PNG', 'do not fit'),
  ],
)
def test_what_cannot_be_encoded_is_a_photo_error(pixels, format, reason):
  with pytest.raises(photo.PhotoError, match=reason):
    photo.encode(pixels, photo.read(SMOOTH), format)


@pytest.mark.parametrize('format', ['JPEG', 'WEBP'])
def test_a_side_too_long_for_a_format_is_a_photo_error(format):
  line = np.zeros((1, 70000, 3), np.uint8)
  with pytest.raises(photo.PhotoError, match=f'written as {format}: .'):
    photo.encode(line, photo.read(line), format)


def test_eight_bit_colour_for_a_deep_photo_and_the_reverse():
  deep, shallow = photo.read(DEEP), photo.read(NOISE)
  read = photo.read(photo.encode(NOISE[..., :3], deep))
  np.testing.assert_array_equal(read.pixels, NOISE[..., :3])
  assert np.abs(read.alpha - DEEP[..., 3] / 257).max() <= 0.5
  read = photo.read(photo.encode(DEEP[..., :3], shallow))
  np.testing.assert_array_equal(read.pixels, DEEP[..., :3])
  np.testing.assert_array_equal(read.alpha, NOISE[..., 3] * np.uint16(257))


@pytest.mark.parametrize('name', ['astronaut', 'chelsea', 'coffee', 'rocket'])
def test_photographs_are_colour_and_their_gray_copies_gray(name):
  rgb = getattr(skimage.data, name)()
  assert photo.read(rgb).kind == 'color'
  assert photo.read(rgb * np.uint16(257)).kind == 'color'
  gray = Image.fromarray(rgb).convert('L')
  assert photo.read(gray).kind == 'gray'
  stored_as_rgb = saved(gray.convert('RGB'), 'JPEG', quality=75)
  assert photo.read(stored_as_rgb).pixels.shape[2] == 3
  assert photo.read(stored_as_rgb).kind == 'gray'


@pytest.mark.parametrize('name', ['astronaut', 'chelsea', 'coffee', 'rocket'])
@pytest.mark.parametrize(
  'powers',
  [(0.7, 0.95, 1.4), (0.9, 1.05, 1.3), (1.4, 1.1, 0.9), (1, 1.07, 1.03)],
)
@pytest.mark.parametrize('noise', [0, 5])
def test_toned_copies_of_photographs_are_sepia(name, powers, noise):
  rgb = getattr(skimage.data, name)()
  gray = np.asarray(Image.fromarray(rgb).convert('L')) / 255
  toned = 255 * gray[..., None] ** np.array(powers)
  toned += np.random.default_rng(0).normal(0, noise, toned.shape)
  toned = np.clip(np.rint(toned), 0, 255).astype(np.uint8)
  assert photo.read(saved(toned, 'JPEG', quality=75)).kind == 'sepia'


def test_the_classical_sepia_filter_gives_sepia():
  matrix = [[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]]
  rgb = skimage.data.chelsea() @ np.transpose(matrix)
  toned = np.minimum(rgb, 255).astype(np.uint8)
  assert photo.read(saved(toned, 'JPEG', quality=75)).kind == 'sepia'


@pytest.mark.parametrize('shape', [(1, 1), (1, 5000), (64, 64), (7, 9)])
@pytest.mark.parametrize('code', [(200, 120, 40), (150, 130, 110)])
def test_one_flat_colour_is_no_sepia(shape, code):
  flat = np.full((*shape, 3), code, np.uint8)
  assert photo.read(flat).kind == 'color'


def test_writing_replaces_a_file_whole(tmp_path):
  path = tmp_path / 'a.png'
  path.write_bytes(b'old')
  photo.write(path, b'new')
  photo.write(str(tmp_path / 'b.png'), b'')
  assert path.read_bytes() == b'new'
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.png', 'b.png']
  umask = os.umask(0)
  os.umask(umask)
  assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize('broken', ['write', 'fsync', 'replace', 'interrupt'])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
  tmp_path, monkeypatch, broken
):
  path = tmp_path / 'a.png'
  path.write_bytes(b'old')

  def fail(*_):
    if broken == 'interrupt':
      raise KeyboardInterrupt
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  class FullFile(io.FileIO):
    write = fail

  if broken == 'write':
    monkeypatch.setattr(
      photo, 'open', lambda p, mode: FullFile(p, mode), raising=False
    )
  elif broken == 'replace':
    monkeypatch.setattr(os, 'replace', fail)
  else:
    monkeypatch.setattr(os, 'fsync', fail)
  if broken == 'interrupt':
    with pytest.raises(KeyboardInterrupt):
      photo.write(path, b'new')
  else:
    with pytest.raises(photo.PhotoError, match=r'a\.png: No space left'):
      photo.write(path, b'new')
  assert path.read_bytes() == b'old'
  assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_are_photo_errors(tmp_path):
  (tmp_path / 'file').write_bytes(b'')
  (tmp_path / 'folder').mkdir()
  for name, reason in (
    ('file/a.png', 'Not a directory'),
    ('nowhere/a.png', 'No such file'),
    ('folder', 'directory'),
    ('a\0b.png', 'null'),
  ):
    with pytest.raises(photo.PhotoError, match=reason):
      photo.write(tmp_path / name, b'data')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'folder']


def sound_files():
  """One small file of each kind that `read` treats in its own way."""
  rgb, deep = SMOOTH, SMOOTH * np.uint16(257)
  tagged = {'exif': exif_block(6), 'icc_profile': WIDE_RGB}
  like = dataclasses.replace(photo.read(deep), exif=exif_block())
  files = {
    'jpeg': saved(rgb, 'JPEG', **tagged),
    'progressive': saved(rgb, 'JPEG', progressive=True),
    'cmyk': saved(Image.fromarray(rgb).convert('CMYK'), 'JPEG'),
    'png': saved(rgb, 'PNG', **tagged),
    'deep_png': photo.encode(like.pixels, like, 'PNG'),
    'webp': saved(rgb, 'WEBP', **tagged),
    'tiff': saved(rgb, 'TIFF', **tagged),
    'deep_tiff': photo.encode(like.pixels, like, 'TIFF'),
    'planar_tiff': tiff(
      np.moveaxis(deep, -1, 0), photometric='rgb', planarconfig='separate'
    ),
    'bmp': saved(rgb, 'BMP'),
    'avif': saved(rgb, 'AVIF', **tagged),
  }
  if photo._has_heif():
    files['heif'] = photo.encode(rgb, photo.read(rgb), 'HEIF')
  return files


FILES = sound_files()


def assert_read_or_refused(data):
  started = time.perf_counter()
  try:
    read = photo.read(data)
  except photo.PhotoError as error:
    assert '\n' not in str(error)
  else:
    assert read.pixels.ndim == 3 and read.pixels.size
    assert read.pixels.shape[2] in (1, 3)
    assert read.alpha is None or read.alpha.shape == read.pixels.shape[:2]
    assert read.kind in ('gray', 'sepia', 'color')
  assert time.perf_counter() - started < 1


BEGINNINGS = [
  b'',
  b'\xff\xd8\xff',
  b'\x89PNG\r\n\x1a\n',
  b'II*\0',
  b'MM\0*',
  b'BM',
  b'RIFF\x40\0\0\0WEBPVP8',
  b'\0\0\0\x18ftypheic',
  b'\0\0\0\x18ftypavif',
]


@hypothesis.given(st.sampled_from(BEGINNINGS), st.binary(max_size=300))
def test_any_bytes_are_a_photo_or_a_photo_error(start, rest):
  assert_read_or_refused(start + rest)


@pytest.mark.parametrize('name', FILES)
def test_a_damaged_file_is_a_photo_or_a_photo_error(name, monkeypatch):
  # Damage may claim a huge picture, which then rightly takes its time.
  monkeypatch.setattr(photo, 'MAX_PIXELS', 1_000_000)
  rng = random.Random(name)
  for _ in range(120):
    data = bytearray(FILES[name])
    reach = rng.choice([40, 400, len(data)])  # Headers are hit more often.
    for _ in range(rng.choice([0, 1, 2, 8])):
      place = rng.randrange(min(reach, len(data)))
      data[place] = rng.choice([0, 1, 128, 255, rng.randrange(256)])
    if rng.random() < 0.4:
      del data[rng.randrange(len(data)) :]
    assert_read_or_refused(bytes(data))


@pytest.mark.parametrize('name', FILES)
def test_a_sound_file_is_read_and_half_of_it_is_not(name):
  assert photo.read(FILES[name]).pixels.shape[2] == 3
  with pytest.raises(photo.PhotoError):
    photo.read(FILES[name][: len(FILES[name]) // 2])
