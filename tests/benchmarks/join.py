"""Draws what joining keeps: `python tests/benchmarks/join.py OUT.jpg`.

Photos of scikit-image (CC0): the photo turned gray, its true colors shrunk to
64 pixels, both joined again, and the photo. Prints the mean error of a* and b*.
"""

import sys

import numpy as np
import skimage.color
import skimage.data

from coltran_jax import color, image, photo


def main():
  pictures, labels = [], []
  for truth in (skimage.data.astronaut(), skimage.data.coffee()):
    gray = color.to_gray(truth).astype(np.uint8)[..., None]
    fitted, box = image.fit(truth, 64)
    low = image.crop(fitted, box)
    joined = image.join(gray, low)
    pictures += [np.repeat(gray, 3, axis=-1), low, joined, truth]
    labels += ['gray photo', '64-pixel color', 'joined', 'truth']
    error = skimage.color.rgb2lab(joined) - skimage.color.rgb2lab(truth)
    print(f'mean |a*b* error|: {np.abs(error[..., 1:]).mean():.2f}')
  height = 256
  pictures = [
    image.resize(p, height, round(height * p.shape[1] / p.shape[0]))
    for p in pictures
  ]
  sheet = image.contact_sheet(pictures, columns=4, labels=labels)
  photo.write(
    sys.argv[1], photo.encode(sheet, photo.read(sheet), 'JPEG', quality=85)
  )


if __name__ == '__main__':
  main()
