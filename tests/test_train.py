"""Training steps against the recorded ones; one device equals many; runs."""

import functools
import logging
import os
import time
import types

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training

import coltran_jax
from coltran_jax import (
  checkpoint,
  cli,
  configuration,
  distributed,
  losses,
  models,
  run_directory,
  run_log,
  sharding,
  train,
  train_state,
)
from coltran_jax import trainer as trainers
from coltran_jax.convert import names
from coltran_jax.data import input_pipeline, sources


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  return training.make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture
def preempt_after(monkeypatch):
  """Returns a function that makes the next run be told to stop at a step."""

  real = train.distributed.stop_requested, train.Metrics.add

  def set_step(step):
    done = [0]

    def add(self, now, metrics):
      done[0] = now
      real[1](self, now, metrics)

    asked = real[0] if step is None else lambda: done[0] == step
    monkeypatch.setattr(train.distributed, 'stop_requested', asked)
    monkeypatch.setattr(train.Metrics, 'add', add)

  return set_step


def distance(tree, expected):
  """Global norm of a difference, relative to that of what is expected."""
  norm = optax.global_norm
  difference = jax.tree.map(lambda a, b: np.asarray(a) - b, tree, expected)
  return float(norm(difference) / norm(expected))


@pytest.mark.parametrize('stage', training.STAGES)
def test_six_steps_equal_the_recorded_ones(stage):
  recorded = conftest.recorded(f'train_{stage}')
  options = {'low_resolution': 4} if stage == 'spatial_upsampler' else {}
  loss = functools.partial(losses.LOSSES[stage], **options)
  optimizer, _ = train_state.make_optimizer('rmsprop', 3e-4, 6)
  step = jax.jit(trainers.make_train_step(recorded.model, loss, optimizer, 0.9))
  state = train_state.create({'params': recorded.params}, optimizer)
  for k, expected in enumerate(recorded['total_loss']):
    batch = {
      'image': recorded[f'batch{k}:rgb'].astype(np.uint8),
      'channel': recorded[f'batch{k}:channel_index'],
    }
    state, metrics = step(state, batch, jax.random.key(0), {})
    np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-4)
    np.testing.assert_allclose(
      metrics['bits_per_dim'], recorded['loss'][k], rtol=1e-4
    )
    if stage == 'colorizer':
      expected = recorded['encoder_loss'][k]
      np.testing.assert_allclose(
        metrics['parallel_bits_per_dim'], expected, rtol=1e-4
      )
  for prefix, tree in (('final', state.params), ('ema', state.ema_params)):
    paths = names.reference_names(stage, recorded.model)
    for name, path in paths.items():
      actual = functools.reduce(lambda node, part: node[part], path, tree)
      expected = recorded[f'{prefix}:{name}']
      error = np.linalg.norm(np.asarray(actual) - expected)
      assert error <= 1e-4 * np.linalg.norm(expected), (prefix, name)
    assert len(paths) == len(jax.tree.leaves(tree))


def gradients(stage, data=1, fsdp=1, seq=1, **changes):
  """Gradients and metrics of a first step on a mesh."""
  trainer = training.trainer(
    stage, mesh=sharding.make_mesh(data, fsdp, seq), **changes
  )
  batch = training.batch(trainer.config)
  run = jax.jit(
    trainers.make_gradients(
      trainer.split_model, trainer.loss, trainer.config.accumulate
    ),
    compiler_options={'xla_backend_optimization_level': 0},  # Half the time.
  )
  out, metrics, _ = run(
    training.first_state(trainer).variables,
    sharding.to_devices(trainer.mesh, batch),
    trainer.rng,
    trainer.frozen,
  )
  return jax.device_get((out, metrics))


@functools.cache
def alone(stage):
  """The same on one device."""
  return gradients(stage)


@pytest.mark.parametrize('stage', training.STAGES)
def test_gradients_on_every_mesh_equal_those_of_one_device(stage):
  expected, metrics = alone(stage)
  for shape in ((8, 1), (4, 2), (2, 4)):
    actual, on_mesh = gradients(stage, *shape)
    assert distance(actual, expected) < 1e-6, shape
    np.testing.assert_allclose(on_mesh['loss'], metrics['loss'], rtol=1e-6)


@pytest.mark.parametrize('shape', [(2, 1, 4), (1, 1, 8), (1, 2, 4)])
def test_gradients_of_pictures_split_by_rows_equal_those_of_one_device(shape):
  expected, metrics = alone('spatial_upsampler')
  actual, on_mesh = gradients('spatial_upsampler', *shape)
  assert distance(actual, expected) < 1e-6
  np.testing.assert_allclose(on_mesh['loss'], metrics['loss'], rtol=1e-6)


def test_no_device_has_more_than_its_lines_of_a_split_picture():
  trainer = training.trainer(
    'spatial_upsampler', mesh=sharding.make_mesh(1, 1, 8)
  )
  batch = training.batch(trainer.config)['image'][:1]
  text = (
    trainer.eval_step.lower(
      training.first_state(trainer).variables,
      {'image': batch, '_mask': np.ones(1, bool)},
      {},
    )
    .compile()
    .as_text()
  )
  assert 'all-to-all' in text
  assert 'f32[1,16,2,32]' in text  # Columns: [B, H, W / 8, D].
  assert 'f32[1,16,16,' not in text


@pytest.mark.parametrize('stage', training.STAGES)
def test_an_accumulated_batch_equals_the_whole_one(stage):
  expected, metrics = alone(stage)
  actual, in_parts = gradients(stage, 2, accumulate=4)
  assert distance(actual, expected) < 1e-6
  np.testing.assert_allclose(in_parts['loss'], metrics['loss'], rtol=1e-6)


def test_rematerialised_blocks_give_the_same_gradients():
  expected, _ = alone('colorizer')
  actual, _ = gradients('colorizer', model__remat=True)
  assert distance(actual, expected) < 1e-6


def test_rematerialised_blocks_keep_less_for_the_backward_pass():
  # What is kept, by shapes: XLA on a CPU may merge what is computed twice.
  kept = {}
  for remat in (False, True):
    trainer = training.trainer('colorizer', model__remat=remat)

    def residuals(params, trainer=trainer):
      def mean_loss(params):
        return trainer.loss(
          trainer.model,
          {'params': params},
          {'image': jnp.zeros((8, 8, 8, 3), jnp.uint8)},
          train=True,
          rngs={'dropout': trainer.rng},
          frozen={},
        )[0].mean()

      return jax.tree.leaves(jax.vjp(mean_loss, params)[1])

    shapes = jax.eval_shape(residuals, trainer.state_shapes.params)
    kept[remat] = sum(leaf.size for leaf in shapes)
  assert kept[True] < 0.6 * kept[False]


def test_bfloat16_trains_float32_parameters():
  changes = {'model__dtype': 'bfloat16'}
  expected, _ = alone('colorizer')
  actual, _ = gradients('colorizer', **changes)
  assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {
    np.dtype('float32')
  }
  assert 0 < distance(actual, expected) < 0.1


def test_padding_does_not_count_in_an_evaluation():
  trainer = training.trainer('color_upsampler')
  state = training.first_state(trainer)
  pictures = training.batch(trainer.config)['image']
  whole = [{'image': pictures, '_mask': np.ones(8, bool)}]
  noise = pictures[::-1].copy()
  noise[:5] = pictures[:5]
  padded = [
    {'image': noise, '_mask': np.arange(8) < 5},
    {'image': pictures, '_mask': np.arange(8) >= 5},
  ]
  expected = trainer.evaluate(state.variables, whole)
  actual = trainer.evaluate(state.variables, padded)
  assert expected.keys() == {'loss', 'bits_per_dim'}
  np.testing.assert_allclose(actual['loss'], expected['loss'], rtol=1e-6)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'batch_size': 12}, 'batch_size 12 cannot be split over 8'),
    ({'accumulate': 2}, 'over 8 devices in 2 parts'),
    ({'eval_batch_size': 3}, 'eval_batch_size 3'),
    ({'data__sizes': (32, 16)}, r'ends in 16, the model works at \(8, 8\)'),
    ({'mesh__fsdp': 3}, 'there are 8 devices'),
    ({'model__num_heads': 0}, 'num_heads'),
    ({'optimizer__name': 'sgd'}, 'sgd'),
    ({'loss__weight': 1.0}, 'weight'),
    ({'model__dtype': 'float99'}, 'float99'),
    ({'model__num_heads': 5}, '5 heads cannot share 32'),
    ({'log_every': 0}, 'log_every must be 1'),
    ({'eval_pictures': 0}, 'eval_pictures'),
    ({'data__min_crop': 0.0}, 'min_crop'),
    ({'data__sizes': ()}, 'sizes'),
    ({'mesh__seq': 8}, "no key 'mesh.seq'; there are data, fsdp"),
  ],
)
def test_a_config_that_cannot_be_trained_is_refused(changes, message):
  with pytest.raises(configuration.ConfigError, match=message):
    trainers.Trainer(training.config(**changes))


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'loss__input_noise': 0.1}, 'parallel_head=True'),
    ({'loss__part': 'encoder'}, 'parallel_head=True'),
    ({'loss__part': 'inner'}, "loss.part must be one of .* not 'inner'"),
  ],
)
def test_a_loss_that_does_not_fit_the_colorizer_is_refused(changes, message):
  config = training.config('colorizer', model__parallel_head=False, **changes)
  with pytest.raises(configuration.ConfigError, match=message):
    trainers.Trainer(config)


@pytest.mark.parametrize('part', ['encoder', 'decoders'])
def test_weight_decay_is_refused_where_it_would_shrink_what_is_not_trained(
  part,
):
  changes = {'optimizer__name': 'adamw', 'optimizer__weight_decay': 0.1}
  trainers.Trainer(training.config('colorizer', **changes))
  message = f"weight_decay 0.1 would shrink .* loss.part='{part}'"
  with pytest.raises(configuration.ConfigError, match=message):
    trainers.Trainer(training.config('colorizer', **changes, loss__part=part))


@pytest.mark.parametrize(
  'stage, changes, seq, message',
  [
    ('color_upsampler', {}, 8, 'a ColorUpsampler cannot be split by rows'),
    (
      'spatial_upsampler',
      {'model__resolution': (12, 12), 'data__sizes': (12,)},
      8,
      r'seq 8 does not divide the resolution \(12, 12\)',
    ),
  ],
)
def test_what_cannot_be_split_by_rows_is_refused(stage, changes, seq, message):
  mesh = sharding.make_mesh(seq=seq)
  with pytest.raises(configuration.ConfigError, match=message):
    trainers.Trainer(training.config(stage, **changes), mesh)


def stopped_in_its_evaluation(*args):
  """Trains until a stop is asked for within an evaluation."""
  eval_batches = input_pipeline.eval_batches

  def batches(*args, **options):
    for batch in eval_batches(*args, **options):
      distributed._stop.set()
      yield batch

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(input_pipeline, 'eval_batches', batches)
    try:
      train.train_and_evaluate(*args)
    finally:
      distributed._stop.clear()


def test_a_run_that_is_stopped_and_goes_on_is_the_undisturbed_run(
  tmp_path, data_dir, preempt_after
):
  config = training.config()
  train.train_and_evaluate(config, tmp_path / 'whole', data_dir)
  expected = training.lines(tmp_path / 'whole')
  assert [line['step'] for line in expected if line['kind'] == 'eval'] == [
    *(10, 20)
  ]
  # Between lines of the log, before an evaluation, between checkpoints.
  for stop in (7, 10, 13):
    preempt_after(stop)
    with pytest.raises(train.Preempted, match=f'step {stop}'):
      train.train_and_evaluate(config, tmp_path / 'parts', data_dir)
    assert stop in training.steps(tmp_path / 'parts')
  preempt_after(None)
  with pytest.raises(train.Preempted, match='step 20'):
    stopped_in_its_evaluation(config, tmp_path / 'parts', data_dir)
  train.train_and_evaluate(config, tmp_path / 'parts', data_dir)
  assert training.lines(tmp_path / 'parts') == expected
  losses_ = [
    (tmp_path / name / 'losses.json').read_text() for name in ('whole', 'parts')
  ]
  assert losses_[0] == losses_[1]
  whole, parts = (
    run_directory.load_weights(tmp_path / name, 20)[2]
    for name in ('whole', 'parts')
  )
  assert checkpoint.fingerprint(whole) == checkpoint.fingerprint(parts)
  sheets = sorted(p.name for p in (tmp_path / 'parts/samples').iterdir())
  assert sheets == ['00000010.png', '00000020.png']


def test_a_checkpoint_is_saved_after_the_lines_that_no_later_start_writes(
  tmp_path, data_dir, monkeypatch
):
  log, synced, saved = tmp_path / 'metrics.jsonl', [], []
  real = run_directory.RunDirectory.save

  def fsync(descriptor):
    synced.append(os.fstat(descriptor).st_size)

  def save(self, step, *args):
    saved.append(step)
    assert synced[-1:] == [log.stat().st_size], step
    real(self, step, *args)

  monkeypatch.setattr(run_log, 'os', types.SimpleNamespace(fsync=fsync))
  monkeypatch.setattr(run_directory.RunDirectory, 'save', save)
  config = training.config(num_steps=8, save_every=2, eval_every=6)
  train.train_and_evaluate(config, tmp_path, data_dir)
  assert saved == [2, 4, 6, 8]


def test_a_log_is_closed_to_be_kept_and_goes_on(tmp_path):
  with run_log.RunLog(tmp_path, 0, False, 2, 1) as log:
    log.train(1, {'loss': 2.0})
    before = log._file
    log.keep()
    assert before.closed  # What a bucket has of a new file.
    log.train(2, {'loss': 1.0})
  assert [line['loss'] for line in training.lines(tmp_path)] == [2, 1]


def damage_by_flipped_bits(folder):
  # Of array data, in which orbax itself sees nothing: the index is smaller than the
  # largest file, into how many files data go differs from run to run.
  files = folder.glob('state/**/d/*')
  path = max(files, key=lambda file: file.stat().st_size)
  content = bytearray(path.read_bytes())
  for place in range(1000, len(content) // 2, 10_000):
    content[place] ^= 0x10
  path.write_bytes(content)


def damage_by_cutting(folder):
  for path in folder.glob('state/**/d/*'):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_meta(folder):
  for path in folder.glob('meta/metadata'):
    path.write_text('{"step": ')


DAMAGES = (damage_by_flipped_bits, damage_by_cutting, damage_meta)


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_newest_checkpoint_is_passed_over_loudly(
  tmp_path, damage, caplog
):
  trainer = training.trainer()
  state = training.first_state(trainer)
  with training.opened(tmp_path, trainer.config) as run:
    run.save(5, state.replace(step=jnp.int32(5)), {'pending': [1.5]})
    run.save(10, state.replace(step=jnp.int32(10)), {'pending': []})
  damage(tmp_path / 'checkpoints/10')
  with training.opened(tmp_path, trainer.config) as run:
    with caplog.at_level(logging.ERROR, 'coltran'):
      restored, notes = run.restore(trainer.state_shapes)
    assert 'checkpoint 10' in caplog.text
    assert 'damaged' in caplog.text
    assert int(restored.step) == 5
    assert notes == {'pending': [1.5]}
    run.save(10, state.replace(step=jnp.int32(10)), {'pending': []})
  with training.opened(tmp_path, trainer.config) as run:
    assert int(run.restore(trainer.state_shapes)[0].step) == 10
  damage(tmp_path / 'checkpoints/10')
  damage(tmp_path / 'checkpoints/5')
  with (
    training.opened(tmp_path, trainer.config) as run,
    pytest.raises(train.RunError, match=r'none of .*\[5, 10\]'),
  ):
    run.restore(trainer.state_shapes)
  if damage is not damage_by_flipped_bits:  # Which may spare the averages.
    with pytest.raises(train.RunError, match='checkpoint 10'):
      run_directory.load_weights(tmp_path)


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
  trainer = training.trainer()
  state = training.first_state(trainer)
  with training.opened(tmp_path, trainer.config) as run:
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 4.0)):
      if loss is not None:
        run.record_loss(step, loss)
      run.save(step, state.replace(step=jnp.int32(step)), {})
  assert training.steps(tmp_path) == [2, 3, 4, 5]
  with training.opened(tmp_path, trainer.config) as run:
    run.save(6, state.replace(step=jnp.int32(6)), {})
  assert training.steps(tmp_path) == [2, 4, 5, 6]
  assert run_directory.load_weights(tmp_path)[1] == 2
  assert run_directory.load_weights(tmp_path, 6)[1] == 6
  with pytest.raises(
    train.RunError, match=r'no checkpoint 3; .*\[2, 4, 5, 6\]'
  ):
    run_directory.load_weights(tmp_path, 3)


def go_on(workdir, config, steps_losses, data='data'):
  """Goes on with a run that is told to change; as `train` does."""
  trainer = training.trainer()
  state = training.first_state(trainer)
  with training.opened(workdir, config, data, change_config=True) as run:
    run.restore(trainer.state_shapes)
    for step, loss in steps_losses:
      if loss is not None:
        run.record_loss(step, loss)
      run.save(step, state.replace(step=jnp.int32(step)), {})


@pytest.mark.parametrize(
  'changes, data',
  [
    ({'data__flip': True, 'loss__input_noise': 0.1}, 'more, valid'),
    ({'model__dropout': 0.1, 'model__remat': True}, 'train, valid'),
  ],
)
def test_losses_count_on_where_only_training_changes(tmp_path, changes, data):
  go_on(
    tmp_path, training.config(keep=1), [(1, 0.1), (2, None)], 'train, valid'
  )
  config = training.config(keep=1, **changes)
  go_on(tmp_path, config, [(3, 30.0), (4, None)], data)
  assert training.steps(tmp_path) == [1, 4]


@pytest.mark.parametrize(
  'changes, data',
  [
    ({'data__sizes': (16, 8)}, 'data'),
    ({'loss__any': 1}, 'data'),
    ({'model__num_heads': 2}, 'data'),
    ({'eval_pictures': 4}, 'data'),
    ({}, 'other data'),
  ],
)
def test_losses_measured_otherwise_do_not_compete_for_the_best(
  tmp_path, changes, data, caplog
):
  config = training.config(keep=1, **changes)
  go_on(tmp_path, training.config(keep=1), [(1, 0.1), (2, None)])
  assert training.steps(tmp_path) == [1, 2]
  with training.opened(tmp_path, config, data, change_config=True) as run:
    run.restore(training.trainer().state_shapes)
  assert 'losses of earlier evaluations do not count' in caplog.text
  # Nothing was saved, so the run is what it was.
  assert run_directory.load_weights(tmp_path)[1] == 1
  go_on(tmp_path, config, [(3, None)], data)
  assert run_directory.load_weights(tmp_path)[1] == 3
  go_on(tmp_path, config, [(4, 30.0), (5, 40.0), (6, None)], data)
  assert training.steps(tmp_path) == [4, 6]
  assert run_directory.load_weights(tmp_path)[1] == 4


def test_the_best_stays_the_best_when_the_run_is_made_longer(tmp_path):
  go_on(tmp_path, training.config(keep=1), [(1, 0.1), (2, None)])
  config = training.config(keep=1, num_steps=99, optimizer__learning_rate=0.1)
  go_on(tmp_path, config, [(3, 0.2), (4, None)])
  assert training.steps(tmp_path) == [1, 4]
  assert run_directory.load_weights(tmp_path)[1] == 1


def test_a_state_goes_on_on_fewer_devices(tmp_path):
  config = training.config()
  losses_, saved = [], None
  for count in (8, 4, 1):
    trainer = trainers.Trainer(config, sharding.make_mesh(data=count))
    with training.opened(tmp_path, config) as run:
      restored = run.restore(trainer.state_shapes)
      state = restored[0] if restored else training.first_state(trainer)
      start = run_directory.fingerprints({'params': state.params})
      assert start == saved or count == 8
      step = int(state.step)
      batch = sharding.to_devices(trainer.mesh, training.batch(config, step))
      state, metrics = trainer.train_step(state, batch, trainer.rng, {})
      losses_.append(float(metrics['loss']))
      run.save(step + 1, state, {})
      saved = run_directory.fingerprints({'params': state.params})
  trainer = trainers.Trainer(config, sharding.make_mesh(data=1))
  state = training.first_state(trainer)
  for step, expected in enumerate(losses_):
    batch = sharding.to_devices(trainer.mesh, training.batch(config, step))
    state, metrics = trainer.train_step(state, batch, trainer.rng, {})
    np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)


def test_a_checkpoint_has_the_same_fingerprint_on_any_mesh():
  prints = set()
  for axes in ({'data': 8}, {'data': 2, 'fsdp': 4}, {'data': 1}):
    trainer = trainers.Trainer(training.config(), sharding.make_mesh(**axes))
    params = training.first_state(trainer).params
    prints.add(run_directory.fingerprints({'params': params})['params'])
  host = jax.device_get(params)
  assert prints == {checkpoint.fingerprint({'params': host})}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
  tmp_path, data_dir
):
  config = training.config(optimizer__learning_rate=1e30, save_every=1)
  with pytest.raises(train.RunError, match=r'step 2: .*is (nan|inf)'):
    train.train_and_evaluate(config, tmp_path, data_dir)
  assert training.steps(tmp_path) == [1]
  params = run_directory.load_weights(tmp_path)[2]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_run_directory_refuses_another_config_unless_told(tmp_path):
  def save(config, step, **options):
    with training.opened(tmp_path, config, **options) as run:
      run.save(step, training.first_state(training.trainer()), {})

  with training.opened(tmp_path, training.config(seed=9)):
    pass  # Nothing was saved, so nothing is refused.
  save(training.config(), 1)
  other = training.config(seed=3, optimizer__learning_rate=0.1)
  with pytest.raises(
    train.RunError,
    match=r'optimizer.learning_rate: 0.0003 -> 0.1; seed: 0 -> 3',
  ):
    training.opened(tmp_path, other)
  save(other, 2, change_config=True)
  save(other, 3)  # It is the run's own now.


def test_a_checkpoint_holds_the_notes_of_its_moment(tmp_path, monkeypatch):
  trainer = training.trainer()
  late = []
  json_save = run_directory.ocp.args.JsonSave
  monkeypatch.setattr(
    run_directory.ocp.args,
    'JsonSave',
    lambda meta: late.append(meta) or json_save(meta),
  )
  notes = {'pending': [{'loss': 1.0}], 'due': False}
  with training.opened(tmp_path, trainer.config) as run:
    run.save(1, training.first_state(trainer), notes)
    notes['pending'][0]['loss'] = 2.0
    notes['pending'].append({'loss': 3.0})
    # What orbax's thread may only now come to write.
    assert late[0]['notes'] == {'pending': [{'loss': 1.0}], 'due': False}


def test_a_run_directory_is_one_process_s_at_a_time(tmp_path):
  with (
    training.opened(tmp_path, training.config()),
    pytest.raises(train.RunError, match='another process is training there'),
  ):
    training.opened(tmp_path, training.config())
  with training.opened(tmp_path, training.config()):
    pass


def test_a_refused_start_leaves_the_save_of_the_running_one_alone(tmp_path):
  config, state = training.config(), training.first_state(training.trainer())
  half = tmp_path / 'checkpoints/10.orbax-checkpoint-tmp'
  with training.opened(tmp_path, config) as run:
    run.save(5, state, {})
    run.finish()
    half.mkdir()
    with pytest.raises(train.RunError, match='another process is training'):
      training.opened(tmp_path, config)
    time.sleep(0.5)  # orbax removes in the background.
    assert half.exists()
  with training.opened(tmp_path, config) as run:
    run.save(15, state, {})
  assert not half.exists()  # No process is left that would finish it.


def test_a_run_refuses_to_go_on_with_other_data_unless_told(tmp_path):
  trainer = training.trainer()
  config = trainer.config
  with training.opened(tmp_path, config, data='a') as run:
    run.save(1, training.first_state(trainer), {})
  with (
    training.opened(tmp_path, config, data='b') as run,
    pytest.raises(train.RunError, match=r'another data set \(a, now b\)'),
  ):
    run.restore(trainer.state_shapes)
  with training.opened(tmp_path, config, data='b', change_config=True) as run:
    assert run.restore(trainer.state_shapes)


def test_a_run_does_not_go_on_with_another_part_of_its_model(tmp_path):
  trainer = training.trainer()
  with training.opened(tmp_path, trainer.config) as run:
    run.save(1, training.first_state(trainer), {})
  config = training.config(loss__part='decoders')
  with (
    training.opened(tmp_path, config, change_config=True) as run,
    pytest.raises(train.RunError, match="'all' to 'decoders' within a run"),
  ):
    run.restore(trainer.state_shapes)


def test_a_broken_record_stops_the_run_with_its_name(tmp_path, data_dir):
  broken = tmp_path / 'data'
  for path in data_dir.rglob('*'):
    target = broken / path.relative_to(data_dir)
    if path.is_dir():
      target.mkdir(parents=True, exist_ok=True)
      continue
    content = path.read_bytes()
    if 'train.array_record' in path.name:
      # Inside of the compressed pixels of the PNG files.
      content = content.replace(b'IDAT', b'IDAX')
    target.write_bytes(content)
  with pytest.raises(sources.DataError, match=r'folder, split train, record'):
    train.train_and_evaluate(training.config(), tmp_path / 'run', broken)


def test_three_trained_stages_are_exported_and_color_a_photo(
  tmp_path, data_dir
):
  for stage in training.STAGES:
    config = training.config(stage, num_steps=1, mesh__data=1)
    train.train_and_evaluate(config, tmp_path / stage, data_dir)
    run = [str(tmp_path / stage), str(tmp_path / 'weights'), '--half']
    drawn = stage == 'colorizer'
    options = [
      '--temperature',
      '0.9',
      '--min-p',
      '0.1',
      '--encoder-weight',
      '2',
      '--mean-of',
      '3',
    ]
    code = cli.main(['export', *run, *options, '--vividness', '0.5'])
    assert code == (0 if drawn else 3)
    assert drawn or cli.main(['export', *run]) == 0
  card = (tmp_path / 'weights/model_card.md').read_text()
  assert 'trained on folder for 1 steps of 8 pictures' in card
  assert card.count('"decoding"') == 1  # Of the colorizer alone.
  colorizer = coltran_jax.Colorizer.from_pretrained(tmp_path / 'weights')
  assert colorizer.decoding == {
    'temperature': 0.9,
    'min_p': 0.1,
    'encoder_weight': 2,
    'vividness': 0.5,
    'mean_of': 3,
  }
  gray = np.tile(np.arange(40, dtype=np.uint8)[None, :, None], (30, 1, 3))
  colored = colorizer(gray)[0]
  assert colored.shape == gray.shape
  assert (
    cli.main(['export', str(tmp_path / stage), str(tmp_path / 'weights')]) == 3
  )


def test_training_starts_from_a_checkpoint_directory(tmp_path):
  trainer = training.trainer()
  params = training.first_state(trainer).params
  params = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, params)
  arguments = models.arguments_of(trainer.model)
  checkpoint.save(tmp_path, training.QUICK, arguments, params, 'a test')
  for init_from in (tmp_path, tmp_path / training.QUICK):
    state = training.trainer(init_from=str(init_from)).create_state()
    for tree in (state.params, state.ema_params):
      assert distance(jax.device_get(tree), params) == 0
  wide = training.trainer(init_from=str(tmp_path), model__mlp_size=64)
  with pytest.raises(checkpoint.CheckpointError, match='has shape'):
    wide.create_state()
  other = training.trainer(
    'colorizer', init_from=str(tmp_path / training.QUICK)
  )
  with pytest.raises(checkpoint.CheckpointError, match='holds a color_upsamp'):
    other.create_state()


def test_a_trace_is_written_on_request(tmp_path, data_dir):
  config = training.config(num_steps=5)
  train.train_and_evaluate(config, tmp_path, data_dir, profile=True)
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


DEBUG = ('--config', 'CONFIG:debug', '--data_dir', 'data')


@pytest.mark.parametrize(
  'options, message',
  [
    (['--config', 'nowhere.py'], 'no config nowhere.py'),
    (['--config', 'CONFIG:nothing'], "no variant 'nothing'"),
    (['--config', 'CONFIG:debug', '--set', 'sed=1'], "no key 'sed'"),
    (['--config', 'CONFIG:debug', '--set', 'seed=x'], 'seed'),
    (['--config', 'CONFIG:debug', '--set', 'seed'], 'KEY=VALUE'),
    (['--config', 'CONFIG:debug', '--set', 'a.b=1'], "no section 'a'"),
    (['--config', 'CONFIG:debug', '--process-id', '0'], 'go together'),
    (['--config', 'CONFIG:debug'], '--data_dir'),
    ([*DEBUG, '--workdir', 'gs://b/run'], '--workdir gs://b/run is a URL'),
    ([*DEBUG, '--data_dir', 's3://b/data'], 'mount the bucket'),
    ([*DEBUG, '--set', 'init_from=gs://b/w'], 'init_from gs://b/w is a URL'),
  ],
)
def test_a_command_that_cannot_be_meant_is_refused(
  tmp_path, options, message, capsys, monkeypatch
):
  monkeypatch.delenv('COLTRAN_DATA', raising=False)
  path = str(training.ROOT / 'configs/colorizer.py')
  options = [option.replace('CONFIG', path) for option in options]
  assert cli.main(['train', '--workdir', str(tmp_path / 'run'), *options]) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('stage', training.STAGES)
def test_a_parameter_tree_is_split_and_joined(stage):
  variables = models.init(training.trainer(stage).model, jax.random.key(0))
  extended = variables | {'batch_stats': {'mean': jnp.ones(2)}}
  for one in (variables, extended):
    again = models.split(models.join(one))
    assert jax.tree.structure(again) == jax.tree.structure(dict(one))


def test_exporting_what_is_no_run_is_refused(tmp_path, capsys):
  assert cli.main(['export', str(tmp_path), str(tmp_path / 'out')]) == 3
  assert 'no training run' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()
