"""Runs of the command that are killed, stopped, starved, or of two processes."""

import random
import resource
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
import training

from coltran_jax import run_directory

pytestmark = pytest.mark.slow
SLOWLY = ('--set', 'save_every=1', '--set', 'keep=2', '--set', 'num_steps=40')


ENDLESS = ('--set', 'num_steps=100000')


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return training.make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, data_dir):
  """The metrics of a run that nothing disturbs."""
  workdir = tmp_path_factory.mktemp('run')
  done = training.run(workdir, data_dir, *SLOWLY)
  assert done.returncode == 0, done.stderr
  return training.lines(workdir)


def start(workdir, data_dir, *options, devices=1, **which):
  return subprocess.Popen(
    training.command(workdir, data_dir, *options, **which),
    env=training.environment(devices),
    stderr=subprocess.PIPE,
    text=True,
  )


def wait_for(process, seen, seconds=120):
  """Waits until seen() is true; fails if the process ends before."""
  end = time.monotonic() + seconds
  while not seen():
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < end
    time.sleep(0.002)


def test_killed_at_random_moments_a_run_logs_what_the_undisturbed_one_does(
  tmp_path, data_dir, undisturbed
):
  dice = random.Random(1)
  log = tmp_path / 'metrics.jsonl'
  checkpoints = tmp_path / 'checkpoints'
  for attempt in range(5):
    process = start(tmp_path, data_dir, *SLOWLY)
    if attempt % 2:  # During a save.
      done = training.steps(tmp_path)
      wait_for(
        process,
        lambda done=done: (
          len(set(training.steps(tmp_path)) - set(done)) > 1
          and list(checkpoints.glob('*tmp*'))
        ),
      )
    else:
      size = log.stat().st_size if log.exists() else 0
      wait_for(
        process,
        lambda size=size: log.exists() and log.stat().st_size > size,
      )
      time.sleep(dice.uniform(0, 0.5))
    process.kill()
    process.communicate()
  done = training.run(tmp_path, data_dir, *SLOWLY)
  assert done.returncode == 0, done.stderr
  assert training.lines(tmp_path) == undisturbed


def test_sigterm_saves_and_asks_to_be_started_again(
  tmp_path, data_dir, undisturbed
):
  process = start(tmp_path, data_dir, *SLOWLY, *ENDLESS)
  wait_for(process, lambda: len(training.steps(tmp_path)) > 1)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 42, errors
  stopped = training.steps(tmp_path)[-1]
  assert f'stopped after step {stopped}; it is saved' in errors
  process = start(tmp_path, data_dir, *SLOWLY, *ENDLESS)
  wait_for(process, lambda: training.steps(tmp_path)[-1] > stopped)
  process.send_signal(signal.SIGINT)  # Ctrl-C is no different.
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 42, errors
  assert f'going on after step {stopped}' in errors
  lines = training.lines(tmp_path)
  both = min(len(lines), len(undisturbed))
  assert both > 1
  assert lines[:both] == undisturbed[:both]


def test_a_full_disk_stops_the_run_and_leaves_older_checkpoints(
  tmp_path, data_dir
):
  process = start(tmp_path, data_dir, *SLOWLY, *ENDLESS)
  wait_for(process, lambda: len(training.steps(tmp_path)) > 1)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=120)
  before = training.steps(tmp_path)
  # As on a full disk, files cannot grow; only the checkpoints' are so large.
  limited = subprocess.run(
    training.command(tmp_path, data_dir, *SLOWLY, *ENDLESS),
    env=training.environment() | {'JAX_ENABLE_COMPILATION_CACHE': 'false'},
    capture_output=True,
    text=True,
    timeout=300,
    preexec_fn=lambda: resource.setrlimit(
      resource.RLIMIT_FSIZE, (50_000, 50_000)
    ),
  )
  assert limited.returncode == 1, limited.stderr
  assert 'cannot write a checkpoint' in limited.stderr
  assert f'intact: {before[0]}' in limited.stderr
  assert training.steps(tmp_path) == before
  process = start(tmp_path, data_dir, *SLOWLY, *ENDLESS)
  wait_for(process, lambda: training.steps(tmp_path)[-1] > before[-1])
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=120)
  assert process.returncode == 42


def free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def start_pair(workdir, data_dir, *options, devices, **which):
  """Starts two processes that train together; returns them."""
  address = f'localhost:{free_port()}'
  return [
    start(
      workdir,
      data_dir,
      *options,
      *('--coordinator', address, '--num-processes', '2'),
      *('--process-id', str(i)),
      devices=devices,
      **which,
    )
    for i in range(2)
  ]


def test_sigterm_to_one_of_two_processes_saves_one_step_and_ends_both(
  tmp_path, data_dir
):
  for asked in (0, 1):
    before = training.steps(tmp_path)[-1] if asked else 0
    pair = start_pair(tmp_path, data_dir, *SLOWLY, *ENDLESS, devices=4)
    wait_for(
      pair[0],
      lambda before=before: training.steps(tmp_path)[-1:] > [before + 1],
    )
    pair[asked].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [42, 42], errors
    stopped = training.steps(tmp_path)[-1]
    for text in errors:
      assert f'stopped after step {stopped}; it is saved' in text
      assert not before or f'going on after step {before}' in text


@pytest.mark.parametrize('killed', [0, 1])
def test_a_process_ends_with_a_message_when_the_other_is_killed(
  tmp_path, data_dir, killed, monkeypatch
):
  monkeypatch.setenv('COLTRAN_HEARTBEAT_SECONDS', '3')
  pair = start_pair(tmp_path, data_dir, *ENDLESS, devices=4)
  log = tmp_path / 'metrics.jsonl'
  wait_for(pair[0], lambda: log.exists() and log.stat().st_size)
  pair[killed].kill()
  pair[killed].communicate()
  left = pair[1 - killed]
  _, errors = left.communicate(timeout=30)
  assert left.returncode not in (0, 42)
  # Ours if a collective fails, jax's if it does not return.
  assert 'another process is gone' in errors or 'another task died' in errors


@pytest.mark.parametrize(
  'stage, split',
  [('color_upsampler', ()), ('spatial_upsampler', ('--set', 'mesh.seq=8'))],
)
def test_two_processes_of_four_devices_train_evaluate_and_save_as_one(
  tmp_path, data_dir, stage, split
):
  short = ('--set', 'num_steps=6', '--set', 'eval_every=3')
  alone = training.run(tmp_path / 'one', data_dir, *short, stage=stage)
  assert alone.returncode == 0, alone.stderr
  pair = start_pair(
    tmp_path / 'two', data_dir, *short, *split, devices=4, stage=stage
  )
  for process in pair:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
  one, two = training.lines(tmp_path / 'one'), training.lines(tmp_path / 'two')
  assert len(one) == len(two) == 5
  for a, b in zip(one, two, strict=True):
    assert a.pop('kind') == b.pop('kind')
    assert a == pytest.approx(b, rel=1e-5)
  assert training.steps(tmp_path / 'two') == training.steps(tmp_path / 'one')
  one, two = (
    run_directory.load_weights(tmp_path / name)[2] for name in ('one', 'two')
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    one,
    two,
  )
