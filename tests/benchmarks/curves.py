"""Draws the learning curves of the weights in the package.

    python tests/benchmarks/curves.py launch/training launch/curves.png

It needs matplotlib. The folder has a file a run: the lines of its metrics.jsonl that
matter, and of evaluations how many valid pictures they are of. Runs that went on from
each other stand in a row, in the order of their names.
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use('Agg')

from matplotlib import pyplot

# Title, key, prefixes of the runs in it, top of the axis.
PANELS = [
  ('encoder alone', 'parallel_bits_per_dim', ['colorizer-encoder'], 3.5),
  ('decoders', 'bits_per_dim', ['colorizer-all', 'colorizer-decoders'], 2.6),
  (
    'upsamplers',
    'bits_per_dim',
    ['color_upsampler', 'spatial_upsampler'],
    None,
  ),
  ('CNN: AlexNet, then VGG16', 'loss', ['cnn'], None),
]
UNITS = {
  'parallel_bits_per_dim': 'bits a coarse color',
  'bits_per_dim': 'bits a dimension',
  'loss': 'LPIPS',
}


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('runs', type=pathlib.Path)
  parser.add_argument('picture', type=pathlib.Path)
  args = parser.parse_args()
  figure, axes = pyplot.subplots(1, len(PANELS), figsize=(16, 4))
  for ax, (title, key, prefixes, top) in zip(axes, PANELS, strict=True):
    for i, prefix in enumerate(prefixes):
      draw(ax, args.runs, prefix, key, f'C{i}')
    ax.set(title=title, xlabel='steps', ylabel=UNITS[key])
    ax.set_ylim(top=top)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc='upper right')
  figure.tight_layout()
  figure.savefig(args.picture, dpi=100)


def draw(ax, folder, prefix, key, color):
  """Draws the runs of a prefix one after the other."""
  first, valid = 0, {}
  for path in sorted(folder.glob(f'{prefix}*.jsonl')):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    train = [row for row in rows if row['kind'] == 'train']
    ax.plot(
      [first + row['step'] for row in train],
      [row[key] for row in train],
      color=color,
      lw=0.8,
      label=None if first else f'{prefix}, training',
    )
    for row in rows:
      if row['kind'] == 'eval':
        valid.setdefault(row['pictures'], []).append(
          (first + row['step'], row[key])
        )
    first += train[-1]['step']
    ax.axvline(first, color='0.8', lw=0.8)
  for pictures, points in sorted(valid.items()):
    fill = color if pictures == 240 else 'white'
    ax.plot(
      *zip(*points, strict=True),
      'o',
      color=color,
      markerfacecolor=fill,
      label=f'{prefix}, {pictures} valid photos',
    )


if __name__ == '__main__':
  main()
