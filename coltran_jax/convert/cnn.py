"""From the study's PyTorch CNN to `models.cnn.CNN` and its variables."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import checkpoint, tensor_files
from coltran_jax.convert import reference
from coltran_jax.models import cnn

# Of PyTorch's batch norm: does nothing where momentum is a number.
_COUNTER = 'num_batches_tracked'


def load_cnn(tensors):
  """Returns (model, {'params', 'batch_stats'}) of the study's tensors.

  Args:
    tensors: {PyTorch name: array}, as in 'midlevel_resnet.0.weight'; all of a
      state dict (counters of batches may be left out).

  Raises:
    ConversionError: missing, extra or misshapen tensors, each listed.
  """
  model = cnn.CNN()
  picture = jax.ShapeDtypeStruct((1, 8, 8), jnp.float32)
  expected = flax.traverse_util.flatten_dict(
    jax.eval_shape(model.init, jax.random.key(0), picture)
  )
  paths = _paths(model)
  counters = {
    f'{name.removesuffix("running_mean")}{_COUNTER}'
    for name in paths
    if name.endswith('running_mean')
  }
  problems = [f'missing: {name}' for name in paths if name not in tensors]
  problems += [
    f'unknown: {name}'
    for name in tensors
    if name not in paths and name not in counters
  ]
  flat = {}
  for name, path in paths.items():
    if name not in tensors:
      continue
    shape = np.shape(tensors[name])
    kernel = path[-1] == 'kernel'
    needed = expected[path].shape
    if kernel:
      needed = tuple(needed[axis] for axis in (3, 2, 0, 1))
    if shape != needed:
      problems.append(f'{name} has shape {shape}, expected {needed}')
      continue
    value = jnp.asarray(tensors[name], jnp.float32)
    flat[path] = value.transpose(2, 3, 1, 0) if kernel else value
  reference.raise_for('cnn', problems)
  return model, flax.traverse_util.unflatten_dict(flat)


def read_pth(path):
  """Returns {PyTorch name: numpy array} of a `.pth` file, for `load_cnn`.

  Reads tensors only: such a file can run no code, nor unfold without end.

  Raises:
    ConversionError: PyTorch is not installed, or the file holds no state dict.
  """
  try:
    with open(path, 'rb') as file:
      found = tensor_files.read_pth(file)
      return {name: read() for name, (_, _, read) in found.items()}
  except checkpoint.CheckpointError:  # Its other kinds of files are not ours.
    raise reference.ConversionError(
      f'{path} can be read with PyTorch only: install `torch`'
    ) from None
  except OSError as error:
    raise reference.ConversionError(f'{path}: {error}') from None
  except Exception as error:  # torch, zipfile and pickle raise many kinds.
    raise reference.ConversionError(
      f'{path} holds no state dict of plain tensors, or is damaged: '
      f'{checkpoint.first_line(error)}'
    ) from error


def _paths(model):
  """Returns {PyTorch name: path of the variable}."""
  paths = {}

  def conv(name, path, bias=False):
    paths[f'{name}.weight'] = ('params', *path, 'kernel')
    if bias:
      paths[f'{name}.bias'] = ('params', *path, 'bias')

  def norm(name, path):
    paths[f'{name}.weight'] = ('params', *path, 'scale')
    paths[f'{name}.bias'] = ('params', *path, 'bias')
    paths[f'{name}.running_mean'] = ('batch_stats', *path, 'mean')
    paths[f'{name}.running_var'] = ('batch_stats', *path, 'variance')

  conv('midlevel_resnet.0', ('stem',))
  norm('midlevel_resnet.1', ('stem_norm',))
  for layer in range(2):
    for index in range(model.num_blocks):
      name = f'midlevel_resnet.{layer + 4}.{index}'
      block = f'layer_{layer}_block_{index}'
      for i in range(2):
        conv(f'{name}.conv{i + 1}', (block, f'conv_{i}'))
        norm(f'{name}.bn{i + 1}', (block, f'norm_{i}'))
  conv('midlevel_resnet.5.0.downsample.0', ('layer_1_block_0', 'shortcut'))
  norm('midlevel_resnet.5.0.downsample.1', ('layer_1_block_0', 'shortcut_norm'))
  for index, number in enumerate((0, 4, 7, 11)):
    conv(f'upsample.{number}', (f'decoder_{index}',), bias=True)
    norm(f'upsample.{number + 1}', (f'decoder_norm_{index}',))
  conv('upsample.14', ('ab',), bias=True)
  return paths
