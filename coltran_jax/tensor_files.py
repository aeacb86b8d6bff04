"""Files of named tensors from other programs, read without running any code.

Each reader takes an open file and returns {name: (shape, dtype, function that
reads the array)}: what a hostile file announces can be refused before memory is
spent on it. They raise anything when given anything.
"""

import functools
import json
import math
import os
import zipfile

import numpy as np

from coltran_jax import checkpoint

_MAX_HEADER_BYTES = 1 << 20  # Of safetensors; 472 tensors need 60 kB.
_MAX_PTH_BYTES = 1 << 29  # PyTorch reads all at once.


def read_npz(file):
  """Reads numpy's archive, nothing pickled in it."""
  headers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  archive = zipfile.ZipFile(file)

  def read(info):
    with archive.open(info) as entry:
      return np.lib.format.read_array(entry, allow_pickle=False)

  found = {}
  for info in archive.infolist():
    with archive.open(info) as entry:
      shape, _, dtype = headers[np.lib.format.read_magic(entry)](entry)
    name = info.filename.removesuffix('.npy')
    found[name] = shape, dtype.name, functools.partial(read, info)
  return found


def read_safetensors(file):
  """Eight bytes of length, a JSON header, tensors without gap or overlap."""
  length = int.from_bytes(file.read(8), 'little')
  if length > _MAX_HEADER_BYTES:
    raise ValueError(f'its header would have {length} bytes')
  header = json.loads(file.read(length).decode())
  header.pop('__metadata__', None)
  start, position = 8 + length, 0

  def read(begin, shape):
    file.seek(start + begin)
    data = file.read(4 * math.prod(shape))
    return np.frombuffer(data, '<f4').reshape(shape)

  found = {}
  for name, entry in sorted(
    header.items(), key=lambda item: item[1]['data_offsets']
  ):
    shape, (begin, end) = tuple(entry['shape']), entry['data_offsets']
    if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
      raise ValueError(f'{name} has no valid shape or place')
    if begin != position or end < begin:
      raise ValueError(f'{name} does not begin where the one before ends')
    dtype = {'F32': 'float32'}.get(entry['dtype'], entry['dtype'])
    if dtype == 'float32' and end - begin != 4 * math.prod(shape):
      raise ValueError(f'{name} has not the size of its shape')
    found[name] = shape, dtype, functools.partial(read, begin, shape)
    position = end
  if start + position != os.fstat(file.fileno()).st_size:
    raise ValueError('tensors end before or after the file does')
  return found


def read_pth(file):
  """Reads tensors alone, by PyTorch, which has to be installed."""
  try:
    import torch
  except ImportError:
    raise checkpoint.CheckpointError(
      f'{file.name} can be read with PyTorch only: install `torch`, or bring '
      'the tensors as .safetensors or .npz'
    ) from None
  size = os.fstat(file.fileno()).st_size
  if zipfile.is_zipfile(file):
    size = sum(info.file_size for info in zipfile.ZipFile(file).infolist())
  if size > _MAX_PTH_BYTES:
    raise ValueError(f'it would hold {size} bytes')
  file.seek(0)
  state = torch.load(file, map_location='cpu', weights_only=True)
  return {
    name: (
      tuple(tensor.shape),
      str(tensor.dtype).removeprefix('torch.'),
      tensor.detach().numpy,
    )
    for name, tensor in state.items()
  }


READERS = {
  '.safetensors': read_safetensors,
  '.npz': read_npz,
  '.pth': read_pth,
}
