"""A comparison, measured and written down: table, pictures, page."""

import pathlib

import numpy as np

from coltran_jax import photo
from coltran_jax.evaluation import distributions, pairs, report, table


def evaluate(comparison, settings, folder, bits=None, networks=()):
  """Returns (Table, values) of a comparison; writes them to a folder.

  Writes table.csv, table.json, pictures.csv, rows.png, report.html, and
  values.jsonl: the values of each picture as they come, so that a run that was
  ended goes on.

  Args:
    comparison: of `pairs.find`.
    settings: a `pairs.Settings`.
    folder: created if need be.
    bits: {label: {name: bits/dim}}, as `colorings.make` returns it, or None.
    networks: of `distributions`: each adds columns of whole sets.

  Raises what `pairs.measure` raises.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  values = pairs.measure(comparison, settings, folder / 'values.jsonl')
  for label, of in (bits or {}).items():
    values[label]['bits_per_dim'] = np.array(
      [[of[name]] for name in comparison.truth]
    )
  made = table.make(values, str(settings))
  for network in networks:
    figures = distributions.paired(comparison, network, settings.resize)
    for label, row in figures.items():
      made.rows[label] |= {
        metric: table.Figure(value) for metric, value in row.items()
      }
  sheet = report.rows_picture(comparison, settings)
  for name, data in {
    'table.csv': table.csv_text(made).encode(),
    'table.json': table.json_text(made).encode(),
    'pictures.csv': table.pictures_csv(list(comparison.truth), values).encode(),
    'rows.png': photo.encode(sheet, photo.read(sheet), 'PNG'),
    'report.html': report.page(comparison, settings, made, values).encode(),
  }.items():
    photo.write(folder / name, data)
  return made, values
