"""Readers of other formats: published checkpoints -> models and parameters."""

from coltran_jax import checkpoint, models
from coltran_jax.convert import reference, tensor_bundle, tf_checkpoint

BundleError = tensor_bundle.BundleError
ConversionError = reference.ConversionError
load_tf_checkpoint = tf_checkpoint.load_tf_checkpoint
load_variables = reference.load_variables


def convert(source, directory, weights='ema'):
  """Returns the stages written to a checkpoint directory (`checkpoint`).

  All are read and checked before the first is written.

  Args:
    source: the folder or prefix of one stage, or the unzipped folder of three
      (`colorizer*/ color_upsampler*/ spatial_upsampler*/`).
    directory: created if need be; stages that it has already stay.
    weights: 'ema' or 'raw'.

  Raises:
    BundleError, ConversionError: something is wrong with the source.
    CheckpointError: the directory has this stage, or cannot be written.
  """
  found = tf_checkpoint.find_stages(source)
  for stage in found:
    checkpoint.check_free(directory, stage)
  loaded = []
  for stage, path in found.items():
    actual, model, params = load_tf_checkpoint(path, weights)
    if actual != stage:
      raise ConversionError(f'{path} holds a {actual}, not a {stage}')
    loaded.append((stage, path, model, params))
  saved = []
  try:
    for stage, path, model, params in loaded:
      prefix = tensor_bundle.find_prefix(path).name
      source = f'TensorFlow checkpoint {prefix}, {weights} weights'
      arguments = models.arguments_of(model)
      checkpoint.save(directory, stage, arguments, params, source)
      saved.append(stage)
    checkpoint.write_model_card(directory)
  except checkpoint.CheckpointError:
    for stage in saved:
      checkpoint.remove(directory, stage)
    raise
  return saved
