"""Makes the README's gallery of an evaluation: every picture that is in it.

coltran evaluate model --weights coltran-sports --data sports --split valid \
  --every 25 -n 3 --protocol study --data_dir data -o gallery
python tests/benchmarks/gallery.py gallery launch/gallery.jpg coltran-sports
"""

import pathlib
import sys

from coltran_jax import photo
from coltran_jax.evaluation import pairs, report


def main(folder, out, *methods):
  """Writes two pictures a row: gray, the draws of each method, the truth."""
  folder = pathlib.Path(folder)
  comparison = pairs.find(folder / 'truth', [folder / one for one in methods])
  sheet = report.rows_picture(
    comparison, pairs.Settings('study'), count=len(comparison.truth), across=2
  )
  encoded = photo.encode(sheet, photo.read(sheet), 'JPEG', quality=80)
  photo.write(pathlib.Path(out), encoded)


if __name__ == '__main__':
  main(*sys.argv[1:])
