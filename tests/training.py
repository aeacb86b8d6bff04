"""What the tests of training share: a small data set, small configs, runs."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
from PIL import Image

from coltran_jax import configuration, run_directory, sharding
from coltran_jax import trainer as trainers
from coltran_jax.data import preparing

ROOT = pathlib.Path(__file__).parent.parent
QUICK = 'color_upsampler'  # The first to compile.
STAGES = ('colorizer', 'color_upsampler', 'spatial_upsampler')
RATES = ('steps_per_second', 'pictures_per_second')


def make_data(folder):
  """Prepares 24 train and 10 valid pictures; returns the data directory."""
  rng = np.random.default_rng(0)
  for split, count in (('train', 24), ('valid', 10)):
    (folder / 'in' / split).mkdir(parents=True)
    for i in range(count):
      noise = rng.integers(0, 256, (4, 5, 3), np.uint8)
      picture = Image.fromarray(noise).resize(
        (40, 32), Image.Resampling.BICUBIC
      )
      picture.save(folder / 'in' / split / f'{i:02d}.png')
  preparing.prepare('folder', folder / 'in', folder / 'data', workers=1)
  return folder / 'data'


def config(stage=QUICK, arg='debug', **changes):
  """A debug config; changes as {'key__key': value}."""
  changes = [f'{k.replace("__", ".")}={v!r}' for k, v in changes.items()]
  path = ROOT / f'configs/{stage}.py'
  return configuration.load(f'{path}:{arg}', changes)


def lines(workdir):
  """The metrics of a run without the rates, which no run repeats."""
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  parsed = [json.loads(line) for line in text.splitlines()]
  return [{k: v for k, v in line.items() if k not in RATES} for line in parsed]


def steps(workdir):
  """The steps of a run's checkpoints."""
  names = [path.name for path in (workdir / 'checkpoints').glob('*')]
  return sorted(int(name) for name in names if name.isdigit())


def command(workdir, data_dir, *options, stage=QUICK, arg='debug'):
  """The command line that trains."""
  return [
    *(sys.executable, '-m', 'coltran_jax.cli', 'train'),
    *('--config', f'{ROOT}/configs/{stage}.py:{arg}'),
    *('--workdir', str(workdir), '--data_dir', str(data_dir)),
    *options,
  ]


def environment(devices=1):
  return os.environ | {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    'PYTHONPATH': str(ROOT),
    'JAX_COMPILATION_CACHE_DIR': os.environ['COLTRAN_TEST_PROGRAMS'],
  }


def run(*args, devices=1, **options):
  """Runs such a command to its end; returns the completed process."""
  return subprocess.run(
    command(*args, **options),
    env=environment(devices),
    capture_output=True,
    text=True,
    timeout=300,
  )


def batch(stage_config, seed=0):
  """A random batch for a config, on the host."""
  size = stage_config.data.sizes[-1]
  shape = (stage_config.batch_size, size, size, 3)
  rng = np.random.default_rng(seed)
  return {'image': rng.integers(0, 256, shape, np.uint8)}


@functools.cache
def trainer(stage=QUICK, arg='debug', mesh=None, **changes):
  """A Trainer of a debug config."""
  return trainers.Trainer(config(stage, arg, **changes), mesh)


@functools.cache
def _first_state(stage):
  return jax.device_get(
    trainer(stage, mesh=sharding.make_mesh(1)).create_state()
  )


def first_state(one):
  """The first state of a Trainer of a debug config, compiled once a stage."""
  return jax.device_put(_first_state(one.config.name), one.state_sharding)


def opened(workdir, stage_config, data='data', **options):
  return run_directory.RunDirectory(workdir, stage_config, data, **options)
