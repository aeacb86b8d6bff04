"""The table of a comparison: means with intervals, as text, CSV and JSON."""

import csv
import dataclasses
import io
import json

import numpy as np

_RESAMPLES = 1000  # Of the bootstrap.
_COLUMNS = {
  'lpips': ('LPIPS', 4),
  'best_lpips': ('best of N', 4),
  'diversity': ('diversity', 4),
  'psnr': ('PSNR', 2),
  'ssim': ('SSIM', 4),
  'ciede2000': ('CIEDE2000', 2),
  'colorfulness': ('colorful', 1),
  'colorfulness_difference': ('vs truth', 1),
  'bits_per_dim': ('bits/dim', 3),
}


@dataclasses.dataclass(frozen=True)
class Figure:
  """A mean over pictures and its 95 % interval (None: of one number)."""

  value: float
  low: float | None = None
  high: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
  """rows: {method: {metric: Figure}}; title: how it was measured.

  `lpips` and the other distances are those of a picture's first sample, as one
  coloring is what a person gets; `best_lpips` is the least of its samples'.
  """

  title: str
  pictures: int
  rows: dict

  @property
  def metrics(self):
    """All metrics of any row, in the order of columns."""
    there = {metric for row in self.rows.values() for metric in row}
    return [m for m in _COLUMNS if m in there] + sorted(there - set(_COLUMNS))


def make(values, title):
  """Returns the Table of what `pairs.measure` gave.

  Further metrics, such as 'bits_per_dim' [pictures, 1], become columns too.
  """
  truth = values['truth']['colorfulness'][:, 0]
  rows = {}
  for method, metrics in values.items():
    row = {name: interval(array[:, 0]) for name, array in metrics.items()}
    if method != 'truth':
      difference = metrics['colorfulness'][:, 0] - truth
      row['colorfulness_difference'] = interval(difference)
      if metrics['lpips'].shape[1] > 1:
        row['best_lpips'] = interval(metrics['lpips'].min(axis=1))
    rows[method] = row
  return Table(title, len(truth), rows)


def interval(values, seed=0):
  """Returns the Figure of values [N]: percentiles of bootstrapped means."""
  values = np.asarray(values, np.float64)
  picks = np.random.default_rng(seed).integers(
    0, len(values), (_RESAMPLES, len(values))
  )
  low, high = np.percentile(values[picks].mean(axis=1), (2.5, 97.5))
  return Figure(float(values.mean()), float(low), float(high))


def text(table):
  """Returns the table for a terminal."""
  lines = [['', *map(head, table.metrics)]]
  for method, row in table.rows.items():
    cells = [shown(row.get(metric), metric) for metric in table.metrics]
    lines.append([method, *(value for value, _ in cells)])
    lines.append(['', *(spread for _, spread in cells)])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  body = '\n'.join(
    '  '.join(
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
    if any(line)
  )
  return (
    f'{table.title}; {table.pictures} pictures; means, below them their 95 % '
    f'intervals\n{body}'
  )


def csv_text(table):
  """Returns the table as CSV: a line a method."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(
    ['method', 'measured', 'pictures']
    + [f'{m}{end}' for m in table.metrics for end in ('', ' low', ' high')]
  )
  for method, row in table.rows.items():
    cells = [
      getattr(row.get(metric), name, None)
      for metric in table.metrics
      for name in ('value', 'low', 'high')
    ]
    writer.writerow([method, table.title, table.pictures, *cells])
  return out.getvalue()


def pictures_csv(names, values):
  """Returns CSV of each picture's values: a line a picture, method, sample."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  metrics = list(dict.fromkeys(m for of in values.values() for m in of))
  writer.writerow(['picture', 'method', 'sample', *metrics])
  for i, name in enumerate(names):
    for method, of in values.items():
      for sample in range(max(array.shape[1] for array in of.values())):
        cells = [
          of[m][i, sample] if m in of and sample < of[m].shape[1] else None
          for m in metrics
        ]
        writer.writerow([name, method, sample + 1, *cells])
  return out.getvalue()


def json_text(table):
  """Returns the table as JSON."""
  return json.dumps(dataclasses.asdict(table), indent=1) + '\n'


def head(metric):
  """Returns the name of a metric's column."""
  return _COLUMNS.get(metric, (metric,))[0]


def shown(figure, metric):
  """Returns (value, interval) of a Figure or None as text."""
  digits = 4 if metric.lower().startswith('kid') else 2
  if metric in _COLUMNS:
    digits = _COLUMNS[metric][1]
  if figure is None:
    return '', ''
  if figure.low is None:
    return f'{figure.value:.{digits}f}', ''
  spread = f'{figure.low:.{digits}f}..{figure.high:.{digits}f}'
  return f'{figure.value:.{digits}f}', spread
