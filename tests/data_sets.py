"""Pictures and data sets that the data tests make for themselves."""

import io

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from coltran_jax.data import preparing


def picture(seed, height=12, width=16, channels=3):
  """uint8 [height, width, channels], or [height, width] for one channel."""
  shape = (height, width, channels)[: 2 if channels == 1 else 3]
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels, format='PNG', **options):
  """The bytes of a picture file."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, format, **options)
  return file.getvalue()


def save(path, data):
  """Writes bytes, or a picture as PNG; returns the path."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data if isinstance(data, bytes) else encode(data))
  return path


def write(name, folder, records, version='1.0.0'):
  """A data set without any check: {split: [(id, bytes)]} -> FOLDER/NAME."""

  class Handmade(tfds.core.ShardBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)
    url_infos = preparing.NOTHING

    def _info(self):
      id = 'file_name' if name == 'imagenet2012' else 'id'
      features = {'image': tfds.features.Image(), id: tfds.features.Text()}
      if name == 'imagenet2012':
        features['label'] = tfds.features.ClassLabel(num_classes=1000)
      features = tfds.features.FeaturesDict(features)
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _shard_iterators_per_split(self, dl_manager):
      return {
        split: [lambda part=part: self._examples(part)]
        for split, part in records.items()
      }

    def _examples(self, part):
      for id, data in part:
        example = {'image': data, 'id': id}
        if name == 'imagenet2012':
          example = {'image': data, 'file_name': id, 'label': 7}
        yield id, example

  Handmade.name = name
  tfds.disable_progress_bar()
  builder = Handmade(data_dir=folder, file_format='array_record')
  builder.download_and_prepare()
  return folder / name / version


class Records:
  """A source in memory: a list of (id, bytes)."""

  def __init__(self, records):
    self.records = list(records)

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    id, data = self.records[i]
    return {'id': id, 'image': data}

  def __str__(self):
    return 'records'
