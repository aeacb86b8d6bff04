"""Many photos: which files go where, one after the other, none lost.

A job is one photo and the files to make of it. A photo that fails is noted and
the others go on; a result is written whole or not at all, never over an input.
"""

import dataclasses
import hashlib
import logging
import mimetypes
import os
import pathlib
import sys

import numpy as np
import tqdm
from tqdm.contrib import logging as tqdm_logging

from coltran_jax import photo, sheets

_log = logging.getLogger('coltran')
PhotoError = photo.PhotoError
STREAM = '-'  # stdin as a photo, stdout as the output.


class UsageError(ValueError):
  """The command line makes no sense; says what to change."""


@dataclasses.dataclass(frozen=True)
class Job:
  """One photo (a path, or '-'), its outputs, and pictures of them or None.

  sheet: of all outputs. uncertainty: of the photo's. No outputs mean stdout.
  format: what to write, None for the photo's own. error: why it cannot be done
  at all, or None.
  """

  source: str
  outputs: tuple[pathlib.Path, ...]
  sheet: pathlib.Path | None = None
  format: str | None = None
  error: str | None = None
  uncertainty: pathlib.Path | None = None

  @property
  def files(self):
    """All files that the job makes."""
    extra = (self.sheet, self.uncertainty)
    return (*self.outputs, *(file for file in extra if file))

  @property
  def name(self):
    """What to call the photo in messages."""
    return 'stdin' if self.source == STREAM else self.source


def plan(sources, output, num_samples, recursive=False, uncertainty=False):
  """Returns the jobs for files, folders and '-'.

  Args:
    sources: strings, in order. A folder gives its pictures, sorted by name.
    output: None, a folder, or if there is one photo and one result: a file, or
      '-' for stdout.
    num_samples: results a photo.
    recursive: also the folders within folders.
    uncertainty: also a picture of it a photo.

  Raises:
    UsageError: no pictures at all, or an output that cannot be meant.
  """
  if '' in sources:
    raise UsageError('a photo has an empty name')
  if sources.count(STREAM) > 1:
    raise UsageError('stdin can be read once only')
  to_stdout = output == STREAM or (not output and list(sources) == [STREAM])
  target = pathlib.Path(output) if output and not to_stdout else None
  one_file = to_stdout or (target and _is_one_file(output))
  found = []  # (source, path below the folder given, that folder)
  empty = []
  for source in sources:
    path = pathlib.Path(source)
    if source != STREAM and path.is_dir():
      files = _pictures(path, recursive, target)
      if not files:
        hint = '' if recursive else ' (--recursive looks in its folders too)'
        empty.append(Job(source, (), error=f'no pictures in it{hint}'))
      found += [(str(path / file), file, path) for file in files]
    else:
      found.append((source, pathlib.Path(path.name), None))
  if not found:
    raise UsageError(f'no pictures in {empty[0].source}; {empty[0].error}')
  if not one_file:
    jobs = [_job(*one, target, num_samples, uncertainty) for one in found]
    return empty + _checked(jobs)
  if len(found) > 1 or num_samples > 1:
    name = 'stdout' if to_stdout else output
    raise UsageError(
      f'{name} takes one picture, but there are {len(found)} photos with '
      f'{num_samples} coloring(s) each; give -o FOLDER'
    )
  source = found[0][0]
  if to_stdout and uncertainty:
    raise UsageError('stdout takes one picture; give -o FILE for two')
  if to_stdout:
    return [*empty, Job(source, ())]
  job = Job(source, (target,), format=_format(target.suffix))
  if uncertainty:
    beside = target.with_name(f'{target.stem}-uncertainty.png')
    job = dataclasses.replace(job, uncertainty=beside)
  return empty + _checked([job])


def _is_one_file(output):
  """True if the output is a picture, False if it is a folder."""
  path = pathlib.Path(output)
  if path.is_dir() or output.endswith(('/', os.sep)):
    return False
  if path.suffix.lower() in photo.EXTENSIONS:
    return True
  kind = mimetypes.guess_type(path.name)[0] or ''
  if kind.startswith('image/'):
    raise UsageError(f'{output}: {path.suffix} pictures cannot be written')
  if path.exists():
    raise UsageError(f'{output} is neither a folder nor a picture')
  return False


def _format(suffix):
  """Returns the format of files with this suffix, or None."""
  if suffix.lower() not in photo.EXTENSIONS:
    return None
  name = suffix[1:].upper()
  return 'JPEG' if name in ('JPE', 'JFIF') else name


def _pictures(folder, recursive, output):
  """Returns the paths, relative to folder, of the pictures in it.

  The results of an earlier run, in the folder `output`, are none of them.
  """
  results = os.path.realpath(output) if output else None
  files, others = [], 0
  for parent, folders, names in os.walk(folder, onerror=_warn):
    folders[:] = sorted(
      name
      for name in folders
      if recursive
      and name[0] != '.'
      and os.path.realpath(os.path.join(parent, name)) != results
    )
    for name in sorted(names):
      path = pathlib.Path(parent, name)
      if path.suffix.lower() in photo.EXTENSIONS and name[0] != '.':
        files.append(path.relative_to(folder))
      else:
        others += 1
  if others:
    _log.info('%s: %d other files left alone', folder, others)
  return files


def _warn(error):
  _log.warning('%s: left out: %s', error.filename, error.strerror)


def _job(source, below, folder, target, num_samples, uncertainty):
  """Returns the Job of one photo; below: its path in what was asked for."""
  if source == STREAM:
    stem, suffix = 'stdin', '.png'
  else:
    # 'a.bmp' becomes 'a.bmp.png': beside an 'a.png' both have their place.
    own = _format(below.suffix)
    change = bool(own) and photo.becomes_png(own)
    stem = below.name if change else below.stem
    suffix = '.png' if change else below.suffix
  if target:
    parent = target / below.parent
  elif folder is not None:
    # abspath: the folder may be '.' or end in '..', which are no names.
    parent = pathlib.Path(f'{os.path.abspath(folder)}-colorized', below.parent)
  else:
    parent, stem = pathlib.Path(source).parent, f'{stem}-colorized'
  format = _format(suffix)  # So that a file holds what its name says.
  beside = parent / f'{stem}-uncertainty.png' if uncertainty else None
  if num_samples == 1:
    outputs = (parent / f'{stem}{suffix}',)
    return Job(source, outputs, format=format, uncertainty=beside)
  width = len(str(num_samples))
  outputs = tuple(
    parent / f'{stem}-{i + 1:0{width}d}{suffix}' for i in range(num_samples)
  )
  sheet = parent / f'{stem}-sheet.png'
  return Job(source, outputs, sheet, format, uncertainty=beside)


def _checked(jobs):
  """Returns jobs; those that would overwrite an input or another get `error`."""
  inputs = {
    os.path.realpath(job.source) for job in jobs if job.source != STREAM
  }
  taken, checked = {}, []
  for job in jobs:
    for part in ('sheet', 'uncertainty'):
      file = getattr(job, part)
      if file and os.path.realpath(file) in taken:
        # That of an 'a.jpg', and this is 'a.png'.
        name = f'{pathlib.Path(job.source).name}-{part}.png'
        job = dataclasses.replace(job, **{part: file.with_name(name)})
    error = None
    for file in job.files:
      real = os.path.realpath(file)
      if real in inputs:
        error = f'its result {file} would overwrite an input'
      elif real in taken:
        error = f'its result {file} would overwrite that of {taken[real]}'
      taken.setdefault(real, job.name)
    checked.append(dataclasses.replace(job, error=error))
  return checked


def share(jobs, process_id, num_processes):
  """Returns the jobs of one of several processes that plan the same.

  A hash of its name decides whose a photo is: it is of one process only,
  whatever comes to a folder or goes between their starts.
  """

  def owner(job):
    digest = hashlib.sha256(os.fsencode(job.source)).digest()
    return int.from_bytes(digest) % num_processes

  return [job for job in jobs if owner(job) == process_id]


def run(colorizer, jobs, options, resume=False):
  """Returns [(photo, reason)] of the photos that failed; does all others.

  Args:
    colorizer: a `pipeline.Colorizer`.
    jobs: as `plan` gives them.
    options: keyword arguments of `Colorizer.draw`.
    resume: leave out photos whose results are all there.
  """
  failed, done = [], 0
  show = None if len(jobs) > 1 else True  # None: on a terminal only.
  with tqdm_logging.logging_redirect_tqdm():
    for job in tqdm.tqdm(jobs, unit='photo', disable=show):
      if resume and not job.error and _is_done(job):
        done += 1
        continue
      try:
        if job.error:
          raise photo.PhotoError(job.error)
        _do(colorizer, job, options)
      except photo.PhotoError as error:
        reason = str(error).removeprefix(f'{job.source}: ')
        failed.append((job.name, reason))
      except MemoryError:
        failed.append((job.name, 'not enough memory'))
      except Exception as error:
        # A mistake of ours, or of the device: told in full, but what a night
        # of work has still before it is done.
        _log.exception('%s: unexpected', job.name)
        failed.append((job.name, f'{type(error).__name__}, see above'))
  if done:
    _log.info('%d of %d were done already', done, len(jobs))
  return failed


def check_before_after(jobs, path):
  """Raises UsageError if `before_after` must not or cannot write to path."""
  files = {os.path.realpath(f) for job in jobs for f in job.files}
  files |= {os.path.realpath(job.source) for job in jobs}
  if not _format(pathlib.Path(path).suffix):
    raise UsageError(f'{path}: give a picture, such as all.jpg')
  if os.path.realpath(path) in files:
    raise UsageError(f'{path} is a photo or a result; choose another')


def before_after(jobs, failed, path):
  """Writes one picture of all jobs that are done: each photo and its coloring.

  failed: what `run` gave. Raises PhotoError if it cannot be written.
  """
  path = pathlib.Path(path)
  names = {STREAM, *(name for name, _ in failed)}
  done = [job for job in jobs if job.source not in names and _is_done(job)]
  if not done:
    _log.warning('%s: no photo to show', path)
    return
  pairs = ((job.source, job.outputs[0]) for job in done)
  _write(path, sheets.before_after(pairs, _format(path.suffix)))
  _log.info('%s: %d photos, before and after', path, len(done))


def _is_done(job):
  return bool(job.files) and all(file.exists() for file in job.files)


def _do(colorizer, job, options):
  if job.source == STREAM:
    read = _from_stdin()
  else:
    read = photo.read(job.source)
  for note in (*read.notes, *photo.dropped(read, job.format)):
    _log.info('%s: %s', job.name, note)
  if read.kind == 'color':
    _log.info('%s: has color; it is turned gray first', job.name)
  elif read.kind == 'sepia':
    _log.info('%s: toned; taken as gray', job.name)
  colorings = colorizer.draw(read, **options)
  like = photo.at_size(read, options['size'])
  if options.get('guide'):
    like = options['guide'].like(like)
  encoded = [
    photo.encode(coloring.pixels, like, job.format) for coloring in colorings
  ]
  if not job.outputs:
    _to_stdout(encoded[0])
    return
  for path, data in zip(job.outputs, encoded, strict=True):
    _write(path, data)
  made = str(job.outputs[0])
  if job.sheet:
    _write(job.sheet, sheets.of_samples(like, colorings))
    made += f' .. {job.outputs[-1].name}, {job.sheet.name}'
  if job.uncertainty:
    made += f', {_write_uncertainty(job.uncertainty, colorings, like)}'
  _log.info('%s -> %s', job.name, made)
  if job.sheet and colorings[0].bits_per_dim is not None:
    bits = (f'{bits:.3f} ({i})' for i, bits in sheets.ranked(colorings))
    _log.info('%s: bits/dim, most likely first: %s', job.name, ', '.join(bits))


def _write_uncertainty(path, colorings, like):
  """Returns what to call a picture of the entropy of colorings; writes it."""
  entropy = np.mean([coloring.entropy for coloring in colorings], axis=0)
  pixels = sheets.uncertainty(entropy, like.pixels.shape[:2])
  _write(path, photo.encode(pixels, photo.read(pixels), 'PNG'))
  return (
    f'{path.name} (mean {entropy.mean():.2f} bits a cell, at most '
    f'{entropy.max():.2f}; white: {sheets.MOST_BITS})'
  )


def _from_stdin():
  data = sys.stdin.buffer.read()
  try:
    return photo.read(data)
  except photo.PhotoError as error:
    text = str(error).removeprefix('picture: ')
    raise photo.PhotoError(text) from error


def _to_stdout(data):
  try:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
  except OSError as error:
    raise photo.PhotoError(f'stdout: {error.strerror}') from error


def _write(path, data):
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise photo.PhotoError(f'{path.parent}: {reason}') from error
  photo.write(path, data)
