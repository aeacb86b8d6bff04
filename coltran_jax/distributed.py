"""Joins the processes of a run, also when there is only one.

Even alone: jax then turns SIGTERM into a preemption notice that all processes
see at the same step (`jax.experimental.multihost_utils`).
"""

import socket
import threading

import jax


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
    with socket.socket() as probe:
      probe.bind(('localhost', 0))
      port = probe.getsockname()[1]
    jax.distributed.initialize(f'localhost:{port}', 1, 0)


_stop = threading.Event()
stop_requested = _stop.is_set


def request_stop(number, frame):
  """A signal handler for a process that is alone: jax's notice can be late."""
  del number, frame
  _stop.set()
