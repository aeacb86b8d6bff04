"""Sorted tables as LevelDB and TensorFlow write them: keys -> values.

A table is a row of blocks and a footer. A block holds sorted entries, each
key sharing a prefix with the one before, and a list of restart points (for
searching, of no use to who reads everything); behind it stand one byte for its
compression and a masked crc32c. The last block, the index, leads to the others.
"""

from collections.abc import Iterator

import google_crc32c

from coltran_jax.convert import snappy

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, 'little')
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_MASK_DELTA = 0xA282EAD8
_RAW, _SNAPPY = 0, 1


class TableError(ValueError):
  """The bytes are not a whole, valid table; says what is wrong with them."""


def read_rows(data: bytes, max_unfolded: int) -> Iterator[tuple[bytes, bytes]]:
  """Yields the (key, value) pairs of a table, keys strictly increasing.

  max_unfolded bounds the bytes of all blocks and keys together: compression
  lets a small file stand for a huge one. Raises TableError, at the pair where
  the damage shows.
  """
  if len(data) < _FOOTER_BYTES or not data.endswith(_MAGIC):
    raise TableError('does not end like an index file')
  end = len(data) - _FOOTER_BYTES
  handles = data[end : -len(_MAGIC)]
  metaindex, at = _read_handle(handles, 0)
  index, _ = _read_handle(handles, at)
  blocks = data[:end]  # Once: it is a copy, and blocks may be many.
  budget = _Budget(max_unfolded)
  _read_block(blocks, metaindex, budget)  # names filters; only checked
  done, previous = 0, None
  for _, value in _read_entries(_read_block(blocks, index, budget), budget):
    handle, _ = _read_handle(value, 0)
    # In order and apart, so that no block is read twice.
    if handle[0] < done:
      raise TableError('has blocks that overlap')
    done = sum(handle)
    block = _read_block(blocks, handle, budget)
    for key, value in _read_entries(block, budget):
      if previous is not None and key <= previous:
        raise TableError('has keys out of order')
      previous = key
      yield key, value


def read_varint(data: bytes, at: int) -> tuple[int, int]:
  """Returns (the uint64 that data holds at position at, the position after)."""
  value = 0
  for shift in range(0, 70, 7):
    if at >= len(data):
      raise TableError('ends inside a number')
    byte, at = data[at], at + 1
    value |= (byte & 127) << shift
    if byte < 128:
      break
  if byte >= 128 or value >= 1 << 64:
    raise TableError('holds a number of more than 64 bits')
  return value, at


def unmask(masked: int) -> int:
  """Returns the crc32c that a file stores masked (rotated, plus a constant)."""
  rotated = (masked - _MASK_DELTA) & 0xFFFFFFFF
  return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


class _Budget:
  """Counts down the bytes that a table may still unfold to."""

  def __init__(self, left: int):
    self.left = left

  def spend(self, size: int) -> None:
    self.left -= size
    if self.left < 0:
      raise TableError('unfolds to more bytes than an index needs')


def _read_handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
  """Returns ((offset, size) of a block, the position after)."""
  offset, at = read_varint(data, at)
  size, at = read_varint(data, at)
  return (offset, size), at


def _read_block(data: bytes, handle: tuple[int, int], budget: _Budget) -> bytes:
  """Returns the content of a block, checked and decompressed."""
  offset, size = handle
  end = offset + size
  if end + _TRAILER_BYTES > len(data):
    raise TableError('has a block that reaches beyond its end')
  stored = int.from_bytes(data[end + 1 : end + _TRAILER_BYTES], 'little')
  if google_crc32c.value(data[offset : end + 1]) != unmask(stored):
    raise TableError(f'has a block with a wrong checksum at byte {offset}')
  block, compression = data[offset:end], data[end]
  if compression == _SNAPPY:
    try:
      block = snappy.decompress(block, budget.left)
    except snappy.SnappyError as error:
      raise TableError(f'the block at byte {offset} {error}') from None
  elif compression != _RAW:
    raise TableError(f'has a block of unknown compression {compression}')
  budget.spend(len(block))
  return block


def _read_entries(
  block: bytes, budget: _Budget
) -> Iterator[tuple[bytes, bytes]]:
  """Yields the (key, value) pairs of a block in their order."""
  restarts = int.from_bytes(block[-4:], 'little')
  end = len(block) - 4 * (restarts + 1)
  if end < 0:
    raise TableError('has a block too short for its restart points')
  entries = block[:end]
  at, key = 0, b''
  while at < end:
    shared, at = read_varint(entries, at)
    unshared, at = read_varint(entries, at)
    size, at = read_varint(entries, at)
    if shared > len(key) or at + unshared + size > end:
      raise TableError('has an entry that does not fit into its block')
    budget.spend(shared + unshared)
    key = key[:shared] + entries[at : at + unshared]
    at += unshared + size
    yield key, entries[at - size : at]
