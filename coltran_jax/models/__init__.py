"""The networks, by the name that files, configs and checkpoints use."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp

from coltran_jax.models import (
  cnn,
  color_upsampler,
  colorizer,
  spatial_upsampler,
)

MODELS = {
  'colorizer': colorizer.Colorizer,
  'color_upsampler': color_upsampler.ColorUpsampler,
  'spatial_upsampler': spatial_upsampler.SpatialUpsampler,
  'cnn': cnn.CNN,
}
_COLLECTIONS = ('batch_stats',)
_LARGEST = 1 << 16  # Of any size; layers are fewer.
_MOST_LAYERS = 256
_SMALL = 1 << 19  # Features of a picture: two megabytes.


def build(name, arguments):
  """Returns the module `name` built from its keyword arguments (a dict).

  Raises ValueError that says which name or argument is unknown.
  """
  if name not in MODELS:
    raise ValueError(f'unknown model {name!r}; there are {", ".join(MODELS)}')
  unknown = sorted(set(arguments) - set(_fields(MODELS[name])))
  if unknown:
    raise ValueError(f'{name} has no argument {", ".join(unknown)}')
  for key, value in arguments.items():
    default = getattr(MODELS[name], key)
    if not _fits(value, default):
      raise ValueError(f'{key} cannot be {value!r} (such as {default!r})')
    if key.endswith('_layers') and value > _MOST_LAYERS:
      raise ValueError(f'{key} is {value}, more than {_MOST_LAYERS}')
  arguments = dict(arguments)
  if 'resolution' in arguments:
    arguments['resolution'] = tuple(arguments['resolution'])
  return MODELS[name](**arguments)


def _fits(value, default):
  """True if value is of the kind of an argument's default, and in bounds."""
  if isinstance(default, bool):
    return isinstance(value, bool)
  if isinstance(default, tuple):
    return (
      isinstance(value, (list, tuple))
      and len(value) == len(default)
      and all(map(_fits, value, default))
    )
  if isinstance(default, int) or (default is None and value is not None):
    return type(value) is int and 1 <= value <= _LARGEST
  if isinstance(default, float):
    return type(value) in (int, float) and 0 <= value < 1
  if default == 'affine':
    return value is None or isinstance(value, str)
  return isinstance(value, type(default))


def arguments_of(model):
  """Returns the keyword arguments (JSON-ready) that `build` the same model."""
  out = {name: getattr(model, name) for name in _fields(model)}
  return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}


def _fields(model):
  # flax's own, and where a program runs, which is not the model's.
  others = ('parent', 'name', 'seq_axis')
  return [f for f in model.__dataclass_fields__ if f not in others]


def picture_resolution(model):
  """Returns the (height, width) of pictures to train a model on, None for any.

  A colorizer may see gray that is finer than its codes.
  """
  if isinstance(model, colorizer.Colorizer):
    return model.gray_resolution
  return getattr(model, 'resolution', None)


def chunk(model, lines):
  """Returns lines, or None (all) for a model whose pictures are small.

  Those stay in a processor's cache, and loops over lines double what a start
  spends on tracing.
  """
  height, width = model.resolution
  small = height * width * model.hidden_size <= _SMALL
  return None if small else lines


def init(model, rng):
  """Returns fresh variables {'params': ..., other collections} of a model."""
  if isinstance(model, cnn.CNN):
    return model.init(rng, jnp.zeros((1, 32, 32)))
  picture = jnp.zeros((1, *model.resolution), jnp.int32)
  gray = jnp.zeros((1, *picture_resolution(model)), jnp.int32)
  inputs = [gray, picture]
  if not isinstance(model, colorizer.Colorizer):
    inputs.append(jnp.zeros((1,), jnp.int32))
  return model.init(rng, *inputs)


def join(variables):
  """Returns the one tree of a checkpoint: parameters, and other collections
  under their names beside them."""
  variables = dict(variables)
  return {**variables.pop('params'), **variables}


def split(tree):
  """Returns variables {'params': ..., other collections} of such a tree."""
  params = {k: v for k, v in tree.items() if k not in _COLLECTIONS}
  return {'params': params} | {
    name: tree[name] for name in _COLLECTIONS if name in tree
  }


@functools.lru_cache(maxsize=16)
def parameter_shapes(model):
  """Returns {path: shape} of that tree, without computing anything."""
  tree = jax.eval_shape(lambda: join(init(model, jax.random.key(0))))
  return {
    path: leaf.shape
    for path, leaf in flax.traverse_util.flatten_dict(tree).items()
  }
