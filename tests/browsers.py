"""Chromium for tests of the web page, and for the README's picture of it."""

import contextlib
import shutil

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

PATIENCE = 300  # Seconds: the first coloring compiles.
FLAGS = (
  *('headless', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run'),
  *('disable-background-networking', 'disable-component-update'),
  *('disable-sync', 'disable-dev-shm-usage', 'window-size=1400,1300'),
  'host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
)


@contextlib.contextmanager
def chromium(folder):
  """Yields a browser that reaches this computer only; it saves to FOLDER/saved.

  Raises FileNotFoundError if it is not installed.
  """
  for program in ('chromium', 'chromedriver'):
    if not shutil.which(program):
      raise FileNotFoundError(f'{program} is missing: see launch/check.sh')
  options = webdriver.ChromeOptions()
  options.binary_location = shutil.which('chromium')
  for flag in (*FLAGS, f'user-data-dir={folder / "profile"}'):
    options.add_argument(f'--{flag}')
  options.add_experimental_option(
    'prefs', {'download.default_directory': str(folder / 'saved')}
  )
  driver = shutil.which('chromedriver')
  browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
  try:
    yield browser
  finally:
    browser.quit()


def until(browser, condition):
  """Returns the first true value of condition()."""
  return WebDriverWait(browser, PATIENCE).until(lambda _: condition())


def find(browser, selector):
  """Returns the first element of a CSS selector, once there is one."""
  return until(
    browser, lambda: browser.find_elements(By.CSS_SELECTOR, selector)
  )[0]
