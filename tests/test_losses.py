"""Losses: what they compare, which pictures and channels they count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training

from coltran_jax import color, image, losses, models


@functools.cache
def compiled(stage, train):
  trainer = training.trainer(stage)

  def run(variables, batch):
    rngs = {'dropout': jax.random.key(0)} if train else None
    return trainer.loss(
      trainer.model, variables, batch, train=train, rngs=rngs, frozen={}
    )

  return jax.jit(run)


def loss_of(stage, batch, train):
  variables = training.first_state(training.trainer(stage)).variables
  return compiled(stage, train)(variables, batch)


def test_bits_per_dim_of_a_uniform_guess_is_the_log_of_the_symbols():
  logits = jnp.zeros((2, 3, 3, 512))
  bits = losses.bits_per_dim(logits, jnp.ones((2, 3, 3), jnp.int32))
  np.testing.assert_allclose(bits, [9, 9], rtol=1e-6)


@pytest.mark.parametrize('size, low', [(16, 4), (12, 3), (64, 64), (96, 32)])
def test_blurred_is_the_area_resize_down_and_up(size, low):
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (3, size, size, 3), np.uint8)
  expected = [
    image.resize(image.resize(one, low, low), size, size) for one in pictures
  ]
  np.testing.assert_array_equal(losses.blurred(pictures, low), expected)


def test_blurred_refuses_a_size_that_does_not_divide():
  with pytest.raises(ValueError, match='5 does not divide 16x16'):
    losses.blurred(np.zeros((1, 16, 16, 3), np.uint8), 5)


def test_the_colorizers_loss_is_the_weighted_sum_of_its_two_heads():
  batch = training.batch(training.config())
  loss, metrics, updates = loss_of('colorizer', batch, train=False)
  own, parallel = metrics['bits_per_dim'], metrics['parallel_bits_per_dim']
  np.testing.assert_allclose(loss, 0.99 * own + 0.01 * parallel, rtol=1e-6)
  assert updates == {}


@pytest.mark.parametrize('stage', training.STAGES[1:])
def test_an_upsampler_is_evaluated_on_the_mean_of_what_it_is_trained_on(stage):
  batch = training.batch(training.config(stage))
  loss, _, _ = loss_of(stage, batch, train=False)
  count = len(batch['image'])
  channels = [
    loss_of(stage, batch | {'channel': jnp.full((count,), c)}, train=True)[0]
    for c in range(3)
  ]
  np.testing.assert_allclose(loss, np.mean(channels, axis=0), rtol=1e-5)
  assert np.abs(channels[0] - channels[1]).min() > 0


@pytest.mark.parametrize('stage', training.STAGES)
def test_a_pictures_loss_depends_on_no_other_picture(stage):
  batch = training.batch(training.config(stage))
  whole, _, _ = loss_of(stage, batch, train=False)
  batch['image'][1:] = 0
  changed, _, _ = loss_of(stage, batch, train=False)
  np.testing.assert_allclose(changed[0], whole[0], rtol=1e-6)
  assert np.abs(changed[1:] - whole[1:]).min() > 0


def test_input_noise_reaches_the_decoders_alone_and_only_in_training():
  trainer = training.trainer('colorizer')
  variables = training.first_state(trainer).variables
  batch = training.batch(training.config())

  def metrics(share, train=True, seed=0):
    loss = functools.partial(
      losses.colorizer, trainer.model, variables, batch, frozen={}
    )
    rngs = {'dropout': jax.random.key(seed)} if train else None
    return loss(train=train, rngs=rngs, input_noise=share)[1]

  clean, noisy, other = metrics(0.0), metrics(0.5), metrics(0.5, seed=1)
  name = 'parallel_bits_per_dim'
  np.testing.assert_allclose(noisy[name], clean[name], rtol=1e-6)
  for a, b in ((clean, noisy), (noisy, other)):
    assert np.abs(a['bits_per_dim'] - b['bits_per_dim']).min() > 1e-7
  jax.tree.map(
    np.testing.assert_array_equal,
    metrics(0.5, train=False),
    metrics(0.0, train=False),
  )


@pytest.mark.parametrize('share', [0.15, 0.5, 1.0])
def test_input_noise_replaces_the_share_that_it_says_at_random_places(share):
  codes = jnp.zeros((3, 10, 20), jnp.int32)
  logits = jnp.zeros((3, 10, 20, 4)).at[..., 0].set(-jnp.inf)  # Never a 0.
  noisy = losses._noisy(codes, logits, share, jax.random.key(0))
  assert set(np.unique(noisy)) - {0} == {1, 2, 3}
  replaced = np.array(noisy != 0)
  np.testing.assert_array_equal(replaced.mean(axis=(1, 2)), share)
  assert share == 1 or (replaced[0] != replaced[1]).any()


ENCODER = {'encoder', 'gray_embedding', 'parallel_logits'}
DECODERS = {
  *('code_embedding', 'outer_decoder', 'inner_decoder'),
  *('final_norm', 'final_logits'),
}


@pytest.mark.parametrize('noise', [0.0, 0.3])
@pytest.mark.parametrize(
  'part, moved', [('encoder', ENCODER), ('decoders', DECODERS)]
)
def test_a_part_of_the_colorizer_can_be_trained_alone(part, moved, noise):
  trainer = training.trainer('colorizer')
  variables = training.first_state(trainer).variables
  batch = training.batch(training.config())

  def mean_loss(params, part):
    loss, metrics, _ = losses.colorizer(
      trainer.model,
      {'params': params},
      batch,
      train=True,
      rngs={'dropout': jax.random.key(0)},
      frozen={},
      input_noise=noise,
      part=part,
    )
    return loss.mean(), metrics

  params = variables['params']
  name = {'encoder': 'parallel_bits_per_dim', 'decoders': 'bits_per_dim'}[part]
  run = jax.jit(jax.value_and_grad(mean_loss, has_aux=True), static_argnums=1)
  (alone, _), gradients = run(params, part)
  (_, metrics), _ = run(params, 'all')
  np.testing.assert_allclose(alone, metrics[name].mean(), rtol=1e-6)
  assert {
    name
    for name, tree in gradients.items()
    if any(jnp.abs(g).max() > 0 for g in jax.tree.leaves(tree))
  } == moved


def test_codes_are_those_of_the_picture_that_the_colors_have():
  model = models.build(
    'colorizer',
    training.config('colorizer').model.to_dict() | {'gray_patch': 2},
  )
  fine = np.random.RandomState(0).randint(0, 256, (2, 16, 16, 3), np.uint8)
  coarse = np.stack([image.resize(one, 8, 8) for one in fine])
  variables = models.init(model, jax.random.key(0))
  _, metrics, _ = losses.colorizer(
    model, variables, {'image': fine}, train=False, rngs=None, frozen={}
  )
  logits, _ = model.apply(
    variables, color.to_gray(fine), color.to_codes(coarse)
  )
  np.testing.assert_allclose(
    metrics['bits_per_dim'],
    losses.bits_per_dim(logits, color.to_codes(coarse)),
    rtol=1e-6,
  )
