"""Raw Snappy blocks, as the index files of TensorFlow checkpoints use them.

A block is the length of its content (a varint) and then elements: a literal
carries bytes, a copy repeats what came `offset` bytes before. The two low bits
of an element's tag tell the kind, the others hold (part of) its length.
"""

_COPY_OFFSET_BYTES = {1: 1, 2: 2, 3: 4}


class SnappyError(ValueError):
  """The data is not a whole, valid Snappy block."""


def decompress(data: bytes, max_size: int) -> bytes:
  """Returns the content of a raw Snappy block, at most max_size bytes.

  Raises SnappyError for anything else than one complete block; memory stays
  within the announced length, which is compared with max_size first.
  """
  size, at = _read_size(data)
  if size > max_size:
    raise SnappyError(f'announces {size:,} bytes, at most {max_size:,} allowed')
  out = bytearray()
  while at < len(data):
    tag, at = data[at], at + 1
    kind, length = tag & 3, (tag >> 2) + 1
    # Literal lengths of 61 to 64 mean: 1 to 4 bytes with length - 1 follow.
    extra = _COPY_OFFSET_BYTES.get(kind, max(0, length - 60))
    number = int.from_bytes(data[at : at + extra], 'little')
    at += extra
    if kind == 0:
      length = number + 1 if extra else length
      offset, at = at, at + length
    elif kind == 1:
      offset, length = (tag >> 5) << 8 | number, (tag >> 2 & 7) + 4
    else:
      offset = number
    if at > len(data):
      raise SnappyError('ends inside an element')
    if len(out) + length > size:
      raise SnappyError(f'holds more than the {size:,} bytes it announces')
    if kind == 0:
      out += data[offset:at]
    elif not 0 < offset <= len(out):
      raise SnappyError(f'copies from {offset} bytes back at {len(out)}')
    else:
      piece = out[len(out) - offset :][:length]
      # A copy may reach into itself; then its piece repeats.
      out += (piece * -(-length // len(piece)))[:length]
  if len(out) != size:
    raise SnappyError(f'holds {len(out):,} of the {size:,} bytes it announces')
  return bytes(out)


def _read_size(data: bytes) -> tuple[int, int]:
  """Returns (content length, where the elements start)."""
  size = 0
  for at, byte in enumerate(data[:5]):
    size |= (byte & 127) << 7 * at
    if byte < 128:
      if size >= 1 << 32:
        break
      return size, at + 1
  raise SnappyError('has no valid length at its start')
