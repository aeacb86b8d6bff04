"""The compiled steps of training, and the `Trainer` that holds them together."""

import functools
import inspect
import pathlib

import jax
import jax.numpy as jnp
import optax

from coltran_jax import (
  checkpoint,
  configuration,
  losses,
  models,
  sharding,
  tpu_chips,
  train_state,
)


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


_COUNTS = (
  *('batch_size', 'accumulate', 'num_steps', 'eval_batch_size', 'keep'),
  *('sample_pictures', 'log_every', 'eval_every', 'sample_every', 'save_every'),
)


class Trainer:
  """A run: model, step, state and where they live on the devices.

  Args:
    config: a locked config, see `configuration.training`.
    mesh: None makes that of the config.

  Raises ConfigError for what cannot be trained.
  """

  def __init__(self, config, mesh=None):
    self.config = config
    try:
      self.mesh = mesh or sharding.make_mesh(**config.mesh)
      self.share = sharding.share(self.mesh)
      self.model = models.build(config.name, config.model.to_dict())
      self.split_model = self.model
      if self.mesh.shape['seq'] > 1:
        self.split_model = sharding.SplitRows(self.model, self.mesh)
      self.optimizer, self.schedule = train_state.make_optimizer(
        num_steps=config.num_steps, **config.optimizer
      )
      options = config.loss.to_dict()
      self.loss = functools.partial(losses.LOSSES[config.name], **options)
      inspect.signature(self.loss).bind_partial()  # TypeError if unknown.
      self._frozen = losses.frozen(self.loss)
      self._check()
      shapes = jax.eval_shape(self._create)
    except (TypeError, ValueError) as error:
      raise configuration.ConfigError(str(error)) from error
    self.state_sharding = sharding.of_state(self.mesh, shapes)
    self.state_shapes = sharding.shapes(shapes, self.state_sharding)
    whole, split = sharding.replicated(self.mesh), sharding.of_batch(self.mesh)
    tuning = tpu_chips.compiler_options(self.mesh)
    self.train_step = jax.jit(
      make_train_step(
        self.split_model,
        self.loss,
        self.optimizer,
        config.ema_decay,
        config.accumulate,
      ),
      in_shardings=(self.state_sharding, split, whole, whole),
      out_shardings=(self.state_sharding, whole),
      donate_argnums=0,
      compiler_options=tuning,
    )
    self.eval_step = jax.jit(
      make_eval_step(self.split_model, self.loss),
      out_shardings=whole,
      compiler_options=tuning,
    )

  @functools.cached_property
  def rng(self):
    """The key of the run, on all devices."""
    return sharding.replicate(self.mesh, jax.random.key(self.config.seed))

  @functools.cached_property
  def frozen(self):
    """What the loss needs and nobody trains, on all devices."""
    return sharding.replicate(self.mesh, self._frozen)

  def _check(self):
    config, parts = self.config, sharding.parts(self.mesh)
    among = 'devices' if parts == self.mesh.size else 'groups of devices'
    for key in _COUNTS:
      if config[key] < 1:
        raise ValueError(f'{key} must be 1 or more, not {config[key]}')
    if config.eval_pictures == 0 or config.eval_pictures < -1:
      raise ValueError('eval_pictures must be 1 or more, or -1 for all')
    if config.seed < 0 or not 0 < config.data.min_crop <= 1:
      raise ValueError('seed must be 0 or more, data.min_crop in 0..1')
    if not config.data.sizes or min(config.data.sizes) < 1:
      raise ValueError('data.sizes must be sides in pixels')
    for key, accumulate in (
      ('batch_size', config.accumulate),
      ('eval_batch_size', 1),
    ):
      if config[key] % (accumulate * parts):
        raise ValueError(
          f'{key} {config[key]} cannot be split over {parts} {among}'
          + (f' in {accumulate} parts' if accumulate > 1 else '')
        )
    if config.name == 'colorizer':
      decay = config.optimizer.weight_decay
      losses.check_colorizer(self.model, decay, **config.loss)
    resolution = models.picture_resolution(self.model)
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
    config = checkpoint.read_config(folder / 'config.json')
    if config['name'] != self.config.name:
      raise checkpoint.CheckpointError(
        f'{folder} holds a {config["name"]}, the config trains a '
        f'{self.config.name}'
      )
    expected = models.parameter_shapes(self.model)
    _, tree = checkpoint.load(folder, expected)
    return create(models.split(tree))

  def trace_train_step(self):
    """Returns the traced train step, for batches without 'channel'.

    Its devices need not be there. Raises ConfigError if model, loss and data
    do not fit together.
    """
    whole = sharding.replicated(self.mesh)
    return self._trace(
      self.train_step,
      self.state_shapes,
      {'image': self._image(self.config.batch_size)},
      sharding.shapes(jax.eval_shape(jax.random.key, 0), whole),
      sharding.shapes(self._frozen, whole),
    )

  def trace_eval_step(self):
    """Returns the traced evaluation step; the rest as in trace_train_step."""
    image = self._image(self.config.eval_batch_size)
    mask = jax.ShapeDtypeStruct(
      image.shape[:1], jnp.bool, sharding=image.sharding
    )
    return self._trace(
      self.eval_step,
      self.state_shapes.variables,
      {'image': image, '_mask': mask},
      sharding.shapes(self._frozen, sharding.replicated(self.mesh)),
    )

  def _image(self, batch_size):
    """Returns the shape of a batch of pictures."""
    size = self.config.data.sizes[-1]
    split = sharding.of_batch(self.mesh)
    shape = (batch_size, size, size, 3)
    return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split)

  def _trace(self, step, *shapes):
    try:
      return step.trace(*shapes)
    except (TypeError, ValueError, ZeroDivisionError) as error:
      raise configuration.ConfigError(
        f'the config cannot be trained: {checkpoint.first_line(error)}'
      ) from error

  def compile(self):
    """Returns the compiled train step; see trace_train_step."""
    # The CPU's default order of operations takes a fifth more memory, to run
    # several at once, and gains nothing where each takes all cores.
    cpu = self.mesh.devices.flat[0].platform == 'cpu'
    option = 'xla_cpu_enable_concurrency_optimized_scheduler'
    lowered = self.trace_train_step().lower()
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
