"""Distances between two sets of pictures, from features of each.

Frechet distance (FID, Heusel et al., 2017) and kernel distance (KID, Binkowski
et al., 2018); on the host, in float64. Axes: B pictures, D features.
"""

import dataclasses
from typing import NamedTuple

import numpy as np


class TooFew(ValueError):
  """A set has too few pictures for the distance asked for."""


@dataclasses.dataclass(eq=False)
class Statistics:
  """Number, mean and scatter of the features of pictures seen so far.

  Centered sums (Chan et al., 1983): the same at any split into batches, up to
  rounding, however far the mean is from 0.

  Attributes:
    count: pictures seen.
    mean: float64 [D].
    scatter: float64 [D, D], the sum of products of deviations from the mean.
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  @classmethod
  def empty(cls, dimensions):
    """Returns the statistics of no pictures with that many features."""
    return cls(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

  @property
  def covariance(self):
    """float64 [D, D], the unbiased covariance; TooFew below 2 pictures."""
    if self.count < 2:
      raise TooFew(f'a covariance needs 2 pictures, there are {self.count}')
    return self.scatter / (self.count - 1)

  def update(self, features):
    """Takes in features [B, D] of any number of pictures, 0 included.

    Raises ValueError if D is another one, or a feature is not finite.
    """
    features = _checked(features, self.mean.size)
    if not len(features):
      return
    features = features.astype(np.float64)
    mean = features.mean(0)
    deviations = features - mean[None]
    self.merge(Statistics(len(features), mean, deviations.T @ deviations))

  def merge(self, other):
    """Takes in what another object saw, as when hosts are joined.

    Raises ValueError if its number of features is another one.
    """
    if other.mean.shape != self.mean.shape:
      raise ValueError(
        f'cannot merge {other.mean.size} features with {self.mean.size}'
      )
    count = self.count + other.count
    if not count:
      return
    shift = other.mean - self.mean
    share = other.count / count
    self.mean = self.mean + share * shift
    self.scatter = (
      self.scatter + other.scatter + self.count * share * np.outer(shift, shift)
    )
    self.count = count


def distance(a, b, singular=False):
  """Returns the Frechet distance of two Gaussians, a float of at least 0.

  |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in squared units of a feature;
  0 for equal sets. Symmetric. With 2048 features it takes about half a minute.

  Args:
    a: `Statistics` of one set.
    b: `Statistics` of the other.
    singular: allow sets with fewer than D + 1 pictures. Their covariance is
      singular and the distance depends on their size most of all, so it may be
      compared between sets of the same sizes only.

  Raises:
    TooFew: fewer than D + 1 pictures; with `singular`, fewer than 2.
    ValueError: the numbers of features differ.
  """
  dimensions = a.mean.size
  if b.mean.size != dimensions:
    raise ValueError(
      f'one set has {dimensions} features, the other {b.mean.size}'
    )
  fewest = min(a.count, b.count)
  if fewest < 2 or (fewest <= dimensions and not singular):
    raise TooFew(
      f'a Frechet distance of {dimensions} features needs '
      f'{2 if singular else dimensions + 1} pictures or more in each set, '
      f'there are {a.count} and {b.count}; KID (`kid`) does with fewer'
    )
  # tr (C1 C2)^(1/2) is the sum of the roots of the eigenvalues of
  # C1^(1/2) C2 C1^(1/2). With C = F F^T these are the squared singular values
  # of F1^T F2; not squaring them keeps the digits of the small ones.
  product = _factor(a.covariance).T @ _factor(b.covariance)
  overlap = np.linalg.svd(product, compute_uv=False).sum()
  spread = np.trace(a.covariance) + np.trace(b.covariance)
  shift = a.mean - b.mean
  return max(float(shift @ shift + spread - 2 * overlap), 0.0)


class KernelDistance(NamedTuple):
  """KID over subsets: its mean and standard deviation."""

  mean: float
  deviation: float


def kid(x, y, subsets=100, size=1000, seed=0):
  """Returns the KernelDistance of two sets of features.

  The squared maximum mean discrepancy under the kernel (x . y / D + 1)^3, in
  the unbiased estimate, over subsets drawn without replacement. Deterministic.
  About 0, and as often negative, for different pictures of one kind; below 0
  where both sets share pictures.

  Args:
    x: features [B, D] of one set.
    y: features [B', D] of the other.
    subsets: how many pairs of subsets are drawn.
    size: pictures in each; the published protocol's is 1000.
    seed: of the draws.

  Raises:
    TooFew: a set has fewer pictures than `size`.
    ValueError: features that do not fit or are not finite, or a size or number
      of subsets that makes no sense.
  """
  if size < 2 or subsets < 1:
    raise ValueError(
      f'KID needs subsets of 2 pictures or more, not {subsets} of {size}'
    )
  x = _checked(x)
  y = _checked(y, x.shape[1])
  if min(len(x), len(y)) < size:
    raise TooFew(
      f'KID over subsets of {size} pictures needs as many in each set, there '
      f'are {len(x)} and {len(y)}; choose a smaller size'
    )
  rng = np.random.default_rng(seed)
  values = [
    _discrepancy(
      x[rng.choice(len(x), size, replace=False)],
      y[rng.choice(len(y), size, replace=False)],
    )
    for _ in range(subsets)
  ]
  return KernelDistance(float(np.mean(values)), float(np.std(values)))


def _discrepancy(x, y):
  """Returns the unbiased squared MMD of x [B, D] and y [B, D]."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  count, dimensions = x.shape

  def kernel(x, y):
    return (x @ y.T / dimensions + 1) ** 3

  def within(x):
    values = kernel(x, x)
    return (values.sum() - np.trace(values)) / (count * (count - 1))

  return within(x) + within(y) - 2 * kernel(x, y).mean()


def _factor(covariance):
  """Returns F [D, D] with F F^T = covariance."""
  try:
    return np.linalg.cholesky(covariance)  # A hundred times faster.
  except np.linalg.LinAlgError:  # Singular, but for rounding.
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(values.clip(0))[None]


def _checked(features, dimensions=None):
  """Returns features as a finite array [B, D], or raises ValueError."""
  features = np.asarray(features)
  if features.ndim != 2 or dimensions not in (None, features.shape[1]):
    raise ValueError(
      f'features must be [B, {dimensions or "D"}], not {features.shape}'
    )
  if not np.isfinite(features).all():
    raise ValueError('features must be finite')
  return features
