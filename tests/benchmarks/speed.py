"""Times inference at paper size: `python tests/benchmarks/speed.py [NAME ...]`.

Random weights, float32, after compilation; prints one JSON object a benchmark:
seconds (the best of `runs`, and all of them), seconds to compile, and the peak
of the process's memory above the weights. Every benchmark runs in a process of
its own. `--devices 2` splits the batch over two virtual CPU devices.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent.parent
# Name: (stage, pictures, seconds a picture asked for).
BENCHMARKS = {
  'colorizer': ('colorizer', 1, 2.7),
  'colorizer-16': ('colorizer', 16, 1.0),
  'color_upsampler': ('color_upsampler', 1, 1.2),
  'spatial_upsampler': ('spatial_upsampler', 1, 21.5),
  'fast': ('pipeline', 1, 6.0),
}


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('names', nargs='*', metavar='NAME', help=str(BENCHMARKS))
  parser.add_argument('--runs', type=int, default=3)
  parser.add_argument('--devices', type=int, default=1)
  parser.add_argument('--chunk', type=int, default=8)
  parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args()
  unknown = set(args.names) - set(BENCHMARKS)
  if unknown:
    parser.error(f'no benchmark {", ".join(sorted(unknown))}')
  if args.child:
    run(args.names[0], args)
    return
  flags = os.environ.get('XLA_FLAGS', '')
  if args.devices > 1:
    flags += f' --xla_force_host_platform_device_count={args.devices}'
  for name in args.names or BENCHMARKS:
    options = [
      f'--{o}={getattr(args, o)}' for o in ('runs', 'devices', 'chunk')
    ]
    command = [sys.executable, __file__, name, '--child', *options]
    subprocess.run(
      command, check=True, env={**os.environ, 'XLA_FLAGS': flags.strip()}
    )


def build(stage):
  """Returns (model, random params) of the paper's config of a stage."""
  import flax.traverse_util

  from coltran_jax import models

  path = ROOT / 'configs' / f'{stage}.py'
  spec = importlib.util.spec_from_file_location(stage, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  model = models.build(config.name, config.model.to_dict())
  random = np.random.RandomState(0)
  flat = {
    path: (random.randn(*shape) * (0.04 if len(shape) > 1 else 0.1)).astype(
      np.float32
    )
    for path, shape in models.parameter_shapes(model).items()
  }
  return model, flax.traverse_util.unflatten_dict(flat)


def prepare(name, args):
  """Returns (a function to time, pictures) of a benchmark."""
  import jax

  from coltran_jax import pipeline, sampling

  stage, pictures, _ = BENCHMARKS[name]
  random = np.random.RandomState(1)
  if stage == 'pipeline':
    stages = {s: build(s) for s in ('colorizer', 'color_upsampler')}
    colorizer = pipeline.Colorizer(stages, chunk=args.chunk)
    photo = random.randint(0, 256, (768, 1024), np.uint8)
    return lambda: colorizer(photo, fast=True), pictures
  model, params = build(stage)
  params = jax.device_put(params)
  gray = random.randint(0, 256, (pictures, *model.resolution))
  if stage == 'colorizer':
    keys = jax.random.split(jax.random.key(0), pictures)
    mesh = None
    if args.devices > 1:
      auto = (jax.sharding.AxisType.Auto,)
      mesh = jax.make_mesh((args.devices,), ('data',), axis_types=auto)
    return (
      lambda: sampling.sample(model, params, gray, keys, mesh=mesh),
      pictures,
    )
  model = model.clone(chunk=args.chunk)
  symbols = random.randint(0, 8, (*gray.shape, 3))
  return lambda: sampling.upsample(model, params, gray, symbols), pictures


def run(name, args):
  import jax

  function, pictures = prepare(name, args)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

  def timed():
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start

  first = timed()
  seconds = [timed() / pictures for _ in range(args.runs)]
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  result = {
    'name': name,
    'seconds_a_picture': round(min(seconds), 3),
    'asked_for': BENCHMARKS[name][2],
    'all_runs': [round(s, 3) for s in seconds],
    'pictures': pictures,
    'compile_seconds': round(first - min(seconds) * pictures, 1),
    'peak_mb_above_weights': (peak - before) // 1024,
    'devices': args.devices,
    'cores': os.cpu_count(),
    'jax': jax.__version__,
  }
  print(json.dumps(result), flush=True)


if __name__ == '__main__':
  main()
