"""The CNN baseline against PyTorch's recorded numbers; properties."""

import functools
import sys
import types

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from coltran_jax import color, convert
from coltran_jax.convert import cnn
from coltran_jax.models import cnn as cnn_model

PHOTOS = ('006', '013', '035')


@pytest.fixture(scope='module')
def recorded(fixtures):
  with np.load(fixtures / 'cnn/cnn.npz') as arrays:
    return dict(arrays)


@pytest.fixture(scope='module')
def tensors(recorded):
  return part(recorded, 'w:')


@pytest.fixture(scope='module')
def loaded(tensors):
  return cnn.load_cnn(tensors)


@pytest.fixture(scope='module')
def photo(fixtures):
  """Reads a photo as float32 RGB [H, W, 3] in 0..1."""

  def read(name, size=224):
    picture = Image.open(fixtures / f'lpips/photos/{name}.jpg').convert('RGB')
    return np.asarray(picture.resize((size, size)), np.float32) / 255

  return read


@functools.partial(
  jax.jit,
  static_argnums=0,
  static_argnames=['train', 'batch_statistics', 'mutable'],
)
def apply(model, variables, lightness, **mode):
  return model.apply(variables, lightness, **mode)


def part(arrays, prefix):
  return {
    name.removeprefix(prefix): value
    for name, value in arrays.items()
    if name.startswith(prefix)
  }


def thinned(picture):
  """Returns the pixels of a [H, W, C] picture that were recorded."""
  return picture[::3, ::3]


def test_the_study_s_network_has_960994_parameters():
  shapes = jax.eval_shape(
    cnn_model.CNN().init, jax.random.key(0), jnp.zeros((1, 8, 8))
  )
  assert set(shapes) == {'params', 'batch_stats'}
  leaves = jax.tree.leaves(shapes['params'])
  assert sum(leaf.size for leaf in leaves) == 960_994


def test_chroma_under_running_averages_equals_the_recorded_one(
  recorded, loaded, photo
):
  model, variables = loaded
  lab = color.to_lab(np.stack([photo(name) for name in PHOTOS]))
  ab, aux = apply(model, variables, lab[..., 0])
  assert aux == {}
  assert ab.shape == (3, 224, 224, 2) and ab.dtype == jnp.float32
  rgb = color.from_lab(jnp.concatenate([lab[..., :1], ab], axis=-1))
  for i, name in enumerate(PHOTOS):
    expected = part(recorded, f'eval:{name}:')
    np.testing.assert_allclose(thinned(lab[i]), expected['lab'], atol=1e-4)
    np.testing.assert_allclose(thinned(ab[i]), expected['ab'], atol=1e-3)
    np.testing.assert_allclose(thinned(rgb[i]), expected['rgb'], atol=1e-4)


def test_chroma_under_statistics_of_the_picture_equals_the_recorded_one(
  recorded, loaded, photo
):
  model, variables = loaded
  lightness = color.to_lab(photo('006', size=448))[None, ..., 0]
  ab, _ = apply(model, variables, lightness, batch_statistics=True)
  np.testing.assert_allclose(
    thinned(ab[0]), recorded['batch:006:ab'], atol=1e-3
  )


def test_lab_equals_the_study_s_both_ways(recorded):
  colors = part(recorded, 'color:')
  np.testing.assert_allclose(
    color.to_lab(colors['rgb']), colors['lab'], atol=1e-4
  )
  np.testing.assert_allclose(
    color.from_lab(colors['lab_in']), colors['rgb_out'], atol=1e-4
  )


def test_a_training_step_equals_the_recorded_one(recorded, tensors, loaded):
  model, variables = loaded
  step = part(recorded, 'step:')

  @jax.jit
  def run(params, stats):
    def loss(params):
      (ab, _), updates = model.apply(
        {'params': params, 'batch_stats': stats},
        step['lightness'],
        train=True,
        mutable=['batch_stats'],
      )
      return (ab**2).mean(), (ab, updates)

    return jax.value_and_grad(loss, has_aux=True)(params)

  (_, (ab, updates)), gradients = run(
    variables['params'], variables['batch_stats']
  )
  np.testing.assert_allclose(ab, step['ab'], atol=1e-3)
  # Laid out like the tensors, by way of loading them from their own names.
  statistics = {name: step[name] for name in tensors if name in step}
  _, after = cnn.load_cnn(tensors | statistics)
  assert len(statistics) == len(jax.tree.leaves(updates)) == 28
  compare(updates['batch_stats'], after['batch_stats'], rtol=1e-4, atol=1e-5)
  of_vectors = part(step, 'gradient:')
  _, expected = cnn.load_cnn(tensors | of_vectors)
  recorded_kernels = {('ab', 'kernel')}
  flat = {
    path: leaf
    for path, leaf in flax.traverse_util.flatten_dict(gradients).items()
    if leaf.ndim == 1 or path in recorded_kernels
  }
  assert len(flat) == len(of_vectors)
  expected = flax.traverse_util.flatten_dict(expected['params'])
  compare(flat, {path: expected[path] for path in flat}, rtol=1e-3, atol=1e-3)


def compare(actual, expected, **tolerance):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, **tolerance), actual, expected
  )


def test_statistics_move_in_training_only(recorded, loaded):
  model, variables = loaded
  lightness = recorded['step:lightness']
  for mode in ({}, {'batch_statistics': True}):
    _, updates = apply(
      model, variables, lightness, mutable=('batch_stats',), **mode
    )
    compare(updates['batch_stats'], variables['batch_stats'], rtol=0)


def test_a_picture_alone_and_in_a_batch_gets_the_same_chroma(recorded, loaded):
  model, variables = loaded
  lightness = recorded['step:lightness']
  together, _ = apply(model, variables, lightness)
  alone, _ = apply(model, variables, lightness[1:])
  np.testing.assert_allclose(together[1:], alone, atol=1e-4)


def test_a_fresh_network_is_neutral_about_statistics_and_keeps_its_scale(
  recorded,
):
  model = cnn_model.CNN(num_blocks=1)
  lightness = recorded['step:lightness']
  key = jax.random.key(0, impl='unsafe_rbg')  # Compiles quickest.
  variables = jax.jit(model.init)(key, lightness)
  stats = flax.traverse_util.flatten_dict(variables['batch_stats'])
  for path, value in stats.items():
    assert (value == (path[-1] == 'variance')).all(), path
  ab, _ = apply(model, variables, lightness, batch_statistics=True)
  assert 0.05 < ab.std() < 5


def test_bfloat16_computes_close_to_float32_with_float32_parameters(
  recorded, loaded
):
  model, variables = loaded
  lightness = recorded['step:lightness']
  half = model.clone(dtype='bfloat16')
  fresh = jax.eval_shape(half.init, jax.random.key(0), lightness)
  assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {
    jnp.dtype('float32')
  }
  expected, _ = apply(model, variables, lightness)
  ab, _ = apply(half, variables, lightness)
  assert ab.dtype == jnp.float32
  assert 0 < np.abs(ab - expected).mean() < 0.05 * np.abs(expected).mean()


@pytest.mark.parametrize('shape', [(1, 12, 16), (1, 16, 9)])
def test_sides_that_are_no_multiple_of_8_are_refused(loaded, shape):
  model, variables = loaded
  with pytest.raises(ValueError, match='multiples of 8'):
    model.apply(variables, jnp.zeros(shape))


def test_every_tensor_that_is_missing_extra_or_misshapen_is_named(tensors):
  wrong = dict(tensors)
  kernel = wrong.pop('upsample.4.weight')
  wrong['upsample.3.weight'] = kernel
  wrong['upsample.14.bias'] = np.zeros(3, np.float32)
  wrong['upsample.11.weight'] = kernel.transpose(2, 3, 1, 0)
  with pytest.raises(convert.ConversionError) as error:
    cnn.load_cnn(wrong)
  for text in (
    'missing: upsample.4.weight',
    'unknown: upsample.3.weight',
    'upsample.14.bias has shape (3,), expected (2,)',
    'upsample.11.weight has shape (3, 3, 128, 64), expected (32, 64, 3, 3)',
  ):
    assert text in str(error.value)


def test_counters_of_batches_are_dropped_beside_batch_norms_only(
  tensors, loaded
):
  name = 'upsample.1.num_batches_tracked'
  _, variables = cnn.load_cnn(tensors | {name: np.int64(39618)})
  compare(variables, loaded[1], rtol=0)
  with pytest.raises(convert.ConversionError, match=r'unknown: upsample\.0'):
    cnn.load_cnn(tensors | {'upsample.0.num_batches_tracked': np.int64(1)})


def test_a_pth_file_needs_pytorch(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'x.pth').touch()
  with pytest.raises(convert.ConversionError, match=r'x\.pth .* `torch`'):
    cnn.read_pth(tmp_path / 'x.pth')


class Tensor:
  """What of PyTorch's tensors the reader uses."""

  def __init__(self, array):
    self.shape, self.dtype = array.shape, f'torch.{array.dtype}'
    self.detach, self.numpy = lambda: self, lambda: array


def test_a_pth_file_is_read_as_nothing_but_tensors(monkeypatch, tmp_path):
  def load(file, map_location, weights_only):
    assert (map_location, weights_only) == ('cpu', True)
    if file.read() != b'good':
      raise RuntimeError('not a zip file')
    return {'a': Tensor(np.arange(3))}

  fake = types.SimpleNamespace(load=load)
  monkeypatch.setitem(sys.modules, 'torch', fake)
  for name in ('good', 'bad'):
    (tmp_path / f'{name}.pth').write_bytes(name.encode())
  assert cnn.read_pth(tmp_path / 'good.pth')['a'].tolist() == [0, 1, 2]
  with pytest.raises(convert.ConversionError, match=r'bad\.pth .* damaged'):
    cnn.read_pth(tmp_path / 'bad.pth')
  with pytest.raises(convert.ConversionError, match=r'none\.pth: .*No such'):
    cnn.read_pth(tmp_path / 'none.pth')


def test_a_pth_file_that_is_too_large_is_refused_before_pytorch_reads_it(
  monkeypatch, tmp_path
):
  fake = types.SimpleNamespace(load=lambda *_, **__: {})
  monkeypatch.setitem(sys.modules, 'torch', fake)
  with open(tmp_path / 'x.pth', 'wb') as file:
    file.truncate((1 << 29) + 1)  # Sparse: no disk space.
  words = r'x\.pth .*would hold 536870913 bytes'
  with pytest.raises(convert.ConversionError, match=words):
    cnn.read_pth(tmp_path / 'x.pth')
