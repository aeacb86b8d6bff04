"""Joins the processes of a run, and tells all at one step that it shall stop."""

import collections
import functools
import logging
import os
import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import sharding

_DELAY = 2  # Votes that are counted behind the last: none waits for devices.
_stop = threading.Event()
_votes = collections.deque()


def initialize(coordinator=None, num_processes=None, process_id=None):
  """Joins this process to its run; call it before any computation.

  Without arguments the processes are found by what runs them (Cloud TPU, GKE,
  Slurm, MPI); where nothing does, this process is alone.

  When one dies, the others end with jax's message (SIGABRT) half a minute
  later, $COLTRAN_HEARTBEAT_SECONDS if that is set: until then they wait in a
  collective that does not return.

  Args:
    coordinator: 'HOST:PORT' of process 0.
    num_processes: how many there are.
    process_id: which one this is, from 0.

  Raises RuntimeError, TypeError or ValueError if the others cannot be joined.
  """
  seconds = int(os.environ.get('COLTRAN_HEARTBEAT_SECONDS', 30))
  join = functools.partial(
    jax.distributed.initialize, heartbeat_timeout_seconds=seconds
  )
  if coordinator is not None:
    join(coordinator, num_processes, process_id)
    return
  try:
    join()
  except ValueError as error:
    if 'coordinator_address' not in str(error):
      raise  # Something says that there are others, but not all of it.
    if jax.process_count() > 1:  # Its metadata server did not answer.
      raise RuntimeError(
        'this host has others, but cannot find them'
      ) from error


def catch_signals():
  """Makes SIGTERM and Ctrl-C ask for a stop; call it after `initialize`.

  It takes the place of jax's own handler, whose notice was seen to be missed.
  """
  signal.signal(signal.SIGTERM, lambda *_: _stop.set())
  signal.signal(signal.SIGINT, _terminate_once)


def _terminate_once(number, frame):
  """Makes Ctrl-C a SIGTERM, which saves; a second one stops at once."""
  del number, frame
  signal.signal(signal.SIGINT, signal.default_int_handler)
  print('saving; press Ctrl-C again to stop at once', file=sys.stderr)
  signal.raise_signal(signal.SIGTERM)


def stop_requested():
  """Returns True, on all processes at once, if one was asked to stop.

  All processes must call it as often, after every step: each call is a vote,
  summed over the devices in the background, and gives the result of the vote
  two calls ago.
  """
  if jax.process_count() == 1:
    return _stop.is_set()
  mesh, count = _ballot()
  mine = np.full(jax.local_device_count(), _stop.is_set(), np.int32)
  _votes.append(count(**sharding.to_devices(mesh, {'votes': mine})))
  return len(_votes) > _DELAY and int(_votes.popleft()) > 0


@functools.cache
def _ballot():
  """Returns (mesh of all devices, count(votes) -> their sum on each of them)."""
  mesh = sharding.make_mesh()
  out = sharding.replicated(mesh)
  return mesh, jax.jit(lambda votes: jnp.sum(votes), out_shardings=out)


def leave(code):
  """Ends this process at once with an exit code, unless it is alone.

  A usual end would wait minutes for the others, who wait for this one.
  """
  if jax.process_count() == 1:
    return
  logging.shutdown()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
