"""tpu.sh against a cloud that is played by programs on PATH."""

import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import time

from clouds import ARGS, FAKES, ROOT, UP
import pytest

SCRIPTS = [*sorted((ROOT / 'launch').glob('*.sh')), ROOT / '.ci/run']


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
  assert script.stat().st_mode & 0o111
  shell = script.read_text().splitlines()[0].split('/')[-1].split()[-1]
  subprocess.run([shell, '-n', script], check=True)
  programs = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  subprocess.run(
    [shutil.which('shellcheck', path=programs), script], check=True
  )


def test_the_page_of_options_is_shown_without_a_command(cloud):
  assert 'launch/tpu.sh [OPTIONS] watch ARGS...' in cloud.tpu(code=2)
  assert not cloud.calls()


def test_a_dry_run_calls_nothing(cloud):
  shown = cloud.tpu('--dry-run', '--spot', 'watch', *ARGS)
  for wanted in ('--spot', 'tpu-vm scp', 'start', '--worker=all'):
    assert wanted in shown
  assert not cloud.calls()


def test_up_asks_once_and_waits(cloud):
  cloud.settings |= {'TPU_VALID_FOR': '12h', 'TPU_PROJECT': 'mine'}
  cloud.tpu('--spot', 'up')
  cloud.tpu('--spot', 'up')
  (call,) = cloud.asked()
  assert call[4:] == [
    *('coltran', '--zone=us-west4-a', '--project=mine', '--node-id=coltran'),
    '--accelerator-type=v5litepod-16',
    '--runtime-version=v2-alpha-tpuv5-lite',
    *('--spot', '--valid-until-duration=12h'),
  ]


@pytest.mark.parametrize(
  ('kind', 'image'),
  [
    ('v6e-16', 'v2-alpha-tpuv6e'),
    ('v5p-8', 'v2-alpha-tpuv5'),
    ('v4-32', 'tpu-ubuntu2204-base'),
    ('v2-8', 'tpu-ubuntu2204-base'),
  ],
)
def test_each_type_has_its_image(cloud, kind, image):
  assert f'--runtime-version={image}' in cloud.tpu(
    *('--dry-run', '--type', kind, 'up')
  )
  cloud.settings['TPU_RUNTIME'] = 'mine'
  assert '--runtime-version=mine' in cloud.tpu(
    *('--dry-run', '--type', kind, 'up')
  )


def test_an_unknown_type_asks_for_its_image(cloud):
  assert 'set TPU_RUNTIME' in cloud.tpu('--type', 'v9-8', 'up', code=2)
  assert not cloud.asked()


def test_settings_come_from_the_file_unless_given_otherwise(cloud):
  (cloud.folder / 'tpu.env').write_text(
    '# mine\n\nTPU_NAME=$(a) file\nTPU_TYPE=v4-8\nTPU_SPOT=1'
  )
  cloud.tpu('--zone', 'us-central2-b', 'up')
  (call,) = cloud.asked()
  assert call[4:6] == ['$(a) file', '--zone=us-central2-b']
  assert '--accelerator-type=v5litepod-16' in call  # Of the environment.
  assert '--spot' in call
  (cloud.folder / 'tpu.env').write_text('PATH=/tmp\n')
  assert 'not a setting: PATH' in cloud.tpu('up', code=2)


def test_a_refused_request_is_reported_and_not_repeated(cloud):
  cloud.plan('RESOURCE_EXHAUSTED: Quota limit exceeded')
  said = cloud.tpu('watch', *ARGS, code=1)
  assert 'Quota limit exceeded' in said
  assert 'the request was refused' in said
  assert len(cloud.asked()) == 1


def test_a_request_that_fails_later_says_why(cloud):
  cloud.plan(['WAITING_FOR_RESOURCES', 'FAILED'])
  assert 'ended as FAILED: why FAILED' in cloud.tpu('up', code=75)


def test_up_replaces_a_slice_that_was_taken_away(cloud):
  cloud.act([])
  cloud.plan(['ACTIVE', 'SUSPENDED'], UP)
  cloud.tpu('up')
  cloud.tpu('up')
  assert len(cloud.asked()) == 2


def test_a_slice_that_cannot_be_looked_at_is_not_replaced(cloud):
  cloud.plan(['ACTIVE', 'error: PERMISSION_DENIED'])
  cloud.tpu('up')
  for name in ('up', 'down', 'status'):
    assert 'PERMISSION_DENIED' in cloud.tpu(name, code=69)
  assert len(cloud.asked()) == 1
  assert not cloud.calls('compute', 'tpus', 'queued-resources', 'delete')


def test_a_run_from_up_to_down(cloud):
  cloud.act([42, 42, 0], [42, 42, 0])
  for name in ('up', 'setup', 'setup'):
    cloud.tpu(name)
  assert cloud.words() == ['idle', 'idle']
  cloud.tpu('run', *ARGS)
  cloud.wait_for('finished', 'finished')
  said = cloud.tpu('logs', '1000')
  assert said.count('exit code 42') == 2
  assert said.count('exit code 0') == 1  # Of worker 0 only.
  for _ in range(2):
    cloud.tpu('down')
  assert len(cloud.calls('compute', 'tpus', 'queued-resources', 'delete')) == 1
  assert '[tpu]' in (cloud.folder / 'pip').read_text()
  assert not list(cloud.folder.glob('tmp*'))  # Nothing is left here.


def test_a_run_in_a_relative_folder_outlives_setup_and_recovery(cloud):
  cloud.act([128 + 9, 0])
  cloud.tpu('up')
  cloud.tpu('setup')
  repo = cloud.folder / 'workers/0/coltran_jax'
  kept = [repo / 'runs/x/checkpoints/5/state', repo / 'configs/mine.py']
  for path in kept:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('mine')
  # Of another commit, which this one does not have.
  (repo / 'coltran_jax/old.py').touch()
  with (cloud.folder / 'workers/0/coltran_run/unpacked').open('a') as file:
    file.write('coltran_jax/old.py\n')
  args = ('--config', 'configs/mine.py', '--workdir', 'runs/x')
  assert 'the run broke; recovery 1' in cloud.tpu('watch', *args)
  assert [path.read_text() for path in kept] == ['mine', 'mine']
  assert (repo / 'coltran_jax/train.py').exists()
  assert not (repo / 'coltran_jax/old.py').exists()


def test_names_with_spaces_and_quotes_arrive_whole(cloud):
  cloud.act([0])
  name = 'my "slice\'s" $(touch hacked)'
  given = [*ARGS, '--set', "data.name='a b'; touch hacked #", '', '$HOME\n"']
  for args in (['up'], ['setup'], ['run', *given], ['stop']):
    cloud.tpu('--name', name, *args)
  for call in cloud.calls('compute'):
    assert call[4] == name or call[-3] == f'{name}:coltran_run/'
  arguments = (cloud.folder / 'arguments.0').read_text()
  assert arguments == ''.join(f'{x}\n' for x in ['train', *given])
  assert not list(cloud.folder.rglob('hacked'))


def test_secrets_go_in_a_file_for_the_user_alone(cloud):
  cloud.act([0])
  secret = 'tok\'en "$(touch hacked)"'
  cloud.settings |= {'TPU_SECRETS': 'TOKEN', 'TOKEN': secret}
  cloud.tpu('up')
  said = cloud.tpu('setup') + cloud.tpu('run', *ARGS)
  cloud.wait_for('finished')
  assert (cloud.folder / 'tokens').read_text() == f'{secret}\n'
  run = cloud.folder / 'workers/0/coltran_run'
  assert stat.S_IMODE((run / 'secrets.env').stat().st_mode) == 0o600
  assert stat.S_IMODE(run.stat().st_mode) == 0o700
  assert set((cloud.folder / 'modes').read_text().split()) == {'700'}
  assert 'tok' not in said + json.dumps(cloud.calls())
  assert not list(cloud.folder.glob('tmp*'))
  del cloud.settings['TOKEN']
  assert 'TOKEN is not set' in cloud.tpu('setup', code=2)


def test_stop_saves_on_all_workers_and_nothing_starts_again(cloud):
  cloud.act(['wait', 'wait', 0], ['wait', 'wait', 0])
  cloud.start(*ARGS)
  assert 'running already' in cloud.tpu('run', *ARGS)
  cloud.tpu('run', '--config', 'other', code=1)
  cloud.tpu('setup', code=1)
  cloud.wait_for('running; restarts', 'running; restarts')
  for _ in range(2):
    assert cloud.tpu('stop').count('stopped; exit code 42') == 2
  cloud.tpu('run', *ARGS)  # It goes on when it is told to.
  cloud.wait_for('running; restarts', 'running; restarts')


def test_a_run_that_does_not_stop_is_killed(cloud):
  cloud.act(['wait'])
  coltran = cloud.folder / 'worker_bin' / 'coltran'
  coltran.unlink()
  coltran.write_text("#!/bin/bash\ntrap '' TERM\nwhile :; do sleep 0.1; done\n")
  coltran.chmod(0o755)
  cloud.settings['TPU_STOP_SECONDS'] = '1'
  cloud.start(*ARGS)
  assert 'did not stop within 1 s' in cloud.tpu('stop')
  assert cloud.words() == ['died']


def test_restarts_are_bounded(cloud):
  cloud.act([42] * 9)
  cloud.settings['TPU_RESTARTS'] = '3'
  cloud.start(*ARGS)
  cloud.wait_for('failed; exit code 42')
  assert len((cloud.folder / 'actions.0').read_text().split()) == 9 - 4


def test_watch_takes_a_run_through_preemptions_to_its_end(cloud):
  cloud.act(['wait', 'wait', 42, 0], ['wait', 'wait', 42, 0])
  taken = ['PROVISIONING', *['ACTIVE'] * 5, 'SUSPENDING', 'SUSPENDED']
  cloud.plan(taken, taken, UP)
  said = cloud.tpu('--spot', 'watch', *ARGS)
  assert 'finished' in said
  assert len(cloud.asked()) == 3
  assert all('--spot' in call for call in cloud.asked())


def test_watch_asks_again_when_there_was_no_room(cloud):
  cloud.act([0])
  cloud.plan(['FAILED'], ['WAITING_FOR_RESOURCES', 'FAILED'], UP)
  assert 'recovery 2 of at most 50' in cloud.tpu('watch', *ARGS)
  assert len(cloud.asked()) == 3


def test_watch_gives_up_at_last(cloud):
  cloud.plan(*[['FAILED']] * 9)
  cloud.settings['TPU_RECOVERIES'] = '2'
  assert 'gave up after 2 recoveries' in cloud.tpu('watch', *ARGS, code=1)
  assert len(cloud.asked()) == 3


def test_watch_starts_a_broken_run_again(cloud):
  cloud.act([128 + 9, 0], ['wait', 0])  # Out of memory; its peer hangs.
  said = cloud.tpu('watch', *ARGS)
  assert 'the run broke; recovery 1' in said
  assert len(cloud.asked()) == 1


def test_watch_goes_on_after_a_worker_was_shut_down(cloud):
  cloud.act(['wait', 0], ['wait', 0])
  cloud.start(*ARGS)
  cloud.wait_for('running; restarts', 'running; restarts')
  pid = (cloud.folder / 'workers/1/coltran_run/pid').read_text()
  os.killpg(int(pid), signal.SIGTERM)  # As the system does, to all.
  cloud.wait_for('running; restarts', 'died')
  assert 'the run broke; recovery 1' in cloud.tpu('watch', *ARGS)
  assert len(cloud.asked()) == 1


def test_watch_ends_with_a_training_that_fails(cloud):
  cloud.act([1], ['wait'])
  said = cloud.tpu('watch', *ARGS, code=1)
  assert 'the training failed: see logs' in said
  assert cloud.words() == ['failed; exit code 1', 'stopped; exit code 42']


def test_watch_ends_with_the_failure_that_made_the_others_abort(cloud):
  cloud.act([1], [128 + 6], [75])
  said = cloud.tpu('watch', *ARGS, code=1)
  assert 'the training failed: see logs' in said
  assert 'recovery' not in said
  assert cloud.words() == [
    'failed; exit code 1',
    'aborted; exit code 134',
    'aborted; exit code 75',
  ]


@pytest.mark.parametrize('code', [75, 128 + 6])
def test_watch_starts_a_run_again_that_only_misses_a_process(cloud, code):
  cloud.act([code, 0], ['wait', 0])
  assert 'the run broke; recovery 1' in cloud.tpu('watch', *ARGS)
  assert len(cloud.asked()) == 1


def test_watch_replaces_a_slice_with_a_dead_worker(cloud):
  cloud.act([0], ['wait', 0])
  cloud.plan(UP, UP)
  (cloud.folder / 'node').write_text('READY\n')
  cloud.start(*ARGS)
  (cloud.folder / 'dead').write_text('1')
  shutil.copy(cloud.folder / 'actions.1', cloud.folder / 'actions.0')
  gcloud = cloud.folder / 'bin' / 'gcloud'
  gcloud.unlink()
  gcloud.write_text(  # The dead one does not outlive its slice.
    f'#!/bin/bash\n[ "$4" = create ] && rm -f "$FAKE_CLOUD/dead"\n'
    f'exec "{FAKES}/gcloud" "$@"\n'
  )
  gcloud.chmod(0o755)
  assert 'a worker is lost' in cloud.tpu('watch', *ARGS)
  assert len(cloud.asked()) == 2


def test_watch_leaves_a_slice_alone_that_it_cannot_reach(cloud):
  """No worker answers, the cloud says READY: it is this computer's network."""
  cloud.act(['wait', 0])
  cloud.start(*ARGS)
  (cloud.folder / 'node').write_text('READY\n')
  (cloud.folder / 'dead').write_text('0')
  watch = subprocess.Popen(
    ['bash', ROOT / 'launch' / 'tpu.sh', 'watch', *ARGS],
    env=cloud.environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  looks = ('compute', 'tpus', 'tpu-vm', 'describe')
  while len(cloud.calls(*looks)) < 8:
    assert watch.poll() is None
    time.sleep(0.05)
  watch.kill()
  watch.wait()
  assert len(cloud.asked()) == 1
  (cloud.folder / 'dead').unlink()
  assert cloud.words() == ['running; restarts']


def test_watch_ends_when_the_run_is_stopped(cloud):
  cloud.act(['wait'])
  cloud.start(*ARGS)
  cloud.wait_for('running; restarts')
  cloud.tpu('stop')
  assert 'stopped; run or watch goes on' in cloud.tpu('watch', *ARGS, code=42)


def test_paths_that_coltran_does_not_know_are_refused(cloud):
  for path in (['--workdir', 'gs://b/x'], ['--workdir=gs://b/x']):
    assert 'set TPU_BUCKET' in cloud.tpu('run', *path, code=2)
    assert 'set TPU_BUCKET' in cloud.tpu('watch', *path, code=2)
  assert not cloud.calls()


def test_a_bucket_is_mounted_on_every_worker(cloud):
  cloud.act([0], [0])
  cloud.settings['TPU_BUCKET'] = 'my-bucket'
  cloud.tpu('up')
  cloud.tpu('setup')
  mounts = (cloud.folder / 'gcsfuse').read_text().splitlines()
  assert len(mounts) == 2
  assert set(mounts) == {
    '--implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=100000 '
    'my-bucket /bucket'
  }
