"""Configs and scripts: they say what is there, and they run."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from coltran_jax import configuration, models, sharding, trainer

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


def get_config(path, arg=''):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module, module.get_config(arg)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_a_config_is_locked_and_builds_the_model_of_its_name(path):
  module, config = get_config(path)
  assert config.name == path.stem
  assert config.is_locked
  model = models.build(config.name, config.model.to_dict())
  assert model == models.build(config.name, {}), "the paper's are the defaults"
  shapes = models.parameter_shapes(model)
  count = sum(
    int(np.prod(shape))
    for path, shape in shapes.items()
    if path[0] != 'batch_stats'
  )
  assert f'{count:,}' in module.__doc__


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_the_debug_config_is_tiny(path):
  _, config = get_config(path, 'debug')
  model = models.build(config.name, config.model.to_dict())
  shapes = models.parameter_shapes(model)
  assert sum(int(np.prod(shape)) for shape in shapes.values()) < 200_000
  with pytest.raises(ValueError, match='debug'):
    get_config(path, 'fast')


VARIANTS = [
  (path, name)
  for path in CONFIGS
  for name in ('', *get_config(path)[0].VARIANTS)
]


@pytest.mark.parametrize(
  'path, arg', VARIANTS, ids=lambda x: getattr(x, 'stem', x)
)
def test_every_variant_can_be_trained_on_four_devices(path, arg):
  config = configuration.load(f'{path}:{arg}')
  one = trainer.Trainer(config, sharding.make_mesh(data=4))
  assert f'- {arg}:' in get_config(path)[0].__doc__ or not arg
  for leaf in jax.tree.leaves(one.state_shapes):
    assert leaf.dtype in (np.float32, np.int32)


def test_every_photo_that_ships_is_credited():
  folder = ROOT / 'launch/photos'
  credits_ = (folder / 'CREDITS.md').read_text()
  photos = [p.name for p in folder.iterdir() if p.suffix != '.md']
  assert photos
  for name in photos:
    assert f'`{name}`' in credits_
