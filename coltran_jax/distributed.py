"""Joins the processes of a run, and tells all at one step that it shall stop."""

import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

_stop = threading.Event()


def initialize(coordinator=None, num_processes=None, process_id=None):
  """Joins this process to its run; call it before any computation.

  Without arguments the processes are found by what runs them (Cloud TPU, GKE,
  Slurm, MPI); where nothing does, this process is alone.

  Args:
    coordinator: 'HOST:PORT' of process 0.
    num_processes: how many there are.
    process_id: which one this is, from 0.
  """
  if coordinator is not None:
    jax.distributed.initialize(coordinator, num_processes, process_id)
    return
  try:
    jax.distributed.initialize()
  except ValueError as error:
    if 'coordinator_address' not in str(error):
      raise  # Something says that there are others, but not all of it.


def catch_signals():
  """Makes SIGTERM and Ctrl-C ask for a stop; call it after `initialize`."""
  if jax.process_count() == 1:  # Else jax's own handler must stay.
    signal.signal(signal.SIGTERM, lambda *_: _stop.set())
  signal.signal(signal.SIGINT, _terminate_once)


def _terminate_once(number, frame):
  """Makes Ctrl-C a SIGTERM, which saves; a second one stops at once."""
  del number, frame
  signal.signal(signal.SIGINT, signal.default_int_handler)
  print('saving; press Ctrl-C again to stop at once', file=sys.stderr)
  signal.raise_signal(signal.SIGTERM)


def stop_requested(step):
  """Returns True at the step after which the run shall stop, on all processes.

  Call it after every step. Several processes agree on a step through jax. That
  is not used for one: its notice was seen to be missed.
  """
  if jax.process_count() == 1:
    return _stop.is_set()
  return multihost_utils.reached_preemption_sync_point(step)


def stop_now():
  """Returns True if this process is alone and shall stop: between steps, too."""
  return jax.process_count() == 1 and _stop.is_set()
