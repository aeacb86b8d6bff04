"""The spatial upsampler at the size of the paper (10,910,464 parameters).

    coltran train --config configs/spatial_upsampler.py --workdir runs/spatial_upsampler \
      --data_dir data

Expected: the likelihood was not published. Cost: 300,000 steps of 32 pictures
on the 32 cores of a 4x4 TPU v2; measure steps/s on the slice at hand.

Variants, joined by commas (`configs/spatial_upsampler.py:finetune,debug`):
- tpu: bfloat16, for TPUs; launch/README.md has a table of what it needs on which.
- finetune: goes on from published weights (`--set init_from=weights`) on
  the 100-sports photos.
- 512: not the paper's: 64 pixels to 512, each picture's rows split over 8
  devices by `--set mesh.seq=8`. Compiled for a v5e-16 a step of 16 pictures
  needs 6.9 GiB of a chip's 15.8 and an estimated 0.70 s.
- 1024: the same, with `--set accumulate=4` for parts of 2 pictures: a step of 8
  needs 5.8 GiB and an estimated 2.1 s.
- sports: from nothing on the 100-sports photos, small, for a CPU.
- debug: tiny, ends within a minute on two cores.
"""

from coltran_jax import configuration

_LARGE = {'model': {'dtype': 'bfloat16', 'remat': True}}
VARIANTS = {
  'tpu': [configuration.TPU],
  'finetune': [
    configuration.FINETUNE,
    {'batch_size': 8, 'eval_batch_size': 8},
  ],
  '512': [
    _LARGE,
    {
      'model': {'resolution': (512, 512)},
      'data': {'sizes': (512,)},
      'batch_size': 16,
      'eval_batch_size': 16,
    },
  ],
  '1024': [
    _LARGE,
    {
      'model': {'resolution': (1024, 1024)},
      'data': {'sizes': (1024,)},
      'batch_size': 8,
      'eval_batch_size': 4,
    },
  ],
  'sports': [
    configuration.SPORTS,
    {
      'model': {
        'resolution': (64, 64),
        'hidden_size': 64,
        'mlp_size': 128,
        'num_layers': 2,
      },
      'loss': {'low_resolution': 32},
      'data': {'sizes': (128, 64)},
      'eval_batch_size': 16,
      'eval_pictures': 240,
      'num_steps': 1500,
    },
  ],
  'debug': [
    configuration.DEBUG,
    {
      'model': {
        'resolution': (16, 16),
        'hidden_size': 32,
        'mlp_size': 32,
        'num_layers': 1,
      },
      'loss': {'low_resolution': 8},
      'data': {'sizes': (16,)},
    },
  ],
}


def get_config(arg=''):
  """Returns the config; see the top for the variants in arg."""
  config = configuration.training(
    'spatial_upsampler',
    model={
      'resolution': (256, 256),
      'hidden_size': 512,
      'mlp_size': 512,
      'num_heads': 4,
      'num_layers': 3,
      'dtype': 'float32',
      'remat': False,
    },
    loss={'low_resolution': 64},
    mesh={'data': -1, 'fsdp': 1, 'seq': 1},
    data={'sizes': (256,)},
    batch_size=32,
    eval_batch_size=32,
    num_steps=300_000,
  )
  return configuration.with_variants(config, VARIANTS, arg)
