"""The color upsampler at the size of the paper (13,476,608 parameters).

    coltran train --config configs/color_upsampler.py --workdir runs/color_upsampler \
      --data_dir data

Expected: the likelihood was not published. Cost: 300,000 steps of 768 pictures
on the 32 cores of a 4x4 TPU v2; measure steps/s on the slice at hand.

Variants, joined by commas (`configs/color_upsampler.py:finetune,debug`):
- finetune: goes on from published weights (`--set init_from=WEIGHTS`) on
  the 100-sports photos.
- sports: from nothing on the 100-sports photos, small, for a CPU.
- debug: tiny, ends within a minute on two cores.
"""

from coltran_jax import configuration

SPORTS = {'name': 'sports', 'flip': True, 'min_crop': 0.7}
VARIANTS = {
  'finetune': {
    'data': SPORTS,
    'optimizer': {
      'learning_rate': 3e-5,
      'warmup_steps': 200,
      'clip_norm': 1.0,
    },
    'batch_size': 64,
    'eval_batch_size': 64,
    'num_steps': 3000,
    'log_every': 20,
    'eval_every': 500,
    'sample_every': 500,
    'save_every': 250,
  },
  'sports': {
    'model': {
      'resolution': (32, 32),
      'hidden_size': 64,
      'mlp_size': 128,
      'num_layers': 2,
    },
    'data': SPORTS | {'sizes': (128, 32)},
    'optimizer': {
      'name': 'adamw',
      'learning_rate': 1e-3,
      'warmup_steps': 50,
      'decay': 'cosine',
      'weight_decay': 0.01,
      'clip_norm': 1.0,
    },
    'ema_decay': 0.98,
    'batch_size': 16,
    'eval_batch_size': 48,
    'num_steps': 400,
    'log_every': 10,
    'eval_every': 100,
    'sample_every': 100,
    'save_every': 50,
  },
  'debug': {
    'model': {
      'resolution': (8, 8),
      'hidden_size': 32,
      'mlp_size': 32,
      'num_layers': 1,
    },
    'data': {'name': 'folder', 'sizes': (32, 8)},
    'batch_size': 8,
    'eval_batch_size': 8,
    'num_steps': 20,
    'sample_pictures': 4,
    'log_every': 2,
    'eval_every': 10,
    'sample_every': 10,
    'save_every': 5,
  },
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
