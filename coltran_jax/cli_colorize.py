"""The command `coltran colorize`: parse, then color photos."""

import os
import sys

from coltran_jax import cli_diffusion, command


def add(commands):
  """Adds `colorize` to argparse's commands."""
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
  command.add_weights(add)
  add.add_argument(
    '--model',
    choices=('coltran', 'cnn', 'controlnet'),
    default='coltran',
    help="'cnn' is the baseline: one coloring a photo; its own weights in this "
    "package are cnn-sports. 'controlnet' is Stable Diffusion, see below. "
    "What says how to draw, --sampler and --fast are for 'coltran' (default: coltran)",
  )
  command.add_sampling(add)
  _add_guide(add)
  add.add_argument(
    '--size',
    choices=('original', '256'),
    default='original',
    help="'original' keeps the photo's size and luminance, '256' is the "
    'published central square (default: original)',
  )
  add.add_argument(
    '--chunk',
    type=command.count,
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
  command.add_processes(add)
  add.add_argument(
    '-q', '--quiet', action='store_true', help='warnings and errors only'
  )
  cli_diffusion.add_options(add)
  add.set_defaults(run=_run)


def _add_guide(parser):
  """Adds the options that `_guide` reads, and --uncertainty."""
  parser.add_argument(
    '--hint',
    action='append',
    default=[],
    type=command.hint,
    metavar='X,Y,#RRGGBB',
    help="a colour at a pixel of the photo, for what is there (quote the '#'); "
    'may be given again',
  )
  parser.add_argument(
    '--hints',
    metavar='FILE',
    help="hints as a picture of the photo's size, transparent elsewhere",
  )
  parser.add_argument(
    '--mask',
    metavar='FILE',
    help="draw anew only where this picture of the photo's size is white; with "
    '--keep',
  )
  parser.add_argument(
    '--keep', metavar='COLORED', help='the coloring that stays elsewhere'
  )
  parser.add_argument(
    '--uncertainty',
    action='store_true',
    help='also NAME-uncertainty.png: how many bits of choice the model had in '
    'the colour of each place',
  )


def _misfit(args):
  """Returns what is wrong with options that do not go together, or None."""
  guided = args.hint or args.hints or args.mask or args.keep
  if args.fast and args.size != 'original':
    return '--fast needs --size original'
  if guided and args.size != 'original':
    return '--hint, --hints and --mask need --size original'
  if (args.mask is None) != (args.keep is None):
    return '--mask and --keep go together'
  if args.model == 'cnn' and args.num_samples > 1:
    return 'the CNN has one coloring a photo: leave out -n'
  if args.model != 'coltran' and (guided or args.uncertainty):
    return (
      f'--model {args.model} takes no hints or mask, and knows no --uncertainty'
    )
  drawn = [f'--{name.replace("_", "-")}' for name in command.decoding(args)]
  drawn += ['--sampler'] * (args.sampler != 'exact') + ['--fast'] * args.fast
  if args.model != 'coltran' and drawn:
    return f'--model {args.model} has no {", ".join(drawn)}'
  return None


def _guide(args, jobs):
  """Returns the `hints.Guide` of the options, or None.

  Raises UsageError if there are more photos than one, or a result would go over
  a file of the options or change what is to be kept.
  """
  from coltran_jax import batch, hints

  paths = [path for path in (args.hints, args.mask, args.keep) if path]
  if not (args.hint or paths):
    return None
  if len(jobs) > 1:
    raise batch.UsageError('hints and masks are for one photo at a time')
  (job,) = jobs
  mine = {os.path.realpath(path) for path in paths}
  for file in (*job.files, *filter(None, [args.before_after])):
    if os.path.realpath(file) in mine:
      raise batch.UsageError(f'the result {file} would overwrite an input')
  if args.mask and job.format not in ('PNG', 'TIFF', 'TIF'):
    name = job.outputs[0] if job.outputs else 'stdout'
    raise batch.UsageError(f'{name} may change what is kept; give -o FILE.png')
  try:
    return hints.read(args.hint, args.hints, args.mask, args.keep)
  except batch.PhotoError as error:
    raise batch.UsageError(str(error)) from error


def _colorizer(args, size, guide):
  """Returns (what colors photos, the options of its `draw`).

  Raises CheckpointError, or ValueError of options that make no sense.
  """
  from coltran_jax import checkpoint, cnn_pipeline, pipeline

  options = {'size': size}
  if args.model == 'controlnet':
    if not args.weights:
      raise checkpoint.CheckpointError(
        'no weights: give --weights DIR, a folder of Stable Diffusion in the '
        'layout of diffusers'
      )
    colorizer, more = cli_diffusion.colorizer(args, args.weights)
    return colorizer, options | more
  if args.model == 'cnn':
    weights = args.weights or 'cnn-sports'
    return cnn_pipeline.CNNColorizer.from_pretrained(weights), options
  colorizer = pipeline.Colorizer.from_pretrained(
    command.weights(args), fast=args.fast, chunk=args.chunk
  )
  colorizer.rule(**command.decoding(args))  # Before the first photo.
  options |= {'guide': guide, 'uncertainty': args.uncertainty}
  return colorizer, options | command.sampling_options(args)


def _run(args):
  from coltran_jax import batch

  misfit = _misfit(args)
  if misfit:
    return command.fail(misfit, command.EXIT_USAGE)
  try:
    jobs = batch.plan(
      args.photos,
      args.output,
      args.num_samples,
      recursive=args.recursive,
      uncertainty=args.uncertainty,
    )
    guide = _guide(args, jobs)
    if args.before_after:
      batch.check_before_after(jobs, args.before_after)
  except batch.UsageError as error:
    return command.fail(error, command.EXIT_USAGE)
  to_stdout = not all(job.outputs or job.error for job in jobs)
  if to_stdout and sys.stdout is None:
    return command.fail('stdout is closed', command.EXIT_USAGE)
  if to_stdout and sys.stdout.isatty():
    return command.fail(
      'a terminal shows no pictures; redirect stdout or give -o FILE',
      command.EXIT_USAGE,
    )

  import jax

  from coltran_jax import checkpoint

  command.keep_programs(jax)
  try:
    process_id, num_processes = command.place(args)
  except ValueError as error:
    return command.fail(error, command.EXIT_USAGE)
  if args.before_after and num_processes > 1:
    return command.fail(
      '--before-after needs all photos: leave it to a process alone, with '
      '--resume',
      command.EXIT_USAGE,
    )
  jobs = batch.share(jobs, process_id, num_processes)
  size = args.size if args.size == 'original' else int(args.size)
  try:
    colorizer, options = _colorizer(args, size, guide)
  except checkpoint.CheckpointError as error:
    return command.fail(error, command.EXIT_WEIGHTS)
  except ValueError as error:
    return command.fail(error, command.EXIT_USAGE)
  failed = batch.run(colorizer, jobs, options, resume=args.resume)
  if args.before_after:
    try:
      batch.before_after(jobs, failed, args.before_after)
    except batch.PhotoError as error:
      failed.append(('--before-after', error))
  for name, reason in failed:
    print(f'coltran: failed: {name}: {reason}', file=sys.stderr)
  return command.EXIT_FAILED if failed else 0
