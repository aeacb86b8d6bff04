"""What the index of a TensorFlow checkpoint says: its protocol buffers.

The parsers raise sstable.TableError for damage and UnsupportedError for what is
valid but beyond this package; both messages continue a sentence whose subject
is the checkpoint or the tensor.
"""

import dataclasses
import math

import google_crc32c
import ml_dtypes
import numpy as np

from coltran_jax.convert import sstable

_MAX_DIMENSIONS = 64  # numpy's
_FORMAT_VERSION = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_STRING = np.dtype(object)
_DTYPES = {  # by number in TensorFlow's enum DataType
  1: np.dtype('<f4'),
  2: np.dtype('<f8'),
  3: np.dtype('<i4'),
  4: np.dtype('u1'),
  5: np.dtype('<i2'),
  6: np.dtype('i1'),
  7: _STRING,
  9: np.dtype('<i8'),
  10: np.dtype('?'),
  14: np.dtype(ml_dtypes.bfloat16),
  19: np.dtype('<f2'),
}


class UnsupportedError(Exception):
  """Valid, but beyond this reader; says what."""


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
  """What a checkpoint says of itself."""

  num_shards: int
  version: int  # of the format, as the writer knew it


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
  """One tensor: dtype (object for strings), shape and where it is stored."""

  dtype: np.dtype
  shape: tuple[int, ...]
  shard: int
  offset: int  # bytes from the start of the shard
  size: int  # bytes
  crc32c: int  # plain, not masked as in the file

  @property
  def is_string(self) -> bool:
    """True if the elements are byte strings."""
    return self.dtype == _STRING


def parse_header(data: bytes) -> Header:
  """Returns the Header in a BundleHeaderProto."""
  # num_shards, endianness, VersionDef (producer, min_consumer).
  fields = _parse_fields(data, {1: _VARINT, 2: _VARINT, 3: _BYTES})
  version = _parse_fields(b''.join(fields[3]), {1: _VARINT, 2: _VARINT})
  if _number(fields[2]) != 0:
    raise UnsupportedError('was written by a big-endian machine')
  if _number(version[2]) > _FORMAT_VERSION:
    raise UnsupportedError(f'needs a reader of version {_number(version[2])}')
  num_shards = _number(fields[1])
  if not 1 <= num_shards < 1 << 31:
    raise sstable.TableError(f'claims to have {num_shards} data files')
  return Header(num_shards, _number(version[1]))


def parse_entry(data: bytes, num_shards: int) -> Entry:
  """Returns the Entry in a BundleEntryProto, its size checked by its shape."""
  # dtype, shape, shard_id, offset, size, crc32c, slices.
  kinds = {1: _VARINT, 2: _BYTES, 3: _VARINT, 4: _VARINT, 5: _VARINT}
  fields = _parse_fields(data, {**kinds, 6: _FIXED32, 7: _BYTES})
  if fields[7]:
    raise UnsupportedError('is saved in slices')
  if _number(fields[1]) not in _DTYPES:
    raise UnsupportedError(f'has the type number {_number(fields[1])}')
  stored_crc = int.from_bytes(b''.join(fields[6][-1:]), 'little')
  entry = Entry(
    dtype=_DTYPES[_number(fields[1])],
    shape=_parse_shape(b''.join(fields[2])),
    shard=_number(fields[3]),
    offset=_number(fields[4]),
    size=_number(fields[5]),
    crc32c=sstable.unmask(stored_crc),
  )
  if entry.shard >= num_shards:
    raise sstable.TableError(
      f'is in data file {entry.shard} of only {num_shards}'
    )
  # Within this, every length of a string is a uint32, as its crc32c wants.
  if entry.is_string and entry.size >> 32:
    raise UnsupportedError(f'has {entry.size:,} bytes of strings')
  count = math.prod(entry.shape)
  # A string takes a byte for its length at least; a checksum follows them.
  least = count + 4 if entry.is_string else count * entry.dtype.itemsize
  if entry.size < least or (entry.size > least and not entry.is_string):
    raise sstable.TableError(
      f'has {entry.size:,} bytes, which do not fit {entry.dtype} of shape '
      f'{entry.shape}'
    )
  return entry


def _parse_shape(data: bytes) -> tuple[int, ...]:
  # TensorShapeProto: dim (size), unknown_rank.
  fields = _parse_fields(data, {2: _BYTES, 3: _VARINT})
  if _number(fields[3]):
    raise sstable.TableError('has no known shape')
  if len(fields[2]) > _MAX_DIMENSIONS:
    raise UnsupportedError(f'has {len(fields[2])} dimensions')
  shape = tuple(
    _number(_parse_fields(dim, {1: _VARINT})[1]) for dim in fields[2]
  )
  # An empty tensor, too, must have dimensions that numpy can multiply.
  if math.prod(max(1, size) for size in shape) >= 1 << 59:
    raise sstable.TableError(f'has the impossible shape {shape}')
  return shape


def parse_strings(data: bytes, entry: Entry) -> np.ndarray:
  """Returns the object array of bytes stored in data, a whole string tensor.

  That is: the lengths as varints, their crc32c, the strings. Both crc32c take
  the lengths as uint32; the tensor's goes on over the stored (masked) first one
  and the strings.
  """
  lengths, at = [], 0
  for _ in range(math.prod(entry.shape)):
    length, at = sstable.read_varint(data, at)
    lengths.append(length)
  start = at + 4
  if start + sum(lengths) != len(data):
    raise sstable.TableError('has strings that do not fill its bytes')
  crc = google_crc32c.value(np.array(lengths, '<u4').tobytes())
  if sstable.unmask(int.from_bytes(data[at:start], 'little')) != crc:
    raise sstable.TableError('has a wrong checksum of its lengths')
  if google_crc32c.extend(crc, data[at:]) != entry.crc32c:
    raise sstable.TableError('has a wrong checksum')
  strings = np.empty(len(lengths), object)
  for i, length in enumerate(lengths):
    strings[i] = data[start : start + length]
    start += length
  strings.flags.writeable = False
  return strings.reshape(entry.shape)


def _parse_fields(data: bytes, kinds: dict[int, int]) -> dict[int, list]:
  """Returns field number -> values, for the fields that kinds gives types of.

  Varints come as uint64, all else as bytes; other fields are skipped.
  """
  fields: dict[int, list] = {number: [] for number in kinds}
  at = 0
  while at < len(data):
    tag, at = sstable.read_varint(data, at)
    number, kind = tag >> 3, tag & 7
    if kind == _VARINT:
      value, at = sstable.read_varint(data, at)
    else:
      size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
      if kind == _BYTES:
        size, at = sstable.read_varint(data, at)
      if size is None or at + size > len(data):
        raise sstable.TableError('has a malformed description')
      value, at = data[at : at + size], at + size
    if kinds.get(number, kind) != kind:
      raise sstable.TableError('has a malformed description')
    if number in kinds:
      fields[number].append(value)
  return fields


def _number(values: list[int]) -> int:
  """Returns the last of a field's values, 0 without any; none is negative."""
  value = values[-1] if values else 0
  if value >= 1 << 63:
    raise sstable.TableError(f'has the negative number {value - (1 << 64)}')
  return value
