"""Photos a second: `python tests/benchmarks/input_speed.py FOLDER > input.json`.

Makes a small data set of the folder, beside nothing, and reads it as training
does; reports the best of a few seconds for each way to resize. Prints JSON.
"""

import argparse
import json
import os
import tempfile
import time

from coltran_jax.data import input_pipeline, preparing, sources

SIZES = ((224,), (256,), (256, 64))


def photos_a_second(source, sizes, num_threads, seconds):
  """The most photos in any one of so many seconds."""
  batches = input_pipeline.train_batches(
    source,
    sizes=sizes,
    batch_size=64,
    seed=0,
    flip=True,
    num_threads=num_threads,
  )
  next(batches)  # Threads start, files are opened.
  best = 0
  for _ in range(seconds):
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < 1:
      count += len(next(batches)['image'])
    best = max(best, count / spent)
  batches.close()
  return round(best)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folder', help='pictures; with or without splits')
  parser.add_argument('--threads', type=int, default=8)
  parser.add_argument('--seconds', type=int, default=10)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as data_dir:
    start = time.perf_counter()
    report = preparing.prepare('folder', args.folder, data_dir)
    prepared = sum(report.counts.values()) / (time.perf_counter() - start)
    source = sources.open_split('folder', data_dir, 'train')
    speeds = {
      'x'.join(map(str, sizes)): photos_a_second(
        source, sizes, args.threads, args.seconds
      )
      for sizes in SIZES
    }
  result = {
    'cpus': os.cpu_count(),
    'threads': args.threads,
    'photos': report.counts,
    'prepared_a_second': round(prepared),
    'photos_a_second': speeds,
  }
  print(json.dumps(result, indent=2))


if __name__ == '__main__':
  main()
