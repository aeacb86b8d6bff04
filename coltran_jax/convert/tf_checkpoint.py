"""The published TensorFlow checkpoints as models and parameters."""

import dataclasses
import pathlib
import re

import numpy as np

from coltran_jax import models
from coltran_jax.convert import reference, tensor_bundle

_EMA = '/ExponentialMovingAverage:0'
# Conditional layer norm keeps the unit scale and zero shift of the Keras norm
# inside it as variables that are never trained.
_CONSTANTS = {'/normalize/gamma:0': 1, '/normalize/beta:0': 0}
_BOOKKEEPING = re.compile(
  r'_CHECKPOINTABLE_OBJECT_GRAPH|save_counter|optimizer/\w+'
)


@dataclasses.dataclass(frozen=True)
class Account:
  """Every tensor of a checkpoint, by what it is: {reference name: key}.

  variables: what was trained. ema: their moving averages, under the variables'
  names. slots: the optimizer's state, as 'NAME SLOT'. constants: ones and zeros
  inside conditional layer norms. bookkeeping: counters and hyperparameters.
  """

  stage: str
  variables: dict[str, str]
  ema: dict[str, str]
  slots: dict[str, str]
  constants: dict[str, str]
  bookkeeping: dict[str, str]


def account(reader):
  """Returns the Account of a `tensor_bundle.Reader`'s tensors.

  Raises ConversionError for a tensor that is none of the above, an average or
  slot without its variable, or variables of no stage.
  """
  kinds = {field.name: {} for field in dataclasses.fields(Account)[1:]}
  for key in reader.entries:
    parts = tensor_bundle.split_key(key)
    name = parts.node.replace(_EMA, ':0')
    name = f'{name} {parts.slot}' if parts.slot else name
    kinds[_kind(parts)][name] = key
  stages = {
    reference.STAGES[name.partition('/')[0]]
    for name in kinds['variables']
    if name.partition('/')[0] in reference.STAGES
  }
  if len(stages) != 1:
    raise reference.ConversionError(
      f'{reader.index_path}: expected the variables of one ColTran model, found '
      f'those of {", ".join(sorted(stages)) or "none"}'
    )
  for kind in ('ema', 'slots'):
    for name, key in kinds[kind].items():
      if name.partition(' ')[0] not in kinds['variables']:
        raise reference.ConversionError(
          f'{reader.index_path}: {key} belongs to no variable'
        )
  return Account(stages.pop(), **kinds)


def _kind(parts):
  if parts.slot is not None:
    return 'slots'
  if parts.node.endswith(_EMA):
    return 'ema'
  if parts.node.endswith(tuple(_CONSTANTS)):
    return 'constants'
  if _BOOKKEEPING.fullmatch(parts.node):
    return 'bookkeeping'
  return 'variables'


def load_tf_checkpoint(path, weights='ema'):
  """Returns (stage, model, params) of one published checkpoint.

  Args:
    path: a folder, or a prefix such as `colorizer/model-302`.
    weights: 'ema', the averages that the reference samples with, or 'raw'.

  Raises:
    tensor_bundle.BundleError: the files are missing or damaged.
    ConversionError: they do not hold a ColTran model; names the tensors.
  """
  if weights not in ('ema', 'raw'):
    raise ValueError(f"weights must be 'ema' or 'raw', not {weights!r}")
  reader = tensor_bundle.Reader(tensor_bundle.find_prefix(path))
  reader.check_shards()
  tensors = account(reader)
  stage = tensors.stage
  try:
    shapes = {
      name: reader.entries[key].shape for name, key in tensors.variables.items()
    }
    model = reference.model_for(stage, shapes)
    paths = reference.check(stage, model, shapes)
    keys = tensors.variables if weights == 'raw' else tensors.ema
    missing = sorted(set(tensors.variables) - set(keys))
    if missing:
      raise reference.ConversionError(
        f'no moving average of {missing[0]}'
        + (f' and {len(missing) - 1} more' if len(missing) > 1 else '')
        + "; convert with weights='raw' (--raw)"
      )
    for name, key in tensors.constants.items():
      value = _CONSTANTS['/' + '/'.join(name.split('/')[-2:])]
      if np.any(reader.read(key) != value):
        raise reference.ConversionError(
          f'{key} should be all {value}: this norm was trained, which the '
          'published model never does'
        )
    variables = {name: _floats(reader, key) for name, key in keys.items()}
    params = reference.to_params(paths, variables)
  except reference.ConversionError as error:
    raise reference.ConversionError(f'{reader.index_path}: {error}') from None
  used = {*keys.values(), *tensors.constants.values()}
  for key in reader.entries:
    if key not in used:
      reader.read(key)  # For its crc alone: a damaged file is not trusted.
  return stage, model, params


def _floats(reader, key):
  value = reader.read(key)
  if value.dtype != np.float32:
    raise reference.ConversionError(f'{key} is {value.dtype}, not float32')
  if not np.all(np.isfinite(value)):
    raise reference.ConversionError(f'{key} holds values that are not finite')
  return value


def find_stages(path):
  """Returns {stage: folder or prefix} of one stage's files or a folder of all.

  Raises BundleError if there is no checkpoint, or two of one stage.
  """
  path = pathlib.Path(path)
  folders = {}
  if path.is_dir() and not any(path.glob('*.index')):
    for folder in sorted(path.iterdir()):
      for stage in models.MODELS:
        if folder.is_dir() and folder.name.startswith(stage):
          if stage in folders:
            raise tensor_bundle.BundleError(
              f'{path}: both {folders[stage].name} and {folder.name} look like '
              f'a {stage}; give the path of one'
            )
          folders[stage] = folder
    if not folders:
      names = ', '.join(f'{stage}*' for stage in models.MODELS)
      raise tensor_bundle.BundleError(
        f'{path}: neither a TensorFlow checkpoint (*.index) nor folders named '
        f'{names}'
      )
    return folders
  prefix = tensor_bundle.find_prefix(path)
  return {account(tensor_bundle.Reader(prefix)).stage: prefix}
