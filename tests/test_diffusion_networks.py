"""The four networks of Stable Diffusion against recorded numbers of torch."""

import functools
import json
import pickle
import re
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from coltran_jax.diffusion import architectures, attention, files, weights

KINDS = tuple(architectures.KINDS)
TENSORS = 'diffusion_pytorch_model.safetensors'


@pytest.fixture(scope='module')
def recorded(fixtures):
  """Inputs and outputs of each part; pictures with their channels last."""
  with np.load(fixtures / 'diffusion/expected.npz') as arrays:
    return {
      name: np.moveaxis(array, 1, -1)
      if array.ndim == 4 and array.shape[1] < 20
      else array
      for name, array in arrays.items()
    }


@pytest.fixture(scope='module')
def pipe(fixtures):
  return fixtures / 'diffusion/pipe'


@pytest.fixture(scope='module')
def networks(pipe):
  """{kind: function that runs the network with its recorded weights}."""

  def runner(kind):
    network = weights.find(pipe / kind, kind)
    params = weights.load(network)

    @functools.partial(jax.jit, static_argnames='method')
    def run(*inputs, method=None):
      variables = {'params': params}
      return network.module.apply(variables, *inputs, method=method)

    return run

  return {kind: runner(kind) for kind in KINDS}


def error_of(found, expected):
  return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_shapes_are_those_of_what_is_loaded(pipe, dtype):
  network = weights.find(pipe / 'unet', 'unet', dtype=dtype)
  loaded = jax.eval_shape(lambda: weights.load(network))
  assert weights.shapes(network) == loaded


def test_the_unet_gives_torch_s_noise(networks, recorded):
  inputs = (recorded['latents'], recorded['timesteps'], recorded['context'])
  residuals = networks['controlnet'](*inputs, recorded['condition'])
  residuals = [recorded['controlnet_scale'] * one for one in residuals]
  names = [f'controlnet_down_{i}' for i in range(4)] + ['controlnet_mid']
  for name, one in zip(names, residuals, strict=True):
    assert error_of(one, recorded[name]) < 1e-5, name
  controlled = networks['unet'](*inputs, residuals)
  assert error_of(controlled, recorded['unet_controlled']) < 1e-5
  alone = networks['unet'](*inputs, [0 * one for one in residuals])
  assert error_of(alone, recorded['unet_alone']) < 1e-5


def test_the_autoencoder_gives_torch_s_pictures_and_latents(networks, recorded):
  picture = networks['vae'](recorded['latents'], method='decode')
  assert error_of(picture, recorded['vae_decoded']) < 1e-5
  moments = networks['vae'](recorded['vae_image'], method='encode')
  for name, found in zip(('mean', 'logvar'), moments, strict=True):
    assert error_of(found, recorded[f'vae_{name}']) < 1e-5


def test_the_text_encoder_gives_torch_s_vectors(networks, recorded):
  hidden = networks['text_encoder'](recorded['token_ids'])
  assert error_of(hidden, recorded['text_hidden']) < 1e-5


@pytest.mark.parametrize('kind', KINDS)
def test_every_tensor_of_stable_diffusion_1_5_is_accounted_for(kind, fixtures):
  text = (fixtures / 'diffusion/sd15_tensors.json').read_text('utf-8')
  published = json.loads(text)[kind]
  found = weights.parameters(
    *architectures.KINDS[kind].build(published['config'])
  )
  assert {name: list(shape) for name, (_, shape) in found.items()} == {
    name.removeprefix('text_model.'): shape
    for name, shape in published['tensors'].items()
    if not name.endswith('position_ids')
  }


def test_stable_diffusion_2_has_its_own_heads_and_projections():
  config = {
    'attention_head_dim': [5, 10, 20, 20],
    'cross_attention_dim': 1024,
    'use_linear_projection': True,
  }
  module, inputs = architectures.of_unet(config)
  assert module.architecture.heads == (5, 10, 20, 20)
  found = weights.parameters(module, inputs)
  # Of the published 2.1-base.
  assert sum(np.prod(shape) for _, shape in found.values()) == 865_910_724
  name = 'down_blocks.0.attentions.0.proj_in.weight'
  assert found[name][1] == (320, 320)


@pytest.mark.parametrize('mode', ['chunked', 'auto'])
@pytest.mark.parametrize('queries', [1, 7, 300])
def test_attention_is_exact_in_every_mode(mode, queries, monkeypatch):
  # Chunks of 16 queries, that 7 and 300 are no multiples of.
  monkeypatch.setattr(attention, '_CHUNK_BYTES', 16 * 4 * 2 * 3 * 50)
  random = np.random.RandomState(0)
  q = random.randn(2, queries, 3, 8).astype(np.float32)
  k, v = random.randn(2, 2, 50, 3, 8).astype(np.float32)
  found = jax.jit(attention.attend, static_argnums=3)(q, k, v, mode)
  np.testing.assert_allclose(
    found, attention.attend(q, k, v, 'full'), atol=2e-6
  )


def test_attention_at_512_pixels_in_chunks_takes_little_memory(monkeypatch):
  shape = jax.ShapeDtypeStruct((2, 4096, 8, 40), jnp.float32)

  def temporary(mode):
    attend = functools.partial(attention.attend, mode=mode)
    compiled = jax.jit(attend).lower(shape, shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary('chunked') < 300e6
  assert temporary('auto') < 300e6
  # The analysis does see the weights. (Not those of 'full' on a CPU, where they
  # are inside a call of a library: 2.1 GB of the process's memory.)
  monkeypatch.setattr(attention, '_CHUNK_BYTES', 1 << 28)
  assert temporary('chunked') > 500e6


def test_attention_refuses_what_it_cannot_do():
  q = jnp.ones((1, 2, 1, 4))
  with pytest.raises(ValueError, match='NVIDIA'):
    attention.attend(q, q, q, 'cudnn')
  with pytest.raises(ValueError, match="not 'fast'"):
    attention.attend(q, q, q, 'fast')


@pytest.fixture
def copy(pipe, tmp_path):
  """A function that copies a network's folder, to change it."""

  def copied(kind, change=None, **config):
    target = tmp_path / kind
    shutil.copytree(pipe / kind, target)
    path = target / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if change:
      (file,) = target.glob('*.safetensors')
      tensors = safetensors_numpy.load_file(file)
      safetensors_numpy.save_file(change(tensors), file)
    return target

  return copied


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def loaded(target, kind, **options):
  return weights.load(weights.find(target, kind, **options))


def test_names_of_older_and_newer_libraries_are_known(copy, pipe):
  def older(tensors):
    for new, old in [
      ('to_q', 'query'),
      ('to_k', 'key'),
      ('to_v', 'value'),
      ('to_out.0', 'proj_attn'),
    ]:
      tensors = {re.sub(rf'\b{new}\b', old, n): t for n, t in tensors.items()}
    assert any('proj_attn' in name for name in tensors)
    return tensors

  def newer(tensors):
    ids = {'text_model.embeddings.position_ids': np.arange(77)[None]}
    return {n.removeprefix('text_model.'): t for n, t in tensors.items()} | ids

  for kind, change in [('vae', older), ('text_encoder', newer)]:
    assert_same(loaded(copy(kind, change), kind), loaded(pipe / kind, kind))


def test_half_precision_files_and_products_in_bfloat16(copy, pipe):
  expected = loaded(pipe / 'vae', 'vae')

  def halved(tensors):
    return {name: t.astype(ml_dtypes.bfloat16) for name, t in tensors.items()}

  target = copy('vae', halved)
  (target / TENSORS).rename(target / TENSORS.replace('.safe', '.fp16.safe'))
  found = loaded(target, 'vae')
  near = jax.tree.map(
    lambda x: x.astype(jnp.bfloat16).astype(x.dtype), expected
  )
  assert_same(found, near)
  low = loaded(pipe / 'vae', 'vae', dtype='bfloat16')
  kinds = {leaf.dtype.name for leaf in jax.tree.leaves(low) if leaf.ndim > 1}
  assert kinds == {'bfloat16'}
  assert low['quant_conv']['bias'].dtype == jnp.float32


def test_tensors_that_do_not_fit_are_all_named(copy):
  def broken(tensors):
    del tensors['quant_conv.bias']
    tensors['extra.weight'] = np.ones(3, np.float32)
    tensors['encoder.conv_in.bias'] = np.ones(9, np.float32)
    tensors['decoder.conv_in.bias'] = np.ones(8, np.int32)
    return tensors

  target = copy('vae', broken)
  with pytest.raises(files.WeightsError) as caught:
    loaded(target, 'vae')
  for said in (
    str(target / TENSORS),
    'quant_conv.bias is missing',
    'extra.weight is unknown',
    'encoder.conv_in.bias has shape (9,), expected (8,)',
    'decoder.conv_in.bias is of type I32',
  ):
    assert said in str(caught.value)


def test_a_file_that_was_cut_is_refused_at_every_place(copy):
  target = copy('vae')
  whole = (target / TENSORS).read_bytes()
  for length in (0, 5, 8, 500, len(whole) // 2, len(whole) - 1):
    (target / TENSORS).write_bytes(whole[:length])
    with pytest.raises(files.WeightsError, match='damaged, incomplete'):
      loaded(target, 'vae')


def test_missing_files_are_named(copy):
  target = copy('unet')
  (target / TENSORS).unlink()
  with pytest.raises(files.WeightsError, match=f'put {TENSORS} there'):
    weights.find(target, 'unet')
  (target / 'config.json').unlink()
  with pytest.raises(files.WeightsError, match=r'config.json is missing'):
    weights.find(target, 'unet')


class Evil:
  """Leaves a mark when unpickled."""

  def __reduce__(self):
    return exec, ("import sys; sys.modules['evil_was_here'] = sys",)


def test_a_pickle_is_never_loaded(copy, monkeypatch):
  target = copy('vae')
  data = pickle.dumps(Evil())
  (target / TENSORS).write_bytes(data)
  with pytest.raises(files.WeightsError, match='no safetensors file'):
    loaded(target, 'vae')
  (target / TENSORS).unlink()
  (target / 'diffusion_pytorch_model.bin').write_bytes(data)
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(files.WeightsError, match='install `torch`'):
    loaded(target, 'vae')
  assert 'evil_was_here' not in sys.modules


def test_pytorch_reads_a_bin_file_as_weights_only(copy, pipe, monkeypatch):
  """With a stand-in for PyTorch, which the tests do not install."""
  target = copy('vae')
  state = safetensors_numpy.load_file(target / TENSORS)
  (target / TENSORS).rename(target / 'diffusion_pytorch_model.bin')

  class Tensor:
    def __init__(self, array):
      self.array, self.shape = array, array.shape

    def float(self):
      return self

    def numpy(self):
      return self.array

  def load(path, *, map_location, weights_only, mmap):
    assert weights_only and mmap and map_location == 'cpu'
    return {name: Tensor(array) for name, array in state.items()}

  torch = types.ModuleType('torch')
  torch.load = load
  monkeypatch.setitem(sys.modules, 'torch', torch)
  assert_same(loaded(target, 'vae'), loaded(pipe / 'vae', 'vae'))


@pytest.mark.parametrize(
  ('kind', 'config', 'said'),
  [
    ('unet', {'addition_embed_type': 'text_time'}, 'XL is not supported; use'),
    ('unet', {'cross_attention_dim': 2048}, 'XL is not supported; use'),
    ('controlnet', {'addition_embed_type': 'text_time'}, 'XL is not'),
    ('unet', {'in_channels': 9}, 'inpainting'),
    ('unet', {'act_fn': 'relu'}, "only 'silu' is supported"),
    ('unet', {'block_out_channels': [8, -1]}, 'whole number'),
    ('unet', {'block_out_channels': [8, 10]}, 'no multiple'),
    ('unet', {'layers_per_block': 10**9}, '1 to 8'),
    ('unet', {'up_block_types': ['UpBlock2D'] * 2}, 'up_block_types'),
    ('controlnet', {'down_block_types': ['SkipBlock'] * 2}, 'SkipBlock'),
    ('vae', {'norm_num_groups': 3}, 'multiples'),
    ('vae', {'scaling_factor': 'a'}, 'no number'),
    ('text_encoder', {'hidden_act': 'relu'}, 'relu'),
    ('text_encoder', {'num_attention_heads': 5}, '5 heads'),
  ],
)
def test_a_config_that_is_not_supported_is_refused_by_name(
  kind, config, said, copy
):
  target = copy(kind, **config)
  with pytest.raises(files.WeightsError) as caught:
    weights.find(target, kind)
  assert said in str(caught.value)
  assert str(target / 'config.json') in str(caught.value)


@pytest.mark.parametrize('text', ['{', '[1]', '[' * 100_000, '\xff'])
def test_a_config_that_is_no_json_object_is_refused(text, copy):
  target = copy('vae')
  (target / 'config.json').write_bytes(text.encode('latin-1'))
  with pytest.raises(files.WeightsError, match=r'config\.json'):
    weights.find(target, 'vae')
