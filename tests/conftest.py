"""Eight virtual CPU devices, strict rank promotion, fixtures by name."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=8'
)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
hypothesis.settings.register_profile(
    'ci', deadline=None, derandomize=True, max_examples=60
)
hypothesis.settings.load_profile('ci')

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'


@pytest.fixture(scope='session')
def fixtures():
  """The folder of recorded numbers and pictures."""
  return FIXTURES
