"""Compiles the train step of all configs for pods, and puts a table into
launch/README.md: `python tests/benchmarks/aot_table.py`.

Each of the fifteen takes one to seven minutes on two cores. Its result is
appended to a file (aot_table.jsonl); what is there is not compiled again, so that
an ended run goes on.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib

os.environ['JAX_PLATFORMS'] = 'cpu'

from coltran_jax import aot, configuration

ROOT = pathlib.Path(__file__).parent.parent.parent
BATCHES = {'colorizer': 224, 'color_upsampler': 768, 'spatial_upsampler': 32}
# By name of the slice; the last is too many devices for the paper's batches.
TOPOLOGIES = {
  'v2-32': 'v2:4x4',
  'v4-32': 'v4:2x2x4',
  'v5e-16': 'v5e:4x4',
  'v6e-16': 'v6e:4x4',
  'v5e-256': 'v5e:16x16',
}
LARGE = {'colorizer': 256, 'color_upsampler': 768, 'spatial_upsampler': 256}
START, END = '<!-- table of aot_table.py -->', '<!-- end of the table -->'


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  beside = pathlib.Path(__file__).with_suffix('.jsonl')
  parser.add_argument('results', type=pathlib.Path, nargs='?', default=beside)
  args = parser.parse_args()
  done = {}
  if args.results.exists():
    for line in args.results.read_text().splitlines():
      row = json.loads(line)
      done[row['config'], row['slice']] = row
  for slice_, topology in TOPOLOGIES.items():
    for name in BATCHES:
      if (name, slice_) not in done:
        row = compiled(name, slice_, topology)
        done[name, slice_] = row
        with args.results.open('a') as file:
          file.write(json.dumps(row) + '\n')
        print(row, flush=True)
  write(table([done[n, s] for n in BATCHES for s in TOPOLOGIES]))


def compiled(name, slice_, topology):
  """Returns the row of a config on a slice, JSON-ready."""
  batch = (LARGE if slice_ == 'v5e-256' else BATCHES)[name]
  changes = [f'batch_size={batch}', f'eval_batch_size={batch}']
  config = configuration.load(f'{ROOT}/configs/{name}.py:tpu', changes)
  (report,) = aot.compile_all(config, topology, ['train_step'])
  return {
    'config': name,
    'slice': slice_,
    'batch': batch,
    'devices': report.devices,
    'hbm': report.hbm,
    'hbm_available': report.hbm_available,
    'over': report.over,
    'seconds': report.seconds,
    'mfu': report.mfu,
    'all_reduce': (report.collectives or {}).get('all-reduce'),
  }


def table(rows):
  """Returns the table in Markdown."""
  versions = ', '.join(
    f'{name} {importlib.metadata.version(name)}'
    for name in ('jax', 'jaxlib', 'libtpu')
  )
  lines = [
    f'{datetime.date.today()}, {versions}, variant `tpu` of each config:',
    '',
    '| config | slice | batch (a device) | HBM, GiB | step | MFU | all-reduce |',
    '|---|---|---|---|---|---|---|',
  ]
  for row in rows:
    gib = [row[key] / 2**30 for key in ('hbm', 'hbm_available')]
    cells = [
      f'`{row["config"]}`',
      row['slice'],
      f'{row["batch"]} ({row["batch"] // row["devices"]})',
      f'{gib[0]:.1f} of {gib[1]:.1f}',
    ]
    if row['over']:
      cells += ['does not fit', '', '']
    else:
      count, size = row['all_reduce']
      cells += [
        f'{row["seconds"] * 1e3:.0f} ms',
        f'{row["mfu"]:.0%}',
        f'{count} x, {size / 1e6:.0f} MB',
      ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def write(text):
  """Puts the table between its two marks in launch/README.md."""
  readme = ROOT / 'launch' / 'README.md'
  before, start, rest = readme.read_text().partition(START)
  _, end, after = rest.partition(END)
  if not start or not end:
    raise SystemExit(f'{readme} lacks {START} or {END}')
  beside = readme.with_suffix('.new')
  beside.write_text(f'{before}{START}\n{text}\n{END}{after}')
  beside.replace(readme)


if __name__ == '__main__':
  main()
