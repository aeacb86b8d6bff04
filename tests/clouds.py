"""A cloud of a test's own: launch scripts, and programs that play the rest."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).parent.parent
FAKES = ROOT / 'tests' / 'fake_cloud'
UP = ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
ARGS = ('--config', 'configs/colorizer.py', '--workdir', '/bucket/run')


class Cloud:
  """What the scripts of launch/ see of a cloud, in a folder."""

  def __init__(self, folder):
    self.folder = folder
    self.settings = {
      'TPU_ZONE': 'us-west4-a',
      'TPU_TYPE': 'v5litepod-16',
      'TPU_POLL': '0.1',
      'TPU_ENV': str(folder / 'tpu.env'),
    }
    (folder / 'tpu.env').touch()
    for name, programs in (
      ('bin', ('gcloud', 'kubectl')),
      ('worker_bin', ('python3.11', 'coltran', 'sudo', 'gcsfuse')),
    ):
      (folder / name).mkdir()
      for program in programs:
        (folder / name / program).symlink_to(FAKES / program)
    self.plan(UP)
    self.act([])

  def plan(self, *plans):
    """Says how the slices fare that are asked for, one after the other."""
    (self.folder / 'plans.json').write_text(json.dumps(plans))

  def act(self, *actions):
    """Says what training does on each worker, start after start."""
    self.workers = len(actions)
    for i, steps in enumerate(actions):
      lines = ''.join(f'{step}\n' for step in steps)
      (self.folder / f'actions.{i}').write_text(lines)

  def environment(self):
    return {
      'PATH': f'{self.folder}/bin:{os.environ["PATH"]}',
      'HOME': str(self.folder),
      'TMPDIR': str(self.folder),
      'FAKE_CLOUD': str(self.folder),
      'FAKE_WORKERS': str(self.workers),
      **self.settings,
    }

  def run(self, script, *args, code=0, **settings):
    """Runs one of launch/; returns what it printed."""
    done = subprocess.run(
      ['bash', ROOT / 'launch' / script, *args],
      env=self.environment() | settings,
      capture_output=True,
      text=True,
      timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr

  def tpu(self, *args, code=0):
    return self.run('tpu.sh', *args, code=code)

  def start(self, *args):
    """Has tpu.sh start a training on a new slice."""
    for each in (['up'], ['setup'], ['run', *args]):
      self.tpu(*each)

  def calls(self, *words):
    """The arguments of all calls of gcloud or kubectl that begin so."""
    path = self.folder / 'calls.jsonl'
    text = path.read_text() if path.exists() else ''
    calls = [json.loads(line) for line in text.splitlines()]
    return [call for call in calls if call[: len(words)] == [*words]]

  def asked(self):
    return self.calls('compute', 'tpus', 'queued-resources', 'create')

  def words(self):
    """What the workers say of their runs."""
    lines = self.tpu('status').splitlines()
    return [line.split(': ')[1] for line in lines if line.startswith('worker')]

  def wait_for(self, *words):
    end = time.monotonic() + 30
    while (now := self.words()) != [*words]:
      assert time.monotonic() < end, now
      time.sleep(0.05)

  def close(self):
    """Ends what runs on the workers."""
    for pid in self.folder.glob('workers/*/coltran_run/pid'):
      with contextlib.suppress(ProcessLookupError):
        os.killpg(int(pid.read_text()), signal.SIGKILL)
