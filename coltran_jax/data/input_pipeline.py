"""Batches of uint8 pictures, the same whatever reads them on how many hosts.

Positions count the pictures that training sees: step k's global batch of B is
the positions k B .. k B + B - 1, and part p of n is rows p B/n .. (p + 1) B/n - 1
of it. A process gives the parts that its devices work on (`sharding.share`). What
is at a position depends on the seed and on nothing else, so training goes on from
any step, on any number of hosts.

Axes: B pictures of a global batch, b those of a process, S side of a picture.
"""

import functools

import cv2
import grain
import numpy as np

from coltran_jax import image
from coltran_jax.data import decoding

DataError = decoding.DataError
_ENDLESS = 1 << 62


def train_batches(
  source,
  *,
  sizes,
  batch_size,
  seed,
  start_step=0,
  parts=(0,),
  num_parts=1,
  flip=False,
  min_crop=1.0,
  num_threads=8,
):
  """Endless iterator of {'image': uint8 [b, S, S, 3]}.

  Every epoch has each picture once, in an order of its own; epochs follow each
  other, within a batch too. A picture is cut to a random square and resized to
  each of the sizes in turn.

  Args:
    source: random access, len and source[i] -> {'image': bytes, 'id': str}.
    sizes: sides in pixels, the last is S. (256, 64) is the reference's way to
      64 pixels. Each resize is by area and rounded.
    batch_size: B, over all processes.
    seed: whole number, 0 or more.
    start_step: the first batch is that of this step.
    parts: those of this process, increasing, each 0..num_parts - 1.
    num_parts: a divisor of B.
    flip: mirror every other picture, at random.
    min_crop: the square's side is that of the largest one times a number drawn
      from min_crop..1.
    num_threads: batches made at a time, each by one thread.

  Raises:
    DataError: source is empty; or, from the iterator, a picture is broken: names
      source, position in it and id.
    ValueError: arguments that make no sense.
  """
  rows = _rows(sizes, batch_size, parts, num_parts)
  if not len(source):
    raise DataError(f'{source} has no pictures')
  if not 0 < min_crop <= 1:
    raise ValueError(f'min_crop must be in 0..1, not {min_crop}')
  if start_step < 0:
    raise ValueError(f'start_step must be 0 or more, not {start_step}')

  total = len(source)

  @functools.lru_cache(maxsize=2)  # A batch may be in two epochs.
  def order(epoch):
    return np.random.default_rng([seed, 0, epoch]).permutation(total)

  def picture(position):
    rng = np.random.default_rng([seed, 1, position])
    epoch, place = divmod(position, total)
    cut = _crop(_read(source, int(order(epoch)[place])), min_crop, rng)
    return cv2.flip(cut, 1) if flip and rng.random() < 0.5 else cut

  def batch(step):
    positions = (step * batch_size + rows).tolist()
    return {'image': _pictures(picture, positions, sizes, len(rows))}

  return _iterate(batch, start_step, _ENDLESS, num_threads)


def eval_batches(
  source,
  *,
  sizes,
  batch_size,
  parts=(0,),
  num_parts=1,
  limit=None,
  num_threads=8,
):
  """Iterator over all pictures once, in order, as dicts of b rows.

  'image': uint8 [b, S, S, 3], the central square, resized as in training.
  '_mask': bool [b], False where the last batch is padded.
  '_id': int32 [b], position in the source, -1 where padded.
  Every process yields the same number of batches.

  Args:
    limit: only the first so many pictures.

  Other arguments and errors are as for `train_batches`.
  """
  rows = _rows(sizes, batch_size, parts, num_parts)
  total = len(source) if limit is None else min(limit, len(source))

  def picture(position):
    return _central(_read(source, position))

  def batch(step):
    id = (step * batch_size + rows).astype(np.int32)
    mask = id < total
    images = _pictures(picture, id[mask].tolist(), sizes, len(rows))
    return {'image': images, '_mask': mask, '_id': np.where(mask, id, -1)}

  return _iterate(batch, 0, -(-total // batch_size), num_threads)


def _rows(sizes, batch_size, parts, num_parts):
  """The rows of a batch that are this process's: int [b], increasing."""
  if not sizes or min(sizes) < 1:
    raise ValueError(f'sizes must be sides in pixels, not {sizes}')
  if batch_size < 1 or batch_size % num_parts:
    raise ValueError(
      f'a batch of {batch_size} cannot be split into {num_parts} parts'
    )
  wrong = [part for part in parts if not 0 <= part < num_parts]
  if wrong or list(parts) != sorted(set(parts)) or not parts:
    raise ValueError(f'no parts {parts} of {num_parts}')
  return np.arange(batch_size).reshape(num_parts, -1)[list(parts)].ravel()


def _iterate(batch, start, stop, num_threads):
  """Iterator of batch(step) from start to stop, made ahead in threads.

  A whole batch is one thread's work: handing over single pictures costs as much
  as decoding small ones.
  """
  steps = grain.MapDataset.range(start, stop).map(batch)
  options = grain.ReadOptions(num_threads, prefetch_buffer_size=num_threads)
  return iter(steps.to_iter_dataset(options))


def _pictures(picture, positions, sizes, rows):
  """Pictures uint8 [rows, S, S, 3] of the positions, resized; the rest is 0."""
  images = np.zeros((rows, sizes[-1], sizes[-1], 3), np.uint8)
  for row, position in enumerate(positions):
    resized = picture(position)
    for size in sizes:
      resized = image.resize(resized, size, size)
    images[row] = resized
  return images


def _read(source, i):
  """Picture uint8 [H, W, 3] at a position of the source."""
  record = source[i]
  try:
    return decoding.decode(record['image'])
  except DataError as error:
    raise DataError(
      f'{source}, record {i} ({record["id"]}): cannot be decoded: {error}'
    ) from error


def _crop(picture, min_crop, rng):
  """A random square of the picture."""
  height, width = picture.shape[:2]
  side = min(height, width)
  if min_crop < 1:
    side = max(1, round(side * rng.uniform(min_crop, 1)))
  top = rng.integers(height - side + 1)
  left = rng.integers(width - side + 1)
  return picture[top : top + side, left : left + side]


def _central(picture):
  height, width = picture.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return picture[top : top + side, left : left + side]
