"""Times a training step at paper size: `python tests/benchmarks/train_speed.py`.

Random weights and pictures, float32, after compilation; prints JSON: seconds a
step (the best and all), what the products of the program reach, what plain
products of [8192, 512] reach on this machine in the same run, the peak of the
process's memory, and a profile: seconds of a step by kind of operation.
"""

import argparse
import collections
import json
import pathlib
import re
import resource
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import configuration, models, sharding
from coltran_jax import trainer as trainers

ROOT = pathlib.Path(__file__).parent.parent.parent
# What takes part in a product, by the name that XLA gives to its kind.
PRODUCTS = re.compile(r'(ynn_fusion|dot|convolution)')


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument(
    'stage', nargs='?', default='colorizer', help='or STAGE:VARIANT'
  )
  parser.add_argument('--batch', type=int, default=2)
  parser.add_argument('--runs', type=int, default=3)
  parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE')
  args = parser.parse_args()
  stage, _, variants = args.stage.partition(':')
  config = configuration.load(
    f'{ROOT}/configs/{stage}.py:{variants}',
    [
      f'batch_size={args.batch}',
      f'eval_batch_size={args.batch}',
      'mesh.data=1',
      *args.set,
    ],
  )
  trainer = trainers.Trainer(config)
  state = trainer.create_state()
  size = config.data.sizes[-1]
  pictures = np.random.default_rng(0).integers(
    0, 256, (args.batch, size, size, 3), np.uint8
  )
  batch = sharding.to_devices(trainer.mesh, {'image': pictures})
  start = time.perf_counter()
  step = trainer.compile()
  compiled = time.perf_counter() - start
  seconds, plain = [], []
  for _ in range(args.runs + 1):  # The first is not counted.
    plain.append(plain_rate())
    start = time.perf_counter()
    state, metrics = step(state, batch, trainer.rng, trainer.frozen)
    float(metrics['loss'])
    seconds.append(time.perf_counter() - start)
  with tempfile.TemporaryDirectory() as folder:
    jax.profiler.start_trace(folder)
    state, metrics = step(state, batch, trainer.rng, trainer.frozen)
    float(metrics['loss'])
    jax.profiler.stop_trace()
    profile = by_kind(folder)
  products = sum(s for kind, s in profile.items() if PRODUCTS.match(kind))
  gflop = step.cost_analysis()['flops'] / 1e9
  print(
    json.dumps(
      {
        'stage': args.stage,
        'batch': args.batch,
        'parameters': sum(
          int(np.prod(s))
          for s in models.parameter_shapes(trainer.model).values()
        ),
        'seconds_a_step': round(min(seconds[1:]), 2),
        'all_runs': [round(s, 2) for s in seconds[1:]],
        'compile_seconds': round(compiled, 1),
        'gflop_a_step': round(gflop),
        'gflop_per_second': round(gflop / min(seconds[1:])),
        'gflop_per_second_of_plain_products': round(max(plain)),
        'peak_gb': round(
          resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2
        ),
        'share_of_products': round(products / sum(profile.values()), 3),
        'profile_seconds': {
          kind: round(s, 3) for kind, s in profile.most_common(12)
        },
      },
      indent=1,
    )
  )


@jax.jit
def _products(x, weights):
  for _ in range(8):
    x = x @ weights
  return x


def plain_rate():
  """Returns the GFLOP/s of eight products [8192, 512] x [512, 512]."""
  x, weights = jnp.ones((8192, 512)), jnp.ones((512, 512)) / 512
  best = float('inf')
  for _ in range(4):
    start = time.perf_counter()
    _products(x, weights).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 8 * 2 * 8192 * 512 * 512 / best / 1e9


def by_kind(folder):
  """Returns Counter {kind of operation: seconds} of a trace."""
  file = next(pathlib.Path(folder).rglob('*.xplane.pb'))
  seconds = collections.Counter()
  for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
    for line in plane.lines:
      for event in line.events:
        name = dict(event.stats).get('hlo_op')
        if name:
          seconds[re.sub(r'[.\d]+$', '', name)] += event.duration_ns / 1e9
  return seconds


if __name__ == '__main__':
  main()
