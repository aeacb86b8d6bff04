"""The color upsampler at the size of the paper (13,476,608 parameters).

    coltran train --config configs/color_upsampler.py --workdir runs/color_upsampler \
      --data_dir data

Expected: the likelihood was not published. Cost: 300,000 steps of 768 pictures
on the 32 cores of a 4x4 TPU v2; measure steps/s on the slice at hand.

Variants, joined by commas (`configs/color_upsampler.py:finetune,debug`):
- tpu: bfloat16, for TPUs; launch/README.md has a table of what it needs on which.
- finetune: goes on from published weights (`--set init_from=weights`) on
  the 100-sports photos.
- sports: from nothing on the 100-sports photos, small, for a CPU.
- debug: tiny, ends within a minute on two cores.
"""

from coltran_jax import configuration

VARIANTS = {
  'tpu': [configuration.TPU],
  'finetune': [
    configuration.FINETUNE,
    {'batch_size': 64, 'eval_batch_size': 64},
  ],
  'sports': [
    configuration.SPORTS,
    {
      'model': {
        'resolution': (32, 32),
        'hidden_size': 128,
        'mlp_size': 256,
        'num_layers': 2,
      },
      'data': {'sizes': (128, 32)},
      'num_steps': 1500,
    },
  ],
  'debug': [
    configuration.DEBUG,
    {
      'model': {
        'resolution': (8, 8),
        'hidden_size': 32,
        'mlp_size': 32,
        'num_layers': 1,
      },
      'data': {'sizes': (32, 8)},
    },
  ],
}


def get_config(arg=''):
  """Returns the config; see the top for the variants in arg."""
  config = configuration.training(
    'color_upsampler',
    model={
      'resolution': (64, 64),
      'hidden_size': 512,
      'mlp_size': 512,
      'num_heads': 4,
      'num_layers': 4,
      'dtype': 'float32',
      'remat': False,
    },
    data={'sizes': (256, 64)},
    batch_size=768,
    eval_batch_size=768,
    num_steps=300_000,
  )
  return configuration.with_variants(config, VARIANTS, arg)
