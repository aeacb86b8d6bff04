"""The state of a training run, and what turns gradients into its next step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
import optax.contrib


class TrainState(flax.struct.PyTreeNode):
  """All that a step changes.

  step: int32 [], steps done. params, ema_params: trees of float32 arrays, the
  latter a moving average of the former. opt_state: the optimizer's. collections:
  what else the model keeps ('batch_stats' of the CNN), often empty.
  """

  step: jax.Array
  params: Any
  ema_params: Any
  opt_state: Any
  collections: dict

  @property
  def variables(self):
    return {'params': self.params, **self.collections}

  @property
  def ema_variables(self):
    return {'params': self.ema_params, **self.collections}


def create(variables, optimizer):
  """Returns the state before the first step, of a model's variables."""
  collections = dict(variables)
  params = collections.pop('params')
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema_params=jax.tree.map(jnp.copy, params),  # Both are donated.
    opt_state=optimizer.init(params),
    collections=collections,
  )


def update(state, gradients, collections, optimizer, ema_decay):
  """Returns the state after a step; the average is taken after the update."""
  updates, opt_state = optimizer.update(
    gradients, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)
  ema_params = jax.tree.map(
    lambda average, new: average + (1 - ema_decay) * (new - average),
    state.ema_params,
    params,
  )
  return TrainState(
    step=state.step + 1,
    params=params,
    ema_params=ema_params,
    opt_state=opt_state,
    collections={**state.collections, **collections},
  )


def make_optimizer(
  name,
  learning_rate,
  num_steps,
  warmup_steps=0,
  decay='constant',
  weight_decay=0.0,
  clip_norm=None,
):
  """Returns (optax optimizer, schedule: step -> learning rate).

  Args:
    name: 'rmsprop' as Keras has it, and so the reference: rho 0.9, no momentum,
      1e-7 added after the square root. 'adam', 'adamw': optax's defaults.
      'muon': see `_muon`.
    learning_rate: the highest.
    num_steps: where a cosine ends.
    warmup_steps: of linear growth from 0.
    decay: 'constant', or 'cosine' down to 0 at num_steps.
    weight_decay: of 'adamw' and 'muon', on arrays of two and more axes.
    clip_norm: largest global norm of the gradients, None for any.

  Raises ValueError for an unknown name or decay.
  """
  if decay == 'cosine':
    schedule = optax.warmup_cosine_decay_schedule(
      0.0, learning_rate, warmup_steps, max(num_steps, warmup_steps + 1)
    )
  elif decay == 'constant' and warmup_steps:
    schedule = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  elif decay == 'constant':
    schedule = optax.constant_schedule(learning_rate)
  else:
    raise ValueError(f"decay must be 'constant' or 'cosine', not {decay!r}")
  if weight_decay and name not in ('adamw', 'muon'):
    raise ValueError(f'weight_decay is for adamw and muon, not {name}')
  if name == 'rmsprop':
    optimizer = optax.rmsprop(schedule, decay=0.9, eps=1e-7, eps_in_sqrt=False)
  elif name == 'adam':
    optimizer = optax.adam(schedule)
  elif name == 'adamw':
    optimizer = _adamw(schedule, weight_decay)
  elif name == 'muon':
    optimizer = _muon(schedule, weight_decay)
  else:
    raise ValueError(
      f"optimizer must be 'rmsprop', 'adam', 'adamw' or 'muon', not {name!r}"
    )
  if clip_norm is not None:
    optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
  return optimizer, schedule


def _adamw(schedule, weight_decay):
  return optax.adamw(
    schedule,
    weight_decay=weight_decay,
    mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
  )


def _muon(schedule, weight_decay):
  """Returns Muon for the matrices between features, AdamW for the rest.

  Jordan 2024, https://kellerjordan.github.io/posts/muon: steps of matrices are
  made orthogonal, so that rare directions learn as fast as common ones. Those
  steps are 10 times the schedule's rate, which is that of AdamW.
  """

  def label(path, x):
    return 'adamw' if _matrix(path, x) is None else 'muon'

  def matrices(params):
    return jax.tree.map_with_path(_matrix, params)

  muon = optax.chain(
    optax.contrib.scale_by_muon(weight_dimension_numbers=matrices),
    optax.scale(10.0),
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(schedule),
  )
  return optax.partition(
    {'muon': muon, 'adamw': _adamw(schedule, weight_decay)},
    lambda params: jax.tree.map_with_path(label, params),
  )


def _matrix(path, x):
  """Returns which axes are a matrix's inputs and outputs, None if it is none.

  Embeddings, positions and the layers that give logits are tables of symbols:
  their rows are not to be made orthogonal.
  """
  layer, name = ([None, *(key.key for key in path)])[-2:]
  if name == 'output' and x.ndim == 3:  # Heads and their features, to features.
    return optax.contrib.MuonDimensionNumbers((0, 1), 2)
  if x.ndim == 3 and name.removeprefix('condition_') in ('q', 'k', 'v'):
    return optax.contrib.MuonDimensionNumbers(0, (1, 2))
  table = layer and layer.endswith(('embedding', 'logits'))
  if name == 'kernel' and x.ndim == 2 and not table:
    return optax.contrib.MuonDimensionNumbers(0, 1)
  return None
