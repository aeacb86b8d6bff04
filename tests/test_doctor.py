"""`coltran doctor`: well machines pass, and what is wrong is found."""

import io
import json
import shutil

import jax
import numpy as np
import pytest

from coltran_jax import checkpoint, cli, convert, doctor, models
from coltran_jax.convert import cnn as convert_cnn

pytestmark = pytest.mark.usefixtures('no_cache')


@pytest.fixture(scope='module')
def weights(fixtures, tmp_path_factory):
  """Random weights, with what another machine made of them."""
  folder = tmp_path_factory.mktemp('weights') / 'any'
  convert.convert(fixtures / 'pipeline' / 'tf_checkpoints', folder)
  shutil.copyfile(fixtures / 'pipeline' / 'golden.npz', folder / doctor.GOLDEN)
  return folder


@pytest.fixture
def golden(weights):
  """{name: array} of a golden file, and a function that writes it changed."""
  path = weights / doctor.GOLDEN
  before = path.read_bytes()

  def change(**arrays):
    file = io.BytesIO()
    np.savez(file, **dict(np.load(io.BytesIO(before))) | arrays)
    path.write_bytes(file.getvalue())

  yield change
  path.write_bytes(before)


def run(*arguments, capsys):
  code = cli.main(['doctor', *map(str, arguments)])
  out, err = capsys.readouterr()
  return (
    code,
    [line for line in out.splitlines() if line[:5] == 'WRONG'],
    out + err,
  )


def test_a_well_machine_repeats_what_another_recorded(
  weights, monkeypatch, capsys
):
  monkeypatch.setenv('COLTRAN_WEIGHTS', 'another')
  monkeypatch.setattr(checkpoint, 'SHIPPED', weights.parent)
  code, wrong, text = run('--weights', 'any', capsys=capsys)
  assert (code, wrong) == (0, [])
  assert text.count('device ') == len(jax.devices())
  for line in (
    *('ok    shipped weights: any\n', 'COLTRAN_WEIGHTS: another\n'),
    *(
      'self-test, bits_per_dim',
      'self-test, spatial_upsampler',
      'sampler: a p',
    ),
    *('weights: color_upsampler', f'jax: {jax.__version__}\n'),
  ):
    assert line in text


def test_another_result_is_wrong(weights, golden, monkeypatch, capsys):
  monkeypatch.setattr(doctor, '_NATS', -1)  # What no sampler comes below.
  small = np.load(weights / doctor.GOLDEN)['color_upsampler']
  golden(bits_per_dim=np.float32(7), color_upsampler=255 - small)
  code, wrong, _ = run('--weights', weights, capsys=capsys)
  assert code == 1
  assert [line.split()[2] for line in wrong] == [
    'sampler:',
    'bits_per_dim:',
    'color_upsampler:',
  ]
  monkeypatch.undo()
  monkeypatch.setattr(doctor, '_sampler', lambda _: doctor.Finding('a', 'b'))
  golden(codes=np.zeros((3, 3), np.uint16))
  code, wrong, _ = run('--weights', weights, capsys=capsys)
  assert code == 1
  assert 'of other weights' in wrong[0]


def test_missing_and_damaged_weights_exit_3(weights, tmp_path, capsys):
  code, wrong, _ = run('--weights', tmp_path / 'none', capsys=capsys)
  assert code == 3
  assert 'coltran convert' in wrong[0]
  (tmp_path / 'empty').mkdir()
  assert run('--weights', tmp_path / 'empty', capsys=capsys)[0] == 3
  copy = shutil.copytree(weights, tmp_path / 'copy')
  (copy / doctor.GOLDEN).write_bytes(b'nothing of the kind')
  code, _, text = run('--weights', copy, capsys=capsys)
  assert code == 3
  assert f'{copy / doctor.GOLDEN} cannot be read' in text
  path = copy / 'colorizer' / 'config.json'
  path.write_text(
    json.dumps(json.loads(path.read_text()) | {'fingerprint': '0'})
  )
  code, wrong, _ = run('--weights', copy, capsys=capsys)
  assert code == 3
  assert 'fingerprint' in wrong[0]


def test_what_is_recorded_here_is_repeated_here(
  study_tensors, tmp_path, capsys
):
  model, variables = convert_cnn.load_cnn(study_tensors)
  arguments, tree = models.arguments_of(model), models.join(variables)
  checkpoint.save(tmp_path, 'cnn', arguments, tree, 'the study')
  code, wrong, text = run('--weights', tmp_path, capsys=capsys)
  assert (code, wrong) == (0, [])
  assert 'nothing to compare with' in text
  code, wrong, text = run('--weights', tmp_path, '--record', capsys=capsys)
  assert (code, wrong) == (0, [])
  assert 'self-test, cnn: 0.00 of 255 levels off' in text
