"""The command `coltran evaluate`: parse, then measure."""

import functools
import logging
import pathlib

from coltran_jax import cli_diffusion, command

_log = logging.getLogger('coltran')


def add(commands):
  """Adds `evaluate` to argparse's commands."""
  add = commands.add_parser(
    'evaluate',
    help='measure colorings',
    description='Measure how far colorings are from their originals.',
  )
  parts = add.add_subparsers(metavar='WHAT', required=True)

  pairs = parts.add_parser(
    'pairs',
    help='folders of colorings against a folder of originals',
    description='Names are those of files without suffix; NAME-1 .. NAME-N are '
    'samples of one picture. Gray is measured beside them.',
  )
  pairs.add_argument('truth', metavar='TRUTH')
  pairs.add_argument('made', nargs='+', metavar='OUT')
  pairs.add_argument(
    '--resize',
    type=command.count,
    metavar='SIDE',
    help='resize all to squares first, by a bicubic filter',
  )
  pairs.set_defaults(run=_pairs, huge_pages=True)

  model = parts.add_parser(
    'model',
    help='color a data set and measure that',
    description='Color a split of a data set with one or more models, and '
    'measure the result; colorings that are there already are kept.',
  )
  model.add_argument(
    '--weights',
    required=True,
    nargs='+',
    metavar='NAME|DIR',
    help='checkpoint directories; each is a row of the table. So are folders '
    'of Stable Diffusion, with --controlnet',
  )
  model.add_argument('--data', default='sports', metavar='NAME')
  model.add_argument('--split', default='valid')
  command.add_data_dir(model)
  command.add_sampling(model)
  model.add_argument(
    '--size',
    type=command.count,
    default=256,
    help='side of the squares that are measured (default: 256; the study '
    'protocol has its own 224)',
  )
  model.add_argument(
    '--every',
    type=command.count,
    default=1,
    metavar='K',
    help='take every K-th picture only',
  )
  command.add_processes(model)
  cli_diffusion.add_options(model)
  model.set_defaults(run=_model, huge_pages=True)

  five = parts.add_parser(
    'coltran5k',
    help="the reference's FID: 5,000 colorings against other pictures",
    description="Color the first 5,000 pictures of ImageNet's validation split, in "
    'the order in which tfds reads it, as squares of 256, and compare them with its '
    'pictures 10,000 to 14,999. The originals are measured beside them and must '
    'give 14.68.',
  )
  five.add_argument(
    'made',
    nargs='*',
    metavar='OUT',
    help='folders of 5,000 colorings that are there already',
  )
  five.add_argument(
    '--weights',
    nargs='+',
    default=[],
    metavar='NAME|DIR',
    help='checkpoint directories to color with; colorings that are there already '
    "are kept. `--sampler reference` is the published models' way",
  )
  command.add_data_dir(five)
  command.add_sampling(five)
  command.add_processes(five)
  cli_diffusion.add_options(five)
  five.set_defaults(run=_coltran5k, huge_pages=True)

  for part in (pairs, model):
    part.add_argument(
      '--protocol',
      choices=('standard', 'study'),
      default='standard',
      help="of LPIPS: pictures in -1..1, or in 0..1 as the study's (default: "
      'standard)',
    )
    part.add_argument(
      '--net',
      choices=('vgg16', 'alexnet'),
      default='vgg16',
      help='of LPIPS (default: vgg16)',
    )
    part.add_argument(
      '--each', action='store_true', help='print the LPIPS of each picture too'
    )
  for part in (pairs, model, five):
    part.add_argument(
      '-o',
      '--output',
      default='evaluation',
      metavar='DIR',
      help='colorings, table, pictures and report (default: evaluation)',
    )
    part.add_argument(
      '--inception-weights',
      metavar='FILE',
      help='of FID: pt_inception-2015-12-05, as .pth, .npz or .safetensors',
    )
    part.add_argument(
      '--frechet-lite0',
      action='store_true',
      help='a stand-in that is not FID, of EfficientNet-Lite0',
    )
    part.add_argument('-q', '--quiet', action='store_true', help='errors only')


def _pairs(args):
  from coltran_jax.evaluation import pairs

  def run():
    comparison = pairs.find(args.truth, args.made)
    _evaluate(args, comparison, _networks(args), args.resize)

  return _reported(run)


def _model(args):
  if not args.data_dir:
    return command.fail('no data: give --data_dir DIR', command.EXIT_USAGE)
  try:
    place = command.place(args)
  except ValueError as error:
    return command.fail(error, command.EXIT_USAGE)

  from coltran_jax.data import sources
  from coltran_jax.evaluation import colorings, pairs

  def run():
    networks = _networks(args)  # Before hours of coloring, not after.
    split = sources.open_split(args.data, args.data_dir, args.split)
    options = command.sampling_options(args)
    methods = colorings.methods(
      args.weights, options, functools.partial(cli_diffusion.colorizer, args)
    )
    folder = pathlib.Path(args.output)
    pictures = colorings.Every(split, args.every)
    mine = colorings.make(
      pictures,
      folder,
      methods,
      options | cli_diffusion.given(args),
      args.protocol,
      args.size,
      place,
    )
    if place[1] > 1 and not _is_last(
      args, mine, folder / f'values{colorings.suffix(place)}.jsonl', pictures
    ):
      return
    comparison = pairs.find(
      folder / colorings.TRUTH, [folder / label for label in methods]
    )
    bits = colorings.likelihoods(folder, methods)
    _evaluate(args, comparison, networks, bits=bits)

  return _reported(run)


def _is_last(args, mine, log, pictures):
  """Measures a process's share; returns True if those of all are there.

  So nobody waits for another: who makes the last one finds all, and reports.
  """
  from coltran_jax.evaluation import pairs

  if not mine.truth:
    return False  # More processes than pictures: others will.
  settings = pairs.Settings(args.protocol, args.net)
  pairs.measure(mine, settings, log)
  count = len(pairs.measured(mine, settings, log.with_stem('values')))
  if count < len(pictures):
    _log.info(
      '%s: %d of %d pictures are measured; the process that measures the last '
      'one writes the report',
      log.parent,
      count,
      len(pictures),
    )
  return count == len(pictures)


def _evaluate(args, comparison, networks, resize=None, bits=None):
  from coltran_jax.evaluation import evaluate, pairs, table

  settings = pairs.Settings(args.protocol, args.net, resize)
  made, values = evaluate.evaluate(
    comparison, settings, args.output, bits, networks
  )
  if args.each:
    for i, name in enumerate(comparison.truth):
      lpips = {
        label: of['lpips'][i, 0]
        for label, of in values.items()
        if 'lpips' in of
      }
      print(name, *(f'{label} {v:.4f}' for label, v in lpips.items()), sep='  ')
  print(table.text(made))
  _log.info('%s: table, pictures and report.html', args.output)


def _coltran5k(args):
  if not args.data_dir:
    return command.fail('no data: give --data_dir DIR', command.EXIT_USAGE)
  if not (args.inception_weights or args.frechet_lite0):
    return command.fail('give --inception-weights FILE', command.EXIT_USAGE)
  if not (args.made or args.weights):
    return command.fail('give --weights DIR, or OUT', command.EXIT_USAGE)
  if args.num_samples > 1 or args.fast:
    return command.fail(
      'coltran5k is of one coloring a picture, by all stages: leave out -n and '
      '--fast',
      command.EXIT_USAGE,
    )
  try:
    place = command.place(args)
  except ValueError as error:
    return command.fail(error, command.EXIT_USAGE)

  from coltran_jax.data import sources
  from coltran_jax.evaluation import colorings, distributions, read_order, table

  def run():
    networks = _networks(args)
    split = sources.open_split('imagenet2012', args.data_dir, 'test')
    folder, made = pathlib.Path(args.output), list(args.made)
    if args.weights:
      options = command.sampling_options(args)
      methods = colorings.methods(
        args.weights,
        options | {'size': 256},
        functools.partial(cli_diffusion.colorizer, args),
      )
      pictures = read_order.Read(split, 0, distributions.COUNT)
      given = options | cli_diffusion.given(args)
      colorings.make(pictures, folder, methods, given, place=place)
      made += [folder / label for label in methods]
      if place[1] > 1:
        _log.info(
          '%s: the share of process %d of %d is colored; when all are, give the same '
          'command with --num-processes 1 --process-id 0',
          folder,
          *place,
        )
        return
    for network in networks:
      found = distributions.coltran5k(split, made, network)
      for label, row in found.items():
        for metric, value in row.items():
          shown, _ = table.shown(table.Figure(value), metric)
          print(f'{label}  {metric}  {shown}')

  return _reported(run)


def _networks(args):
  from coltran_jax.evaluation import distributions

  networks = []
  if args.inception_weights:
    networks.append(distributions.fid(args.inception_weights))
  if args.frechet_lite0:
    networks.append(distributions.frechet_lite0())
  return networks


def _reported(run):
  """Returns the exit code of run(); says what went wrong."""
  import jax

  from coltran_jax import checkpoint
  from coltran_jax.evaluation import colorings

  command.keep_programs(jax)
  try:
    run()
  except checkpoint.CheckpointError as error:
    return command.fail(error, command.EXIT_WEIGHTS)
  except (colorings.OptionsError, cli_diffusion.OptionError) as error:
    return command.fail(error, command.EXIT_USAGE)
  # ValueError: of names that do not match, photos, data sets, and settings.
  except (ValueError, OSError) as error:
    return command.fail(error, command.EXIT_FAILED)
  return 0
