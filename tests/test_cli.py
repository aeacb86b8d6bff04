"""The command: exit codes, messages, and photos from end to end."""

import errno
import json
import os
import pathlib
import pty
import re
import subprocess
import sys
import time
import types

import conftest
import jax
import numpy as np
from PIL import ExifTags, Image, ImageCms
import pytest
import skimage.data

import coltran_jax
from coltran_jax import (
  checkpoint,
  cli,
  command,
  convert,
  photo,
  pipeline,
  png_tiff,
)

pytestmark = pytest.mark.usefixtures('no_cache')
GRAY = skimage.data.coffee()[::4, ::4, 1].copy()  # 100x150
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


class Gray:
  """Stands in for `pipeline.Colorizer`."""

  def rule(self, **given):
    return given

  def __init__(self):
    self.calls = []

  def draw(self, read, **options):
    self.calls.append(options)
    gray = np.repeat(read.pixels[..., :1], 3, axis=-1)
    return [pipeline.Coloring(gray, 1.0)] * options['num_samples']


@pytest.fixture(scope='module')
def weights(weights):
  """As a command gets it."""
  return str(weights)


@pytest.fixture
def stand_in(monkeypatch):
  """A fast colorizer in place of any weights."""
  colorizer = Gray()
  monkeypatch.setattr(
    pipeline.Colorizer,
    'from_pretrained',
    lambda weights, **options: colorizer,
  )
  monkeypatch.setenv('COLTRAN_WEIGHTS', 'any')
  return colorizer


@pytest.fixture
def source(tmp_path):
  """A gray photo, alone in a folder."""
  path = tmp_path / 'in' / 'a.png'
  path.parent.mkdir()
  Image.fromarray(GRAY).save(path)
  return path


def run(*arguments):
  """The exit code of the command, argparse's included."""
  try:
    return cli.main([str(argument) for argument in arguments])
  except SystemExit as stop:
    return stop.code


def test_the_command_alone_prints_help_and_fails(capsys):
  assert run() == 2
  out, err = capsys.readouterr()
  assert out == ''
  assert 'colorize' in err
  assert 'convert' in err


def test_the_version_is_told(capsys):
  assert run('--version') == 0
  assert re.fullmatch(r'coltran \d+\.\d+.*\n', capsys.readouterr().out)


@pytest.mark.parametrize(
  'arguments',
  [
    *(['--help'], ['colorize', '--help'], ['convert', '--help']),
    *(['prepare', '--help'], ['--version']),
  ],
  ids=' '.join,
)
def test_help_is_fast_and_imports_nothing_large(arguments):
  script = (
    'import sys\n'
    'from coltran_jax import cli\n'
    'try:\n'
    '  code = cli.main(sys.argv[1:])\n'
    'except SystemExit as stop:\n'
    '  code = stop.code\n'
    "large = {'jax', 'flax', 'orbax', 'numpy', 'PIL', 'cv2', 'tqdm'}\n"
    'print(code, large & set(sys.modules), file=sys.stderr)\n'
  )
  start = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-c', script, *arguments], capture_output=True, text=True
  )
  assert time.monotonic() - start < 2
  assert done.stderr == '0 set()\n'
  assert 'coltran' in done.stdout


def test_the_module_is_the_command():
  done = subprocess.run(
    [sys.executable, '-m', 'coltran_jax.cli', 'colorize'],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert 'PHOTO' in done.stderr


@pytest.mark.parametrize(
  'arguments',
  [
    [],
    ['{photo}', '--nonsense'],
    ['{photo}', '-n', '0'],
    ['{photo}', '-n', 'many'],
    ['{photo}', '--seed', '-1'],
    ['{photo}', '--seed', '4294967296'],
    ['{photo}', '--temperature', '-1'],
    ['{photo}', '--temperature', 'nan'],
    ['{photo}', '--temperature', 'inf'],
    ['{photo}', '--temperature', 'hot'],
    ['{photo}', '--temperature', '2e6'],
    ['{photo}', '--mean-of', '65'],
    ['{photo}', '--mean-of', '1.5'],
    ['{photo}', '--vividness', '1', '--model', 'cnn'],
    ['{photo}', '--sampler', 'reference', '--model', 'cnn'],
    ['{photo}', '--size', '512'],
    ['{photo}', '--sampler', 'best'],
    ['{photo}', '--chunk', '0'],
    ['{photo}', '--fast', '--size', '256'],
    ['{photo}', '--hint', '1,2,red'],
    ['{photo}', '--hint', '1,2,#ff0000', '--size', '256'],
    ['{photo}', '{photo}', '--hint', '1,2,#ff0000'],
    ['{photo}', '--hint', '1,2,#ff0000', '--model', 'cnn'],
    ['{photo}', '--hints', '{photo}'],
    ['{photo}', '--mask', '{photo}'],
    ['{photo}', '--mask', '{photo}', '--keep', '{photo}', '-o', 'a.jpg'],
    ['{photo}', '--mask', '{photo}', '--keep', 'a.png', '-o', 'a.png'],
    ['-', '--mask', '{photo}', '--keep', '{photo}'],
    ['{photo}', '--hints', 'a.png', '--before-after', 'a.png'],
    ['{photo}', '--mask', '{photo}', '--keep', '{folder}/missing.png'],
    ['{photo}', '--uncertainty', '-o', '-'],
    ['{photo}', '-n', '2', '-o', '{folder}/out.png'],
    ['{photo}', '-o', '{folder}/out.gif'],
    ['{photo}', '-o', '{photo}.txt'],
    ['{folder}/empty'],
    ['{folder}/no_pictures'],
    ['-', '-n', '2'],
  ],
  ids=' '.join,
)
def test_usage_errors_exit_2_and_write_nothing(
  arguments, source, tmp_path, stand_in, capsys
):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'no_pictures').mkdir()
  (tmp_path / 'no_pictures' / 'a.txt').write_text('')
  pathlib.Path(f'{source}.txt').write_text('mine')
  before = conftest.files(tmp_path)
  names = {'photo': source, 'folder': tmp_path}
  assert run('colorize', *(one.format(**names) for one in arguments)) == 2
  assert conftest.files(tmp_path) == before
  assert stand_in.calls == []
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.startswith('coltran')
  assert '_count' not in last


def test_missing_weights_exit_3_with_one_line(
  source, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(checkpoint, 'SHIPPED', tmp_path / 'none')
  empty = tmp_path / 'empty'
  empty.mkdir()
  for arguments in ([], ['--weights', tmp_path / 'no'], ['--weights', empty]):
    assert run('colorize', source, *arguments) == 3
    err = capsys.readouterr().err
    assert err.startswith('coltran: ')
    assert err.count('\n') == 1
    assert 'coltran convert' in err
  assert conftest.files(tmp_path) == ['in/a.png']


@pytest.mark.parametrize('model', ['coltran', 'cnn'])
def test_shipped_weights_are_the_default(
  model, source, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(checkpoint, 'SHIPPED', tmp_path)
  (tmp_path / f'{model}-sports').mkdir()
  (tmp_path / 'others').mkdir()
  assert run('colorize', source, '--model', model) == 3
  assert f'{tmp_path}/{model}-sports/c' in capsys.readouterr().err
  assert run('colorize', source, '--weights', 'unknown') == 3
  assert f'{model}-sports, in, others' in capsys.readouterr().err


def test_the_page_needs_its_extra_and_weights(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(checkpoint, 'SHIPPED', tmp_path)
  monkeypatch.delattr(coltran_jax, 'demo', raising=False)
  monkeypatch.setitem(sys.modules, 'coltran_jax.demo', None)
  assert run('demo') == 2
  assert 'coltran-jax[demo]' in capsys.readouterr().err
  page = types.ModuleType('coltran_jax.demo')
  monkeypatch.setitem(sys.modules, 'coltran_jax.demo', page)
  assert run('demo', '--port', '70000') == 2
  assert run('demo') == 3
  assert "'coltran-sports'" in capsys.readouterr().err


def test_weights_of_another_model_are_told_as_such(source, capsys):
  assert run('colorize', source, '--weights', 'cnn-sports') == 3
  assert (
    'holds cnn only; are they weights of another' in capsys.readouterr().err
  )


def test_the_environment_names_weights_of_coltran_only(
  source, tmp_path, monkeypatch
):
  monkeypatch.setenv('COLTRAN_WEIGHTS', 'nowhere')
  out = tmp_path / 'out.png'
  assert run('colorize', source, '--model', 'cnn', '-o', out) == 0
  assert out.exists()


def test_a_rule_that_the_weights_cannot_follow_is_told_before_the_first_photo(
  source, stand_in, monkeypatch, capsys
):
  def rule(**given):
    assert given == {'encoder_weight': 1.0}
    raise ValueError('encoder_weight must be 0')

  monkeypatch.setattr(stand_in, 'rule', rule)
  assert run('colorize', source, '--encoder-weight', 1) == 2
  assert capsys.readouterr().err == 'coltran: encoder_weight must be 0\n'
  assert stand_in.calls == []


def test_the_environment_may_name_the_weights(source, monkeypatch, capsys):
  monkeypatch.setenv('COLTRAN_WEIGHTS', 'nowhere')
  assert run('colorize', source) == 3
  assert "'nowhere'" in capsys.readouterr().err


def test_damaged_weights_exit_3_with_one_line(
  fixtures, source, tmp_path, capsys
):
  folder = tmp_path / 'weights'
  convert.convert(fixtures / 'pipeline' / 'tf_checkpoints', folder)
  path = folder / 'colorizer' / 'config.json'
  config = json.loads(path.read_text())
  path.write_text(json.dumps(config | {'fingerprint': '0'}))
  assert run('colorize', source, '--weights', folder) == 3
  err = capsys.readouterr().err
  assert str(path) in err
  assert err.count('\n') == 1
  assert conftest.files(source.parent) == ['a.png']


def test_options_reach_the_colorizer(source, tmp_path, stand_in):
  assert run('colorize', source) == 0
  assert stand_in.calls.pop() == {
    'num_samples': 1,
    'seed': 0,
    'size': 'original',
    'sampler': 'exact',
    'fast': False,
    'guide': None,
    'uncertainty': False,
  }
  options = '-n 3 --seed 7 --temperature 0.5 --sampler reference --fast'
  out = tmp_path / 'out'
  assert run('colorize', source, '-o', out, *options.split()) == 0
  assert stand_in.calls.pop() == {
    'num_samples': 3,
    'seed': 7,
    'temperature': 0.5,
    'size': 'original',
    'sampler': 'reference',
    'fast': True,
    'guide': None,
    'uncertainty': False,
  }


def test_failures_are_listed_at_the_end_with_exit_1(
  source, tmp_path, stand_in, capsys
):
  (source.parent / '0.jpg').write_bytes(b'no picture')
  assert run('colorize', source.parent, tmp_path / 'gone.png') == 1
  lines = capsys.readouterr().err.splitlines()[-2:]
  assert lines[0].startswith(f'coltran: failed: {source.parent}/0.jpg: is brok')
  assert lines[1] == (
    f'coltran: failed: {tmp_path}/gone.png: No such file or directory'
  )
  assert conftest.files(tmp_path / 'in-colorized') == ['a.png']


def test_resume_and_recursive_are_understood(source, tmp_path, stand_in):
  deep = source.parent / 'x' / 'b.png'
  deep.parent.mkdir()
  deep.write_bytes(source.read_bytes())
  assert run('colorize', source.parent, '--resume') == 0
  assert run('colorize', source.parent, '--resume', '--recursive') == 0
  assert len(stand_in.calls) == 2
  assert conftest.files(tmp_path / 'in-colorized') == ['a.png', 'x/b.png']


def test_quiet_says_nothing(source, stand_in, caplog, capsys):
  assert run('colorize', source) == 0
  assert '-> ' in caplog.text
  assert '-> ' in capsys.readouterr().err
  caplog.clear()
  assert run('colorize', source, '-q') == 0
  assert caplog.text == ''
  assert capsys.readouterr().err == ''


def test_ctrl_c_exits_130_and_leaves_nothing(
  source, tmp_path, stand_in, monkeypatch, capsys
):
  def interrupt(descriptor):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, 'fsync', interrupt)
  assert run('colorize', source, '-o', tmp_path / 'out') == 130
  assert conftest.files(tmp_path) == ['in/a.png']
  assert 'Traceback' not in capsys.readouterr().err


def test_a_full_disk_exits_1_and_leaves_nothing(
  source, tmp_path, stand_in, monkeypatch, capsys
):
  def full(descriptor):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  assert run('colorize', source, '-o', tmp_path / 'out') == 1
  assert conftest.files(tmp_path) == ['in/a.png']
  assert 'No space left on device' in capsys.readouterr().err


def test_pictures_do_not_go_to_a_terminal(source):
  controller, terminal = pty.openpty()
  done = subprocess.run(
    [sys.executable, '-m', 'coltran_jax.cli', 'colorize', '-', '--weights=any'],
    input=source.read_bytes(),
    stdout=terminal,
    stderr=subprocess.PIPE,
  )
  os.close(terminal)
  os.close(controller)
  assert done.returncode == 2
  assert b'give -o FILE' in done.stderr


def test_convert_makes_weights_once(fixtures, tmp_path, capsys, caplog):
  checkpoints = fixtures / 'pipeline' / 'tf_checkpoints'
  assert run('convert', checkpoints, tmp_path / 'w') == 0
  assert 'color_upsampler, colorizer, spatial_upsampler' in caplog.text
  before = conftest.files(tmp_path)
  assert run('convert', checkpoints, tmp_path / 'w') == 3
  assert run('convert', tmp_path / 'nowhere', tmp_path / 'v') == 3
  assert conftest.files(tmp_path) == before
  assert capsys.readouterr().err.count('\n') == 2


@pytest.mark.slow
@pytest.mark.parametrize('name', ['chelsea_gray', 'coffee_color'])
def test_the_command_repeats_the_published_pictures(
  name, fixtures, weights, tmp_path
):
  folder = fixtures / 'pipeline'
  out = tmp_path / 'out.png'
  source = folder / 'photos' / f'{name}.png'
  options = ['--size=256', '--sampler=reference', '--temperature=0']
  assert run('colorize', source, '-o', out, '--weights', weights, *options) == 0
  np.testing.assert_array_equal(
    np.asarray(Image.open(out)),
    np.asarray(Image.open(folder / 'expected' / f'{name}.final.png')),
  )


def test_four_samples_differ_and_at_temperature_0_do_not(
  source, weights, tmp_path
):
  arguments = ['colorize', source, '-n', 4, '--fast', '--weights', weights]
  assert run(*arguments, '-o', tmp_path / 'warm') == 0
  assert run(*arguments, '-o', tmp_path / 'cold', '--temperature', 0) == 0
  names = [f'a-{i}.png' for i in range(1, 5)]
  for folder, count in (('warm', 4), ('cold', 1)):
    assert conftest.files(tmp_path / folder) == [*names, 'a-sheet.png']
    results = {(tmp_path / folder / name).read_bytes() for name in names}
    assert len(results) == count
  sheet = Image.open(tmp_path / 'warm' / 'a-sheet.png')
  assert sheet.width > 5 * GRAY.shape[1]


def test_depth_and_transparency_survive(weights, tmp_path):
  deep = GRAY.astype(np.uint16) * 256 + GRAY[::-1]
  alpha = np.arange(GRAY.size, dtype=np.uint16).reshape(GRAY.shape)
  pixels = np.dstack([deep, deep, deep, alpha])
  path = tmp_path / 'a.png'
  path.write_bytes(png_tiff.write_png(pixels, None, SRGB))
  assert run('colorize', path, '--fast', '--weights', weights) == 0
  result = photo.read(tmp_path / 'a-colorized.png')
  assert result.pixels.dtype == np.uint16
  assert len(np.unique(result.pixels)) > 1000
  assert (result.pixels[..., 0] != result.pixels[..., 2]).any()
  np.testing.assert_array_equal(result.alpha, alpha)
  assert result.icc_profile == SRGB


def test_exif_and_profile_survive(weights, tmp_path):
  exif = Image.Exif()
  exif[ExifTags.Base.Artist] = 'A. Photographer'
  exif[ExifTags.Base.Orientation] = 6
  path = tmp_path / 'a.jpg'
  Image.fromarray(np.dstack([GRAY] * 3)).save(path, exif=exif, icc_profile=SRGB)
  assert run('colorize', path, '--fast', '--weights', weights) == 0
  result = Image.open(tmp_path / 'a-colorized.jpg')
  assert result.format == 'JPEG'
  assert result.size == GRAY.shape
  assert result.getexif()[ExifTags.Base.Artist] == 'A. Photographer'
  assert result.getexif().get(ExifTags.Base.Orientation, 1) == 1
  assert result.info['icc_profile'] == SRGB


COUNTING = """
import collections, json, sys
import jax
from coltran_jax import cli

events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
code = cli.main(sys.argv[2:])
prefix = '/jax/compilation_cache/cache_'
with open(sys.argv[1], 'w') as file:
  json.dump([events[prefix + 'misses'], events[prefix + 'hits']], file)
sys.exit(code)
"""


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_gives_the_same_bytes(
  source, weights, tmp_path
):
  environment = dict(os.environ, XDG_CACHE_HOME=str(tmp_path / 'cache'))
  for variable in ('JAX_COMPILATION_CACHE_DIR', 'XLA_FLAGS'):
    environment.pop(variable, None)

  def start(*arguments, **options):
    count = tmp_path / 'count.json'
    options |= {'env': environment, 'capture_output': True, 'check': True}
    command = [sys.executable, '-c', COUNTING, count, 'colorize', '--fast']
    done = subprocess.run(
      [*command, '--weights', weights, *arguments], **options
    )
    return (*json.loads(count.read_text()), done)

  misses, hits, done = start('-', input=source.read_bytes())
  assert misses > 2  # The sampler, the upsampler and small ones.
  assert hits == 0
  assert done.stderr == b''
  out = tmp_path / 'out.png'
  again, hits, other = start(source, '-o', out)
  assert again == 0
  assert hits == misses
  assert other.stdout == b''
  assert other.stderr.decode() == f'{source} -> {out}\n'
  assert done.stdout == out.read_bytes()


@pytest.mark.slow
def test_two_processes_share_a_folder_though_one_is_killed_and_goes_on(
  tmp_path, weights
):
  for i in range(10):
    path = tmp_path / 'in' / f'{i}.png'
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.roll(GRAY, 10 * i, axis=1)).save(path)
  command = (
    *(sys.executable, '-m', 'coltran_jax.cli', 'colorize', 'in'),
    *('--weights', weights, '--fast', '--resume', '-o'),
  )
  environment = os.environ | {
    'PYTHONPATH': str(pathlib.Path(__file__).parent.parent),
    'XLA_FLAGS': '',
    'JAX_COMPILATION_CACHE_DIR': os.environ['COLTRAN_TEST_PROGRAMS'],
  }

  def start(folder, *options):
    return subprocess.Popen(
      [*command, folder, *options],
      cwd=tmp_path,  # A name decides whose a photo is: no two runs differ.
      env=environment,
      stderr=subprocess.PIPE,
      text=True,
    )

  def colored(text):
    return re.findall(r'in/(\d).png -> ', text)

  def share(i):
    return start('two', '--num-processes', '2', '--process-id', str(i))

  killed, other = share(0), share(1)
  first = killed.stderr.readline()
  killed.kill()
  again = share(0)
  said = [p.communicate(timeout=240)[1] for p in (killed, other, again)]
  assert (other.returncode, again.returncode) == (0, 0), said
  assert len(colored(first)) == 1
  assert colored(said[1])
  made = colored(''.join([first, *said]))
  assert len(made) == len(set(made))
  assert len(made) >= 9  # A kill may come between a photo's file and its line.
  alone = start('one')
  _, errors = alone.communicate(timeout=240)
  assert alone.returncode == 0, errors
  one, two = (
    {path.name: path.read_bytes() for path in (tmp_path / name).glob('[!.]*')}
    for name in ('one', 'two')
  )
  assert len(one) == 10
  assert two == one


def test_processes_that_jax_knows_of_share_unasked(
  source, stand_in, monkeypatch
):
  monkeypatch.chdir(source.parent.parent)
  for i in range(5):
    (source.parent / f'{i}.png').write_bytes(source.read_bytes())
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  done = []
  for i in range(2):
    monkeypatch.setattr(jax, 'process_index', lambda i=i: i)
    assert run('colorize', 'in') == 0
    done.append(len(stand_in.calls))
  assert 0 < done[0] < done[1] == 6
  assert len(conftest.files(pathlib.Path('in-colorized'))) == 6


def test_a_share_needs_a_process_of_how_many(source, stand_in, capsys):
  for options, message in (
    (('--process-id', 1), 'go together'),
    (('--num-processes', 1, '--process-id', 1), 'must be less'),
    (
      ('--num-processes', 2, '--process-id', 1, '--before-after', 'b.png'),
      'needs all photos',
    ),
  ):
    assert run('colorize', source, *options) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def cache_folder():
  """The folder that jax would keep programs in; all is reset afterwards."""
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  yield lambda: jax.config.jax_compilation_cache_dir
  for name, value in before.items():
    jax.config.update(name, value)


def test_a_cache_folder_that_cannot_be_made_is_done_without(
  cache_folder, monkeypatch, tmp_path
):
  monkeypatch.undo()  # Brings `keep_programs` back.
  jax.config.update('jax_compilation_cache_dir', None)
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  command.keep_programs(jax)
  assert cache_folder() is None
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'fine'))
  command.keep_programs(jax)
  assert cache_folder() == str(tmp_path / 'fine' / 'coltran_jax')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'other'))
  command.keep_programs(jax)
  assert cache_folder() == str(tmp_path / 'fine' / 'coltran_jax')


@pytest.mark.parametrize(
  ('error', 'code'),
  [
    (RuntimeError('Failed to recognize coordinator address a'), 75),
    (ValueError('process_id must be nonnegative'), 2),
  ],
)
def test_peers_that_are_late_are_no_wrong_usage(
  error, code, monkeypatch, capsys
):
  from coltran_jax import distributed

  def initialize(*processes):
    raise error

  monkeypatch.setattr(distributed, 'initialize', initialize)
  configs = pathlib.Path(__file__).parent.parent / 'configs'
  train = ['train', '--config', f'{configs}/colorizer.py:debug']
  assert cli.main([*train, '--workdir', 'x', '--data_dir', 'y']) == code
  assert f'cannot join the other processes: {error}' in capsys.readouterr().err


@pytest.mark.parametrize(
  'reason, code, message',
  [
    ('UNAVAILABLE: Connection reset by peer', 75, 'another process is gone'),
    ('RESOURCE_EXHAUSTED: Ran out of memory', 1, 'has too little memory'),
  ],
)
def test_a_process_that_lost_the_others_asks_to_be_started_again(
  reason, code, message, monkeypatch, capsys
):
  from coltran_jax import distributed, train

  def train_and_evaluate(*args, **options):
    raise jax.errors.JaxRuntimeError(reason)

  left = []
  monkeypatch.setattr(distributed, 'initialize', lambda *processes: None)
  monkeypatch.setattr(distributed, 'catch_signals', lambda: None)
  monkeypatch.setattr(distributed, 'leave', left.append)
  monkeypatch.setattr(train, 'train_and_evaluate', train_and_evaluate)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  configs = pathlib.Path(__file__).parent.parent / 'configs'
  arguments = ['train', '--config', f'{configs}/colorizer.py:debug']
  assert cli.main([*arguments, '--workdir', 'x', '--data_dir', 'y']) == code
  assert left == [code]
  assert message in capsys.readouterr().err
