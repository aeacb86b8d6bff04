"""What a colorizer must beat: `python tests/benchmarks/code_entropy.py DATA_DIR`.

Prints JSON: bits a pixel of the best constant prediction of the coarse colours
of a split (their marginal entropy), and of the best prediction from the pixel's
own gray level, both fitted on the split itself.
"""

import argparse
import json

import numpy as np

from coltran_jax import color
from coltran_jax.data import input_pipeline, sources


def entropy(counts):
  """Returns the entropy in bits of counts [...], as one distribution."""
  shares = counts[counts > 0] / counts.sum()
  return float(-(shares * np.log2(shares)).sum())


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('data_dir')
  parser.add_argument('--name', default='sports')
  parser.add_argument('--split', default='valid')
  parser.add_argument('--sizes', type=int, nargs='+', default=[128, 32])
  parser.add_argument('--pictures', type=int, help='the first so many only')
  args = parser.parse_args()
  source = sources.open_split(args.name, args.data_dir, args.split)
  joint = np.zeros((256, color.NUM_CODES), np.int64)
  count = min(args.pictures or len(source), len(source))
  left = count
  for batch in input_pipeline.eval_batches(
    source, sizes=tuple(args.sizes), batch_size=64
  ):
    pictures = batch['image'][batch['_mask']][:left]
    left -= len(pictures)
    gray = color.to_gray(pictures).ravel()
    codes = color.to_codes(pictures).ravel()
    np.add.at(joint, (gray, codes), 1)
  print(
    json.dumps(
      {
        'pictures': count,
        'bits_of_the_best_constant': round(entropy(joint.sum(axis=0)), 3),
        'bits_given_the_own_gray': round(
          entropy(joint) - entropy(joint.sum(axis=1)), 3
        ),
      }
    )
  )


if __name__ == '__main__':
  main()
