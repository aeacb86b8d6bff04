"""The CNN as a colorizer of photos: the same files and options as ColTran."""

import jax
import numpy as np
from PIL import Image
import pytest
import skimage.color
import skimage.data

from coltran_jax import (
  checkpoint,
  cli,
  cnn_pipeline,
  color,
  command,
  image,
  models,
  photo,
)
from coltran_jax.convert import cnn as convert_cnn

pytestmark = pytest.mark.usefixtures('no_cache')
COFFEE = skimage.data.coffee()[:300, :500]


@pytest.fixture(scope='module')
def study(study_tensors):
  """(model, variables) of the study."""
  return convert_cnn.load_cnn(study_tensors)


@pytest.fixture(scope='module')
def weights(study, tmp_path_factory):
  """A checkpoint directory."""
  folder = tmp_path_factory.mktemp('weights')
  model, variables = study
  arguments = models.arguments_of(model)
  checkpoint.save(folder, 'cnn', arguments, models.join(variables), 'the study')
  return folder


@pytest.fixture(scope='module')
def colorizer(weights):
  return cnn_pipeline.CNNColorizer.from_pretrained(weights)


def test_a_photo_of_the_network_s_size_gets_the_network_s_colors(
  colorizer, study
):
  picture = image.square(COFFEE, 224)
  model, variables = study
  lab = color.to_lab(picture[None] / np.float32(255))
  ab, _ = jax.jit(model.apply)(variables, lab[..., 0])
  expected = np.concatenate([lab[..., :1], ab], -1)
  made = color.to_lab(colorizer.run(picture[None]) / np.float32(255))
  # sRGB cannot show all of them; where it can, 8 bits are all that is lost.
  difference = np.abs(made - expected)[..., 1:]
  assert np.median(difference) < 0.5


def test_a_whole_photo_keeps_size_and_luminance(colorizer):
  made = colorizer(COFFEE)
  assert made.shape == COFFEE.shape
  lightness = [skimage.color.rgb2lab(x)[..., 0] for x in (made, COFFEE)]
  assert np.abs(lightness[0] - lightness[1]).mean() < 0.3
  assert np.abs(skimage.color.rgb2lab(made)[..., 1:]).max() > 5


def test_colors_that_come_in_serve_for_lightness_alone(colorizer):
  lightness = np.repeat(np.arange(224, dtype=np.uint8)[:, None], 224, 1)
  gray = lightness[..., None]
  np.testing.assert_array_equal(
    colorizer(gray), colorizer(np.repeat(gray, 3, -1))
  )


def test_16_bit_and_other_kinds_come_back_as_they_came(colorizer, tmp_path):
  deep = (COFFEE[..., :1].astype(np.uint16) << 8) + 77
  assert colorizer(deep).dtype == np.uint16
  assert isinstance(colorizer(Image.fromarray(COFFEE)), Image.Image)
  assert colorizer(COFFEE, size=256).shape == (256, 256, 3)
  with pytest.raises(ValueError, match='size'):
    colorizer(COFFEE, size=100)


def test_the_command_colors_with_the_cnn(weights, tmp_path, capsys, colorizer):
  source = tmp_path / 'photo.png'
  Image.fromarray(COFFEE[..., 0]).save(source)
  out = tmp_path / 'out.png'
  args = ['colorize', str(source), '-o', str(out), '--weights', str(weights)]
  assert cli.main([*args, '--model', 'cnn']) == 0
  expected = colorizer(COFFEE[..., 0])
  np.testing.assert_array_equal(photo.read(out).pixels, expected)
  assert cli.main([*args, '--model', 'cnn', '-n', '2']) == command.EXIT_USAGE
  assert 'one coloring' in capsys.readouterr().err
  assert cli.main(args) == command.EXIT_WEIGHTS
  assert 'colorizer' in capsys.readouterr().err


def test_a_pth_file_becomes_a_checkpoint_directory(
  study, tmp_path, monkeypatch, capsys, study_tensors
):
  tensors = dict(study_tensors)
  source, out = tmp_path / 'model.pth', tmp_path / 'out'
  monkeypatch.setattr(convert_cnn, 'read_pth', lambda path: tensors)
  assert cli.main(['convert', str(source), str(out)]) == 0
  config, tree = checkpoint.load(out / 'cnn')
  assert config['source'] == 'PyTorch file model.pth'
  jax.tree.map(np.testing.assert_array_equal, tree, models.join(study[1]))
  assert cli.main(['convert', str(source), str(out)]) == command.EXIT_WEIGHTS
  assert 'exists' in capsys.readouterr().err
  del tensors['upsample.14.bias']
  other = str(tmp_path / 'other')
  assert cli.main(['convert', str(source), other]) == command.EXIT_WEIGHTS
  said = capsys.readouterr().err
  assert str(source) in said
  assert 'missing: upsample.14.bias' in said
