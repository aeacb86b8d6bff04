"""Frechet and kernel distances: a recorded one, and what they must obey."""

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from coltran_jax.evaluation import frechet


def statistics_of(*batches):
  statistics = frechet.Statistics.empty(batches[0].shape[1])
  for batch in batches:
    statistics.update(batch)
  return statistics


def draw(count, dimensions=8, seed=0, mean=0.0):
  return np.random.default_rng(seed).normal(mean, 1, (count, dimensions))


def assert_close(a, b):
  assert a.count == b.count
  np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(a.covariance, b.covariance, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope='module')
def recorded(fixtures):
  with np.load(fixtures / 'inception/inception.npz') as arrays:
    return arrays['X'], arrays['Y'], float(arrays['frechet'])


def test_a_distance_equals_the_recorded_one(recorded):
  x, y, expected = recorded
  distance = frechet.distance(statistics_of(x), statistics_of(y))
  assert distance == pytest.approx(expected, rel=1e-10)


def test_a_distance_is_symmetric_and_0_between_equal_sets(recorded):
  a, b = (statistics_of(x) for x in recorded[:2])
  there = frechet.distance(a, b)
  assert there == pytest.approx(frechet.distance(b, a), rel=1e-12)
  assert 0 <= frechet.distance(a, a) < 1e-9


def test_a_distance_is_exact_where_features_hardly_vary():
  # Roots of eigenvalues of C1 C2 would be off by 1e-8 a feature.
  def statistics(deviations):
    scatter = rotation * (99 * deviations**2)[None] @ rotation.T
    return frechet.Statistics(100, np.zeros(64), scatter)

  rotation, _ = np.linalg.qr(draw(64, 64))
  x = np.geomspace(1, 1e-7, 64)
  y = x + np.where(np.arange(64) == 20, 1e-5, 0)
  distance = frechet.distance(statistics(x), statistics(y))
  assert distance == pytest.approx(1e-10, abs=1e-13)


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_a_distance_of_known_gaussians_follows_the_formula(scale):
  # Covariances that commute: the square root is taken number by number.
  def statistics(mean, deviations):
    scatter = np.diag(np.square(deviations)) * scale**2 * 99
    return frechet.Statistics(100, np.array(mean) * scale, scatter)

  a = statistics([0.0, 0.0, 1.0], [1.0, 2.0, 0.1])
  b = statistics([3.0, 0.0, 1.0], [4.0, 2.0, 0.4])
  expected = (9 + 9 + 0.09) * scale**2
  assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_the_covariance_is_numpy_s(recorded):
  x = recorded[0].astype(np.float64)
  statistics = statistics_of(recorded[0])
  assert statistics.covariance.dtype == statistics.mean.dtype == np.float64
  np.testing.assert_allclose(statistics.mean, x.mean(0), atol=1e-13)
  np.testing.assert_allclose(
    statistics.covariance, np.cov(x, rowvar=False), atol=1e-12
  )


@hypothesis.given(
  strategies.lists(strategies.integers(0, 60), max_size=6),
  strategies.sampled_from([0.0, 1e4]),
)
def test_statistics_are_the_same_at_any_split_into_batches(cuts, mean):
  features = draw(60, mean=mean)
  batches = np.split(features, sorted(cuts))
  assert_close(statistics_of(*batches), statistics_of(features))


@hypothesis.given(
  strategies.lists(strategies.integers(0, 60), min_size=1, max_size=4)
)
def test_merged_statistics_of_hosts_are_those_of_all_pictures(cuts):
  features = draw(60)
  hosts = [statistics_of(part) for part in np.split(features, sorted(cuts))]
  merged = frechet.Statistics.empty(8)
  for host in hosts:
    count, scatter = host.count, host.scatter.copy()
    merged.merge(host)
    assert host.count == count and (host.scatter == scatter).all()
  assert_close(merged, statistics_of(features))


def test_a_far_mean_costs_no_digits():
  # 1e8: sums of squares would keep none of the variance.
  a, b = draw(200) + 1e8, draw(200, seed=1) + 1e8
  far = frechet.distance(statistics_of(*np.split(a, 20)), statistics_of(b))
  near = frechet.distance(statistics_of(a - 1e8), statistics_of(b - 1e8))
  assert far == pytest.approx(near, rel=1e-6)


def test_single_precision_features_are_summed_in_double():
  features = draw(300, mean=1000.0).astype(np.float32)
  assert_close(
    statistics_of(*np.split(features, 100)),
    statistics_of(features.astype(np.float64)),
  )


@pytest.mark.parametrize('count', [0, 1, 8])
def test_too_few_pictures_are_refused_and_the_message_names_kid(count):
  few, enough = statistics_of(draw(count)), statistics_of(draw(9, seed=1))
  for pair in [(few, enough), (enough, few)]:
    with pytest.raises(frechet.TooFew, match=r'9 pictures .*KID'):
      frechet.distance(*pair)
  assert frechet.distance(enough, statistics_of(draw(9, seed=2))) > 0


def test_few_pictures_are_allowed_when_asked_for_but_never_fewer_than_two():
  one, two, three = (statistics_of(draw(n, seed=n)) for n in (1, 2, 3))
  distance = frechet.distance(two, three, singular=True)
  assert distance == pytest.approx(frechet.distance(three, two, singular=True))
  assert np.isfinite(distance) and distance > 0
  assert frechet.distance(two, two, singular=True) < 1e-9
  with pytest.raises(frechet.TooFew, match='2 pictures'):
    frechet.distance(one, two, singular=True)
  with pytest.raises(frechet.TooFew, match='2 pictures'):
    _ = one.covariance


@pytest.mark.parametrize(
  ('features', 'message'),
  [
    (np.zeros((3, 7)), r'\[B, 8\]'),
    (np.zeros(8), r'\[B, 8\]'),
    (np.full((1, 8), np.nan), 'finite'),
    (np.full((1, 8), np.inf, np.float32), 'finite'),
  ],
)
def test_features_that_do_not_fit_are_refused_and_change_nothing(
  features, message
):
  statistics = statistics_of(draw(10))
  with pytest.raises(ValueError, match=message):
    statistics.update(features)
  assert_close(statistics, statistics_of(draw(10)))


def test_sets_of_different_numbers_of_features_are_refused():
  a, b = statistics_of(draw(10)), statistics_of(draw(10, 7))
  with pytest.raises(ValueError, match='8 features, the other 7'):
    frechet.distance(a, b)
  with pytest.raises(ValueError, match='7 features with 8'):
    a.merge(b)
  with pytest.raises(ValueError, match=r'\[B, 8\]'):
    frechet.kid(draw(10), draw(10, 7), size=5)


def test_kid_over_whole_sets_is_the_sum_over_all_pairs():
  x, y = draw(12, 3), draw(12, 3, seed=1, mean=0.5)

  def kernel(a, b):
    return (sum(p * q for p, q in zip(a, b, strict=True)) / 3 + 1) ** 3

  def within(x):
    return np.mean([kernel(a, b) for a in x for b in x if a is not b])

  x, y = list(x), list(y)
  expected = within(x) + within(y)
  expected -= 2 * np.mean([kernel(a, b) for a in x for b in y])
  kid = frechet.kid(np.array(x), np.array(y), subsets=3, size=12)
  assert kid.mean == pytest.approx(expected, rel=1e-12)
  assert kid.deviation == pytest.approx(0, abs=1e-12)


def test_kid_of_equal_distributions_is_0_but_for_its_deviation():
  # Unbiased: the mean over many pairs of sets is 0, and not above.
  means = [
    frechet.kid(draw(50, seed=i), draw(50, seed=1000 + i), 1, 50).mean
    for i in range(200)
  ]
  error = np.std(means) / np.sqrt(len(means))
  assert abs(np.mean(means)) < 3 * error
  assert min(means) < 0 < max(means)


def test_kid_grows_with_the_difference_and_is_about_the_same_in_subsets():
  x = draw(400)
  near, far = (
    frechet.kid(x, draw(400, seed=1, mean=m), subsets=50, size=100)
    for m in (0.3, 1.0)
  )
  assert 0 < near.mean < far.mean
  whole = frechet.kid(x, draw(400, seed=1, mean=1.0), 1, 400).mean
  assert far.mean == pytest.approx(whole, abs=3 * far.deviation / np.sqrt(50))


def test_kid_depends_on_the_seed_and_on_nothing_else():
  x, y = draw(60), draw(50, seed=1)
  first = frechet.kid(x, y, subsets=5, size=20, seed=3)
  np.random.seed(1)
  assert frechet.kid(x, y, subsets=5, size=20, seed=3) == first
  assert frechet.kid(x, y, subsets=5, size=20, seed=4) != first


def test_kid_needs_as_many_pictures_as_its_subsets_have():
  with pytest.raises(frechet.TooFew, match='9 and 30; choose a smaller size'):
    frechet.kid(draw(9), draw(30), size=10)
  for arguments in [{'size': 1}, {'subsets': 0, 'size': 5}]:
    with pytest.raises(ValueError, match='KID needs'):
      frechet.kid(draw(9), draw(9), **arguments)
