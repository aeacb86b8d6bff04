"""The color upsampler at the size of the paper (13,476,608 parameters).

Speed of inference: `python tests/benchmarks/speed.py`.
"""

import ml_collections


def get_config(arg=''):
  """Returns the config; 'debug' makes it tiny, for a CPU and tests."""
  if arg not in ('', 'debug'):
    raise ValueError(f"expected '' or 'debug', not {arg!r}")
  model = ml_collections.ConfigDict(
    {
      'resolution': (64, 64),
      'hidden_size': 512,
      'mlp_size': 512,
      'num_heads': 4,
      'num_layers': 4,
    }
  )
  if arg == 'debug':
    model.update(resolution=(8, 8), hidden_size=32, mlp_size=32, num_layers=1)
  config = ml_collections.ConfigDict(
    {'name': 'color_upsampler', 'model': model}
  )
  return config.lock()
