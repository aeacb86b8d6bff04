"""Stable Diffusion on the command line: the files and options of the others."""

import json
import shutil
import subprocess
import sys

import conftest
import data_sets
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import skimage.data

from coltran_jax import batch, cli, command, photo, sharding
from coltran_jax import pipeline as coltran_pipeline
from coltran_jax.diffusion import parts, pipeline

pytestmark = pytest.mark.usefixtures('no_cache', 'quick_programs')
COFFEE = skimage.data.coffee()[:300:2, :500:2]
TENSORS = 'diffusion_pytorch_model.safetensors'


@pytest.fixture(scope='module')
def pipe(fixtures):
  return fixtures / 'diffusion/pipe'


@pytest.fixture
def copy(pipe, tmp_path):
  """A copy of the folders, to break."""
  return shutil.copytree(pipe, tmp_path / 'pipe')


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Programs for one device compile sooner than for eight."""
  make = sharding.make_mesh
  monkeypatch.setattr(sharding, 'make_mesh', lambda: make(1))


@pytest.fixture
def source(tmp_path):
  data_sets.save(tmp_path / 'photos/a.png', COFFEE[..., :1].repeat(3, -1))
  return tmp_path / 'photos'


def run(folder, *args):
  folders = ('--weights', folder, '--controlnet', folder / 'controlnet')
  model = ('--model', 'controlnet', '--steps', 2)
  return cli.main(['colorize', *map(str, (*args, *model, *folders))])


def test_the_command_colors_a_folder_and_tells_what_failed(
  source, pipe, capsys, tmp_path
):
  (source / 'b.jpg').write_bytes(b'no picture')
  out = tmp_path / 'out'
  assert run(pipe, source, '-o', out, '-n', 2) == command.EXIT_FAILED
  assert 'b.jpg' in capsys.readouterr().err
  assert conftest.files(out) == ['a-1.png', 'a-2.png', 'a-sheet.png']
  first, second = (photo.read(out / f'a-{i}.png').pixels for i in (1, 2))
  assert first.shape == COFFEE.shape and (first != second).any()
  alone = tmp_path / 'alone.png'
  assert run(pipe, source / 'a.png', '-o', alone) == 0
  np.testing.assert_array_equal(photo.read(alone).pixels, first)


def test_every_option_reaches_the_run(source, pipe, monkeypatch):
  found = []

  def note(self, gray, keys, **options):
    found.append((keys, options))
    return np.stack([gray] * 3, axis=-1)

  monkeypatch.setattr(pipeline.Pipeline, 'run', note)
  options = {'prompt': 'a', 'negative_prompt': '', 'guidance': 3.0}
  words = ('--prompt', 'a', '--negative-prompt', '', '--guidance', 3)
  assert run(pipe, source, *words, '--seed', 1, '--strength', 0.7) == 0
  assert run(pipe, source, *words, '--study', '-n', 3) == 0
  (keys, image), (_, study) = found
  assert keys == coltran_pipeline.sample_keys(1, 1)
  expected = {**options, 'steps': 2, 'strength': 0.7, 'study': False}
  assert image == expected
  assert study == {**options, 'steps': 2, 'study': True}


def test_a_long_prompt_is_cut_loudly(source, pipe, tmp_path, caplog):
  made = []
  for prompt in ('', 'color ' * 2000):
    out = tmp_path / f'{len(made)}.png'
    assert run(pipe, source / 'a.png', '-o', out, '--prompt', prompt) == 0
    made.append(photo.read(out).pixels)
  assert (made[0] != made[1]).any()
  (said,) = (m for m in caplog.messages if 'too long' in m)
  assert 'first 75 tokens' in said


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    (('--study', '--strength', '0.5'), 'leave out --strength'),
    (('--strength', '0.1'), 'is none'),
    (('--strength', '0'), 'above 0 and at most 1'),
    (('--strength', '1.1'), 'above 0 and at most 1'),
    (('--steps', '501'), '1 to 500'),
    (('--guidance', 'nan'), 'a number, 0 or more'),
    (('--attention', 'fast'), 'invalid choice'),
  ],
)
def test_options_that_make_no_sense_are_a_usage_error(
  options, said, source, pipe, capsys
):
  try:
    code = run(pipe, source, *options)
  except SystemExit as stop:  # argparse's.
    code = stop.code
  assert code == command.EXIT_USAGE
  assert said in capsys.readouterr().err
  assert not (source.parent / 'photos-colorized').exists()


def test_missing_folders_are_named(source, pipe, capsys, tmp_path):
  args = ['colorize', str(source), '--model', 'controlnet']
  assert cli.main(args) == command.EXIT_WEIGHTS
  assert 'a folder of Stable Diffusion' in capsys.readouterr().err
  args += ['--weights', str(tmp_path / 'none')]
  assert cli.main(args) == command.EXIT_USAGE
  assert '--controlnet DIR' in capsys.readouterr().err
  args += ['--controlnet', str(pipe / 'controlnet')]
  assert cli.main(args) == command.EXIT_WEIGHTS
  assert 'none is no folder' in capsys.readouterr().err


def test_packages_that_are_not_installed_are_named(source, pipe):
  program = (
    'import sys; from coltran_jax import cli; sys.modules["safetensors"] = None;'
    'print(cli.main(sys.argv[1:3]), cli.main(sys.argv[3:]))'
  )
  options = ('colorize', source, '--model', 'controlnet', '--weights', pipe)
  options += ('--controlnet', pipe / 'controlnet')
  ran = subprocess.run(
    [sys.executable, '-c', program, 'check-weights', pipe, *options],
    capture_output=True,
    text=True,
  )
  assert ran.stdout.split() == [str(command.EXIT_USAGE)] * 2
  said = 'needs the package safetensors: install coltran-jax[diffusion]'
  assert ran.stderr.count(said) == 2


def cut(folder):
  path = folder / 'unet' / TENSORS
  path.write_bytes(path.read_bytes()[:-1])
  return 'download it again'


def cut_text(folder):
  path = folder / 'text_encoder/model.safetensors'
  path.write_bytes(path.read_bytes()[:-1])
  return 'download it again'


def misshape(folder):
  path = folder / 'vae' / TENSORS
  tensors = safetensors_numpy.load_file(path)
  tensors['quant_conv.bias'] = np.ones(7, np.float32)
  safetensors_numpy.save_file(tensors, path)
  return 'quant_conv.bias has shape (7,), expected (8,)'


def remove(folder):
  (folder / 'tokenizer/merges.txt').unlink()
  return 'merges.txt is missing'


def predict_velocity(folder):
  path = folder / 'scheduler/scheduler_config.json'
  config = json.loads(path.read_text()) | {'prediction_type': 'v_prediction'}
  path.write_text(json.dumps(config))
  return 'stable-diffusion-2-1-base in the place of'


def become_xl(folder):
  (folder / 'text_encoder_2').mkdir()
  return 'Stable Diffusion XL is not supported; use a folder of'


@pytest.mark.parametrize(
  'broken', [cut, cut_text, misshape, remove, predict_velocity, become_xl]
)
def test_broken_weights_are_named_and_nothing_is_written(
  broken, source, copy, capsys
):
  said = broken(copy)
  assert run(copy, source) == command.EXIT_WEIGHTS
  assert said in capsys.readouterr().err
  assert conftest.files(source.parent / 'photos') == ['a.png']
  assert not (source.parent / 'photos-colorized').exists()
  assert cli.main(['check-weights', str(copy)]) == command.EXIT_WEIGHTS
  assert said in capsys.readouterr().err


def test_check_weights_counts_tensors_and_memory(pipe, copy, capsys):
  assert cli.main(['check-weights', str(pipe)]) == 0
  said = capsys.readouterr().out
  for line in (
    'unet: 208 of 208 tensors match, 52,004 parameters',
    'vae: 176 of 176',
    'text_encoder: 52 of 52',
    'predicts noise (epsilon)',
    'memory of the weights',
  ):
    assert line in said
  assert cli.main(['check-weights', str(pipe / 'controlnet')]) == 0
  assert 'controlnet: 128 of 128 tensors match' in capsys.readouterr().out
  misshape(copy)
  assert cli.main(['check-weights', str(copy)]) == command.EXIT_WEIGHTS
  assert 'vae: 175 of 176 tensors match' in capsys.readouterr().out


def test_stable_diffusion_1_5_takes_5_7_gigabytes(fixtures, tmp_path):
  """With the real names, types and shapes, in files without their numbers."""
  text = (fixtures / 'diffusion/sd15_tensors.json').read_text('utf-8')
  for kind, published in json.loads(text).items():
    stem = 'model' if kind == 'text_encoder' else 'diffusion_pytorch_model'
    folder = tmp_path / kind
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(published['config']))
    end, header = 0, {}
    for name, shape in published['tensors'].items():
      size = 2 * int(np.prod(shape))
      header[name] = {
        'dtype': 'F16',
        'shape': shape,
        'data_offsets': [end, end + size],
      }
      end += size
    data = json.dumps(header).encode()
    with open(folder / f'{stem}.safetensors', 'wb') as file:
      file.write(len(data).to_bytes(8, 'little') + data)
      file.truncate(8 + len(data) + end)  # A hole: takes no disk.
  found = (
    parts.report(tmp_path).lines + parts.report(tmp_path / 'controlnet').lines
  )
  assert [line for line in found if 'tensors' in line or 'memory' in line] == [
    'unet: 686 of 686 tensors match, 859,520,964 parameters',
    'vae: 248 of 248 tensors match, 83,653,863 parameters',
    'text_encoder: 196 of 196 tensors match, 123,060,480 parameters',
    'memory of the weights: 4.26 GB, with --dtype bfloat16 2.55 GB',
    'controlnet: 340 of 340 tensors match, 361,279,120 parameters',
    'memory of the weights: 1.45 GB, with --dtype bfloat16 0.72 GB',
  ]


def test_a_run_that_fails_leaves_nothing_and_goes_on(
  source, copy, capsys, tmp_path
):
  path = copy / 'unet' / TENSORS
  tensors = safetensors_numpy.load_file(path)
  tensors['conv_out.bias'][:] = np.nan
  safetensors_numpy.save_file(tensors, path)
  out = tmp_path / 'out'
  assert run(copy, source, '-o', out) == command.EXIT_FAILED
  assert 'FloatingPointError' in capsys.readouterr().err
  assert not out.exists()
  assert batch.plan([str(source)], str(out), 1)[0].error is None
