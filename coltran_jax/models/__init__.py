"""The networks, by the name that files, configs and checkpoints use."""

from coltran_jax.models import color_upsampler, colorizer, spatial_upsampler

MODELS = {
  'colorizer': colorizer.Colorizer,
  'color_upsampler': color_upsampler.ColorUpsampler,
  'spatial_upsampler': spatial_upsampler.SpatialUpsampler,
}


def build(name, arguments):
  """Returns the module `name` built from its keyword arguments (a dict).

  Raises ValueError that lists unknown arguments or the names that exist.
  """
  if name not in MODELS:
    raise ValueError(f'unknown model {name!r}; there are {sorted(MODELS)}')
  module = MODELS[name]
  known = {
    f for f in module.__dataclass_fields__ if f not in ('parent', 'name')
  }
  unknown = sorted(set(arguments) - known)
  if unknown:
    raise ValueError(f'{name} has no argument {", ".join(unknown)}')
  arguments = dict(arguments)
  if 'resolution' in arguments:
    arguments['resolution'] = tuple(arguments['resolution'])
  return module(**arguments)
