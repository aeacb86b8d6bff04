"""Is all well here? Versions, devices, cache, weights, and a test of itself.

The self-test colors a picture that is made up on the spot, with the weights that
would be used. The sampler must meet the probabilities of one teacher-forced
pass; and where WEIGHTS/golden.npz says what a well machine made of the picture,
this one must make the same of it. What is compared is continuous (likelihoods,
levels of given codes): drawn codes may differ between processors, where two of
them are almost as probable.
"""

from importlib import metadata
import io
import os
import pathlib
import platform
import time
from typing import NamedTuple

import jax
import numpy as np

from coltran_jax import (
  checkpoint,
  cnn_pipeline,
  color,
  image,
  losses,
  photo,
  pipeline,
)

GOLDEN = 'golden.npz'
_MOST_BYTES = 1 << 20  # Of a golden file.
_SMALL = 64  # Side of a recorded picture in pixels.
_NATS = 1e-3  # Largest difference of log probabilities, sampled and forced.
_BITS = 2e-3  # Largest difference in bits/dim from a golden file's.
_LEVELS = 1.0  # Largest mean difference of levels 0..255 from its pictures.
_PACKAGES = (
  *('coltran-jax', 'jax', 'jaxlib', 'flax', 'orbax-checkpoint', 'numpy'),
  *('opencv-python-headless', 'pillow', 'scipy'),
)


class Finding(NamedTuple):
  """What was looked at, what was seen, and whether that is well."""

  name: str
  text: str
  ok: bool = True


def examine():
  """Yields the `Finding`s about versions, devices and cache."""
  yield Finding('python', f'{platform.python_version()} {platform.platform()}')
  for name in _PACKAGES:
    try:
      yield Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
      yield Finding(name, 'not installed', ok=False)
  for device in jax.devices():
    yield _device(device)
  folder = jax.config.jax_compilation_cache_dir
  if folder:
    files = [path for path in pathlib.Path(folder).glob('*') if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    text = f'{folder}: {len(files)} compiled programs, {size:.0f} MB'
    yield Finding('cache', text)
  else:
    yield Finding('cache', 'none can be written: each start compiles anew')


def _device(device):
  name = f'device {device.id}'
  ones = jax.device_put(np.ones((256, 256), np.float32), device)
  try:
    total = float((ones @ ones).sum())
  except jax.errors.JaxRuntimeError as error:
    return Finding(name, checkpoint.first_line(error), ok=False)
  kind = f'{device.platform}, {device.device_kind}'
  if total != 256**3:
    return Finding(name, f'{kind}: sums 256^3 ones to {total}', ok=False)
  return Finding(name, kind)


def find_weights(chosen):
  """Yields the `Finding`s about weights that can be found.

  chosen: that would be used, a name or directory.
  """
  yield Finding('shipped weights', ', '.join(checkpoint.shipped()) or 'none')
  named = os.environ.get('COLTRAN_WEIGHTS')
  yield Finding('$COLTRAN_WEIGHTS', named or 'not set')
  try:
    folder = checkpoint.find(chosen)
    stages = sorted(path.parent.name for path in folder.glob('*/config.json'))
    for stage in stages:
      _, params = pipeline.load_stage(folder, stage)
      count = sum(leaf.size for leaf in jax.tree.leaves(params))
      text = f'{folder / stage}: {count:,} parameters, fingerprint is right'
      yield Finding(f'weights: {stage}', text)
    if not set(stages) & {'colorizer', 'cnn'}:
      yield Finding(
        'weights', f'{folder} has no colorizer, nor a cnn', ok=False
      )
  except checkpoint.CheckpointError as error:
    yield Finding('weights', str(error), ok=False)


def test(weights):
  """Yields the `Finding`s of the self-test with these weights.

  Raises CheckpointError if they are missing or wrong.
  """
  folder = checkpoint.find(weights)
  golden = _read(folder / GOLDEN)
  if (folder / 'colorizer').exists():
    colorizer = pipeline.Colorizer.from_pretrained(folder)
    yield _sampler(colorizer)
    if golden:
      codes = golden.get('codes', np.zeros(0))
      if codes.shape == colorizer.stages['colorizer'][0].resolution:
        yield from _compare(_colored(colorizer, codes), golden)
      else:
        yield Finding('self-test', f'{GOLDEN} is of other weights', ok=False)
  if (folder / 'cnn').exists():
    made = _colored_by_cnn(cnn_pipeline.CNNColorizer.from_pretrained(folder))
    if golden:
      yield from _compare(made, golden)
  if not golden:
    text = f'{folder / GOLDEN} is not there, so nothing to compare with'
    yield Finding('self-test, golden', text)


def record(weights):
  """Returns the path of the golden file that it writes beside weights.

  Raises CheckpointError if they are missing or wrong, PhotoError if the file
  cannot be written.
  """
  folder = checkpoint.find(weights)
  golden = {}
  if (folder / 'colorizer').exists():
    colorizer = pipeline.Colorizer.from_pretrained(folder)
    codes = color.to_codes(_drawn(colorizer).coarse[0])
    golden |= _colored(colorizer, np.asarray(codes))
  if (folder / 'cnn').exists():
    golden |= _colored_by_cnn(cnn_pipeline.CNNColorizer.from_pretrained(folder))
  file = io.BytesIO()
  np.savez_compressed(file, **golden)
  photo.write(folder / GOLDEN, file.getvalue())
  return folder / GOLDEN


def _picture():
  """Returns uint8 [192, 256]: bright sky, a disc, striped ground."""
  rows, columns = np.mgrid[:192, :256]
  levels = np.where(
    rows < 110, 230 - rows // 2, 60 + (rows + columns) // 8 % 4 * 20
  )
  disc = (rows - 96) ** 2 + (columns - 90) ** 2 < 45**2
  return np.where(disc, 100 + columns // 2, levels).astype(np.uint8)


def _grays(colorizer):
  """Returns the picture's (gray [1, h, w], gray [1, H, W]) for the stages."""
  low, full, _ = colorizer.frame(_picture()[..., None])
  return low[None], full[None]


def _drawn(colorizer):
  return colorizer.run(
    *_grays(colorizer), jax.random.split(jax.random.key(0), 1)
  )


def _log_probs(colorizer, codes):
  """Returns float32 [h, w] of codes [h, w], by one teacher-forced pass."""
  model, params = colorizer.stages['colorizer']
  gray = _grays(colorizer)[0]
  logits = jax.jit(model.apply)({'params': params}, gray, codes[None])[0]
  return np.asarray(losses.log_probs(logits[0], codes))


def _sampler(colorizer):
  """Returns the Finding whether the sampler draws from the model."""
  start = time.monotonic()
  drawn = _drawn(colorizer)
  seconds = time.monotonic() - start
  forced = _log_probs(colorizer, color.to_codes(drawn.coarse[0]))
  off = float(np.abs(forced - drawn.log_probs[0]).max())
  return Finding(
    'self-test, sampler',
    f'a picture in {seconds:.1f} s, compiling included; log probabilities '
    f'within {off:.1g} of one teacher-forced pass (at most {_NATS})',
    ok=off <= _NATS,  # False for NaN, too.
  )


def _colored(colorizer, codes):
  """Returns {name: array}: codes and what the three stages say about them."""
  codes = codes.astype(np.int32)
  _, low, full = colorizer.refine(codes[None], *_grays(colorizer))
  bits = -_log_probs(colorizer, codes).mean() / np.log(2)
  return {
    'codes': codes.astype(np.uint16),
    'bits_per_dim': np.float32(bits),
    'color_upsampler': image.resize(low[0], _SMALL, _SMALL),
    'spatial_upsampler': image.resize(full[0], _SMALL, _SMALL),
  }


def _colored_by_cnn(cnn):
  (made,) = cnn.colorize(photo.read(_picture()))
  return {'cnn': image.resize(made, _SMALL, _SMALL)}


def _compare(made, golden):
  """Yields the Findings of what was made against a golden file's."""
  for name, array in made.items():
    wanted = golden.get(name)
    label = f'self-test, {name}'
    if wanted is None or wanted.shape != array.shape:
      yield Finding(label, f'{GOLDEN} is of other weights', ok=False)
    elif name == 'bits_per_dim':
      off = abs(float(array) - float(wanted))
      text = f'{array:.4f} bits/dim, recorded {wanted:.4f}'
      yield Finding(label, f'{text} (at most {_BITS} off)', ok=off <= _BITS)
    elif name != 'codes':
      off = np.abs(array.astype(float) - wanted).mean()
      text = f'{off:.2f} of 255 levels off on average (at most {_LEVELS})'
      yield Finding(label, text, ok=bool(off <= _LEVELS))


def _read(path):
  """Returns {name: array} of a golden file, {} if there is none."""
  if not path.exists():
    return {}
  try:
    if path.stat().st_size > _MOST_BYTES:
      raise ValueError('too large')
    with np.load(path, allow_pickle=False) as arrays:
      return dict(arrays)
  except Exception as error:  # numpy and zipfile raise many kinds.
    raise checkpoint.CheckpointError(
      f'{path} cannot be read: {checkpoint.first_line(error)}'
    ) from error
