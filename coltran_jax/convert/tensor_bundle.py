"""TensorFlow's checkpoints (TensorBundle, "V2") as numpy arrays, no TensorFlow.

`PREFIX.index` is a sorted table: names -> protocol buffers that tell each
tensor's type, shape and place in `PREFIX.data-SSSSS-of-NNNNN`; the empty name
holds the header. Everything is checked against its crc32c, and no size that a
file claims is believed before the real sizes allow it: a damaged or hostile
file ends in a BundleError.

Object checkpoints have names like `NODE/.ATTRIBUTES/ATTRIBUTE` and, for the
slots of an optimizer, `NODE/.OPTIMIZER_SLOT/OPTIMIZER/SLOT/.ATTRIBUTES/...`.
Slashes separate the edges on the way through the object graph; inside the name
of one edge TensorFlow writes '.' as '..' and '/' as '.S', so that '/.' before
a capital begins a keyword and nothing else. See split_key and unescape.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import re
import stat
from typing import NamedTuple

import google_crc32c
import numpy as np

from coltran_jax.convert import bundle_index, sstable

MAX_INDEX_BYTES = 64 << 20
_MAX_CHECKPOINT_FILE_BYTES = 1 << 20
_AGAIN = 'the file is damaged or incomplete, download it again'


class BundleError(ValueError):
  """A checkpoint that cannot be read: which file and tensor, why, what to do."""


# What a Reader holds, under the name of the module that callers import.
Header = bundle_index.Header
Entry = bundle_index.Entry


class Key(NamedTuple):
  """The parts of a tensor's name in an object checkpoint, unescaped."""

  node: str  # 'col_tran_core/dense/kernel:0'
  slot: str | None  # 'optimizer/rms'; None if it is no optimizer's slot
  attribute: str | None  # 'VARIABLE_VALUE'; None if the name has no such part


class Reader:
  """The tensors of one checkpoint; prefix is its path without '.index'.

  Opening reads and checks the whole index and raises BundleError; the data
  files are needed by check_shards and read only.

  Attributes:
    header: Header.
    entries: dict of name -> Entry, in the order of the names.
  """

  def __init__(self, prefix: str | os.PathLike[str]):
    self.prefix = pathlib.Path(prefix)
    self.index_path = pathlib.Path(f'{self.prefix}.index')
    data = _read_file(self.index_path, limit=MAX_INDEX_BYTES)
    with _blame(self.index_path):
      self.header, self.entries = _parse_index(self.index_path, data)

  def shard_path(self, shard: int) -> pathlib.Path:
    """Returns the path of a data file, 0 <= shard < header.num_shards."""
    number = f'{shard:05d}-of-{self.header.num_shards:05d}'
    return pathlib.Path(f'{self.prefix}.data-{number}')

  def check_shards(self) -> None:
    """Raises BundleError unless every data file in use exists at full length.

    The content is left to read.
    """
    ends: dict[int, int] = {}
    for entry in self.entries.values():
      end = entry.offset + entry.size
      ends[entry.shard] = max(end, ends.get(entry.shard, 0))
    for shard, expected in sorted(ends.items()):
      _read_file(self.shard_path(shard), offset=expected, size=0)

  def read(self, name: str) -> np.ndarray:
    """Returns the tensor of that name, read-only, as its entry describes it.

    Strings come as an object array of bytes. Raises BundleError for an unknown
    name, a missing or short data file, and content of a different crc32c.
    """
    if name not in self.entries:
      raise BundleError(f'{self.index_path}: has no tensor {name!r}')
    entry = self.entries[name]
    path = self.shard_path(entry.shard)
    data = _read_file(path, entry.offset, entry.size, tensor=name)
    with _blame(_place(path, name)):
      if entry.is_string:
        return bundle_index.parse_strings(data, entry)
      if google_crc32c.value(data) != entry.crc32c:
        raise sstable.TableError('has a wrong checksum')
    return np.frombuffer(data, entry.dtype).reshape(entry.shape)


def find_prefix(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the prefix of the checkpoint that path means, for Reader.

  path: a prefix, an .index file, or a folder. In a folder the file `checkpoint`
  decides, but never for anything outside of it; without that file, the .index
  file with the highest step number. Raises BundleError unless exactly one fits.
  """
  path = pathlib.Path(path)
  if path.suffix == '.index' and os.path.isfile(path):
    return path.with_suffix('')
  if os.path.isfile(f'{path}.index'):
    return path
  if not os.path.isdir(path):
    raise BundleError(
      f'{path}: no TensorFlow checkpoint here; give a folder, an .index file, '
      'or the path of one without .index'
    )
  # A leading dot: what macOS leaves in archives beside each real file.
  files = [file for file in path.glob('*.index') if file.name[0] != '.']
  names = sorted(file.stem for file in files if file.is_file())
  if not names:
    raise BundleError(f'no TensorFlow checkpoint (*.index) in {path}')
  if os.path.isfile(path / 'checkpoint'):
    named = _named_checkpoint(path / 'checkpoint')
    if named not in names:
      raise BundleError(
        f'{path / "checkpoint"}: names {f"{named}.index" if named else "none"}, '
        f'but the folder has {_listed(names)}; give the path of one of these'
      )
    return path / named
  highest = max(map(_step, names))
  names = [name for name in names if _step(name) == highest]
  if len(names) > 1:
    raise BundleError(
      f'{path}: several checkpoints, {_listed(names)}; give the path of one'
    )
  return path / names[0]


def split_key(name: str) -> Key:
  """Returns the parts of a tensor's name: node, optimizer slot, attribute."""
  path, has_attribute, attribute = name.partition('/.ATTRIBUTES/')
  node, is_slot, slot = path.partition('/.OPTIMIZER_SLOT/')
  return Key(
    unescape(node),
    unescape(slot) if is_slot else None,
    unescape(attribute) if has_attribute else None,
  )


def unescape(name: str) -> str:
  """Returns a name without its attribute and escapes: '.S' -> '/', '..' -> '.'.

  'a.Sb..c:0/.ATTRIBUTES/VARIABLE_VALUE' -> 'a/b.c:0'. An '/.OPTIMIZER_SLOT/'
  stays as it is; split_key tells it from an edge that is called so.
  """
  path = name.partition('/.ATTRIBUTES/')[0]
  # From the left, so '..S' is the escape of '.' and then a plain S.
  return re.sub(r'\.([.S])', lambda m: '/' if m[1] == 'S' else '.', path)


def _parse_index(
  path: pathlib.Path, data: bytes
) -> tuple[Header, dict[str, Entry]]:
  # Twice the limit: room for keys, which share prefixes, beside the values.
  rows = sstable.read_rows(data, max_unfolded=2 * MAX_INDEX_BYTES)
  key, value = next(rows, (None, b''))
  if key != b'':
    raise sstable.TableError('has no header')
  header = bundle_index.parse_header(value)
  entries = {}
  for key, value in rows:
    if key[0] == 0:  # TensorFlow's mark of a slice, not of a tensor
      raise bundle_index.UnsupportedError('has a variable saved in slices')
    try:
      name = key.decode()
    except UnicodeDecodeError:
      raise sstable.TableError(f'has a tensor called {key!r}') from None
    with _blame(_place(path, name)):
      entries[name] = bundle_index.parse_entry(value, header.num_shards)
  return header, entries


def _read_file(
  path: pathlib.Path,
  offset: int = 0,
  size: int | None = None,
  limit: int | None = None,
  tensor: str | None = None,
) -> bytes:
  """Returns size bytes at offset, or a whole file of at most limit bytes.

  tensor: named in the error.
  """
  place = _place(path, tensor)
  try:
    with open(path, 'rb') as file:
      status = os.fstat(file.fileno())
      real = status.st_size if stat.S_ISREG(status.st_mode) else 0
      if limit is not None and real > limit:
        raise BundleError(f'{place}: {real:,} bytes, at most {limit:,} allowed')
      size = real if size is None else size
      if offset + size > real:
        expected = offset + size
        raise BundleError(
          f'{place}: has {real:,} bytes, expected {expected:,}; {_AGAIN}'
        )
      file.seek(offset)
      data = file.read(size)
  except OSError as error:
    needs = f' (expected {offset + size:,} bytes)' if size is not None else ''
    raise BundleError(f'{place}: {error.strerror}{needs}') from error
  if len(data) != size:
    raise BundleError(f'{place}: changed while it was read')
  return data


def _place(path: pathlib.Path, tensor: str | None) -> str:
  return str(path) if tensor is None else f'{path}: tensor {tensor!r}'


@contextlib.contextmanager
def _blame(place: object) -> Iterator[None]:
  """Turns the errors of the parsers into BundleErrors that name the place."""
  try:
    yield
  except sstable.TableError as error:
    raise BundleError(f'{place}: {error}; {_AGAIN}') from None
  except bundle_index.UnsupportedError as error:
    raise BundleError(f'{place}: {error}, which is unsupported') from None


def _named_checkpoint(path: pathlib.Path) -> str:
  """Returns the bare name in a CheckpointState text file, '' without one."""
  match = re.search(
    rb'^[ \t]*model_checkpoint_path[ \t]*:[ \t]*"((?:\\.|[^\\"\n])*)"',
    _read_file(path, limit=_MAX_CHECKPOINT_FILE_BYTES),
    re.MULTILINE,
  )
  if not match:
    return ''
  # The text format writes bytes beyond ASCII in octal.
  value = re.sub(
    rb'\\(?:([0-7]{1,3})|(.))',
    lambda m: m[2] or bytes([int(m[1], 8) & 255]),
    match[1],
  )
  # The last part alone, so that no checkpoint leads out of its folder.
  return re.split(r'[/\\]', value.decode('utf-8', 'replace'))[-1]


def _step(name: str) -> int:
  match = re.search(r'-([0-9]+)$', name)
  return int(match[1]) if match else -1


def _listed(names: list[str]) -> str:
  return ', '.join(f'{name}.index' for name in names)
