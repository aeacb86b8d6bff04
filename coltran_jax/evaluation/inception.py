"""The Inception-v3 that FID is defined with, and its weights from a file.

The network of 'pt_inception-2015-12-05', which is TensorFlow's of that date
(Szegedy et al., 2015) as pytorch-fid and torch-fidelity have it. Submodules have
the names of its tensors. Axes: B batch, H height, W width, D features.
"""

from collections.abc import Callable
import functools
import pathlib

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import checkpoint, tensor_files
from coltran_jax.evaluation import feature_layers

DIMENSIONS = 2048
_SIZE = 299

# Parameter of a ConvNorm -> tensor of the file.
_LEAVES = {
  'kernel': 'conv.weight',
  'scale': 'bn.weight',
  'bias': 'bn.bias',
  'mean': 'bn.running_mean',
  'variance': 'bn.running_var',
}
# No feature depends on the classifier, but its 1008 classes tell FID's weights
# from torchvision's, whose other tensors have the same names and shapes.
_CLASSIFIER = {'fc.weight': (1008, DIMENSIONS), 'fc.bias': (1008,)}
# What else a file may hold: of training, and read by nothing here.
_COUNTER = 'bn.num_batches_tracked'
_AUXILIARY = {'AuxLogits.fc.weight', 'AuxLogits.fc.bias'} | {
  f'AuxLogits.{conv}.{leaf}'
  for conv in ('conv0', 'conv1')
  for leaf in (*_LEAVES.values(), _COUNTER)
}


def features(params, pictures):
  """Returns float32 [B, 2048], the features that FID compares.

  Compiled once per batch size, whatever the size of the pictures; a batch that
  is sharded over devices is computed where it lies.

  Args:
    params: what `load` returned.
    pictures: uint8 [B, H, W, 3] RGB.

  Raises ValueError for pictures of another type or shape.
  """
  feature_layers.check(pictures)
  return _features(params, resize(pictures))


@functools.partial(jax.jit, static_argnames='size')
def resize(pictures, size=_SIZE):
  """Returns float32 [B, size, size, C] of pictures [B, H, W, C], same range.

  Bilinear as in TensorFlow 1: pixel i is taken at i * scale, without half a
  pixel's offset, and shrinking skips pixels. FID is defined with it.
  """
  x = pictures.astype(jnp.float32)
  for axis in (2, 1):
    length = x.shape[axis]
    scale = np.float32(length) / np.float32(size)
    position = np.arange(size, dtype=np.float32) * scale
    low = position.astype(np.int32)
    shape = [size if i == axis else 1 for i in range(4)]
    share = (position - low).reshape(shape)
    near = x.take(low, axis)
    far = x.take(np.minimum(low + 1, length - 1), axis)
    x = near + (far - near) * share
  return x


@jax.jit
def _features(params, x):
  """Returns features [B, 2048] of x [B, 299, 299, 3] in 0..255."""
  with jax.default_matmul_precision('highest'):
    return Inception().apply({'params': params}, (x - 128) / 128)


class Inception(nn.Module):
  """Maps pictures [B, 299, 299, 3] in -1..1 to features [B, 2048]."""

  @nn.compact
  def __call__(self, x):
    x = _conv('Conv2d_1a_3x3', 32, 3, stride=2)(x)  # [B, 149, 149, D]
    x = _conv('Conv2d_2a_3x3', 32, 3, padding='VALID')(x)  # [B, 147, 147, D]
    x = _conv('Conv2d_2b_3x3', 64, 3)(x)
    x = nn.max_pool(x, (3, 3), (2, 2))  # [B, 73, 73, D]
    x = _conv('Conv2d_3b_1x1', 80)(x)
    x = _conv('Conv2d_4a_3x3', 192, 3, padding='VALID')(x)  # [B, 71, 71, D]
    x = nn.max_pool(x, (3, 3), (2, 2))  # [B, 35, 35, D]
    for letter, pooled in zip('bcd', (32, 64, 64), strict=True):
      x = BlockA(pooled, name=f'Mixed_5{letter}')(x)
    x = BlockB(name='Mixed_6a')(x)  # [B, 17, 17, D]
    for letter, narrow in zip('bcde', (128, 160, 160, 192), strict=True):
      x = BlockC(narrow, name=f'Mixed_6{letter}')(x)
    x = BlockD(name='Mixed_7a')(x)  # [B, 8, 8, D]
    x = BlockE(_average, name='Mixed_7b')(x)
    # Unlike all others, as in TensorFlow's file of 2015.
    x = BlockE(_maximum, name='Mixed_7c')(x)
    return x.mean((1, 2))


class BlockA(nn.Module):
  """Convolutions up to 5x5: [B, H, W, D] -> [B, H, W, 224 + pooled]."""

  pooled: int

  @nn.compact
  def __call__(self, x):
    a = _conv('branch1x1', 64)(x)
    b = _conv('branch5x5_1', 48)(x)
    b = _conv('branch5x5_2', 64, 5)(b)
    c = _conv('branch3x3dbl_1', 64)(x)
    c = _conv('branch3x3dbl_2', 96, 3)(c)
    c = _conv('branch3x3dbl_3', 96, 3)(c)
    d = _conv('branch_pool', self.pooled)(_average(x))
    return jnp.concatenate([a, b, c, d], -1)


class BlockB(nn.Module):
  """Shrinks [B, H, W, D] to [B, H/2, W/2, 480 + D]."""

  @nn.compact
  def __call__(self, x):
    a = _conv('branch3x3', 384, 3, stride=2)(x)
    b = _conv('branch3x3dbl_1', 64)(x)
    b = _conv('branch3x3dbl_2', 96, 3)(b)
    b = _conv('branch3x3dbl_3', 96, 3, stride=2)(b)
    return jnp.concatenate([a, b, nn.max_pool(x, (3, 3), (2, 2))], -1)


class BlockC(nn.Module):
  """Rows and columns of 7 pixels: [B, H, W, D] -> [B, H, W, 768]."""

  narrow: int

  @nn.compact
  def __call__(self, x):
    narrow = self.narrow
    a = _conv('branch1x1', 192)(x)
    b = _conv('branch7x7_1', narrow)(x)
    b = _conv('branch7x7_2', narrow, 1, 7)(b)
    b = _conv('branch7x7_3', 192, 7, 1)(b)
    c = _conv('branch7x7dbl_1', narrow)(x)
    c = _conv('branch7x7dbl_2', narrow, 7, 1)(c)
    c = _conv('branch7x7dbl_3', narrow, 1, 7)(c)
    c = _conv('branch7x7dbl_4', narrow, 7, 1)(c)
    c = _conv('branch7x7dbl_5', 192, 1, 7)(c)
    d = _conv('branch_pool', 192)(_average(x))
    return jnp.concatenate([a, b, c, d], -1)


class BlockD(nn.Module):
  """Shrinks [B, H, W, D] to [B, H/2, W/2, 512 + D]."""

  @nn.compact
  def __call__(self, x):
    a = _conv('branch3x3_1', 192)(x)
    a = _conv('branch3x3_2', 320, 3, stride=2)(a)
    b = _conv('branch7x7x3_1', 192)(x)
    b = _conv('branch7x7x3_2', 192, 1, 7)(b)
    b = _conv('branch7x7x3_3', 192, 7, 1)(b)
    b = _conv('branch7x7x3_4', 192, 3, stride=2)(b)
    return jnp.concatenate([a, b, nn.max_pool(x, (3, 3), (2, 2))], -1)


class BlockE(nn.Module):
  """Splits branches: [B, H, W, D] -> [B, H, W, 2048]."""

  pool: Callable

  @nn.compact
  def __call__(self, x):
    a = _conv('branch1x1', 320)(x)
    b = _conv('branch3x3_1', 384)(x)
    b = [
      _conv('branch3x3_2a', 384, 1, 3)(b),
      _conv('branch3x3_2b', 384, 3, 1)(b),
    ]
    c = _conv('branch3x3dbl_1', 448)(x)
    c = _conv('branch3x3dbl_2', 384, 3)(c)
    c = [
      _conv('branch3x3dbl_3a', 384, 1, 3)(c),
      _conv('branch3x3dbl_3b', 384, 3, 1)(c),
    ]
    d = _conv('branch_pool', 192)(self.pool(x))
    return jnp.concatenate([a, *b, *c, d], -1)


def _conv(name, features, height=1, width=None, stride=1, padding=None):
  """Returns a ConvNorm, square unless width says otherwise.

  Those of stride 1 keep the size, the others take no pixel beyond the edge.
  """
  padding = padding or ('SAME' if stride == 1 else 'VALID')
  return feature_layers.ConvNorm(
    features, (height, width or height), stride, padding, name=name
  )


def _average(x):
  # As in TensorFlow, over the pixels there are; PyTorch's counts zeros beyond.
  return nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False)


def _maximum(x):
  return nn.max_pool(x, (3, 3), padding='SAME')


def load(path):
  """Returns the parameters for `features`, float32, from a file of weights.

  Args:
    path: a `.safetensors` or `.npz` file, or a `.pth` file if PyTorch is
      installed, with the 472 tensors of pt_inception-2015-12-05 under their
      names, float32. No code in it is run.

  Raises:
    CheckpointError: the file cannot be read or is damaged; a tensor is missing,
      unknown, misshapen, of another type or not finite.
  """
  path = pathlib.Path(path)
  kind = path.suffix.lower()
  if kind not in tensor_files.READERS:
    raise checkpoint.CheckpointError(
      f'{path}: weights are read from {", ".join(tensor_files.READERS)} files'
    )
  try:
    with path.open('rb') as file:
      found = tensor_files.READERS[kind](file)
      wanted = _wanted()
      _check(path, found, wanted)
      flat = {}
      for name, (parameter, _) in wanted.items():
        value = found[name][2]()
        if not np.isfinite(value).all():
          raise checkpoint.CheckpointError(f'{path}: {name} is not finite')
        if parameter[-1] == 'kernel':
          value = value.transpose(2, 3, 1, 0)
        flat[parameter] = jnp.asarray(value, jnp.float32)
  except checkpoint.CheckpointError:
    raise
  except OSError as error:
    raise checkpoint.CheckpointError(
      f'{path}: {error.strerror or error}'
    ) from None
  except Exception as error:  # zipfile, numpy, json, torch raise many kinds.
    raise checkpoint.CheckpointError(
      f'{path} is damaged or no {kind} file of tensors: '
      f'{checkpoint.first_line(error)}'
    ) from error
  return flax.traverse_util.unflatten_dict(flat)


@functools.cache
def _wanted():
  """Returns {tensor name: (path of the parameter, shape of the tensor)}."""
  picture = jax.ShapeDtypeStruct((1, _SIZE, _SIZE, 3), jnp.float32)
  shapes = jax.eval_shape(Inception().init, jax.random.key(0), picture)
  wanted = {}
  for path, leaf in flax.traverse_util.flatten_dict(shapes['params']).items():
    shape = leaf.shape
    if path[-1] == 'kernel':
      shape = tuple(shape[axis] for axis in (3, 2, 0, 1))
    wanted['.'.join((*path[:-1], _LEAVES[path[-1]]))] = (path, shape)
  return wanted


def _check(path, found, wanted):
  """Raises CheckpointError unless found holds what it must and may hold."""
  needed = {name: shape for name, (_, shape) in wanted.items()} | _CLASSIFIER
  counters = {
    name.replace(_LEAVES['mean'], _COUNTER)
    for name in wanted
    if name.endswith(_LEAVES['mean'])
  }
  problems = []
  for name, (shape, dtype, _) in found.items():
    if name in counters or name in _AUXILIARY:
      continue
    if name not in needed:
      problems.append(f'unknown tensor {str(name)[:100]!r}')
    elif shape != needed[name]:
      problems.append(f'{name} has shape {shape}, expected {needed[name]}')
    elif dtype != 'float32':
      # Rounded weights would give distances that no one can compare.
      problems.append(f'{name} is {dtype}, expected float32')
  problems += [f'{name} is missing' for name in needed if name not in found]
  if problems:
    more = f'; and {len(problems) - 3} more' if len(problems) > 3 else ''
    raise checkpoint.CheckpointError(f'{path}: {"; ".join(problems[:3])}{more}')
