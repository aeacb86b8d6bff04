"""The JobSet that trains in a cluster, and the script that applies it."""

import json
import subprocess

from clouds import ARGS, ROOT
import pytest
import yaml

from coltran_jax import command


@pytest.fixture
def gke(cloud):
  """Runs gke.sh in a cluster of this test's own; returns what it printed."""

  def run(*args, **settings):
    given = {'GKE_IMAGE': 'registry/image', 'GKE_BUCKET': 'my-bucket'}
    return cloud.run('gke.sh', *args, **given | settings)

  return run


def applied(cloud):
  return [*yaml.safe_load_all((cloud.folder / 'in').read_text())]


def job_of(jobset):
  (job,) = jobset['spec']['replicatedJobs']
  return job['template']['spec']


# Of jobset.x-k8s.io/v1alpha2, as its jobset_types.go has them.
FIELDS = {
  (): {'apiVersion', 'kind', 'metadata', 'spec'},
  ('spec',): {'failurePolicy', 'replicatedJobs', 'suspend', 'network'},
  ('spec', 'failurePolicy'): {'maxRestarts', 'rules', 'restartStrategy'},
  ('spec', 'failurePolicy', 'rules', 0): {
    *('name', 'action', 'onJobFailureReasons', 'targetReplicatedJobs'),
  },
  ('spec', 'replicatedJobs', 0): {'name', 'replicas', 'template'},
  ('spec', 'replicatedJobs', 0, 'template'): {'metadata', 'spec'},
}


def test_the_manifest_has_the_fields_of_a_jobset(gke):
  jobset = yaml.safe_load(gke('show', *ARGS))
  for path, names in FIELDS.items():
    node = jobset
    for key in path:
      node = node[key]
    assert set(node) <= names, path
  assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert '@' not in json.dumps(jobset)


def test_usage_ends_a_jobset_and_all_else_is_bounded(gke):
  jobset = yaml.safe_load(gke('show', *ARGS))
  job = job_of(jobset)
  assert jobset['spec']['failurePolicy']['maxRestarts'] == 50
  (rule,) = job['podFailurePolicy']['rules']
  assert rule['onExitCodes']['values'] == [
    command.EXIT_USAGE,
    command.EXIT_WEIGHTS,
  ]
  pod = job['template']['spec']
  (container,) = pod['containers']
  assert rule['onExitCodes']['containerName'] == container['name']
  # What a policy of pods needs, and what makes all hosts start anew.
  assert (pod['restartPolicy'], job['backoffLimit']) == ('Never', 0)


@pytest.mark.parametrize(
  ('topology', 'chips', 'hosts'),
  [('4x4', 4, 4), ('2x2x4', 4, 4), ('2x4', 8, 1), ('16x16', 4, 64)],
)
def test_there_is_a_pod_for_each_host(gke, topology, chips, hosts):
  job = job_of(
    yaml.safe_load(
      gke('show', 'x', GKE_TOPOLOGY=topology, GKE_CHIPS=str(chips))
    )
  )
  assert job['parallelism'] == job['completions'] == hosts
  (container,) = job['template']['spec']['containers']
  assert container['resources']['limits'] == {'google.com/tpu': chips}


def test_any_argument_arrives_in_the_pod(cloud, gke):
  given = [
    'a b',
    "it's",
    '"',
    '\\n',
    '$(HOME) $$ $x',
    '`ls`',
    'a\nb\tc',
    '#',
    '&',
  ]
  gke('run', *given, GKE_NAME='my "name" # \\', GKE_IMAGE='i: "j"')
  (jobset,) = applied(cloud)
  assert jobset['metadata']['name'] == 'my "name" # \\'
  (container,) = job_of(jobset)['template']['spec']['containers']
  assert container['image'] == 'i: "j"'
  args = [arg.replace('$$', '$') for arg in container['args']]  # As kubelet.
  assert args == ['train', *given]
  assert '$(HOME)' not in container['args'][5].replace('$$', '')


def test_a_secret_of_the_cluster_comes_by_stdin(cloud, gke):
  secret = 'tok\'en\n"\\ $(x)'
  said = gke('run', *ARGS, GKE_SECRETS='TOKEN', TOKEN=secret)
  jobset, secret_applied = applied(cloud)
  assert secret_applied['kind'] == 'Secret'
  assert secret_applied['stringData'] == {'TOKEN': secret}
  assert 'tok' not in said + json.dumps(cloud.calls())
  (container,) = job_of(jobset)['template']['spec']['containers']
  assert container['envFrom'] == [
    {
      'secretRef': {
        'name': secret_applied['metadata']['name'],
        'optional': True,
      }
    }
  ]
  assert 'not set' in gke('run', 'x', code=2, GKE_SECRETS='TOKEN')


def test_what_the_cluster_refuses_is_reported(gke):
  said = gke('run', *ARGS, code=1, FAKE_ERROR='exceeded quota: tpus')
  assert 'exceeded quota: tpus' in said


@pytest.mark.parametrize(
  ('args', 'settings', 'message'),
  [
    (['run'], {}, 'give the arguments'),
    (['run', 'x'], {'GKE_IMAGE': ''}, 'set GKE_IMAGE'),
    (['run', 'x'], {'GKE_BUCKET': ''}, 'set GKE_BUCKET'),
    (['run', 'x'], {'GKE_TOPOLOGY': '4x4;ls'}, 'GKE_TOPOLOGY'),
    (['run', 'x'], {'GKE_CHIPS': 'a[$(ls)]'}, 'GKE_CHIPS'),
    (['run', '--workdir', 'gs://b'], {}, 'no gs:// paths'),
    (['run', '\x1b'], {}, 'control character'),
    ([], {}, 'launch/gke.sh run ARGS...'),
  ],
)
def test_wrong_use_of_the_cluster_is_refused(
  cloud, gke, args, settings, message
):
  assert message in gke(*args, code=2, **settings)
  assert not cloud.calls()


def test_status_logs_and_stop_name_the_jobset(cloud, gke):
  for args in (['status'], ['logs', '-f'], ['stop'], ['stop']):
    gke(*args, GKE_NAME='mine')
  assert all('mine' in ' '.join(call) for call in cloud.calls())
  assert ['delete', 'jobset', 'mine'] in [x[:3] for x in cloud.calls()]


def test_the_image_is_built_from_what_is_committed():
  lines = (ROOT / 'launch' / 'Dockerfile').read_text().splitlines()
  copied = [
    x for line in lines if line.startswith('COPY') for x in line.split()
  ]
  names = set(copied) - {'COPY', './'}
  assert {'setup.py', 'constraints.txt', 'coltran_jax', 'configs'} <= names
  known = subprocess.run(
    ['git', '-C', ROOT, 'ls-files', '--', *names],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.splitlines()
  assert {name.split('/')[0] for name in known} == names
