"""Pictures as arrays on the host: resize, pad, colour a photo, contact sheets.

Axes: H height, W width, C channels of a picture; h, w those of a small one.
Pictures are uint8 RGB unless a docstring says otherwise. Files are `photo`'s.
"""

import functools

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
import scipy.sparse

# Linear sRGB -> XYZ divided by the D65 white, so that gray is (Y, Y, Y).
_XYZ = np.array(
  [
    [0.412453, 0.357580, 0.180423],
    [0.212671, 0.715160, 0.072169],
    [0.019334, 0.119193, 0.950227],
  ]
)
_XYZ /= _XYZ.sum(axis=1, keepdims=True)
_RGB = np.linalg.inv(_XYZ)
_BLOCK = 1 << 18  # Values that `_strip_sums` takes at a time.
_BAND = 1 << 16  # Pixels coloured at a time: their arrays stay in the cache.
_CELL = 1024  # Longest side of a cell of a contact sheet, in pixels.


@functools.lru_cache(maxsize=256)
def _overlaps(rows, size, start, stop, dtype):
  """How much of each row is in which strip, and the first row of them.

  Of `size` equal strips of `rows` rows those from start to stop; in 1/size of
  a row.
  """
  edges = np.arange(start, stop + 1) * rows
  first, last = edges[:-1] // size, -(-edges[1:] // size)
  counts = last - first
  ends = np.concatenate([[0], counts.cumsum()])
  inputs = np.arange(ends[-1]) + (first - ends[:-1]).repeat(counts)
  overlap = np.minimum(edges[1:].repeat(counts), (inputs + 1) * size)
  overlap -= np.maximum(edges[:-1].repeat(counts), inputs * size)
  inputs -= first[0]
  matrix = scipy.sparse.csr_array(
    (overlap.astype(dtype), inputs.astype(np.int32), ends.astype(np.int32)),
    shape=(stop - start, last[-1] - first[0]),
  )
  return matrix, first[0]


def _strip_sums(array, size, dtype):
  """Sums [size, ...] over `size` equal strips of rows, in 1/size of a row."""
  flat = array.reshape(len(array), -1)
  step = max(1, _BLOCK * size // flat.size)
  if step >= size:
    matrix, _ = _overlaps(len(flat), size, 0, size, dtype)
    sums = matrix @ flat.astype(dtype, copy=False)
    return sums.reshape(size, *array.shape[1:])
  sums = np.empty((size, flat.shape[1]), dtype)
  for start in range(0, size, step):
    stop = min(start + step, size)
    matrix, first = _overlaps(len(flat), size, start, stop, dtype)
    block = flat[first : first + matrix.shape[1]]
    sums[start:stop] = matrix @ block.astype(dtype, copy=False)
  return sums.reshape(size, *array.shape[1:])


def _swapped(array):
  """A copy of the array with rows and columns exchanged."""
  if array.ndim == 3 and array.shape[2] > 4:
    return np.ascontiguousarray(array.swapaxes(0, 1))
  # Several times as fast; it drops the last axis if it is 1.
  swapped = cv2.transpose(np.ascontiguousarray(array))
  return swapped.reshape(array.shape[1], array.shape[0], *array.shape[2:])


def _cell_sums(array, height, width):
  """Sums [height, width, ...] of array [H, W, ...] over equal cells, float.

  For uint8 the numbers added are whole and small enough to be exact, in float32
  if that does and else in float64: the same on every machine.
  """
  rows, columns = array.shape[:2]
  whole = array.dtype == np.uint8
  one = np.float32 if whole and rows <= 1 << 16 else np.float64
  # A float32 of both the sum and the area divides as a float64 would.
  both = np.float32 if whole and 255 * rows * columns < 1 << 24 else np.float64
  if height * width >= 1 << 24:
    both = np.float64
  sums = _swapped(_strip_sums(array, height, one))
  sums = _swapped(_strip_sums(sums, width, both))
  sums /= both(height * width)
  return sums


def _cell_means(array, height, width):
  """Means float64 [height, width, ...] of array [H, W, ...] over equal cells."""
  share = height * width / (array.shape[0] * array.shape[1])
  return _cell_sums(array, height, width) * share


def resize(array, height, width):
  """Picture uint8 [height, width(, C)] from uint8 [H, W(, C)], by area.

  Every output pixel is the mean over its share of the input, up or down, as in
  `tf.image.resize(method='area')`, rounded half to even.
  """
  if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
    raise ValueError(
      f'expected a uint8 picture, got {array.dtype} {array.shape}'
    )
  if height < 1 or width < 1:
    raise ValueError(f'cannot resize to {width}x{height} pixels')
  if array.shape[:2] == (height, width):
    return array.copy()
  # The reference multiplies by a float32 reciprocal, which decides near ties.
  rows, columns = (np.float32(side) for side in array.shape[:2])
  share = 1 / (rows / np.float32(height) * (columns / np.float32(width)))
  sums = _cell_sums(array, height, width).astype(np.float32, copy=False)
  sums *= share
  return np.rint(sums, out=sums).astype(np.uint8)


def shrink(array, longest):
  """uint8 [H, W(, C)] by area, its long side at most `longest`; none grows."""
  scale = min(1, longest / max(array.shape[:2]))
  return resize(array, *(max(1, round(n * scale)) for n in array.shape[:2]))


def square(array, size):
  """Central square uint8 [size, size(, C)] of uint8 [H, W(, C)], by area."""
  height, width = array.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return resize(array[top : top + side, left : left + side], size, size)


def fit(array, size, multiple=None):
  """The whole picture in a square or a little more than itself, and its place.

  Args:
    array: uint8 [H, W(, C)].
    size: of the long side, in pixels.
    multiple: of both sides; None makes a square.

  Returns:
    (uint8 [h, w(, C)], (top, left, height, width)): the picture, scaled by area
    until its long side is `size`, centred and mirrored beyond its edges; and
    the box that holds it, for `crop`.
  """
  height, width = fitted(*array.shape[:2], size)
  multiple = multiple or size
  tall, wide = (-(-side // multiple) * multiple for side in (height, width))
  top, left = (tall - height) // 2, (wide - width) // 2
  scaled = resize(array, height, width)
  return mirrored(scaled, tall, wide), (top, left, height, width)


def fitted(height, width, size):
  """(height, width) of a picture scaled until its long side is `size`."""
  scale = size / max(height, width)
  return tuple(max(1, round(side * scale)) for side in (height, width))


def refit(array, size, box, side):
  """uint8 [size, size(, C)] of [H, W(, C)]: what `fit` made, at a larger size.

  box: that `fit` gave with a square of this side. The picture is where that has it
  (to a pixel, if size is no multiple of side): fitted anew, it could be half a pixel
  of the small one off, and so would be the colours that are seen in it.
  """
  top, left, height, width = (n * size // side for n in box)
  return mirrored(resize(array, height, width), size, size, (top, left))


def mirrored(array, tall, wide, place=None):
  """Any [tall, wide(, C)] of [H, W(, C)], mirrored beyond its edges.

  place: (top, left) of it; None: centred.
  """
  height, width = array.shape[:2]
  top, left = place or ((tall - height) // 2, (wide - width) // 2)
  pad = [(top, tall - height - top), (left, wide - width - left)]
  pad += [(0, 0)] * (array.ndim - 2)
  return np.pad(array, pad, mode='reflect')


def crop(array, box):
  """The part [height, width(, C)] of array inside the box that `fit` gave."""
  top, left, height, width = box
  return array[top : top + height, left : left + width]


def _to_linear(srgb):
  """Linear light [0, 1] from sRGB values [0, 1]."""
  return np.where(
    srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4
  )


def _to_srgb(linear):
  """sRGB values [0, 1] from linear light [0, 1], float32."""
  curve = 1.055 * cv2.pow(linear, 1 / 2.4) - 0.055
  return np.where(linear <= 0.0031308, 12.92 * linear, curve)


def _curve(xyz):
  """CIE Lab's f: a cube root with a straight toe."""
  return np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (841 / 108) + 4 / 29)


def _uncurve(values):
  """The inverse of `_curve`."""
  toe = (values - 4 / 29) * (108 / 841)
  return np.where(values > 6 / 29, values * values * values, toe)


def _lab_curves(pixels):
  """f(X), f(Y), f(Z) float64 [..., 3] of values [..., 1 or 3] of any dtype."""
  if pixels.shape[-1] == 1:
    return np.repeat(_curve(_to_linear(pixels)), 3, axis=-1)
  return _curve(_to_linear(pixels) @ _XYZ.T)


def _rgb(fy, a, b):
  """Linear RGB float32 [3, N] of f(Y), a* and b* [N] (unclipped)."""
  y = _uncurve(fy)
  x, z = _uncurve(fy + a * (1 / 500)), _uncurve(fy - b * (1 / 200))
  # Written out: a product of a 3x3 matrix is slower on such long vectors.
  return np.stack(
    [
      np.float32(r) * x + np.float32(g) * y + np.float32(b) * z
      for r, g, b in _RGB
    ]
  )


def _in_gamut(rgb):
  # So little over cannot be seen, even in blue next to black.
  return (rgb.min(axis=0) >= -1e-5) & (rgb.max(axis=0) <= 1 + 1e-5)


def _gamut_rgb(fy, a, b):
  """Linear RGB float32 [3, N] in [0, 1]: chroma shrinks where it must."""
  rgb = _rgb(fy, a, b)
  outside = np.flatnonzero(~_in_gamut(rgb))
  if outside.size:
    fy, a, b = fy[outside], a[outside], b[outside]
    inside = np.zeros_like(fy)  # Largest share of the chroma known to fit.
    for step in range(1, 11):
      share = inside + np.float32(0.5**step)
      fits = _in_gamut(_rgb(fy, share * a, share * b))
      inside = np.where(fits, share, inside)
    rgb[:, outside] = _rgb(fy, inside * a, inside * b)
  return np.clip(rgb, 0, 1, out=rgb)


def _chroma_planes(guide, ab):
  """What `join` interpolates, float32 [h, w, 9].

  Args:
    guide: L* [h, w] of the small photo.
    ab: a*, b* [h, w, 2] of the small colouring.

  Returns:
    ab, slope of ab on L*, lowest and highest ab of each 3x3 neighbourhood, L*.
    The slope is a local regression, damped where L* is flat (16 = 4 squared)
    and by the share of chroma's variance that L* explains: where colour does
    not follow light, the photo's texture stays out of it.
  """

  def blur(values):
    return cv2.GaussianBlur(
      values, (0, 0), 0.7, borderType=cv2.BORDER_REPLICATE
    ).reshape(values.shape)

  mean_l, mean_ab = blur(guide)[..., None], blur(ab)
  variance = blur(guide * guide)[..., None] - mean_l**2
  covariance = blur(guide[..., None] * ab) - mean_l * mean_ab
  spread = (blur(ab * ab) - mean_ab**2).sum(axis=-1, keepdims=True)
  variance, spread = np.maximum(variance, 0), np.maximum(spread, 0)
  explained = (covariance**2).sum(axis=-1, keepdims=True)
  explained /= (variance + 1e-3) * (spread + 1)
  slope = np.minimum(explained, 1) * covariance / (variance + 16)
  near = np.ones((3, 3), np.uint8)
  low = cv2.erode(ab, near, borderType=cv2.BORDER_REPLICATE)
  high = cv2.dilate(ab, near, borderType=cv2.BORDER_REPLICATE)
  return np.concatenate([ab, slope, low, high, guide[..., None]], axis=-1)


def join(photo_pixels, color):
  """RGB [H, W, 3] with the photo's L* and the a*, b* of a small colouring.

  The chroma is interpolated bicubically, sharpened along the photo's edges by
  a local regression on L* (a guided filter's slope on what interpolation left
  out) and kept within the colours found around each place of `color`. Where
  sRGB cannot show the result, chroma shrinks at constant L* and hue. The work
  is done in bands of rows: memory beyond input and output stays small.

  Args:
    photo_pixels: uint8 or uint16 [H, W, 1 or 3], gray or sRGB.
    color: uint8 [h, w, 3], sRGB: a colouring of the whole photo, any size.

  Returns:
    [H, W, 3] of the dtype of photo_pixels.
  """
  height, width, channels = photo_pixels.shape
  top = np.iinfo(photo_pixels.dtype).max
  curves = _lab_curves(color / 255)
  ab = (curves[..., :2] - curves[..., 1:]) * (500, 200)
  small = min(height, color.shape[0]), min(width, color.shape[1])
  ab = _cell_means(ab, *small).astype(np.float32)
  guide = _lab_curves(_cell_means(photo_pixels, *small) / top)[..., 1]
  guide = (116 * guide - 16).astype(np.float32)
  planes = _chroma_planes(guide, ab)
  planes = cv2.resize(
    planes, (small[1], height), interpolation=cv2.INTER_CUBIC
  ).reshape(height, small[1], 9)

  light = _to_linear(np.arange(top + 1) / top).astype(np.float32)
  joined = np.empty((height, width, 3), photo_pixels.dtype)
  rows = max(1, _BAND // width)
  for start in range(0, height, rows):
    band = photo_pixels[start : start + rows]
    if channels == 1:
      y = light[band[..., 0]]
    else:
      y = cv2.transform(light[band], _XYZ[1:2].astype(np.float32))
    fy = _curve(y.reshape(-1))
    plane = cv2.resize(
      planes[start : start + rows],
      (width, len(band)),
      interpolation=cv2.INTER_CUBIC,
    ).reshape(-1, 9)
    detail = (116 * fy - 16 - plane[:, 8])[:, None]
    chroma = plane[:, :2] + plane[:, 2:4] * detail
    chroma = np.clip(chroma, plane[:, 4:6], plane[:, 6:8])
    rgb = _to_srgb(_gamut_rgb(fy, chroma[:, 0], chroma[:, 1]))
    rgb = rgb.T.reshape(*band.shape[:2], 3)
    joined[start : start + rows] = np.rint(rgb * np.float32(top))
  return joined


def _shortened(text, font, width):
  """The text, cut with an ellipsis to at most `width` pixels."""
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(text + '...') > width:
    text = text[:-1]
  return text + '...'


def contact_sheet(images, columns, labels=None, gap=8, background=255):
  """One picture uint8 [H, W, 3] of many, in equal cells from left to right.

  Args:
    images: uint8 [H, W, 1 or 3] each, of any sizes; those with a side of more than
      1024 are shrunk, none grows.
    columns: cells a row.
    labels: one text an image, drawn below it, or None.
    gap: pixels between cells and around the sheet.
    background: gray level 0..255; labels are black or white to contrast.
  """
  if not images or columns < 1:
    raise ValueError('a contact sheet needs images and at least one column')
  if labels is not None and len(labels) != len(images):
    raise ValueError(f'{len(labels)} labels for {len(images)} images')
  cells = []
  for image in images:
    cell = shrink(image, _CELL)
    cells.append(np.broadcast_to(cell, (*cell.shape[:2], 3)))
  height = max(cell.shape[0] for cell in cells)
  width = max(cell.shape[1] for cell in cells)
  text_size = min(24, max(12, width // 16)) if labels is not None else 0
  line = text_size * 3 // 2
  columns = min(columns, len(cells))
  down = -(-len(cells) // columns)
  sheet = Image.new(
    'RGB',
    (gap + columns * (width + gap), gap + down * (height + line + gap)),
    (background,) * 3,
  )
  draw = ImageDraw.Draw(sheet)
  for i, cell in enumerate(cells):
    left = gap + i % columns * (width + gap)
    top = gap + i // columns * (height + line + gap)
    inset = (width - cell.shape[1]) // 2, (height - cell.shape[0]) // 2
    sheet.paste(Image.fromarray(cell), (left + inset[0], top + inset[1]))
    if labels is not None:
      font = ImageFont.load_default(text_size)
      draw.text(
        (left + width // 2, top + height + line // 2),
        _shortened(str(labels[i]), font, width),
        fill=(0,) * 3 if background >= 128 else (255,) * 3,
        font=font,
        anchor='mm',
      )
  return np.asarray(sheet)
