"""What a person sees of a run: JSON lines, TensorBoard, a progress bar.

`metrics.jsonl` is the truth: one object a line, {"step", "kind": "train" or
"eval", ...}. A resumed run first drops the lines of steps that it does again.
"""

import json
import logging
import os
import pathlib
import sys
import time

import numpy as np
from PIL import Image
import tensorboardX
import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_log = logging.getLogger('coltran')


class RunLog:
  """Writes what a run measures; a context manager. Only one process has one.

  Args:
    workdir: of the run, a folder that exists.
    step: that the run starts after; later lines are dropped.
    due: the evaluation after that step is done again.
    num_steps: that it ends with.
    batch_size: pictures a step, for the rates.
  """

  def __init__(self, workdir, step, due, num_steps, batch_size):
    self._path = pathlib.Path(workdir)
    self._batch_size = batch_size
    self._file = _open_lines(self._path / 'metrics.jsonl', step, due)
    self._board = tensorboardX.SummaryWriter(
      str(self._path / 'tensorboard'), purge_step=step + 1
    )
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=step,
      unit='step',
      dynamic_ncols=True,
      disable=not sys.stderr.isatty(),
    )
    self._redirect = logging_redirect_tqdm([logging.getLogger()])
    self._last = (step, time.monotonic())
    self._num_steps = num_steps

  def __enter__(self):
    self._redirect.__enter__()
    return self

  def __exit__(self, *error):
    self._bar.close()
    self._redirect.__exit__(*error)
    self._file.close()
    self._board.close()

  def advance(self):
    """Counts a step on the progress bar."""
    self._bar.update()

  def train(self, step, metrics):
    """Writes the metrics of the steps up to `step`, with the rates so far."""
    last, then = self._last
    self._last = (step, time.monotonic())
    seconds = self._last[1] - then
    rate = (step - last) / seconds if seconds > 0 else float('inf')
    rates = {
      'steps_per_second': round(rate, 4),
      'pictures_per_second': round(rate * self._batch_size, 3),
    }
    self._write(step, 'train', metrics | rates)
    left = (self._num_steps - step) / rate if rate else float('inf')
    _log.info(
      'step %d of %d: %s, %.3g steps/s, %.3g photos/s, %s left',
      step,
      self._num_steps,
      _listed(metrics),
      rate,
      rate * self._batch_size,
      duration(left),
    )
    self._bar.set_postfix(loss=f'{metrics["loss"]:.4f}', refresh=False)

  def evaluation(self, step, metrics):
    """Writes the metrics of an evaluation after `step`."""
    self._write(step, 'eval', metrics)
    _log.info('step %d: evaluation: %s', step, _listed(metrics))

  def keep(self):
    """Makes the lines so far outlast this host; call it before a checkpoint.

    A run that goes on from there does not write them again.
    """
    os.fsync(self._file.fileno())
    self._file.close()  # gcsfuse 3 puts a new file into the bucket only then.
    self._file = (self._path / 'metrics.jsonl').open('a', encoding='utf-8')

  def pause(self, seconds):
    """Leaves seconds that no step took out of the rates."""
    self._last = (self._last[0], self._last[1] + seconds)

  def samples(self, step, sheet):
    """Keeps a sheet uint8 [H, W, 3] of sampled pictures after `step`."""
    folder = self._path / 'samples'
    folder.mkdir(exist_ok=True)
    beside = folder / f'.{step:08d}.incomplete'
    Image.fromarray(sheet).save(beside, format='PNG')
    beside.rename(folder / f'{step:08d}.png')
    self._board.add_image('samples', sheet, step, dataformats='HWC')

  def _write(self, step, kind, metrics):
    line = {'step': step, 'kind': kind} | metrics
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()
    for name, value in metrics.items():
      self._board.add_scalar(f'{kind}/{name}', value, step)


def _open_lines(path, step, due):
  """Returns the file opened to append, without lines that come once more."""
  kept = []
  if path.exists():
    for line in path.read_text(encoding='utf-8').splitlines():
      try:
        parsed = json.loads(line)
        again = due and parsed['kind'] == 'eval' and parsed['step'] == step
        if parsed['step'] <= step and not again:
          kept.append(line + '\n')
      except (ValueError, KeyError, TypeError):
        pass  # Cut off by a kill, so of a step that is done again.
    beside = path.with_suffix('.incomplete')
    beside.write_text(''.join(kept), encoding='utf-8')
    beside.rename(path)
  return path.open('a', encoding='utf-8')


def _listed(metrics):
  return ', '.join(f'{name} {value:.5g}' for name, value in metrics.items())


def duration(seconds):
  """Returns seconds as '3 d 4 h', '5 h 20 min', '2 min' or '12 s'."""
  if not np.isfinite(seconds):
    return 'unknown time'
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f'{days} d {hours} h'
  if hours:
    return f'{hours} h {minutes} min'
  return f'{minutes} min' if minutes else f'{seconds} s'
