"""Many photos: where results go, and that none is lost or overwritten."""

import errno
import logging
import os
import pathlib
import pty
import subprocess
import sys
import termios
import textwrap

import conftest
import numpy as np
from PIL import Image
import pytest

from coltran_jax import batch, image, photo, pipeline

RAMP = np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))
OPTIONS = {'num_samples': 1, 'size': 'original'}


class Tinted:
  """Stands in for `pipeline.Colorizer`: sample i has 10 (i + 1) more red.

  And is the more likely the higher i.
  """

  def __init__(self, fail=None):
    self.fail = fail or {}  # Photo number -> what to raise.
    self.photos = 0

  def draw(self, read, num_samples, size):
    self.photos += 1
    if self.photos in self.fail:
      raise self.fail[self.photos]
    pixels = np.repeat(read.pixels[..., :1], 3, axis=-1) // 2
    return [
      pipeline.Coloring(pixels + np.uint8([10 * (i + 1), 0, 0]), 5.0 - i)
      for i in range(num_samples)
    ]


def save(path, array=RAMP, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path, **options)
  return path


def contents(folder):
  return {name: (folder / name).read_bytes() for name in conftest.files(folder)}


def colorize(sources, output=None, num_samples=1, colorizer=None, **options):
  """Plans and runs, as the command does; returns what failed."""
  resume = options.pop('resume', False)
  jobs = batch.plan(
    [str(source) for source in sources],
    output and str(output),
    num_samples,
    **options,
  )
  return batch.run(
    colorizer or Tinted(),
    jobs,
    OPTIONS | {'num_samples': num_samples},
    resume=resume,
  )


@pytest.fixture(autouse=True)
def log(caplog):
  with caplog.at_level(logging.INFO, 'coltran'):
    yield caplog


def test_a_result_goes_beside_its_photo_by_default(tmp_path):
  save(tmp_path / 'a.jpg')
  assert colorize([tmp_path / 'a.jpg']) == []
  assert conftest.files(tmp_path) == ['a-colorized.jpg', 'a.jpg']


def test_a_folder_goes_to_one_beside_it_by_default(tmp_path):
  save(tmp_path / 'old' / 'b.png')
  save(tmp_path / 'old' / 'a.jpg')
  assert colorize([tmp_path / 'old']) == []
  assert conftest.files(tmp_path / 'old-colorized') == ['a.jpg', 'b.png']
  assert conftest.files(tmp_path / 'old') == ['a.jpg', 'b.png']


@pytest.mark.parametrize('folder', ['.', '../old', 'sub/..'])
def test_a_folder_by_a_relative_name_goes_beside_it_too(
  folder, tmp_path, monkeypatch
):
  save(tmp_path / 'old' / 'a.jpg')
  (tmp_path / 'old' / 'sub').mkdir()
  monkeypatch.chdir(tmp_path / 'old')
  assert colorize([folder]) == []
  assert conftest.files(tmp_path) == ['old-colorized/a.jpg', 'old/a.jpg']


def test_an_output_folder_takes_results_under_their_own_names(tmp_path):
  one = save(tmp_path / 'x' / 'a.jpg')
  two = save(tmp_path / 'y' / 'b.tif')
  assert colorize([one, two], tmp_path / 'new' / 'out') == []
  assert conftest.files(tmp_path / 'new') == ['out/a.jpg', 'out/b.tif']


@pytest.mark.parametrize(
  ('suffix', 'format'),
  [
    ('.jpg', 'JPEG'),
    ('.JPG', 'JPEG'),
    ('.jfif', 'JPEG'),
    ('.png', 'PNG'),
    ('.webp', 'WEBP'),
    ('.tif', 'TIFF'),
    ('.tiff', 'TIFF'),
    ('.bmp', 'BMP'),
    ('.dib', 'BMP'),
  ],
)
def test_the_extension_of_an_output_file_decides_its_format(
  suffix, format, tmp_path
):
  source = save(tmp_path / 'a.png')
  assert colorize([source], tmp_path / f'out{suffix}') == []
  assert photo.read(tmp_path / f'out{suffix}').format == format


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.tif'])
def test_a_result_holds_what_its_name_says_even_if_the_photo_does_not(
  suffix, tmp_path
):
  source = save(tmp_path / f'a{suffix}', format='BMP')
  assert colorize([source]) == []
  honest = save(tmp_path / f'honest{suffix}')
  result = photo.read(tmp_path / f'a-colorized{suffix}')
  assert result.format == photo.read(honest).format


def test_a_photo_without_extension_keeps_its_own_format(tmp_path):
  save(tmp_path / 'scan', format='TIFF')
  assert colorize([tmp_path / 'scan']) == []
  assert photo.read(tmp_path / 'scan-colorized').format == 'TIFF'


def test_a_bmp_beside_a_png_of_the_same_stem_gets_its_own_result(tmp_path):
  save(tmp_path / 'in' / 'a.bmp', RAMP // 2)
  save(tmp_path / 'in' / 'a.png')
  assert colorize([tmp_path / 'in']) == []
  out = tmp_path / 'in-colorized'
  assert conftest.files(out) == ['a.bmp.png', 'a.png']
  assert (out / 'a.bmp.png').read_bytes() != (out / 'a.png').read_bytes()


def test_samples_are_numbered_and_a_sheet_shows_the_most_likely_first(
  tmp_path, log
):
  source = save(tmp_path / 'a.png')
  assert colorize([source], tmp_path / 'out', num_samples=4) == []
  out = tmp_path / 'out'
  names = ['a-1.png', 'a-2.png', 'a-3.png', 'a-4.png', 'a-sheet.png']
  assert conftest.files(out) == names
  assert len(set(contents(out).values())) == 5
  pictures = [source, *(out / name for name in names[-2::-1])]
  expected = image.contact_sheet(
    [np.asarray(Image.open(path).convert('RGB')) for path in pictures],
    columns=5,
    labels=['photo', *(f'{i}: {6 - i}.000 bits/dim' for i in (4, 3, 2, 1))],
  )
  np.testing.assert_array_equal(
    np.asarray(Image.open(out / 'a-sheet.png')), expected
  )
  assert 'first: 2.000 (4), 3.000 (3), 4.000 (2), 5.000 (1)' in log.text


def test_numbers_sort_as_text(tmp_path):
  jobs = batch.plan([str(tmp_path / 'a.png')], None, 10)
  names = [path.name for path in jobs[0].outputs]
  assert names == sorted(names)
  assert len(set(names)) == 10


def test_photos_of_the_same_stem_get_sheets_of_their_own(tmp_path):
  save(tmp_path / 'in' / 'a.jpg')
  save(tmp_path / 'in' / 'a.png')
  assert colorize([tmp_path / 'in'], num_samples=2) == []
  assert conftest.files(tmp_path / 'in-colorized') == [
    *('a-1.jpg', 'a-1.png', 'a-2.jpg', 'a-2.png'),
    *('a-sheet.png', 'a.png-sheet.png'),
  ]


def test_deep_sheets_and_single_rows_of_pixels_work(tmp_path):
  deep = save(tmp_path / 'deep.png', RAMP.astype(np.uint16) * 257)
  thin = save(tmp_path / 'thin.png', RAMP[:1])
  assert colorize([deep, thin], tmp_path / 'out', num_samples=2) == []
  assert photo.read(tmp_path / 'out' / 'deep-1.png').pixels.dtype == np.uint16


def test_recursive_keeps_the_structure_and_ignores_hidden_files(tmp_path, log):
  folder = tmp_path / 'in'
  for name in ('c.png', 'x/b.png', 'x/y/a.png'):
    save(folder / name)
  for name in ('.d.png', '.z/e.png', 'x/._b.png'):
    save(folder / name)
  (folder / 'notes.txt').write_text('no picture')
  assert colorize([folder], recursive=True) == []
  out = tmp_path / 'in-colorized'
  assert conftest.files(out) == ['c.png', 'x/b.png', 'x/y/a.png']
  assert '3 other files left alone' in log.text
  assert colorize([folder], tmp_path / 'flat') == []
  assert conftest.files(tmp_path / 'flat') == ['c.png']


def test_recursive_does_not_take_earlier_results_for_photos(tmp_path):
  save(tmp_path / 'a.png')
  out = tmp_path / 'results'
  for _ in range(2):
    assert colorize([tmp_path], out, recursive=True) == []
  assert conftest.files(out) == ['a.png']


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch, log):
  save(tmp_path / 'a.png')
  save(tmp_path / 'x' / 'b.png')
  scandir = os.scandir

  def refuse(path):
    if pathlib.Path(path).name == 'x':
      raise PermissionError(errno.EACCES, 'Permission denied', path)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  jobs = batch.plan([str(tmp_path)], None, 1, recursive=True)
  assert len(jobs) == 1
  assert f'{tmp_path / "x"}: left out: Permission denied' in log.text


@pytest.mark.parametrize('recursive', [False, True])
def test_a_folder_without_pictures_is_a_usage_error(recursive, tmp_path):
  (tmp_path / 'a.txt').write_text('')
  with pytest.raises(batch.UsageError, match='no pictures in'):
    batch.plan([str(tmp_path)], None, 1, recursive=recursive)


def test_one_output_file_for_many_results_is_a_usage_error(tmp_path):
  for sources, samples in ((['a.png', 'b.png'], 1), (['a.png'], 2)):
    for output in ('out.png', '-'):
      with pytest.raises(batch.UsageError, match='give -o FOLDER'):
        batch.plan(sources, output, samples)
  with pytest.raises(batch.UsageError, match='give -o FOLDER'):
    batch.plan(['-'], None, 2)


@pytest.mark.parametrize('sources', [['-', '-'], [''], ['a.png', '']])
def test_sources_that_cannot_be_meant_are_usage_errors(sources):
  with pytest.raises(batch.UsageError):
    batch.plan(sources, None, 1)


@pytest.mark.parametrize('name', ['out.gif', 'out.ico', 'out.SVG'])
def test_an_output_in_a_format_that_is_not_written_is_a_usage_error(name):
  with pytest.raises(batch.UsageError, match='cannot be written'):
    batch.plan(['a.png'], name, 1)


def test_an_output_folder_may_look_like_a_file(tmp_path):
  for output in (tmp_path / 'v1.2', f'{tmp_path}/made.png/'):
    assert colorize([save(tmp_path / 'a.png')], output) == []
  assert conftest.files(tmp_path) == ['a.png', 'made.png/a.png', 'v1.2/a.png']


def test_an_output_that_is_another_file_is_a_usage_error(tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  with pytest.raises(batch.UsageError, match='neither a folder'):
    batch.plan(['a.png'], str(tmp_path / 'notes.txt'), 1)


def test_an_input_is_never_overwritten(tmp_path):
  save(tmp_path / 'a.png')
  save(tmp_path / 'b.png')
  before = contents(tmp_path)
  for output in (tmp_path, f'{tmp_path}/x/..'):
    failed = colorize([tmp_path], output)
    assert [name for name, _ in failed] == [
      str(tmp_path / 'a.png'),
      str(tmp_path / 'b.png'),
    ]
    assert all('would overwrite an input' in reason for _, reason in failed)
  failed = colorize([tmp_path / 'a.png'], tmp_path / 'a.png')
  assert 'would overwrite an input' in failed[0][1]
  assert contents(tmp_path) == before


def test_an_input_is_not_overwritten_by_way_of_links(tmp_path):
  save(tmp_path / 'in' / 'a.png')
  (tmp_path / 'same').symlink_to(tmp_path / 'in')
  (tmp_path / 'link.png').symlink_to(tmp_path / 'in' / 'a.png')
  before = contents(tmp_path)
  for sources, output in (
    ([tmp_path / 'in'], 'same'),
    ([tmp_path / 'same'], 'in'),
    ([tmp_path / 'link.png'], 'in/a.png'),
    ([tmp_path / 'in' / 'a.png'], 'link.png'),
  ):
    failed = colorize(sources, tmp_path / output)
    assert 'would overwrite an input' in failed[0][1]
  assert contents(tmp_path) == before


@pytest.mark.parametrize('name', ['a-2.png', 'a-sheet.png'])
def test_samples_and_sheets_overwrite_no_input(name, tmp_path):
  save(tmp_path / 'a.png')
  save(tmp_path / name)
  before = contents(tmp_path)
  failed = colorize([tmp_path], tmp_path, num_samples=3)
  assert [one for one, _ in failed] == [str(tmp_path / 'a.png')]
  after = contents(tmp_path)
  assert {one: after[one] for one in before} == before


def test_two_photos_of_one_name_do_not_overwrite_each_other(tmp_path):
  one = save(tmp_path / 'x' / 'a.png')
  two = save(tmp_path / 'y' / 'a.png', RAMP // 2)
  failed = colorize([one, two], tmp_path / 'out')
  assert [name for name, _ in failed] == [str(two)]
  assert f'would overwrite that of {one}' in failed[0][1]
  colorize([one], tmp_path / 'alone')
  assert contents(tmp_path / 'out') == contents(tmp_path / 'alone')


def test_bad_photos_in_the_middle_are_listed_and_the_rest_is_done(tmp_path):
  folder = tmp_path / 'in'
  save(folder / 'a.png')
  (folder / 'b.jpg').write_bytes(b'no picture at all')
  data = save(tmp_path / 'whole.jpg').read_bytes()
  (folder / 'c.jpg').write_bytes(data[: len(data) // 2])
  (folder / 'd.png').write_bytes(b'')
  (folder / 'e.png').symlink_to(tmp_path / 'nowhere')
  save(folder / 'f.png')
  failed = colorize([folder, tmp_path / 'missing.png'], tmp_path / 'out')
  assert [pathlib.Path(name).name for name, _ in failed] == [
    *('b.jpg', 'c.jpg', 'd.png', 'e.png', 'missing.png')
  ]
  for name, reason in failed:
    assert reason
    assert name not in reason
    assert '\n' not in reason
  assert conftest.files(tmp_path / 'out') == ['a.png', 'f.png']


def test_whatever_goes_wrong_with_one_photo_the_others_are_done(tmp_path, log):
  for name in 'abcde':
    save(tmp_path / 'in' / f'{name}.png')
  colorizer = Tinted(
    {2: MemoryError(), 3: RuntimeError('device lost'), 4: ValueError('odd')}
  )
  failed = colorize([tmp_path / 'in'], tmp_path / 'out', colorizer=colorizer)
  assert [pathlib.Path(name).stem for name, _ in failed] == ['b', 'c', 'd']
  assert 'not enough memory' in failed[0][1]
  assert 'RuntimeError' in failed[1][1]
  assert 'device lost' in log.text
  assert conftest.files(tmp_path / 'out') == ['a.png', 'e.png']


def test_an_output_below_a_file_fails_and_leaves_nothing(tmp_path):
  source = save(tmp_path / 'a.png')
  (tmp_path / 'file').write_text('mine')
  before = contents(tmp_path)
  failed = colorize([source], tmp_path / 'file' / 'out')
  assert [name for name, _ in failed] == [str(source)]
  assert str(tmp_path / 'file') in failed[0][1]
  assert contents(tmp_path) == before


def test_a_full_disk_fails_the_photo_and_leaves_nothing(tmp_path, monkeypatch):
  save(tmp_path / 'in' / 'a.png')
  save(tmp_path / 'in' / 'b.png')
  written = []

  def full(descriptor):
    written.append(descriptor)
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  failed = colorize([tmp_path / 'in'], tmp_path / 'out', num_samples=2)
  assert len(failed) == len(written) == 2
  assert all('No space left' in reason for _, reason in failed)
  assert conftest.files(tmp_path / 'out') == []


def test_a_failed_write_leaves_an_older_result_whole(tmp_path, monkeypatch):
  source = save(tmp_path / 'a.png')
  colorize([source], tmp_path / 'out.png')
  before = contents(tmp_path)

  def full(descriptor):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  assert len(colorize([source], tmp_path / 'out.png')) == 1
  assert contents(tmp_path) == before


def test_ctrl_c_leaves_whole_files_only(tmp_path, monkeypatch):
  save(tmp_path / 'in' / 'a.png')
  save(tmp_path / 'in' / 'b.png')
  fsync, calls = os.fsync, []

  def interrupt(descriptor):
    calls.append(descriptor)
    if len(calls) > 1:
      raise KeyboardInterrupt
    fsync(descriptor)

  monkeypatch.setattr(os, 'fsync', interrupt)
  with pytest.raises(KeyboardInterrupt):
    colorize([tmp_path / 'in'], tmp_path / 'out')
  assert conftest.files(tmp_path / 'out') == ['a.png']
  assert photo.read(tmp_path / 'out' / 'a.png').pixels.shape == (40, 60, 3)


def test_resume_leaves_out_what_is_done_and_completes_the_rest(tmp_path, log):
  for name in 'abc':
    save(tmp_path / 'in' / f'{name}.png')
  out = tmp_path / 'out'
  colorize([tmp_path / 'in'], out, num_samples=2)
  whole = contents(out)
  (out / 'b-2.png').unlink()
  (out / 'c-sheet.png').unlink()
  colorizer = Tinted()
  failed = colorize(
    [tmp_path / 'in'], out, num_samples=2, colorizer=colorizer, resume=True
  )
  assert failed == []
  assert colorizer.photos == 2
  assert contents(out) == whole
  assert '1 of 3 were done already' in log.text


def test_resume_does_not_take_an_input_for_a_result(tmp_path):
  save(tmp_path / 'a.png')
  (failed,) = colorize([tmp_path], tmp_path, resume=True)
  assert 'would overwrite an input' in failed[1]


def test_color_and_sepia_photos_are_told_and_gray_ones_are_not(tmp_path, log):
  color = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
  color = np.asarray(Image.fromarray(color).resize((90, 90)))
  sepia = (RAMP[..., None] * np.array([1, 0.85, 0.65])).astype(np.uint8)
  colorize([save(tmp_path / 'color.png', color)])
  assert 'color.png: has color; it is turned gray first' in log.text
  log.clear()
  colorize([save(tmp_path / 'sepia.png', sepia)])
  assert 'sepia.png: toned; taken as gray' in log.text
  log.clear()
  colorize([save(tmp_path / 'gray.png')])
  assert 'toned' not in log.text
  assert 'has color' not in log.text


def test_what_a_format_cannot_hold_is_told(tmp_path, log):
  alpha = np.dstack([RAMP, RAMP])
  source = save(tmp_path / 'a.png', alpha)
  assert colorize([source], tmp_path / 'out.jpg') == []
  assert 'JPEG holds no transparency' in log.text
  log.clear()
  assert colorize([source], tmp_path / 'out.png') == []
  assert 'transparency' not in log.text
  np.testing.assert_array_equal(photo.read(tmp_path / 'out.png').alpha, RAMP)


def test_a_name_that_is_no_text_works(tmp_path, caplog):
  # What a test logs is sent between pytest's processes as text.
  caplog.set_level(logging.WARNING, 'coltran')
  name = os.fsdecode(b'\xff.png')
  save(tmp_path / 'in' / name)
  assert colorize([tmp_path / 'in']) == []
  assert conftest.files(tmp_path / 'in-colorized') == [name]


SCRIPT = """
  import logging, sys
  import numpy as np
  from coltran_jax import batch

  class Coloring:
    def __init__(self, pixels):
      self.pixels = pixels

  class Gray:
    def draw(self, read, **options):
      return [Coloring(np.repeat(read.pixels[..., :1], 3, axis=-1))]

  logging.basicConfig(level=logging.WARNING, format='%(message)s')
  logging.getLogger('coltran').setLevel(logging.INFO)
  jobs = batch.plan(sys.argv[2:], sys.argv[1] or None, 1)
  failed = batch.run(Gray(), jobs, {'size': 'original'})
  print(*failed, sep='\\n', file=sys.stderr)
  print('jax' in sys.modules, 'orbax' in sys.modules, file=sys.stderr)
"""


def start(*arguments, **options):
  """Runs the script above in a process of its own."""
  command = [sys.executable, '-c', textwrap.dedent(SCRIPT), *arguments]
  options = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE} | options
  return subprocess.run(command, check=True, timeout=60, **options)


def test_stdin_goes_to_stdout_as_bytes_and_messages_to_stderr(tmp_path):
  source = save(tmp_path / 'a.webp')
  done = start('', '-', input=source.read_bytes())
  read = photo.read(source)
  gray = np.repeat(read.pixels[..., :1], 3, axis=-1)
  assert done.stdout == photo.encode(gray, read, 'WEBP')
  done = start('', '-', input=b'no picture')
  assert done.stdout == b''
  assert b"('stdin', 'is broken, or not a JPEG" in done.stderr


def test_a_batch_of_photos_imports_no_jax(tmp_path):
  done = start('', str(save(tmp_path / 'a.png')))
  assert done.stderr.endswith(b'False False\n')
  assert conftest.files(tmp_path) == ['a-colorized.png', 'a.png']


def test_a_photo_goes_to_stdout_when_asked(tmp_path):
  source = save(tmp_path / 'a.tif')
  done = start('-', str(source))
  assert photo.read(done.stdout).format == 'TIFF'
  assert conftest.files(tmp_path) == ['a.tif']


def test_stdin_goes_to_a_folder_as_png(tmp_path):
  source = save(tmp_path / 'a.jpg')
  start(str(tmp_path / 'out'), '-', input=source.read_bytes())
  assert photo.read(tmp_path / 'out' / 'stdin.png').format == 'PNG'


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_a_full_stdout_is_told_in_one_line(tmp_path):
  source = save(tmp_path / 'a.png')
  with open('/dev/full', 'wb') as full:
    done = start('-', str(source), stdout=full)
  assert b"'stdout: No space left on device')" in done.stderr
  assert b'Traceback' not in done.stderr


def test_a_closed_stdout_is_told_in_one_line(tmp_path):
  source = save(tmp_path / 'a.png')
  read_end, write_end = os.pipe()
  os.close(read_end)
  done = start('-', str(source), stdout=write_end)
  os.close(write_end)
  assert b"'stdout: Broken pipe')" in done.stderr
  assert b'Traceback' not in done.stderr


def test_a_terminal_gets_a_progress_bar_and_a_pipe_does_not(tmp_path):
  sources = [str(save(tmp_path / f'{name}.png')) for name in 'ab']
  assert b'\r' not in start('', *sources).stderr
  controller, terminal = pty.openpty()
  termios.tcsetwinsize(terminal, (24, 80))
  start('', *sources, stderr=terminal)
  os.close(terminal)
  shown = b''
  try:
    while piece := os.read(controller, 1 << 16):
      shown += piece
  except OSError:  # What Linux says at the end of a terminal.
    pass
  os.close(controller)
  assert b'2/2' in shown
  assert b'a-colorized.png\r\n' in shown


@pytest.mark.slow
def test_a_photo_of_a_hundred_megapixels_works(tmp_path):
  big = np.tile(RAMP, (210, 200))
  source = save(tmp_path / 'big.jpg', big)
  assert colorize([source], tmp_path / 'out.jpg') == []
  assert photo.read(tmp_path / 'out.jpg').pixels.shape == (8400, 12000, 3)


def test_one_picture_shows_all_photos_before_and_after(tmp_path):
  colors = ((200, 30, 30), (30, 30, 200))
  for i, color in enumerate(colors):
    pixels = np.full((20 + i, 30, 3), 128, np.uint8)
    photo.write(
      tmp_path / f'{i}.png', photo.encode(pixels, photo.read(pixels), 'PNG')
    )
    colored = np.full_like(pixels, color)
    out = tmp_path / f'out{i}.png'
    photo.write(out, photo.encode(colored, photo.read(colored), 'PNG'))
  jobs = [
    batch.Job(str(tmp_path / f'{i}.png'), (tmp_path / f'out{i}.png',))
    for i in range(2)
  ]
  jobs.append(batch.Job('never done', (tmp_path / 'missing.png',)))
  jobs.append(batch.Job('failed', (tmp_path / 'out0.png',)))
  failed = [('failed', 'a reason')]
  batch.before_after(jobs, failed, tmp_path / 'new' / 'all.png')
  sheet = photo.read(tmp_path / 'new' / 'all.png').pixels
  for color in ((128,) * 3, *colors):
    assert (sheet == np.array(color)).all(axis=-1).sum() >= 20 * 30
  for place in (tmp_path / '0.png', tmp_path / 'out1.png', tmp_path / 'x.txt'):
    with pytest.raises(batch.UsageError, match=place.name):
      batch.check_before_after(jobs, place)


def test_each_photo_is_one_process_s_whatever_comes_to_the_folder(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)  # A name decides: no two runs differ.
  owners = []
  for count in (40, 60):
    for i in range(count):
      pathlib.Path(f'{i:02}.png').touch()
    jobs = batch.plan(['.'], None, 1)
    shares = [batch.share(jobs, i, 3) for i in range(3)]
    owners.append({job: i for i, share in enumerate(shares) for job in share})
    assert sum(map(len, shares)) == len(owners[-1]) == len(jobs) == count
    assert min(map(len, shares)) > count / 3 / 2
  assert owners[0].items() <= owners[1].items()


def test_an_empty_folder_among_photos_is_listed_and_the_others_are_done(
  tmp_path,
):
  (tmp_path / 'empty').mkdir()
  sources = [str(tmp_path / 'empty'), str(tmp_path / 'a.png')]
  empty, job = batch.plan(sources, None, 1)
  assert 'no pictures' in empty.error
  assert job.error is None
  assert batch.run(None, [empty], {}) == [(sources[0], empty.error)]
