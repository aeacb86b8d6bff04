"""Colorings in folders against their originals: which belong together, how far
apart they are.

A picture's name is its path below its folder without the suffix. A folder of
colorings holds one of each name, or N called NAME-1 .. NAME-N, as `coltran
colorize -n` writes them.
"""

import dataclasses
import json
import logging
import math
import os
import pathlib
import re
import zlib

import jax
import numpy as np
from PIL import Image
import tqdm

from coltran_jax import image, photo, sharding
from coltran_jax.evaluation import image_metrics, lpips

GRAY = 'gray'  # The method that leaves a picture as it is: what to beat.
_AT_ONCE = 1 << 20  # Pixels in a batch, all methods together.
_MOST_PIXELS = 1 << 22  # Of a picture: VGG16's features of more take 1 GB.
_MOST_SHAPES = 8  # That wait for a batch to be full.
_HIGHEST_PSNR = 100.0  # dB, for equal pictures: means stay finite.
_log = logging.getLogger('coltran')


class MismatchError(ValueError):
  """Pictures and originals do not fit together; says which."""


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What to measure: originals and the colorings of several methods.

  truth: {name: path}. methods: {label: {name: [path of each sample]}}.
  """

  truth: dict
  methods: dict

  @property
  def samples(self):
    """{label: samples a picture}, of the methods that have files."""
    return {
      label: len(next(iter(made.values())))
      for label, made in self.methods.items()
    }


@dataclasses.dataclass(frozen=True)
class Settings:
  """How pictures are measured; numbers of other settings are not comparable.

  protocol: LPIPS's range, see `evaluation.lpips`. net: its network. resize:
  side of the square that all are resized to first (PIL's bicubic filter, what
  the study did), or None.
  """

  protocol: str = 'standard'
  net: str = 'vgg16'
  resize: int | None = None

  def __str__(self):
    low, high = lpips.PROTOCOLS[self.protocol]
    text = f'LPIPS ({self.net}, {self.protocol}: {low:g}..{high:g})'
    return text + (f', resized to {self.resize}' if self.resize else '')


def find(truth, folders):
  """Returns the Comparison of a folder of originals and folders of colorings.

  Raises MismatchError: a folder has no pictures, or names are missing or left
  over, all of which are listed.
  """
  originals = {}
  for name, path in files(truth):
    if name in originals:
      raise MismatchError(f'{truth} has two pictures called {name}')
    originals[name] = path
  methods, problems = {}, []
  for name, folder in labelled(folders).items():
    methods[name] = _match(folder, originals, problems)
  if problems:
    raise MismatchError('\n'.join(problems))
  return Comparison(originals, methods)


def files(folder):
  """Returns [(name, path)] of all pictures below a folder, sorted.

  Raises MismatchError if there are none.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise MismatchError(f'{folder} is no folder')
  found = [
    (path.relative_to(folder).with_suffix('').as_posix(), path)
    for path in sorted(folder.rglob('*'))
    if path.suffix.lower() in photo.EXTENSIONS
    and not path.name.startswith('.')
    and path.is_file()
  ]
  if not found:
    raise MismatchError(f'no pictures in {folder}')
  return found


def labelled(folders):
  """Returns {short name: folder}, no two the same, none that of `GRAY`.

  Raises MismatchError if a folder is given twice.
  """
  paths = [pathlib.Path(os.path.abspath(folder)) for folder in folders]
  labels = [path.name for path in paths]
  if len(set(labels)) < len(labels) or GRAY in labels:
    labels = ['/'.join(path.parts[-2:]) for path in paths]
  if len(set(labels)) < len(labels):
    raise MismatchError('a folder is given twice, or has the name of another')
  return dict(zip(labels, folders, strict=True))


def _match(folder, originals, problems):
  """Returns {name: [paths]} of a folder of colorings; notes problems."""
  made, extra = {}, []
  for name, path in files(folder):
    base, number = name, 1
    if name not in originals:
      match = re.fullmatch(r'(.*)-(\d{1,6}|sheet)', name, re.DOTALL)
      if match and match[2] == 'sheet' and match[1] in originals:
        continue  # That of the samples beside it.
      base = match[1] if match else name
      number = int(match[2]) if match and match[2] != 'sheet' else 0
    if base not in originals or number < 1:
      extra.append(name)
    elif made.setdefault(base, {}).setdefault(number, path) != path:
      problems.append(f'{folder}: two pictures for {base}')
  missing = [name for name in originals if name not in made]
  problems += [f'{folder}: {name} is missing' for name in missing]
  problems += [f'{folder}: {name} has no original' for name in extra]
  counts = {len(paths) for paths in made.values()}
  for name, paths in made.items():
    if len(counts) > 1 or sorted(paths) != list(range(1, len(paths) + 1)):
      problems.append(f'{folder}: {name} has samples {sorted(paths)}')
  return {
    name: [made[name][number] for number in sorted(made[name])]
    for name in originals
    if name in made
  }


def measure(comparison, settings, log=None):
  """Returns {label: {metric: float array [pictures, samples]}}.

  Besides the methods there are `GRAY` and 'truth' (colorfulness alone); methods
  with several samples also have 'diversity' [pictures, 1], the mean LPIPS
  between a picture's samples.

  Args:
    comparison: a Comparison.
    settings: a Settings.
    log: a Path VALUES.jsonl that keeps each picture's values. Those that are in
      it or a VALUES-*.jsonl beside it already, of the same settings, methods
      and pixels, are not computed again.

  Raises:
    MismatchError: a coloring has another size than its original.
    PhotoError: a file cannot be read.
    ValueError: pictures too small to measure.
  """
  samples = {GRAY: 1, **comparison.samples}
  names = list(comparison.truth)
  known = _read_logs(log, settings) if log else {}
  rows, waiting, shapes = {}, {}, set()
  mesh = sharding.local_mesh()
  with tqdm.tqdm(total=len(names), unit='picture', disable=None) as bar:

    def flush(shape):
      group = waiting.pop(shape)
      values = _values(
        [pictures for *_, pictures in group], samples, settings, mesh
      )
      for (name, key, _), value in zip(group, values, strict=True):
        rows[name] = value
        _append_log(log, settings, {'name': name, 'key': key, **value})
      bar.update(len(group))

    for name in names:
      pictures = _read(comparison, name, settings)
      key = _key(pictures, samples)
      if key in known.get(name, {}):
        rows[name] = known[name][key]
        bar.update()
        continue
      shape = pictures.shape
      shapes.add(shape)
      if len(shapes) == _MOST_SHAPES + 1:
        _log.warning(
          'pictures of many sizes: each takes a compilation; '
          '--resize 256 makes them equal'
        )
      waiting.setdefault(shape, []).append((name, key, pictures))
      if len(waiting[shape]) == _at_once(shape, mesh):
        flush(shape)
      elif len(waiting) > _MOST_SHAPES:
        flush(next(iter(waiting)))
    for shape in list(waiting):
      flush(shape)
  return _gathered([rows[name] for name in names])


def _at_once(shape, mesh):
  """Returns how many groups [P, H, W, 3] make a batch, some for each device."""
  return sharding.round_up(mesh, max(1, _AT_ONCE // math.prod(shape[:3])))


def _read(comparison, name, settings):
  """Returns uint8 [P, H, W, 3]: truth, gray, then the methods' samples."""
  path = comparison.truth[name]
  truth = read(path, settings.resize)
  height, width = truth.shape[:2]
  if height * width > _MOST_PIXELS:
    raise MismatchError(
      f'{path} has {width}x{height} pixels, too many to measure: give --resize'
    )
  pictures = [truth, gray(truth)]
  for made in comparison.methods.values():
    for path in made[name]:
      picture = read(path, settings.resize)
      if picture.shape != truth.shape:
        sizes = ('x'.join(map(str, p.shape[1::-1])) for p in (picture, truth))
        raise MismatchError(
          '{} has {} pixels, its original {}: give --resize'.format(
            path, *sizes
          )
        )
      pictures.append(picture)
  return np.stack(pictures)


def read(path, resize=None):
  """Returns uint8 [H, W, 3] of a file, resized to a square if asked for."""
  pixels = photo.eight_bit(photo.read(path).pixels)
  pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
  if resize and pixels.shape[:2] != (resize, resize):
    pixels = np.asarray(Image.fromarray(pixels).resize((resize, resize)))
  return pixels


def gray(pixels):
  """Returns uint8 [H, W, 3] of uint8 [H, W, 3]: the L* alone, no chroma."""
  return image.join(pixels, np.full((1, 1, 3), 128, np.uint8))


def _values(groups, samples, settings, mesh):
  """Returns a dict of numbers a picture; groups: uint8 [P, H, W, 3] each."""
  pictures = np.stack(groups)  # [B, P, H, W, 3]
  padding = _at_once(groups[0].shape, mesh) - len(groups)
  pictures = np.concatenate([pictures, pictures[-1:].repeat(padding, 0)])
  pictures = jax.device_put(pictures, sharding.of_batch(mesh))
  members, first = {}, 1
  for label, count in samples.items():
    members[label] = range(first, first + count)
    first += count
  pairs = [(0, i) for i in range(1, first)] + [
    (i, j) for of in members.values() for i in of for j in of if i < j
  ]
  distances = lpips.between(
    lpips.load(settings.net),
    lpips.to_range(pictures, settings.protocol),
    tuple(pairs),
    settings.net,
  )
  distances = dict(zip(pairs, np.asarray(distances).T, strict=True))
  truth = pictures[:, 0]
  out = [{} for _ in groups]

  def note(label, metric, columns):
    for row, *values in zip(out, *columns, strict=False):
      row.setdefault(label, {})[metric] = [float(v) for v in values]

  note('truth', 'colorfulness', [image_metrics.colorfulness(truth)])
  for label, of in members.items():
    made = [pictures[:, i] for i in of]
    note(label, 'lpips', [distances[0, i] for i in of])
    psnr = [image_metrics.psnr(m, truth) for m in made]
    note(label, 'psnr', np.minimum(psnr, _HIGHEST_PSNR))
    for metric in (image_metrics.ssim, image_metrics.ciede2000):
      note(label, metric.__name__, [metric(m, truth) for m in made])
    note(label, 'colorfulness', [image_metrics.colorfulness(m) for m in made])
    if len(of) > 1:
      between = [distances[i, j] for i in of for j in of if i < j]
      note(label, 'diversity', [np.mean(between, axis=0)])
  return out


def _gathered(rows):
  first = {k: v for k, v in rows[0].items() if isinstance(v, dict)}
  return {
    label: {
      metric: np.array([row[label][metric] for row in rows])
      for metric in metrics
    }
    for label, metrics in first.items()
  }


def measured(comparison, settings, log):
  """Returns the names that logs have with all methods of a comparison."""
  end = _key(b'', {GRAY: 1, **comparison.samples})[8:]  # After the checksum.
  return {
    name
    for name, entries in _read_logs(log, settings).items()
    if any(key[8:] == end for key in entries)
  }


def _key(pictures, samples):
  """Returns what values in a log belong to: the pixels, and the methods."""
  return f'{zlib.crc32(pictures):08x} {list(samples.items())}'


def _read_logs(log, settings):
  """Returns {name: {key: values}} of a log, and of VALUES-*.jsonl beside it."""
  known = {}
  for file in (log, *log.parent.glob(f'{log.stem}-*{log.suffix}')):
    for line in file.read_text('utf-8').splitlines() if file.exists() else ():
      try:
        entry = json.loads(line)
        if entry.pop('settings') == str(settings):
          known.setdefault(entry.pop('name'), {})[entry.pop('key')] = entry
      except (ValueError, KeyError, AttributeError):
        continue  # The line that a kill cut short.
  return known


def _append_log(log, settings, entry):
  if log is not None:
    with open(log, 'a', encoding='utf-8') as file:
      # The line break first: a line that a kill cut short stays alone.
      file.write('\n' + json.dumps({'settings': str(settings), **entry}))
