"""Metrics of pictures against scikit-image, and what must hold of them."""

import numpy as np
import pytest
from skimage import color as skimage_color
from skimage import metrics as skimage_metrics

from coltran_jax.evaluation import image_metrics


@pytest.fixture(scope='module')
def pair():
  """Four pictures and noisy copies, uint8 [4, 40, 32, 3]: dark to bright."""
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 256, (4, 5, 4, 3)).repeat(8, 1).repeat(8, 2)
  truth[3] = 255 - truth[3] // 40
  noise = rng.integers(-30, 31, truth.shape)
  made = np.clip(truth + noise, 0, 255)
  return made.astype(np.uint8), truth.astype(np.uint8)


def each(function, pair):
  return [function(a, b) for a, b in zip(*pair, strict=True)]


def test_psnr_equals_scikit_image_s(pair):
  expected = each(
    lambda a, b: skimage_metrics.peak_signal_noise_ratio(b, a), pair
  )
  np.testing.assert_allclose(image_metrics.psnr(*pair), expected, rtol=1e-5)


def test_ssim_equals_scikit_image_s(pair):
  def ssim(a, b):
    return skimage_metrics.structural_similarity(
      *(a, b),
      channel_axis=-1,
      gaussian_weights=True,
      sigma=1.5,
      use_sample_covariance=False,
    )

  expected = each(ssim, pair)
  np.testing.assert_allclose(image_metrics.ssim(*pair), expected, atol=1e-5)


def test_ciede2000_equals_scikit_image_s(pair):
  def difference(a, b):
    labs = (skimage_color.rgb2lab(x) for x in (a, b))
    return skimage_color.deltaE_ciede2000(*labs).mean()

  expected = each(difference, pair)
  np.testing.assert_allclose(
    image_metrics.ciede2000(*pair), expected, atol=2e-3
  )


def test_ciede2000_of_every_pair_of_strong_colors_equals_scikit_image_s():
  levels = np.array([0, 60, 128, 255], np.uint8)
  colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
  made, truth = (
    x.reshape(-1, 1, 1, 3)
    for x in np.broadcast_arrays(colors[:, None], colors[None])
  )
  labs = (skimage_color.rgb2lab(x) for x in (made, truth))
  expected = skimage_color.deltaE_ciede2000(*labs)[:, 0, 0]
  np.testing.assert_allclose(
    image_metrics.ciede2000(made, truth), expected, atol=0.02
  )


def test_colorfulness_follows_its_definition(pair):
  expected = []
  for picture in pair[0].astype(float):
    r, g, b = picture.reshape(-1, 3).T
    rg, yb = r - g, (r + g) / 2 - b
    spread = np.hypot(rg.std(), yb.std())
    expected.append(spread + 0.3 * np.hypot(rg.mean(), yb.mean()))
  np.testing.assert_allclose(
    image_metrics.colorfulness(pair[0]), expected, rtol=1e-5
  )


def test_equal_pictures_are_no_distance_apart(pair):
  _, truth = pair
  assert np.isinf(image_metrics.psnr(truth, truth)).all()
  np.testing.assert_allclose(image_metrics.ssim(truth, truth), 1, atol=1e-6)
  assert not image_metrics.ciede2000(truth, truth).any()


def test_gray_has_no_color(pair):
  gray = pair[0][..., :1].repeat(3, -1)
  assert not np.asarray(image_metrics.colorfulness(gray)).any()


def test_ssim_of_tiny_pictures_is_refused():
  tiny = np.zeros((1, 10, 40, 3), np.uint8)
  with pytest.raises(ValueError, match='11 pixels'):
    image_metrics.ssim(tiny, tiny)


def test_metrics_of_a_picture_do_not_depend_on_its_batch(pair):
  for metric in (image_metrics.ssim, image_metrics.ciede2000):
    together = metric(*pair)
    alone = [metric(*(x[i : i + 1] for x in pair))[0] for i in range(4)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-5)
