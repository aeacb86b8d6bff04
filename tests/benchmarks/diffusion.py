"""Times Stable Diffusion 1.5's size: `python tests/benchmarks/diffusion.py`.

Writes folders of random weights with the recorded shapes (3 GB in half
precision, removed at the end), loads them as `coltran colorize --model
controlnet` does and colors one gray picture. Prints one JSON object: seconds a
step (UNet and ControlNet, with guidance), seconds beside the steps (encoding and
decoding) and to compile, by the clock or of all cores, and the peak of the
process's memory until the first picture. The pictures mean nothing.
"""

import argparse
import functools
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import tempfile
import time

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from coltran_jax.diffusion import pipeline

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures/diffusion'
STEPS = (1, 3)


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--side', type=int, default=256)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--attention', default='auto')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    # In a process of its own, whose memory does not count.
    writer = multiprocessing.get_context('spawn').Process(
      target=write, args=(pathlib.Path(folder),)
    )
    writer.start()
    writer.join()
    print(json.dumps(vars(args) | measure(folder, args)))


def write(folder):
  """Writes random weights of Stable Diffusion 1.5 and a ControlNet."""
  text = (FIXTURES / 'sd15_tensors.json').read_text('utf-8')
  some = (np.random.RandomState(0).randn(1 << 20) / 50).astype(np.float16)
  for kind, published in json.loads(text).items():
    stem = 'model' if kind == 'text_encoder' else 'diffusion_pytorch_model'
    (folder / kind).mkdir()
    (folder / kind / 'config.json').write_text(json.dumps(published['config']))
    tensors = {
      name: np.resize(some, shape)
      for name, shape in published['tensors'].items()
    }
    path = folder / kind / f'{stem}.fp16.safetensors'
    safetensors_numpy.save_file(tensors, path)
  for name in ('tokenizer', 'scheduler'):
    shutil.copytree(FIXTURES / 'pipe' / name, folder / name)


def measure(folder, args):
  made = pipeline.Pipeline.from_pretrained(
    folder,
    pathlib.Path(folder, 'controlnet'),
    dtype=args.dtype,
    attention=args.attention,
  )
  random = np.random.RandomState(1)
  gray = random.randint(0, 256, (1, args.side, args.side)).astype(np.uint8)
  run = functools.partial(
    made.run, gray, jax.random.split(jax.random.key(0), 1), strength=1.0
  )
  run(steps=STEPS[0])  # As a command would, from start to picture.
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  first, second = {}, {}  # {steps: seconds by the clock, and of all cores}
  for steps in STEPS:
    for times in (first, second):
      start = time.perf_counter(), time.process_time()
      run(steps=steps)
      end = time.perf_counter(), time.process_time()
      times[steps] = np.subtract(end, start)
  few, many = STEPS
  step = (second[many] - second[few]) / (many - few)
  beside = second[few] - few * step
  return {
    'seconds_a_step': round(step[0], 2),
    'core_seconds_a_step': round(step[1], 2),
    'seconds_beside_steps': round(beside[0], 2),
    'core_seconds_beside_steps': round(beside[1], 2),
    'core_seconds_to_compile': round((first[many] - second[many])[1], 1),
    'peak_gb': round(peak / 1e9, 2),
    'cores': os.cpu_count(),
    'jax': jax.__version__,
  }


if __name__ == '__main__':
  main()
