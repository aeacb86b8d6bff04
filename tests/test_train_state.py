"""Optimizers and averages against their formulas."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training

from coltran_jax import sharding, train_state


def test_rmsprop_is_that_of_keras():
  optimizer, _ = train_state.make_optimizer('rmsprop', 0.1, 10)
  params = {'w': jnp.array([1.0, -2.0])}
  opt_state = optimizer.init(params)
  expected, mean = np.array([1.0, -2.0]), np.zeros(2)
  for gradient in ([0.5, 0.0], [-1.0, 2.0], [0.25, 1e-9]):
    gradient = np.array(gradient)
    updates, opt_state = optimizer.update(
      {'w': jnp.float32(gradient)}, opt_state, params
    )
    params = {'w': params['w'] + updates['w']}
    mean = 0.9 * mean + 0.1 * gradient**2
    expected = expected - 0.1 * gradient / (np.sqrt(mean) + 1e-7)
    np.testing.assert_allclose(params['w'], expected, rtol=1e-5)


def test_the_average_is_taken_after_the_update():
  optimizer, _ = train_state.make_optimizer('rmsprop', 0.1, 10)
  state = train_state.create({'params': {'w': jnp.ones(2)}}, optimizer)
  after = train_state.update(state, {'w': jnp.ones(2)}, {}, optimizer, 0.75)
  assert int(after.step) == 1
  expected = 0.75 * state.params['w'] + 0.25 * after.params['w']
  np.testing.assert_allclose(after.ema_params['w'], expected, rtol=1e-6)


def test_the_learning_rate_warms_up_and_decays():
  _, schedule = train_state.make_optimizer(
    'adamw', 1.0, 100, warmup_steps=10, decay='cosine', weight_decay=0.1
  )
  rates = [float(schedule(step)) for step in range(101)]
  np.testing.assert_allclose(rates[:11], np.linspace(0, 1, 11), atol=1e-6)
  assert np.all(np.diff(rates[10:]) < 0)
  assert rates[100] == 0
  _, schedule = train_state.make_optimizer('adam', 1.0, 100, warmup_steps=4)
  assert [float(schedule(s)) for s in (0, 2, 4, 99)] == [0, 0.5, 1, 1]


def test_weight_decay_leaves_vectors_alone():
  optimizer, _ = train_state.make_optimizer('adamw', 0.1, 9, weight_decay=0.5)
  params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates['kernel'], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates['bias'], 0)


def test_muon_turns_matrices_evenly_in_all_directions():
  optimizer, _ = train_state.make_optimizer('muon', 0.1, 9)
  rng = np.random.default_rng(0)
  shapes = {
    'attention': {'q': (16, 2, 8), 'output': (2, 8, 16)},
    'mlp_in': {'kernel': (16, 32), 'bias': (32,)},
    'code_embedding': {'kernel': (40, 16)},
  }
  gradients = jax.tree.map(
    lambda shape: jnp.float32(rng.normal(size=shape) * 1e-3),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  params = jax.tree.map(jnp.zeros_like, gradients)
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  for x, width in (
    (updates['attention']['q'].reshape(16, 16), 16),
    (updates['attention']['output'].reshape(16, 16), 16),
    (updates['mlp_in']['kernel'], 32),
  ):
    sizes = np.linalg.svd(x, compute_uv=False) / np.sqrt(width / 16)
    assert sizes.min() > 0.3 and sizes.max() < 1.3  # 10 times the rate.
  for x in (updates['mlp_in']['bias'], updates['code_embedding']['kernel']):
    np.testing.assert_allclose(np.abs(x), 0.1, rtol=0.05)  # AdamW.


def test_large_gradients_are_clipped():
  optimizer, _ = train_state.make_optimizer('adam', 1.0, 9, clip_norm=1e-3)
  plain, _ = train_state.make_optimizer('adam', 1.0, 9)
  params = {'w': jnp.zeros(2)}
  gradients = {'w': jnp.array([30.0, 40.0])}
  clipped = {'w': jnp.array([6e-4, 8e-4])}
  np.testing.assert_allclose(
    optimizer.update(gradients, optimizer.init(params), params)[0]['w'],
    plain.update(clipped, plain.init(params), params)[0]['w'],
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'name': 'sgd'}, 'not .sgd.'),
    ({'name': 'adam', 'decay': 'linear'}, 'not .linear.'),
    ({'name': 'adam', 'weight_decay': 0.1}, 'for adamw'),
  ],
)
def test_an_optimizer_that_makes_no_sense_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    train_state.make_optimizer(learning_rate=0.1, num_steps=9, **arguments)


def test_the_longest_axis_that_divides_is_sharded_and_small_arrays_are_not():
  mesh = sharding.make_mesh(data=2, fsdp=4)
  shapes = {
    'kernel': jax.ShapeDtypeStruct((64, 128), jnp.float32),
    'odd': jax.ShapeDtypeStruct((4096, 129), jnp.float32),
    'none': jax.ShapeDtypeStruct((129, 129), jnp.float32),
    'bias': jax.ShapeDtypeStruct((128,), jnp.float32),
    'step': jax.ShapeDtypeStruct((), jnp.int32),
  }
  specs = {k: s.spec for k, s in sharding.of_state(mesh, shapes).items()}
  assert tuple(specs['kernel']) == (None, 'fsdp')
  assert tuple(specs['odd']) == ('fsdp', None)
  assert not any(specs['none']) and not any(specs['bias'])
  assert tuple(specs['step']) == ()


@pytest.mark.parametrize(
  'axes', [{'data': 16}, {'fsdp': 3}, {'fsdp': 0}, {'seq': 3}]
)
def test_a_mesh_that_the_devices_do_not_make_is_refused(axes):
  with pytest.raises(ValueError, match='there are 8 devices'):
    sharding.make_mesh(**axes)


def stand_in(shape, owners):
  """Returns what `share` reads of a mesh of eight devices of these processes."""
  devices = [types.SimpleNamespace(process_index=i) for i in owners]
  axes = dict(zip(('data', 'fsdp', 'seq'), shape, strict=True))
  return types.SimpleNamespace(
    devices=np.array(devices).reshape(shape), shape=axes
  )


@pytest.mark.parametrize(
  'shape, owners, shares',
  [
    ((4, 2, 1), (0, 0, 0, 0, 1, 1, 1, 1), [(0, 1, 2, 3), (4, 5, 6, 7)]),
    ((2, 1, 4), (0, 0, 0, 0, 1, 1, 1, 1), [(0,), (1,)]),
    ((1, 1, 8), (0, 0, 0, 0, 1, 1, 1, 1), [(0,), (0,)]),
    ((2, 1, 4), (0, 0, 1, 1, 2, 2, 3, 3), [(0,), (0,), (1,), (1,)]),
    ((8, 1, 1), (0,) * 8, [tuple(range(8))]),
    # As on slices of TPUs, whose meshes follow the wires.
    ((8, 1, 1), (0, 0, 1, 1, 0, 0, 1, 1), [(0, 1, 4, 5), (2, 3, 6, 7)]),
    ((4, 1, 2), (1, 1, 0, 0, 0, 0, 1, 1), [(1, 2), (0, 3)]),
  ],
)
def test_processes_read_the_pictures_that_their_devices_work_on(
  shape, owners, shares, monkeypatch
):
  for process, expected in enumerate(shares):
    monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
    assert sharding.share(stand_in(shape, owners)) == expected


def test_a_process_with_a_part_of_another_s_pictures_is_refused():
  mesh = stand_in((4, 1, 2), (0, 0, 0, 1, 1, 1, 2, 2))
  with pytest.raises(ValueError, match='does not fit the devices'):
    sharding.share(mesh)


def test_a_state_on_an_fsdp_mesh_is_born_sharded():
  trainer = training.trainer('colorizer', mesh__fsdp=4)
  state = trainer.create_state()
  kernel = state.params['code_embedding']['kernel']
  assert kernel.addressable_shards[0].data.size * 4 == kernel.size
  moment = jax.tree.leaves(state.opt_state)[0]
  assert moment.shape == jax.tree.leaves(state.params)[0].shape
