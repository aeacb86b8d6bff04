"""The command `coltran`: parse, then import the one module that it needs."""

import argparse
import logging
import os
import pathlib
import sys

from coltran_jax import (
  cli_aot,
  cli_colorize,
  cli_diffusion,
  cli_evaluate,
  command,
)

_DATA_SETS = ('folder', 'sports', 'imagenet2012')
_log = logging.getLogger('coltran')


def main(argv=None):
  """Returns the exit code.

  0 fine, 1 something failed, 2 usage, 3 weights, 42 training was stopped and
  wants to be started again, 75 its other processes are gone: start all again.
  """
  parser = _parser()
  args = parser.parse_args(argv)
  if args.version:
    print(f'coltran {_version()}')
    return 0
  if not args.run:
    parser.print_help(sys.stderr)
    return command.EXIT_USAGE
  if argv is None and args.huge_pages:
    _use_huge_pages()
  level = logging.WARNING if args.quiet else logging.INFO
  logging.basicConfig(level=logging.WARNING, format='%(message)s')
  _log.setLevel(level)
  try:
    return args.run(args)
  except KeyboardInterrupt:
    print('stopped', file=sys.stderr)
    return 130


def _parser():
  parser = argparse.ArgumentParser(
    prog='coltran', description='Colorize photographs with ColTran, in JAX.'
  )
  parser.add_argument(
    '--version', action='store_true', help='print the version'
  )
  parser.set_defaults(run=None, huge_pages=False, quiet=False)
  commands = parser.add_subparsers(metavar='COMMAND')

  cli_colorize.add(commands)

  add = commands.add_parser(
    'convert',
    help='convert the published checkpoints',
    description='Convert TensorFlow checkpoints of ColTran, without '
    'TensorFlow: one stage, or the unzipped folder of all three. Or a PyTorch '
    "file of the study's CNN, with PyTorch.",
  )
  add.add_argument('source', metavar='TF_CHECKPOINT_DIR|MODEL.pth')
  add.add_argument('output', metavar='OUT_DIR')
  add.add_argument(
    '--raw',
    action='store_true',
    help='the trained weights, not their moving averages',
  )
  add.add_argument('-q', '--quiet', action='store_true', help='errors only')
  add.set_defaults(run=_convert)

  add = commands.add_parser(
    'prepare',
    help='make a data set for training',
    description='Check every picture of a source and write them as a data set: '
    "'folder' is any folder, with or without folders train, valid and test; "
    "'sports' the unzipped 100 sports photographs; 'imagenet2012' the folder "
    'of the ILSVRC2012 tar files. Go on with a run that was ended by giving '
    'the same command.',
  )
  add.add_argument('name', metavar='NAME', choices=_DATA_SETS)
  add.add_argument('source', metavar='SOURCE')
  add.add_argument(
    '--data_dir',
    '--data-dir',
    required=True,
    metavar='DIR',
    help='folder of data sets; it becomes DIR/NAME',
  )
  add.add_argument(
    '--color-only',
    action='store_true',
    help='leave gray and sepia pictures out of the training split: a colorizer '
    'could learn that photos stay gray',
  )
  add.add_argument(
    '--workers', type=command.count, help='processes (default: one a CPU)'
  )
  add.add_argument(
    '-q', '--quiet', action='store_true', help='warnings and errors only'
  )
  add.set_defaults(run=_prepare)

  add = commands.add_parser(
    'train',
    help='train a model',
    description='Train a model as a config says, from the newest checkpoint in '
    'the working directory on. SIGTERM or Ctrl-C saves and exits with 42: the '
    'same command goes on.',
  )
  add.add_argument(
    '--config', required=True, metavar='FILE[:ARG]', help='of configs/'
  )
  add.add_argument(
    '--workdir', required=True, metavar='DIR', help='checkpoints and logs'
  )
  command.add_data_dir(add)
  add.add_argument(
    '--set',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='change the config, as in --set optimizer.learning_rate=1e-4',
  )
  add.add_argument(
    '--change-config',
    action='store_true',
    help='go on with a run that was started with another config',
  )
  add.add_argument(
    '--profile',
    action='store_true',
    help='write a trace of a few steps to WORKDIR/profile',
  )
  add.add_argument(
    '--coordinator',
    metavar='HOST:PORT',
    help='of process 0, with --num-processes and --process-id, where nothing '
    'else tells the processes of each other (TPU, GKE and Slurm do)',
  )
  add.add_argument('--num-processes', type=command.count)
  add.add_argument('--process-id', type=command.process_id)
  add.add_argument('-q', '--quiet', action='store_true', help='errors only')
  add.set_defaults(run=_train, huge_pages=True)

  add = commands.add_parser(
    'export',
    help='make weights of a training run',
    description='Write the averaged weights of a run as a checkpoint directory '
    'that `coltran colorize --weights` takes; stages join others there.',
  )
  add.add_argument('workdir', metavar='WORKDIR')
  add.add_argument('output', metavar='OUT_DIR')
  add.add_argument(
    '--step',
    type=command.count,
    help='of a checkpoint (default: that with the lowest evaluation loss)',
  )
  command.add_decoding(add, 'of a colorizer, as options of `colorize`: ')
  add.add_argument(
    '--half',
    action='store_true',
    help='write float16, in half the space; it is computed with in float32',
  )
  add.add_argument('-q', '--quiet', action='store_true', help='errors only')
  add.set_defaults(run=_export)

  add = commands.add_parser(
    'demo',
    help='color photos on a web page',
    description='Serve a web page on this computer, for this computer: photos, '
    'hints by clicks, several colorings. Needs the extra [demo].',
  )
  command.add_weights(add)
  add.add_argument(
    '--port', type=command.port, help='default: a free one from 7860 on'
  )
  add.add_argument(
    '--fast', action='store_true', help='leave out the third stage'
  )
  add.set_defaults(run=_demo)

  add = commands.add_parser(
    'doctor',
    help='tell what is here, and test it',
    description='List versions, devices, the cache and weights, then color a '
    'picture with those that would be used and compare it with what the '
    'weights say a well machine makes of it.',
  )
  command.add_weights(add)
  add.add_argument(
    '--record',
    action='store_true',
    help='write what this machine makes of the picture into the weights',
  )
  add.set_defaults(run=_doctor)

  cli_diffusion.add(commands)
  cli_evaluate.add(commands)
  cli_aot.add(commands)
  return parser


def _version():
  from importlib import metadata

  try:
    return metadata.version('coltran-jax')
  except metadata.PackageNotFoundError:
    return 'not installed'


def _convert(args):
  from coltran_jax import checkpoint, convert, models

  try:
    stages = convert.convert(
      args.source, args.output, 'raw' if args.raw else 'ema'
    )
  except (
    convert.BundleError,
    convert.ConversionError,
    checkpoint.CheckpointError,
  ) as error:
    return command.fail(error, command.EXIT_WEIGHTS)
  _log.info('%s: %s', args.output, ', '.join(stages))
  missing = sorted(set(models.MODELS) - {'cnn', *stages})
  if len(stages) > 1 and missing:
    _log.warning('%s has no %s', args.source, ', '.join(missing))
  return 0


def _prepare(args):
  from coltran_jax.data import preparing

  try:
    report = preparing.prepare(
      args.name, args.source, args.data_dir, args.workers, args.color_only
    )
  except preparing.DataError as error:
    return command.fail(error, command.EXIT_USAGE)
  _log.info(
    '%s: %s',
    pathlib.Path(args.data_dir, args.name),
    ', '.join(f'{count} {split}' for split, count in report.counts.items()),
  )
  if report.monochrome:
    _log.info('left out of train: %d gray or sepia', len(report.monochrome))
  for id, reason in report.skipped.items():
    print(f'coltran: skipped: {id}: {reason}', file=sys.stderr)
  if not report.skipped:
    return 0
  print(f'coltran: {len(report.skipped)} pictures skipped', file=sys.stderr)
  return command.EXIT_FAILED


def _use_huge_pages():
  """Starts this command anew with memory in huge pages, where libc has them.

  The temporary memory of a training step or of VGG16's features is new each
  time: in pages of 4 kB the kernel takes a fifth of the time on a CPU to hand it
  out. libc reads the setting at start.
  """
  name = 'GLIBC_TUNABLES'
  if sys.platform == 'linux' and name not in os.environ:
    os.environ[name] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, sys.orig_argv)


def _train(args):
  import jax

  from coltran_jax import configuration, distributed

  processes = (args.coordinator, args.num_processes, args.process_id)
  if None in processes and processes != (None,) * 3:
    return command.fail(
      '--coordinator, --num-processes and --process-id go together',
      command.EXIT_USAGE,
    )
  try:
    config = configuration.load(args.config, args.set)
  except configuration.ConfigError as error:
    return command.fail(error, command.EXIT_USAGE)
  if not args.data_dir:
    return command.fail(
      'no data: give --data_dir DIR (made by `coltran prepare`)',
      command.EXIT_USAGE,
    )
  for name, folder in (
    ('--workdir', args.workdir),
    ('--data_dir', args.data_dir),
    ('init_from', config.init_from),
  ):
    if '://' in folder:  # It would be taken for a folder of this machine.
      return command.fail(
        f'{name} {folder} is a URL, not a folder: mount the bucket and give '
        'its path there (launch/README.md has how)',
        command.EXIT_USAGE,
      )
  command.keep_programs(jax)
  try:
    distributed.initialize(*processes)  # Before anything asks for a device.
  except (RuntimeError, TypeError, ValueError) as error:
    # RuntimeError: the others were not found (yet), which may pass.
    late = isinstance(error, RuntimeError)
    return command.fail(
      f'cannot join the other processes: {error}',
      command.EXIT_AGAIN if late else command.EXIT_USAGE,
    )
  distributed.catch_signals()

  code = _run(args, config)
  if code not in (0, command.EXIT_RESUME):
    distributed.leave(code)
  return code


def _run(args, config):
  import jax

  from coltran_jax import checkpoint, configuration, train
  from coltran_jax.data import sources

  try:
    train.train_and_evaluate(
      config,
      args.workdir,
      args.data_dir,
      profile=args.profile,
      change_config=args.change_config,
    )
  except train.Preempted as notice:
    return command.fail(
      f'{notice}; the same command goes on', command.EXIT_RESUME
    )
  except configuration.ConfigError as error:
    return command.fail(error, command.EXIT_USAGE)
  except checkpoint.CheckpointError as error:
    return command.fail(error, command.EXIT_WEIGHTS)
  except (train.RunError, sources.DataError, OSError) as error:
    return command.fail(error, command.EXIT_FAILED)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' in str(error):  # On all, and the next time, too.
      return command.fail(
        'a device has too little memory; `coltran aot` says what a config needs: '
        f'{checkpoint.first_line(error)}',
        command.EXIT_FAILED,
      )
    if jax.process_count() == 1:
      raise
    return command.fail(
      'another process is gone, or a device failed; start all processes '
      f'again to go on: {checkpoint.first_line(error)}',
      command.EXIT_AGAIN,
    )
  return 0


def _export(args):
  from coltran_jax import export, run_directory

  try:
    name, step = export.export(
      args.workdir,
      args.output,
      args.step,
      args.half,
      command.decoding(args),
    )
  # ValueError, too: the model of another version.
  except (run_directory.RunError, OSError, ValueError) as error:
    return command.fail(error, command.EXIT_WEIGHTS)
  _log.info('%s/%s: step %d of %s', args.output, name, step, args.workdir)
  return 0


def _demo(args):
  import tempfile

  import jax

  from coltran_jax import checkpoint, pipeline

  try:
    from coltran_jax import demo
  except ImportError as error:
    return command.fail(
      f"{error}: the page needs gradio, install 'coltran-jax[demo]'",
      command.EXIT_USAGE,
    )
  command.keep_programs(jax)
  try:
    colorizer = pipeline.Colorizer.from_pretrained(
      command.weights(args), fast=args.fast
    )
  except checkpoint.CheckpointError as error:
    return command.fail(error, command.EXIT_WEIGHTS)
  with tempfile.TemporaryDirectory(prefix='coltran-demo-') as folder:
    os.environ['GRADIO_TEMP_DIR'] = folder  # Uploads go with it at the end.
    page = demo.build(colorizer, folder, fast=args.fast)
    try:
      address = demo.launch(page, args.port)
    except OSError as error:
      return command.fail(error, command.EXIT_USAGE)
    print(f'open {address} in a browser; Ctrl-C ends it', flush=True)
    page.block_thread()
  return 0


def _doctor(args):
  import jax

  from coltran_jax import checkpoint, doctor, photo

  command.keep_programs(jax)
  weights = command.weights(args)

  def tell(findings):
    bad = 0
    for name, text, ok in findings:
      print(f'{"ok   " if ok else "WRONG"} {name}: {text}', flush=True)
      bad += not ok
    return bad

  bad = tell(doctor.examine())
  if tell(doctor.find_weights(weights)):
    return command.EXIT_WEIGHTS
  try:
    if args.record:
      print(f'recorded {doctor.record(weights)}')
    bad += tell(doctor.test(weights))
  except checkpoint.CheckpointError as error:
    return command.fail(error, command.EXIT_WEIGHTS)
  except photo.PhotoError as error:
    return command.fail(error, command.EXIT_FAILED)
  return command.EXIT_FAILED if bad else 0


if __name__ == '__main__':
  sys.exit(main())
