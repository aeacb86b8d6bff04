"""Tables of what `aot` reports."""

NOTE = (
  "ESTIMATE: compiled, never run. Times are the compiler's, without waiting "
  'for copies or collectives.'
)
_TOP = 10


def text(reports):
  """Returns the table of a config's reports (one or more), for a terminal."""
  rows = [['', *(r.program for r in reports)]]
  rows += [[name, *map(cell, reports)] for name, cell in _ROWS]
  kinds = sorted({k for r in reports for k in r.collectives or ()})
  for kind in kinds:
    rows.append([kind, *(_collective(r, kind) for r in reports)])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [NOTE]
  lines += [
    '  '.join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]
  for report in reports:
    lines += _top(report)
  return '\n'.join(lines)


def problems(reports):
  """Returns a line for each program that does not fit."""
  return [
    f'{r.program} does not fit: it needs {r.hbm / 2**30:.2f} GiB of HBM a '
    f'device, {r.over / 2**30:.2f} GiB more than the {r.hbm_available / 2**30:.2f}'
    f' GiB of {r.chip}'
    for r in reports
    if r.over
  ]


def _known(cell):
  return lambda r: '-' if r.flops is None else cell(r)


_ROWS = [
  ('devices', lambda r: f'{r.devices} {r.chip}'),
  ('batch', lambda r: f'{r.batch}'),
  ('a device', lambda r: f'{r.batch / r.devices:g}'),
  (
    'HBM peak',
    lambda r: f'{r.hbm / 2**30:.2f} of {r.hbm_available / 2**30:.2f} GiB',
  ),
  ('FLOPs of products', _known(lambda r: f'{r.flops / 1e12:.3f} T')),
  ('bytes of HBM', _known(lambda r: f'{r.bytes / 1e9:.2f} GB')),
  ('compute time', _known(lambda r: f'{r.compute_seconds * 1e3:.2f} ms')),
  ('HBM time', _known(lambda r: f'{r.hbm_seconds * 1e3:.2f} ms')),
  ('share of peak (MFU)', _known(lambda r: f'{r.mfu:.1%}')),
  ('loops counted once', _known(lambda r: f'{len(r.unknown_loops)}')),
]


def _collective(report, kind):
  count, size = (report.collectives or {}).get(kind, (0, 0))
  return f'{count} x, {size / 1e6:.2f} MB' if count else '-'


def _top(report):
  if not report.sources:
    return []
  lines = ['', f'{report.program}, dearest lines:']
  for seconds, source in report.sources[:_TOP]:
    share = seconds / report.compute_seconds
    lines.append(f'{seconds * 1e3:10.3f} ms {share:6.1%}  {source or "(none)"}')
  return lines
