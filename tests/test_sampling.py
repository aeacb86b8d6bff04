"""The sampler: it draws from the model, whatever the batch and the devices."""

import functools

import conftest
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coltran_jax import color, models, sampling


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def random_parameters(model, scale):
  random = np.random.RandomState(0)
  return flax.traverse_util.unflatten_dict(
    {
      path: (random.randn(*shape) * scale).astype(np.float32)
      for path, shape in models.parameter_shapes(model).items()
    }
  )


def sample(recorded, gray, rng, **options):
  return sampling.sample(recorded.model, recorded.params, gray, rng, **options)


def test_reference_mode_repeats_the_published_sampler(variant):
  out = sample(
    variant,
    variant.gray,
    keys(2),
    temperature=0,
    mode='reference',
    keep_logits=True,
  )
  np.testing.assert_array_equal(
    color.from_codes(out.codes), variant['reference_argmax_image']
  )
  np.testing.assert_allclose(
    jax.nn.softmax(out.logits), variant['reference_argmax_proba'], atol=1e-5
  )


def test_probabilities_while_sampling_equal_the_teacher_forced_ones(variant):
  out = sample(variant, variant.gray, keys(2), keep_logits=True)
  logits, _ = variant.model.apply(
    {'params': variant.params}, variant.gray, out.codes
  )
  np.testing.assert_allclose(
    jax.nn.softmax(out.logits), jax.nn.softmax(logits), atol=1e-5
  )
  log_probs = jnp.take_along_axis(
    jax.nn.log_softmax(logits), out.codes[..., None], axis=-1
  )[..., 0]
  np.testing.assert_allclose(out.log_probs, log_probs, atol=1e-5)


def test_the_reference_sampler_leaves_the_trained_model_only_with_its_norms():
  with_norms = conftest.recorded('colorizer_base')
  without = conftest.recorded('colorizer_no_cond_ln')
  for recorded, same in ((with_norms, False), (without, True)):
    options = {'temperature': 0, 'keep_logits': True}
    exact = sample(recorded, recorded.gray, keys(2), **options)
    published = sample(
      recorded, recorded.gray, keys(2), mode='reference', **options
    )
    assert bool((exact.logits == published.logits).all()) == same


def test_a_picture_gets_the_same_bits_alone_and_anywhere_in_a_batch(variant):
  one = sample(variant, variant.gray[:1], keys(1, seed=7), keep_logits=True)
  for position in range(5):
    gray = np.repeat(variant.gray[1:], 5, axis=0)
    gray[position] = variant.gray[0]
    rng = keys(5, seed=8).at[position].set(keys(1, seed=7)[0])
    batch = sample(variant, gray, rng, keep_logits=True)
    np.testing.assert_array_equal(batch.codes[position], one.codes[0])
    np.testing.assert_array_equal(batch.logits[position], one.logits[0])


def test_a_picture_gets_the_same_bits_in_every_batch_at_paper_width():
  # Small models cannot tell: their products are too small to be summed in parts.
  model = models.build('colorizer', {'resolution': (2, 64)})
  params = random_parameters(model, 0.04)
  random = np.random.RandomState(0)
  gray = random.randint(0, 256, (16, 2, 64))
  rng = keys(16)
  whole = sampling.sample(model, params, gray, rng, keep_logits=True)
  for places in ([0], [15], [9, 3, 15, 0, 7]):
    places = np.array(places)
    some = sampling.sample(
      model, params, gray[places], rng[places], keep_logits=True
    )
    np.testing.assert_array_equal(some.codes, whole.codes[places])
    np.testing.assert_array_equal(some.logits, whole.logits[places])


def test_a_colorizer_of_finer_gray_samples_what_it_was_trained_for():
  sizes = dict.fromkeys(('hidden_size', 'mlp_size', 'encoder_mlp_size'), 16)
  model = models.build(
    'colorizer', {'resolution': (4, 4), 'gray_patch': 3, **sizes}
  )
  params = models.init(model, jax.random.key(0))['params']
  gray = np.random.RandomState(1).randint(0, 256, (2, 12, 12))
  out = sampling.sample(model, params, gray, keys(2), keep_logits=True)
  forced, _ = model.apply({'params': params}, gray, out.codes)
  np.testing.assert_allclose(
    jax.nn.softmax(out.logits), jax.nn.softmax(forced), atol=1e-5
  )
  # Other textures of the same mean are another picture.
  turned = gray.reshape(2, 4, 3, 4, 3)[:, :, ::-1].reshape(gray.shape)
  np.testing.assert_array_equal(
    model.coarse_gray(gray), model.coarse_gray(turned)
  )
  z, other = (
    model.apply({'params': params}, g, method='encode') for g in (gray, turned)
  )
  assert np.abs(other - z).max() > 1e-3 * np.abs(z).max()
  with pytest.raises(ValueError, match=r'gray must be \[B, 12, 12\]'):
    sampling.sample(model, params, gray[:, :4, :4], keys(2))


@pytest.mark.parametrize('batch', [8, 5])
def test_codes_are_the_same_on_one_and_on_eight_devices(batch):
  recorded = conftest.recorded('colorizer_base')
  gray = np.resize(recorded.gray, (batch, *recorded.gray.shape[1:]))
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  one = sample(recorded, gray, keys(batch))
  eight = sample(recorded, gray, keys(batch), mesh=mesh)
  np.testing.assert_array_equal(one.codes, eight.codes)
  np.testing.assert_allclose(one.log_probs, eight.log_probs, atol=1e-5)


def test_a_batch_that_is_sharded_stays_so_and_gives_the_same_codes():
  recorded = conftest.recorded('colorizer_base')
  gray = np.resize(recorded.gray, (8, *recorded.gray.shape[1:]))
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  sharded = sample(recorded, jax.device_put(gray, split), keys(8))
  assert len(sharded.codes.devices()) == 8
  np.testing.assert_array_equal(
    sharded.codes, sample(recorded, gray, keys(8)).codes
  )


def test_a_prior_changes_what_is_drawn_and_not_what_the_model_says():
  recorded = conftest.recorded('colorizer_rectangular')
  shape = recorded.gray.shape
  index = np.arange(recorded.gray.size).reshape(shape)
  fixed = (index % 3 == 0) & (np.arange(len(index)) == 1)[:, None, None]
  prior = np.zeros((*shape, 512), np.float32)
  prior[fixed] = -1e9
  prior[fixed, index[fixed] % 512] = 0
  plain = sample(recorded, recorded.gray, keys(2), keep_logits=True)
  out = sample(recorded, recorded.gray, keys(2), keep_logits=True, prior=prior)
  # The first picture's is all zeros, which changes no bit.
  np.testing.assert_array_equal(out.codes[0], plain.codes[0])
  np.testing.assert_array_equal(out.logits[0], plain.logits[0])
  np.testing.assert_array_equal(out.codes[fixed], index[fixed] % 512)
  logits, _ = recorded.model.apply(
    {'params': recorded.params}, recorded.gray, out.codes
  )
  np.testing.assert_allclose(
    jax.nn.softmax(out.logits), jax.nn.softmax(logits), atol=1e-5
  )
  log_probs = jax.nn.log_softmax(logits)
  np.testing.assert_allclose(
    out.log_probs,
    jnp.take_along_axis(log_probs, out.codes[..., None], axis=-1)[..., 0],
    atol=1e-4,
  )


def test_other_keys_give_other_codes_and_the_same_key_the_same():
  recorded = conftest.recorded('colorizer_base')
  gray = np.repeat(recorded.gray[:1], 3, axis=0)
  rng = keys(3).at[2].set(keys(3)[0])
  codes = sample(recorded, gray, rng).codes
  assert (codes[0] != codes[1]).mean() > 0.5
  np.testing.assert_array_equal(codes[0], codes[2])


def test_drawn_codes_follow_the_models_probabilities():
  recorded = conftest.recorded('colorizer_rectangular')
  count = 400
  gray = np.repeat(recorded.gray[:1], count, axis=0)
  out = sample(recorded, gray, keys(count), keep_logits=True)
  # The first pixel's distribution is the same in every draw.
  probabilities = np.asarray(jax.nn.softmax(out.logits[0, 0, 0]))
  top = np.argsort(probabilities)[-40:]
  drawn = np.isin(out.codes[:, 0, 0], top).mean()
  expected = probabilities[top].sum()
  deviation = np.sqrt(expected * (1 - expected) / count)
  assert abs(drawn - expected) < 4 * deviation
  # Over all pixels the mean of log p is minus the mean entropy.
  log_p = jax.nn.log_softmax(out.logits)
  entropy = -(jnp.exp(log_p) * log_p).sum(-1).mean()
  assert abs(entropy + out.log_probs.mean()) < 0.02


def test_lower_temperatures_draw_more_probable_codes():
  recorded = conftest.recorded('colorizer_base')
  gray = np.repeat(recorded.gray, 4, axis=0)
  means = [
    float(sample(recorded, gray, keys(8), temperature=t).log_probs.mean())
    for t in (1.0, 0.3, 0.0)
  ]
  assert means[0] < means[1] < means[2]


@pytest.mark.parametrize('min_p', [0.05, 0.5])
def test_min_p_draws_no_code_far_below_the_most_probable_one(min_p):
  recorded = conftest.recorded('colorizer_base')
  gray = np.repeat(recorded.gray, 4, axis=0)
  options = {'temperature': 1.2, 'keep_logits': True}
  free = sample(recorded, gray, keys(8), **options)
  out = sample(recorded, gray, keys(8), min_p=min_p, **options)
  for drawn, holds in ((free, False), (out, True)):
    log_p = np.asarray(jax.nn.log_softmax(drawn.logits))
    below = drawn.log_probs - log_p.max(-1) < np.log(min_p) - 1e-5
    assert below.any() != holds


def test_min_p_1_takes_the_most_probable_code():
  recorded = conftest.recorded('colorizer_base')
  most = sample(recorded, recorded.gray, keys(2), temperature=0).codes
  only = sample(recorded, recorded.gray, keys(2), min_p=1).codes
  np.testing.assert_array_equal(only, most)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'mode': 'fast'}, 'mode must be'),
    ({'temperature': -1.0}, 'temperature'),
    ({'temperature': float('nan')}, 'temperature'),
    ({'min_p': 1.5}, 'min_p'),
    ({'min_p': float('nan')}, 'min_p'),
    ({'gray': np.zeros((1, 3, 8), np.int32)}, 'gray must be'),
    ({'rng': keys(2)}, 'one key per picture'),
    ({'gray': np.zeros((0, 8, 8), np.int32)}, 'no picture'),
    ({'prior': np.zeros((1, 8, 8))}, 'prior must be'),
  ],
)
def test_inputs_without_meaning_are_refused(change, message):
  recorded = conftest.recorded('colorizer_base')
  inputs = {'gray': recorded.gray[:1], 'rng': keys(1)} | change
  with pytest.raises(ValueError, match=message):
    sample(recorded, **inputs)


@pytest.mark.parametrize(
  'stage, symbols',
  [('color_upsampler', 'bit_cond'), ('spatial_upsampler', 'up_back')],
)
def test_upsampling_gives_the_recorded_pictures_or_the_mean_level(
  stage, symbols
):
  recorded = conftest.recorded(f'{stage}_base')
  model, gray, symbols = recorded.model, recorded.gray, recorded[symbols]
  upsample = functools.partial(
    sampling.upsample, model, recorded.params, gray, symbols
  )
  np.testing.assert_array_equal(upsample('reference'), recorded['argmax'])
  for channel in range(3):
    logits, _ = model.apply(
      {'params': recorded.params},
      gray,
      symbols[..., channel],
      np.full(len(gray), channel),
    )
    p = np.exp(np.float64(logits))
    mean = (p * np.arange(256)).sum(axis=-1) / p.sum(axis=-1)
    assert np.abs(upsample()[..., channel] - mean).max() < 0.501
