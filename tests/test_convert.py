"""From published checkpoints to checkpoint directories; nothing unaccounted."""

import shutil

import conftest
import jax
import numpy as np
import pytest
import tensor_bundle_writer

from coltran_jax import checkpoint, cli, color, convert, models
from coltran_jax.convert import (
  names,
  reference,
  tensor_bundle,
  tf_checkpoint,
)

STAGES = conftest.STAGES


@pytest.fixture
def source(fixtures, tmp_path):
  """A writable copy of the three recorded checkpoints."""
  return shutil.copytree(
    fixtures / 'coltran/tf_checkpoints', tmp_path / 'source'
  )


def official(fixtures, stage):
  folder = fixtures / 'coltran/official_index' / stage
  return tensor_bundle.Reader(tensor_bundle.find_prefix(folder))


@pytest.mark.parametrize('stage', STAGES)
def test_every_tensor_of_the_official_checkpoints_is_accounted_for(
  fixtures, stage
):
  reader = official(fixtures, stage)
  account = tf_checkpoint.account(reader)
  assert account.stage == stage
  kinds = (
    account.variables,
    account.ema,
    account.slots,
    account.constants,
    account.bookkeeping,
  )
  keys = [key for kind in kinds for key in kind.values()]
  assert sorted(keys) == sorted(reader.entries)
  assert set(account.ema) == set(account.variables)
  assert {name.split(' ')[0] for name in account.slots} == set(
    account.variables
  )
  for name, key in account.variables.items():
    assert reader.entries[account.ema[name]].shape == reader.entries[key].shape


@pytest.mark.parametrize('stage', STAGES)
def test_the_official_checkpoints_are_inferred_to_be_the_papers_models(
  fixtures, stage
):
  reader = official(fixtures, stage)
  account = tf_checkpoint.account(reader)
  shapes = {
    name: reader.entries[key].shape for name, key in account.variables.items()
  }
  model = reference.model_for(stage, shapes)
  assert model == models.build(stage, {})
  paths = reference.check(stage, model, shapes)
  assert set(paths.values()) == set(models.parameter_shapes(model))


@pytest.mark.parametrize('weights', ['ema', 'raw'])
@pytest.mark.parametrize('stage', STAGES)
def test_converted_weights_give_the_recorded_logits(fixtures, stage, weights):
  folder = fixtures / 'coltran/tf_checkpoints' / stage
  found, model, params = convert.load_tf_checkpoint(folder, weights)
  assert found == stage
  with np.load(folder / 'expected.npz') as arrays:
    rgb, expected = arrays['rgb'], arrays['ema_logits']
  gray = color.to_gray(rgb)
  apply = jax.jit(model.apply)
  if stage == 'colorizer':
    logits, _ = apply({'params': params}, gray, color.to_codes(rgb))
    error = np.abs(logits - expected[..., 0, :]).max()
  else:
    symbols = rgb // 32 if stage == 'color_upsampler' else rgb
    error = 0
    for c in range(3):
      channel = np.full(len(rgb), c)
      logits, _ = apply({'params': params}, gray, symbols[..., c], channel)
      error = max(error, np.abs(logits - expected[..., c, :]).max())
  assert error < 1e-4 if weights == 'ema' else error > 1e-3


def test_every_variant_finds_each_variable_once(variant):
  paths = names.reference_names('colorizer', variant.model)
  assert set(paths) == set(variant.variables)
  assert len(set(paths.values())) == len(paths)


def test_what_shapes_can_tell_is_inferred_from_them(variant):
  model, _ = convert.load_variables('colorizer', variant.variables)
  invisible = {
    'skip',
    'conditional_norm_order',
    'conditional_norm_activation',
    'conditional_mlp_activation',
    'conditional_attention_activation',
  }
  expected = models.arguments_of(variant.model)
  for name, value in models.arguments_of(model).items():
    assert name in invisible or value == expected[name], name


@pytest.mark.parametrize('stage', STAGES)
def test_missing_extra_and_misshapen_variables_are_named(stage):
  recorded = conftest.recorded(f'train_{stage}')
  variables = dict(recorded.variables)
  with pytest.raises(convert.ConversionError, match='unknown: what/ever:0'):
    convert.load_variables(stage, variables | {'what/ever:0': np.zeros(3)})
  for name, value in variables.items():
    rest = {key: v for key, v in variables.items() if key != name}
    with pytest.raises(convert.ConversionError) as error:
      convert.load_variables(stage, rest, recorded.config)
    assert 'missing' in str(error.value)
    assert name in str(error.value)
    wrong = variables | {name: np.zeros((*value.shape, 2), np.float32)}
    with pytest.raises(convert.ConversionError):
      convert.load_variables(stage, wrong)


def test_the_command_converts_all_three_stages(source, tmp_path, capsys):
  out = tmp_path / 'out'
  assert cli.main(['convert', str(source), str(out)]) == 0
  for stage in STAGES:
    config, params = checkpoint.load(out / stage)
    _, model, expected = convert.load_tf_checkpoint(source / stage)
    assert models.build(stage, config['model']) == model
    jax.tree.map(np.testing.assert_array_equal, params, expected)
  assert cli.main(['convert', str(source), str(out)]) == 3
  assert 'exists' in capsys.readouterr().err


def test_the_command_converts_one_stage_beside_another(source, tmp_path):
  out = tmp_path / 'out'
  for stage in STAGES[:2]:
    assert cli.main(['convert', str(source / stage), str(out)]) == 0
  names = sorted(p.name for p in out.iterdir())
  assert names == sorted([*STAGES[:2], 'model_card.md'])
  card = (out / 'model_card.md').read_text()
  assert all(f'## {stage}' in card for stage in STAGES[:2])


def test_a_stage_that_cannot_be_saved_leaves_none_behind(
  source, tmp_path, monkeypatch
):
  save = checkpoint.save

  def fail_last(directory, name, *args):
    if name == STAGES[2]:
      raise checkpoint.CheckpointError('disk full')
    save(directory, name, *args)

  monkeypatch.setattr(checkpoint, 'save', fail_last)
  out = tmp_path / 'out'
  assert cli.main(['convert', str(source), str(out)]) == 3
  assert not out.exists()


def flip(path, position):
  data = bytearray(path.read_bytes())
  data[position] ^= 4
  path.write_bytes(data)


def data_file(source, stage='colorizer'):
  return source / stage / 'model-1.data-00000-of-00001'


def flip_a_bit_of_an_average(source):
  prefix = source / 'colorizer/model-1'
  entries = tensor_bundle.Reader(prefix).entries
  entry = next(e for name, e in entries.items() if 'Exponential' in name)
  flip(data_file(source), entry.offset + entry.size // 2)


def flip_a_bit_of_what_is_not_used(source):
  prefix = source / 'colorizer/model-1'
  entries = tensor_bundle.Reader(prefix).entries
  entry = next(e for name, e in entries.items() if 'OPTIMIZER_SLOT' in name)
  flip(data_file(source), entry.offset)


def truncate_the_data(source):
  data = data_file(source).read_bytes()
  data_file(source).write_bytes(data[:-1])


def flip_a_bit_of_the_index(source):
  flip(source / 'colorizer/model-1.index', 1234)


def remove_the_data(source):
  data_file(source).unlink()


def empty_the_folder(source):
  shutil.rmtree(source)
  source.mkdir()


def mix_up_two_stages(source):
  (source / 'colorizer').rename(source / 'x')
  (source / 'color_upsampler').rename(source / 'colorizer')
  (source / 'x').rename(source / 'color_upsampler')


def give_two_of_a_stage(source):
  shutil.copytree(source / 'colorizer', source / 'colorizer_v2')


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (flip_a_bit_of_an_average, 'Exponential'),
    (flip_a_bit_of_what_is_not_used, 'OPTIMIZER_SLOT'),
    (truncate_the_data, 'data-00000-of-00001'),
    (flip_a_bit_of_the_index, 'model-1.index'),
    (remove_the_data, 'data-00000-of-00001'),
    (empty_the_folder, 'neither a TensorFlow checkpoint'),
    (mix_up_two_stages, 'holds a'),
    (give_two_of_a_stage, 'colorizer_v2'),
  ],
  ids=lambda value: getattr(value, '__name__', ''),
)
def test_a_damaged_source_ends_with_3_names_the_file_and_writes_nothing(
  source, tmp_path, capsys, damage, message
):
  damage(source)
  out = tmp_path / 'out'
  assert cli.main(['convert', str(source), str(out)]) == 3
  assert message in capsys.readouterr().err
  assert not out.exists()


def rewritten(source, change):
  """Rewrites the colorizer's checkpoint after change(tensors)."""
  reader = tensor_bundle.Reader(source / 'colorizer/model-1')
  tensors = {name: reader.read(name) for name in reader.entries}
  change(tensors)
  shutil.rmtree(source / 'colorizer')
  (source / 'colorizer').mkdir()
  tensor_bundle_writer.write(source / 'colorizer/model-1', tensors)


VALUE = '/.ATTRIBUTES/VARIABLE_VALUE'
CORE = 'col_tran_core.S'
NORM = f'{CORE}outer_decoder.Sconditional_layer_norm.Snormalize.Sgamma:0{VALUE}'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda t: t.pop(f'{CORE}auto_logits.Sbias:0{VALUE}'),
      'auto_logits',
    ),
    (
      lambda t: t.update({f'{CORE}surprise:0{VALUE}': np.zeros(3, np.float32)}),
      'surprise',
    ),
    (
      lambda t: t.update({f'no_optimizer{VALUE}': np.zeros(3, np.float32)}),
      'no_optimizer',
    ),
    (lambda t: t.update({NORM: t[NORM] * 2}), 'Snormalize.Sgamma'),
    (
      lambda t: [t.pop(n) for n in list(t) if 'Sbias.SExponential' in n],
      'no moving average of',
    ),
    (
      lambda t: [t.pop(n) for n in list(t) if n[0] != '_'],
      'found those of none',
    ),
  ],
  ids=['missing', 'extra', 'stray', 'trained constant', 'no average', 'empty'],
)
def test_a_sound_file_with_other_variables_ends_with_3_and_names_them(
  source, tmp_path, capsys, change, message
):
  rewritten(source, change)
  out = tmp_path / 'out'
  assert cli.main(['convert', str(source), str(out)]) == 3
  assert message in capsys.readouterr().err
  assert not out.exists()
