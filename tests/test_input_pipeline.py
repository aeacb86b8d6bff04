"""Batches: the same on any number of hosts, resumable, exact, never stuck."""

import collections
import threading

import data_sets
import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from coltran_jax import image
from coltran_jax.data import decoding, input_pipeline, sources

AUGMENTED = {'flip': True, 'min_crop': 0.6}


def flat(i, height=3, width=3):
  """A PNG all of whose values are i."""
  return data_sets.encode(np.full((height, width, 3), i, np.uint8))


def numbered(total):
  """A source whose picture i has the value i everywhere."""
  return data_sets.Records((f'{i}.png', flat(i)) for i in range(total))


@pytest.fixture(scope='module')
def pictures():
  """A source of seven pictures of odd sizes, one of them gray."""
  shapes = [(9, 14), (14, 9), (8, 8), (1, 5), (30, 20), (7, 7), (12, 13)]
  return data_sets.Records(
    (f'{i}', data_sets.encode(data_sets.picture(i, *shape, 1 if i == 2 else 3)))
    for i, shape in enumerate(shapes)
  )


def train(source, steps, *, sizes=(8, 4), seed=0, start=0, hosts=1, **options):
  """Global batches [steps, B, S, S, 3] put together from those of all hosts."""
  options = {'batch_size': 8, 'num_threads': 2} | options
  shares = [
    input_pipeline.train_batches(
      source,
      sizes=sizes,
      seed=seed,
      start_step=start,
      parts=(i,),
      num_parts=hosts,
      **options,
    )
    for i in range(hosts)
  ]
  batches = []
  for _ in range(steps):
    parts = [next(share)['image'] for share in shares]
    assert all(part.dtype == np.uint8 for part in parts)
    assert all(len(part) == options['batch_size'] // hosts for part in parts)
    batches.append(np.concatenate(parts))
  for share in shares:
    share.close()
  return np.stack(batches)


def evaluate(source, *, batch_size=4, hosts=1, sizes=(4,), **options):
  """[[batch of each process] of each step]."""
  shares = [
    input_pipeline.eval_batches(
      source,
      sizes=sizes,
      batch_size=batch_size,
      parts=(i,),
      num_parts=hosts,
      num_threads=2,
      **options,
    )
    for i in range(hosts)
  ]
  return list(zip(*shares, strict=True))


@pytest.mark.parametrize('hosts', [2, 4])
def test_any_number_of_hosts_makes_the_same_batches(pictures, hosts):
  alone = train(pictures, 4, **AUGMENTED)
  together = train(pictures, 4, hosts=hosts, **AUGMENTED)
  np.testing.assert_array_equal(together, alone)


def test_a_process_makes_just_the_rows_that_its_devices_hold(pictures):
  whole = train(pictures, 1, **AUGMENTED)[0]
  options = {'sizes': (8, 4), 'batch_size': 8, 'parts': (0, 2), 'num_parts': 4}
  some = input_pipeline.train_batches(pictures, seed=0, **AUGMENTED, **options)
  np.testing.assert_array_equal(next(some)['image'], whole[[0, 1, 4, 5]])
  first = next(input_pipeline.eval_batches(pictures, **options))
  assert first['_id'].tolist() == [0, 1, 4, 5]
  options['parts'] = (1, 3)
  padded = next(input_pipeline.eval_batches(pictures, **options))
  assert padded['_id'].tolist() == [2, 3, 6, -1]
  assert padded['_mask'].tolist() == [True, True, True, False]


@pytest.mark.parametrize('hosts', [1, 4])
def test_training_goes_on_from_any_step_on_any_number_of_hosts(pictures, hosts):
  whole = train(pictures, 5, **AUGMENTED)
  rest = train(pictures, 2, start=3, hosts=hosts, **AUGMENTED)
  np.testing.assert_array_equal(rest, whole[3:])


def test_the_number_of_threads_changes_nothing(pictures):
  np.testing.assert_array_equal(
    train(pictures, 3, num_threads=1, **AUGMENTED),
    train(pictures, 3, num_threads=7, **AUGMENTED),
  )


def test_another_seed_gives_other_batches(pictures):
  one, other = (train(pictures, 1, seed=seed, **AUGMENTED) for seed in (0, 1))
  assert (one != other).any()


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.integers(1, 11), st.integers(1, 6), st.integers(0, 2**40))
def test_every_epoch_has_each_picture_once(total, batch_size, seed):
  steps = -(-3 * total // batch_size)
  batches = train(
    numbered(total), steps, sizes=(1,), seed=seed, batch_size=batch_size
  )
  order = batches[..., 0].reshape(-1)
  for epoch in range(3):
    part = order[epoch * total : (epoch + 1) * total]
    assert sorted(part) == list(range(total))


def test_epochs_have_orders_of_their_own():
  order = train(numbered(64), 24, sizes=(1,))[..., 0].reshape(3, 64)
  for a, b in ((0, 1), (1, 2), (0, 2)):
    assert (order[a] == order[b]).mean() < 0.2
  assert (order[0] == np.arange(64)).mean() < 0.2
  shifted = train(numbered(64), 16, sizes=(1,), seed=1)[..., 0].reshape(2, 64)
  assert (shifted[0] == order[1]).mean() < 0.2


def test_random_squares_reach_all_places_and_stay_inside():
  wide = np.zeros((4, 9, 3), np.uint8)
  wide[...] = np.arange(9)[:, None]
  source = data_sets.Records([('a', data_sets.encode(wide))])
  squares = train(source, 12, sizes=(4,))[..., 0].reshape(-1, 4, 4)
  left = squares[:, 0, 0]
  assert set(left) == set(range(6))
  np.testing.assert_array_equal(
    squares, np.broadcast_to(left[:, None, None] + np.arange(4), squares.shape)
  )


def test_half_of_the_pictures_are_mirrored_if_asked():
  ramp = np.zeros((4, 4, 3), np.uint8)
  ramp[...] = np.arange(4)[:, None]
  source = data_sets.Records([('a', data_sets.encode(ramp))])
  straight = train(source, 20, sizes=(4,))
  assert (straight == ramp).all()
  flipped = train(source, 20, sizes=(4,), flip=True).reshape(-1, 4, 4, 3)
  mirrored = (flipped == ramp[:, ::-1]).all(axis=(1, 2, 3))
  assert ((flipped == ramp).all(axis=(1, 2, 3)) ^ mirrored).all()
  assert 0.4 < mirrored.mean() < 0.6


def test_smaller_squares_are_cut_if_asked():
  plane = np.zeros((40, 40, 3), np.uint8)
  plane[..., 0], plane[..., 1] = np.mgrid[:40, :40]
  source = data_sets.Records([('a', data_sets.encode(plane))])
  corners = train(source, 20, sizes=(40,), min_crop=0.5).reshape(-1, 40, 40, 3)
  sides = np.ptp(corners[..., 0].astype(int), axis=(1, 2)) + 1
  assert sides.min() >= 20 and sides.max() <= 40
  assert sides.min() < 24 and sides.max() > 36
  np.testing.assert_array_equal(
    sides, np.ptp(corners[..., 1].astype(int), axis=(1, 2)) + 1
  )


@pytest.mark.parametrize('key', range(8))
def test_evaluation_sees_the_recorded_pixels(fixtures, key):
  with np.load(fixtures / 'coltran' / 'preprocess.npz') as recorded:
    wanted = {
      (256,): recorded[f'{key}:square256'],
      (256, 64): recorded[f'{key}:low64'],
      (256, 64, 256): recorded[f'{key}:up_back256'],
    }
    source = data_sets.Records(
      [('a', data_sets.encode(recorded[f'{key}:image']))]
    )
  for sizes, expected in wanted.items():
    ((batch,),) = evaluate(source, batch_size=1, sizes=sizes)
    np.testing.assert_array_equal(batch['image'][0], expected)


def test_training_resizes_as_evaluation_does():
  square = data_sets.picture(0, 50, 50)
  source = data_sets.Records([('a', data_sets.encode(square))])
  expected = image.resize(image.resize(square, 32, 32), 12, 12)
  batch = train(source, 1, sizes=(32, 12), batch_size=1)
  np.testing.assert_array_equal(batch[0, 0], expected)


@pytest.mark.parametrize('format', ['PNG', 'JPEG'])
def test_a_gray_picture_has_three_equal_channels(format):
  gray = data_sets.picture(0, 8, 8, 1)
  source = data_sets.Records([('a', data_sets.encode(gray, format))])
  batch = train(source, 1, sizes=(8,), batch_size=1)[0, 0]
  assert (batch == batch[..., :1]).all()
  if format == 'PNG':
    np.testing.assert_array_equal(batch[..., 0], gray)


@pytest.mark.parametrize('hosts', [1, 2, 4])
@pytest.mark.parametrize('total', [0, 1, 4, 7, 9])
def test_evaluation_counts_every_picture_once_on_any_number_of_hosts(
  hosts, total
):
  steps = evaluate(numbered(total), hosts=hosts)
  assert len(steps) == -(-total // 4)
  seen = []
  for step in steps:
    for batch in step:
      assert batch['image'].shape == (4 // hosts, 4, 4, 3)
      types = [batch[name].dtype for name in ('image', '_mask', '_id')]
      assert types == [np.uint8, bool, np.int32]
      ids = batch['_id']
      np.testing.assert_array_equal(batch['_mask'], ids >= 0)
      value = np.where(ids >= 0, ids, 0)[:, None, None, None]
      assert (batch['image'] == value).all()
      seen += ids[batch['_mask']].tolist()
  assert seen == list(range(total))


@pytest.mark.parametrize(('limit', 'count'), [(0, 0), (5, 5), (100, 7)])
def test_evaluation_can_be_limited(limit, count):
  steps = evaluate(numbered(7), limit=limit)
  masks = [batch['_mask'] for step in steps for batch in step]
  assert sum(mask.sum() for mask in masks) == count


def broken_record():
  return data_sets.encode(data_sets.picture(0, 40, 40), 'JPEG')[:700]


def write(folder, data):
  """A prepared `folder` whose record 5 holds the data; returns its train."""
  records = [(f'{i}.png', flat(i)) for i in range(8)]
  records[5] = ('dogs/5.jpg', data)
  data_sets.write('folder', folder, {'train': records})
  return sources.open_split('folder', folder, 'train')


@pytest.mark.parametrize('data', [b'', b'junk', broken_record()])
def test_a_broken_picture_is_named_at_its_batch(tmp_path, data):
  source = write(tmp_path, data)
  reason = r'folder, split train, record 5 \(dogs/5.jpg\): cannot be decoded: .'
  batches = input_pipeline.eval_batches(source, sizes=(3,), batch_size=2)
  assert [next(batches)['_id'][0] for _ in range(2)] == [0, 2]
  with pytest.raises(decoding.DataError, match=reason):
    next(batches)
  batches = input_pipeline.train_batches(
    source, sizes=(3,), batch_size=8, seed=0
  )
  with pytest.raises(decoding.DataError, match=reason):
    next(batches)


@pytest.mark.parametrize('share', [0, 0.3, 0.99])
def test_a_truncated_file_is_a_data_error_and_no_hang(tmp_path, share):
  write(tmp_path, flat(5))
  (file,) = (tmp_path / 'folder' / '1.0.0').glob('*array_record*')
  with open(file, 'r+b') as opened:
    opened.truncate(int(file.stat().st_size * share))
  with pytest.raises(
    decoding.DataError, match=r'train.* is damaged; remove it'
  ):
    source = sources.open_split('folder', tmp_path, 'train')
    next(input_pipeline.train_batches(source, sizes=(3,), batch_size=8, seed=0))


def test_a_missing_file_is_a_data_error(tmp_path):
  source = write(tmp_path, flat(5))
  (file,) = (tmp_path / 'folder' / '1.0.0').glob('*array_record*')
  file.unlink()
  with pytest.raises(decoding.DataError, match='is damaged; remove it'):
    evaluate(source)


def test_flipped_bits_are_noticed(tmp_path):
  data = data_sets.encode(data_sets.picture(0, 40, 40), 'BMP')
  source = write(tmp_path, data)
  (file,) = (tmp_path / 'folder' / '1.0.0').glob('*array_record*')
  content = bytearray(file.read_bytes())
  content[content.index(data[1000:1032]) + 9] ^= 4
  file.write_bytes(content)
  with pytest.raises(decoding.DataError, match=r'record 5: .* is damaged'):
    source[5]


def test_nothing_to_train_on_is_an_error():
  with pytest.raises(decoding.DataError, match='records has no pictures'):
    train(numbered(0), 1)


@pytest.mark.parametrize(
  ('wrong', 'reason'),
  [
    ({'batch_size': 6, 'num_parts': 4}, '6 cannot be split into 4'),
    ({'batch_size': 0}, 'batch of 0'),
    ({'parts': (2,), 'num_parts': 2}, r'no parts \(2,\) of 2'),
    ({'parts': (1, 0), 'num_parts': 2}, r'no parts \(1, 0\) of 2'),
    ({'parts': (), 'num_parts': 2}, r'no parts \(\) of 2'),
    ({'sizes': ()}, 'sides in pixels'),
    ({'sizes': (0, 8)}, 'sides in pixels'),
    ({'min_crop': 0}, r'min_crop must be in 0\.\.1'),
    ({'start_step': -1}, 'start_step must be 0 or more'),
  ],
)
def test_arguments_that_make_no_sense_are_value_errors(wrong, reason):
  options = {'sizes': (4,), 'batch_size': 4, 'seed': 0} | wrong
  with pytest.raises(ValueError, match=reason):
    input_pipeline.train_batches(numbered(3), **options)


def test_pictures_are_decoded_ahead_but_not_without_end():
  read = collections.Counter()
  lock = threading.Lock()

  class Counting(data_sets.Records):
    def __getitem__(self, i):
      with lock:
        read[threading.get_ident()] += 1
      return super().__getitem__(i)

  source = Counting(numbered(5).records)
  batches = input_pipeline.train_batches(
    source, sizes=(3,), batch_size=4, seed=0, num_threads=3
  )
  for _ in range(3):
    next(batches)
  batches.close()
  assert 12 <= read.total() <= 12 + 3 * 4
  assert threading.get_ident() not in read
