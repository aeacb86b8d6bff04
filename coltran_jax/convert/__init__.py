"""Readers of other formats: published checkpoints -> models and parameters."""

import pathlib

from coltran_jax import checkpoint, models
from coltran_jax.convert import cnn, reference, tensor_bundle, tf_checkpoint

BundleError = tensor_bundle.BundleError
ConversionError = reference.ConversionError
load_tf_checkpoint = tf_checkpoint.load_tf_checkpoint
load_variables = reference.load_variables


def convert(source, directory, weights='ema'):
  """Returns the stages written to a checkpoint directory (`checkpoint`).

  All are read and checked before the first is written.

  Args:
    source: the folder or prefix of one stage, the unzipped folder of three
      (`colorizer*/ color_upsampler*/ spatial_upsampler*/`), or the study's CNN,
      a file `.pth`.
    directory: created if need be; stages that it has already stay.
    weights: 'ema' or 'raw'.

  Raises:
    BundleError, ConversionError: something is wrong with the source.
    CheckpointError: the directory has this stage, or cannot be written.
  """
  if pathlib.Path(source).suffix == '.pth':
    checkpoint.check_free(directory, 'cnn')
    loaded = [_load_pth(pathlib.Path(source))]
  else:
    found = tf_checkpoint.find_stages(source)
    for stage in found:
      checkpoint.check_free(directory, stage)
    loaded = [_load_stage(*one, weights) for one in found.items()]
  saved = []
  try:
    for stage, model, params, origin in loaded:
      arguments = models.arguments_of(model)
      checkpoint.save(directory, stage, arguments, params, origin)
      saved.append(stage)
    checkpoint.write_model_card(directory)
  except checkpoint.CheckpointError:
    for stage in saved:
      checkpoint.remove(directory, stage)
    raise
  return saved


def _load_stage(stage, path, weights):
  actual, model, params = load_tf_checkpoint(path, weights)
  if actual != stage:
    raise ConversionError(f'{path} holds a {actual}, not a {stage}')
  prefix = tensor_bundle.find_prefix(path).name
  return (
    stage,
    model,
    params,
    f'TensorFlow checkpoint {prefix}, {weights} weights',
  )


def _load_pth(path):
  tensors = cnn.read_pth(path)
  try:
    model, variables = cnn.load_cnn(tensors)
  except ConversionError as error:
    raise ConversionError(f'{path}: {error}') from error
  return 'cnn', model, models.join(variables), f'PyTorch file {path.name}'
