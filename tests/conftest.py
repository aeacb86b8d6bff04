"""Eight virtual CPU devices, strict rank promotion, fixtures by name."""

import functools
import json
import os
import pathlib
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import clouds
import hypothesis
import jax
import numpy as np
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Runs of training are the same few programs: each is compiled once, for this
# process and those it starts (pytest-xdist's workers), and gone when it ends.
if 'COLTRAN_TEST_PROGRAMS' not in os.environ:
  COMPILED = tempfile.TemporaryDirectory(prefix='coltran-compiled-')
  os.environ['COLTRAN_TEST_PROGRAMS'] = COMPILED.name
jax.config.update(
  'jax_compilation_cache_dir', os.environ['COLTRAN_TEST_PROGRAMS']
)
hypothesis.settings.register_profile(
  'ci', deadline=None, derandomize=True, max_examples=60
)
hypothesis.settings.load_profile('ci')

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'


@pytest.fixture(scope='session')
def fixtures():
  """The folder of recorded numbers and pictures."""
  return FIXTURES


@pytest.fixture(scope='session')
def study_tensors(fixtures):
  """{PyTorch name: array} of the study's CNN."""
  with np.load(fixtures / 'cnn/cnn.npz') as arrays:
    return {k[2:]: v for k, v in arrays.items() if k.startswith('w:')}


@pytest.fixture(scope='session')
def weights(fixtures, tmp_path_factory):
  """A checkpoint directory, not to be changed: real resolutions, width 16."""
  from coltran_jax import convert

  folder = tmp_path_factory.mktemp('weights')
  convert.convert(fixtures / 'pipeline' / 'tf_checkpoints', folder)
  return folder


@pytest.fixture(scope='session')
def cnn_weights(study_tensors, tmp_path_factory):
  """A checkpoint directory with the study's CNN, not to be changed."""
  from coltran_jax import checkpoint, models
  from coltran_jax.convert import cnn

  folder = tmp_path_factory.mktemp('weights') / 'study'
  model, variables = cnn.load_cnn(study_tensors)
  tree = models.join(variables)
  checkpoint.save(folder, 'cnn', models.arguments_of(model), tree, 'the study')
  return folder


@pytest.fixture
def no_cache(monkeypatch):
  """Leaves the user's cache and this process's settings alone."""
  from coltran_jax import command

  monkeypatch.setattr(command, 'keep_programs', lambda jax: None)
  monkeypatch.delenv('COLTRAN_WEIGHTS', raising=False)


@pytest.fixture(scope='module')
def quick_programs():
  """Compiles in two thirds of the time what then runs once or twice."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def cloud(tmp_path):
  """See clouds.Cloud; its folder has a name that breaks careless scripts."""
  folder = tmp_path / 'it\'s a "cloud"'
  folder.mkdir()
  one = clouds.Cloud(folder)
  yield one
  one.close()


VARIANTS = sorted(
  path.stem.removeprefix('colorizer_')
  for path in (FIXTURES / 'coltran').glob('colorizer_*.npz')
)


class Recorded:
  """One recorded model of the reference: its arrays, our model and params."""

  def __init__(self, name):
    from coltran_jax import convert

    with np.load(FIXTURES / 'coltran' / f'{name}.npz') as arrays:
      self.arrays = dict(arrays)
    self.stage = next(s for s in STAGES if s in name)
    self.config = json.loads(str(self.arrays['config']))
    prefix = 'init:' if name.startswith('train_') else 'w:'
    self.variables = {
      key.removeprefix(prefix): value
      for key, value in self.arrays.items()
      if key.startswith(prefix)
    }
    self.model, self.params = convert.load_variables(
      self.stage, self.variables, self.config
    )

  def __getitem__(self, name):
    return self.arrays[name]

  @property
  def gray(self):
    return self.arrays['gray'][..., 0]


STAGES = ('colorizer', 'color_upsampler', 'spatial_upsampler')
recorded = functools.cache(Recorded)


@pytest.fixture(params=VARIANTS)
def variant(request):
  """Each recorded variant of the colorizer."""
  return recorded(f'colorizer_{request.param}')


def files(folder):
  """All files below a folder, hidden ones too, sorted."""
  return sorted(
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if not path.is_dir()
  )
