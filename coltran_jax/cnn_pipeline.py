"""`CNNColorizer`: a photo through the CNN baseline, in memory.

It regresses colours, so a photo has one coloring. As with the ColTran stages
(`pipeline`), the whole photo is scaled until its long side is what the network
was trained on and mirrored to a square; chroma joins the photo's own luminance.
"""

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import checkpoint, color, image, models, photo, pipeline

_SIDE = 224  # Of the study's pictures, in training and validation.


class CNNColorizer:
  """Colours photos; `from_pretrained` makes one."""

  def __init__(self, model, tree):
    variables = jax.device_put(models.split(tree))

    @jax.jit
    def run(picture):
      lightness = color.to_lab(picture.astype(jnp.float32) / 255)[..., :1]
      ab, _ = model.apply(variables, lightness[..., 0])
      rgb = color.from_lab(jnp.concatenate([lightness, ab], axis=-1))
      return jnp.rint(rgb * 255).astype(jnp.uint8)

    self._run = run

  @classmethod
  def from_pretrained(cls, weights):
    """Returns a CNNColorizer of a checkpoint directory with a stage 'cnn'.

    Raises CheckpointError if it is missing or wrong.
    """
    directory = checkpoint.find(weights)
    return cls(*pipeline.load_stage(directory, 'cnn'))

  def __call__(self, source, size='original'):
    """Returns the coloring of one photo, of the photo's kind.

    source, size and what is raised: as of `pipeline.Colorizer`.
    """
    return pipeline.as_source(source, self, size)[0]

  def colorize(self, read, size='original'):
    """Returns a list of one [H, W, 3] array of a `photo.Photo`.

    uint8, or uint16 for a 16-bit photo at its original size.
    """
    pixels = photo.eight_bit(read.pixels)
    if size == 'original':
      picture, box = image.fit(pixels, _SIDE)
      colored = image.crop(self.run(picture[None])[0], box)
      return [image.join(read.pixels, colored)]
    if size not in pipeline.SIZES:
      raise ValueError(f'size must be one of {pipeline.SIZES}, not {size!r}')
    return [self.run(image.square(pixels, size)[None])[0]]

  def draw(self, read, size='original'):
    """Returns a list of one `pipeline.Coloring`, as `batch` asks for it."""
    return [pipeline.Coloring(one) for one in self.colorize(read, size)]

  def run(self, pictures):
    """Returns uint8 [B, H, W, 3], colored, of uint8 [B, H, W, 1 or 3].

    H and W are multiples of 8. Colours that come in serve for lightness alone.
    """
    shape = (*pictures.shape[:3], 3)
    return np.asarray(self._run(np.broadcast_to(pictures, shape)))
