"""What a training run keeps on disk: its config, its checkpoints.

    WORKDIR/config.json         the config of the newest checkpoint
    WORKDIR/losses.json         of evaluations, by step, that can be compared
    WORKDIR/checkpoints/STEP/   orbax: state, and meta (JSON)
    WORKDIR/metrics.jsonl       see `run_log`
    WORKDIR/samples/STEP.png

A checkpoint appears whole or not at all (orbax writes beside and renames). Its
meta holds a fingerprint of the state, since orbax restores flipped bits in
silence; a damaged checkpoint is passed over, loudly, for the next older one.
"""

import contextlib
import copy
import fcntl
import json
import logging
import pathlib
import time

import flax.serialization
import flax.traverse_util
import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from coltran_jax import checkpoint, configuration

_log = logging.getLogger('coltran')
# Of a config: losses of evaluations that differ in them cannot be compared; but what
# such a section says of training or memory alone changes none.
_MEASURED_BY = ('name', 'model', 'loss', 'data', 'eval_pictures')
_TRAINING_ONLY = (
  *('train_split', 'flip', 'min_crop', 'input_noise'),
  *('dropout', 'encoder_dropout', 'remat', 'chunk', 'encoder_chunk'),
)


class RunError(RuntimeError):
  """A run that cannot start or go on; says why, and what to do."""


def fingerprints(tree):
  """Returns {part: fingerprint} of the top level of a state as a dict.

  The same on any number of devices and hosts. Waits for the arrays.
  """
  flat = flax.traverse_util.flatten_dict(tree)
  digests = _digests(flat)
  parts = {}
  for path, leaf in flat.items():
    parts.setdefault(path[0], {})[path] = (leaf, digests[path])
  return {part: checkpoint.combine(leaves) for part, leaves in parts.items()}


@jax.jit
def _digests(leaves):
  return {path: checkpoint.digest(x, jax.numpy) for path, x in leaves.items()}


class RunDirectory:
  """The checkpoints of one run; a context manager that finishes all writing.

  Args:
    workdir: created if need be.
    config: the run's config.
    data_fingerprint: of the data set, kept in every checkpoint.
    change_config: go on although the config differs from the run's own.

  Raises RunError if the directory is another run's, is in use by a process, or
  cannot be written.
  """

  def __init__(self, workdir, config, data_fingerprint, change_config=False):
    self.path = pathlib.Path(workdir).absolute()
    self._config = configuration.to_dict(config)
    self._data_fingerprint = data_fingerprint
    self._change_config = change_config
    self._finished = False
    with contextlib.ExitStack() as undo:
      try:
        self.path.mkdir(parents=True, exist_ok=True)
        # Before orbax, which removes what it takes for left by a dead process.
        self._lock = _lock(self.path) if jax.process_index() == 0 else None
        if self._lock:
          undo.callback(self._lock.close)
        self._best = _KeepBest(_read_losses(self.path))
        self._manager = _open(self.path, self._best, config.keep)
        if self._manager.all_steps() and not change_config:
          self._check_config()
      except (OSError, ValueError) as error:
        raise RunError(f'{self.path}: {error}') from error
      undo.pop_all()

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if kind is None:
      self.finish()
    # Where others may be gone, a save that is under way will not end.
    if self._finished or jax.process_count() == 1:
      try:
        self._manager.close()
      except Exception as other:  # Of a save that was under way.
        _log.error('%s: %s', self.path, checkpoint.first_line(other))
    if self._lock:
      self._lock.close()

  def _check_config(self):
    file = self.path / 'config.json'
    try:
      old = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
      raise RunError(f'{file} cannot be read: {error}') from error
    lines = configuration.differences(old, self._config)
    if lines:
      raise RunError(
        f'{self.path} is a run with another config ({"; ".join(lines)}); '
        'choose another --workdir, or go on with --change-config'
      )

  def record_loss(self, step, loss):
    """Notes the loss of an evaluation; the best checkpoint is kept."""
    self._best.losses[step] = loss
    self._write_losses()

  def _write_losses(self):
    _write_json(self.path / 'losses.json', self._best.losses)

  def _forget_losses(self, meta):
    """Forgets losses unless those to come are measured as in a checkpoint."""
    before, now = map(_measured, (meta['config'], self._config))
    changed = [key for key in _MEASURED_BY if before[key] != now[key]]
    # Of two, the evaluation's is the last.
    marks = (meta['data_fingerprint'], self._data_fingerprint)
    if len({mark.rpartition(', ')[2] for mark in marks}) > 1:
      changed.append('the data set')
    if changed and self._best.losses:
      _log.warning(
        '%s: losses of earlier evaluations do not count any more, another '
        'checkpoint will be the best: %s changed',
        self.path,
        ', '.join(changed),
      )
      self._best.losses.clear()

  def save(self, step, state, notes):
    """Starts to write a checkpoint; the state may be donated at once.

    notes: JSON-ready dict that `restore` returns.

    Raises RunError if this or the last one cannot be written.
    """
    if step in self._manager.all_steps():
      return
    _write_json(self.path / 'config.json', self._config)
    self._write_losses()  # Without those that were measured otherwise.
    tree = flax.serialization.to_state_dict(state)
    meta = {
      'step': step,
      'fingerprints': fingerprints(tree),
      'config': self._config,
      'data_fingerprint': self._data_fingerprint,
      # As they are now: orbax writes later, when the run has changed its own.
      'notes': copy.deepcopy(notes),
    }
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(tree),
          meta=ocp.args.JsonSave(meta),
        ),
        force=True,
      )
    except Exception as error:  # orbax and tensorstore raise many kinds.
      raise self._save_error(error) from error

  def finish(self):
    """Waits until all is written; RunError if something could not be."""
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:
      raise self._save_error(error) from error
    self._finished = True

  def _save_error(self, error):
    steps = sorted(self._manager.all_steps(read=True))
    intact = f'intact: {", ".join(map(str, steps))}' if steps else 'none before'
    return RunError(
      f'cannot write a checkpoint to {self.path}: {checkpoint.first_line(error)} '
      f'(checkpoints {intact}); make room and start again to go on'
    )

  def restore(self, shapes):
    """Returns (state, notes) of the newest sound checkpoint, or None.

    shapes: the state as ShapeDtypeStructs with shardings: of any mesh.

    Damaged ones are moved to WORKDIR/damaged-STEP-*. Losses of evaluations are
    forgotten if the config or the data set now measures something else.

    Raises RunError if there are checkpoints but none is sound, or if one belongs to
    another data set or trained another part of the model.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    damaged, reason = [], None
    for step in steps:
      try:
        state, meta = self._restore_step(step, shapes)
      except Exception as error:  # orbax and tensorstore raise many kinds.
        if isinstance(error, RunError):
          raise
        reason = checkpoint.first_line(error)
        damaged.append(step)
        _log.error(
          'checkpoint %d of %s is damaged, taking the one before it: %s',
          step,
          self.path,
          reason,
        )
        continue
      self._set_aside(damaged)
      self._forget_losses(meta)
      return state, meta['notes']
    if steps:
      raise RunError(
        f'none of the checkpoints {sorted(steps)} in {self.path} can be read, '
        f'or they are of another model or optimizer: {reason}'
      )
    return None

  def _set_aside(self, steps):
    """Moves checkpoints out of the way of those that come at their steps."""
    for step in steps if jax.process_index() == 0 else ():
      folder = self.path / 'checkpoints' / str(step)
      name = f'damaged-{step}-{time.time_ns()}'
      folder.rename(self.path / name)
      _log.error('the damaged checkpoint is now %s', self.path / name)
    if steps:
      multihost_utils.sync_global_devices('damaged checkpoints set aside')
      self._manager.reload()

  def _restore_step(self, step, shapes):
    meta = _read_meta(self._manager, step)
    same_data = meta['data_fingerprint'] == self._data_fingerprint
    if not (same_data or self._change_config):
      raise RunError(
        f'{self.path} was trained on another data set '
        f'({meta["data_fingerprint"]}, now {self._data_fingerprint}); '
        'go on with --change-config'
      )
    parts = [
      one['loss'].get('part', 'all') for one in (meta['config'], self._config)
    ]
    if parts[0] != parts[1]:
      # The optimizer's momentum needs no gradient to move what is not trained now.
      raise RunError(
        f'{self.path}: loss.part cannot change from {parts[0]!r} to {parts[1]!r} '
        'within a run; `coltran export` it, and start another with --set init_from='
      )
    tree = flax.serialization.to_state_dict(shapes)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(tree)),
    )['state']
    _check_fingerprints(restored, meta)
    return flax.serialization.from_state_dict(shapes, restored), meta


def _check_fingerprints(tree, meta):
  """Raises ValueError unless all parts in tree are as they were saved."""
  for part, actual in fingerprints(tree).items():
    if actual != meta['fingerprints'][part]:
      raise ValueError(f'{part} changed on disk')


def _lock(folder):
  """Returns an open file that no other process can get until it is closed.

  A process that dies closes it. None where the file system has no locks.
  """
  file = (folder / 'lock').open('w')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.close()
    raise RunError(f'{folder}: another process is training there') from None
  except OSError:
    file.close()
    return None
  return file


class _KeepBest(policies.PreservationPolicy):
  """Keeps the checkpoint with the lowest loss, also those of earlier starts.

  losses: {step: loss} of the checkpoints that were evaluated.
  """

  def __init__(self, losses):
    self.losses = losses

  def should_preserve(self, checkpoints, *, context):
    del context
    steps = [info.step for info in checkpoints if info.step in self.losses]
    best = min(steps, key=self.losses.get, default=None)
    return [info.step == best for info in checkpoints]


def _open(path, keep_best=None, keep=1):
  """Returns orbax's manager; without keep_best only to read."""
  logging.getLogger('absl').setLevel(logging.ERROR)  # orbax tells a lot.
  read_only = keep_best is None
  preserve = None
  if not read_only:
    preserve = policies.AnyPreservationPolicy(
      [policies.LatestN(keep), keep_best]
    )
  return ocp.CheckpointManager(
    path / 'checkpoints',
    options=ocp.CheckpointManagerOptions(
      create=not read_only,
      read_only=read_only,
      preservation_policy=preserve,
      cleanup_tmp_directories=not read_only,
    ),
    item_names=('state', 'meta'),
    item_handlers={
      'state': ocp.StandardCheckpointHandler(),
      'meta': ocp.JsonCheckpointHandler(),
    },
  )


def load_weights(workdir, step=None):
  """Returns (config dict, step, ema_params, collections) of a run, as numpy.

  step: of a checkpoint; None: that with the lowest evaluation loss, the newest
  where none was evaluated.

  Raises RunError if there is no run or no such checkpoint, or it is damaged.
  """
  path = pathlib.Path(workdir).absolute()
  if not (path / 'checkpoints').is_dir():
    raise RunError(f'{path} is no training run: it has no checkpoints')
  with _open(path) as manager:
    steps = sorted(manager.all_steps())
    if not steps:
      raise RunError(f'{path} has no finished checkpoint')
    if step is None:
      losses = _read_losses(path)
      evaluated = [step for step in steps if step in losses]
      step = min(evaluated, key=losses.get, default=steps[-1])
    if step not in steps:
      raise RunError(f'{path} has no checkpoint {step}; there are {steps}')
    try:
      meta = _read_meta(manager, step)
      folder = path / 'checkpoints' / str(step) / 'state'
      tree = checkpoint.read_arrays(folder, ('ema_params', 'collections'))
      _check_fingerprints(tree, meta)
    except Exception as error:  # orbax and tensorstore raise many kinds.
      raise RunError(
        f'checkpoint {step} of {path} cannot be read: {checkpoint.first_line(error)}'
      ) from error
  return meta['config'], step, tree['ema_params'], tree.get('collections', {})


def _measured(config):
  """Returns what decides how an evaluation measures: {key: value} of a config."""
  sections = {key: config.get(key) for key in _MEASURED_BY}
  return {
    key: {k: v for k, v in section.items() if k not in _TRAINING_ONLY}
    if isinstance(section, dict)
    else section
    for key, section in sections.items()
  }


def _read_losses(path):
  """Returns {step: loss} of the evaluations of the run in a directory."""
  file = path / 'losses.json'
  if not file.exists():
    return {}
  try:
    losses = json.loads(file.read_text(encoding='utf-8'))
    return {int(step): float(loss) for step, loss in losses.items()}
  except (OSError, ValueError, TypeError, AttributeError) as error:
    _log.warning('%s is left out: %s', file, error)
    return {}


def _write_json(file, value):
  """Writes a file whole or not at all, on the first process."""
  if jax.process_index() == 0:
    beside = file.with_suffix('.incomplete')
    beside.write_text(json.dumps(value, indent=2) + '\n', 'utf-8')
    beside.rename(file)


def _read_meta(manager, step):
  args = ocp.args.Composite(meta=ocp.args.JsonRestore())
  return manager.restore(step, args=args)['meta']
