"""What each model is trained on: one loss a model, and all bits per dimension.

Axes: B batch, H height, W width, V symbols. A loss takes uint8 pictures and
returns one number a picture, so that a padded evaluation can leave some out.

    loss, metrics, updates = LOSSES[name](model, variables, batch, ...)

- model, variables: the module and its collections ('params' and, for the CNN,
  'batch_stats').
- batch: 'image' uint8 [B, H, W, 3] at the model's resolution and, in training,
  'channel' int [B], 0..2, the one that an upsampler is asked for.
- train: dropout and batch statistics, and one channel instead of all three.
- rngs: {'dropout': key} in training.
- frozen: arrays that the loss needs and nobody trains, see `frozen`.
- The rest is `config.loss`.
- loss: float32 [B], what is minimized. metrics: {name: float32 [B]}. updates:
  collections that the step changes beside the parameters.
"""

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import color


def bits_per_dim(logits, labels):
  """Returns float32 [B] mean -log2 p of int labels [B, H, W] under logits
  [B, H, W, V]."""
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  log_p = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
  return -log_p.mean(axis=(1, 2)) / np.log(2)


def colorizer(
  model, variables, batch, *, train, rngs, frozen, parallel_weight=0.01
):
  """Returns the loss of the coarse colours, see the top (section 3).

  parallel_weight: share of the encoder's own prediction, where it makes one.
  """
  del frozen
  gray, codes = color.to_gray(batch['image']), color.to_codes(batch['image'])
  logits, aux = model.apply(variables, gray, codes, train=train, rngs=rngs)
  loss = bits_per_dim(logits, codes)
  metrics = {'bits_per_dim': loss}
  if 'parallel_logits' in aux:
    parallel = bits_per_dim(aux['parallel_logits'], codes)
    metrics['parallel_bits_per_dim'] = parallel
    loss = (1 - parallel_weight) * loss + parallel_weight * parallel
  return loss, metrics, {}


def color_upsampler(model, variables, batch, *, train, rngs, frozen):
  """Returns the loss of 8-bit levels given 3 bits, see the top (section 4.3)."""
  del frozen
  symbols = color.to_symbols(batch['image'])
  return _upsampler(model, variables, batch, symbols, train, rngs)


def spatial_upsampler(
  model, variables, batch, *, train, rngs, frozen, low_resolution=64
):
  """Returns the loss of sharp levels given blurry ones (section 4.3).

  low_resolution: side of the picture that the model gets, a divisor of its own
  resolution, so that up and back is exact.
  """
  del frozen
  symbols = blurred(batch['image'], low_resolution)
  return _upsampler(model, variables, batch, symbols, train, rngs)


def blurred(image, low_resolution):
  """Returns int32 [B, H, W, 3] of uint8 pictures, scaled down and up by area.

  What `image.resize` gives, rounding included: the shares of an area resize by
  a whole number are equal. Raises ValueError if it is none.
  """
  batch, height, width, channels = image.shape
  if height % low_resolution or width % low_resolution:
    raise ValueError(
      f'low_resolution {low_resolution} does not divide {height}x{width}'
    )
  shape = (low_resolution, height // low_resolution)
  shape += (low_resolution, width // low_resolution)
  cells = image.reshape(batch, *shape, channels).astype(jnp.float32)
  low = jnp.round(cells.mean(axis=(2, 4), keepdims=True))
  return jnp.broadcast_to(low, cells.shape).reshape(image.shape).astype('int32')


def _upsampler(model, variables, batch, symbols, train, rngs):
  image = batch['image'].astype(jnp.int32)
  gray = color.to_gray(image)

  def of_channel(channel):
    pick = channel[:, None, None, None]
    of = [jnp.take_along_axis(x, pick, -1)[..., 0] for x in (symbols, image)]
    logits, _ = model.apply(
      variables, gray, of[0], channel, train=train, rngs=rngs
    )
    return bits_per_dim(logits, of[1])

  if train:
    loss = of_channel(batch['channel'])
  else:
    channels = jnp.arange(3)[:, None].repeat(len(image), axis=1)
    loss = jax.lax.map(of_channel, channels).mean(axis=0)
  return loss, {'bits_per_dim': loss}, {}


LOSSES = {
  'colorizer': colorizer,
  'color_upsampler': color_upsampler,
  'spatial_upsampler': spatial_upsampler,
}


def frozen(name, options):
  """Returns arrays that the loss of model `name` needs and nobody trains.

  options: `config.loss`.
  """
  del name, options
  return {}
