"""Opens data sets on disk, as `preparing` makes them.

They are tfds data sets in array_record files, and need no TensorFlow:

    DATA_DIR/NAME/VERSION/    NAME: 'folder', 'sports' or 'imagenet2012'

A record is {'image': the bytes of a JPEG or PNG file, 'id': its path in the
source}; those of imagenet2012 are as tfds makes them.
"""

import pathlib
import re
import zlib

import tensorflow_datasets as tfds

from coltran_jax.data import decoding

DataError = decoding.DataError
NAMES = ('folder', 'sports', 'imagenet2012')
# Ours -> tfds'. The reference validates on the end of the training pictures.
IMAGENET_SPLITS = {
  'train': 'train[:-10000]',
  'valid': 'train[-10000:]',
  'test': 'validation',
}


def check_name(name):
  """Raises DataError if no data set has this name."""
  if name not in NAMES:
    raise DataError(f'no data set {name!r}; there are {", ".join(NAMES)}')


def crc(lines):
  """The checksum of lines of text, 8 hex digits."""
  total = 0
  for line in lines:
    total = zlib.crc32(f'{line}\n'.encode(), total)
  return f'{total:08x}'


class Split:
  """The records of one split, in any order; made by `open_split`.

  `len(split)` is their number, `split[i]` is {'image': bytes, 'id': str}.

  Attributes:
    fingerprint: str that differs if the pictures or their order do.
  """

  def __init__(self, name, builder, split, theirs):
    self._label = f'{name}, split {split}'
    self._folder = builder.data_dir
    self._id = 'file_name' if name == 'imagenet2012' else 'id'
    self._records = builder.as_data_source(
      theirs, decoders={'image': tfds.decode.SkipDecoding()}
    )
    made = (builder.info.metadata or {}).get('fingerprints', {})
    self.fingerprint = made.get(split) or _fingerprint(builder.info, theirs)

  def __len__(self):
    return len(self._records)

  def __getitem__(self, i):
    i = int(i)
    if not 0 <= i < len(self):
      raise IndexError(f'{self} has no record {i}')
    try:
      record = self._records[i]
      return {'image': record['image'], 'id': record[self._id].decode()}
    # Whatever a damaged file makes its reader raise.
    except Exception as error:
      raise DataError(
        f'{self}, record {i}: {self._folder} is damaged; remove it and prepare '
        f'it again ({decoding.one_line(error)})'
      ) from error

  def __str__(self):
    return self._label


def _fingerprint(info, theirs):
  """Of a data set that `prepare` did not write: of its shards' contents."""
  split = info.splits[theirs.partition('[')[0]]
  state = f'{info.full_name} {theirs} {split.num_bytes} {split.shard_lengths}'
  return f'{info.splits[theirs].num_examples}-{crc([state])}'


def open_split(name, data_dir, split):
  """The Split 'train', 'valid' or 'test' of a prepared data set.

  Raises DataError if it is not there; says what is, and what to do.
  """
  check_name(name)
  folder = pathlib.Path(data_dir) / name
  versions = [
    one.parent
    for one in folder.glob('*/dataset_info.json')
    if re.fullmatch(r'\d+\.\d+\.\d+', one.parent.name)  # Else incomplete.
  ]
  hint = f'make it: coltran prepare {name} SOURCE --data_dir {data_dir}'
  if not versions:
    raise DataError(f'{folder} is no data set ({_content(data_dir)}); {hint}')
  latest = max(versions, key=lambda one: [*map(int, one.name.split('.'))])
  try:
    builder = tfds.builder_from_directory(latest)
    format = builder.info.file_format.value
  except Exception as error:  # tfds raises many kinds.
    reason = decoding.one_line(error)
    raise DataError(f'{latest} cannot be opened: {reason}; {hint}') from error
  if format != 'array_record':
    raise DataError(f'{latest} holds {format} files, not array_record; {hint}')
  theirs = {one: one for one in builder.info.splits}
  if name == 'imagenet2012':
    theirs = {
      ours: one
      for ours, one in IMAGENET_SPLITS.items()
      if one.partition('[')[0] in theirs
    }
  if split not in theirs:
    there = ', '.join(theirs) or 'nothing'
    raise DataError(f'{latest} has no split {split!r}, only {there}; {hint}')
  try:
    return Split(name, builder, split, theirs[split])
  except Exception as error:  # So does array_record.
    reason = decoding.one_line(error)
    raise DataError(f'{latest} cannot be opened: {reason}; {hint}') from error


def _content(folder):
  """What is in a folder, in a few words."""
  try:
    names = sorted(one.name for one in pathlib.Path(folder).iterdir())
  except OSError as error:
    return f'{folder}: {error.strerror}'
  return f'{folder} holds {", ".join(names[:10]) or "nothing"}'
