"""The spatial upsampler at the size of the paper (10,910,464 parameters).

Speed of inference: `python tests/benchmarks/speed.py`.
"""

import ml_collections


def get_config(arg=''):
  """Returns the config; 'debug' makes it tiny, for a CPU and tests."""
  if arg not in ('', 'debug'):
    raise ValueError(f"expected '' or 'debug', not {arg!r}")
  model = ml_collections.ConfigDict(
    {
      'resolution': (256, 256),
      'hidden_size': 512,
      'mlp_size': 512,
      'num_heads': 4,
      'num_layers': 3,
    }
  )
  if arg == 'debug':
    model.update(resolution=(16, 16), hidden_size=32, mlp_size=32, num_layers=1)
  config = ml_collections.ConfigDict(
    {'name': 'spatial_upsampler', 'model': model}
  )
  return config.lock()
