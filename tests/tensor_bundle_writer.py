"""Writes TensorFlow checkpoints for the tests of their reader.

The pieces are separate, so that a test can put together a file that is wrong in
one place and has correct checksums everywhere.
"""

import pathlib

import google_crc32c
import ml_dtypes
import numpy as np

MAGIC = 0xDB4775248B80FB57.to_bytes(8, 'little')
# Number in TensorFlow's enum DataType, for every dtype that the reader knows.
DTYPES = {
  'float32': 1,
  'float64': 2,
  'int32': 3,
  'uint8': 4,
  'int16': 5,
  'int8': 6,
  'object': 7,
  'int64': 9,
  'bool': 10,
  'bfloat16': 14,
  'float16': 19,
}
COMPRESSIONS = ('raw', 'literals', 'copies')


def dtype(name: str) -> np.dtype:
  """Returns the numpy dtype of a name in DTYPES."""
  return np.dtype(ml_dtypes.bfloat16 if name == 'bfloat16' else name)


def varint(value: int) -> bytes:
  """Returns value as a varint; negative values as protobuf's int64 does."""
  value %= 1 << 64
  out = bytearray()
  while value >= 128:
    out.append(value & 127 | 128)
    value >>= 7
  return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
  """Returns one field of a protocol buffer: a varint or length and bytes."""
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  return varint(number << 3 | 2) + varint(len(value)) + value


def mask(crc: int) -> bytes:
  """Returns a crc32c as files store it, 4 bytes."""
  rotated = crc >> 15 | crc << 17 & 0xFFFFFFFF
  return ((rotated + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, 'little')


# --- Snappy.


def compress(data: bytes, copies: bool = True) -> bytes:
  """Returns data as a raw Snappy block, with literals only or greedy copies."""
  out = [varint(len(data))]
  seen: dict[bytes, int] = {}
  start = at = 0
  while copies and at + 4 <= len(data):
    past = seen.get(data[at : at + 4])
    seen[data[at : at + 4]] = at
    if past is None:
      at += 1
      continue
    length, longest = 4, min(64, len(data) - at)
    while length < longest and data[past + length] == data[at + length]:
      length += 1
    out += [literal(data[start:at]), copy(at - past, length)]
    start = at = at + length
  return b''.join([*out, literal(data[start:])])


def literal(data: bytes) -> bytes:
  """Returns Snappy's element for bytes as they are, nothing for none."""
  if not data:
    return b''
  if len(data) <= 60:
    return bytes([len(data) - 1 << 2]) + data
  number = (len(data) - 1).to_bytes(4, 'little').rstrip(b'\0') or b'\0'
  return bytes([59 + len(number) << 2]) + number + data


def copy(offset: int, length: int, kind: int | None = None) -> bytes:
  """Returns Snappy's element that repeats bytes, kind 1, 2 or 3 of it."""
  if kind is None:
    short = offset < 2048 and length <= 11
    # Writers need kind 3 beyond 64 KiB only; readers must know it anywhere.
    kind = 1 if short else 3 if offset >= 1 << 16 or offset % 5 == 0 else 2
  if kind == 1:
    return bytes([(offset >> 8) << 5 | length - 4 << 2 | 1, offset & 255])
  width = {2: 2, 3: 4}[kind]
  return bytes([length - 1 << 2 | kind]) + offset.to_bytes(width, 'little')


# --- Tables.


def entries_block(rows: list[tuple[bytes, bytes]], restart: int = 16) -> bytes:
  """Returns a block of (key, value), whole keys at every restart-th of them."""
  out, points, last = bytearray(), [0], b''
  for i, (key, value) in enumerate(rows):
    shared = 0
    if i % restart:
      while shared < min(len(key), len(last)) and key[shared] == last[shared]:
        shared += 1
    elif i:
      points.append(len(out))
    for number in (shared, len(key) - shared, len(value)):
      out += varint(number)
    out += key[shared:] + value
    last = key
  points.append(len(points))
  return bytes(out) + np.array(points, '<u4').tobytes()


def table(
  blocks: list[bytes], compression: str = 'raw', index: bytes | None = None
) -> bytes:
  """Returns a table of the blocks; index replaces the block that lists them.

  compression: one of COMPRESSIONS, or 'unknown' for a number without meaning.
  """
  out, handles = bytearray(), []

  def add(block: bytes, compression: str) -> bytes:
    start = len(out)
    if compression in ('literals', 'copies'):
      block = compress(block, copies=compression == 'copies')
    kind = bytes([{'raw': 0, 'unknown': 2}.get(compression, 1)])
    out.extend(block + kind + mask(google_crc32c.value(block + kind)))
    return varint(start) + varint(len(block))

  for block in blocks:
    handles.append(add(block, compression))
  if index is None:
    # Real ones put keys here that separate the blocks; no reader of all needs
    # more than their order.
    rows = [(b'%08d' % i, handle) for i, handle in enumerate(handles)]
    index = entries_block(rows, restart=1)
  metaindex = add(entries_block([]), 'raw')
  footer = metaindex + add(index, compression)
  return bytes(out) + footer.ljust(40, b'\0') + MAGIC


# --- Bundles.


def header(num_shards: int = 1, endianness: int = 0, version: int = 1) -> bytes:
  """Returns a BundleHeaderProto; version is the least that can read it."""
  order = field(2, endianness) if endianness else b''
  versions = field(1, version) + field(2, version)
  return field(1, num_shards) + order + field(3, versions)


def entry(
  type_number: int = 1,
  shape: tuple[int, ...] = (),
  shard: int = 0,
  offset: int = 0,
  size: int = 4,
  crc: bytes = bytes(4),
  more: bytes = b'',
) -> bytes:
  """Returns a BundleEntryProto; crc masked, more = fields to append."""
  out = field(1, type_number)
  out += field(2, b''.join(field(2, field(1, size)) for size in shape))
  for number, value in ((3, shard), (4, offset), (5, size)):
    out += field(number, value) if value else b''
  return out + varint(6 << 3 | 5) + crc + more


def tensor_bytes(array: np.ndarray) -> tuple[bytes, bytes]:
  """Returns (what a data file holds of an array, its masked crc32c)."""
  if array.dtype != object:
    data = array.tobytes()
    return data, mask(google_crc32c.value(data))
  strings = list(array.flat)
  lengths = np.array([len(string) for string in strings], '<u4')
  crc = google_crc32c.value(lengths.tobytes())
  tail = mask(crc) + b''.join(strings)
  data = b''.join(varint(int(length)) for length in lengths) + tail
  return data, mask(google_crc32c.extend(crc, tail))


def index(rows: list[tuple[bytes, bytes]], **header_fields: int) -> bytes:
  """Returns an index of one raw block with a header and these rows."""
  return table([entries_block([(b'', header(**header_fields)), *rows])])


def write(
  prefix: pathlib.Path,
  tensors: dict[str, np.ndarray],
  num_shards: int = 1,
  block_size: int = 1 << 18,
  restart: int = 16,
  compression: str = 'raw',
) -> None:
  """Writes the checkpoint of these tensors, dealt out to the shards in turn."""
  shards = [bytearray() for _ in range(num_shards)]
  rows = [(b'', header(num_shards))]
  for i, name in enumerate(sorted(tensors, key=str.encode)):
    array = tensors[name]
    shard = i % num_shards
    data, crc = tensor_bytes(array)
    offset = len(shards[shard])
    shards[shard] += data
    value = entry(
      DTYPES[str(array.dtype)], array.shape, shard, offset, len(data), crc
    )
    rows.append((name.encode(), value))
  groups, size = [[]], 0
  for row in rows:
    if size >= block_size:
      groups, size = [*groups, []], 0
    groups[-1].append(row)
    size += sum(map(len, row))
  blocks = [entries_block(group, restart) for group in groups]
  prefix.with_name(f'{prefix.name}.index').write_bytes(
    table(blocks, compression)
  )
  for shard, data in enumerate(shards):
    name = f'{prefix.name}.data-{shard:05d}-of-{num_shards:05d}'
    prefix.with_name(name).write_bytes(data)
