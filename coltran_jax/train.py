"""Training: one loop for all models, from one CPU to a TPU pod.

Step k's batch is a function of (seed, k), its random numbers of (seed, k) too,
so a run that is killed and started again does what it would have done.
"""

import collections
import functools
import inspect
import logging
import pathlib
import time

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import optax

from coltran_jax import (
  checkpoint,
  configuration,
  losses,
  models,
  preview,
  run_directory,
  run_log,
  sharding,
  train_state,
)
from coltran_jax.data import input_pipeline, sources

_log = logging.getLogger('coltran')
_IN_FLIGHT = 2  # Steps that run ahead of what is read of them.
RunError = run_directory.RunError


class Preempted(Exception):
  """The run was told to stop; its state is saved, starting again goes on."""


def make_gradients(model, loss, accumulate=1):
  """Returns gradients(variables, batch, rng, frozen) -> (gradients, metrics,
  updates) of the mean loss of a batch.

  Args:
    model, loss: see `losses`.
    accumulate: parts of the batch that are taken one by one, to save memory.

  batch: {'image': uint8 [B, H, W, 3]}, and 'channel' int [B] if upsamplers shall
  not draw it. metrics: {name: float32 []}. updates: collections that changed.
  """

  def of_part(variables, batch, key, frozen):
    def mean_loss(params):
      value, metrics, updates = loss(
        model,
        {**variables, 'params': params},
        batch,
        train=True,
        rngs={'dropout': key},
        frozen=frozen,
      )
      metrics = jax.tree.map(jnp.mean, {'loss': value, **metrics})
      return metrics['loss'], (metrics, updates)

    out, (metrics, updates) = jax.grad(mean_loss, has_aux=True)(
      variables['params']
    )
    return (out, metrics), updates

  def gradients(variables, batch, rng, frozen):
    channel_key, dropout_key = jax.random.split(rng)
    size = len(batch['image'])
    batch = {'channel': jax.random.randint(channel_key, (size,), 0, 3)} | batch
    # Every part takes rows of all devices: none has to move.
    parts = jax.tree.map(
      lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(carry, xs):
      total, updates = carry
      part, key = xs
      out, updates = of_part(variables | updates, part, key, frozen)
      return (jax.tree.map(jnp.add, total, out), updates), None

    keys = jax.random.split(dropout_key, accumulate)
    first = jax.tree.map(lambda x: x[0], (parts, keys))
    if accumulate == 1:
      (out, metrics), updates = of_part(variables, *first, frozen)
      return out, metrics, updates
    shapes, updates = jax.eval_shape(of_part, variables, *first, frozen)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    updates = {name: variables[name] for name in updates}
    carry, _ = jax.lax.scan(add, (zeros, updates), (parts, keys))
    total, updates = carry
    out, metrics = jax.tree.map(lambda x: x / accumulate, total)
    return out, metrics, updates

  return gradients


def make_train_step(model, loss, optimizer, ema_decay, accumulate=1):
  """Returns train_step(state, batch, rng, frozen) -> (state, metrics).

  Pure, to be jitted. rng: one key for the whole run. metrics: also the norm of
  all gradients, 'grad_norm'. The rest as in `make_gradients`.
  """
  gradients = make_gradients(model, loss, accumulate)

  def train_step(state, batch, rng, frozen):
    rng = jax.random.fold_in(rng, state.step)
    out, metrics, updates = gradients(state.variables, batch, rng, frozen)
    metrics['grad_norm'] = optax.global_norm(out)
    state = train_state.update(state, out, updates, optimizer, ema_decay)
    return state, metrics

  return train_step


def make_eval_step(model, loss):
  """Returns eval_step(variables, batch, frozen) -> ({name: sum}, count).

  batch: 'image' uint8 [B, H, W, 3] and '_mask' bool [B]: pictures that count.
  """

  def eval_step(variables, batch, frozen):
    value, metrics, _ = loss(
      model, variables, batch, train=False, rngs=None, frozen=frozen
    )
    mask = batch['_mask']
    sums = {
      name: jnp.where(mask, values, 0).sum()
      for name, values in {'loss': value, **metrics}.items()
    }
    return sums, mask.sum()

  return eval_step


class Trainer:
  """A run: model, step, state and where they live on the devices.

  Args:
    config: a locked config, see `configuration.training`.
    mesh: None makes that of the config.

  Raises RunError, ConfigError or CheckpointError for what cannot be.
  """

  def __init__(self, config, mesh=None):
    self.config = config
    try:
      self.mesh = mesh or sharding.make_mesh(**config.mesh)
      self.model = models.build(config.name, config.model.to_dict())
      self.optimizer, self.schedule = train_state.make_optimizer(
        num_steps=config.num_steps, **config.optimizer
      )
      options = config.loss.to_dict()
      self.loss = functools.partial(losses.LOSSES[config.name], **options)
      inspect.signature(self.loss).bind_partial()  # TypeError if unknown.
      frozen = losses.frozen(self.loss)
      self._check()
    except (TypeError, ValueError) as error:
      raise configuration.ConfigError(str(error)) from error
    self.frozen = sharding.replicate(self.mesh, frozen)
    self.rng = sharding.replicate(self.mesh, jax.random.key(config.seed))
    shapes = jax.eval_shape(self._create)
    self.state_sharding = sharding.of_state(self.mesh, shapes)
    self.state_shapes = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      self.state_sharding,
    )
    whole, split = sharding.replicated(self.mesh), sharding.of_batch(self.mesh)
    self.train_step = jax.jit(
      make_train_step(
        self.model,
        self.loss,
        self.optimizer,
        config.ema_decay,
        config.accumulate,
      ),
      in_shardings=(self.state_sharding, split, whole, whole),
      out_shardings=(self.state_sharding, whole),
      donate_argnums=0,
    )
    self.eval_step = jax.jit(
      make_eval_step(self.model, self.loss), out_shardings=whole
    )

  def _check(self):
    config, devices = self.config, self.mesh.size
    for key, parts in (
      ('batch_size', config.accumulate * devices),
      ('eval_batch_size', devices),
    ):
      if config[key] % parts:
        raise ValueError(
          f'{key} {config[key]} cannot be split over {devices} devices'
          + (f' in {config.accumulate} parts' if parts != devices else '')
        )
    resolution = models.resolution(self.model)
    size = config.data.sizes[-1]
    if resolution and resolution != (size, size):
      raise ValueError(
        f'data.sizes ends in {size}, the model works at {resolution}'
      )

  def _create(self, variables=None):
    if variables is None:
      variables = models.init(self.model, jax.random.key(self.config.seed))
    return train_state.create(variables, self.optimizer)

  def create_state(self):
    """Returns the first state, born sharded; of `init_from` if that is given."""
    create = jax.jit(self._create, out_shardings=self.state_sharding)
    if not self.config.init_from:
      return create()
    folder = pathlib.Path(self.config.init_from)
    if not (folder / 'config.json').exists():
      folder = folder / self.config.name
    config, tree = checkpoint.load(folder)
    if config['name'] != self.config.name:
      raise checkpoint.CheckpointError(
        f'{folder} holds a {config["name"]}, the config trains a '
        f'{self.config.name}'
      )
    checkpoint.check_shapes(folder, tree, models.parameter_shapes(self.model))
    return create(models.split(tree))

  def compile(self):
    """Returns the compiled train step, for batches without 'channel'."""
    size = self.config.data.sizes[-1]
    batch = {
      'image': jax.ShapeDtypeStruct(
        (self.config.batch_size, size, size, 3),
        jnp.uint8,
        sharding=sharding.of_batch(self.mesh),
      )
    }
    lowered = self.train_step.lower(
      self.state_shapes, batch, self.rng, self.frozen
    )
    # The CPU's default order of operations takes a fifth more memory, to run
    # several at once, and gains nothing where each takes all cores.
    cpu = self.mesh.devices.flat[0].platform == 'cpu'
    option = 'xla_cpu_enable_concurrency_optimized_scheduler'
    return lowered.compile({option: False} if cpu else None)

  def evaluate(self, variables, batches):
    """Returns {name: mean over all pictures} of evaluation batches."""
    totals = None
    for batch in batches:
      batch = {name: batch[name] for name in ('image', '_mask')}
      batch = sharding.to_devices(self.mesh, batch)
      out = self.eval_step(variables, batch, self.frozen)
      totals = out if totals is None else jax.tree.map(jnp.add, totals, out)
    sums, count = jax.device_get(totals)
    return {name: float(value / count) for name, value in sums.items()}


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
    wrong = [f'{k} is {v}' for k, v in values.items() if not np.isfinite(v)]
    if wrong:
      raise RunError(
        f'step {step}: {", ".join(wrong)}; the checkpoints before it are good. '
        'Try a lower optimizer.learning_rate or an optimizer.clip_norm'
      )
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
  trainer = Trainer(config)
  data_fingerprint = f'{source.fingerprint}, {eval_source.fingerprint}'
  with run_directory.RunDirectory(
    workdir, config, data_fingerprint, change_config
  ) as run:
    restored = run.restore(trainer.state_shapes)
    if restored is None:
      state, notes = trainer.create_state(), {'pending': []}
    else:
      state, notes = restored
    first = int(state.step)
    train_step = trainer.compile()
    _report(trainer, train_step, state, first)
    if first >= config.num_steps:
      _log.info('%s is trained for %d steps already', workdir, first)
      return
    loop = functools.partial(
      _loop,
      trainer,
      train_step,
      run,
      state,
      notes,
      (source, eval_source),
      profile,
    )
    if jax.process_index() == 0:
      with run_log.RunLog(
        run.path, first, config.num_steps, config.batch_size
      ) as log:
        loop(log=log)
    else:
      loop(log=None)


def _loop(trainer, train_step, run, state, notes, splits, profile, log):
  config = trainer.config
  hosts = {
    'process_index': jax.process_index(),
    'process_count': jax.process_count(),
  }
  sizes = tuple(config.data.sizes)
  first = int(state.step)
  batches = input_pipeline.train_batches(
    splits[0],
    sizes=sizes,
    batch_size=config.batch_size,
    seed=config.seed,
    start_step=first,
    flip=config.data.flip,
    min_crop=config.data.min_crop,
    **hosts,
  )
  limit = None if config.eval_pictures < 0 else config.eval_pictures

  def eval_batches():
    return input_pipeline.eval_batches(
      splits[1],
      sizes=sizes,
      batch_size=config.eval_batch_size,
      limit=limit,
      **hosts,
    )

  metrics = Metrics(log, trainer.schedule, config.log_every, notes['pending'])
  tracing = first + 2 if profile else None
  for step in range(first + 1, config.num_steps + 1):
    if step == tracing:
      metrics.drain()
      jax.profiler.start_trace(run.path / 'profile')
    batch = sharding.to_devices(trainer.mesh, next(batches))
    with jax.transfer_guard('disallow'):
      state, measured = train_step(state, batch, trainer.rng, trainer.frozen)
    metrics.add(step, measured)
    if log:
      log.advance()
    if tracing and step == min(tracing + 2, config.num_steps):
      metrics.drain()
      jax.profiler.stop_trace()
      _log.info(
        'trace of steps %d to %d: %s', tracing, step, run.path / 'profile'
      )
      tracing = None

    last = step == config.num_steps
    preempted = multihost_utils.reached_preemption_sync_point(step)
    evaluates = last or step % config.eval_every == 0
    samples = last or step % config.sample_every == 0
    saves = evaluates or step % config.save_every == 0
    if not (saves or samples or preempted):
      continue
    metrics.drain()  # Nothing that is not finite gets into a checkpoint.
    start, result = time.monotonic(), None
    if evaluates and not preempted:
      result = trainer.evaluate(state.ema_variables, eval_batches())
      if log:
        log.evaluation(step, result)
    if samples and not preempted:
      sheet = preview.sheet(trainer, state.ema_variables, splits[1])
      if log:
        log.samples(step, sheet)
    if saves or preempted:
      run.save(
        step,
        state,
        {'pending': metrics.pending},
        loss=result['loss'] if result else None,
      )
    if log:
      log.pause(time.monotonic() - start)
    if preempted:
      run.finish()
      raise Preempted(f'stopped after step {step}; it is saved')


def _report(trainer, train_step, state, first):
  """Logs what will be trained: parameters by part, memory, devices."""
  sizes = collections.Counter()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    sizes[path[0].key] += leaf.size
  width = max(map(len, sizes))
  for name, size in sizes.items():
    _log.info('  %-*s %12s parameters', width, name, f'{size:,}')
  memory = train_step.memory_analysis()
  kept = sum(
    x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)
  )
  _log.info(
    '%s: %s parameters; %d devices, %d pictures a step; a device holds %.2f GB '
    'of state and needs %.2f GB more during a step',
    trainer.config.name,
    f'{sum(sizes.values()):,}',
    trainer.mesh.size,
    trainer.config.batch_size,
    kept / 1e9,
    memory.temp_size_in_bytes / 1e9,
  )
  if first:
    _log.info('going on after step %d', first)
