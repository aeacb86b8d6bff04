"""Makes the README's picture of the web page.

python tests/benchmarks/screenshot.py coltran-sports \
  tests/fixtures/lpips/photos/022.jpg launch/demo.jpg 0.59 0.19

The numbers: where the hint is, in widths and heights from the upper left corner.
"""

import os
import pathlib
import sys
import tempfile
import time

import jax
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import browsers

from coltran_jax import command, demo, image, photo, pipeline

COLORINGS = 4


def main(weights, source, out, x, y):
  """Writes the picture: a hint, four colorings."""
  command.keep_programs(jax)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    os.environ['GRADIO_TEMP_DIR'] = name
    colorizer = pipeline.Colorizer.from_pretrained(weights, fast=True)
    page = demo.build(colorizer, name, fast=True)
    with browsers.chromium(folder) as browser:
      browser.get(demo.launch(page))
      path = str(pathlib.Path(source).absolute())
      browsers.find(browser, '#upload input[type=file]').send_keys(path)
      picture = browsers.find(browser, '#picture img')
      browsers.until(browser, lambda: picture.size['height'] > 100)
      right = round((float(x) - 0.5) * picture.size['width'])
      down = round((float(y) - 0.5) * picture.size['height'])
      action = ActionChains(browser)
      action.move_to_element_with_offset(picture, right, down).click().perform()
      time.sleep(3)  # The dot is drawn.
      box = browsers.find(browser, '#count input[type=number]')
      box.send_keys(Keys.CONTROL, 'a')
      box.send_keys(str(COLORINGS), Keys.TAB)
      browsers.find(browser, '#go').click()
      done = f'{COLORINGS}: '
      browsers.until(
        browser, lambda: done in browsers.find(browser, '#grid').text
      )
      time.sleep(3)  # Pictures are loaded.
      shot = photo.read(browser.get_screenshot_as_png())
    page.close()
  pixels = image.shrink(shot.pixels, 1200)
  photo.write(out, photo.encode(pixels, photo.read(pixels), 'JPEG', quality=85))


if __name__ == '__main__':
  main(*sys.argv[1:])
