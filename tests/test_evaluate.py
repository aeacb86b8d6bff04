"""Folders to numbers: what belongs together, the table, the page, the command."""

import csv
import html.parser
import io
import json
import re

import data_sets
import jax
import numpy as np
from PIL import Image
import pytest

from coltran_jax import (
  cli,
  color,
  command,
  convert,
  image,
  losses,
)
from coltran_jax.diffusion import pipeline as diffusion_pipeline
from coltran_jax.evaluation import colorings, pairs, table

pytestmark = pytest.mark.usefixtures('no_cache')
SIDE = 40
QUICK = ('--net', 'alexnet')


@pytest.fixture
def folders(tmp_path):
  """Four originals, one method with a sample each, one with two."""
  truth, one, two = (tmp_path / name for name in ('truth', 'one', 'two'))
  for i, name in enumerate(('a', 'b', 'in/c', 'd-1')):
    picture = data_sets.picture(i, SIDE, SIDE)
    data_sets.save(truth / f'{name}.png', picture)
    jpeg = data_sets.encode(picture, 'JPEG', quality=100, subsampling=0)
    data_sets.save(one / f'{name}.jpg', jpeg)
    for sample in (1, 2):
      noise = data_sets.picture(10 * sample + i, SIDE, SIDE) // 4
      data_sets.save(two / f'{name}-{sample}.png', picture // 4 * 3 + noise)
    data_sets.save(two / f'{name}-sheet.png', picture)
  return truth, one, two


@pytest.fixture
def measured(monkeypatch):
  """The sizes of the batches that are measured, not taken from a log."""
  sizes = []
  values = pairs._values
  monkeypatch.setattr(
    pairs,
    '_values',
    lambda groups, *rest: sizes.append(len(groups)) or values(groups, *rest),
  )
  return sizes


def evaluate(*args):
  return cli.main(['evaluate', *map(str, args)])


def test_samples_and_single_colorings_are_found_by_their_names(folders):
  comparison = pairs.find(folders[0], folders[1:])
  assert list(comparison.truth) == ['a', 'b', 'd-1', 'in/c']
  assert comparison.samples == {'one': 1, 'two': 2}
  assert comparison.methods['two']['d-1'][1].name == 'd-1-2.png'


def test_all_names_that_do_not_match_are_listed(folders, capsys, tmp_path):
  truth, one, two = folders
  (one / 'a.jpg').unlink()
  (one / 'in/c.jpg').rename(one / 'other.jpg')
  (two / 'b-2.png').unlink()
  assert evaluate('pairs', truth, one, two, '-o', tmp_path / 'out') == 1
  said = capsys.readouterr().err
  for problem in ('a is missing', 'in/c is missing', 'other has no original'):
    assert f'{one}: {problem}' in said
  assert f'{two}: b has samples [1]' in said
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('folder', ['nothing', 'empty'])
def test_folders_without_pictures_are_refused(folder, folders, capsys):
  empty = folders[0].parent / 'empty'
  empty.mkdir()
  assert evaluate('pairs', folders[0], folders[0].parent / folder) == 1
  assert folder in capsys.readouterr().err


def test_other_sizes_need_resize(folders, capsys, tmp_path):
  truth, one, _ = folders
  data_sets.save(one / 'b.jpg', data_sets.picture(0, 50, 60))
  assert evaluate('pairs', truth, one, *QUICK, '-o', tmp_path / 'out') == 1
  said = capsys.readouterr().err
  assert 'b.jpg has 60x50 pixels, its original 40x40: give --resize' in said
  options = (*QUICK, '-o', tmp_path / 'out', '--resize', 48)
  assert evaluate('pairs', truth, one, *options) == 0
  assert 'resized to 48' in capsys.readouterr().out


def test_a_comparison_is_written_as_table_pictures_and_page(
  folders, tmp_path, capsys
):
  out = tmp_path / 'out'
  assert evaluate('pairs', *folders, *QUICK, '-o', out, '--each') == 0
  said = capsys.readouterr().out
  assert re.search(r'^a  gray \d\.\d{4}  one \d\.\d{4}  two ', said, re.M)
  made = json.loads((out / 'table.json').read_text())
  assert list(made['rows']) == ['truth', 'gray', 'one', 'two']
  assert made['pictures'] == 4
  one, two = made['rows']['one'], made['rows']['two']
  assert one['lpips']['low'] <= one['lpips']['value'] <= one['lpips']['high']
  assert one['ssim']['value'] > two['ssim']['value']
  assert two['best_lpips']['value'] <= two['lpips']['value']
  assert two['diversity']['value'] > 0
  assert 'diversity' not in one
  lines = list(csv.DictReader(io.StringIO((out / 'table.csv').read_text())))
  assert [line['method'] for line in lines] == list(made['rows'])
  assert float(lines[2]['lpips']) == one['lpips']['value']
  each = csv.DictReader(io.StringIO((out / 'pictures.csv').read_text()))
  of_two = [line for line in each if line['method'] == 'two']
  assert [line['sample'] for line in of_two] == ['1', '2'] * 4
  # Cells of 40 pixels, gray, one, two 1, two 2, truth.
  assert Image.open(out / 'rows.png').width == 8 + 5 * (SIDE + 8)


def test_the_page_needs_nothing_else_and_escapes_names(folders, tmp_path):
  truth, one, _ = folders
  for folder, end in ((truth, '.png'), (one, '.jpg')):
    (folder / f'a{end}').rename(folder / f'<b>&{end}')
  out = tmp_path / 'out'
  assert evaluate('pairs', truth, one, *QUICK, '-o', out, '-q') == 0
  page = (out / 'report.html').read_text('utf-8')
  tags = []

  class Parser(html.parser.HTMLParser):
    def handle_starttag(self, tag, attributes):
      tags.append((tag, dict(attributes)))

  Parser().feed(page)
  images = [of['src'] for tag, of in tags if tag == 'img']
  assert len(images) == 4 * 3
  assert all(src.startswith('data:image/jpeg;base64,') for src in images)
  assert not any(tag == 'b' for tag, _ in tags)
  assert 'http' not in page


def test_a_run_that_was_ended_goes_on_and_gives_the_same(
  folders, tmp_path, measured
):
  truth, one, _ = folders
  options = (*QUICK, '-o', tmp_path / 'out')
  assert evaluate('pairs', truth, one, *options) == 0
  first = (tmp_path / 'out/table.json').read_text()
  log = tmp_path / 'out/values.jsonl'
  log.write_text(log.read_text()[:-40])  # As a kill would leave it.
  measured.clear()
  assert evaluate('pairs', truth, one, *options) == 0
  assert measured == [1]
  assert (tmp_path / 'out/table.json').read_text() == first
  data_sets.save(one / 'b.jpg', data_sets.picture(9, SIDE, SIDE))
  assert evaluate('pairs', truth, one, *options) == 0
  assert measured == [1, 1]  # A changed picture is measured again.
  assert (tmp_path / 'out/table.json').read_text() != first


def test_numbers_of_other_settings_are_not_taken_over(folders, tmp_path):
  truth, one, _ = folders
  options = (*QUICK, '-o', tmp_path / 'out')
  means = []
  for protocol in ('standard', 'study'):
    assert evaluate('pairs', truth, one, *options, '--protocol', protocol) == 0
    made = json.loads((tmp_path / 'out/table.json').read_text())
    assert protocol in made['title']
    means.append(made['rows']['one']['lpips']['value'])
  assert means[0] != means[1]


def test_pictures_of_many_sizes_are_measured_a_few_at_a_time(
  tmp_path, monkeypatch, measured
):
  monkeypatch.setattr(pairs, '_MOST_SHAPES', 1)
  for folder in ('truth', 'one'):
    for i in range(4):
      picture = data_sets.picture(i, SIDE, SIDE + i // 2)
      data_sets.save(tmp_path / folder / f'{i}.png', picture)
  out = ('-o', tmp_path / 'out')
  args = ('pairs', tmp_path / 'truth', tmp_path / 'one', *QUICK, *out)
  assert evaluate(*args) == 0
  assert measured == [2, 2]
  row = json.loads((tmp_path / 'out/table.json').read_text())['rows']['one']
  assert row['lpips']['value'] == pytest.approx(0, abs=1e-6)


def test_pictures_too_large_to_measure_need_resize(
  folders, capsys, monkeypatch
):
  monkeypatch.setattr(pairs, '_MOST_PIXELS', SIDE * SIDE - 1)
  assert evaluate('pairs', *folders[:2], *QUICK) == 1
  assert '40x40 pixels, too many to measure' in capsys.readouterr().err


def test_intervals_hold_the_mean_and_shrink_with_more_pictures():
  values = np.random.default_rng(0).normal(5, 1, 1000)
  few, many = table.interval(values[:30]), table.interval(values)
  assert few.low < few.value < few.high
  assert many.high - many.low < few.high - few.low
  # Of a mean of 1000: 1.96 / sqrt(1000) on both sides.
  assert many.high - many.low == pytest.approx(2 * 1.96 / 1000**0.5, rel=0.1)
  assert table.interval(values) == many


def test_gray_keeps_luminance_and_nothing_else():
  picture = data_sets.picture(3, SIDE, SIDE)
  gray = pairs.gray(picture)
  assert (gray == gray[..., :1]).all()
  np.testing.assert_array_equal(pairs.gray(gray), gray)


def test_a_data_set_is_colored_measured_and_not_colored_again(
  tmp_path, cnn_weights, monkeypatch
):
  records = [
    (f'valid/{i}.png', data_sets.encode(data_sets.picture(i, 60, 50)))
    for i in range(3)
  ]
  data_sets.write('sports', tmp_path / 'data', {'valid': records})
  command_line = (
    *('model', '--weights', cnn_weights, '--data_dir', tmp_path / 'data'),
    *('--size', SIDE, *QUICK, '-o', tmp_path / 'out'),
  )
  assert evaluate(*command_line) == 0
  made = sorted(p.name for p in (tmp_path / 'out/study').iterdir())
  assert made == [f'{i}-valid_{i}.png.png' for i in range(3)]
  assert list(
    json.loads((tmp_path / 'out/table.json').read_text())['rows']
  ) == [*('truth', 'gray', 'study')]
  first = (tmp_path / 'out/study' / made[0]).read_bytes()
  (tmp_path / 'out/study' / made[0]).unlink()
  prepared = []
  before = colorings._prepared
  monkeypatch.setattr(
    colorings,
    '_prepared',
    lambda *args: prepared.append(1) or before(*args),
  )
  assert evaluate(*command_line) == 0
  assert len(prepared) == 1
  assert (tmp_path / 'out/study' / made[0]).read_bytes() == first
  assert evaluate(*command_line, '--seed', 1) == command.EXIT_USAGE
  assert evaluate(*command_line, '--every', 2) == command.EXIT_USAGE


def test_processes_share_an_evaluation_and_the_last_one_reports(
  tmp_path, fixtures, measured, capsys, monkeypatch
):
  convert.convert(fixtures / 'pipeline/tf_checkpoints', tmp_path / 'tiny')
  records = [
    (f'{i}.png', data_sets.encode(data_sets.picture(i, 64, 64)))
    for i in range(5)
  ]
  data_sets.write('sports', tmp_path / 'data', {'valid': records})

  def run(folder, *options):
    return evaluate(
      *('model', '--weights', tmp_path / 'tiny'),
      *('--data_dir', tmp_path / 'data', '-o', tmp_path / folder),
      *('--size', 64, '--fast', *QUICK, *options),
    )

  def share(i):
    return run('shared', '--num-processes', 2, '--process-id', i)

  table = tmp_path / 'shared/table.json'
  assert run('alone') == 0
  measured.clear()
  assert share(0) == 0
  assert not table.exists()
  write = pairs._append_log

  def killed(*args):
    write(*args)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(pairs, '_append_log', killed)
    assert share(1) == 130
  assert share(1) == 0
  assert measured == [3, 2, 1]  # One of two was logged when it was killed.
  alone, shared = (
    {
      path.relative_to(tmp_path / folder): path.read_bytes()
      for kind in ('**/*.png', 'table.*', 'pictures.csv', 'report.html')
      for path in (tmp_path / folder).glob(kind)
    }
    for folder in ('alone', 'shared')
  )
  assert shared == alone
  assert json.loads(table.read_text())['pictures'] == 5
  # What was measured without a method is not measured with it.
  out = tmp_path / 'shared'
  settings = pairs.Settings(net='alexnet')
  for others, count in (((), 5), ((out / 'truth',), 0)):
    comparison = pairs.find(out / 'truth', [out / 'tiny', *others])
    there = pairs.measured(comparison, settings, out / 'values.jsonl')
    assert len(there) == count
  capsys.readouterr()
  assert share(2) == command.EXIT_USAGE
  assert 'must be less than' in capsys.readouterr().err


def test_coltran_is_measured_with_diversity_and_likelihood(tmp_path, fixtures):
  convert.convert(fixtures / 'pipeline/tf_checkpoints', tmp_path / 'tiny')
  pictures = [data_sets.picture(i, 64, 64) for i in range(2)]
  records = [(f'{i}.png', data_sets.encode(p)) for i, p in enumerate(pictures)]
  data_sets.write('sports', tmp_path / 'data', {'valid': records})
  code = evaluate(
    *('model', '--weights', tmp_path / 'tiny', '--data_dir', tmp_path / 'data'),
    *('--size', 64, '--fast', '-n', 2, *QUICK, '-o', tmp_path / 'out'),
  )
  assert code == 0
  row = json.loads((tmp_path / 'out/table.json').read_text())['rows']['tiny']
  assert row['diversity']['value'] > 0
  _, model, params = convert.load_tf_checkpoint(
    fixtures / 'pipeline/tf_checkpoints/colorizer'
  )
  gray, codes = (
    color.to_gray(np.stack(pictures)),
    color.to_codes(np.stack(pictures)),
  )
  logits, _ = jax.jit(model.apply)({'params': params}, gray, codes)
  expected = losses.bits_per_dim(logits, codes).mean()
  assert row['bits_per_dim']['value'] == pytest.approx(
    float(expected), rel=1e-5
  )


def test_stable_diffusion_gets_a_row(tmp_path, fixtures, capsys, monkeypatch):
  pipe = fixtures / 'diffusion/pipe'
  pictures = [data_sets.picture(i, SIDE, SIDE) for i in range(3)]
  records = [(f'{i}.png', data_sets.encode(p)) for i, p in enumerate(pictures)]
  data_sets.write('sports', tmp_path / 'data', {'valid': records})

  def red(self, gray, keys, study, steps):
    assert not study and steps == 2 and len(keys) == len(gray) == 1
    return np.stack([gray, gray // 2, gray // 2], axis=-1)

  monkeypatch.setattr(diffusion_pipeline.Pipeline, 'run', red)
  args = ['model', '--weights', pipe, *QUICK, '--data_dir', tmp_path / 'data']
  args += ['--size', SIDE, '--steps', 2, '-o', tmp_path / 'out']
  assert evaluate(*args) == command.EXIT_USAGE
  assert '--controlnet DIR' in capsys.readouterr().err
  args += ['--controlnet', pipe / 'controlnet']
  assert evaluate(*args) == 0
  rows = json.loads((tmp_path / 'out/table.json').read_text())['rows']
  assert list(rows) == ['truth', 'gray', 'pipe']
  assert rows['pipe']['colorfulness']['value'] > 5
  # Another prompt is another evaluation.
  assert evaluate(*args, '--prompt', 'thing') == command.EXIT_USAGE


def test_names_of_files_come_safely_from_hostile_ids():
  ids = ('../../etc/passwd', 'a\0/\xff')
  names = [colorings._name(i, 2, id) for i, id in enumerate(ids)]
  assert names == ['0-.._.._etc_passwd', '1-a_']
  assert len(set(names)) == 2


def test_originals_under_the_study_s_protocol_are_its_crops():
  picture = data_sets.picture(5, 300, 400)
  record = {'id': 'x', 'image': data_sets.encode(picture)}
  made = colorings._prepared(record, 'study', 256)
  scaled = Image.fromarray(picture).resize((341, 256), Image.BILINEAR)
  expected = np.asarray(scaled)[16:240, 58:282]
  np.testing.assert_array_equal(made, expected)
  standard = colorings._prepared(record, 'standard', 64)
  np.testing.assert_array_equal(standard, image.square(picture, 64))


def test_missing_weights_and_data_are_named(tmp_path, capsys):
  assert evaluate('model', '--weights', 'none', '--data_dir', tmp_path) == 1
  assert 'no data set' in capsys.readouterr().err
  data = {'valid': [('a.png', data_sets.encode(data_sets.picture(0)))]}
  data_sets.write('sports', tmp_path, data)
  args = ('model', '--weights', tmp_path / 'none', '--data_dir', tmp_path)
  assert evaluate(*args, '-o', tmp_path / 'out') == command.EXIT_WEIGHTS
  assert 'no weights' in capsys.readouterr().err
