"""The three networks against the reference's recorded numbers; properties."""

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coltran_jax import models
from coltran_jax.convert import names

SIZES = {
  'colorizer': 46_310_400,
  'color_upsampler': 13_476_608,
  'spatial_upsampler': 10_910_464,
}


def nats(logits, labels):
  """Returns -log p [...] of labels under logits [..., V]."""
  log_p = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


def bits(logits, labels):
  return nats(logits, labels).mean() / np.log(2)


def upsampler_inputs(recorded):
  """Returns the training symbols [B, H, W] and all symbols [B, H, W, 3]."""
  if recorded.stage == 'color_upsampler':
    return recorded['rgb_slice'][..., 0] // 32, recorded['rgb'] // 32
  channel = recorded['channel_index'][:, None, None, None]
  one = np.take_along_axis(recorded['up_back'], channel, axis=-1)[..., 0]
  return one, recorded['up_back']


@pytest.mark.parametrize('stage', SIZES)
def test_the_papers_sizes_have_the_published_number_of_parameters(stage):
  shapes = models.parameter_shapes(models.build(stage, {}))
  assert sum(int(np.prod(s)) for s in shapes.values()) == SIZES[stage]


def test_colorizer_logits_and_losses_equal_the_recorded_ones(variant):
  codes = variant['labels']
  logits, aux = jax.jit(variant.model.apply)(
    {'params': variant.params}, variant.gray, codes
  )
  np.testing.assert_allclose(logits, variant['logits'][..., 0, :], atol=1e-4)
  np.testing.assert_allclose(
    nats(logits, codes), variant['nats_per_pixel'], atol=1e-5
  )
  assert abs(bits(logits, codes) - variant['bits_per_dim']) < 1e-5
  if 'encoder_logits' not in variant.arrays:
    assert aux == {}
    return
  parallel = aux['parallel_logits']
  np.testing.assert_allclose(
    parallel, variant['encoder_logits'][..., 0, :], atol=1e-4
  )
  np.testing.assert_allclose(
    nats(parallel, codes), variant['encoder_nats_per_pixel'], atol=1e-5
  )


def test_the_encoders_output_equals_the_recorded_one(variant):
  z = variant.model.apply(
    {'params': variant.params}, variant.gray, method='encode'
  )
  np.testing.assert_allclose(z, variant['encoder_output'], atol=1e-5)


@pytest.mark.parametrize('stage', ['color_upsampler', 'spatial_upsampler'])
@pytest.mark.parametrize('chunk', [None, 4])
def test_upsampler_logits_and_losses_equal_the_recorded_ones(stage, chunk):
  recorded = conftest.recorded(f'{stage}_base')
  model = recorded.model.clone(chunk=chunk)
  one, symbols = upsampler_inputs(recorded)
  apply = jax.jit(model.apply)

  def run(symbols, channel):
    return apply({'params': recorded.params}, recorded.gray, symbols, channel)[
      0
    ]

  logits = run(one, recorded['channel_index'])
  np.testing.assert_allclose(
    logits, recorded['train_logits'][..., 0, :], atol=1e-4
  )
  loss = bits(logits, recorded['rgb_slice'][..., 0])
  assert abs(loss - recorded['train_bits_per_dim']) < 1e-5

  batch = len(recorded.gray)
  logits = jnp.stack(
    [run(symbols[..., c], jnp.full((batch,), c)) for c in range(3)], axis=-2
  )
  expected = recorded['eval_logits']
  np.testing.assert_allclose(logits[: len(expected)], expected, atol=1e-4)
  np.testing.assert_array_equal(logits.argmax(-1), recorded['argmax'])
  loss = bits(logits, recorded['rgb'])
  assert abs(loss - recorded['eval_bits_per_dim']) < 1e-5


@pytest.mark.parametrize('stage', SIZES)
def test_first_gradients_equal_the_recorded_ones(stage):
  recorded = conftest.recorded(f'train_{stage}')
  rgb = recorded['batch0:rgb']
  from coltran_jax import color

  gray = color.to_gray(rgb)

  def loss(params):
    apply = recorded.model.apply
    if stage == 'colorizer':
      codes = color.to_codes(rgb)
      logits, aux = apply({'params': params}, gray, codes)
      return 0.99 * bits(logits, codes) + 0.01 * bits(
        aux['parallel_logits'], codes
      )
    channel = recorded['batch0:channel_index']
    labels = np.take_along_axis(rgb, channel[:, None, None, None], -1)[..., 0]
    if stage == 'color_upsampler':
      symbols = labels // 32
    else:
      symbols = recorded['batch0:slice_up_back'][..., 0]
    logits, _ = apply({'params': params}, gray, symbols, channel)
    return bits(logits, labels)

  value, gradients = jax.jit(jax.value_and_grad(loss))(recorded.params)
  np.testing.assert_allclose(value, recorded['total_loss'][0], rtol=1e-5)
  paths = names.reference_names(stage, recorded.model)
  compared = 0
  for name, path in paths.items():
    expected = recorded[f'grad0:{name}']
    actual = gradients
    for part in path:
      actual = actual[part]
    error = np.linalg.norm(np.asarray(actual) - expected)
    assert error <= 1e-4 * np.linalg.norm(expected) + 1e-9, name
    compared += 1
  assert compared == len(jax.tree.leaves(gradients))


def test_a_pixel_is_predicted_without_itself_and_what_follows(variant):
  height, width = variant.model.resolution
  row, column = height // 2, width // 2
  apply = jax.jit(variant.model.apply)
  codes = variant['labels']
  changed = codes.copy()
  changed[:, row, column] = (codes[:, row, column] + 77) % 512
  before, _ = apply({'params': variant.params}, variant.gray, codes)
  after, _ = apply({'params': variant.params}, variant.gray, changed)
  differs = np.any(before != after, axis=(0, 3)).ravel()
  position = row * width + column
  assert not differs[: position + 1].any()
  assert differs[position + 1 : (row + 1) * width].any()
  assert differs[(row + 1) * width :].any()


def test_bfloat16_computes_close_to_float32_with_float32_parameters():
  recorded = conftest.recorded('colorizer_base')
  inputs = (recorded.gray, recorded['labels'])
  model = recorded.model.clone(dtype='bfloat16')
  params = model.init(jax.random.key(0), *inputs)['params']
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    jnp.dtype('float32')
  }
  logits, _ = model.apply({'params': recorded.params}, *inputs)
  assert logits.dtype == jnp.float32
  error = np.abs(logits - recorded['logits'][..., 0, :]).mean()
  assert 0 < error < 0.05


def test_dropout_acts_in_training_only():
  recorded = conftest.recorded('colorizer_base')
  model = recorded.model.clone(dropout=0.5, encoder_dropout=0.5)
  args = ({'params': recorded.params}, recorded.gray, recorded['labels'])
  logits, _ = model.apply(*args)
  np.testing.assert_allclose(logits, recorded['logits'][..., 0, :], atol=1e-4)
  trained, _ = model.apply(
    *args, train=True, rngs={'dropout': jax.random.key(0)}
  )
  assert np.abs(trained - logits).max() > 1e-2


def test_a_model_is_rebuilt_from_its_arguments(variant):
  again = models.build('colorizer', models.arguments_of(variant.model))
  assert again == variant.model


def test_unknown_models_and_arguments_are_named():
  with pytest.raises(ValueError, match='unknown model'):
    models.build('painter', {})
  with pytest.raises(ValueError, match='no argument depth'):
    models.build('colorizer', {'depth': 3})


@pytest.mark.parametrize(
  'argument',
  [
    {'skip': 'no'},
    {'num_heads': 0},
    {'num_heads': True},
    {'hidden_size': 10**12},
    {'num_outer_layers': 2000},
    {'resolution': [8]},
    {'resolution': [8, 1.5]},
    {'dropout': 'x'},
    {'encoder_chunk': 0},
    {'conditional_attention': ['q']},
  ],
)
def test_arguments_of_another_kind_or_size_are_refused(argument):
  with pytest.raises(ValueError, match=next(iter(argument))):
    models.build('colorizer', argument)


@pytest.mark.parametrize(
  'argument',
  [
    {'conditional_norm_order': 'cc'},
    {'conditional_mlp': 'both'},
    {'conditional_attention': 'qx'},
    {'conditional_attention': 'qq'},
    {'conditional_norm_activation': 'gelu'},
  ],
)
def test_switches_without_meaning_are_refused(argument):
  model = models.build('colorizer', {'resolution': [4, 4], **argument})
  with pytest.raises(ValueError, match=r'must be|letters'):
    models.parameter_shapes(model)
