"""The networks, by the name that files, configs and checkpoints use."""

import flax.traverse_util
import jax
import jax.numpy as jnp

from coltran_jax.models import color_upsampler, colorizer, spatial_upsampler

MODELS = {
  'colorizer': colorizer.Colorizer,
  'color_upsampler': color_upsampler.ColorUpsampler,
  'spatial_upsampler': spatial_upsampler.SpatialUpsampler,
}


def build(name, arguments):
  """Returns the module `name` built from its keyword arguments (a dict).

  Raises ValueError that says which name or argument is unknown.
  """
  if name not in MODELS:
    raise ValueError(f'unknown model {name!r}; there are {", ".join(MODELS)}')
  unknown = sorted(set(arguments) - set(_fields(MODELS[name])))
  if unknown:
    raise ValueError(f'{name} has no argument {", ".join(unknown)}')
  arguments = dict(arguments)
  if 'resolution' in arguments:
    arguments['resolution'] = tuple(arguments['resolution'])
  return MODELS[name](**arguments)


def arguments_of(model):
  """Returns the keyword arguments (JSON-ready) that `build` the same model."""
  out = {name: getattr(model, name) for name in _fields(model)}
  return out | {'resolution': list(model.resolution)}


def _fields(model):
  return [f for f in model.__dataclass_fields__ if f not in ('parent', 'name')]


def parameter_shapes(model):
  """Returns {parameter path: shape} of a model, without computing anything."""
  picture = jax.ShapeDtypeStruct((1, *model.resolution), jnp.int32)
  inputs = [picture, picture]
  if not isinstance(model, colorizer.Colorizer):
    inputs.append(jax.ShapeDtypeStruct((1,), jnp.int32))
  tree = jax.eval_shape(model.init, jax.random.key(0), *inputs)['params']
  return {
    path: leaf.shape
    for path, leaf in flax.traverse_util.flatten_dict(tree).items()
  }
