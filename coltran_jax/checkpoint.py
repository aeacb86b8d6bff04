"""The checkpoint directory: one folder a stage, self-describing, atomic.

    DIR/colorizer/config.json   {"name", "model", "source", "fingerprint"}
                                and, of a colorizer, perhaps "decoding"
    DIR/colorizer/params/       orbax

`config.json` holds all that inference needs besides the arrays; `model` is
exactly the module's keyword arguments. `decoding` is how to draw where nobody says
otherwise, any of `decoding_rule.DEFAULTS`: small weights want to be held in; published
ones say nothing and are drawn from as they are.
"""

import json
import logging
import math
import pathlib
import shutil
import zlib

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from coltran_jax import decoding_rule

SHIPPED = pathlib.Path(__file__).parent / 'weights'
_KEYS = {'fingerprint', 'model', 'name', 'source'}
_MAX_CONFIG_BYTES = 1 << 20


class CheckpointError(ValueError):
  """A checkpoint that is missing or wrong; says which file, and what to do."""


def shipped():
  """Returns the names of the weights in this package, sorted."""
  return sorted(path.name for path in SHIPPED.glob('*') if path.is_dir())


def find(weights):
  """Returns the checkpoint directory (a Path) of a path or a shipped name.

  Raises CheckpointError if there is none.
  """
  directory = pathlib.Path(weights)
  names = shipped()
  if not directory.exists() and str(weights) in names:
    directory = SHIPPED / directory
  if not directory.is_dir():
    raise CheckpointError(
      f'no weights {str(weights)!r}: neither a folder nor shipped with this '
      f'package (which has {", ".join(names) or "none"}); make a folder of the '
      'published checkpoints with `coltran convert`, of a training run with '
      '`coltran export`'
    )
  return directory


def fingerprint(params):
  """Returns 8 hex digits that change with any bit, name or shape in params.

  orbax restores flipped bits in silence; this tells.
  """
  flat = flax.traverse_util.flatten_dict(params)
  return combine({path: (leaf, digest(leaf)) for path, leaf in flat.items()})


def digest(array, xp=np):
  """Returns uint32 []: the words of an array mixed, then summed mod 2^32.

  Each is taken times an odd number that its position gives. xp: numpy, or
  jax.numpy under jit, where the sum is the same over any number of devices.
  """
  array = xp.atleast_1d(array)
  words = array.view(np.dtype(f'u{min(array.dtype.itemsize, 4)}'))
  words = words.astype(np.uint32)
  words ^= words >> np.uint32(15)  # Else top bits of two words could cancel.
  # By axes, not raveled: a sharded array stays where it is.
  position = xp.zeros(words.shape, np.uint32)
  for axis, length in enumerate(words.shape):
    shape = [-1 if i == axis else 1 for i in range(words.ndim)]
    index = xp.arange(length, dtype=np.uint32).reshape(shape)
    position = position * np.uint32(length) + index
  odd = position * np.uint32(2654435762) + np.uint32(1)
  return xp.sum(words * odd, dtype=np.uint32)


def combine(digests):
  """Returns the fingerprint of {path tuple: (array, its digest)}."""
  total = 0
  for path, (leaf, digest) in sorted(digests.items()):
    label = f'{"/".join(path)} {leaf.shape} {leaf.dtype} {int(digest)}'
    total = zlib.crc32(label.encode(), total)
  return f'{total:08x}'


def save(directory, name, model_arguments, params, source, decoding=None):
  """Writes one stage to DIRECTORY/NAME; all of it or nothing.

  Args:
    directory: created if need be.
    name: the stage, as in `models.MODELS`.
    model_arguments: the module's keyword arguments, JSON-ready.
    params: a nested dict of arrays.
    source: a line that says where the parameters come from.
    decoding: how to draw unless told, of `decoding_rule.DEFAULTS`' keys.

  Raises:
    CheckpointError: the stage is there already, or cannot be written.
  """
  check_free(directory, name)
  folder = pathlib.Path(directory).absolute() / name
  config = {
    'name': name,
    'model': model_arguments,
    'source': source,
    'fingerprint': fingerprint(params),
  }
  if decoding:
    config['decoding'] = decoding
  beside = folder.with_name(f'.{name}.incomplete')
  try:
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      checkpointer.save(beside / 'params', ocp.args.PyTreeSave(params))
    # Holds a path of this machine, and says no more than the folder's being there.
    (beside / 'params' / 'commit_success.txt').unlink(missing_ok=True)
    text = json.dumps(config, indent=2) + '\n'
    (beside / 'config.json').write_text(text, encoding='utf-8')
    beside.rename(folder)
  except Exception as error:  # orbax and tensorstore raise many kinds.
    shutil.rmtree(beside, ignore_errors=True)
    raise CheckpointError(
      f'cannot write {folder}: {first_line(error)}'
    ) from error


def halved(params):
  """Returns a tree of float32 arrays in float16, as `save` takes it, too.

  Raises CheckpointError if a number is too large.
  """
  with np.errstate(over='ignore'):
    half = jax.tree.map(lambda x: np.asarray(x).astype(np.float16), params)
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(half)):
    raise CheckpointError('a parameter is too large for float16: use float32')
  return half


def check_free(directory, name):
  """Raises CheckpointError if DIRECTORY/NAME is there already."""
  folder = pathlib.Path(directory) / name
  if folder.exists():
    raise CheckpointError(
      f'{folder} exists; remove it or choose another folder'
    )


def remove(directory, name):
  """Removes DIRECTORY/NAME, and DIRECTORY if nothing else is in it."""
  directory = pathlib.Path(directory)
  shutil.rmtree(directory / name, ignore_errors=True)
  if directory.is_dir() and not any(directory.iterdir()):
    directory.rmdir()


def write_model_card(directory):
  """Writes DIRECTORY/model_card.md: what the stages there are and come from.

  Raises CheckpointError if it cannot be written.
  """
  directory = pathlib.Path(directory)
  lines = ['# ColTran weights', '']
  for path in sorted(directory.glob('*/config.json')):
    config = read_config(path)
    if config['decoding'] == decoding_rule.DEFAULTS:
      del config['decoding']  # It says nothing, and most stages draw nothing.
    lines += [
      f'## {config["name"]}',
      '',
      '```json',
      json.dumps(config, indent=2),
      '```',
      '',
    ]
  try:
    (directory / 'model_card.md').write_text('\n'.join(lines), 'utf-8')
  except OSError as error:
    raise CheckpointError(f'{directory}: {error.strerror}') from error


def load(directory, expected=None):
  """Returns (config, params) of one stage's folder; params are numpy arrays.

  Those stored in float16 are float32 here.

  expected: as in `check_shapes`; what does not fit is not read: a small folder may
  announce arrays of any size. None takes what comes.

  Raises CheckpointError if something is missing, unknown or was changed.
  """
  folder = pathlib.Path(directory).absolute()
  config = read_config(folder / 'config.json')
  path = folder / 'params'
  if not path.is_dir():
    raise CheckpointError(f'{path} is missing')
  try:
    params = read_arrays(path, expected=expected)
  except CheckpointError:
    raise
  except Exception as error:  # orbax and tensorstore raise many kinds.
    raise CheckpointError(
      f'{path} cannot be read: {first_line(error)}'
    ) from error
  actual = fingerprint(params)
  if actual != config['fingerprint']:
    raise CheckpointError(
      f'{path} has fingerprint {actual}, {folder / "config.json"} says '
      f'{config["fingerprint"]}: the arrays were changed or damaged; convert or '
      'download them again'
    )
  return config, jax.tree.map(
    lambda x: x.astype(np.float32) if x.dtype == np.float16 else x, params
  )


def read_arrays(path, names=None, expected=None):
  """Returns the tree of numpy arrays in an orbax folder.

  names: of the top level, the only ones to read; None for all. expected: see
  `load`. Raises CheckpointError, and what orbax and tensorstore raise, which is
  of many kinds.
  """
  logging.getLogger('absl').setLevel(logging.ERROR)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    metadata = checkpointer.metadata(path).item_metadata
    if metadata is None:
      raise CheckpointError(f'{path} has no orbax metadata, or it is damaged')
    tree = {
      key: node
      for key, node in metadata.tree.items()
      if names is None or key in names
    }
    if expected is not None:
      check_shapes(path, tree, expected)
      _check_chunks(path, tree)
    arguments = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
    )
    return checkpointer.restore(
      path,
      ocp.args.PyTreeRestore(
        item=tree, restore_args=arguments, partial_restore=True
      ),
    )


def check_shapes(directory, params, expected):
  """Raises CheckpointError unless params have the expected shapes.

  params: a nested dict of arrays, or of anything else that has a shape.
  expected: {path: shape}, as `models.parameter_shapes` gives it.
  """
  flat = flax.traverse_util.flatten_dict(params)
  for path in sorted(set(flat) | set(expected)):
    name = '/'.join(path)
    if path not in flat:
      raise CheckpointError(f'{directory}: parameter {name} is missing')
    if path not in expected:
      raise CheckpointError(f'{directory}: unknown parameter {name}')
    if flat[path].shape != expected[path]:
      raise CheckpointError(
        f'{directory}: parameter {name} has shape {flat[path].shape}, the model '
        f'in config.json needs {expected[path]}'
      )


def _check_chunks(path, tree):
  """Raises CheckpointError if a chunk, which is unpacked whole, exceeds its array.

  tree: orbax's metadata of arrays.
  """
  for leaf in jax.tree.leaves(tree):
    chunk = leaf.storage.chunk_shape
    if math.prod(chunk) > max(1, math.prod(leaf.shape)):
      raise CheckpointError(
        f'{path}: {leaf.name} of shape {leaf.shape} is in chunks of {chunk}: it was '
        'changed or damaged; convert or download it again'
      )


def read_config(path):
  """Returns what a stage's config.json holds, 'decoding' in full.

  Raises CheckpointError if it is no such file.
  """
  try:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
      raise CheckpointError(f'{path} is no checkpoint config: too large')
    config = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    directory = path.parent.parent
    there = sorted(one.parent.name for one in directory.glob('*/config.json'))
    what = (
      f'{directory} holds {" and ".join(there)} only; are they weights of '
      'another --model?'
      if there
      else 'no checkpoint directory (make one with `coltran convert`)'
    )
    raise CheckpointError(f'{path} is missing: {what}') from None
  except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
    raise CheckpointError(
      f'{path} cannot be read: {first_line(error)}'
    ) from None
  if not isinstance(config, dict) or set(config) - {'decoding'} != _KEYS:
    keys = sorted(config) if isinstance(config, dict) else type(config).__name__
    raise CheckpointError(
      f'{path} must have the keys {sorted(_KEYS)}, not {keys}'
    )
  if not isinstance(config['model'], dict):
    raise CheckpointError(f"{path}: 'model' must be an object")
  decoding = config.get('decoding', {})
  known = decoding_rule.DEFAULTS
  if not isinstance(decoding, dict) or set(decoding) - set(known):
    raise CheckpointError(f"{path}: 'decoding' may have {sorted(known)} only")
  config['decoding'] = known | decoding
  try:
    decoding_rule.check(config['decoding'])
  except ValueError as error:
    raise CheckpointError(f'{path}: {error}') from None
  return config


def first_line(error):
  """Returns what an error says first, for a message of one line."""
  lines = str(error).strip().splitlines()
  return lines[0][:300] if lines else type(error).__name__
