"""The CNN baseline at the size of the student study (960,994 parameters).

    coltran prepare sports SPORTS_FOLDER --data_dir data
    coltran train --config configs/cnn.py --workdir runs/cnn --data_dir data

Expected: LPIPS (VGG) on the valid split below 0.168, what gray scores when
pictures are in 0..1 (`protocol='study'`); the study's own weights score 0.123
after 186 epochs. Cost: about 100,000 steps of 16 photos.

Variants, joined by commas (`configs/cnn.py:alexnet,debug`):
- alexnet: LPIPS of AlexNet, five times cheaper than VGG.
- mse: mean squared error of a* and b*.
- sports: AlexNet on crops of 128 px, 1,500 steps: half an hour on two cores.
  AlexNet's LPIPS on the valid split falls to 0.125 (0.156 after 250 steps);
  VGG's does not follow (0.1687; gray 0.1682), so it has to be trained for:
- sports_vgg: goes on from there by VGG on crops of 160 px (`coltran export
  runs/cnn weights`, then `--set init_from=weights`), 400 steps: half an hour.
  VGG's LPIPS on the valid split falls to 0.1485 (gray 0.1682).
- debug: tiny, with mse; ends within a minute on two cores.
"""

from coltran_jax import configuration

VARIANTS = {
  'alexnet': [{'loss': {'kind': 'lpips_alexnet'}}],
  'mse': [{'loss': {'kind': 'mse'}}],
  'sports': [
    {
      'loss': {'kind': 'lpips_alexnet'},
      'data': {'sizes': (128,)},
      'optimizer': {
        'decay': 'cosine',
        'warmup_steps': 50,
        'clip_norm': 1.0,
      },
      'num_steps': 1500,
      'eval_every': 250,
      'sample_every': 250,
    },
  ],
  'sports_vgg': [
    {
      'init_from': 'weights',
      'data': {'sizes': (160,)},
      'optimizer': {
        'learning_rate': 5e-4,
        'decay': 'cosine',
        'warmup_steps': 20,
        'clip_norm': 1.0,
      },
      'batch_size': 8,
      'eval_batch_size': 8,
      'eval_pictures': 64,
      'num_steps': 400,
      'log_every': 5,
      'eval_every': 50,
      'sample_every': 100,
      'save_every': 25,
    },
  ],
  'debug': [
    configuration.DEBUG,
    {
      'model': {'features': 8, 'num_blocks': 1},
      'loss': {'kind': 'mse'},
      'data': {'sizes': (16,)},
    },
  ],
}


def get_config(arg=''):
  """Returns the config; see the top for the variants in arg."""
  config = configuration.training(
    'cnn',
    model={'features': 64, 'num_blocks': 2, 'dtype': 'float32'},
    loss={'kind': 'lpips_vgg16', 'protocol': 'study'},
    data=configuration.SPORTS_DATA | {'sizes': (224,)},
    optimizer={'name': 'adam', 'learning_rate': 1e-3},
    ema_decay=0.99,
    batch_size=16,
    eval_batch_size=16,
    num_steps=100_000,
    log_every=20,
    eval_every=500,
    sample_every=500,
    save_every=250,
  )
  return configuration.with_variants(config, VARIANTS, arg)
