"""A photo through the three stages, and what comes back."""

import io
import json
import shutil

import jax
import numpy as np
from PIL import Image
import pytest
import skimage.color
import skimage.data

from coltran_jax import (
  checkpoint,
  color,
  convert,
  hints,
  image,
  models,
  photo,
  pipeline,
)

PHOTOS = ('chelsea_gray', 'coffee_color')
GRAY = skimage.data.coffee()[..., 1].copy()  # 400x600
COLOR = skimage.data.coffee()


@pytest.fixture(scope='module')
def colorizer(weights):
  return pipeline.Colorizer.from_pretrained(weights)


@pytest.fixture
def damaged(weights, tmp_path):
  """A copy of the weights to do harm to."""
  return shutil.copytree(weights, tmp_path / 'damaged')


def edit(folder, change):
  """Changes a stage's config.json by a function of the dict."""
  path = folder / 'config.json'
  config = json.loads(path.read_text())
  change(config)
  path.write_text(json.dumps(config))


def encoded(array, format, **options):
  file = io.BytesIO()
  Image.fromarray(array).save(file, format, **options)
  return file.getvalue()


def lab(array):
  """Lab of uint8 or uint16 RGB or gray."""
  if array.ndim == 2:
    array = np.repeat(array[..., None], 3, axis=-1)
  return skimage.color.rgb2lab(array)


@pytest.mark.parametrize('name', PHOTOS)
def test_all_stages_equal_the_reference_in_every_pixel(
  name, colorizer, fixtures, monkeypatch
):
  seen = []
  run = colorizer.run

  def spy(*args):
    seen.append((args, run(*args)))
    return seen[-1][1]

  monkeypatch.setattr(colorizer, 'run', spy)
  folder = fixtures / 'pipeline'
  path = folder / 'photos' / f'{name}.png'
  final = colorizer(path, temperature=0, size=256, sampler='reference')
  (((gray64, gray256, *_), stages),) = seen

  def assert_equals(actual, part):
    expected = np.asarray(Image.open(folder / 'expected' / f'{name}.{part}'))
    np.testing.assert_array_equal(actual, expected, part)

  assert_equals(gray64[0], 'gray64.png')
  assert_equals(gray256[0], 'gray256.png')
  assert_equals(stages.coarse[0], 'stage1.png')
  assert_equals(stages.low[0], 'stage2.png')
  assert_equals(stages.full[0], 'final.png')
  assert_equals(np.asarray(final[0]), 'final.png')


@pytest.mark.parametrize('name', PHOTOS)
def test_the_parallel_head_equals_the_reference(name, weights, fixtures):
  config, params = checkpoint.load(weights / 'colorizer')
  model = models.build('colorizer', config['model'])
  folder = fixtures / 'pipeline' / 'expected'
  gray = np.asarray(Image.open(folder / f'{name}.gray64.png'))[None]
  z = model.apply({'params': params}, gray, method='encode')
  logits = model.apply({'params': params}, z, method='parallel')
  np.testing.assert_array_equal(
    color.from_codes(np.asarray(logits)[0].argmax(axis=-1)),
    np.asarray(Image.open(folder / f'{name}.parallel.png')),
  )


@pytest.mark.parametrize(
  ('array', 'fast'),
  [
    (GRAY, False),
    (GRAY, True),
    (COLOR, False),
    (GRAY[100:190], False),
    (GRAY[:, 250:330], True),
  ],
  ids=['gray', 'gray fast', 'color', 'flat strip', 'tall strip fast'],
)
def test_a_result_has_the_luminance_of_the_photo_and_color_everywhere(
  array, fast, colorizer
):
  (result,) = colorizer(array, fast=fast)
  assert result.shape == (*array.shape[:2], 3)
  assert result.dtype == np.uint8
  before, after = lab(array), lab(result)
  assert np.abs(after[..., 0] - before[..., 0]).mean() < 0.3
  chroma = np.hypot(after[..., 1], after[..., 2])
  for rows in np.array_split(chroma, 5):
    for part in np.array_split(rows, 5, axis=1):
      assert part.mean() > 0.5


def test_sixteen_bit_luminance_is_kept_to_more_than_eight_bits(colorizer):
  ramp = np.linspace(0, 65535, 200 * 300).reshape(200, 300)
  deep = ramp.astype(np.uint16)
  (result,) = colorizer(deep, fast=True)
  assert result.dtype == np.uint16
  difference = lab(result)[..., 0] - lab(deep)[..., 0]
  assert np.abs(difference).mean() < 0.01


def test_a_path_gives_pil_images(colorizer, tmp_path):
  path = tmp_path / 'a.png'
  Image.fromarray(GRAY).save(path)
  for source in (path, str(path)):
    (result,) = colorizer(source, fast=True)
    assert isinstance(result, Image.Image)
    assert (result.mode, result.size) == ('RGB', (600, 400))


def test_a_pil_image_gives_pil_images(colorizer):
  (result,) = colorizer(Image.fromarray(GRAY), fast=True)
  assert isinstance(result, Image.Image)


@pytest.mark.parametrize(
  ('format', 'kind'),
  [
    ('JPEG', bytes),
    ('PNG', bytearray),
    ('WEBP', memoryview),
    ('TIFF', bytes),
  ],
)
def test_bytes_give_bytes_of_the_same_format(format, kind, colorizer):
  (result,) = colorizer(kind(encoded(GRAY, format)), fast=True)
  assert isinstance(result, bytes)
  opened = Image.open(io.BytesIO(result))
  assert (opened.format, opened.size) == (format, (600, 400))


def test_the_kinds_of_source_give_the_same_pixels(colorizer, tmp_path):
  path = tmp_path / 'a.png'
  Image.fromarray(GRAY).save(path)
  (of_array,) = colorizer(GRAY, fast=True)
  (of_bytes,) = colorizer(path.read_bytes(), fast=True)
  for picture in (
    colorizer(path, fast=True)[0],
    colorizer(Image.fromarray(GRAY), fast=True)[0],
    Image.open(io.BytesIO(of_bytes)),
  ):
    np.testing.assert_array_equal(np.asarray(picture), of_array)


def test_a_deep_file_gives_rounded_eight_bit_pil_images(colorizer, tmp_path):
  deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
  path = tmp_path / 'deep.png'
  Image.fromarray(deep).save(path)
  (picture,) = colorizer(path, fast=True)
  (array,) = colorizer(deep, fast=True)
  np.testing.assert_array_equal(
    np.asarray(picture), np.rint(array / 257).astype(np.uint8)
  )


@pytest.mark.parametrize('fast', [False, True])
def test_a_sample_depends_on_seed_and_index_only(fast, weights, colorizer):
  four = colorizer(GRAY, num_samples=4, seed=3, fast=fast)
  colorizer(COLOR, seed=9, fast=fast)
  fresh = pipeline.Colorizer.from_pretrained(weights)
  (one,) = fresh(GRAY, num_samples=1, seed=3, fast=fast)
  np.testing.assert_array_equal(one, four[0])
  if fast:
    three = fresh(GRAY, num_samples=3, seed=3, fast=True)
    np.testing.assert_array_equal(three[2], four[2])
  for i in range(4):
    for j in range(i):
      assert (four[i] != four[j]).any()
  (other,) = colorizer(GRAY, seed=4, fast=fast)
  assert (other != four[0]).any()


def test_temperature_0_makes_all_samples_and_seeds_equal(colorizer):
  four = colorizer(GRAY, num_samples=4, temperature=0, fast=True)
  (other,) = colorizer(GRAY, seed=8, temperature=0, fast=True)
  for one in four:
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('shape', [(1, 1), (1, 5000), (5000, 1), (2, 3)])
@pytest.mark.parametrize('size', ['original', 256])
def test_photos_of_any_shape_work(shape, size, colorizer):
  array = np.full(shape, 128, np.uint8)
  (result,) = colorizer(array, size=size)
  sides = shape if size == 'original' else (256, 256)
  assert result.shape == (*sides, 3)


def test_photos_are_drawn_as_the_weights_ask_for(weights, colorizer, tmp_path):
  folder = tmp_path / 'weights'
  shutil.copytree(weights, folder)
  path = folder / 'colorizer' / 'config.json'
  config = json.loads(path.read_text())
  decoding = {
    'temperature': 0.7,
    'min_p': 0.3,
    'encoder_weight': 0.5,
    'vividness': 2,
    'mean_of': 2,
  }
  path.write_text(json.dumps(config | {'decoding': decoding}))
  calm = pipeline.Colorizer.from_pretrained(folder, fast=True)
  for options in ({}, *({name: int(name == 'mean_of')} for name in decoding)):
    (made,) = calm(GRAY, fast=True, **options)
    (expected,) = colorizer(GRAY, fast=True, **decoding | options)
    np.testing.assert_array_equal(made, expected)
  (cold,) = calm(GRAY, fast=True)
  (warm,) = colorizer(GRAY, fast=True)
  assert (cold != warm).any()


def test_a_mean_is_of_the_colors_of_its_draws_before_stage_three(colorizer):
  read = photo.read(GRAY)
  options = {'fast': True, 'uncertainty': True}
  draws = colorizer.draw(read, num_samples=6, **options)
  turned = colorizer.draw(
    photo.read(GRAY[:, ::-1].copy()), num_samples=6, **options
  )
  means = colorizer.draw(read, num_samples=2, mean_of=3, **options)
  for i, mean in enumerate(means):
    plain, other, last = draws[3 * i], turned[3 * i + 1], draws[3 * i + 2]
    bits = [one.bits_per_dim for one in (plain, other, last)]
    assert mean.bits_per_dim == pytest.approx(np.mean(bits), rel=1e-6)
    entropy = plain.entropy, other.entropy[:, ::-1], last.entropy
    np.testing.assert_allclose(mean.entropy, np.mean(entropy, 0), rtol=1e-6)
    # Joined to the photo's light, which may clip; else to the rounding.
    pixels = plain.pixels, other.pixels[:, ::-1], last.pixels
    assert np.median(np.abs(mean.pixels - np.mean(pixels, 0))) < 1
  assert (means[0].pixels != means[1].pixels).any()
  full = colorizer.draw(read, mean_of=3)[0]
  assert np.ptp(full.pixels.astype(int), axis=-1).max() > 0


@pytest.mark.parametrize(
  'options',
  [
    {'size': '256'},
    {'size': 128},
    {'num_samples': 0},
    {'seed': -1},
    {'seed': 1 << 32},
    {'temperature': -1},
    {'temperature': float('nan')},
    {'min_p': 1.1},
    {'encoder_weight': -1},
    {'vividness': float('nan')},
    {'mean_of': 0},
    {'mean_of': 65},
    {'mean_of': 1.5},
    {'sampler': 'best'},
    {'fast': True, 'size': 256},
    {'guide': hints.Guide(((0, 0, (0, 0, 0)),)), 'size': 256},
  ],
  ids=str,
)
def test_options_that_make_no_sense_are_value_errors(options, colorizer):
  with pytest.raises(ValueError, match=r'must be|need'):
    colorizer(GRAY, **options)


def test_a_broken_photo_is_a_photo_error(colorizer):
  with pytest.raises(photo.PhotoError):
    colorizer(b'no picture')


@pytest.mark.parametrize('fast', [True, False])
def test_stage_one_may_see_finer_gray_than_its_colors(fast):
  small = finer_gray_colorizer()
  guide = hints.Guide(((300, 200, (200, 30, 30)),))
  (coloring,) = small.draw(photo.read(COLOR), fast=fast, guide=guide)
  assert coloring.pixels.shape == COLOR.shape
  difference = lab(coloring.pixels)[..., 0] - lab(COLOR)[..., 0]
  assert np.abs(difference).mean() < 0.5
  if not fast:  # A square of other sides than stage three's is joined, too.
    assert small(COLOR, size=256)[0].shape == (256, 256, 3)


@pytest.mark.parametrize(
  'shape', [(40, 60), (60, 40), (33, 50), (31, 97), (64, 64)]
)
def test_finer_gray_is_seen_where_its_colors_go(shape):
  pixels = np.random.default_rng(0).integers(
    0, 255, (*shape, 1), dtype=np.uint8
  )
  fine, coarse, box = finer_gray_colorizer().frame(pixels, fast=True)
  seen = image.resize(fine.astype(np.uint8), *coarse.shape).astype(int)
  assert np.abs(image.crop(seen - coarse, box)).max() <= 1


def finer_gray_colorizer():
  sizes = {'hidden_size': 8, 'mlp_size': 8}
  made = {
    'colorizer': {'resolution': (8, 8), 'gray_patch': 4, **sizes},
    'color_upsampler': {'resolution': (8, 8), **sizes},
    'spatial_upsampler': {'resolution': (24, 24), **sizes},
  }
  made['colorizer']['encoder_mlp_size'] = 8
  key = jax.random.key(0)
  stages = {
    stage: (model, models.init(model, key)['params'])
    for stage, model in (
      (stage, models.build(stage, made[stage])) for stage in made
    )
  }
  return pipeline.Colorizer(stages)


def test_fast_needs_no_spatial_upsampler(damaged, colorizer):
  shutil.rmtree(damaged / 'spatial_upsampler')
  fast = pipeline.Colorizer.from_pretrained(damaged, fast=True)
  np.testing.assert_array_equal(
    fast(GRAY, fast=True)[0], colorizer(GRAY, fast=True)[0]
  )
  with pytest.raises(ValueError, match='only fast=True works'):
    fast(GRAY)


def failure(folder):
  with pytest.raises(checkpoint.CheckpointError) as caught:
    pipeline.Colorizer.from_pretrained(folder)
  message = str(caught.value)
  assert '\n' not in message
  return message


@pytest.mark.parametrize('stage', pipeline.STAGES)
def test_a_missing_stage_is_named(stage, damaged):
  shutil.rmtree(damaged / stage)
  assert str(damaged / stage) in failure(damaged)


def test_missing_weights_say_how_to_make_them(tmp_path):
  message = failure(tmp_path / 'nothing')
  assert 'nothing' in message
  assert 'coltran convert' in message


def test_a_shipped_name_is_found_but_not_at_the_end_of_a_path(
  weights, colorizer, monkeypatch, tmp_path
):
  monkeypatch.setattr(checkpoint, 'SHIPPED', weights.parent)
  monkeypatch.chdir(tmp_path)
  shipped = pipeline.Colorizer.from_pretrained(weights.name, fast=True)
  np.testing.assert_array_equal(
    shipped(GRAY, fast=True)[0], colorizer(GRAY, fast=True)[0]
  )
  assert weights.name in failure('another')
  failure(tmp_path / weights.name)


def test_an_unknown_model_key_is_named(damaged):
  folder = damaged / 'color_upsampler'
  edit(folder, lambda config: config['model'].update(num_wings=2))
  message = failure(damaged)
  assert str(folder / 'config.json') in message
  assert 'num_wings' in message


@pytest.mark.parametrize(
  'change',
  [
    {'num_heads': 0},
    {'num_heads': 'two'},
    {'hidden_size': None},
    {'resolution': [0, 0]},
    {'resolution': 64},
    {'dtype': 'float31'},
  ],
  ids=str,
)
def test_a_model_that_cannot_be_built_names_its_config(change, damaged):
  folder = damaged / 'spatial_upsampler'
  edit(folder, lambda config: config['model'].update(change))
  assert str(folder / 'config.json') in failure(damaged)


def test_a_wrong_shape_names_the_parameter_and_both_shapes(damaged):
  folder = damaged / 'color_upsampler'
  edit(folder, lambda config: config['model'].update(mlp_size=24))
  message = failure(damaged)
  assert str(folder) in message
  assert '16' in message
  assert '24' in message
  assert '/' in message.split('parameter ')[1].split(' has shape')[0]


def test_a_wrong_shape_is_told_before_an_array_is_read(damaged, monkeypatch):
  def restore(*_, **__):
    pytest.fail('an array was read, and it may have any size')

  monkeypatch.setattr(checkpoint.ocp.Checkpointer, 'restore', restore)
  edit(
    damaged / 'colorizer', lambda config: config['model'].update(mlp_size=24)
  )
  assert 'has shape' in failure(damaged)


def test_a_changed_fingerprint_is_told(damaged):
  folder = damaged / 'spatial_upsampler'
  edit(folder, lambda config: config.update(fingerprint='00000000'))
  message = failure(damaged)
  assert str(folder / 'config.json') in message
  assert '00000000' in message


def test_a_stage_under_a_wrong_name_is_told(damaged):
  edit(damaged / 'colorizer', lambda config: config.update(name='cnn'))
  message = failure(damaged)
  assert str(damaged / 'colorizer' / 'config.json') in message
  assert "'cnn'" in message
  assert "'colorizer'" in message


def test_stages_that_do_not_belong_together_are_refused(fixtures, tmp_path):
  small = fixtures / 'coltran/tf_checkpoints'
  large = fixtures / 'pipeline/tf_checkpoints'
  convert.convert(small / 'colorizer', tmp_path)
  convert.convert(large / 'color_upsampler', tmp_path)
  with pytest.raises(checkpoint.CheckpointError, match='belong together'):
    pipeline.Colorizer.from_pretrained(tmp_path, fast=True)
