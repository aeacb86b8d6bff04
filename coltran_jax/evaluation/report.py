"""What a comparison looks like: rows of pictures, a page that opens from disk."""

import base64
import html

from coltran_jax import image, photo
from coltran_jax.evaluation import pairs, table

_THUMBNAIL = 112  # Sides in pixels.
_CELL = 224
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222 }
h1 { font-size: 1.4em } p { color: #555; max-width: 60em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .3em .6em; text-align: right; border-bottom: 1px solid #ddd }
th { cursor: pointer; position: sticky; top: 0; background: #fff }
th:first-child, td:first-child { text-align: left }
th[data-order]::after { content: ' \\25B2' }
th[data-order=down]::after { content: ' \\25BC' }
small { display: block; color: #888 } img { display: block; margin: auto }
td.picture { text-align: center; vertical-align: top; padding: .2em; font-size: .85em }
"""
_SCRIPT = """
document.querySelectorAll('table').forEach(table => {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, i) => head.onclick = () => {
    const down = head.dataset.order === 'up';
    heads.forEach(h => delete h.dataset.order);
    head.dataset.order = down ? 'down' : 'up';
    const key = row => row.cells[i].dataset.value;
    [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b), numbers = x - y;
      const order = isNaN(numbers) ? x.localeCompare(y) : numbers;
      return down ? -order : order;
    }).forEach(row => body.append(row));
  });
});
"""


def rows_picture(comparison, settings, count=8, across=1):
  """Returns a sheet uint8 [H, W, 3]: gray, each method's samples, truth.

  `across` pictures a row, of `count` pictures at equal steps through the names.
  """
  names = list(comparison.truth)
  picked = [names[i * len(names) // count] for i in range(count)]
  cells, labels = [], []
  for name in dict.fromkeys(picked):
    for label, picture in _cells(comparison, name, settings, samples=True):
      cells.append(image.shrink(picture, _CELL))
      labels.append(label)
  columns = len(cells) // len(dict.fromkeys(picked))
  return image.contact_sheet(cells, columns * across, labels)


def page(comparison, settings, made, values):
  """Returns a self-contained page (str): the table, then all pictures.

  made: the `table.Table`. values: what `pairs.measure` gave. Columns sort by a
  click.
  """
  parts = [
    '<!doctype html><html lang="en"><meta charset="utf-8">',
    f'<title>Evaluation</title><style>{_STYLE}</style>',
    f'<h1>Evaluation of {made.pictures} pictures</h1>',
    f'<p>{html.escape(made.title)}. Means over pictures with 95 % bootstrap '
    'intervals; distances are of the first coloring of each. LPIPS, '
    'CIEDE2000: lower is closer to the original; PSNR, SSIM: higher is.</p>',
    _summary(made),
    '<p>LPIPS is below each picture. Click a head to sort.</p>',
    _pictures(comparison, settings, values),
    f'<script>{_SCRIPT}</script></html>',
  ]
  return '\n'.join(parts)


def _summary(made):
  head = ''.join(
    f'<th>{html.escape(name)}</th>'
    for name in ('method', *(table.head(m) for m in made.metrics))
  )
  lines = []
  for method, row in made.rows.items():
    cells = [_cell(html.escape(method), method)]
    for metric in made.metrics:
      value, spread = table.shown(row.get(metric), metric)
      number = row[metric].value if metric in row else 1e9
      small = f'<small>{spread}</small>' if spread else ''
      cells.append(_cell(f'{value}{small}', number))
    lines.append(f'<tr>{"".join(cells)}</tr>')
  return _table(head, lines)


def _pictures(comparison, settings, values):
  labels = [pairs.GRAY, *comparison.methods]
  head = ''.join(
    f'<th>{html.escape(label)}</th>' for label in ('name', *labels, 'truth')
  )
  lines = []
  for i, name in enumerate(comparison.truth):
    cells = [_cell(html.escape(name), name)]
    for label, picture in _cells(comparison, name, settings, samples=False):
      number, text = i, ''
      if label in labels:
        number = values[label]['lpips'][i, 0]
        text = f'{number:.4f}'
      small = image.shrink(picture, _THUMBNAIL)
      data = photo.encode(small, photo.read(small), 'JPEG', quality=80)
      source = base64.b64encode(data).decode()
      cells.append(
        f'<td class="picture" data-value="{number}"><img alt="" '
        f'src="data:image/jpeg;base64,{source}">{text}</td>'
      )
    lines.append(f'<tr>{"".join(cells)}</tr>')
  return _table(head, lines)


def _cell(content, value):
  return f'<td data-value="{html.escape(str(value))}">{content}</td>'


def _table(head, lines):
  body = '\n'.join(lines)
  return f'<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cells(comparison, name, settings, samples):
  """Yields (label, uint8 [H, W, 3]) of a picture: gray, methods, truth."""
  truth = pairs.read(comparison.truth[name], settings.resize)
  yield pairs.GRAY, pairs.gray(truth)
  for label, made in comparison.methods.items():
    paths = made[name] if samples else made[name][:1]
    for i, path in enumerate(paths):
      number = f' {i + 1}' if len(paths) > 1 else ''
      yield f'{label}{number}', pairs.read(path, settings.resize)
  yield 'truth', truth
