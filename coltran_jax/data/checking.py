"""Reads every picture of a source once, in several processes, resumably.

A picture that the input pipeline decodes to the very pixels that `photo.read`
sees is kept as the file is. What differs (turned by EXIF, CMYK, another colour
profile, ...) or is stored in another way is converted to PNG.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading

import cv2
import numpy as np
import tqdm

from coltran_jax import photo
from coltran_jax.data import decoding

_MAX_BYTES = 1 << 28
_CHUNK = 8  # Pictures that a process takes at a time.
_MAX_PIXELS = 1 << 26  # Several are decoded at a time while training.
_EIGHT_BIT_PNG = (b'\x08\x00', b'\x08\x02')  # Depth and colour type.


@dataclasses.dataclass(frozen=True)
class Checked:
  """What is known of a picture file.

  digest: SHA-256 of the file in hex digits, '' if it could not be read.
  size: bytes to store.
  converted: whether a PNG of it was made.
  reason: why it cannot be used, or None.
  kind: 'gray', 'sepia' or 'color', see `photo.Photo`; '' if it cannot be used.
  """

  digest: str
  size: int
  converted: bool
  reason: str | None
  kind: str


@contextlib.contextmanager
def locked(folder):
  """Makes the folder if need be and holds it against other processes.

  Raises DataError if another one is at work in it.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise decoding.DataError(
        f'{folder}: another process is preparing this data set'
      ) from None
    yield


def check_all(source, pictures, folder, workers=None):
  """Returns {id: Checked} of all pictures.

  Pictures that an earlier run found good are in the journal of the folder and
  are not read again unless the file has changed since. A progress bar is shown
  on a terminal.

  Args:
    source: the folder that the paths of pictures start from.
    pictures: as `listing.find` gives them.
    folder: for the journal and the converted pictures, see `converted`.
    workers: processes; by default one a CPU.

  Raises:
    DataError: a process died, or disk or memory is full.
  """
  journal = folder / 'journal.jsonl'
  known = _read(journal)
  results = {
    one.id: known[one.id, *one.stamp]
    for one in pictures
    if (one.id, *one.stamp) in known
  }
  todo = [one for one in pictures if one.id not in results]
  with (
    open(journal, 'a', encoding='utf-8') as file,
    tqdm.tqdm(
      total=len(pictures),
      initial=len(results),
      desc='checking',
      unit='photo',
      disable=None,
    ) as bar,
  ):
    file.write('\n')  # A kill may have cut the last line short.
    paths = [os.path.join(source, one.path) for one in todo]
    for one, result in zip(todo, _checks(paths, folder, workers), strict=True):
      line = [one.id, *one.stamp, dataclasses.asdict(result)]
      file.write(json.dumps(line) + '\n')
      file.flush()
      results[one.id] = result
      bar.update()
  return results


def converted(folder, digest):
  """The path of the PNG made of the picture file with this digest."""
  return folder / f'{digest}.png'


def _read(journal):
  """{(id, size, time): Checked} of the good pictures of a journal.

  Others may have been unreadable for a reason that is gone by now.
  """
  known = {}
  with contextlib.suppress(FileNotFoundError):
    for line in journal.read_text(encoding='utf-8').splitlines():
      with contextlib.suppress(ValueError, TypeError):
        id, size, time, result = json.loads(line)
        checked = Checked(**result)
        if checked.reason is None:
          known[id, size, time] = checked
  return known


def _checks(paths, folder, workers):
  """Yields the Checked of each path, in order."""
  if not paths:
    return
  workers = min(workers or os.cpu_count(), len(paths))
  # Spawned: a fork would copy jax's threads in a broken state.
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, multiprocessing.get_context('spawn'), initializer=_start_worker
  )
  check = functools.partial(_check, folder=folder)
  results = pool.map(check, paths, chunksize=_CHUNK)
  number = 0
  try:
    for result in results:
      yield result
      number += 1
  except concurrent.futures.process.BrokenProcessPool:
    raise decoding.DataError(
      f'{paths[number]} or one of the {workers * _CHUNK} pictures after it ended '
      'a process, most likely for lack of memory; take fewer --workers'
    ) from None
  finally:
    pool.shutdown(cancel_futures=True)


def _start_worker():
  """Lets Ctrl-C be the parent's business, and its end the worker's."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
  multiprocessing.parent_process().join()
  os._exit(1)


def _check(path, folder):
  """The Checked of one file; writes its PNG into the folder if it needs one.

  Raises DataError if disk or memory is full: no fault of the picture, which
  would be left out for good.
  """
  digest, png = '', None
  try:
    if os.path.getsize(path) > _MAX_BYTES:
      raise decoding.DataError(f'is larger than {_MAX_BYTES >> 20} MB')
    data = pathlib.Path(path).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    read = photo.read(data)
    height, width = read.pixels.shape[:2]
    if height * width > _MAX_PIXELS:
      raise decoding.DataError(
        f'{width}x{height} pixels are more than {_MAX_PIXELS // 10**6} million'
      )
    if not _is_plain(data, read):
      png = _png(read)
  except (MemoryError, OSError, decoding.DataError, photo.PhotoError) as error:
    # Readers make whatever is wrong an error of theirs, with this cause.
    causes = (error, error.__cause__)
    if any(isinstance(cause, MemoryError) for cause in causes):
      raise decoding.DataError(
        f'{path}: not enough memory; run again with fewer --workers, or without '
        'this picture'
      ) from None
    reason = decoding.one_line(error).removeprefix('picture: ')
    return Checked(digest, 0, False, reason, '')
  if png is None:
    return Checked(digest, len(data), False, None, read.kind)
  try:
    photo.write(converted(folder, digest), png)
  except photo.PhotoError as error:
    raise decoding.DataError(
      f'cannot write {error}; make room there and run again, it goes on'
    ) from None
  return Checked(digest, len(png), True, None, read.kind)


def _is_plain(data, read):
  """Whether decoding data gives what was read: nothing is to be converted."""
  if read.alpha is not None or read.pixels.dtype != np.uint8:
    return False
  if read.format == 'PNG' and data[24:26] not in _EIGHT_BIT_PNG:
    return False
  if read.format not in ('JPEG', 'PNG'):
    return False
  decoded = decoding.decode(data)
  return decoded.shape[:2] == read.pixels.shape[:2] and bool(
    (decoded == read.pixels).all()
  )


def _png(read):
  """The PNG file of a Photo's pixels, 8 bit, gray where they are."""
  pixels = photo.eight_bit(read.pixels)
  done, data = cv2.imencode('.png', np.ascontiguousarray(pixels[..., ::-1]))
  if not done:
    raise decoding.DataError('cannot be converted to PNG')
  return data.tobytes()
