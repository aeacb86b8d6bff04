"""Training: one loop for all models, from one CPU to a TPU pod.

Step k's batch is a function of (seed, k), its random numbers of (seed, k) too,
so a run that is killed and started again does what it would have done.
"""

import collections
import functools
import logging
import time

import jax
import numpy as np

from coltran_jax import (
  distributed,
  preview,
  run_directory,
  run_log,
  sharding,
  trainer,
)
from coltran_jax.data import input_pipeline, sources

_log = logging.getLogger('coltran')
_IN_FLIGHT = 2  # Steps that run ahead of what is read of them.
RunError = run_directory.RunError


class Preempted(Exception):
  """The run was told to stop; its state is saved, starting again goes on."""


class Metrics:
  """Reads what steps measured, some steps late, and checks that it is finite.

  pending: metrics of the steps since the last line in the log.
  """

  def __init__(self, log, schedule, log_every, pending=()):
    self._log, self._schedule, self._log_every = log, schedule, log_every
    self._flying = collections.deque()
    self.pending = list(pending)

  def add(self, step, metrics):
    self._flying.append((step, metrics))
    while len(self._flying) > _IN_FLIGHT:
      self._read()

  def drain(self):
    """Reads all that is in flight."""
    while self._flying:
      self._read()

  def _read(self):
    step, metrics = self._flying.popleft()
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    _check_finite(f'step {step}', values)
    if self.pending and self.pending[-1].keys() != values.keys():
      self.pending = []  # Of another loss, before the config was changed.
    self.pending.append(values)
    if step % self._log_every == 0:
      means = {
        name: float(np.mean([values[name] for values in self.pending]))
        for name in values
      }
      means['learning_rate'] = float(self._schedule(step - 1))
      self.pending = []
      if self._log:
        self._log.train(step, means)


def _check_finite(what, values):
  wrong = [f'{k} is {v}' for k, v in values.items() if not np.isfinite(v)]
  if wrong:
    raise RunError(
      f'{what}: {", ".join(wrong)}; the checkpoints before it are good. '
      'Try a lower optimizer.learning_rate or an optimizer.clip_norm'
    )


def train_and_evaluate(
  config, workdir, data_dir=None, profile=False, change_config=False
):
  """Trains as config says, from the newest checkpoint in workdir on.

  Args:
    config: a locked config, see `configuration.training`.
    workdir: see `run_directory`; the same on all hosts.
    data_dir: of the data sets that `coltran prepare` made.
    profile: write a trace of a few steps to WORKDIR/profile.
    change_config: go on with a run that was started with another config.

  Raises:
    Preempted: SIGTERM came; the state is saved.
    RunError, ConfigError, CheckpointError, DataError: why it cannot go on.
  """
  source = sources.open_split(
    config.data.name, data_dir, config.data.train_split
  )
  eval_source = sources.open_split(
    config.data.name, data_dir, config.data.eval_split
  )
  one = trainer.Trainer(config)
  data_fingerprint = f'{source.fingerprint}, {eval_source.fingerprint}'
  with run_directory.RunDirectory(
    workdir, config, data_fingerprint, change_config
  ) as run:
    restored = run.restore(one.state_shapes)
    if restored is None:
      state, notes = one.create_state(), {'pending': [], 'due': False}
    else:
      state, notes = restored
    train_step = one.compile()
    _report(one, train_step, state)
    loop = functools.partial(
      _loop, one, train_step, run, state, notes, source, eval_source, profile
    )
    if jax.process_index() == 0:
      with run_log.RunLog(
        run.path,
        int(state.step),
        notes['due'],
        config.num_steps,
        config.batch_size,
      ) as log:
        loop(log=log)
    else:
      loop(log=None)


def _loop(
  one, train_step, run, state, notes, source, eval_source, profile, log
):
  """Trains from `state` on; the arguments are those of `train_and_evaluate`."""
  config = one.config
  first = int(state.step)
  share = {'parts': one.share, 'num_parts': sharding.parts(one.mesh)}
  batches = input_pipeline.train_batches(
    source,
    sizes=tuple(config.data.sizes),
    batch_size=config.batch_size,
    seed=config.seed,
    start_step=first,
    flip=config.data.flip,
    min_crop=config.data.min_crop,
    **share,
  )
  metrics = Metrics(log, one.schedule, config.log_every, notes['pending'])

  def look(step):
    """Evaluates and samples where that is due; Preempted if it shall not."""
    start = time.monotonic()
    last = step == config.num_steps
    if last or step % config.eval_every == 0:
      limit = None if config.eval_pictures < 0 else config.eval_pictures
      eval_batches = input_pipeline.eval_batches(
        eval_source,
        sizes=tuple(config.data.sizes),
        batch_size=config.eval_batch_size,
        limit=limit,
        **share,
      )
      result = one.evaluate(
        state.ema_variables, _until_stopped(step, eval_batches)
      )
      _check_finite(f'evaluation after step {step}', result)
      run.record_loss(step, result['loss'])
      if log:
        log.evaluation(step, result)
        log.keep()
    if last or step % config.sample_every == 0:
      sheet = preview.sheet(one, state.ema_variables, eval_source)
      if log:
        log.samples(step, sheet)
    if log:
      log.pause(time.monotonic() - start)

  if notes['due']:  # Stopped before it could look at its results.
    look(first)
  rng, frozen = one.rng, one.frozen  # Moved to the devices here, if not yet.
  tracing = first + 2 if profile and first + 2 <= config.num_steps else None
  for step in range(first + 1, config.num_steps + 1):
    if step == tracing:
      metrics.drain()
      jax.profiler.start_trace(run.path / 'profile')
    batch = sharding.to_devices(one.mesh, next(batches))
    with jax.transfer_guard('disallow'):
      state, measured = train_step(state, batch, rng, frozen)
    metrics.add(step, measured)
    if log:
      log.advance()
    if tracing and step == min(tracing + 2, config.num_steps):
      metrics.drain()
      jax.profiler.stop_trace()
      _log.info('steps %d to %d are in %s/profile', tracing, step, run.path)
      tracing = None

    preempted = distributed.stop_requested()
    due = step == config.num_steps or any(
      step % every == 0
      for every in (config.eval_every, config.sample_every, config.save_every)
    )
    if not (due or preempted):
      continue
    metrics.drain()  # No step that was not finite gets into a checkpoint.
    notice = _stopped_after(step) if preempted else None
    if not notice:
      try:
        look(step)
      except Preempted as error:
        notice = error
    notes = {'pending': metrics.pending, 'due': notice is not None}
    if log:
      log.keep()
    run.save(step, state, notes)
    if notice:
      run.finish()
      raise notice


def _stopped_after(step):
  return Preempted(f'stopped after step {step}; it is saved')


def _until_stopped(step, batches):
  """Yields batches; an evaluation may take longer than a notice gives."""
  for batch in batches:
    if distributed.stop_requested():
      raise _stopped_after(step)
    yield batch


def _report(one, train_step, state):
  """Logs what will be trained: parameters by part, memory, devices."""
  sizes = collections.Counter()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    sizes[path[0].key] += leaf.size
  width = max(map(len, sizes))
  for name, size in sizes.items():
    _log.info('  %-*s %12s parameters', width, name, f'{size:,}')
  kept = sum(
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)
  )
  _log.info(
    '%s: %s parameters; %d devices, %d pictures a step; a device holds %.2f GB '
    'of state and needs %.2f GB more during a step',
    one.config.name,
    f'{sum(sizes.values()):,}',
    one.mesh.size,
    one.config.batch_size,
    kept / 1e9,
    train_step.memory_analysis().temp_size_in_bytes / 1e9,
  )
  if int(state.step):
    _log.info(
      'going on after step %d of %d', int(state.step), one.config.num_steps
    )
