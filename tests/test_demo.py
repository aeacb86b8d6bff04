"""The web page, as a person uses it: in Chromium, without any network."""

import re

import browsers
from PIL import Image
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
import skimage.data

from coltran_jax import cli, demo, pipeline

pytestmark = pytest.mark.usefixtures('no_cache')
PHOTO = skimage.data.coffee()[..., 1].copy()  # 400x600


@pytest.fixture(scope='module')
def address(weights, tmp_path_factory):
  """Where the page is served."""
  colorizer = pipeline.Colorizer.from_pretrained(weights, fast=True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('GRADIO_TEMP_DIR', str(tmp_path_factory.mktemp('uploads')))
    folder = tmp_path_factory.mktemp('downloads')
    page = demo.build(colorizer, str(folder), fast=True)
    yield demo.launch(page)
    page.close()


@pytest.fixture
def browser(tmp_path):
  """Chromium that saves to tmp_path/saved."""
  with browsers.chromium(tmp_path) as browser:
    yield browser


def download(browser, name, folder):
  """The bytes of what the page offers, once it has this name."""
  browsers.until(
    browser, lambda: name in browsers.find(browser, '#download').text
  )
  browsers.find(browser, '#download').click()
  # A name without bytes is taken early by the browser.
  browsers.until(
    browser, lambda: (folder / name).exists() and (folder / name).stat().st_size
  )
  return (folder / name).read_bytes()


def by_command(source, weights, *options):
  out = source.parent / 'by-command'
  arguments = ['--fast', '--weights', str(weights), '-o', str(out), *options]
  assert cli.main(['colorize', str(source), *arguments]) == 0
  return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.browser
def test_a_person_gets_what_the_command_writes(
  address, browser, weights, tmp_path
):
  source = tmp_path / 'a photo.jpg'
  Image.fromarray(PHOTO).save(source)
  saved = tmp_path / 'saved'
  browser.get(address)
  browsers.find(browser, '#upload input[type=file]').send_keys(str(source))
  picture = browsers.find(browser, '#picture img')
  browsers.until(browser, lambda: picture.size['width'] > 100)
  before = picture.get_attribute('src')
  browsers.find(browser, '#go').click()
  plain = download(browser, 'a photo-colorized.jpg', saved)
  assert plain == by_command(source, weights)['a photo.jpg']
  assert len(browser.find_elements(By.CSS_SELECTOR, '#slider img')) == 2
  assert re.search(
    r'1: \d\.\d{3} bits/dim', browsers.find(browser, '#grid').text
  )

  scale = PHOTO.shape[1] / picture.size['width']
  action = ActionChains(browser)
  action.move_to_element_with_offset(picture, round(45 / scale), 9)
  action.click().perform()
  browsers.until(
    browser,
    lambda: (
      browsers.find(browser, '#picture img').get_attribute('src') != before
    ),
  )
  box = browsers.find(browser, '#count input[type=number]')
  box.send_keys(Keys.CONTROL, 'a')
  box.send_keys('2', Keys.TAB)
  browsers.find(browser, '#go').click()
  browsers.until(browser, lambda: '2: ' in browsers.find(browser, '#grid').text)
  hinted = by_command(source, weights, '-n2', '--hint', '345,209,#b03020')
  for place, number in enumerate(
    re.findall(r'(\d): \d\.\d{3} bits', browsers.find(browser, '#grid').text)
  ):
    browser.find_elements(By.CSS_SELECTOR, '#grid img')[place].click()
    made = download(browser, f'a photo-colorized-{number}.jpg', saved)
    assert made == hinted[f'a photo-{number}.jpg']

  # Nothing was asked of another machine.
  names = browser.execute_script(
    "return performance.getEntriesByType('resource').map(one => one.name)"
  )
  assert len(names) > 10
  local = (address, 'data:', 'blob:')
  assert [name for name in names if not name.startswith(local)] == []

  # Another photo, or none, leaves nothing of this one.
  browsers.find(browser, '#upload button[aria-label=Clear]').click()
  browsers.until(
    browser, lambda: not browser.find_elements(By.CSS_SELECTOR, '#grid img')
  )
  assert not browsers.find(browser, '#download').is_enabled()


@pytest.mark.browser
def test_what_is_no_photo_is_told(address, browser, tmp_path):
  source = tmp_path / 'no.jpg'
  source.write_bytes(b'no picture')
  browser.get(address)
  browsers.find(browser, '#upload input[type=file]').send_keys(str(source))
  browsers.until(
    browser, lambda: 'no.jpg: is broken' in browsers.find(browser, 'body').text
  )


def test_colors_come_as_css_writes_them():
  assert demo.to_rgb('#b03020') == (176, 48, 32)
  assert demo.to_rgb('rgba(176.2, 47.9, 32, 1)') == (176, 48, 32)
