"""The checkpoint directory: all or nothing, and nothing wrong goes unseen."""

import json

import numpy as np
import pytest
import tensorstore as ts

from coltran_jax import checkpoint, decoding_rule

PARAMS = {
  'dense': {'kernel': np.arange(12, dtype=np.float32).reshape(3, 4)},
  'bias': np.ones(4, np.float32),
}
SHAPES = {('dense', 'kernel'): (3, 4), ('bias',): (4,)}


@pytest.fixture
def folder(tmp_path):
  checkpoint.save(tmp_path, 'cnn', {'depth': 2}, PARAMS, 'a test')
  return tmp_path / 'cnn'


def edit(folder, **changes):
  path = folder / 'config.json'
  config = json.loads(path.read_text()) | changes
  config = {key: value for key, value in config.items() if value is not None}
  path.write_text(json.dumps(config))


def test_what_is_saved_is_loaded(folder):
  config, params = checkpoint.load(folder)
  assert config['name'] == 'cnn'
  assert config['model'] == {'depth': 2}
  assert config['source'] == 'a test'
  np.testing.assert_array_equal(
    params['dense']['kernel'], PARAMS['dense']['kernel']
  )
  np.testing.assert_array_equal(params['bias'], PARAMS['bias'])
  checkpoint.check_shapes(folder, params, SHAPES)


def test_what_is_saved_in_half_is_loaded_as_float32(tmp_path):
  params = {'kernel': np.array([1 / 3, 65504, 1e-7], np.float32)}
  checkpoint.save(tmp_path, 'cnn', {}, checkpoint.halved(params), 'a test')
  loaded = checkpoint.load(tmp_path / 'cnn')[1]['kernel']
  assert loaded.dtype == np.float32
  np.testing.assert_array_equal(loaded, params['kernel'].astype(np.float16))
  with pytest.raises(checkpoint.CheckpointError, match='too large'):
    checkpoint.halved({'kernel': np.array([1e6], np.float32)})


def test_a_decoding_is_kept_and_completed(folder, tmp_path):
  read = checkpoint.read_config
  assert read(folder / 'config.json')['decoding'] == decoding_rule.DEFAULTS
  checkpoint.save(tmp_path, 'colorizer', {}, PARAMS, '', {'temperature': 0.8})
  path = tmp_path / 'colorizer' / 'config.json'
  expected = decoding_rule.DEFAULTS | {'temperature': 0.8}
  assert read(path)['decoding'] == expected
  numbers = [-1, float('nan'), 1e7, '1', True, [1]]
  for wrong in (
    *({'temperature': x} for x in numbers),
    {'min_p': 2},
    {'encoder_weight': -1},
    {'vividness': 101},
    *({'mean_of': x} for x in (0, 65, 2.0, True)),
    {'x': 1},
    1,
  ):
    edit(path.parent, decoding=wrong)
    with pytest.raises(
      checkpoint.CheckpointError,
      match=r'temperature|min_p|encoder_weight|vividness|mean_of',
    ):
      checkpoint.load(path.parent)


def test_nothing_saved_holds_a_path_of_this_machine(folder):
  for path in folder.rglob('*'):
    assert path.is_dir() or str(folder.parent).encode() not in path.read_bytes()


def test_a_stage_that_is_there_is_not_replaced(folder):
  with pytest.raises(checkpoint.CheckpointError, match='exists'):
    checkpoint.save(folder.parent, 'cnn', {}, PARAMS, '')
  assert checkpoint.load(folder)[0]['model'] == {'depth': 2}


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(checkpoint.ocp.Checkpointer, 'save', fail)
  with pytest.raises(checkpoint.CheckpointError, match='No space left'):
    checkpoint.save(tmp_path, 'cnn', {}, PARAMS, '')
  assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(checkpoint.CheckpointError, match='file'):
    checkpoint.save(tmp_path / 'file', 'cnn', {}, PARAMS, '')


def test_the_fingerprint_depends_on_every_bit_name_and_shape():
  kernel = PARAMS['dense']['kernel']
  seen = {checkpoint.fingerprint(PARAMS)}
  for change in (
    {'dense': {'kernel': np.nextafter(kernel, 99)}},
    {'dense': {'kernel': kernel[::-1]}},
    {'dense': {'kernel': kernel.reshape(4, 3)}},
    {'other': {'kernel': kernel}, 'dense': {}},
    {'bias': PARAMS['bias'].astype(np.float16)},
  ):
    seen.add(checkpoint.fingerprint(PARAMS | change))
  assert len(seen) == 6
  for position in range(kernel.size):
    for bit in (0, 13, 31):
      words = kernel.copy().view(np.uint32)
      words.flat[position] ^= 1 << bit
      changed = {'dense': {'kernel': words.view(np.float32)}}
      seen.add(checkpoint.fingerprint(PARAMS | changed))
  assert len(seen) == 6 + 3 * kernel.size


def test_changed_arrays_are_noticed(folder):
  edit(folder, fingerprint='00000000')
  with pytest.raises(
    checkpoint.CheckpointError, match=r'fingerprint.*00000000'
  ):
    checkpoint.load(folder)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'source': None}, 'must have the keys'),
    ({'extra': 1}, 'must have the keys'),
    ({'model': [1]}, "'model' must be an object"),
  ],
)
def test_a_config_of_another_form_is_refused(folder, changes, message):
  edit(folder, **changes)
  with pytest.raises(checkpoint.CheckpointError, match=message):
    checkpoint.load(folder)


@pytest.mark.parametrize('text', ['', '{', '[]', '3', '{"a": ' * 5000, '\xff'])
def test_a_config_that_is_no_json_object_is_refused(folder, text):
  (folder / 'config.json').write_text(text, encoding='latin-1')
  with pytest.raises(checkpoint.CheckpointError, match=r'config\.json'):
    checkpoint.load(folder)


def test_a_missing_config_says_how_to_make_one(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match='coltran convert'):
    checkpoint.load(tmp_path)


def test_missing_and_damaged_arrays_are_errors(folder):
  files = [f for f in (folder / 'params').rglob('d/*') if f.is_file()]
  for file in files:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  with pytest.raises(checkpoint.CheckpointError, match='params'):
    checkpoint.load(folder)
  (folder / 'params').rename(folder / 'elsewhere')
  with pytest.raises(checkpoint.CheckpointError, match='params is missing'):
    checkpoint.load(folder)


def test_arrays_that_do_not_fit_are_refused_before_one_is_read(
  folder, monkeypatch
):
  checkpoint.load(folder, SHAPES)

  def restore(*_, **__):
    pytest.fail('an array was read')

  monkeypatch.setattr(checkpoint.ocp.Checkpointer, 'restore', restore)
  with pytest.raises(checkpoint.CheckpointError, match=r'has shape \(4,\)'):
    checkpoint.load(folder, SHAPES | {('bias',): (5,)})
  base = f'file://{folder}/params/'
  store = ts.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
  header = json.loads(store.read(b'bias/.zarray').result().value)
  header = json.dumps(header | {'chunks': [1 << 30]}).encode()
  store.write(b'bias/.zarray', header).result()
  with pytest.raises(
    checkpoint.CheckpointError, match=r'chunks of .1073741824,'
  ):
    checkpoint.load(folder, SHAPES)


@pytest.mark.parametrize(
  ('expected', 'message'),
  [
    ({('dense', 'kernel'): (3, 4)}, 'unknown parameter bias'),
    (SHAPES | {('scale',): (4,)}, 'scale is missing'),
    (SHAPES | {('bias',): (5,)}, r'bias has shape \(4,\).*\(5,\)'),
  ],
)
def test_parameters_that_do_not_fit_the_model_are_named(expected, message):
  with pytest.raises(checkpoint.CheckpointError, match=message):
    checkpoint.check_shapes('here', PARAMS, expected)
