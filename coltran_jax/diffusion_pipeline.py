"""`DiffusionColorizer`: a photo through Stable Diffusion and a ControlNet.

The whole photo is scaled until its long side is what the UNet was trained on and
mirrored a little beyond its edges, to sides that the networks take. Chroma of
the result joins the photo's own luminance; in a study the result stays as it is.
"""

import numpy as np
from PIL import Image

from coltran_jax import checkpoint, image, photo, pipeline
from coltran_jax.diffusion import files
from coltran_jax.diffusion import pipeline as diffusion


class DiffusionColorizer:
  """Colours photos; `from_pretrained` makes one of folders.

  diffusion: a `diffusion.pipeline.Pipeline`.
  """

  def __init__(self, diffusion):
    self.diffusion = diffusion

  @classmethod
  def from_pretrained(cls, weights, controlnet, **options):
    """Returns a DiffusionColorizer of two folders.

    Arguments: of `diffusion.pipeline.Pipeline.from_pretrained`.

    Raises CheckpointError if something is missing, wrong or not supported.
    """
    try:
      return cls(
        diffusion.Pipeline.from_pretrained(weights, controlnet, **options)
      )
    except files.WeightsError as error:
      raise checkpoint.CheckpointError(str(error)) from error

  def __call__(self, source, size='original', **options):
    """Returns colorings of one photo, of the photo's kind.

    source, size and what is raised: as of `pipeline.Colorizer`; options: of
    `colorize`.
    """
    return pipeline.as_source(source, self, size, **options)

  def colorize(
    self,
    read,
    num_samples=1,
    seed=0,
    size='original',
    study=False,
    **options,
  ):
    """Returns a list of [H, W, 3] arrays of a `photo.Photo`.

    uint8, or uint16 for a 16-bit photo at its original size (not in a study).

    Args:
      num_samples, seed, size: as of `pipeline.Colorizer`.
      study: plain text-to-image, with the photo's edges alone.
      options: of `diffusion.pipeline.Pipeline.run`.

    Raises:
      ValueError: options that make no sense.
    """
    if size not in pipeline.SIZES:
      raise ValueError(f'size must be one of {pipeline.SIZES}, not {size!r}')
    keys = pipeline.sample_keys(seed, num_samples)
    pixels, side = read.pixels, self.diffusion.side
    if size != 'original':
      pixels, side = image.square(photo.eight_bit(pixels), size), size
    picture = _enlarge(photo.eight_bit(pixels), side)
    picture, box = image.fit(picture, side, self.diffusion.networks.multiple)
    gray = pipeline.gray(picture).astype(np.uint8)
    gray = np.repeat(gray[None], num_samples, axis=0)
    made = self.diffusion.run(gray, keys, study=study, **options)
    colored = [image.crop(one, box) for one in made]
    if not study:
      return [image.join(pixels, one) for one in colored]
    return [_resize(one, *pixels.shape[:2]) for one in colored]

  def draw(self, read, **options):
    """Returns a list of `pipeline.Coloring`, as `batch` asks for it."""
    return [pipeline.Coloring(one) for one in self.colorize(read, **options)]


def _enlarge(picture, side):
  """uint8 [h, w, C] whose long side is `side` or more, smooth."""
  scale = side / max(picture.shape[:2])
  if scale <= 1:
    return picture
  return _resize(
    picture, *(max(1, round(n * scale)) for n in picture.shape[:2])
  )


def _resize(picture, height, width):
  """uint8 [height, width, C] of uint8 [H, W, C], smooth even where it grows."""
  array = picture[..., 0] if picture.shape[-1] == 1 else picture
  resized = Image.fromarray(array).resize(
    (width, height), Image.Resampling.BICUBIC
  )
  return np.asarray(resized).reshape(height, width, -1)
