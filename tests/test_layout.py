"""The shape of the house: imports point one way, and only to what is listed."""

import ast
import pathlib
import shutil
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / 'coltran_jax'

# A module may import from rows above its own only (packages: all inside).
ROWS = [
  {'decoding_rule'},
  {
    *('icc', 'png_tiff', 'color', 'image', 'checkpoint', 'data', 'evaluation'),
    *('configuration', 'sharding', 'run_log', 'command'),
    *('flops', 'tpu_chips', 'tpu_program', 'aot_table'),
    *('evaluation.feature_layers', 'diffusion', 'diffusion.files'),
    *('diffusion.attention', 'diffusion.canny'),
  },
  {
    *('photo', 'models.layers', 'convert.snappy', 'data.decoding'),
    'tensor_files',
    *('evaluation.lpips', 'evaluation.lite0'),
    *('evaluation.image_metrics', 'evaluation.frechet', 'evaluation.table'),
    *('run_directory', 'train_state', 'distributed', 'tpu_cost'),
    *('diffusion.layers', 'encoder_guidance'),
    *('diffusion.schedulers', 'diffusion.tokenizer'),
  },
  {
    *('models.axial', 'convert.sstable', 'hints'),
    *('data.listing', 'data.checking', 'data.sources', 'data.input_pipeline'),
    *('losses', 'evaluation.pairs', 'evaluation.inception'),
    'evaluation.read_order',
    *('diffusion.unet', 'diffusion.vae', 'diffusion.text_encoder'),
  },
  {
    *('evaluation.report', 'evaluation.distributions'),
    *('models.colorizer', 'models.color_upsampler'),
    *('models.spatial_upsampler', 'models.cnn'),
    *('data.preparing', 'convert.bundle_index', 'diffusion.controlnet'),
  },
  {
    *('models', 'convert.tensor_bundle', 'convert.names'),
    *('evaluation.evaluate', 'diffusion.architectures'),
  },
  {
    *('sampling_tile', 'convert.reference', 'export', 'trainer'),
    *('diffusion.weights', 'diffusion.generation'),
  },
  {'sampling', 'convert.cnn', 'diffusion.parts', 'diffusion.prompts'},
  {
    'diffusion.pipeline',
    'pipeline',
    'preview',
    'sheets',
    'convert.tf_checkpoint',
  },
  {'convert', 'batch', 'train', 'cnn_pipeline', 'diffusion_pipeline', 'aot'},
  {'evaluation.colorings', 'cli_diffusion', 'demo', 'doctor', 'aot_diffusion'},
  {'cli_colorize', 'cli_evaluate', 'cli_aot'},
  {'cli', ''},
]
HEAVY = {'tensorflow', 'torch', 'matplotlib', 'pickle'}
# Imported where it is used only, with an error that says what is missing.
OPTIONAL = {
  'diffusion.weights': {'torch'},
  'tensor_files': {'torch'},
}
# Diffusion is a house of its own: all that it takes from the other.
SHARED = {'color', 'image', 'sharding'}


def modules():
  for path in sorted(PACKAGE.rglob('*.py')):
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    name = '.'.join(part for part in parts if part != '__init__')
    yield name, ast.parse(path.read_text(encoding='utf-8'))


MODULES = dict(modules())


def imported(tree):
  """Yields the full names of all that a module imports, anywhere in it."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports are absolute'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def is_definition(node):
  return isinstance(node, (ast.FunctionDef, ast.ClassDef))


def row_of(name):
  rows = [i for i, row in enumerate(ROWS) if name in row]
  assert len(rows) == 1, f'{name!r} must stand in one row of ROWS'
  return rows[0]


@pytest.mark.parametrize('name', MODULES)
def test_a_module_imports_only_from_rows_above_its_own(name):
  for target in imported(MODULES[name]):
    package, _, inner = target.partition('.')
    if package != 'coltran_jax':
      continue
    assert inner in MODULES, f'{name} imports {target}, which is no module'
    assert row_of(inner) < row_of(name), f'{name} imports {inner}'


def test_diffusion_imports_next_to_nothing_of_the_rest():
  inside = {name for name in MODULES if name.startswith('diffusion.')}
  assert inside
  for name in inside:
    targets = (target.partition('.') for target in imported(MODULES[name]))
    taken = {inner for package, _, inner in targets if package == 'coltran_jax'}
    assert taken <= inside | SHARED, name


@pytest.mark.parametrize('name', MODULES)
def test_a_module_imports_nothing_heavy_or_unsafe(name):
  packages = {target.partition('.')[0] for target in imported(MODULES[name])}
  assert packages & HEAVY == OPTIONAL.get(name, set())
  top = ast.Module([n for n in MODULES[name].body if not is_definition(n)], [])
  assert not {t.partition('.')[0] for t in imported(top)} & HEAVY


def test_every_row_names_modules_that_exist():
  assert set().union(*ROWS) == set(MODULES)


def test_weights_in_the_package_are_installed_with_it(tmp_path):
  root = PACKAGE.parent
  for name in ('setup.py', 'README.md', 'coltran_jax/__init__.py'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copyfile(root / name, tmp_path / name)
  array = pathlib.Path('coltran_jax/weights/any/colorizer/params/d/0a1b')
  (tmp_path / array).parent.mkdir(parents=True)
  (tmp_path / array).write_bytes(b'array')
  subprocess.run(
    [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', 'built'],
    cwd=tmp_path,
    check=True,
  )
  assert (tmp_path / 'built' / array).read_bytes() == b'array'
