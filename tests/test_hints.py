"""Hints color their object, masks keep the rest, and neither costs others."""

import dataclasses
import io

import jax
import numpy as np
from PIL import Image, ImageCms
import pytest

from coltran_jax import (
  cli,
  color,
  decoding_rule,
  hints,
  image,
  photo,
  pipeline,
  sampling,
  sheets,
)

HEIGHT, WIDTH = 96, 128
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
DISC = (ROWS - 48) ** 2 + (COLUMNS - 60) ** 2 < 30**2
PHOTO = np.where(DISC, 170, 90).astype(np.uint8)
RED = (220, 60, 40)
BOTTOM = (60, 74, RED)  # The disc's, so that most of it is drawn before.


@pytest.fixture(scope='module')
def colorizer(weights):
  return pipeline.Colorizer.from_pretrained(weights, fast=True)


@pytest.fixture(scope='module')
def cells():
  """(gray [64, 64], disc [64, 64]) as the colorizer gets the photo."""
  gray = image.fit(PHOTO, 64)[0].astype(int)
  return gray, image.fit(DISC.astype(np.uint8) * 255, 64)[0]


def drawn(colorizer, gray, prior):
  prior = None if prior is None else prior[None]
  key = jax.random.split(jax.random.key(3), 1)
  model, params = colorizer.stages['colorizer']
  return sampling.sample(model, params, gray[None], key, prior=prior)


def chroma(codes):
  return np.asarray(color.to_lab((color.from_codes(codes) + 16) / 255))[..., 1:]


def from_red(codes):
  """Distance in a*b* of codes from red as bright as the disc."""
  red = image.join(np.full((1, 1, 1), 170, np.uint8), np.uint8([[RED]]))
  wanted = np.asarray(color.to_lab(red / 255))[0, 0, 1:]
  return np.linalg.norm(chroma(codes) - wanted, axis=-1)


def test_a_hint_is_honoured_exactly_and_colors_its_object_only(
  colorizer, cells
):
  gray, disc = cells
  prior = hints.prior(hints.Guide((BOTTOM,)), PHOTO[..., None], 64, gray)
  plain = drawn(colorizer, gray, None).codes[0]
  hinted = drawn(colorizer, gray, prior).codes[0]
  cell = (8 + 74 // 2, 60 // 2)
  assert from_red(hinted[cell]) < 15
  assert abs(int(color.to_gray(color.from_codes(hinted[cell]) + 16)) - 170) < 16
  above = np.arange(64)[:, None] < cell[0]
  inside = (disc == 255) & above
  assert np.median(from_red(plain[inside])) > 60
  assert np.median(from_red(hinted[inside])) < 30
  outside = disc == 0
  assert np.abs(prior[outside]).max() == 0
  # What is drawn before the hint's reach begins is not touched at all.
  first = np.flatnonzero((prior != 0).any(axis=-1).ravel())[0]
  np.testing.assert_array_equal(plain.ravel()[:first], hinted.ravel()[:first])
  assert (
    abs(from_red(plain[outside]).mean() - from_red(hinted[outside]).mean()) < 5
  )


def test_any_colour_finds_a_code_of_the_photos_own_gray():
  random = np.random.RandomState(0)
  gray = random.randint(0, 255, (16, 16))
  points = tuple(
    (x, y, tuple(random.randint(0, 256, 3)))
    for x in range(16)
    for y in range(16)
  )
  prior = hints.prior(
    hints.Guide(points), gray.astype(np.uint8)[..., None], 16, gray
  )
  codes = prior.argmax(axis=-1)
  assert ((prior == 0).sum(axis=-1) == 1).all()
  low = np.asarray(color.from_codes(codes)).astype(int)
  assert (color.to_gray(low) <= gray + 2).all()
  assert (color.to_gray(low + 31) >= gray - 2).all()
  saturated = hints.Guide(((0, 0, (0, 0, 255)),))
  blue = hints.prior(
    saturated, np.uint8([[[40]]]), 1, np.array([[40]])
  ).argmax()
  assert color.codes_to_symbols(blue)[2] > max(color.codes_to_symbols(blue)[:2])


def test_a_hint_picture_says_what_points_say(cells):
  gray, _ = cells
  picture = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
  x, y = (2 * (n // 2) for n in BOTTOM[:2])
  picture[y : y + 2, x : x + 2] = (*RED, 255)
  pixels = PHOTO[..., None]
  np.testing.assert_array_equal(
    hints.prior(hints.Guide(picture=picture), pixels, 64, gray),
    hints.prior(hints.Guide((BOTTOM,)), pixels, 64, gray),
  )
  picture[..., 3] = 0
  with pytest.raises(hints.HintError, match='no colour'):
    hints.prior(hints.Guide(picture=picture), pixels, 64, gray)


def test_a_hint_at_the_edge_holds_for_its_mirror_image(cells):
  gray, _ = cells
  prior = hints.prior(hints.Guide(((9, 3, RED),)), PHOTO[..., None], 64, gray)
  fixed = np.argwhere((prior < -1e8).any(axis=-1))
  assert fixed.tolist() == [[7, 4], [9, 4]]  # The photo begins at row 8.


@pytest.mark.parametrize(
  ('guide', 'message'),
  [
    (hints.Guide(((WIDTH, 0, RED),)), 'outside of the photo, 128x96'),
    (hints.Guide(picture=np.zeros((2, 2, 4), np.uint8)), 'hint picture is'),
    (hints.Guide(mask=np.zeros((HEIGHT, WIDTH), np.uint8)), 'mask needs'),
    (hints.Guide(keep=np.dstack([PHOTO] * 3)), 'mask needs'),
    (
      hints.Guide(mask=DISC, keep=np.zeros((2, WIDTH, 3), np.uint8)),
      'kept coloring is',
    ),
    (
      hints.Guide(mask=DISC * 1.0, keep=np.dstack([PHOTO] * 3)),
      'mask is of float',
    ),
  ],
)
def test_guides_that_do_not_fit_are_refused(guide, message, colorizer):
  with pytest.raises(hints.HintError, match=message):
    colorizer.draw(photo.read(PHOTO), fast=True, guide=guide)


def test_a_coloring_of_8_bits_is_not_kept_in_a_photo_of_16(colorizer):
  guide = hints.Guide(mask=DISC, keep=np.dstack([PHOTO] * 3))
  deep = photo.read(PHOTO * np.uint16(257))
  with pytest.raises(hints.HintError, match='give one of 16'):
    colorizer.draw(deep, fast=True, guide=guide)


@pytest.mark.parametrize('way', ['command', 'bytes'])
@pytest.mark.parametrize('deep', [False, True])
def test_only_a_photo_of_16_bits_keeps_its_profile_beside_what_is_kept(
  deep, way, weights, colorizer, tmp_path
):
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
  pixels = PHOTO * np.uint16(257) if deep else PHOTO
  kept = np.dstack([pixels] * 3)
  source = dataclasses.replace(photo.read(kept), icc_profile=profile)
  data = photo.encode(kept, source, 'PNG')
  if way == 'bytes':
    guide = hints.Guide(mask=DISC, keep=kept)
    (made,) = colorizer(data, fast=True, guide=guide)
  else:
    for name, some in (('photo', data), ('keep', data)):
      (tmp_path / f'{name}.png').write_bytes(some)
    Image.fromarray(DISC.astype(np.uint8) * 255).save(tmp_path / 'mask.png')
    files = ['photo.png', '--mask', 'mask.png', '--keep', 'keep.png']
    arguments = [f if f[0] == '-' else str(tmp_path / f) for f in files]
    options = [
      '--fast',
      '--weights',
      str(weights),
      '-o',
      str(tmp_path / 'o.png'),
    ]
    assert cli.main(['colorize', *arguments, *options]) == 0
    made = (tmp_path / 'o.png').read_bytes()
  assert bool(Image.open(io.BytesIO(made)).info.get('icc_profile')) == deep


def test_a_mask_may_be_of_truth_values(colorizer):
  keep = np.random.RandomState(1).randint(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
  read = photo.read(PHOTO)
  drawn = [
    colorizer.draw(read, fast=True, guide=hints.Guide(mask=mask, keep=keep))
    for mask in (DISC, np.uint8(DISC) * 255)
  ]
  np.testing.assert_array_equal(drawn[0][0].pixels, drawn[1][0].pixels)


@pytest.mark.parametrize('deep', [False, True])
def test_outside_of_the_mask_the_written_file_keeps_every_bit(
  deep, weights, tmp_path, caplog
):
  kept = np.random.RandomState(1).randint(0, 256, (HEIGHT, WIDTH, 3))
  kept = np.uint8(kept)
  if deep:
    kept = kept * np.uint16(257) + np.uint16(1)
  keep, out = tmp_path / 'keep.png', tmp_path / 'out.png'
  keep.write_bytes(photo.encode(kept, photo.read(kept), 'PNG'))
  Image.fromarray(PHOTO).save(tmp_path / 'photo.png')
  Image.fromarray(DISC.astype(np.uint8) * 255).save(tmp_path / 'mask.png')
  files = ['photo.png', '--mask', 'mask.png', '--keep', 'keep.png']
  arguments = [f if f[0] == '-' else str(tmp_path / f) for f in files]
  options = ['--fast', '--weights', str(weights), '-o', str(out)]
  assert cli.main(['colorize', *arguments, *options]) == 0
  made = photo.read(out).pixels
  assert made.dtype == kept.dtype
  np.testing.assert_array_equal(made[~DISC], kept[~DISC])
  assert (made[DISC] != kept[DISC]).any(axis=-1).mean() > 0.9


def test_what_is_kept_is_clamped_where_the_mask_touches_nothing(cells):
  gray, disc = cells
  coloring = np.random.RandomState(1).randint(0, 256, (HEIGHT, WIDTH, 3))
  guide = hints.Guide(
    mask=DISC.astype(np.uint8) * 255, keep=coloring.astype(np.uint8)
  )
  prior = hints.prior(guide, PHOTO[..., None], 64, gray)
  fixed = (prior < -1e8).any(axis=-1)
  np.testing.assert_array_equal(fixed, disc == 0)
  codes = color.to_codes(image.fit(coloring.astype(np.uint8), 64)[0])
  np.testing.assert_array_equal(prior.argmax(axis=-1)[fixed], codes[fixed])


def test_uncertainty_is_the_entropy_and_none_where_nothing_was_free(colorizer):
  guide = hints.Guide(mask=np.uint8(DISC) * 255, keep=np.dstack([PHOTO] * 3))
  (kept,) = colorizer.draw(
    photo.read(PHOTO), fast=True, uncertainty=True, guide=guide
  )
  assert kept.entropy.shape == (48, 64)
  disc = image.resize(np.uint8(DISC) * 255, 48, 64)
  np.testing.assert_array_equal(kept.entropy > 0, disc > 0)
  bits = kept.entropy[disc > 0]
  assert 6 < bits.min() < bits.max() < 9  # Random weights: nearly even odds.
  shown = sheets.uncertainty(kept.entropy, PHOTO.shape)
  assert shown.shape == (*PHOTO.shape, 3)
  assert shown[0, 0].max() == 3 or shown[0, 0].max() == 4  # Inferno's black.
  assert shown[48, 60].min() > 150


def test_the_command_writes_hints_and_uncertainty(weights, tmp_path, caplog):
  source = tmp_path / 'a.png'
  Image.fromarray(PHOTO).save(source)
  options = ['--fast', '--weights', str(weights), '--uncertainty']
  caplog.set_level('INFO')
  x, y, _ = BOTTOM
  assert (
    cli.main(['colorize', str(source), *options, '--hint', f'{x},{y},#dc3c28'])
    == 0
  )
  shown = np.asarray(Image.open(tmp_path / 'a-colorized-uncertainty.png'))
  assert shown.shape == (HEIGHT, WIDTH, 3)
  assert 'bits a cell' in caplog.text
  assert (
    cli.main(['colorize', str(source), *options, '--hint', '999,0,#000000'])
    == 1
  )


def test_uncertainty_beside_a_hint_does_not_depend_on_the_encoders_weight(
  colorizer,
):
  gray = pipeline.gray(image.fit(PHOTO[..., None], 64)[0])
  prior = hints.prior(hints.Guide((BOTTOM,)), PHOTO[..., None], 64, gray)
  heavy = decoding_rule.DEFAULTS | {'encoder_weight': 2.0, 'temperature': 0.0}
  made = colorizer.run(
    gray[None], None, pipeline.sample_keys(0, 1), heavy, 'exact', prior, True
  )
  model, params = colorizer.stages['colorizer']
  sample = sampling.sample(
    model,
    params,
    gray[None],
    pipeline.sample_keys(0, 1),
    temperature=0.0,
    encoder_weight=2.0,
    prior=3 * prior[None],
    keep_logits=True,
  )
  expected = sampling.entropy(np.asarray(sample.logits) + prior)
  np.testing.assert_allclose(made.entropy, expected, atol=1e-4)
