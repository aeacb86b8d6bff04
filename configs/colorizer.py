"""The colorizer at the size of the paper (46,310,400 parameters).

    coltran train --config configs/colorizer.py --workdir runs/colorizer \
      --data_dir data

Expected: the paper's colorizer (FID 19.37 with its upsamplers, protocol
coltran5k); its likelihood was not published. Cost: 450,000 steps of 224
pictures on the 32 cores of a 4x4 TPU v2; measure steps/s on the slice at hand.

Variants, joined by commas (`configs/colorizer.py:small,debug`):
- tpu: bfloat16, for TPUs; launch/README.md has a table of what it needs on which.
- small: in the way of the paper's ColTran-S, whose sizes are not published:
  half the width, a fourth of the parameters.
- finetune: goes on from published weights (`--set init_from=weights`) on
  the 100-sports photos.
- sports: small, 32x32 codes, for a CPU, on the 100-sports photos.
- sports_encoder: its encoder alone, first: what grass and skin are like is
  learned from single pixels at half the cost of a step. On two cores 1,200 steps
  take 20 minutes, to 2.86 bits/dim of the encoder's own on 240 valid photos; 2,600
  more from there come to 2.78, 3,500 more on colored photos to 2.76.
- sports_decoders: the rest, from there: `coltran export RUN DIR`, then `--set
  init_from=DIR`: 1.33 bits/dim after 650 steps, begun with decoders of `sports`,
  1.18 after 1,600 more, the last 700 on data of `coltran prepare --color-only`.
  (`sports` trains all parts: 1.67 after 1,000 steps of 8, 14 minutes, while the
  encoder's own rose to 2.95.)
- debug: tiny, ends within a minute on two cores.
"""

from coltran_jax import configuration

_SPORTS = {
  'model': {
    'resolution': (32, 32),
    'gray_patch': 4,
    # They learn to shut out the rows above: their scales of what was drawn came
    # to nothing beside their shifts, and rows were colored each on its own.
    'conditional_norm': False,
    'hidden_size': 128,
    'mlp_size': 256,
    'encoder_mlp_size': 256,
    'num_outer_layers': 1,
    'num_inner_layers': 1,
  },
  'data': {'sizes': (128,)},
}
VARIANTS = {
  'tpu': [configuration.TPU],
  'small': [
    {'model': {'hidden_size': 256, 'mlp_size': 256, 'encoder_mlp_size': 256}}
  ],
  'finetune': [
    configuration.FINETUNE,
    {'batch_size': 32, 'eval_batch_size': 32},
  ],
  'sports': [
    configuration.SPORTS,
    _SPORTS,
    {
      'loss': {'parallel_weight': 0.4, 'input_noise': 0.15},
      'optimizer': {'learning_rate': 1.2e-3},
      'batch_size': 8,
      'num_steps': 1000,
    },
  ],
  'sports_encoder': [
    configuration.SPORTS,
    _SPORTS,
    {'loss': {'part': 'encoder'}, 'ema_decay': 0.995, 'num_steps': 1200},
  ],
  'sports_decoders': [
    configuration.SPORTS,
    _SPORTS,
    {
      'loss': {'part': 'decoders', 'input_noise': 0.15},
      'optimizer': {'learning_rate': 2e-3},
      'num_steps': 2000,
    },
  ],
  'debug': [
    configuration.DEBUG,
    {
      'model': {
        'resolution': (8, 8),
        'hidden_size': 32,
        'mlp_size': 32,
        'encoder_mlp_size': 32,
        'num_encoder_layers': 1,
        'num_outer_layers': 1,
        'num_inner_layers': 1,
      },
      'data': {'sizes': (32, 8)},
    },
  ],
}


def get_config(arg=''):
  """Returns the config; see the top for the variants in arg."""
  config = configuration.training(
    'colorizer',
    model={
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
      'dtype': 'float32',
      'remat': False,
    },
    loss={'parallel_weight': 0.01},
    data={'sizes': (256, 64)},
    batch_size=224,
    eval_batch_size=224,
    num_steps=450_000,
  )
  return configuration.with_variants(config, VARIANTS, arg)
