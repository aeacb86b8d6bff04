"""The Colorization Transformer (ColTran, ICLR 2021) in JAX/Flax.

import coltran_jax
colorizer = coltran_jax.Colorizer.from_pretrained(DIR)
images = colorizer('photo.jpg', num_samples=4, seed=0)
"""


def __getattr__(name):
  # Imported when asked for: `coltran --help` must not wait for jax.
  if name == 'Colorizer':
    from coltran_jax import pipeline

    return pipeline.Colorizer
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
