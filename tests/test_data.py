"""Data sets: what prepare keeps, skips and refuses, and opening them again."""

import errno
import hashlib
import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import cv2
import data_sets
import numpy as np
from PIL import Image
import pytest

from coltran_jax import cli, photo

# Decoding and conversion as such, without the processes.
from coltran_jax.data import checking, decoding, listing, preparing, sources

RGB, GRAY = data_sets.picture(0), data_sets.picture(1, channels=1)


@pytest.fixture
def in_this_process(monkeypatch):
  """Checks pictures here: processes take a second to start."""
  monkeypatch.setattr(
    checking,
    '_checks',
    lambda paths, folder, workers: (checking._check(p, folder) for p in paths),
  )


def prepare(folder, name='folder'):
  return preparing.prepare(name, folder / 'in', folder / 'out', workers=2)


def opened(folder, split, name='folder'):
  split = sources.open_split(name, folder / 'out', split)
  return {
    one['id']: one['image'] for one in (split[i] for i in range(len(split)))
  }


def everything(folder):
  """{id: bytes} of all splits of the prepared folder."""
  there = [
    path.name for path in (folder / 'out' / 'folder' / '1.0.0').iterdir()
  ]
  splits = [
    s for s in listing.SPLITS if any(f'-{s}.' in name for name in there)
  ]
  return {k: v for s in splits for k, v in opened(folder, s).items()}


def test_pictures_come_back_as_they_were_with_their_paths(tmp_path):
  files = {
    'train/dogs/a.jpg': data_sets.encode(RGB, 'JPEG'),
    'train/b.PNG': data_sets.encode(GRAY),
    'valid/dogs/ü c.jpeg': data_sets.encode(GRAY, 'JPEG', progressive=True),
  }
  for name, data in files.items():
    data_sets.save(tmp_path / 'in' / name, data)
  data_sets.save(tmp_path / 'in' / 'notes.txt', b'')
  report = prepare(tmp_path)
  assert report == preparing.Report({'train': 2, 'valid': 1}, {})
  assert opened(tmp_path, 'train') | opened(tmp_path, 'valid') == files
  assert os.listdir(tmp_path / 'out') == ['folder']


def odd_files():
  turned = Image.Exif()
  turned[274] = 6
  rgb = Image.fromarray(RGB)
  cmyk, palette = io.BytesIO(), io.BytesIO()
  rgb.convert('CMYK').save(cmyk, 'JPEG')
  rgb.quantize(16).save(palette, 'PNG')
  deep = GRAY.astype(np.uint16) * 257
  yield 'turned.jpg', data_sets.encode(RGB, 'JPEG', exif=turned)
  yield 'turned.png', data_sets.encode(RGB, 'PNG', exif=turned)
  yield 'cmyk.jpg', cmyk.getvalue()
  yield 'deep.png', data_sets.encode(deep)
  yield 'alpha.png', data_sets.encode(np.dstack([RGB, GRAY]))
  yield 'palette.png', palette.getvalue()
  yield 'a.webp', data_sets.encode(RGB, 'WEBP')
  yield 'a.tif', data_sets.encode(RGB, 'TIFF')
  yield 'a.bmp', data_sets.encode(GRAY, 'BMP')


@pytest.mark.parametrize(
  ('name', 'data'), list(odd_files()), ids=[name for name, _ in odd_files()]
)
def test_what_is_not_plain_becomes_a_png_of_the_pixels_that_photo_reads(
  tmp_path, name, data, in_this_process
):
  data_sets.save(tmp_path / 'in' / name, data)
  assert prepare(tmp_path).skipped == {}
  stored = everything(tmp_path)[name]
  expected = photo.eight_bit(photo.read(data).pixels)
  assert stored[:8] == b'\x89PNG\r\n\x1a\n'
  kept = photo.read(stored)
  assert kept.alpha is None and kept.pixels.dtype == np.uint8
  np.testing.assert_array_equal(kept.pixels, expected)
  np.testing.assert_array_equal(
    decoding.decode(stored), np.broadcast_to(expected, (*expected.shape[:2], 3))
  )


def bomb():
  """A PNG of 67 million black pixels in a few kB."""
  done, data = cv2.imencode('.png', np.zeros((8200, 8200), np.uint8))
  assert done
  return data.tobytes()


def test_hostile_files_are_listed_with_their_reason_and_the_others_are_done(
  tmp_path, in_this_process
):
  folder = tmp_path / 'in'
  jpeg = data_sets.encode(data_sets.picture(3, 64, 64), 'JPEG')
  data_sets.save(folder / 'good.jpg', jpeg)
  data_sets.save(folder / 'cut.jpg', jpeg[: len(jpeg) // 2])
  data_sets.save(folder / 'empty.png', b'')
  data_sets.save(folder / 'junk.png', os.urandom(100))
  data_sets.save(folder / 'bomb.png', bomb())
  data_sets.save(folder / os.fsdecode(b'\xff.jpg'), jpeg)
  outside = data_sets.save(tmp_path / 'secret' / 'a.jpg', jpeg)
  (folder / 'out.jpg').symlink_to(outside)
  (folder / 'up.jpg').symlink_to('../secret/a.jpg')
  (folder / 'inside.jpg').symlink_to('good.jpg')
  (folder / 'loop.jpg').symlink_to('loop.jpg')
  (folder / 'lost.jpg').symlink_to('nothing.jpg')
  (folder / 'folder').symlink_to(folder)
  (folder / 'folder.jpg').mkdir()
  os.mkfifo(folder / 'pipe.jpg')
  skipped = prepare(tmp_path).skipped
  expected = {
    'cut.jpg': 'truncated',
    'empty.png': 'is empty',
    'junk.png': 'is broken, or not a JPEG',
    'bomb.png': '8200x8200 pixels',
    'out.jpg': 'leads out of the folder',
    'up.jpg': 'leads out of the folder',
    'loop.jpg': 'links',
    'lost.jpg': 'No such file',
    'folder': 'is a link to a folder',
    'pipe.jpg': 'is not a file',
  }
  assert skipped.keys() == expected.keys()
  for id, reason in expected.items():
    assert reason in skipped[id]
  assert sorted(everything(tmp_path)) == ['\\xff.jpg', 'good.jpg', 'inside.jpg']


def test_a_file_too_large_to_hold_is_skipped(tmp_path, in_this_process):
  data_sets.save(tmp_path / 'in' / 'a.png', RGB)
  with open(tmp_path / 'in' / 'b.png', 'wb') as file:
    file.truncate(1 << 30)
  assert prepare(tmp_path).skipped == {'b.png': 'is larger than 256 MB'}


def test_a_folder_without_splits_is_split_by_the_bytes_of_its_files(
  tmp_path, in_this_process
):
  for i in range(200):
    data_sets.save(tmp_path / 'in' / f'{i}.png', data_sets.picture(i, 2, 2))
  data_sets.save(
    tmp_path / 'in' / 'copies' / 'x.png', data_sets.picture(7, 2, 2)
  )
  counts = prepare(tmp_path).counts
  assert sum(counts.values()) == 201
  assert 2 <= counts['valid'] <= 20 and 2 <= counts['test'] <= 20
  digests = []
  for split in listing.SPLITS:
    pictures = opened(tmp_path, split)
    assert list(pictures) == sorted(pictures)
    digests.append(
      {hashlib.sha256(data).digest() for data in pictures.values()}
    )
    for data in pictures.values():
      place = int(hashlib.sha256(data).hexdigest()[:8], 16) / 2**32
      wanted = 'valid' if place < 0.05 else 'test' if place < 0.1 else 'train'
      assert split == wanted
  assert len(set.union(*digests)) == sum(len(one) for one in digests) == 200


def test_few_pictures_have_one_to_validate_on(tmp_path, in_this_process):
  for i in range(3):
    data_sets.save(tmp_path / 'in' / f'{i}.png', data_sets.picture(i, 2, 2))
  assert prepare(tmp_path).counts == {'train': 2, 'valid': 1}


def test_a_folder_valid_alone_is_that_split(tmp_path, in_this_process):
  data_sets.save(tmp_path / 'in' / 'valid' / 'a.png', RGB)
  assert prepare(tmp_path).counts == {'valid': 1}


def test_a_file_in_two_splits_is_kept_out_of_training(
  tmp_path, in_this_process
):
  for name in ('train/a', 'train/copy of a', 'train/b', 'valid/b', 'test/b'):
    data_sets.save(
      tmp_path / 'in' / f'{name}.png', data_sets.picture(ord(name[-1]))
    )
  data_sets.save(tmp_path / 'in' / 'other' / 'c.png', RGB)
  data_sets.save(tmp_path / 'in' / 'd.png', RGB)
  report = prepare(tmp_path)
  assert report.counts == {'train': 2, 'test': 1}
  assert report.skipped == {
    'train/b.png': 'is the same file as test/b.png',
    'valid/b.png': 'is the same file as test/b.png',
    'other/c.png': 'is outside of the folders train, valid and test',
    'd.png': 'is outside of the folders train, valid and test',
  }


def test_sports_needs_its_layout(tmp_path, in_this_process):
  (tmp_path / 'in').mkdir()
  for name in ('train/golf/a', 'valid/golf/b'):
    with pytest.raises(
      sources.DataError, match=r'layout of sports: (valid|train)'
    ):
      prepare(tmp_path, 'sports')
    path = tmp_path / 'in' / f'{name}.png'
    data_sets.save(path, data_sets.picture(ord(name[-1])))
  assert prepare(tmp_path, 'sports').counts == {'train': 1, 'valid': 1}
  assert list(opened(tmp_path, 'valid', 'sports')) == ['valid/golf/b.png']


@pytest.mark.parametrize('content', [None, '{', '{"name": 3}'])
def test_a_damaged_data_set_in_the_way_is_named(
  tmp_path, in_this_process, content
):
  data_sets.save(tmp_path / 'in' / 'a.png', RGB)
  there = tmp_path / 'out/folder/1.0.0'
  there.mkdir(parents=True)
  if content is not None:
    (there / 'dataset_info.json').write_text(content)
  with pytest.raises(sources.DataError, match=r'1\.0\.0 is there already, but'):
    prepare(tmp_path)


def test_preparing_again_does_nothing_unless_the_source_is_another(
  tmp_path, in_this_process, monkeypatch
):
  data_sets.save(tmp_path / 'in' / 'a.png', RGB)
  data_sets.save(tmp_path / 'in' / 'b.png', b'broken')
  first = prepare(tmp_path)
  monkeypatch.setattr(checking, 'check_all', None)
  assert prepare(tmp_path) == first
  data_sets.save(tmp_path / 'in' / 'c.png', GRAY)
  message = 'made of other files or with other options; remove it'
  with pytest.raises(sources.DataError, match=message):
    prepare(tmp_path)


def test_a_fingerprint_tells_other_pictures_other_names_and_another_order(
  tmp_path, in_this_process
):
  seen = set()
  for i, names in enumerate((['a', 'b'], ['a'], ['a', 'c'], ['b', 'a'])):
    folder = tmp_path / str(i)
    for seed, name in enumerate(names):
      path = folder / 'in' / 'train' / f'{name}.png'
      data_sets.save(path, data_sets.picture(seed))
    prepare(folder)
    mark = sources.open_split('folder', folder / 'out', 'train').fingerprint
    assert mark.startswith(f'{len(names)}-')
    seen.add(mark)
  assert len(seen) == 4


@pytest.mark.parametrize('name', ['folder', 'sports', 'imagenet2012'])
def test_what_cannot_be_prepared_leaves_nothing_behind(tmp_path, name):
  with pytest.raises(sources.DataError, match='nowhere'):
    preparing.prepare(name, tmp_path / 'nowhere', tmp_path / 'out')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(sources.DataError, match='empty'):
    preparing.prepare(name, tmp_path / 'empty', tmp_path / 'out')
  assert os.listdir(tmp_path) == ['empty']


def test_a_source_without_one_good_picture_is_an_error(
  tmp_path, in_this_process
):
  data_sets.save(tmp_path / 'in' / 'a.png', b'broken')
  with pytest.raises(sources.DataError, match=r'none of 1 .*a\.png: is broken'):
    prepare(tmp_path)


def test_a_picture_that_changes_while_it_is_read_is_an_error(
  tmp_path, in_this_process, monkeypatch
):
  path = data_sets.save(tmp_path / 'in' / 'a.png', RGB)
  check_all = checking.check_all

  def and_change(*arguments):
    results = check_all(*arguments)
    data_sets.save(path, GRAY)
    return results

  monkeypatch.setattr(checking, 'check_all', and_change)
  with pytest.raises(sources.DataError, match=r'a\.png has changed; remove '):
    prepare(tmp_path)
  monkeypatch.undo()
  assert sum(prepare(tmp_path).counts.values()) == 1


def test_gray_and_sepia_pictures_may_be_left_out_of_training(
  tmp_path, in_this_process
):
  def prepare(**options):
    source, output = tmp_path / 'in', tmp_path / 'out'
    return preparing.prepare('folder', source, output, **options)

  rows, columns = np.mgrid[:80, :80]
  gray = np.repeat((rows + columns)[..., None], 3, -1).astype(np.uint8)
  sepia = (gray * [1, 0.85, 0.6]).astype(np.uint8)
  color = np.stack([rows * 3, columns * 3, 240 - rows * 3], -1).astype(np.uint8)
  for split in ('train', 'valid'):
    for name, pixels in (('g', gray), ('s', sepia), ('c', color)):
      pixels = pixels + np.uint8(split == 'valid')  # Not the same file.
      data_sets.save(tmp_path / 'in' / split / f'{name}.png', pixels)
  with pytest.raises(sources.DataError, match='of all its pictures'):
    preparing.prepare('imagenet2012', tmp_path, tmp_path, color_only=True)
  made = prepare(color_only=True)
  left_out = ['train/g.png', 'train/s.png']
  assert made == preparing.Report({'train': 1, 'valid': 3}, {}, left_out)
  assert list(opened(tmp_path, 'train')) == ['train/c.png']
  assert prepare(color_only=True) == made
  with pytest.raises(sources.DataError, match='or with other options'):
    prepare()
  (tmp_path / 'in' / 'train' / 'c.png').unlink()
  shutil.rmtree(tmp_path / 'out')
  with pytest.raises(sources.DataError, match='has colors'):
    prepare(color_only=True)


def test_what_could_not_be_read_is_read_again(
  tmp_path, in_this_process, monkeypatch
):
  data_sets.save(tmp_path / 'in' / 'train' / 'a.png', RGB)
  check = checking._check
  no_memory = checking.Checked('', 0, False, 'not enough memory', '')
  monkeypatch.setattr(checking, '_check', lambda path, folder: no_memory)
  with pytest.raises(sources.DataError, match='not enough memory'):
    prepare(tmp_path)
  monkeypatch.setattr(checking, '_check', check)
  assert prepare(tmp_path) == preparing.Report({'train': 1}, {})


def test_two_runs_at_once_do_not_meet(tmp_path):
  data_sets.save(tmp_path / 'in' / 'a.png', RGB)
  with (
    checking.locked(tmp_path / 'out' / '.folder.incomplete'),
    pytest.raises(sources.DataError, match='another process'),
  ):
    prepare(tmp_path)


KILLED = """
  import multiprocessing, os, signal, sys
  from coltran_jax.data import checking, preparing

  def die():
    pids = [child.pid for child in multiprocessing.active_children()]
    print(*pids, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

  def until_the(number, results):
    for i, result in enumerate(results):
      if i == number:
        die()
      yield result

  stage, source, output = sys.argv[1:]
  checks, records = checking._checks, preparing._Shard.__call__
  if stage == 'checking':
    checking._checks = lambda *rest: until_the(20, checks(*rest))
  else:
    preparing._Shard.__call__ = lambda shard: until_the(9, records(shard))
  preparing.prepare('folder', source, output, workers=2)
"""


@pytest.mark.parametrize(('stage', 'done'), [('checking', 20), ('writing', 40)])
def test_a_killed_run_goes_on_where_it_was(
  tmp_path, stage, done, in_this_process, monkeypatch
):
  for i in range(40):
    data = data_sets.encode(data_sets.picture(i), 'WEBP' if i % 2 else 'PNG')
    data_sets.save(tmp_path / 'in' / 'train' / f'{i:02}.png', data)
  killed = subprocess.run(
    [
      *(sys.executable, '-c', textwrap.dedent(KILLED), stage),
      *(str(tmp_path / 'in'), str(tmp_path / 'out')),
    ],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert killed.returncode == -signal.SIGKILL
  assert os.listdir(tmp_path / 'out') == ['.folder.incomplete']
  journal = tmp_path / 'out' / '.folder.incomplete' / 'journal.jsonl'
  assert len(journal.read_text().split()) >= done
  with open(journal, 'a') as file:
    file.write('["20.png", 12')  # As if the kill had come within a line.
  read = []
  check = checking._check
  monkeypatch.setattr(
    checking, '_check', lambda path, f: read.append(path) or check(path, f)
  )
  report = prepare(tmp_path)
  assert len(read) == 40 - done
  assert report == preparing.Report({'train': 40}, {})
  pictures = opened(tmp_path, 'train')
  assert list(pictures) == [f'train/{i:02}.png' for i in range(40)]
  for i, data in enumerate(pictures.values()):
    source = tmp_path / 'in' / 'train' / f'{i:02}.png'
    expected = photo.read(source).pixels
    np.testing.assert_array_equal(decoding.decode(data), expected)
  assert os.listdir(tmp_path / 'out') == ['folder']
  limit = time.monotonic() + 10
  while any(
    pathlib.Path('/proc', pid).exists() for pid in killed.stdout.split()
  ):
    assert time.monotonic() < limit, 'a worker is left'
    time.sleep(0.01)


def test_ctrl_c_stops_in_one_line(tmp_path):
  slow = data_sets.encode(data_sets.picture(0, 300, 300), 'WEBP', method=0)
  for i in range(3000):  # So many that a starved test is there before the end.
    data_sets.save(tmp_path / 'in' / f'{i}.png', slow + bytes(i))
  command = [sys.executable, '-m', 'coltran_jax.cli', 'prepare', 'folder']
  command += [str(tmp_path / 'in'), '--data-dir', str(tmp_path / 'out')]
  process = subprocess.Popen(
    command, stderr=subprocess.PIPE, text=True, start_new_session=True
  )
  journal = tmp_path / 'out' / '.folder.incomplete' / 'journal.jsonl'
  limit = time.monotonic() + 30
  while not journal.exists() or journal.stat().st_size < 10:
    assert time.monotonic() < limit
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGINT)  # As a terminal does.
  _, err = process.communicate(timeout=30)
  assert (process.returncode, err) == (130, 'stopped\n')


def test_a_terminal_gets_progress_bars_and_a_file_does_not(
  tmp_path, in_this_process, monkeypatch
):
  data_sets.save(tmp_path / 'in' / 'a.png', RGB)
  for terminal in (False, True):
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, 'isatty', lambda answer=terminal: answer)
    monkeypatch.setattr(sys, 'stderr', stderr)
    preparing.prepare('folder', tmp_path / 'in', tmp_path / str(terminal))
    for title in ('checking: 100%', 'writing: 100%'):
      assert (title in stderr.getvalue()) == terminal


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_later(tmp_path):
  for i in range(4):
    data = data_sets.encode(data_sets.picture(i, 100, 100))
    data_sets.save(tmp_path / 'in' / 'train' / f'{i}.png', data)
  script = (
    'import resource, signal, sys\n'
    'from coltran_jax import cli\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (50_000,) * 2)\n'
    'sys.exit(cli.main(sys.argv[1:]))\n'
  )
  arguments = ['prepare', 'folder', str(tmp_path / 'in')]
  arguments += ['--data_dir', str(tmp_path / 'out'), '--workers', '1']
  done = subprocess.run(
    [sys.executable, '-c', script, *arguments], capture_output=True, text=True
  )
  assert done.returncode == 2
  assert re.fullmatch(
    'coltran: .*cannot be written: .*too large.*\n', done.stderr
  )
  assert prepare(tmp_path).counts == {'train': 4}


@pytest.mark.parametrize('lacking', ['disk', 'memory', 'memory to decode'])
def test_no_picture_is_left_out_for_lack_of_disk_or_memory(
  tmp_path, in_this_process, monkeypatch, lacking
):
  data_sets.save(tmp_path / 'in' / 'train' / 'a.png', RGB)
  webp = data_sets.encode(data_sets.picture(1), 'WEBP')
  data_sets.save(tmp_path / 'in' / 'train' / 'b.webp', webp)

  def lack(*_):
    if lacking == 'disk':
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise MemoryError

  place, message = {
    'disk': ((photo.os, 'fsync'), r'cannot write .*\.png: No space.*make room'),
    'memory': ((checking, '_png'), r'b\.webp: not enough .*fewer --workers'),
    'memory to decode': ((photo, '_read'), r'a\.png: not enough memory'),
  }[lacking]
  with monkeypatch.context() as patch:
    patch.setattr(*place, lack)
    with pytest.raises(sources.DataError, match=message):
      prepare(tmp_path)
  assert prepare(tmp_path) == preparing.Report({'train': 2}, {})


def test_the_command_tells_what_it_made_and_what_it_skipped(
  tmp_path, in_this_process, capsys
):
  arguments = ['prepare', 'folder', str(tmp_path / 'in')]
  arguments += ['--data_dir', str(tmp_path / 'out')]
  assert cli.main(arguments) == 2
  assert 'coltran: ' in capsys.readouterr().err
  data_sets.save(tmp_path / 'in' / 'train' / 'a.png', RGB)
  data_sets.save(tmp_path / 'in' / 'train' / 'b.png', b'broken')
  assert cli.main(arguments) == 1
  out, err = capsys.readouterr()
  assert out == ''
  assert 'coltran: skipped: train/b.png: is broken' in err
  assert 'coltran: 1 pictures skipped' in err
  data_sets.save(tmp_path / 'in' / 'train' / 'b.png', GRAY)
  arguments[-1] = str(tmp_path / 'new')
  assert cli.main(arguments) == 0
  assert capsys.readouterr() == ('', '')


def test_an_unknown_name_is_a_matter_of_usage(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(['prepare', 'mnist', 'in', '--data_dir', 'out'])
  assert stop.value.code == 2
  assert 'imagenet2012' in capsys.readouterr().err
  for call in (preparing.prepare, sources.open_split):
    with pytest.raises(sources.DataError, match="no data set 'mnist'; there"):
      call('mnist', 'in', 'out')


def test_a_missing_data_set_or_split_says_what_is_there_and_what_to_do(
  tmp_path, in_this_process
):
  command = rf'coltran prepare folder SOURCE --data_dir {tmp_path / "out"}'
  with pytest.raises(sources.DataError, match=f'No such file.*{command}'):
    opened(tmp_path, 'train')
  data_sets.save(tmp_path / 'in' / 'train' / 'a.png', RGB)
  prepare(tmp_path)
  with pytest.raises(sources.DataError, match="'valid', only train; make it"):
    opened(tmp_path, 'valid')
  with pytest.raises(sources.DataError, match=r'out holds folder\); make it'):
    opened(tmp_path, 'train', 'sports')


def test_the_latest_whole_version_is_opened(tmp_path):
  for version in ('2.0.0', '10.0.0'):
    records = {'train': [(version, b'x')]}
    data_sets.write('folder', tmp_path, records, version)
  whole = tmp_path / 'folder' / '10.0.0'
  shutil.copytree(whole, tmp_path / 'folder' / '10.0.0.incompleteABCD')
  shutil.copytree(whole, tmp_path / 'folder' / 'incomplete.ABCD_10.0.0')
  split = sources.open_split('folder', tmp_path, 'train')
  assert split[0]['id'] == '10.0.0'


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
def test_a_damaged_description_is_a_data_error(tmp_path, name):
  folder = data_sets.write('folder', tmp_path, {'train': [('a', b'x')]})
  (folder / name).write_text('{')
  with pytest.raises(sources.DataError, match=r'cannot be opened.*make it'):
    sources.open_split('folder', tmp_path, 'train')


def test_records_are_counted_from_0(tmp_path):
  records = [(f'{i}', bytes([i])) for i in range(3)]
  data_sets.write('folder', tmp_path, {'train': records})
  split = sources.open_split('folder', tmp_path, 'train')
  assert len(split) == 3
  assert split[np.int64(2)] == {'id': '2', 'image': b'\x02'}
  for i in (-1, 3):
    with pytest.raises(
      IndexError, match=f'folder, split train has no record {i}'
    ):
      split[i]


def test_imagenet_is_split_as_in_the_reference(tmp_path):
  records = {
    'train': [(f'train{i}', b'%d' % i) for i in range(10_003)],
    'validation': [('v', b'v')],
    'test': [('never', b'')],
  }
  data_sets.write('imagenet2012', tmp_path, records, version='5.1.0')
  splits = {
    split: sources.open_split('imagenet2012', tmp_path, split)
    for split in ('train', 'valid', 'test')
  }
  lengths = {split: len(records) for split, records in splits.items()}
  assert lengths == {'train': 3, 'valid': 10_000, 'test': 1}
  assert splits['train'][2] == {'image': b'2', 'id': 'train2'}
  assert splits['valid'][0] == {'image': b'3', 'id': 'train3'}
  assert splits['test'][0] == {'image': b'v', 'id': 'v'}
  marks = {split.fingerprint for split in splits.values()}
  assert len(marks) == 3


def test_imagenet_without_tensorflow_says_what_to_install(
  tmp_path, monkeypatch
):
  with pytest.raises(sources.DataError, match=r'train\.tar and no .*val\.tar'):
    preparing.prepare('imagenet2012', tmp_path, tmp_path)
  for name in ('train', 'val'):
    (tmp_path / f'ILSVRC2012_img_{name}.tar').touch()
  monkeypatch.setattr(preparing.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(sources.DataError, match=r'pip install .*\[prepare\]'):
    preparing.prepare('imagenet2012', tmp_path, tmp_path)


def test_no_data_module_imports_tensorflow_and_the_package_imports_none():
  script = (
    'import sys, coltran_jax\n'
    "print(sorted({'grain', 'tensorflow_datasets'} & set(sys.modules)))\n"
    'from coltran_jax.data import input_pipeline, preparing, sources\n'
    "print('tensorflow' in sys.modules)\n"
  )
  done = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True, check=True
  )
  assert done.stdout == '[]\nFalse\n'
