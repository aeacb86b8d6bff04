"""What each model is trained on: one loss a model, and all bits per dimension.

Axes: B batch, H height, W width, V symbols. A loss takes uint8 pictures and
returns one number a picture, so that a padded evaluation can leave some out.

    loss, metrics, updates = LOSSES[name](model, variables, batch, ...)

- model, variables: the module and its collections ('params' and, for the CNN,
  'batch_stats').
- batch: 'image' uint8 [B, H, W, 3] at `models.picture_resolution` and, in training,
  'channel' int [B], 0..2, the one that an upsampler is asked for.
- train: dropout and batch statistics, and one channel instead of all three.
- rngs: {'dropout': key} in training.
- frozen: arrays that the loss needs and nobody trains, see `frozen`.
- The rest is `config.loss`.
- loss: float32 [B], what is minimized. metrics: {name: float32 [B]}. updates:
  collections that the step changes beside the parameters.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import color
from coltran_jax.evaluation import lpips
from coltran_jax.models import layers

PARTS = ('all', 'encoder', 'decoders')


def log_probs(logits, labels):
  """Returns float32 [...] log p (nats) of int labels [...], logits [..., V]."""
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  return jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


def bits_per_dim(logits, labels):
  """Returns float32 [B] mean -log2 p of int labels [B, H, W] under logits
  [B, H, W, V]."""
  return -log_probs(logits, labels).mean(axis=(1, 2)) / np.log(2)


def colorizer(
  model,
  variables,
  batch,
  *,
  train,
  rngs,
  frozen,
  parallel_weight=0.01,
  input_noise=0.0,
  part='all',
):
  """Returns the loss of the coarse colours, see the top (section 3).

  parallel_weight: share of the encoder's own prediction, where it makes one.
  input_noise: share of the codes that, in training, the decoders see replaced
  by draws from that prediction. While sampling they see draws, too, some of
  them poor; a model that only ever saw truth lets one poor draw breed others.
  part: what is trained, 'all', or the 'encoder' by its own prediction alone (half
  the cost of a step), or the 'decoders' of an encoder that stays as it is.
  """
  del frozen
  image = jnp.asarray(batch['image'])
  gray = color.to_gray(image)
  codes = color.to_codes(layers.shrink(image, model.gray_patch))
  if train and part == 'encoder':
    logits = model.apply(variables, gray, train, rngs=rngs, method='expect')
    loss = bits_per_dim(logits, codes)
    return loss, {'parallel_bits_per_dim': loss}, {}
  if train:
    forward = functools.partial(_forward, noise=input_noise, part=part)
    logits, aux = model.apply(variables, gray, codes, rngs=rngs, method=forward)
  else:
    logits, aux = model.apply(variables, gray, codes)
  loss = bits_per_dim(logits, codes)
  metrics = {'bits_per_dim': loss}
  if 'parallel_logits' in aux:
    parallel = bits_per_dim(aux['parallel_logits'], codes)
    metrics['parallel_bits_per_dim'] = parallel
    weight = {'all': parallel_weight, 'encoder': 1, 'decoders': 0}[part]
    loss = (1 - weight) * loss + weight * parallel
  return loss, metrics, {}


def _forward(model, gray, codes, noise, part):
  """Returns what a call of the model does, of what training changes."""
  z = model.encode(gray, train=True)
  aux = {}
  if model.parallel_head:
    aux['parallel_logits'] = model.parallel(z)
  if part == 'decoders':
    z = jax.lax.stop_gradient(z)
  if noise:
    key = model.make_rng('dropout')
    codes = _noisy(codes, aux['parallel_logits'], noise, key)
  return model.decode(codes, z, train=True), aux


def _noisy(codes, logits, share, key):
  """Returns codes [B, H, W], a share of each picture's drawn from logits."""
  batch, pixels = len(codes), codes[0].size
  where_key, draw_key = jax.random.split(key)
  row = jnp.arange(batch)[:, None]
  # Distinct places: of two draws at one, which one stays is up to the device.
  order = jax.random.uniform(where_key, (batch, pixels))
  _, where = jax.lax.top_k(order, round(share * pixels))
  logits = logits.reshape(batch, pixels, -1)[row, where]
  draws = jax.random.categorical(draw_key, jax.lax.stop_gradient(logits))
  noisy = codes.reshape(batch, pixels).at[row, where].set(draws)
  return noisy.reshape(codes.shape)


def check_colorizer(model, weight_decay, input_noise=0.0, part='all', **_):
  """Raises ValueError if options of `colorizer` do not fit model or optimizer."""
  if part not in PARTS:
    raise ValueError(f'loss.part must be one of {PARTS}, not {part!r}')
  if weight_decay and part != 'all':  # It needs no gradient to shrink them.
    raise ValueError(
      f'optimizer.weight_decay {weight_decay} would shrink what loss.part='
      f"{part!r} does not train: set it to 0, or take loss.part='all'"
    )
  if (input_noise or part == 'encoder') and not model.parallel_head:
    raise ValueError(
      "loss.input_noise and loss.part='encoder' need a model with "
      'model.parallel_head=True'
    )


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
  """Returns int32 [B, S, S, 3] of uint8 pictures, scaled down and up by area.

  Raises ValueError if low_resolution does not divide S.
  """
  height, width = image.shape[1:3]
  factor, rest = divmod(height, low_resolution)
  if rest or height != width:
    raise ValueError(
      f'low_resolution {low_resolution} does not divide {height}x{width}'
    )
  low = layers.shrink(image, factor)
  return low.repeat(factor, axis=1).repeat(factor, axis=2)


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


def cnn(
  model,
  variables,
  batch,
  *,
  train,
  rngs,
  frozen,
  kind='lpips_vgg16',
  protocol='standard',
):
  """Returns the loss of the CNN's colours joined to the true luminance.

  kind: 'lpips_vgg16' or 'lpips_alexnet', the perceptual distance to the truth,
  or 'mse', the mean squared error of a* and b* in Lab units.
  protocol: LPIPS's range, see `evaluation.lpips`.
  """
  del rngs
  truth = batch['image'].astype(jnp.float32) / 255
  lab = color.to_lab(truth)
  if train:
    (ab, _), updates = model.apply(
      variables, lab[..., 0], train=True, mutable=['batch_stats']
    )
  else:
    (ab, _), updates = model.apply(variables, lab[..., 0]), {}
  mse = jnp.square(ab - lab[..., 1:]).mean(axis=(1, 2, 3))
  if kind == 'mse':
    return mse, {'mse': mse}, updates
  made = color.from_lab(jnp.concatenate([lab[..., :1], ab], axis=-1))
  if protocol == 'standard':
    made, truth = 2 * made - 1, 2 * truth - 1
  net = kind.removeprefix('lpips_')
  distance = lpips.distance_with(frozen['lpips'], made, truth, net)
  return distance, {f'lpips_{protocol}': distance, 'mse': mse}, updates


LOSSES = {
  'colorizer': colorizer,
  'color_upsampler': color_upsampler,
  'spatial_upsampler': spatial_upsampler,
  'cnn': cnn,
}


def frozen(loss):
  """Returns arrays that a loss needs and nobody trains.

  loss: of `LOSSES`, as functools.partial with its options.

  Raises ValueError for options that make no sense.
  """
  if loss.func is not cnn:
    return {}
  defaults = inspect.signature(cnn).parameters
  options = {name: p.default for name, p in defaults.items()} | loss.keywords
  if options['protocol'] not in lpips.PROTOCOLS:
    raise ValueError(
      f'protocol must be one of {lpips.PROTOCOLS}, not {options["protocol"]!r}'
    )
  kinds = {f'lpips_{net}': net for net in lpips.NETS}
  if options['kind'] in kinds:
    return {'lpips': lpips.load(kinds[options['kind']])}
  if options['kind'] != 'mse':
    raise ValueError(
      f"kind must be 'mse' or one of {list(kinds)}, not {options['kind']!r}"
    )
  return {}
