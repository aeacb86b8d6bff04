"""The colorizer at the size of the paper (46,310,400 parameters).

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
      'num_outer_layers': 2,
      'num_inner_layers': 2,
      'encoder_mlp_size': 512,
      'encoder_num_heads': 4,
      'num_encoder_layers': 4,
      'conditional_norm': True,
      'conditional_mlp': 'affine',
      'conditional_attention': 'qkv',
      'parallel_head': True,
    }
  )
  if arg == 'debug':
    model.update(
      resolution=(8, 8),
      hidden_size=32,
      mlp_size=32,
      encoder_mlp_size=32,
      num_encoder_layers=1,
      num_outer_layers=1,
      num_inner_layers=1,
    )
  config = ml_collections.ConfigDict({'name': 'colorizer', 'model': model})
  return config.lock()
