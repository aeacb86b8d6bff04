"""The notebooks: thin, stripped, and they run, in Colab and elsewhere."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import types

import data_sets
import jax
import pytest

from coltran_jax import cli, convert

pytestmark = pytest.mark.usefixtures('no_cache')
ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'colab').glob('*.ipynb'))


def code(name):
  """The sources of a notebook's code cells."""
  notebook = json.loads((ROOT / f'colab/{name}.ipynb').read_text())
  return [
    ''.join(cell['source'])
    for cell in notebook['cells']
    if cell['cell_type'] == 'code'
  ]


@pytest.fixture
def place(tmp_path, monkeypatch):
  """The folder of notebooks in a checkout, as the working directory."""
  for name in ('configs', 'launch'):
    (tmp_path / name).symlink_to(ROOT / name)
  (tmp_path / 'colab').mkdir()
  monkeypatch.chdir(tmp_path / 'colab')
  with jax.numpy_rank_promotion('allow'):
    yield tmp_path / 'colab'


@pytest.fixture
def colab(monkeypatch):
  """A `google.colab` that uploads `uploads` and notes what is downloaded."""
  files = types.SimpleNamespace(uploads={}, downloads=[])
  files.upload = lambda: files.uploads
  files.download = files.downloads.append
  package = types.ModuleType('google.colab')
  package.files = files
  monkeypatch.setitem(sys.modules, 'google.colab', package)
  return files


def run(name, changes):
  """Returns what a notebook's cells leave behind, and runs them.

  changes: {text: instead}, each of which must be there. Commands of `coltran`
  are run, `train` in a process of its own, which it wants; others are not.
  """

  def shell(line):
    program, *arguments = shlex.split(line)
    if program != 'coltran':
      return
    if arguments[0] != 'train':
      assert cli.main(arguments) == 0, line
      return
    changed = {
      'PYTHONPATH': str(ROOT),
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
      'XLA_FLAGS': '',  # One device.
    }
    subprocess.run(
      [sys.executable, '-m', 'coltran_jax.cli', *arguments],
      env=os.environ | changed,
      check=True,
    )

  scope = {'shell': shell}
  sources = code(name)
  for text, instead in changes.items():
    assert any(text in source for source in sources), text
    sources = [source.replace(text, instead) for source in sources]
  for source in sources:
    source = re.sub(
      r'^(\s*)[!%](.*)$', r"\1shell(f'''\2''')", source, flags=re.M
    )
    exec(compile(source, name, 'exec'), scope)
  return scope


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_thin_and_stripped(path):
  cells = json.loads(path.read_text())['cells']
  assert len(cells) <= 15
  for cell in cells:
    if cell['cell_type'] == 'code':
      source = ''.join(cell['source'])
      assert cell['outputs'] == [] and cell['execution_count'] is None
      assert len(source.splitlines()) <= 12
      assert 'def ' not in source
  assert f'](colab/{path.name})' in (ROOT / 'README.md').read_text()


@pytest.mark.parametrize('name', [path.stem for path in NOTEBOOKS])
def test_a_notebook_finds_its_checkout_whenever_it_is_begun(
  name, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  cloned = []

  def shell(line):
    cloned.append(line)
    (tmp_path / 'coltran/colab').mkdir(parents=True)
    (tmp_path / 'coltran/setup.py').touch()

  source = code(name)[0].replace("REPOSITORY = ''", "REPOSITORY = 'address'")
  source = re.sub(r'!(.*)$', r'shell(f"\1")', source, flags=re.M)
  for _ in range(2):
    exec(compile(source, name, 'exec'), {'shell': shell})
    assert pathlib.Path.cwd() == tmp_path / 'coltran/colab'
  monkeypatch.chdir(tmp_path)  # As after a restart.
  exec(compile(source, name, 'exec'), {'shell': shell})
  assert pathlib.Path.cwd() == tmp_path / 'coltran/colab'
  assert cloned == ['git clone --quiet --depth 1 address coltran']


def test_colorizing_makes_samples_and_downloads_them(place, colab, fixtures):
  checkpoints = fixtures / 'pipeline/tf_checkpoints'
  photo = (fixtures / 'pipeline/photos/chelsea_gray.png').read_bytes()
  (place / 'mine.png').write_bytes(photo)
  colab.uploads['mine.png'] = photo
  left = run('colorize', {"CHECKPOINTS = ''": f"CHECKPOINTS = '{checkpoints}'"})
  names = ['hinted.png', *(f'colored-{i}.png' for i in range(1, 5))]
  assert colab.downloads == names
  made = [(place / name).read_bytes() for name in names]
  assert len(set(made)) == 5
  assert [bits for _, bits in left['order']] == sorted(
    coloring.bits_per_dim for coloring in left['colorings']
  )


def test_training_ends_in_weights_that_color(place):
  for i in range(24):
    split = 'train' if i < 16 else 'valid'
    picture = data_sets.picture(i, 40, 48)
    data_sets.save(place / f'pictures/{split}/{i}.png', picture)
  run(
    'train',
    {
      "VARIANT = ':sports'": "VARIANT = ':debug'",
      'STEPS = 400': 'STEPS = 1',
      ", 'spatial_upsampler']": ']',
    },
  )
  assert (place / 'weights/colorizer/config.json').exists()


def test_evaluating_makes_a_report(place, colab, fixtures):
  convert.convert(fixtures / 'pipeline/tf_checkpoints', place / 'own')
  for i in range(3):
    data_sets.save(place / f'pictures/{i}.png', data_sets.picture(i, 70, 64))
  run(
    'evaluate',
    {
      "WEIGHTS = 'coltran-sports'": "WEIGHTS = 'own'",
      '-n 2 --net vgg16': '-n 2 --net alexnet --size 64 --fast',
    },
  )
  assert (place / 'evaluation/report.html').exists()
  table = json.loads((place / 'evaluation/table.json').read_text())
  assert table['pictures'] == 3
  assert pathlib.Path(colab.downloads[0]).stat().st_size > 1000
