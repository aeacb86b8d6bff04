"""The command `coltran`: parse, then import the one module that it needs."""

import argparse
import logging
import math
import os
import pathlib
import sys

EXIT_FAILED, EXIT_USAGE, EXIT_WEIGHTS, EXIT_RESUME = 1, 2, 3, 42
_DATA_SETS = ('folder', 'sports', 'imagenet2012')
_log = logging.getLogger('coltran')


def main(argv=None):
  """Returns the exit code.

  0 fine, 1 something failed, 2 usage, 3 weights, 42 training was stopped and
  wants to be started again.
  """
  parser = _parser()
  args = parser.parse_args(argv)
  if args.version:
    print(f'coltran {_version()}')
    return 0
  if not args.run:
    parser.print_help(sys.stderr)
    return EXIT_USAGE
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
  parser.set_defaults(run=None)
  commands = parser.add_subparsers(metavar='COMMAND')

  add = commands.add_parser(
    'colorize',
    help='color photos',
    description='Color gray photos: files, folders, or - for stdin to stdout.',
  )
  add.add_argument('photos', nargs='+', metavar='PHOTO|DIR|-')
  add.add_argument(
    '-o',
    '--output',
    metavar='OUT',
    help='file (for one result) or folder; default: NAME-colorized.EXT beside '
    'the photo, DIR-colorized for a folder',
  )
  add.add_argument(
    '--weights',
    metavar='NAME|DIR',
    default=os.environ.get('COLTRAN_WEIGHTS'),
    help='checkpoint directory, see `coltran convert` (default: '
    '$COLTRAN_WEIGHTS)',
  )
  add.add_argument(
    '-n',
    '--num-samples',
    type=_count,
    default=1,
    help='colorings a photo; more than one adds a contact sheet (default: 1)',
  )
  add.add_argument('--seed', type=_seed, default=0, help='default: 0')
  add.add_argument(
    '--temperature',
    type=_temperature,
    default=1.0,
    help='0 takes the most probable colors (default: 1.0)',
  )
  add.add_argument(
    '--size',
    choices=('original', '256'),
    default='original',
    help="'original' keeps the photo's size and luminance, '256' is the "
    'published central square (default: original)',
  )
  add.add_argument(
    '--sampler',
    choices=('exact', 'reference'),
    default='exact',
    help="'reference' repeats the published sampler (default: exact)",
  )
  add.add_argument(
    '--fast',
    action='store_true',
    help='leave out the third stage; for --size original',
  )
  add.add_argument(
    '--chunk',
    type=_count,
    default=8,
    help='lines that stages two and three work on at a time: less takes less '
    'memory (default: 8)',
  )
  add.add_argument(
    '--before-after',
    metavar='FILE',
    help='also one picture of all photos, each beside its coloring',
  )
  add.add_argument(
    '--recursive', action='store_true', help='also the folders in a folder'
  )
  add.add_argument(
    '--resume',
    action='store_true',
    help='skip photos whose results are there, whatever their options',
  )
  add.add_argument(
    '-q', '--quiet', action='store_true', help='warnings and errors only'
  )
  add.set_defaults(run=_colorize)

  add = commands.add_parser(
    'convert',
    help='convert the published checkpoints',
    description='Convert TensorFlow checkpoints of ColTran, without '
    'TensorFlow: one stage, or the unzipped folder of all three.',
  )
  add.add_argument('source', metavar='TF_CHECKPOINT_DIR')
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
    '--workers', type=_count, help='processes (default: one a CPU)'
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
  add.add_argument(
    '--data_dir',
    '--data-dir',
    metavar='DIR',
    default=os.environ.get('COLTRAN_DATA'),
    help='of the data sets that `coltran prepare` made (default: $COLTRAN_DATA)',
  )
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
  add.add_argument('--num-processes', type=_count)
  add.add_argument('--process-id', type=int)
  add.add_argument('-q', '--quiet', action='store_true', help='errors only')
  add.set_defaults(run=_train)

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
    type=_count,
    help='of a checkpoint (default: that with the lowest evaluation loss)',
  )
  add.add_argument('-q', '--quiet', action='store_true', help='errors only')
  add.set_defaults(run=_export)
  return parser


def _number(kind, text, low, high, wanted):
  try:
    value = kind(text)
  except ValueError:
    value = None
  if value is None or not low <= value < high:
    raise argparse.ArgumentTypeError(f'must be {wanted}, not {text!r}')
  return value


def _count(text):
  return _number(int, text, 1, math.inf, 'a whole number, 1 or more')


def _seed(text):
  return _number(int, text, 0, 1 << 32, 'a whole number, 0 to 4294967295')


def _temperature(text):
  return _number(float, text, 0, math.inf, 'a number, 0 or more')


def _version():
  from importlib import metadata

  try:
    return metadata.version('coltran-jax')
  except metadata.PackageNotFoundError:
    return 'not installed'


def _fail(message, code):
  print(f'coltran: {message}', file=sys.stderr)
  return code


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
    return _fail(error, EXIT_WEIGHTS)
  _log.info('%s: %s', args.output, ', '.join(stages))
  missing = sorted(set(models.MODELS) - set(stages))
  if len(stages) > 1 and missing:
    _log.warning('%s has no %s', args.source, ', '.join(missing))
  return 0


def _prepare(args):
  from coltran_jax.data import preparing

  try:
    report = preparing.prepare(
      args.name, args.source, args.data_dir, args.workers
    )
  except preparing.DataError as error:
    return _fail(error, EXIT_USAGE)
  _log.info(
    '%s: %s',
    pathlib.Path(args.data_dir, args.name),
    ', '.join(f'{count} {split}' for split, count in report.counts.items()),
  )
  for id, reason in report.skipped.items():
    print(f'coltran: skipped: {id}: {reason}', file=sys.stderr)
  if not report.skipped:
    return 0
  print(f'coltran: {len(report.skipped)} pictures skipped', file=sys.stderr)
  return EXIT_FAILED


def _train(args):
  import jax

  from coltran_jax import configuration, distributed

  processes = (args.coordinator, args.num_processes, args.process_id)
  if None in processes and processes != (None,) * 3:
    return _fail(
      '--coordinator, --num-processes and --process-id go together', EXIT_USAGE
    )
  try:
    config = configuration.load(args.config, args.set)
  except configuration.ConfigError as error:
    return _fail(error, EXIT_USAGE)
  if not args.data_dir:
    return _fail(
      'no data: give --data_dir DIR (made by `coltran prepare`)', EXIT_USAGE
    )
  _cache_compilations(jax)
  try:
    distributed.initialize(*processes)  # Before anything asks for a device.
  except (RuntimeError, TypeError, ValueError) as error:
    return _fail(f'cannot join the other processes: {error}', EXIT_USAGE)
  distributed.catch_signals()

  from coltran_jax import checkpoint, train
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
    return _fail(f'{notice}; the same command goes on', EXIT_RESUME)
  except configuration.ConfigError as error:
    return _fail(error, EXIT_USAGE)
  except checkpoint.CheckpointError as error:
    return _fail(error, EXIT_WEIGHTS)
  except (train.RunError, sources.DataError, OSError) as error:
    return _fail(error, EXIT_FAILED)
  return 0


def _export(args):
  from coltran_jax import export, run_directory

  try:
    name, step = export.export(args.workdir, args.output, args.step)
  # ValueError, too: the model of another version.
  except (run_directory.RunError, OSError, ValueError) as error:
    return _fail(error, EXIT_WEIGHTS)
  _log.info('%s/%s: step %d of %s', args.output, name, step, args.workdir)
  return 0


def _colorize(args):
  from coltran_jax import batch

  if args.fast and args.size != 'original':
    return _fail('--fast needs --size original', EXIT_USAGE)
  if not args.weights:
    return _fail(
      'no weights: give --weights DIR (made by `coltran convert` from the '
      'published checkpoints)',
      EXIT_WEIGHTS,
    )
  try:
    jobs = batch.plan(
      args.photos, args.output, args.num_samples, recursive=args.recursive
    )
    if args.before_after:
      batch.check_before_after(jobs, args.before_after)
  except batch.UsageError as error:
    return _fail(error, EXIT_USAGE)
  to_stdout = not all(job.outputs or job.error for job in jobs)
  if to_stdout and sys.stdout is None:
    return _fail('stdout is closed', EXIT_USAGE)
  if to_stdout and sys.stdout.isatty():
    return _fail(
      'a terminal shows no pictures; redirect stdout or give -o FILE',
      EXIT_USAGE,
    )

  import jax

  from coltran_jax import checkpoint, pipeline

  _cache_compilations(jax)
  try:
    colorizer = pipeline.Colorizer.from_pretrained(
      args.weights, fast=args.fast, chunk=args.chunk
    )
  except checkpoint.CheckpointError as error:
    return _fail(error, EXIT_WEIGHTS)
  options = {
    'num_samples': args.num_samples,
    'seed': args.seed,
    'temperature': args.temperature,
    'size': args.size if args.size == 'original' else int(args.size),
    'sampler': args.sampler,
    'fast': args.fast,
  }
  failed = batch.run(colorizer, jobs, options, resume=args.resume)
  if args.before_after:
    try:
      batch.before_after(jobs, failed, args.before_after)
    except batch.PhotoError as error:
      failed.append(('--before-after', error))
  for name, reason in failed:
    print(f'coltran: failed: {name}: {reason}', file=sys.stderr)
  return EXIT_FAILED if failed else 0


def _cache_compilations(jax):
  """Keeps compiled programs for the next start, unless told where already."""
  # Small programs too: there are many, together they take over a second.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  if jax.config.jax_compilation_cache_dir is not None:
    return
  try:
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(base) / 'coltran_jax'
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # The latter: nobody knows a home.
    return
  if os.access(folder, os.W_OK):
    jax.config.update('jax_compilation_cache_dir', str(folder))


if __name__ == '__main__':
  sys.exit(main())
