"""Makes the colorings of a data set that `pairs` then measures.

    FOLDER/truth/NAME.png            the originals, as they are measured
    FOLDER/LABEL/NAME.png            one coloring; NAME-1.png .. NAME-N.png if N
    FOLDER/LABEL/bits_per_dim.json   {NAME: bits/dim}, of a colorizer
    FOLDER/options.json              what they were made with

What is there already is kept, so a run that was ended goes on. Of several
processes, process I keeps its likelihoods in bits_per_dim-I.json.
"""

import dataclasses
import functools
import json
import pathlib
import re
from typing import Any

import jax
import numpy as np
from PIL import Image
import tqdm

from coltran_jax import (
  checkpoint,
  cnn_pipeline,
  image,
  losses,
  photo,
  pipeline,
)
from coltran_jax.data import decoding
from coltran_jax.evaluation import pairs

TRUTH = 'truth'
_BITS = 'bits_per_dim'
_AT_ONCE = 16  # Pictures in a batch of the likelihood.


class OptionsError(ValueError):
  """A folder holds colorings that were made otherwise."""


class Every:
  """Every k-th record of a split."""

  def __init__(self, split, k):
    self._split, self._k = split, k

  def __len__(self):
    return -(-len(self._split) // self._k)

  def __getitem__(self, i):
    return self._split[i * self._k]

  def __str__(self):
    return f'{self._split}' + (f', every {self._k}th' if self._k > 1 else '')


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to color. colorize: Photo -> list of `samples` arrays. stage: (model,
  params) of a colorizer, whose likelihood counts, or None."""

  samples: int
  colorize: Any
  stage: Any = None


def methods(weights, options, diffusion):
  """Returns {label: Method} of checkpoint directories.

  Each directory gives the methods whose stages it has: ColTran under its own
  name, the CNN under that and '-cnn' (the name alone if there is no ColTran),
  Stable Diffusion under its own name.

  Args:
    weights: directories or shipped names.
    options: keyword arguments of `pipeline.Colorizer.colorize`.
    diffusion: function of a folder of Stable Diffusion, gives (colorizer,
      keyword arguments of its `colorize`).

  Raises CheckpointError if there is none, or one is wrong.
  """
  found = {}

  def add(label, method):
    if label in (*found, TRUTH):
      raise checkpoint.CheckpointError(f'two sets of weights called {label}')
    found[label] = method

  for one in weights:
    folder = checkpoint.find(one)
    label = folder.absolute().name
    if (folder / 'unet').exists():
      colorizer, chosen = diffusion(folder)
      colorize = functools.partial(colorizer.colorize, **chosen)
      add(label, Method(chosen['num_samples'], colorize))
      continue
    coltran = (folder / 'colorizer').exists()
    if coltran or not (folder / 'cnn').exists():
      colorizer = pipeline.Colorizer.from_pretrained(one, options['fast'])
      add(
        label,
        Method(
          options['num_samples'],
          lambda read, colorizer=colorizer: colorizer.colorize(read, **options),
          colorizer.stages['colorizer'],
        ),
      )
    if (folder / 'cnn').exists():
      cnn = cnn_pipeline.CNNColorizer.from_pretrained(one)
      add(f'{label}-cnn' if coltran else label, Method(1, cnn.colorize))
  return found


def make(
  split, folder, of, options, protocol='standard', size=256, place=(0, 1)
):
  """Returns the `pairs.Comparison` of what it makes: all that is missing.

  Args:
    split: [index] -> {'image': bytes, 'id': str}, such as a `sources.Split`.
    folder: created if need be.
    of: what `methods` gave.
    options: what these were made with; another run must have the same.
    protocol: how originals are prepared. 'standard': the central square, area
      resize to `size`; 'study': the short side to 256 by PIL's bilinear filter,
      then the central 224 (what its validation fed).
    place: (process_id, num_processes): which share of the pictures, all by
      default.

  Raises:
    OptionsError: the folder has other colorings.
    PhotoError, DataError: files or pictures.
  """
  folder = pathlib.Path(folder)
  _check_options(
    folder, {'data': str(split), 'protocol': protocol, 'size': size, **options}
  )
  everything = {TRUTH: Method(1, lambda read: [read.pixels]), **of}
  files = {label: {} for label in everything}
  mine = range(place[0], len(split), place[1])
  for i in tqdm.tqdm(mine, unit='picture', disable=None):
    record, read = split[i], None
    name = _name(i, len(split), record['id'])
    for label, method in everything.items():
      paths = _paths(folder / label, name, method.samples)
      files[label][name] = paths
      if all(path.exists() for path in paths):
        continue
      read = read or photo.read(_prepared(record, protocol, size))
      made = method.colorize(read)
      folder.joinpath(label).mkdir(exist_ok=True)
      for path, pixels in zip(paths, made, strict=True):
        photo.write(path, photo.encode(pixels, read, 'PNG'))
  truth = {name: paths[0] for name, paths in files.pop(TRUTH).items()}
  for label, method in of.items():
    if method.stage and truth:
      path = folder / label / f'{_BITS}{suffix(place)}.json'
      _likelihood(path, method.stage, truth)
  return pairs.Comparison(truth, files)


def suffix(place):
  """Returns what the names of files end in that only one process writes."""
  return '' if place[1] == 1 else f'-{place[0]}'


def likelihoods(folder, of):
  """Returns {label: {name: bits/dim}} of what all processes made."""
  found = {label: {} for label, method in of.items() if method.stage}
  for label, known in found.items():
    for file in pathlib.Path(folder, label).glob(f'{_BITS}*.json'):
      known |= json.loads(file.read_text('utf-8'))
  return found


def _check_options(folder, options):
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / 'options.json'
  text = json.dumps(options, indent=1, sort_keys=True)
  if not path.exists():
    photo.write(path, text.encode())
  elif path.read_text('utf-8') != text:
    raise OptionsError(
      f'{path} says that the colorings there were made with other options; '
      'choose another folder, or remove it'
    )


def _name(index, count, id):
  """Returns a name for one of `count` records that is safe as a file's."""
  safe = re.sub(r'[^A-Za-z0-9.]+', '_', id)[-60:]
  return f'{index:0{len(str(count))}d}-{safe}'


def _paths(folder, name, samples):
  if samples == 1:
    return [folder / f'{name}.png']
  return [folder / f'{name}-{i + 1}.png' for i in range(samples)]


def _prepared(record, protocol, size):
  """Returns uint8 [H, W, 3] of a record."""
  try:
    pixels = decoding.decode(record['image'])
  except decoding.DataError as error:
    raise decoding.DataError(f'{record["id"]}: {error}') from error
  if protocol == 'standard':
    return image.square(pixels, size)
  short = min(pixels.shape[:2])
  sides = tuple(256 * side // short for side in pixels.shape[1::-1])
  resized = np.asarray(
    Image.fromarray(pixels).resize(sides, Image.Resampling.BILINEAR)
  )
  top, left = (round((side - 224) / 2) for side in resized.shape[:2])
  return resized[top : top + 224, left : left + 224]


def _likelihood(path, stage, truth):
  """None; writes {name: bits/dim of its coarse colours}, unless it is there."""
  names = list(truth)
  if path.exists() and list(json.loads(path.read_text('utf-8'))) == names:
    return
  model, params = stage

  @jax.jit
  def bits(params, batch):
    _, metrics, _ = losses.colorizer(
      model, {'params': params}, batch, train=False, rngs=None, frozen=None
    )
    return metrics[_BITS]

  known = {}
  size = model.gray_resolution[0]
  steps = range(0, len(names), _AT_ONCE)
  for start in tqdm.tqdm(steps, desc=_BITS, unit='batch', disable=None):
    some = names[start : start + _AT_ONCE]
    pictures = [
      image.square(photo.read(truth[name]).pixels, size) for name in some
    ]
    pictures += pictures[-1:] * (_AT_ONCE - len(some))
    values = np.asarray(bits(params, {'image': np.stack(pictures)}))
    known |= zip(some, map(float, values), strict=False)
  photo.write(path, json.dumps(known).encode())
