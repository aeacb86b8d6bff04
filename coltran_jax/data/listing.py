"""What a folder of pictures holds, and which split each picture goes to.

Nothing is opened here: names, links and sizes only.
"""

import dataclasses
import logging
import os
import pathlib
import stat

from coltran_jax import photo
from coltran_jax.data import decoding

SPLITS = ('train', 'valid', 'test')
_log = logging.getLogger('coltran')


@dataclasses.dataclass(frozen=True)
class Found:
  """A picture file: its path below the source, its split or None, its state.

  id: the path as text, '/' between folders, whatever bytes the name has.
  stamp: [size in bytes, time of the last change in ns].
  """

  id: str
  path: str
  split: str | None
  stamp: tuple[int, int]


def find(name, source):
  """Returns ([Found], {id: reason}): the pictures, and those not to be read.

  Sorted by id. Splits are those of the folders train, valid and test; without
  any of them, a `folder` has none yet (None). Links that lead out of the
  source, and all links to folders, are not followed. Hidden files and what has
  no picture's suffix are left alone and counted in the log.

  Args:
    name: 'folder' or 'sports'.
    source: the folder.

  Raises:
    DataError: no such folder, no pictures, or not the layout of `name`.
  """
  source = pathlib.Path(source)
  if not source.is_dir():
    raise decoding.DataError(f'{source} is no folder')
  has_splits = any((source / split).is_dir() for split in SPLITS)
  if name == 'sports':
    _check_sports(source)
  found, skipped = [], {}
  for path in _files(source, skipped):
    id = as_text(path)
    split = path.split(os.sep)[0] if has_splits else None
    try:
      stamp = _stamp(source, path)
    except (OSError, decoding.DataError) as error:
      skipped[id] = decoding.one_line(error)
      continue
    if split is not None and (split not in SPLITS or os.sep not in path):
      skipped[id] = 'is outside of the folders train, valid and test'
    else:
      found.append(Found(id, path, split, stamp))
  if not found and not skipped:
    raise decoding.DataError(f'{source}: no pictures in it')
  return sorted(found, key=lambda one: one.id), skipped


def as_text(path):
  """The path as valid Unicode with '/' between folders."""
  text = os.fsencode(path).decode('utf-8', 'backslashreplace')
  return text.replace(os.sep, '/')


def _check_sports(source):
  for split in ('train', 'valid'):
    folder = source / split
    if not folder.is_dir() or not any(one.is_dir() for one in folder.iterdir()):
      raise decoding.DataError(
        f'{source} has not the layout of sports: {split}/CLASS/*.jpg is '
        'missing; give the unzipped folder, or prepare it as `folder`'
      )


def _files(source, skipped):
  """Yields the paths, below source, of files with a picture's suffix."""
  others = 0

  def unreadable(error):
    folder = os.path.relpath(error.filename, source)
    skipped[as_text(folder)] = decoding.one_line(error)

  for parent, folders, names in os.walk(source, onerror=unreadable):
    inside = os.path.relpath(parent, source)
    for name in list(folders):
      path = os.path.normpath(os.path.join(inside, name))
      if name[0] == '.':
        folders.remove(name)
      elif os.path.islink(os.path.join(parent, name)):
        folders.remove(name)
        skipped[as_text(path)] = 'is a link to a folder'
    for name in names:
      suffix = os.path.splitext(name)[1].lower()
      if name[0] == '.' or suffix not in photo.EXTENSIONS:
        others += 1
      else:
        yield os.path.normpath(os.path.join(inside, name))
  if others:
    _log.info('%s: %d other files left alone', source, others)


def _stamp(source, path):
  """The stamp of a file; raises DataError if it must not be read."""
  full = source / path
  if full.is_symlink():
    root = os.path.realpath(source)
    if os.path.commonpath([root, os.path.realpath(full)]) != root:
      raise decoding.DataError('is a link that leads out of the folder')
  status = full.stat()
  if not stat.S_ISREG(status.st_mode):
    raise decoding.DataError('is not a file')  # A pipe would hang.
  return status.st_size, status.st_mtime_ns
