"""Gray, codes and Lab against the reference's recorded numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coltran_jax import color


@pytest.fixture(scope='module')
def codes(fixtures):
  with np.load(fixtures / 'coltran/color_codes.npz') as arrays:
    return dict(arrays)


@pytest.mark.parametrize('call', [lambda f: f, jax.jit], ids=['eager', 'jit'])
def test_gray_equals_the_references_int32_rule_for_every_recorded_color(
  codes, call
):
  gray = call(color.to_gray)(codes['rgb'])
  np.testing.assert_array_equal(gray, codes['gray_int32'][..., 0])
  assert (codes['gray_int32'] != codes['gray_uint8']).any()


def test_gray_of_all_colors_stays_a_gray_level():
  levels = jnp.arange(256)
  rgb = jnp.stack(jnp.meshgrid(levels, levels, levels), axis=-1)
  gray = color.to_gray(rgb)
  assert (int(gray.min()), int(gray.max())) == (0, 254)


def test_numpy_pictures_stay_numpy_and_get_the_bits_of_a_device():
  rgb = np.random.default_rng(0).integers(0, 256, (4096, 3), np.uint8)
  for function in (color.to_gray, color.to_symbols, color.to_codes):
    made = function(rgb)
    assert type(made) is np.ndarray and made.dtype == np.int32
    np.testing.assert_array_equal(made, function(jnp.asarray(rgb)))
  codes = np.arange(color.NUM_CODES)
  made = color.from_codes(codes)
  assert type(made) is np.ndarray and made.dtype == np.uint8
  np.testing.assert_array_equal(made, color.from_codes(jnp.asarray(codes)))


def test_symbols_and_codes_equal_the_recorded_ones(codes):
  np.testing.assert_array_equal(color.to_symbols(codes['rgb']), codes['bits3'])
  np.testing.assert_array_equal(color.to_codes(codes['rgb']), codes['bins'])


def test_colors_of_codes_equal_the_recorded_ones(codes):
  np.testing.assert_array_equal(
    color.from_codes(jnp.arange(color.NUM_CODES)), codes['bins_to_rgb']
  )


def test_every_code_survives_the_way_to_a_color_and_back():
  codes = jnp.arange(color.NUM_CODES)
  np.testing.assert_array_equal(color.to_codes(color.from_codes(codes)), codes)


def test_lab_equals_scikit_images():
  skimage_color = pytest.importorskip('skimage.color')
  rgb = np.random.RandomState(0).rand(64, 64, 3).astype(np.float32)
  np.testing.assert_allclose(
    color.to_lab(rgb), skimage_color.rgb2lab(rgb), atol=2e-3
  )


def test_lab_of_a_color_leads_back_to_it():
  rgb = np.random.RandomState(1).rand(64, 64, 3).astype(np.float32)
  np.testing.assert_allclose(color.from_lab(color.to_lab(rgb)), rgb, atol=2e-5)
