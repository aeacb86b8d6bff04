"""The reader of TensorFlow's checkpoints, and of the Snappy blocks in them."""

import json
import math
import time
import tracemalloc

import google_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest
import tensor_bundle_writer as writer

from coltran_jax.convert import snappy, sstable, tensor_bundle

STAGES = ('colorizer', 'color_upsampler', 'spatial_upsampler')
FOLDERS = [
  *(f'coltran/tf_checkpoints/{stage}' for stage in STAGES),
  *(f'pipeline/tf_checkpoints/{stage}' for stage in STAGES),
]
OBJECT_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'
VALUE = '/.ATTRIBUTES/VARIABLE_VALUE'
AVERAGE = '/ExponentialMovingAverage:0'


def open_bytes(folder, index):
  """Returns a Reader of an index given as bytes."""
  (folder / 'model-1.index').write_bytes(index)
  return tensor_bundle.Reader(folder / 'model-1')


def open_entry(folder, name=b'weights', **fields):
  """Returns a Reader of an index with one entry."""
  rows = [(name, writer.entry(**fields))]
  return open_bytes(folder, writer.index(rows))


def contents(reader):
  """Returns all that a reader tells, comparable, NaNs included."""
  arrays = {name: reader.read(name) for name in reader.entries}
  return reader.header, reader.entries, list(map(fingerprint, arrays.values()))


def fingerprint(array):
  data = array.tolist() if array.dtype == object else array.tobytes()
  return array.dtype, array.shape, data


def flips(data):
  """Yields (bit number, data with that bit flipped) for every bit."""
  for bit in range(8 * len(data)):
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    yield bit, bytes(flipped)


def trained_shapes(reader):
  """Returns variable -> shape, averages and optimizer slots held against it."""
  entries = reader.entries.items()
  shapes = {
    tensor_bundle.split_key(name): entry.shape for name, entry in entries
  }
  trained = {}
  for (node, slot, attribute), shape in shapes.items():
    if slot or AVERAGE in node or not node.endswith(':0'):
      continue
    average = tensor_bundle.Key(node[:-2] + AVERAGE, None, attribute)
    slot = tensor_bundle.Key(node, 'optimizer/rms', attribute)
    # The one kind of weight that ColTran never trains has neither of the two.
    if '/normalize/' in node:
      assert average not in shapes and slot not in shapes
    else:
      assert shapes[average] == shapes[slot] == shape
      trained[node] = shape
  return trained


SMALL = {
  'a/kernel': np.arange(6, dtype=np.float32).reshape(2, 3),
  'a/scalar': np.array(7, np.int64),
  'b': np.array([b'', b'one', b'two' * 50], object),
}


# --- Recorded checkpoints.


@pytest.mark.parametrize('folder', FOLDERS)
def test_every_tensor_of_a_recorded_checkpoint_reads(fixtures, folder):
  prefix = tensor_bundle.find_prefix(fixtures / folder)
  assert prefix == fixtures / folder / 'model-1'
  reader = tensor_bundle.Reader(prefix)
  reader.check_shards()
  for name, entry in reader.entries.items():
    array = reader.read(name)
    assert (array.dtype, array.shape) == (entry.dtype, entry.shape)
    assert entry.is_string == (name == OBJECT_GRAPH)
    assert entry.is_string or np.isfinite(array).all()
  # The object graph lists the key of every other tensor: the names are whole.
  graph = reader.read(OBJECT_GRAPH).item()
  missing = {n for n in reader.entries if n.encode() not in graph}
  assert missing == {OBJECT_GRAPH}
  assert reader.read('save_counter' + VALUE) == 1


@pytest.mark.parametrize('stage', STAGES)
def test_shapes_in_recorded_checkpoints_follow_from_the_config(fixtures, stage):
  folder = fixtures / 'coltran/tf_checkpoints' / stage
  with np.load(folder / 'expected.npz') as expected:
    model = json.loads(str(expected['config']))['model']
  raw = trained_shapes(tensor_bundle.Reader(folder / 'model-1'))
  depth = model['hidden_size']
  heads = model.get('num_heads') or model['encoder']['num_heads']
  height, width = model['resolution']
  scope = {
    'colorizer': 'col_tran_core/gray_scale_encoder/factorized_attention',
    'color_upsampler': 'color_upsampler/factorized_attention',
    'spatial_upsampler': 'spatial_upsampler/factorized_attention',
  }[stage]
  expected = {
    'position_embed/position_embedding_0:0': (height, 1, depth),
    'position_embed/position_embedding_1:0': (width, depth),
    'self_attention_nd/q/kernel:0': (depth, heads, depth // heads),
    'self_attention_nd/v/kernel:0': (depth, heads, depth // heads),
  }
  assert expected == {name: raw[f'{scope}/{name}'] for name in expected}


@pytest.mark.parametrize(
  'stage, prefix, parameters',
  [
    ('colorizer', 'model-302', 46_310_400),
    ('color_upsampler', 'model-449', 13_476_608),
    ('spatial_upsampler', 'model-121', 10_910_464),
  ],
)
def test_published_indexes_tile_their_data_files(
  fixtures, stage, prefix, parameters
):
  folder = fixtures / 'coltran/official_index' / stage
  assert tensor_bundle.find_prefix(folder) == folder / prefix
  reader = tensor_bundle.Reader(folder / prefix)
  entries = reader.entries
  end = 0
  for entry in sorted(entries.values(), key=lambda entry: entry.offset):
    assert (entry.shard, entry.offset) == (0, end)
    end += entry.size
  assert len({entry.crc32c for entry in entries.values()}) > len(entries) / 2
  assert sum(map(math.prod, trained_shapes(reader).values())) == parameters
  assert entries[OBJECT_GRAPH].is_string
  with pytest.raises(
    tensor_bundle.BundleError, match=r'00000-of-00001.*No such'
  ):
    reader.check_shards()
  with pytest.raises(tensor_bundle.BundleError, match='save_counter'):
    reader.read('save_counter' + VALUE)


# --- Round trips.


def arrays(names=tuple(writer.DTYPES)):
  """A strategy for arrays of every dtype, empty ones and scalars included."""
  shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)

  @st.composite
  def draw(draw):
    name, shape = draw(st.sampled_from(names)), draw(shapes)
    count = math.prod(shape)
    if name == 'object':
      array = np.empty(count, object)
      array[:] = draw(st.lists(st.binary(), min_size=count, max_size=count))
      return array.reshape(shape)
    dtype = writer.dtype(name)
    if name == 'bool':
      return draw(hnp.arrays(bool, shape))
    size = count * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    return np.frombuffer(data, dtype).reshape(shape)

  return draw()


NAMES = st.text(
  st.characters(exclude_categories=['Cs'], exclude_characters='\0'), min_size=1
)


@given(
  tensors=st.dictionaries(NAMES, arrays(), max_size=8),
  num_shards=st.integers(1, 3),
  block_size=st.integers(1, 500),
  restart=st.integers(1, 16),
  compression=st.sampled_from(writer.COMPRESSIONS),
)
def test_whatever_is_written_comes_back(
  tmp_path_factory, tensors, num_shards, block_size, restart, compression
):
  prefix = tmp_path_factory.mktemp('bundle') / 'model-1'
  writer.write(prefix, tensors, num_shards, block_size, restart, compression)
  reader = tensor_bundle.Reader(prefix)
  reader.check_shards()
  assert reader.header.num_shards == num_shards
  assert list(reader.entries) == sorted(tensors, key=str.encode)
  for name, array in tensors.items():
    read = reader.read(name)
    assert fingerprint(read) == fingerprint(array)
    assert not read.flags.writeable


def test_a_table_of_many_blocks_and_shared_prefixes_reads(tmp_path):
  tensors = {
    f'encoder/layer_{i}/kernel': np.full(i % 5, i, np.int32) for i in range(900)
  }
  for compression in writer.COMPRESSIONS:
    prefix = tmp_path / f'{compression}-1'
    writer.write(prefix, tensors, 4, 1000, compression=compression)
    reader = tensor_bundle.Reader(prefix)
    assert all((reader.read(n) == a).all() for n, a in tensors.items())
  raw, _, copies = (
    (tmp_path / f'{kind}-1.index').stat().st_size
    for kind in writer.COMPRESSIONS
  )
  assert copies < raw


# --- Damage.


@pytest.mark.parametrize('compression', writer.COMPRESSIONS)
def test_every_flipped_bit_of_an_index_is_detected(tmp_path, compression):
  prefix = tmp_path / 'model-1'
  writer.write(prefix, SMALL, 2, block_size=60, compression=compression)
  path = tmp_path / 'model-1.index'
  index = path.read_bytes()
  original = contents(tensor_bundle.Reader(prefix))
  padding = range(8 * (len(index) - 48), 8 * (len(index) - 8))
  undetected = 0
  for bit, flipped in flips(index):
    path.write_bytes(flipped)
    try:
      reader = tensor_bundle.Reader(prefix)
    except tensor_bundle.BundleError as error:
      assert str(path) in str(error)
      continue
    # Nothing reads the bytes that pad the footer to its length.
    assert bit in padding
    assert contents(reader) == original
    undetected += 1
  assert 0 < undetected < len(padding)


def test_every_flipped_bit_of_a_data_file_is_detected(tmp_path):
  prefix = tmp_path / 'model-1'
  writer.write(prefix, SMALL)
  reader = tensor_bundle.Reader(prefix)
  path = reader.shard_path(0)
  for bit, flipped in flips(path.read_bytes()):
    path.write_bytes(flipped)
    damaged = [
      name
      for name, entry in reader.entries.items()
      if entry.offset <= bit // 8 < entry.offset + entry.size
    ]
    (name,) = damaged
    with pytest.raises(tensor_bundle.BundleError) as caught:
      reader.read(name)
    assert str(path) in str(caught.value) and repr(name) in str(caught.value)
    assert 'download it again' in str(caught.value)


@pytest.mark.parametrize('compression', writer.COMPRESSIONS)
def test_an_index_cut_anywhere_is_refused(tmp_path, compression):
  writer.write(tmp_path / 'whole', SMALL, compression=compression)
  index = (tmp_path / 'whole.index').read_bytes()
  for size in range(len(index)):
    with pytest.raises(tensor_bundle.BundleError, match='download it again'):
      open_bytes(tmp_path, index[:size])


def test_a_data_file_cut_anywhere_is_refused(tmp_path):
  prefix = tmp_path / 'model-1'
  writer.write(prefix, SMALL)
  reader = tensor_bundle.Reader(prefix)
  path = reader.shard_path(0)
  data = path.read_bytes()
  for size in reversed(range(len(data))):
    path.write_bytes(data[:size])
    numbers = f'has {size} bytes, expected {len(data)}'
    with pytest.raises(tensor_bundle.BundleError, match=numbers):
      reader.check_shards()
    for name, entry in reader.entries.items():
      if entry.offset + entry.size > size:
        with pytest.raises(tensor_bundle.BundleError, match=repr(name)):
          reader.read(name)
      else:
        reader.read(name)
  path.unlink()
  with pytest.raises(tensor_bundle.BundleError, match=f'{len(data)} bytes'):
    reader.check_shards()


def test_missing_things_are_named(tmp_path):
  with pytest.raises(
    tensor_bundle.BundleError, match=r'model-9\.index: No such'
  ):
    tensor_bundle.Reader(tmp_path / 'model-9')
  writer.write(tmp_path / 'model-1', SMALL, num_shards=3)
  reader = tensor_bundle.Reader(tmp_path / 'model-1')
  with pytest.raises(tensor_bundle.BundleError, match="no tensor 'nothing'"):
    reader.read('nothing')
  reader.shard_path(1).unlink()
  with pytest.raises(tensor_bundle.BundleError, match='00001-of-00003'):
    reader.check_shards()
  (tmp_path / 'folder.index').mkdir()
  with pytest.raises(tensor_bundle.BundleError, match=r'folder\.index'):
    tensor_bundle.Reader(tmp_path / 'folder')


# --- Hostile files: every checksum is right.


def read_all(folder, index):
  """Opens an index and reads what it lists; BundleErrors are fine."""
  (folder / 'model-1.data-00000-of-00001').write_bytes(bytes(100))
  try:
    reader = open_bytes(folder, index)
  except tensor_bundle.BundleError:
    return
  for name in reader.entries:
    try:
      reader.read(name)
    except tensor_bundle.BundleError as error:
      assert repr(name) in str(error)


@given(data=st.binary(max_size=300), footer=st.binary(max_size=40))
@settings(max_examples=200)
def test_arbitrary_bytes_are_never_an_index(tmp_path_factory, data, footer):
  folder = tmp_path_factory.mktemp('bundle')
  for index in (data, data + footer.ljust(40, b'\0') + writer.MAGIC):
    with pytest.raises(tensor_bundle.BundleError):
      open_bytes(folder, index)


@given(blocks=st.lists(st.binary(max_size=40), max_size=3), index=st.binary())
@settings(max_examples=200)
def test_arbitrary_blocks_raise_nothing_but_bundle_errors(
  tmp_path_factory, blocks, index
):
  folder = tmp_path_factory.mktemp('bundle')
  for compression in ('raw', 'copies'):
    read_all(folder, writer.table(blocks, compression))
    read_all(folder, writer.table(blocks, compression, index=index))
  valid = writer.entries_block([(b'', writer.header())])
  read_all(folder, writer.table([valid, *blocks]))


FIELDS = st.lists(
  st.builds(
    writer.field,
    st.integers(0, 8),
    st.integers(-3, 12) | st.integers(-(1 << 63), 1 << 63) | st.binary(),
  )
).map(b''.join)


@given(
  values=st.lists(FIELDS | st.binary(), min_size=1, max_size=3),
  more=st.lists(FIELDS),
)
@settings(max_examples=300)
def test_arbitrary_entries_raise_nothing_but_bundle_errors(
  tmp_path_factory, values, more
):
  folder = tmp_path_factory.mktemp('bundle')
  rows = [(b'%d' % i, value) for i, value in enumerate(values)]
  rows += [(b'x%03d' % i, writer.entry(more=m)) for i, m in enumerate(more)]
  read_all(folder, writer.index(rows))
  read_all(folder, writer.table([writer.entries_block([(b'', values[0])])]))


@given(data=st.binary(max_size=80), count=st.integers(0, 90))
def test_arbitrary_string_tensors_raise_nothing_but_bundle_errors(
  tmp_path_factory, data, count
):
  folder = tmp_path_factory.mktemp('bundle')
  (folder / 'model-1.data-00000-of-00001').write_bytes(data)
  try:
    reader = open_entry(folder, type_number=7, shape=(count,), size=len(data))
  except tensor_bundle.BundleError:
    assert count + 4 > len(data)
    return
  with pytest.raises(tensor_bundle.BundleError, match="'weights'"):
    reader.read('weights')


def string_tensor(folder, lengths, tail, checksum=None):
  """Returns a Reader of one string tensor with correct checksums."""
  if checksum is None:
    packed = np.array([n & 0xFFFFFFFF for n in lengths], '<u4').tobytes()
    checksum = google_crc32c.value(packed)
  stored = writer.mask(checksum) + tail
  data = b''.join(map(writer.varint, lengths)) + stored
  crc = writer.mask(google_crc32c.extend(checksum, stored))
  (folder / 'model-1.data-00000-of-00001').write_bytes(data)
  shape = (len(lengths),)
  return open_entry(folder, type_number=7, shape=shape, size=len(data), crc=crc)


def test_string_lengths_must_fill_the_tensor(tmp_path):
  read = string_tensor(tmp_path, [2, 0, 3], b'abcde').read('weights')
  assert read.tolist() == [b'ab', b'', b'cde']
  for lengths in ([2, 2], [2, 9], [5 + (1 << 32)], [1 << 63, 5]):
    reader = string_tensor(tmp_path, lengths, b'abcde')
    with pytest.raises(tensor_bundle.BundleError, match='do not fill'):
      reader.read('weights')
  reader = string_tensor(tmp_path, [5], b'abcde', checksum=1)
  with pytest.raises(
    tensor_bundle.BundleError, match='checksum of its lengths'
  ):
    reader.read('weights')


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'more': writer.field(7, b'')}, 'slices.* unsupported'),
    ({'type_number': 0}, 'type number 0.* unsupported'),
    ({'type_number': 21}, 'type number 21.* unsupported'),
    ({'shape': (1,) * 65}, '65 dimensions.* unsupported'),
    ({'more': writer.field(2, writer.field(3, 1))}, 'no known shape'),
    ({'shape': (-1,)}, 'negative number -1'),
    ({'shape': (3,)}, r'4 bytes.*float32 of shape \(3,\)'),
    ({'shape': (), 'size': 8}, '8 bytes'),
    ({'shape': (0,)}, '4 bytes'),
    ({'shape': (1 << 62, 0), 'size': 0}, 'impossible shape'),
    ({'shape': (1 << 62, 1 << 62)}, 'impossible shape'),
    ({'type_number': 7, 'shape': (1 << 50,), 'size': 99}, 'do not fit'),
    ({'type_number': 7, 'size': 1 << 32}, 'bytes of strings.* unsupported'),
    ({'shard': 1}, 'data file 1 of only 1'),
    ({'offset': -4}, 'negative number -4'),
    ({'size': -4}, 'negative number -4'),
    ({'more': writer.field(6, 5)}, 'malformed'),
    ({'more': b'\x63'}, 'malformed'),
    ({'more': b'\x80'}, 'ends inside a number'),
    ({'more': b'\x08' + b'\xff' * 10}, 'more than 64 bits'),
  ],
)
def test_an_entry_beyond_the_reader_names_file_and_tensor(
  tmp_path, fields, words
):
  with pytest.raises(tensor_bundle.BundleError, match=words) as caught:
    open_entry(tmp_path, **fields)
  place = f"{tmp_path / 'model-1.index'}: tensor 'weights': "
  assert str(caught.value).startswith(place)


@pytest.mark.parametrize(
  'header, words',
  [
    ({'endianness': 1}, 'big-endian.* unsupported'),
    ({'version': 2}, 'version 2.* unsupported'),
    ({'num_shards': 0}, '0 data files'),
    ({'num_shards': 1 << 31}, '2147483648 data files'),
    ({'num_shards': -1}, 'negative number -1'),
  ],
)
def test_a_header_beyond_the_reader_is_refused(tmp_path, header, words):
  with pytest.raises(tensor_bundle.BundleError, match=words):
    open_bytes(tmp_path, writer.index([], **header))


def test_names_that_no_tensor_has_are_refused(tmp_path):
  with pytest.raises(tensor_bundle.BundleError, match=r'slices.* unsupported'):
    open_entry(tmp_path, name=b'\0weights\0\x01')
  with pytest.raises(tensor_bundle.BundleError, match=r"called b'\\xff'"):
    open_entry(tmp_path, name=b'\xff')


def test_keys_must_increase_across_entries_and_blocks(tmp_path):
  header, value = (b'', writer.header()), writer.entry()
  for rows in ([b'b', b'a'], [b'a', b'a']):
    blocks = [[header, *((key, value) for key in rows)]]
    blocks.append([[header, (rows[0], value)], [(rows[1], value)]])
    for groups in ([blocks[0]], blocks[1]):
      index = writer.table([writer.entries_block(g, 1) for g in groups])
      with pytest.raises(tensor_bundle.BundleError, match='out of order'):
        open_bytes(tmp_path, index)
  for rows in ([], [(b'a', value)]):
    with pytest.raises(tensor_bundle.BundleError, match='no header'):
      open_bytes(tmp_path, writer.table([writer.entries_block(rows)]))


def test_a_block_listed_twice_is_refused(tmp_path):
  block = writer.entries_block([])
  handle = writer.varint(0) + writer.varint(len(block))
  index = writer.entries_block([(b'a', handle), (b'b', handle)])
  with pytest.raises(tensor_bundle.BundleError, match='overlap'):
    open_bytes(tmp_path, writer.table([block], index=index))


@pytest.mark.parametrize(
  'block, words',
  [
    (b'abc', 'too short'),
    (bytes(4) + b'\x02\0\0\0', 'too short'),
    (b'\xff\xff\xff\xff', 'too short'),
    (b'\x01\x01\0k' + bytes(4), 'does not fit'),
    (b'\x00\x02\0k' + bytes(4), 'does not fit'),
    (b'\x00\x01\x01k' + bytes(4), 'does not fit'),
    (b'\x00\x01' + bytes(4), 'ends inside a number'),
  ],
)
def test_a_malformed_block_says_what_is_wrong(tmp_path, block, words):
  with pytest.raises(tensor_bundle.BundleError, match=words):
    open_bytes(tmp_path, writer.table([block]))


def test_a_block_of_unknown_compression_is_refused(tmp_path):
  index = writer.table([writer.entries_block([])], 'unknown')
  with pytest.raises(tensor_bundle.BundleError, match='unknown compression 2'):
    open_bytes(tmp_path, index)


def test_a_block_beyond_the_end_is_refused(tmp_path):
  block = writer.entries_block([])
  for offset, size in ((0, 1 << 62), (1 << 62, 0), (0, 60), (30, 20)):
    handle = writer.varint(offset) + writer.varint(size)
    index = writer.entries_block([(b'a', handle)])
    with pytest.raises(tensor_bundle.BundleError, match='beyond its end'):
      open_bytes(tmp_path, writer.table([block], index=index))


def test_a_claimed_size_allocates_nothing(tmp_path):
  (tmp_path / 'model-1.data-00000-of-00001').write_bytes(bytes(100))
  tracemalloc.start()
  for number, shape, size in (
    (1, (1 << 20, 1 << 18), 1 << 40),
    (7, (1 << 31,), (1 << 32) - 1),
  ):
    reader = open_entry(tmp_path, type_number=number, shape=shape, size=size)
    assert reader.entries['weights'].shape == shape
    words = f'100 bytes, expected {size:,}'
    with pytest.raises(tensor_bundle.BundleError, match=words):
      reader.check_shards()
    with pytest.raises(tensor_bundle.BundleError, match=words):
      reader.read('weights')
    far = open_entry(tmp_path, offset=(1 << 63) - 1)
    with pytest.raises(tensor_bundle.BundleError, match='has 100 bytes'):
      far.read('weights')
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 1 << 20


def test_an_index_that_unfolds_without_end_is_refused():
  # 2 MB of keys from 5 kB, 1 MB of zeros from 50 kB, and the same in tenths.
  keys = [(b'k' * 2000 + b'%04d' % i, b'') for i in range(1000)]
  bombs = [
    ('literals', [writer.entries_block(keys, restart=2000)], 'unfolds'),
    ('copies', [bytes(1 << 20)], 'announces'),
    (
      'copies',
      [writer.entries_block([(b'%d' % i, bytes(100_000))]) for i in range(10)],
      'unfolds|announces',
    ),
  ]
  for compression, blocks, words in bombs:
    index = writer.table(blocks, compression)
    assert len(index) < 60_000
    start = time.perf_counter()
    with pytest.raises(sstable.TableError, match=words):
      list(sstable.read_rows(index, max_unfolded=500_000))
    assert time.perf_counter() - start < 1


def test_a_table_of_many_blocks_is_copied_once():
  copied = []

  class Watched(bytes):
    def __getitem__(self, key):
      part = super().__getitem__(key)
      copied.append(len(part) if isinstance(key, slice) else 0)
      return part

  rows = [(b'%08d' % i, b'') for i in range(1000)]
  blocks = [writer.entries_block([row]) for row in rows]
  data = Watched(writer.table(blocks))
  assert list(sstable.read_rows(data, 1 << 20)) == rows
  assert sum(copied) <= len(data)


def test_an_oversized_index_is_refused_before_it_is_read(tmp_path):
  with open(tmp_path / 'model-1.index', 'wb') as file:
    file.truncate(tensor_bundle.MAX_INDEX_BYTES + 1)  # sparse: no disk space
  tracemalloc.start()
  with pytest.raises(tensor_bundle.BundleError, match='at most 67,108,864'):
    tensor_bundle.Reader(tmp_path / 'model-1')
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 1 << 20


# --- Which checkpoint a path means.


def make_folder(folder, names, checkpoint=None):
  for name in names:
    (folder / f'{name}.index').write_bytes(b'')
  if checkpoint is not None:
    (folder / 'checkpoint').write_text(checkpoint, encoding='utf-8')


def test_a_prefix_an_index_and_a_folder_mean_the_same_checkpoint(tmp_path):
  make_folder(tmp_path, ['model-7'])
  prefix = tmp_path / 'model-7'
  for path in (prefix, f'{prefix}.index', tmp_path, f'{tmp_path}/'):
    assert tensor_bundle.find_prefix(path) == prefix


def test_without_a_checkpoint_file_the_highest_step_wins(tmp_path):
  make_folder(tmp_path, ['model-9', 'model-10', 'model', 'other-2', '._zip-99'])
  (tmp_path / 'folder-11.index').mkdir()
  assert tensor_bundle.find_prefix(tmp_path) == tmp_path / 'model-10'
  make_folder(tmp_path, ['other-10'])
  with pytest.raises(
    tensor_bundle.BundleError, match=r'model-10\.index, other-10\.index'
  ):
    tensor_bundle.find_prefix(tmp_path)


@pytest.mark.parametrize(
  'text, name',
  [
    ('model_checkpoint_path: "model-2"\n', 'model-2'),
    ('model_checkpoint_path:"/elsewhere/run/model-2"', 'model-2'),
    ('  model_checkpoint_path : "../../model-2" # note', 'model-2'),
    ('model_checkpoint_path: "C:\\\\run\\\\model-2"', 'model-2'),
    ('model_checkpoint_path: "caf\\303\\251-3"', 'café-3'),
    ('model_checkpoint_path: "a \\"b\\""', 'a "b"'),
    (
      'all_model_checkpoint_paths: "model-9"\nmodel_checkpoint_path: "model-2"',
      'model-2',
    ),
  ],
)
def test_the_checkpoint_file_decides_within_its_folder(tmp_path, text, name):
  folder = tmp_path / 'run' / 'inner'
  folder.mkdir(parents=True)
  make_folder(tmp_path, ['model-2'])
  make_folder(folder, ['model-2', 'model-9', 'café-3', 'a "b"'], text)
  assert tensor_bundle.find_prefix(folder) == folder / name


@pytest.mark.parametrize(
  'text',
  [
    '',
    'all_model_checkpoint_paths: "model-2"',
    'model_checkpoint_path: "model-2',
    'model_checkpoint_path: model-2',
    'model_checkpoint_path: "model-3"',
    'model_checkpoint_path: "../outside-1"',
    'model_checkpoint_path: "' + '../' * 9 + 'outside-1"',
    'model_checkpoint_path: "."',
    'model_checkpoint_path: ".."',
    'model_checkpoint_path: "model-2/"',
    'model_checkpoint_path: "model-2\\000"',
    'model_checkpoint_path: "\\377\\777"',
    'model_checkpoint_path: "' + 'x' * 5000 + '"',
  ],
)
def test_a_checkpoint_file_that_names_nothing_here_lists_what_is(
  tmp_path, text
):
  folder = tmp_path / 'run'
  folder.mkdir()
  make_folder(tmp_path, ['outside-1'])
  make_folder(folder, ['model-2', 'model-1'], text)
  with pytest.raises(
    tensor_bundle.BundleError, match=r'model-1\.index, model-2\.index'
  ) as caught:
    tensor_bundle.find_prefix(folder)
  assert str(folder / 'checkpoint') in str(caught.value)


@given(text=st.text(st.sampled_from('model-2/.."\\\n:037'), max_size=30))
@settings(max_examples=200)
def test_no_checkpoint_file_leads_out_of_its_folder(tmp_path_factory, text):
  folder = tmp_path_factory.mktemp('run') / 'inner'
  folder.mkdir()
  make_folder(folder.parent, ['2', 'model-2', 'm'])
  make_folder(folder, ['2', '22'], f'model_checkpoint_path: "{text}"')
  try:
    prefix = tensor_bundle.find_prefix(folder)
  except tensor_bundle.BundleError:
    return
  assert prefix in (folder / '2', folder / '22')


def test_a_folder_without_checkpoints_says_so(tmp_path):
  make_folder(tmp_path, [], 'model_checkpoint_path: "model-2"')
  with pytest.raises(tensor_bundle.BundleError) as caught:
    tensor_bundle.find_prefix(tmp_path)
  expected = f'no TensorFlow checkpoint (*.index) in {tmp_path}'
  assert str(caught.value) == expected
  for path in ('absent', 'x' * 5000, 'nul\0'):
    with pytest.raises(tensor_bundle.BundleError, match='give a folder'):
      tensor_bundle.find_prefix(tmp_path / path)


# --- Names.


def escape(name):
  """TensorFlow's escaping of the name of one edge of the object graph."""
  return name.replace('.', '..').replace('/', '.S')


EDGES = st.text(st.sampled_from('./SAab') | st.characters(), min_size=1) | (
  st.sampled_from(['.ATTRIBUTES', '/.ATTRIBUTES/x', 'a/.OPTIMIZER_SLOT/b'])
)


@given(edge=EDGES)
def test_unescape_undoes_the_escaping_of_tensorflow(edge):
  assert tensor_bundle.unescape(escape(edge)) == edge
  assert tensor_bundle.unescape(escape(edge) + VALUE) == edge


@given(edges=st.lists(EDGES, min_size=1), slot=EDGES, attribute=EDGES)
def test_the_parts_of_a_key_are_told_apart_whatever_they_are_called(
  edges, slot, attribute
):
  node, path = '/'.join(edges), '/'.join(map(escape, edges))
  suffix = f'/.ATTRIBUTES/{escape(attribute)}'
  split = tensor_bundle.split_key
  assert split(path) == (node, None, None)
  assert split(path + suffix) == (node, None, attribute)
  middle = f'/.OPTIMIZER_SLOT/optimizer/{escape(slot)}'
  assert split(path + middle + suffix) == (node, f'optimizer/{slot}', attribute)


def test_keys_of_the_published_checkpoints_split():
  key = 'col_tran_core.Sdense.Skernel:0'
  assert tensor_bundle.unescape(key + VALUE) == 'col_tran_core/dense/kernel:0'
  slot = f'{key}/.OPTIMIZER_SLOT/optimizer/rms{VALUE}'
  assert tensor_bundle.split_key(slot) == tensor_bundle.Key(
    'col_tran_core/dense/kernel:0', 'optimizer/rms', 'VARIABLE_VALUE'
  )


# --- Snappy.

# Data with short and long repeats: random bytes have next to none.
REPETITIVE = st.lists(
  st.tuples(st.binary(max_size=70), st.integers(1, 9)), max_size=6
).map(lambda parts: b''.join(piece * times for piece, times in parts))


@given(data=REPETITIVE, copies=st.booleans())
def test_snappy_blocks_decompress_to_what_was_compressed(data, copies):
  block = writer.compress(data, copies)
  assert snappy.decompress(block, len(data)) == data


def test_snappy_literals_of_every_length_form_decompress():
  rng = np.random.default_rng(0)
  for size in (1, 60, 61, 256, 257, 65_536, 65_537, 1 << 24, (1 << 24) + 1):
    data = rng.bytes(size)
    block = writer.compress(data, copies=False)
    assert snappy.decompress(block, size) == data


@pytest.mark.parametrize('kind', [1, 2, 3])
def test_snappy_copies_of_every_kind_may_overlap_themselves(kind):
  for offset in (1, 2, 3, 4, 7):
    for length in (4, 7, 11):
      start = b'abcdefg'[:offset]
      block = writer.varint(offset + length) + writer.literal(start)
      block += writer.copy(offset, length, kind)
      expected = (start * 12)[: offset + length]
      assert snappy.decompress(block, 100) == expected


def test_a_block_of_another_snappy_implementation_decompresses():
  block = bytes.fromhex(
    'ea04406c617965725f302f6b65726e656c3a3020091100313e110000343e110000328211'
    '00423300425500fe7700fe7700fe7700fe7700fe7700ee770005770000fe010062010004'
    '61623e0200'
  )
  layers = b''.join(b'layer_%d/kernel:0 ' % (i * i % 7) for i in range(30))
  assert snappy.decompress(block, 618) == layers + bytes(90) + b'ab' * 9


@pytest.mark.parametrize(
  'block, words',
  [
    (b'', 'no valid length'),
    (b'\x80', 'no valid length'),
    (b'\x80' * 5 + b'\x01', 'no valid length'),
    (b'\xff\xff\xff\xff\x1f', 'no valid length'),
    (b'\xff\xff\xff\xff\x0f', 'announces 4,294,967,295'),
    (b'\x03\x08ab', 'inside an element'),
    (b'\x02\xf4\x01', 'inside an element'),
    (b'\x05\x00a\x01', 'inside an element'),
    (b'\x05\x00a\x0f\x01\x00', 'inside an element'),
    (b'\x05\x01\x01', '1 bytes back at 0'),
    (b'\x05\x00a\x01\x02', '2 bytes back at 1'),
    (b'\x05\x00a\x01\x00', '0 bytes back at 1'),
    (b'\x05\x00a\x0f\xff\xff\xff\xff', '4294967295 bytes back'),
    (b'\x04\x00a\x01\x01', 'more than the 4'),
    (b'\x01\x04ab', 'more than the 1'),
    (b'\x02\x00a', '1 of the 2'),
    (b'\x01', '0 of the 1'),
    (b'\x00\x00a', 'more than the 0'),
  ],
)
def test_a_malformed_snappy_block_says_what_is_wrong(block, words):
  with pytest.raises(snappy.SnappyError, match=words):
    snappy.decompress(block, 1000)


@given(
  data=REPETITIVE,
  cut=st.integers(0, 500),
  flip=st.integers(0, 4000),
  junk=st.binary(max_size=40),
)
@settings(max_examples=300)
def test_a_broken_snappy_block_is_an_error_or_stays_in_its_bounds(
  data, cut, flip, junk
):
  block = writer.compress(data)
  with pytest.raises(snappy.SnappyError):
    snappy.decompress(block[: cut % len(block)], 1000)
  flipped = bytearray(block)
  flipped[flip // 8 % len(block)] ^= 1 << flip % 8
  for broken in (bytes(flipped), junk, block + junk):
    try:
      out = snappy.decompress(broken, 1000)
    except snappy.SnappyError:
      continue
    assert len(out) <= 1000
