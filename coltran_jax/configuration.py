"""Training configs: the sections that all have, loading one, changing it.

`config.model` is exactly the module's keyword arguments, `config.loss` those of
the loss, `config.optimizer` those of `train_state.make_optimizer`,
`config.mesh` those of `sharding.make_mesh`. So every default lives once.
"""

import ast
import importlib.util
import json
import pathlib

import ml_collections

# Changes that the variants of several configs share; see the configs.
SPORTS_DATA = {'name': 'sports', 'flip': True, 'min_crop': 0.7}
FINETUNE = {
  'init_from': 'weights',
  'data': SPORTS_DATA,
  'optimizer': {'learning_rate': 3e-5, 'warmup_steps': 200, 'clip_norm': 1.0},
  'num_steps': 3000,
  'log_every': 20,
  'eval_every': 500,
  'sample_every': 500,
  'save_every': 250,
}
SPORTS = {
  'data': SPORTS_DATA,
  'optimizer': {
    'name': 'muon',
    'learning_rate': 1e-3,
    'warmup_steps': 50,
    'decay': 'cosine',
  },
  'ema_decay': 0.99,
  'batch_size': 16,
  'eval_batch_size': 48,
  'log_every': 25,
  'eval_every': 200,
  'sample_every': 400,
  'save_every': 100,
}
# The paper's batches fit without `remat`, which would take a third more time.
TPU = {'model': {'dtype': 'bfloat16'}}
DEBUG = {
  'data': {'name': 'folder'},
  'batch_size': 8,
  'eval_batch_size': 8,
  'num_steps': 20,
  'sample_pictures': 4,
  'log_every': 2,
  'eval_every': 10,
  'sample_every': 10,
  'save_every': 5,
}


class ConfigError(ValueError):
  """A config that cannot be used; says which key, and why."""


def training(name, model, **changes):
  """Returns an unlocked config: all keys, with `changes` made to the defaults.

  Args:
    name: the model's, as in `models.MODELS`.
    model: its keyword arguments.
    changes: values of keys, or dicts of values for sections.
  """
  config = ml_collections.ConfigDict(
    {
      'name': name,
      'model': model,
      'loss': {},
      'data': {
        'name': 'imagenet2012',
        'train_split': 'train',
        'eval_split': 'valid',
        'sizes': (256,),  # Sides of the squares, one made of the other.
        'flip': False,
        'min_crop': 1.0,  # Least side of a random crop, of the largest square.
      },
      'optimizer': {
        'name': 'rmsprop',
        'learning_rate': 3e-4,
        'warmup_steps': 0,
        'decay': 'constant',
        'weight_decay': 0.0,
        'clip_norm': ml_collections.config_dict.placeholder(float),
      },
      'ema_decay': 0.999,
      'batch_size': 1,  # Pictures a step, of all devices.
      'accumulate': 1,  # Parts of the batch that a step takes one by one.
      'num_steps': 1,
      'seed': 0,
      'mesh': {'data': -1, 'fsdp': 1},
      'init_from': '',  # A checkpoint directory to start from, for fine-tuning.
      'eval_batch_size': 1,
      'eval_pictures': -1,  # -1: all of the split.
      'sample_pictures': 8,  # Of the eval split, colored for the person to see.
      'log_every': 100,
      'eval_every': 5000,
      'sample_every': 5000,
      'save_every': 1000,
      'keep': 3,  # Newest checkpoints, beside the best.
    }
  )
  config.update(changes)
  return config


def load(path, changes=()):
  """Returns the locked config of 'FILE.py' or 'FILE.py:ARG'.

  Args:
    path: a Python file that has get_config(arg='').
    changes: strings 'KEY=VALUE', keys with dots, values as in Python.

  Raises ConfigError that says what is wrong.
  """
  file, _, arg = str(path).partition(':')
  if not pathlib.Path(file).is_file():
    raise ConfigError(f'no config {file}')
  try:
    spec = importlib.util.spec_from_file_location('config', file)
    if spec is None:
      raise ValueError('not a Python file')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arg)
  except Exception as error:  # A config is a program: anything may go wrong.
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise ConfigError(f'{file}: {reason}') from error
  for change in changes:
    _change(config, change)
  return config.lock()


def _change(config, change):
  key, equals, text = change.partition('=')
  if not equals:
    raise ConfigError(f'expected KEY=VALUE, not {change!r}')
  *sections, last = key.split('.')
  for section in sections:
    config = config.get(section, None)
    if not isinstance(config, ml_collections.ConfigDict):
      raise ConfigError(f'the config has no section {section!r} ({change})')
  if last not in config and sections != ['model'] and sections != ['loss']:
    near = ', '.join(sorted(config))
    raise ConfigError(f'the config has no key {key!r}; there are {near}')
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = text  # A word, as in optimizer.name=adam.
  try:
    with config.unlocked():
      config[last] = value
  except (TypeError, ValueError) as error:
    raise ConfigError(f'{change}: {" ".join(str(error).split())}') from error


def to_dict(config):
  """Returns the config as JSON-ready dicts, tuples as lists."""
  return json.loads(config.to_json())


def differences(old, new):
  """Returns lines 'KEY: OLD -> NEW' of two such dicts."""
  lines = []
  for key in sorted(set(old) | set(new)):
    before, after = (d.get(key, '(none)') for d in (old, new))
    if isinstance(before, dict) and isinstance(after, dict):
      lines += [f'{key}.{line}' for line in differences(before, after)]
    elif before != after:
      lines.append(f'{key}: {before} -> {after}')
  return lines


def with_variants(config, variants, arg):
  """Returns the config, locked, after the changes of each variant in arg.

  variants: {name: list of changes, made one after the other}. arg: their names, joined by commas, or ''.

  Raises ValueError that lists the names there are.
  """
  for name in filter(None, arg.split(',')):
    if name not in variants:
      raise ValueError(
        f'no variant {name!r}; there are {", ".join(variants)}, or several '
        'joined by commas'
      )
    for changes in variants[name]:
      config.update(changes)
  return config.lock()
