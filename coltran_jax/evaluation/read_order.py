"""Which pictures the protocol coltran5k is of: ImageNet's validation as tfds reads it.

The reference took the first 5,000 pictures and the 10,000th to 14,999th of what
`tfds.load` gave, which is not how they are stored: it reads 16 of 64 files at a time,
16 pictures of each in turn. UViM (Kolesnikov et al. 2022) published the lists of
names that came of it, and they are these.
"""

import hashlib

from coltran_jax.data import decoding

_FILES = 64
_AT_ONCE = 16  # Files, and pictures of each.


def stored_names(count=50_000):
  """Returns the names of pictures of validation in the order of tfds' files.

  count: 50,000 by definition; others are for tests.
  """
  names = (f'ILSVRC2012_val_{i + 1:08d}.JPEG' for i in range(count))
  return sorted(
    names, key=lambda name: hashlib.md5(f'validation{name}'.encode()).digest()
  )


def read_order(count=50_000):
  """Returns which of `count` stored pictures is read first, second, and so on."""
  bounds = [round(i * count / _FILES) for i in range(_FILES + 1)]
  files = [range(*bounds[i : i + 2]) for i in range(_FILES)]
  order = []
  for first in range(0, _FILES, _AT_ONCE):
    group = files[first : first + _AT_ONCE]
    for start in range(0, max(map(len, group)), _AT_ONCE):
      for file in group:
        order += file[start : start + _AT_ONCE]
  return order


class Read:
  """The records of a validation split from place `first` on, as they are read."""

  def __init__(self, split, first, count):
    self._split = split
    self._names = stored_names(len(split))
    self._index = read_order(len(split))[first : first + count]
    self._label = f'{split}, {first} to {first + count - 1} as tfds reads it'

  def __len__(self):
    return len(self._index)

  def __getitem__(self, i):
    """Returns a record; raises DataError if it is of another picture."""
    index = self._index[i]
    record = self._split[index]
    if record['id'] != self._names[index]:
      raise decoding.DataError(
        f'{self._split}, record {index} is {record["id"]}, not '
        f'{self._names[index]}: other pictures give other figures; prepare '
        'imagenet2012 again'
      )
    return record

  def __str__(self):
    return self._label
