"""A sheet of what a model makes of some pictures: gray, sampled, truth."""

import jax
from jax.experimental import multihost_utils
import numpy as np

from coltran_jax import color, image, losses, sampling
from coltran_jax.data import input_pipeline

_LEAST = 128  # Side of a cell in pixels, so that a person sees something.
_LINES = 8  # That upsamplers work on at a time: one device has it all here.


def sheet(trainer, variables, source):
  """Returns a sheet uint8 [H, W, 3] of a source's first pictures.

  Call it on all processes; they get the same.
  """
  config = trainer.config
  count = min(config.sample_pictures, len(source))
  pictures = next(
    input_pipeline.eval_batches(
      source, sizes=tuple(config.data.sizes), batch_size=count, limit=count
    )
  )['image']
  if jax.process_count() > 1:
    variables = multihost_utils.process_allgather(variables, tiled=True)
  else:
    variables = jax.device_put(variables, jax.devices()[0])
  made = MAKERS[config.name](
    trainer.model, variables, pictures, config.loss.to_dict()
  )
  gray = color.to_gray(pictures)[..., None].astype(np.uint8)
  side = max(_LEAST, pictures.shape[1])
  cells = [
    _enlarged(one, side)
    for triple in zip(gray, made, pictures, strict=True)
    for one in triple
  ]
  return image.contact_sheet(
    cells, columns=3 * max(1, round((count / 3) ** 0.5))
  )


def _enlarged(picture, side):
  times = side // len(picture)
  return picture.repeat(times, 0).repeat(times, 1)


def _colorizer(model, variables, pictures, options):
  del options
  keys = jax.random.split(jax.random.key(0), len(pictures))
  drawn = sampling.sample(
    model, variables['params'], color.to_gray(pictures), keys
  )
  return np.asarray(color.from_codes(drawn.codes))


def _color_upsampler(model, variables, pictures, options):
  del options
  return _upsampled(model, variables, pictures, color.to_symbols(pictures))


def _spatial_upsampler(model, variables, pictures, options):
  symbols = losses.blurred(pictures, **options)
  return _upsampled(model, variables, pictures, symbols)


def _upsampled(model, variables, pictures, symbols):
  gray = color.to_gray(pictures)
  model, params = model.clone(chunk=_LINES), variables['params']
  return np.asarray(sampling.upsample(model, params, gray, symbols))


def _cnn(model, variables, pictures, options):
  del options
  lab = color.to_lab(pictures / 255)
  ab, _ = model.apply(variables, lab[..., 0])
  made = color.from_lab(np.concatenate([lab[..., :1], ab], axis=-1))
  return np.rint(np.asarray(made) * 255).astype(np.uint8)


MAKERS = {
  'colorizer': _colorizer,
  'color_upsampler': _color_upsampler,
  'spatial_upsampler': _spatial_upsampler,
  'cnn': _cnn,
}
