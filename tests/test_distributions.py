"""Distances of whole sets under their two protocols."""

import functools
import logging
import re

import data_sets
import numpy as np
from PIL import Image
import pytest

from coltran_jax import cli, command
from coltran_jax.data import decoding
from coltran_jax.evaluation import (
  colorings,
  distributions,
  frechet,
  pairs,
  read_order,
)


def means(pictures):
  """A network of three features: the mean of each channel."""
  return np.asarray(pictures, np.float32).mean((1, 2))


NETWORK = distributions.Network('frechet_means', 'kid_means', means)


def save(folder, seeds, size=32):
  """A folder of small pictures, one a seed."""
  for seed in seeds:
    data_sets.save(
      folder / f'{seed:02d}.png', data_sets.picture(seed, size, size)
    )
  return folder


def expected(first, second):
  """The Frechet distance of two lists of pictures."""
  statistics = []
  for some in (first, second):
    statistics.append(frechet.Statistics.empty(3))
    statistics[-1].update(means(np.stack(some)))
  return frechet.distance(*statistics)


def test_paired_compares_colorings_with_their_own_originals(tmp_path):
  truth, made = (tmp_path / name for name in ('truth', 'made'))
  save(truth, range(20))
  for i in range(20):
    data_sets.save(made / f'{i:02d}.png', data_sets.picture(50 + i, 32, 32))
  comparison = pairs.find(truth, [made])
  found = distributions.paired(comparison, NETWORK)
  assert sorted(found) == ['gray', 'made']
  names = ['frechet_means (paired)', 'kid_means (paired, subsets of 10)']
  assert list(found['made']) == names
  pictures = [
    [data_sets.picture(start + i, 32, 32) for i in range(20)]
    for start in (50, 0)
  ]
  value = found['made']['frechet_means (paired)']
  assert value == pytest.approx(expected(*pictures), rel=1e-5)


def test_too_few_for_a_covariance_gives_kid_and_says_so(tmp_path, caplog):
  for name in ('truth', 'made'):
    save(tmp_path / name, range(3))
  comparison = pairs.find(tmp_path / 'truth', [tmp_path / 'made'])
  caplog.set_level(logging.WARNING, 'coltran')
  with caplog.at_level(logging.WARNING):
    found = distributions.paired(
      comparison,
      distributions.Network('F', 'K', lambda x: means(x).repeat(2, 1)),
    )
  assert not any(name.startswith('F') for name in found['made'])
  assert caplog.text.count('3 pictures are too few for F') == 1


def validation(pictures):
  """A validation split of so many pictures, in the order of tfds' files."""
  names = read_order.stored_names(len(pictures))
  return [
    (name, data_sets.encode(picture))
    for name, picture in zip(names, pictures, strict=True)
  ]


def test_coltran5k_is_of_the_pictures_that_were_published():
  stored, order = read_order.stored_names(), read_order.read_order()
  assert sorted(order) == list(range(50_000))
  numbers = [int(stored[i][15:23]) for i in order]
  # The lists of names beside UViM's code: how both begin and end.
  assert numbers[:5] == [9670, 36705, 3545, 47963, 23277]
  assert numbers[16:19] == [21106, 48369, 34488]
  assert numbers[4995:5000] == [21449, 9153, 4889, 35894, 14470]
  assert numbers[10_000:10_003] == [13328, 4694, 3310]
  assert numbers[14_995:15_000] == [23056, 31333, 26264, 37355, 15767]


def test_coltran5k_compares_with_other_pictures_of_the_split(tmp_path):
  everything = [data_sets.picture(i, 256, 300) for i in range(30)]
  split = data_sets.Records(validation(everything))
  squares = [p[:, 22:278] for p in everything]
  made = tmp_path / 'made'
  for i, square in enumerate(squares[:10]):
    data_sets.save(made / f'{i}.png', 255 - square)
  found = distributions.coltran5k(split, [made], NETWORK, count=10, first=20)
  name = 'frechet_means (coltran5k)'
  assert found['originals'][name] == pytest.approx(
    expected(squares[:10], squares[20:]), rel=1e-4
  )
  inverted = [255 - square for square in squares[:10]]
  assert found['made'][name] == pytest.approx(
    expected(inverted, squares[20:]), rel=1e-4
  )


def test_coltran5k_wants_the_pictures_that_have_the_names():
  records = validation([data_sets.picture(i, 8, 8) for i in range(4)])
  split = data_sets.Records(records[::-1])
  with pytest.raises(
    decoding.DataError, match=r'record 2 is ILSVRC.* not ILSVRC'
  ):
    distributions.coltran5k(split, [], NETWORK, count=2, first=2)


def test_coltran5k_colors_its_pictures_and_measures_them(
  tmp_path, cnn_weights, capsys, monkeypatch, no_cache
):
  records = validation([data_sets.picture(i, 300, 260) for i in range(20)])
  data_sets.write('imagenet2012', tmp_path, {'validation': records})
  capsys.readouterr()
  few = functools.partial(distributions.coltran5k, count=8, first=12)
  monkeypatch.setattr(distributions, 'coltran5k', few)
  monkeypatch.setattr(distributions, 'COUNT', 8)
  monkeypatch.setattr(distributions, 'frechet_lite0', lambda: NETWORK)
  wanted, find = [], colorings.methods

  def methods(weights, options, *args):
    wanted.append(options['size'])
    return find(weights, options, *args)

  monkeypatch.setattr(colorings, 'methods', methods)
  out = tmp_path / 'out'
  line = [
    *('evaluate', 'coltran5k', '--data_dir', str(tmp_path), '-o', str(out)),
    *('--weights', str(cnn_weights), '--frechet-lite0'),
  ]
  assert cli.main([*line, '--num-processes', '2', '--process-id', '1']) == 0
  assert len(list(out.glob('study/*.png'))) == 4
  assert capsys.readouterr().out == ''
  assert cli.main(line) == 0
  assert wanted == [256, 256]
  made = sorted(out.glob('study/*.png'))
  assert [path.stem[2:] for path in made] == [name for name, _ in records[:8]]
  assert {Image.open(path).size for path in made} == {(256, 256)}
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == ['study'] * 2 + [
    'originals'
  ] * 2
  assert re.fullmatch(r'study  kid_means .*  -?\d+\.\d{4}', lines[1])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ([], 'give --weights'),
    (['OUT', '-n', '2'], 'one coloring'),
    (['OUT', '--fast'], 'all stages'),
    (['OUT', '--process-id', '1'], 'go together'),
  ],
)
def test_coltran5k_says_what_it_lacks(options, message, capsys):
  line = ['evaluate', 'coltran5k', '--data_dir', 'data', '--frechet-lite0']
  assert cli.main([*line, *options]) == command.EXIT_USAGE
  assert message in capsys.readouterr().err


def test_coltran5k_needs_its_numbers_of_pictures(tmp_path):
  picture = data_sets.encode(data_sets.picture(0))
  split = data_sets.Records((str(i), picture) for i in range(5))
  made = save(tmp_path / 'made', range(2))
  with pytest.raises(pairs.MismatchError, match=r'has 5 pictures.* needs 6'):
    distributions.coltran5k(split, [made], NETWORK, count=3, first=3)
  with pytest.raises(pairs.MismatchError, match=r'has 2 pictures.* needs 3'):
    distributions.coltran5k(split, [made], NETWORK, count=3, first=2)


def test_wrong_inception_weights_are_named(tmp_path, capsys, no_cache):
  for name in ('truth', 'made'):
    save(tmp_path / name, range(2))
  wrong = tmp_path / 'wrong.npz'
  np.savez(wrong, a=np.zeros(3, np.float32))
  code = cli.main(
    [
      *('evaluate', 'pairs', str(tmp_path / 'truth'), str(tmp_path / 'made')),
      *('--inception-weights', str(wrong), '-o', str(tmp_path / 'out')),
    ]
  )
  assert code == command.EXIT_WEIGHTS
  assert f'{wrong}: unknown tensor' in capsys.readouterr().err
