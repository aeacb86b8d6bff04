"""A training run -> the checkpoint directory that `coltran colorize` takes."""

from coltran_jax import checkpoint, models, run_directory


def export(workdir, directory, step=None, half=False, decoding=None):
  """Returns (stage, step) of the averaged weights written to DIRECTORY/STAGE.

  Args:
    workdir: of the run.
    directory: created if need be; other stages in it stay.
    step: of a checkpoint; None takes the one with the lowest evaluation loss.
    half: write float16, in half the space; loaded it is float32 again.
    decoding: of a colorizer, see `checkpoint.save`.

  Raises:
    RunError: no run, no such checkpoint, or it is damaged.
    CheckpointError: the directory has this stage, or cannot be written, or a
      number is too large for float16.
    ValueError: a decoding of another stage.
  """
  config, step, params, collections = run_directory.load_weights(workdir, step)
  name = config['name']
  if decoding and name != 'colorizer':
    raise ValueError(
      f'nothing is drawn from a {name}: no {", ".join(decoding)}'
    )
  model = models.build(name, config['model'])
  tree = models.join({'params': params, **collections})
  checkpoint.save(
    directory,
    name,
    models.arguments_of(model),
    checkpoint.halved(tree) if half else tree,
    f'trained on {config["data"]["name"]} for {step} steps of '
    f'{config["batch_size"]} pictures, moving average',
    decoding,
  )
  checkpoint.write_model_card(directory)
  return name, step
