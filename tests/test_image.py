"""Resizing, padding, joining colour to luminance, contact sheets."""

import cv2
import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest
import skimage.color
import skimage.data

from coltran_jax import image

SIDES = st.integers(1, 40)
PICTURES = hnp.arrays(
  np.uint8,
  st.one_of(
    st.tuples(SIDES, SIDES),
    st.tuples(SIDES, SIDES, st.integers(1, 4)),
    st.tuples(st.just(1), st.integers(1, 900), st.just(3)),
    st.tuples(st.integers(1, 900), st.just(1), st.just(3)),
  ),
  elements=st.integers(0, 255),
  fill=st.integers(0, 255),
)
PHOTOS = ('astronaut', 'chelsea', 'coffee')


@pytest.fixture(scope='module', params=PHOTOS)
def photo(request):
  return getattr(skimage.data, request.param)()


def long_side(picture, size):
  return image.crop(*image.fit(picture, size))


def lab(rgb):
  return skimage.color.rgb2lab(rgb)


def gray_of_same_light(rgb):
  """Gray uint8 [H, W, 1] of the L* of rgb."""
  gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
  levels = lab(gray[None])[0, :, 0]
  nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, lab(rgb)[..., 0])
  return nearest.astype(np.uint8)[..., None]


def exact_means(array, height, width):
  """Area resize the slow way: repeat every pixel, then average blocks."""
  rows, columns = array.shape[:2]
  big = array.astype(np.float64).repeat(height, axis=0).repeat(width, axis=1)
  blocks = big.reshape(height, rows, width, columns, *array.shape[2:])
  return blocks.mean(axis=(1, 3))


@pytest.mark.parametrize('key', range(8))
def test_squares_equal_the_recorded_ones_in_every_bit(fixtures, key):
  with np.load(fixtures / 'coltran' / 'preprocess.npz') as recorded:
    picture = recorded[f'{key}:image']
    square256 = recorded[f'{key}:square256']
    low64 = recorded[f'{key}:low64']
    up_back256 = recorded[f'{key}:up_back256']
  np.testing.assert_array_equal(image.square(picture, 256), square256)
  np.testing.assert_array_equal(image.square(square256, 64), low64)
  np.testing.assert_array_equal(image.resize(low64, 256, 256), up_back256)


@hypothesis.given(
  hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(2))
  ),
  st.integers(1, 12),
  st.integers(1, 12),
)
def test_resizing_takes_the_mean_of_every_cell(array, height, width):
  resized = image.resize(array, height, width)
  means = exact_means(array, height, width)
  assert resized.shape == means.shape
  assert np.abs(resized - means).max() <= 0.5 + 1e-4


def whole_sums(array, size):
  """Sums int64 over strips of rows, in 1/size of a row, row by row."""
  sums = np.zeros((size, *array.shape[1:]), np.int64)
  for i in range(size):
    for row in range(len(array)):
      low = max(i * len(array), row * size)
      high = min((i + 1) * len(array), (row + 1) * size)
      sums[i] += max(0, high - low) * array[row].astype(np.int64)
  return sums


@pytest.mark.parametrize('block', [1, 50, 1 << 18])
@pytest.mark.parametrize(
  ('shape', 'size'),
  [
    ((7, 11, 3), (5, 13)),
    ((40, 9, 1), (13, 31)),
    ((33, 29), (64, 17)),
    ((12, 20, 5), (12, 20)),
    ((12, 20, 5), (12, 19)),
    ((300, 350, 2), (41, 23)),  # The sums need float64.
  ],
)
def test_resizing_rounds_exact_sums_as_the_reference_does(
  monkeypatch, shape, size, block
):
  monkeypatch.setattr(image, '_BLOCK', block)
  array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
  array[: shape[0] // 2] |= 254  # Large sums, and many near ties.
  sums = whole_sums(array, size[0]).swapaxes(0, 1)
  sums = whole_sums(sums, size[1]).swapaxes(0, 1)
  rows, columns = np.float32(shape[:2]) / np.float32(size)
  share = np.float32(1) / (rows * columns)
  expected = np.rint((sums / (size[0] * size[1])).astype(np.float32) * share)
  np.testing.assert_array_equal(image.resize(array, *size), expected)


@hypothesis.given(PICTURES, SIDES, SIDES)
def test_resizing_stays_within_the_range_of_the_picture(array, height, width):
  resized = image.resize(array, height, width)
  assert resized.shape == (height, width, *array.shape[2:])
  assert resized.dtype == np.uint8
  assert array.min() <= resized.min() and resized.max() <= array.max()


@hypothesis.given(
  st.integers(0, 255),
  st.integers(1, 2000),
  st.integers(1, 60),
  st.integers(1, 300),
  st.integers(1, 300),
)
def test_a_constant_picture_stays_constant(level, rows, columns, height, width):
  array = np.full((rows, columns, 3), level, np.uint8)
  assert (image.resize(array, height, width) == level).all()
  assert (image.square(array, width) == level).all()
  assert (image.fit(array, width)[0] == level).all()


@hypothesis.given(PICTURES, SIDES, SIDES)
def test_resizing_treats_rows_and_columns_alike(array, height, width):
  turned = image.resize(array.swapaxes(0, 1), width, height).swapaxes(0, 1)
  np.testing.assert_array_equal(image.resize(array, height, width), turned)


@hypothesis.given(PICTURES, SIDES)
def test_a_square_is_cut_from_the_centre(array, size):
  height, width = array.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  framed = np.pad(array, [(7, 7), (7, 7)] + [(0, 0)] * (array.ndim - 2))
  centre = framed[7 + top : 7 + top + side, 7 + left : 7 + left + side]
  np.testing.assert_array_equal(
    image.square(array, size), image.resize(centre, size, size)
  )


@hypothesis.given(PICTURES, SIDES)
def test_fitting_and_cropping_give_back_the_whole_picture(array, size):
  fitted, box = image.fit(array, size)
  content = image.crop(fitted, box)
  assert fitted.shape == (size, size, *array.shape[2:])
  assert max(content.shape[:2]) == size
  assert content.shape[:2] == box[2:]
  np.testing.assert_array_equal(content, image.resize(array, *box[2:]))
  for place, length in zip(box[:2], box[2:], strict=True):
    assert place == (size - length) // 2


@hypothesis.given(PICTURES, st.integers(1, 24), st.integers(2, 5))
def test_a_picture_fitted_again_and_larger_is_in_the_same_place(
  array, side, times
):
  fitted, box = image.fit(array, side)
  large = image.refit(array, side * times, box, side)
  assert large.shape == (side * times, side * times, *array.shape[2:])
  small = image.crop(image.resize(large, side, side), box).astype(int)
  assert np.abs(small - image.crop(fitted, box)).max() <= 1


def test_a_fitted_picture_is_mirrored_beyond_its_edges():
  array = np.arange(4 * 12, dtype=np.uint8).reshape(4, 12)
  fitted, (top, _, height, _) = image.fit(array, 12)
  assert (top, height) == (4, 4)
  np.testing.assert_array_equal(fitted[3], array[1])
  np.testing.assert_array_equal(fitted[1], array[3])
  np.testing.assert_array_equal(fitted[0], array[2])  # Mirrored twice.
  np.testing.assert_array_equal(fitted[8], array[2])


@pytest.mark.parametrize('shape', [(1, 5000, 3), (5000, 1, 3), (1, 1, 3)])
def test_a_line_of_pixels_fits_into_a_square(shape):
  array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
  fitted, box = image.fit(array, 64)
  assert fitted.shape == (64, 64, 3)
  assert box[2:] == tuple(64 if n == max(shape[:2]) else 1 for n in shape[:2])
  assert image.square(array, 64).shape == (64, 64, 3)


@pytest.mark.parametrize(
  'array',
  [
    np.zeros((4, 4, 3), np.float32),
    np.zeros((4, 4), np.uint16),
    np.zeros((0, 4, 3), np.uint8),
    np.zeros(4, np.uint8),
  ],
)
def test_resizing_what_is_not_a_uint8_picture_is_a_value_error(array):
  with pytest.raises(ValueError, match='expected a uint8 picture'):
    image.resize(array, 2, 2)


def test_resizing_to_nothing_is_a_value_error():
  with pytest.raises(ValueError, match='cannot resize to 0x5'):
    image.resize(np.zeros((4, 4), np.uint8), 5, 0)


@pytest.mark.parametrize('size', [64, 256])
@pytest.mark.parametrize('gray', [False, True])
def test_joining_keeps_the_light_of_a_photo(photo, size, gray):
  pixels = gray_of_same_light(photo) if gray else photo
  joined = image.join(pixels, long_side(photo, size))
  light = lab(np.broadcast_to(pixels, photo.shape))[..., 0]
  difference = np.abs(lab(joined)[..., 0] - light)
  assert difference.mean() < 0.25
  assert difference.max() < 1.5


@hypothesis.given(st.integers(0, 2**32 - 1), st.tuples(*[SIDES] * 4))
def test_joining_keeps_the_light_whatever_the_colours(seed, sides):
  height, width, rows, columns = sides
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (height, width, 1), dtype=np.uint8)
  color = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
  joined = image.join(pixels, color)
  assert joined.shape == (height, width, 3)
  light = lab(np.repeat(pixels, 3, axis=2))[..., 0]
  difference = np.abs(lab(joined)[..., 0] - light)
  assert difference.max() < 1.5


@pytest.mark.parametrize('size', [64, 256])
def test_joining_finds_colours_better_than_interpolation(photo, size):
  color = long_side(photo, size)
  truth = lab(photo)[..., 1:]
  small = lab(color)[..., 1:].astype(np.float32)
  bilinear = cv2.resize(small, photo.shape[1::-1])
  joined = lab(image.join(photo, color))[..., 1:]
  error, baseline = (
    np.linalg.norm(ab - truth, axis=-1).mean() for ab in (joined, bilinear)
  )
  assert error < 0.95 * baseline


def test_colour_edges_follow_the_edges_of_the_photo():
  truth = np.empty((128, 128, 3), np.uint8)
  truth[:, :61], truth[:, 61:] = (150, 60, 50), (120, 170, 220)
  color = image.resize(truth, 16, 16)
  joined = image.join(gray_of_same_light(truth), color)
  error = np.linalg.norm(lab(joined) - lab(truth), axis=-1)[64]
  small = lab(color)[..., 1:].astype(np.float32)
  bilinear = cv2.resize(small, (128, 128))[64]
  blurred = np.linalg.norm(bilinear - lab(truth)[64, :, 1:], axis=-1)
  assert error.mean() < 0.4 * blurred.mean()


def test_texture_of_the_photo_does_not_enter_a_flat_colour():
  rng = np.random.default_rng(0)
  pixels = rng.integers(110, 150, (200, 300, 1), dtype=np.uint8)
  color = np.full((43, 64, 3), (140, 120, 100), np.uint8)
  chroma = lab(image.join(pixels, color))[..., 1:] - lab(color)[0, 0, 1:]
  assert np.abs(chroma).max() < 1  # What rounding to 8 bit does.


def test_texture_does_not_enter_colours_that_do_not_follow_the_light():
  rng = np.random.default_rng(0)
  pixels = rng.integers(60, 200, (256, 256, 1), dtype=np.uint8)
  ab = cv2.GaussianBlur(rng.normal(0, 1, (64, 64, 2)), (0, 0), 1.5)
  colors = np.concatenate([np.full((64, 64, 1), 60), ab * 15 / ab.std()], -1)
  color = np.rint(255 * skimage.color.lab2rgb(colors)).astype(np.uint8)
  joined = lab(image.join(pixels, color))[..., 1:]
  smooth = cv2.resize(
    lab(color)[..., 1:], (256, 256), interpolation=cv2.INTER_CUBIC
  )
  assert np.linalg.norm(joined - smooth, axis=-1).mean() < 1.5


def test_joined_colours_are_no_stronger_than_those_of_the_colouring():
  truth = np.empty((256, 256, 3), np.uint8)
  truth[:, :131], truth[:, 131:] = (150, 70, 60), (110, 130, 170)
  color = image.resize(truth, 32, 32)
  pixels = gray_of_same_light(truth) * np.uint16(257)
  pixels[:, ::9], pixels[::7] = 200 * 257, 90 * 257  # Lines of another light.
  ab = lab(color)[..., 1:]
  low, high = ab.min(axis=(0, 1)), ab.max(axis=(0, 1))
  joined = lab(image.join(pixels, color))[..., 1:]
  beyond = np.maximum(low - joined, joined - high) / (high - low)
  assert beyond.max() < 0.1  # Bicubic interpolation overshoots a little.


@pytest.mark.parametrize('code', [(255, 0, 0), (0, 60, 255), (10, 200, 30)])
def test_colours_out_of_reach_become_paler_but_keep_their_hue(code):
  levels = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32, 1)
  color = np.full((32, 32, 3), code, np.uint8)
  a, b = np.moveaxis(lab(image.join(levels, color))[..., 1:], -1, 0)
  a_full, b_full = lab(color)[0, 0, 1:]
  full = np.hypot(a_full, b_full)
  along, across = (a * a_full + b * b_full) / full, a * b_full - b * a_full
  assert np.abs(across / full).max() < 0.2
  assert along.min() > -0.2 and along.max() < full + 0.2
  # As much colour as fits: some of every hue at middle light, none at the ends.
  assert along[16].min() > 0.3 * full and along[0, 0] < 0.2


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_a_gray_colouring_gives_back_the_gray_photo(dtype):
  top = np.iinfo(dtype).max
  levels = np.linspace(0, top, 4096).astype(dtype).reshape(64, 64, 1)
  color = np.random.default_rng(0).integers(0, 256, (9, 7, 1), dtype=np.uint8)
  joined = image.join(levels, np.repeat(color, 3, axis=2))
  # Exact in 8 bit; float32 is good for 16.
  off = np.abs(joined.astype(int) - levels).max()
  assert off <= (0 if dtype == np.uint8 else 2)


def test_joining_sixteen_bit_agrees_with_eight():
  photo = skimage.data.chelsea()
  color = long_side(photo, 64)
  deep = image.join(photo * np.uint16(257), color)
  assert deep.dtype == np.uint16
  difference = deep / 257 - image.join(photo, color)
  assert np.abs(difference).max() <= 0.51


def test_joining_in_bands_leaves_no_seams(monkeypatch):
  photo = skimage.data.coffee()
  color = long_side(photo, 64)
  whole = image.join(photo, color)
  monkeypatch.setattr(image, '_BAND', 7 * photo.shape[1])
  np.testing.assert_array_equal(image.join(photo, color), whole)


@pytest.mark.parametrize('shape', [(1, 1), (1, 70000), (3000, 1), (5, 9)])
@pytest.mark.parametrize('channels', [1, 3])
def test_a_photo_smaller_than_its_colouring_is_joined(shape, channels):
  rng = np.random.default_rng(0)
  size = (*shape, channels)
  pixels = rng.integers(90, 160, size, dtype=np.uint8)
  color = np.full((33, 256, 3), (150, 120, 110), np.uint8)
  joined = image.join(pixels, color)
  assert joined.shape == (*shape, 3)
  chroma = lab(joined)[..., 1:] - lab(color)[0, 0, 1:]
  assert np.abs(chroma).max() < 1


def test_a_contact_sheet_holds_every_picture_in_its_cell():
  rng = np.random.default_rng(0)
  shapes = [(20, 30, 3), (10, 30, 1), (20, 10, 3)]
  images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
  sheet = image.contact_sheet(images, columns=2, gap=5, background=200)
  assert sheet.shape == (5 + 2 * (20 + 5), 5 + 2 * (30 + 5), 3)
  np.testing.assert_array_equal(sheet[5:25, 5:35], images[0])
  np.testing.assert_array_equal(
    sheet[10:20, 40:70], np.repeat(images[1], 3, axis=2)
  )
  np.testing.assert_array_equal(sheet[30:50, 15:25], images[2])
  assert (sheet[30:50, 40:70] == 200).all()


@pytest.mark.parametrize(('background', 'ink'), [(255, 0), (30, 255)])
def test_labels_stand_below_their_pictures(background, ink):
  flat = np.full((40, 60, 3), background, np.uint8)
  bare = image.contact_sheet([flat] * 2, 2, background=background)
  labels = ['a', 'a very long label that must be cut']
  sheet = image.contact_sheet([flat] * 2, 2, labels, background=background)
  assert (bare == background).all()
  assert sheet.shape[0] > bare.shape[0]
  assert (sheet[:48] == background).all()
  assert (sheet[48:, :68] == ink).any() and (sheet[48:, 76:] == ink).any()
  assert (sheet[:, 68:76] == background).all()  # Labels keep to their cells.


def test_a_contact_sheet_shrinks_large_pictures_only():
  large = np.zeros((10, 4096, 3), np.uint8)
  small = np.zeros((3, 4, 3), np.uint8)
  sheet = image.contact_sheet([large, small], 1, gap=0)
  assert sheet.shape == (2 * 3, 1024, 3)


def test_a_contact_sheet_of_nothing_is_a_value_error():
  with pytest.raises(ValueError, match='needs images'):
    image.contact_sheet([], 2)
  with pytest.raises(ValueError, match='1 labels for 2 images'):
    image.contact_sheet([np.zeros((2, 2, 3), np.uint8)] * 2, 2, ['one'])
