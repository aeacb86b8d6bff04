"""Distances between sets of pictures, each under the name of its protocol.

- paired: colorings against their own originals.
- coltran5k: colorings of the first 5,000 pictures of ImageNet's validation
  split, in the order of `read_order`, against its pictures 10,000 to 14,999 (the
  reference's; untouched originals give an FID of 14.68, ColTran 19.37).

The two are not comparable, nor are those of different networks.
"""

import dataclasses
import logging
from typing import Any

import numpy as np
import tqdm

from coltran_jax import image, sharding
from coltran_jax.data import decoding
from coltran_jax.evaluation import frechet, inception, lite0, pairs, read_order

COUNT, _SIDE = 5000, 256  # Of the pictures of coltran5k.
_AT_ONCE = 16
_KID_SUBSET = 1000
_log = logging.getLogger('coltran')


@dataclasses.dataclass(frozen=True)
class Network:
  """Features [B, D] of uint8 pictures, and what distances of them are called."""

  frechet: str
  kernel: str
  features: Any


def fid(path):
  """Returns the Network of FID, with weights from a user's file.

  Raises CheckpointError if the file is not these weights.
  """
  params = inception.load(path)
  return Network('FID', 'KID', lambda x: inception.features(params, x))


def frechet_lite0():
  """Returns the stand-in of FID that works offline; see `evaluation.lite0`."""
  params = lite0.load()
  return Network(
    'frechet_lite0', 'kid_lite0', lambda x: lite0.features(params, x)
  )


def paired(comparison, network, resize=None):
  """Returns {label: {metric: value}} of each method's first samples.

  The untouched grays are a method too, `pairs.GRAY`.
  """
  truth = _features(
    (pairs.read(p, resize) for p in comparison.truth.values()),
    network,
    len(comparison.truth),
    'truth',
  )
  _warn(truth, network)
  sets = {
    label: (pairs.read(paths[0], resize) for paths in made.values())
    for label, made in comparison.methods.items()
  }
  sets[pairs.GRAY] = (
    pairs.gray(pairs.read(p, resize)) for p in comparison.truth.values()
  )
  return {
    label: _distances(
      _features(made, network, len(truth), label), truth, network, 'paired'
    )
    for label, made in sets.items()
  }


def coltran5k(split, folders, network, count=COUNT, first=10_000):
  """Returns {label: {metric: value}} under the protocol of that name.

  Args:
    split: the validation split, [index] -> {'image': bytes, 'id': its name}.
    folders: of `count` colorings each, 256 pixels a side.
    network: a `Network`.
    count, first: 5000 and 10,000 by definition; others are for tests.

  Besides the folders there is 'originals', the pictures that were colored.

  Raises:
    MismatchError: a folder or the split has another number of pictures.
    DataError, PhotoError: a picture cannot be read, or is another one.
  """
  if len(split) < first + count:
    raise pairs.MismatchError(
      f'{split} has {len(split)} pictures, coltran5k needs {first + count}'
    )
  originals = read_order.Read(split, 0, count)
  others = read_order.Read(split, first, count)
  sets = {}
  for label, folder in pairs.labelled(folders).items():
    files = pairs.files(folder)
    if len(files) != count:
      raise pairs.MismatchError(
        f'{folder} has {len(files)} pictures, coltran5k needs {count}'
      )
    sets[label] = (_square(pairs.read(path)) for _, path in files)
  sets['originals'] = (_original(originals[i]) for i in range(count))
  real = (_original(others[i]) for i in range(count))
  real = _features(real, network, count, 'real')
  _warn(real, network)
  return {
    label: _distances(
      _features(of, network, count, label), real, network, 'coltran5k'
    )
    for label, of in sets.items()
  }


def _original(record):
  return image.square(decoding.decode(record['image']), _SIDE)


def _square(pixels):
  return image.square(pixels, _SIDE)


def _features(pictures, network, count, label):
  """Returns features float32 [count, D] of an iterator of pictures."""
  mesh = sharding.local_mesh()
  at_once = sharding.round_up(mesh, _AT_ONCE)
  found, waiting = [], []

  def flush():
    batch = np.stack(waiting + waiting[-1:] * (at_once - len(waiting)))
    on_devices = sharding.to_devices(mesh, {'image': batch})['image']
    found.append(np.asarray(network.features(on_devices))[: len(waiting)])
    waiting.clear()

  bar = tqdm.tqdm(pictures, label, count, unit='picture', disable=None)
  for picture in bar:
    if waiting and waiting[-1].shape != picture.shape:
      flush()
    waiting.append(picture)
    if len(waiting) == at_once:
      flush()
  if waiting:
    flush()
  return np.concatenate(found)


def _distances(made, real, network, protocol):
  """Returns {metric: value}: Frechet where there are pictures enough, kernel."""
  out = {}
  if _enough(real):
    statistics = []
    for features in (made, real):
      statistics.append(frechet.Statistics.empty(features.shape[1]))
      statistics[-1].update(features)
    out[f'{network.frechet} ({protocol})'] = frechet.distance(*statistics)
  size = min(_KID_SUBSET, len(real) // 2)
  if size >= 2:
    name = f'{network.kernel} ({protocol}, subsets of {size})'
    out[name] = frechet.kid(made, real, size=size).mean
  return out


def _enough(features):
  """Returns True if a covariance of features [B, D] has full rank."""
  return len(features) > features.shape[1]


def _warn(features, network):
  if not _enough(features):
    _log.warning(
      '%d pictures are too few for %s, which needs %d: there is only %s',
      len(features),
      network.frechet,
      features.shape[1] + 1,
      network.kernel,
    )
