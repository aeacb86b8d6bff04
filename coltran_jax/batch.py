"""Many photos: which files go where, one after the other, none lost.

A job is one photo and the files to make of it. A photo that fails is noted and
the others go on; a result is written whole or not at all, never over an input.
"""

import dataclasses
import logging
import os
import pathlib
import sys

import numpy as np
import tqdm
from tqdm.contrib import logging as tqdm_logging

from coltran_jax import image, photo

_log = logging.getLogger('coltran')
EXTENSIONS = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.tif', '.tiff'),
  *('.bmp', '.dib', '.heic', '.heif'),
)
# Photos in these formats become PNG: see `photo.encode`.
_BECOME_PNG = ('.bmp', '.dib', '.heic', '.heif')
STDIN = '-'


class UsageError(ValueError):
  """The command line makes no sense; says what to change."""


@dataclasses.dataclass(frozen=True)
class Job:
  """One photo (a path, or '-'), its outputs, and the sheet of all or None.

  format: what to write, None for the photo's own. error: why it cannot be
  done at all, or None.
  """

  source: str
  outputs: tuple[pathlib.Path, ...]
  sheet: pathlib.Path | None = None
  format: str | None = None
  error: str | None = None


def plan(sources, output, num_samples, recursive=False):
  """Returns the jobs for files, folders and '-'.

  Args:
    sources: strings, in order. A folder gives its pictures, sorted by name.
    output: None, a folder, or a file if there is one photo and one result.
    num_samples: results a photo.
    recursive: also the folders within folders.

  Raises:
    UsageError: no pictures in a folder, or an output that cannot be meant.
  """
  found = []  # (source, path below the folder given, that folder)
  for source in sources:
    path = pathlib.Path(source)
    if source != STDIN and path.is_dir():
      files = _pictures(path, recursive)
      if not files:
        hint = '' if recursive else ' (--recursive looks in its folders too)'
        raise UsageError(f'no pictures in {source}{hint}')
      found += [(str(path / file), file, path) for file in files]
    else:
      found.append((source, pathlib.Path(path.name), None))
  target = pathlib.Path(output) if output and output != STDIN else None
  if target and _is_file_name(target):
    if len(found) > 1 or num_samples > 1:
      raise UsageError(
        f'{output} is one file, but there are {len(found)} photos with '
        f'{num_samples} coloring(s) each; give a folder'
      )
    name = target.suffix[1:]
    return _checked([Job(found[0][0], (target,), format=_format(name))])
  jobs = []
  for source, below, folder in found:
    if source == STDIN and target is None:
      if num_samples > 1:
        raise UsageError('stdout takes one coloring; give -o FOLDER')
      jobs.append(Job(source, ()))
      continue
    jobs.append(_job(source, below, folder, target, num_samples))
  return _checked(jobs)


def _is_file_name(path):
  return path.suffix.lower() in EXTENSIONS and not path.is_dir()


def _format(extension):
  aliases = {'jpe': 'JPEG', 'jfif': 'JPEG', 'dib': 'BMP'}
  return aliases.get(extension.lower(), extension.upper())


def _pictures(folder, recursive):
  """Returns the paths, relative to folder, of the pictures in it."""
  files, others = [], 0
  for parent, folders, names in os.walk(folder):
    folders[:] = sorted(f for f in folders if f[0] != '.') if recursive else []
    for name in sorted(names):
      path = pathlib.Path(parent, name)
      if path.suffix.lower() in EXTENSIONS and name[0] != '.':
        files.append(path.relative_to(folder))
      else:
        others += 1
  if others:
    _log.info('%s: %d other files left alone', folder, others)
  return files


def _job(source, below, folder, target, num_samples):
  """Returns the Job of one photo; below: its path in what was asked for."""
  if source == STDIN:
    stem, suffix = 'stdin', '.png'
  else:
    # 'a.bmp' becomes 'a.bmp.png': beside an 'a.png' both have their place.
    change = below.suffix.lower() in _BECOME_PNG
    stem = below.name if change else below.stem
    suffix = '.png' if change else below.suffix
  if target:
    parent = target / below.parent
  elif folder is not None:
    absolute = folder.absolute()
    parent = absolute.with_name(absolute.name + '-colorized') / below.parent
  else:
    parent, stem = pathlib.Path(source).parent, f'{stem}-colorized'
  if num_samples == 1:
    return Job(source, (parent / f'{stem}{suffix}',))
  width = len(str(num_samples))
  outputs = tuple(
    parent / f'{stem}-{i + 1:0{width}d}{suffix}' for i in range(num_samples)
  )
  return Job(source, outputs, parent / f'{stem}-sheet.png')


def _checked(jobs):
  """Returns jobs; those that would overwrite an input or another get `error`."""
  inputs = {os.path.realpath(job.source) for job in jobs if job.source != STDIN}
  taken, checked = {}, []
  for job in jobs:
    error = None
    files = [*job.outputs, *([job.sheet] if job.sheet else [])]
    for file in files:
      real = os.path.realpath(file)
      if real in inputs:
        error = f'its result {file} would overwrite an input'
      elif real in taken:
        error = f'its result {file} would overwrite that of {taken[real]}'
      taken.setdefault(real, job.source)
    checked.append(dataclasses.replace(job, error=error))
  return checked


def run(colorizer, jobs, options, resume=False):
  """Returns [(photo, reason)] of the photos that failed; does all others.

  Args:
    colorizer: a `pipeline.Colorizer`.
    jobs: as `plan` gives them.
    options: keyword arguments of `Colorizer.colorize`.
    resume: leave out photos whose results are all there.
  """
  failed, done = [], 0
  show = None if len(jobs) > 1 else True  # None: on a terminal only.
  with tqdm_logging.logging_redirect_tqdm():
    for job in tqdm.tqdm(jobs, unit='photo', disable=show):
      files = [*job.outputs, *([job.sheet] if job.sheet else [])]
      if resume and files and all(file.exists() for file in files):
        done += 1
        continue
      try:
        if job.error:
          raise photo.PhotoError(job.error)
        _do(colorizer, job, options)
      except photo.PhotoError as error:
        reason = str(error).removeprefix(f'{job.source}: ')
        failed.append((job.source, reason))
      except MemoryError:
        failed.append((job.source, 'not enough memory'))
  if done:
    _log.info('%d of %d were done already', done, len(jobs))
  return failed


def _do(colorizer, job, options):
  source = job.source
  if source == STDIN:
    source = sys.stdin.buffer.read()
  read = photo.read(source)
  for note in (*read.notes, *photo.dropped(read, job.format)):
    _log.info('%s: %s', job.source, note)
  if read.kind == 'color':
    _log.info('%s: has color; it is turned gray first', job.source)
  elif read.kind == 'sepia':
    _log.info('%s: toned; taken as gray', job.source)
  colored = colorizer.colorize(read, **options)
  like = colorizer.like(read, options['size'])
  encoded = [photo.encode(pixels, like, job.format) for pixels in colored]
  if not job.outputs:
    sys.stdout.buffer.write(encoded[0])
    sys.stdout.buffer.flush()
    return
  for path, data in zip(job.outputs, encoded, strict=True):
    _write(path, data)
  if job.sheet:
    _write(job.sheet, _sheet(like, colored))
  _log.info('%s -> %s', job.source, ', '.join(map(str, job.outputs)))


def _write(path, data):
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise photo.PhotoError(f'{path.parent}: {error.strerror}') from error
  photo.write(path, data)


def _sheet(like, colored):
  """Returns a PNG of the photo and its colorings side by side."""
  before = np.broadcast_to(like.pixels, (*like.pixels.shape[:2], 3))
  pictures = [photo.eight_bit(one) for one in (before, *colored)]
  labels = ['photo', *(str(i + 1) for i in range(len(colored)))]
  sheet = image.contact_sheet(
    pictures, columns=min(len(pictures), 5), labels=labels
  )
  return photo.encode(sheet, photo.read(sheet), 'PNG')
