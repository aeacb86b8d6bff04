"""Tensors of a diffusers network -> parameters of our module, one by one.

Our submodules bear torch's names, so one rule serves all networks. Every tensor
is accounted for by name and shape before one is read.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from coltran_jax.diffusion import architectures, files

_DTYPES = ('F32', 'F16', 'BF16', 'F64')
_AT_ONCE = 1 << 26  # Numbers.
_SHOWN = 5  # Problems in a message.
# Names of attention in VAEs that were published before diffusers 0.13.
_OLD_NAMES = {
  'query': 'to_q',
  'key': 'to_k',
  'value': 'to_v',
  'proj_attn': 'to_out.0',
}


@dataclasses.dataclass(frozen=True)
class Network:
  """A network in a folder, its tensors not read yet.

  Attributes:
    file: of the tensors.
    module: what they belong to.
    inputs: the shapes of the module's inputs.
    parameters: {torch name: (path in our tree, shape in torch's order)}.
    dtype: of its products.
  """

  file: pathlib.Path
  module: object
  inputs: tuple
  parameters: dict
  dtype: str

  @property
  def size(self):
    """The number of numbers in its parameters."""
    return sum(math.prod(shape) for _, shape in self.parameters.values())


@functools.cache
def parameters(module, inputs):
  """Returns {torch name: (path, shape)} of a module; computes nothing.

  Known once it was asked for: tracing a UNet takes seconds.
  """
  shapes = jax.eval_shape(
    lambda *inputs: module.init(jax.random.key(0), *inputs), *inputs
  )['params']
  return {
    _torch_name(path): (path, _torch_shape(path, leaf.shape))
    for path, leaf in flax.traverse_util.flatten_dict(shapes).items()
  }


def _torch_name(path):
  """Returns 'to_out.0.weight' of ('to_out_0', 'kernel'), and the like."""
  *modules, leaf = path
  names = [
    # The two of a time embedding are called so in torch.
    name if name.startswith('linear_') else re.sub(r'_(\d+)$', r'.\1', name)
    for name in modules
  ]
  return '.'.join([*names, 'bias' if leaf == 'bias' else 'weight'])


def _torch_shape(path, shape):
  if path[-1] != 'kernel':
    return shape
  # A dense layer [I, O] is [O, I] in torch, a convolution HWIO is OIHW.
  return shape[::-1] if len(shape) == 2 else (shape[3], shape[2], *shape[:2])


def _from_torch(path, array):
  if path[-1] != 'kernel':
    return array
  return array.transpose((1, 0) if array.ndim == 2 else (2, 3, 1, 0))


def find(folder, kind, attention='auto', dtype='float32'):
  """Returns the `Network` of a kind of `architectures.KINDS` in a folder.

  Raises WeightsError if files are missing or the network is not supported.
  """
  folder = pathlib.Path(folder)
  config = files.read_json(folder / 'config.json')
  try:
    module, inputs = architectures.KINDS[kind].build(config, attention, dtype)
  except files.WeightsError as error:
    raise files.WeightsError(f'{folder / "config.json"}: {error}') from None
  file = _file(folder, architectures.KINDS[kind].stem)
  known = parameters(module, inputs)
  return Network(file, module, inputs, known, dtype)


def _file(folder, stem):
  names = [
    f'{stem}{middle}.{suffix}'
    for suffix in ('safetensors', 'bin')
    for middle in ('', '.fp16')
  ]
  # PyTorch's own files of the text encoder have another name.
  names += ['pytorch_model.bin', 'pytorch_model.fp16.bin']
  for name in names:
    if (folder / name).is_file():
      return folder / name
  raise files.WeightsError(
    f'{folder} has no file of tensors; put {names[0]} there'
  )


def problems(network):
  """Returns {name: what is wrong} of the tensors of a network.

  Reads names and shapes only. Raises WeightsError if even that is impossible.
  """
  with _open(network.file) as tensors:
    return _problems(network, tensors)


def check(network):
  """Raises WeightsError unless all tensors of a network fit; reads none."""
  with _open(network.file) as tensors:
    _raise_for(network, tensors)


def load(network, put=jax.device_put):
  """Returns the parameters of a network, in the dtype of its products.

  Vectors (biases, and all of the norms) are float32. Memory beyond the result:
  some tensors (`_AT_ONCE`), as an open file keeps in memory what was read of it.

  Args:
    network: of `find`.
    put: takes a numpy array to where it should be.

  Raises:
    WeightsError: missing, unknown or misshapen tensors; a damaged file; a
      pickle; one that needs PyTorch, which is not there.
  """
  flat = {}
  check(network)
  for names in _groups(network):
    with _open(network.file) as tensors:
      for name in names:
        path, shape = network.parameters[name]
        array = _from_torch(path, np.asarray(tensors[name][2]()))
        flat[path] = put(array.astype(_dtype(network, shape)))
  return flax.traverse_util.unflatten_dict(flat)


def _groups(network):
  """Yields lists of names whose tensors are read with the file open once."""
  names, size = [], 0
  for name, (_, shape) in network.parameters.items():
    names.append(name)
    size += math.prod(shape)
    if size > _AT_ONCE:
      yield names
      names, size = [], 0
  yield names


def shapes(network):
  """Returns shapes and dtypes of what `load` returns; reads nothing."""
  flat = {}
  for path, shape in network.parameters.values():
    ours = _from_torch(path, np.broadcast_to(0, shape)).shape
    flat[path] = jax.ShapeDtypeStruct(ours, _dtype(network, shape))
  return flax.traverse_util.unflatten_dict(flat)


def _dtype(network, shape):
  return jnp.dtype(network.dtype if len(shape) > 1 else 'float32')


def _raise_for(network, tensors):
  found = _problems(network, tensors)
  if found:
    more = len(found) - _SHOWN
    raise files.WeightsError(
      f'{network.file} does not fit its config.json: '
      + '; '.join(list(found.values())[:_SHOWN])
      + (f'; and {more} more' if more > 0 else '')
    )


def _problems(network, tensors):
  expected = {name: shape for name, (_, shape) in network.parameters.items()}
  found = {
    name: f'{name} is missing' for name in expected if name not in tensors
  }
  for name, (shape, dtype, _) in tensors.items():
    if name not in expected:
      found[name] = f'{name} is unknown'
    elif shape != expected[name]:
      found[name] = f'{name} has shape {shape}, expected {expected[name]}'
    elif dtype not in _DTYPES:
      found[name] = f'{name} is of type {dtype}, not one of {_DTYPES}'
  return found


@contextlib.contextmanager
def _open(path):
  """Yields {our torch name: (shape, dtype, function that reads it)}."""
  try:
    if path.suffix == '.bin':
      yield _renamed(_from_pickle(path))
    else:
      with safetensors.safe_open(path, framework='np') as file:
        yield _renamed({name: _entry(file, name) for name in file.keys()})  # noqa: SIM118
  except (OSError, safetensors.SafetensorError) as error:
    raise files.WeightsError(
      f'{path} is damaged, incomplete or no safetensors file ({error}); '
      'download it again'
    ) from None


def _entry(file, name):
  entry = file.get_slice(name)
  shape = tuple(entry.get_shape())
  return shape, entry.get_dtype(), lambda: file.get_tensor(name)


def _from_pickle(path):
  """Reads a .bin file by PyTorch, tensors alone: it can run no code."""
  try:
    import torch
  except ImportError:
    raise files.WeightsError(
      f'{path} can be read with PyTorch only: install `torch`, or put the '
      '.safetensors file beside it'
    ) from None
  try:
    # mmap: a file cannot announce more than it holds.
    state = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    return {
      name: (tuple(tensor.shape), 'F32', lambda t=tensor: t.float().numpy())
      for name, tensor in state.items()
    }
  except Exception as error:  # torch, zipfile and pickle raise many kinds.
    raise files.WeightsError(
      f'{path} holds no plain tensors, or is damaged'
    ) from error


def _renamed(tensors):
  """The tensors under the names that diffusers gives them today."""
  found = {}
  for name, entry in tensors.items():
    if name.endswith('.position_ids'):  # No weights: 0, 1, 2, ...
      continue
    # transformers 5 leaves it out.
    name = name.removeprefix('text_model.')
    name = re.sub(
      r'(?<=attentions\.0\.)(query|key|value|proj_attn)(?=\.)',
      lambda match: _OLD_NAMES[match[0]],
      name,
    )
    found[name] = entry
  return found
