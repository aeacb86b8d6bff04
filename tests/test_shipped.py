"""The weights in the package: small, whole, without a trace, and they color."""

import re
import shutil

import numpy as np
import pytest

from coltran_jax import checkpoint, cli, color, doctor, hints, photo, pipeline
from coltran_jax.evaluation import image_metrics

PHOTO = 'lpips/photos/011.jpg'
HINTED = 'lpips/photos/022.jpg'  # A red hint is on its disc, over grass.
MEGABYTES = {'cnn-sports': 4, 'coltran-sports': 20}


def size(folder):
  return sum(
    path.stat().st_size for path in folder.rglob('*') if path.is_file()
  )


def test_what_is_shipped_is_listed_here():
  assert checkpoint.shipped() == sorted(MEGABYTES)


@pytest.mark.parametrize('name', MEGABYTES)
def test_shipped_weights_are_small_have_a_card_and_hold_no_foreign_path(name):
  folder = checkpoint.SHIPPED / name
  assert size(folder) <= MEGABYTES[name] * 1_000_000
  card = (folder / 'model_card.md').read_text(encoding='utf-8')
  for word in ('Data', 'Limits', 'rights', 'Training'):
    assert word in card
  for path in folder.rglob('*'):
    if path.is_file():
      assert not re.search(rb'/(home|tmp|work|root)/', path.read_bytes()), path


@pytest.mark.parametrize('name', MEGABYTES)
def test_shipped_weights_do_here_what_was_recorded(name):
  found = list(doctor.test(name))
  assert [one for one in found if not one.ok] == []
  assert any('recorded' in one.text or 'off' in one.text for one in found)


def test_the_command_alone_colors_a_photo(fixtures, tmp_path, monkeypatch):
  monkeypatch.delenv('COLTRAN_WEIGHTS', raising=False)
  source = tmp_path / 'photo.jpg'
  shutil.copyfile(fixtures / PHOTO, source)
  assert cli.main(['colorize', str(source), '-n', '2']) == 0
  made = [
    photo.read(tmp_path / f'photo-colorized-{i}.jpg').pixels for i in (1, 2)
  ]
  assert (made[0] != made[1]).any()
  gray = np.asarray(color.to_gray(photo.read(source).pixels))
  for one in made:
    assert image_metrics.colorfulness(one[None])[0] > 5
    assert np.abs(np.asarray(color.to_gray(one)) - gray).mean() < 4


def test_a_hint_colors_the_disc_in_every_draw_and_nothing_below(fixtures):
  colorizer = pipeline.Colorizer.from_pretrained('coltran-sports')
  read = photo.read(fixtures / HINTED)
  hinted = hints.read(points=[(132, 42, (176, 48, 32))])

  def ab(guide):
    drawn = colorizer.draw(read, num_samples=4, guide=guide)
    return [
      color.to_lab(one.pixels / np.float32(255))[..., 1:] for one in drawn
    ]

  for free, asked in zip(ab(None), ab(hinted), strict=True):
    disc = np.s_[39:46, 117:148]
    assert free[disc][..., 0].mean() < 5
    assert asked[disc][..., 0].mean() > 10  # Red.
    assert np.abs(asked[112:] - free[112:]).mean() < 1
    assert np.linalg.norm(free[112:], axis=-1).mean() > 15  # Grass is colored.
